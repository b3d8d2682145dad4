# The yard: what a developer types. `make demo` and `make test` do their own set-up.
#   GUEST_TOOLCHAIN=debian        build the plugins with Debian's Rust; rustup: with `rustup target add wasm32-unknown-unknown`;
#                                 unset: with the second, else with the first
#   KAFKA_BOOTSTRAP_SERVERS=...   test against a running Kafka (topics are made, and left) instead of starting one
#   THREADS=n                     how many tests run at a time; default: as many as there are cores. More are quicker where brokers are (most tests wait for one)
#   TEST=name                     run only the tests whose names contain it
#   MINUTES=n                     how long `make torture` goes on with seed after seed; it also knows SEED=n, SECONDS=n (of faults,
#                                 for each), NODES=1|3, MEMBERSHIP=static|dynamic, ASSIGNMENT=cooperative|eager|consumer and
#                                 MUTATION=name (a rule of exactly-once that is broken, which the checkers must notice); with
#                                 KAFKA_BOOTSTRAP_SERVERS it leaves the brokers alone and deletes its topics afterwards
#   SOAK_MINUTES=n                how long `make soak` keeps a process at load (20)
#   SOAK_RECORDS=n                how many records `make soak-plugins` gives to each language (200000; to Rust 25 times as many)
#   MILLRACE=file                 whose plugins `make language-table` measures (target/release/millrace)
#   TARGET=name                   what `make fuzz` fuzzes, for MINUTES (10): guest_output (the default) or config
#   ONLY=part,part                of `make bench`: calls, copy, distance, latency, peers, scale; each writes its section of docs/performance.md (all)
#   ROUNDS=n, RECORDS=n           of `make bench`: how often each contender runs (5; peers 3), over how many records of 1 KiB (1,000,000);
#                                 of `make tap-cost`: 7, over 2,000,000 records of 100 B
#   TAG=name                      of the image that `make image` builds

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# One cargo at a time: two at once wait for each other, and are slower on few cores than one after the other.
.NOTPARALLEL:
.DEFAULT_GOAL := help

THREADS ?= $(shell nproc)
GUESTS_TARGET_DIR := $(or $(CARGO_TARGET_DIR_GUESTS),$(CURDIR)/plugins/target)
IN_PLUGINS := cd plugins && CARGO_TARGET_DIR='$(GUESTS_TARGET_DIR)'

.PHONY: help
help: ## What there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: setup
setup: ## Look for what building and testing need; install it where possible
	@scripts/setup test

.PHONY: demo
demo: ## See it work: an embedded broker, real events, two plugins, and nothing installed
	@scripts/setup demo
	@scripts/guests
	cargo build
	@cargo run --quiet -- demo

.PHONY: test
test: ## Everything: formatting, lints, plugins, and all tests with a real Apache Kafka
	@scripts/setup test
	@$(MAKE) --no-print-directory check-format
	@scripts/guests
	cargo clippy --all-targets --locked -- -D warnings
	$(IN_PLUGINS) cargo clippy --workspace --all-targets --locked -- -D warnings
	$(IN_PLUGINS) cargo test --workspace --locked $(TEST)
	cargo test --locked --no-run
	@scripts/languages test
	@scripts/languages
	cargo test --locked $(TEST) -- --test-threads=$(THREADS)

.PHONY: lint
lint: ## Formatting and lints, and dependencies by cargo-deny where that is installed
	@scripts/setup demo
	@$(MAKE) --no-print-directory check-format
	cargo clippy --all-targets --locked -- -D warnings
	$(IN_PLUGINS) cargo clippy --workspace --all-targets --locked -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; \
	else echo 'lint: cargo-deny is not installed, so licences, bans and sources were not checked'; fi
	@if command -v shellcheck >/dev/null; then shellcheck scripts/* .ci/run; \
	else echo 'lint: shellcheck is not installed, so the scripts were not checked'; fi

.PHONY: check-format
check-format:
	cargo fmt --check
	cd plugins && cargo fmt --all --check

.PHONY: guests
guests: ## Build the plugins (WebAssembly) into plugins/dist
	@scripts/guests

.PHONY: torture
torture: ## Real processes and brokers with faults at random, for MINUTES, and checkers of what arrives
	@scripts/setup test
	@scripts/guests
	TORTURE_MINUTES='$(or $(MINUTES),10)' TORTURE_SECONDS='$(SECONDS)' TORTURE_SEED='$(SEED)' \
	TORTURE_MEMBERSHIP='$(MEMBERSHIP)' TORTURE_ASSIGNMENT='$(ASSIGNMENT)' TORTURE_MUTATION='$(MUTATION)' \
	TORTURE_BOOTSTRAP_SERVERS='$(KAFKA_BOOTSTRAP_SERVERS)' KAFKA_BOOTSTRAP_SERVERS= \
	cargo test --locked --test it -- --exact --nocapture \
	  torture::every_mode_keeps_its_promise_on_$(if $(filter 3,$(NODES)),three_brokers,one_broker)_whatever_is_killed_stopped_doubled_or_reloaded

.PHONY: soak
soak: ## A process at load for SOAK_MINUTES: memory, file descriptors and threads stay flat
	@scripts/setup test
	@scripts/guests
	SOAK_MINUTES='$(or $(SOAK_MINUTES),20)' cargo test --locked --test it -- --nocapture soak::at_load

.PHONY: soak-plugins
soak-plugins: ## Millions of records through plugins in every language, whose instances are replaced at random: memory stays flat
	@scripts/setup test
	@scripts/guests
	cargo test --locked --no-run
	@scripts/languages
	SOAK_RECORDS='$(or $(SOAK_RECORDS),200000)' cargo test --locked --test it -- --nocapture plugin_soak::

.PHONY: language-table
language-table: ## Measure plugins in every language with a release build, into docs/plugins/languages.md
	@scripts/language-table $(MILLRACE)

.PHONY: fuzz
# (without a sanitizer: what is fuzzed is safe Rust, and librdkafka's build cannot link with one)
fuzz: ## Fuzz what guests hand over, or TARGET=config: with cargo-fuzz and a nightly Rust, for MINUTES
	cargo +nightly fuzz run --sanitizer none $(or $(TARGET),guest_output) -- -max_total_time=$$((60 * $(or $(MINUTES),10)))

.PHONY: schemathesis
schemathesis: ## Try the admin endpoint with requests that nobody has thought of, by its OpenAPI document
	@scripts/setup test
	@scripts/guests
	cargo build
	@scripts/schemathesis

.PHONY: image
image: ## Build the container image (Containerfile)
	@scripts/container build --tag '$(or $(TAG),millrace)'

COMMA := ,
BENCH_ALL := calls,copy,distance,latency,peers,scale
BENCH_PARTS := $(or $(ONLY),$(BENCH_ALL))

.PHONY: bench
bench: ## Measure the guest call, the record loop, reading a configuration; and millrace beside a bare loop and its peers on a real Kafka, into docs/performance.md
	@scripts/setup test
	@scripts/guests
	cargo build --locked --release --bin millrace
	cp target/release/millrace target/release/millrace-plain
	MILLRACE='$(CURDIR)/target/release/millrace-plain' scripts/languages javascript
ifneq (,$(filter calls,$(subst $(COMMA), ,$(BENCH_PARTS))))
	MILLRACE='$(CURDIR)/target/release/millrace-plain' scripts/languages bench
	cargo bench --locked --bench plugin_call --bench record_loop --bench config_loading
endif
	MILLRACE='$(CURDIR)/target/release/millrace-plain' cargo bench --locked --bench side_by_side -- --only '$(BENCH_PARTS)' \
	  $(if $(ROUNDS),--rounds '$(ROUNDS)') $(if $(RECORDS),--records '$(RECORDS)') --write docs/performance.md

.PHONY: bench-peers
bench-peers: ## Install the routers that `make bench` holds millrace against: Kafka Streams by Maven, Benthos by Go
	@scripts/peers streams
	@scripts/peers benthos

.PHONY: profile
profile: ## Draw where a record's CPU time goes, by perf, into docs/images/profile.svg
	@scripts/setup test
	@scripts/guests
	@scripts/profile $(RECORDS)

.PHONY: tap-cost
tap-cost: ## What a tap costs a route, beside a build without one: instructions of the record loop, and a real Kafka; into docs/console.md
	@scripts/setup test
	@command -v valgrind >/dev/null || { echo 'tap-cost: there is no valgrind (Debian: apt-get install valgrind)' >&2; exit 3; }
	cargo bench --locked --bench tap_cost --features without-tap -- --count target/tap-cost-without
	cp target/release/millrace target/release/millrace-without-tap
	cargo bench --locked --bench tap_cost -- --count target/tap-cost-with
	cp target/release/millrace target/release/millrace-with-tap
	cargo bench --locked --bench tap_cost -- --rounds $(or $(ROUNDS),7) --records $(or $(RECORDS),2000000) --write docs/console.md

.PHONY: fmt
fmt: ## Format everything
	cargo fmt
	cd plugins && cargo fmt --all

.PHONY: clean
clean: ## Remove what was built (the caches in ~/.cache/millrace stay)
	cargo clean
	scripts/guests clean
