//! A filter that asks for what the standard libraries of most languages ask for, WASI 0.2, and tries to get out by each of
//! it: what a record's value says is tried, and what came of it is the reason of a refusal.

use millrace_plugin::{Filter, NoConfig, Record, Verdict, export_filter};

struct Escape;

impl Filter for Escape {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        match record.value() {
            Some(what) => Verdict::Refuse(attempt(&String::from_utf8_lossy(what))),
            None => Verdict::Keep,
        }
    }
}

export_filter!(Escape);

#[cfg(target_arch = "wasm32")]
fn attempt(what: &str) -> String {
    use wasi::wasi::cli::{environment, exit, stderr, stdin, stdout, terminal_stdout};
    use wasi::wasi::clocks::{monotonic_clock, wall_clock};
    use wasi::wasi::filesystem::preopens;
    use wasi::wasi::io::poll;
    use wasi::wasi::random::{insecure_seed, random};
    use wasi::wasi::sockets::{instance_network, ip_name_lookup, network, tcp_create_socket};

    let (what, text) = what.split_once(' ').unwrap_or((what, ""));
    match what {
        "environment" => format!("{:?}", environment::get_environment()),
        "arguments" => format!("{:?} in {:?}", environment::get_arguments(), environment::initial_cwd()),
        "directories" => format!("{} directories", preopens::get_directories().len()),
        "stdin" => format!("{:?}", stdin::get_stdin().read(100)),
        "stdout" => {
            let stdout = stdout::get_stdout();
            format!("{:?}", (stdout.check_write().is_ok_and(|room| room > 0), stdout.write(text.as_bytes())))
        }
        "stderr" => format!("{:?}", stderr::get_stderr().blocking_write_and_flush(text.as_bytes())),
        "stderr-then-trap" => {
            let _ = stderr::get_stderr().blocking_write_and_flush(text.as_bytes());
            core::arch::wasm32::unreachable()
        }
        "flood" => {
            let stdout = stdout::get_stdout();
            let line = [b'x'; 1000];
            (0..1000).filter(|_| stdout.write(&line).is_ok()).count().to_string()
        }
        "terminal" => format!("{:?}", terminal_stdout::get_terminal_stdout().is_some()),
        "wall-clock" => format!("{:?}", (0..3).map(|_| wall_clock::now().seconds).collect::<Vec<_>>()),
        "monotonic-clock" => format!("{:?}", (0..3).map(|_| monotonic_clock::now()).collect::<Vec<_>>()),
        "sleep" => {
            let hour = monotonic_clock::subscribe_duration(3_600_000_000_000);
            let ready = poll::poll(&[&hour]);
            hour.block();
            format!("{ready:?} {}", hour.ready())
        }
        "random" => format!("{:?} {}", random::get_random_bytes(4), random::get_random_u64()),
        "much-random" => random::get_random_bytes(1 << 40).len().to_string(),
        "seed" => format!("{:?}", insecure_seed::insecure_seed()),
        "socket" => format!("{:?}", tcp_create_socket::create_tcp_socket(network::IpAddressFamily::Ipv4).err()),
        "lookup" => {
            let network = instance_network::instance_network();
            format!("{:?}", ip_name_lookup::resolve_addresses(&network, "example.com").err())
        }
        "exit" => {
            exit::exit(if text == "0" { Ok(()) } else { Err(()) });
            String::from("still there")
        }
        _ => String::from("unknown"),
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn attempt(_: &str) -> String {
    String::new()
}

// Of WASI's own interfaces, in several of its versions, what is tried.
#[cfg(target_arch = "wasm32")]
#[allow(missing_docs, reason = "generated")]
mod wasi {
    wit_bindgen::generate!({
        inline: "
            package test:escape;

            world escape {
                import wasi:cli/environment@0.2.6;
                import wasi:cli/exit@0.2.6;
                import wasi:cli/stdin@0.2.6;
                import wasi:cli/stdout@0.2.6;
                import wasi:cli/stderr@0.2.6;
                import wasi:cli/terminal-stdout@0.2.6;
                import wasi:clocks/monotonic-clock@0.2.6;
                import wasi:clocks/wall-clock@0.2.6;
                import wasi:filesystem/preopens@0.2.0;
                import wasi:io/poll@0.2.6;
                import wasi:random/random@0.2.99;
                import wasi:random/insecure-seed@0.2.99;
                import wasi:sockets/instance-network@0.2.6;
                import wasi:sockets/ip-name-lookup@0.2.6;
                import wasi:sockets/tcp-create-socket@0.2.6;
            }

            package wasi:io@0.2.6 {
                interface error {
                    resource error { to-debug-string: func() -> string; }
                }
                interface poll {
                    resource pollable { ready: func() -> bool; block: func(); }
                    poll: func(in: list<borrow<pollable>>) -> list<u32>;
                }
                interface streams {
                    use error.{error};
                    use poll.{pollable};
                    variant stream-error { last-operation-failed(error), closed }
                    resource input-stream {
                        read: func(len: u64) -> result<list<u8>, stream-error>;
                        subscribe: func() -> pollable;
                    }
                    resource output-stream {
                        check-write: func() -> result<u64, stream-error>;
                        write: func(contents: list<u8>) -> result<_, stream-error>;
                        blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
                    }
                }
            }

            package wasi:cli@0.2.6 {
                interface environment {
                    get-environment: func() -> list<tuple<string, string>>;
                    get-arguments: func() -> list<string>;
                    initial-cwd: func() -> option<string>;
                }
                interface exit { exit: func(status: result); }
                interface stdin {
                    use wasi:io/streams@0.2.6.{input-stream};
                    get-stdin: func() -> input-stream;
                }
                interface stdout {
                    use wasi:io/streams@0.2.6.{output-stream};
                    get-stdout: func() -> output-stream;
                }
                interface stderr {
                    use wasi:io/streams@0.2.6.{output-stream};
                    get-stderr: func() -> output-stream;
                }
                interface terminal-output { resource terminal-output; }
                interface terminal-stdout {
                    use terminal-output.{terminal-output};
                    get-terminal-stdout: func() -> option<terminal-output>;
                }
            }

            package wasi:clocks@0.2.6 {
                interface monotonic-clock {
                    use wasi:io/poll@0.2.6.{pollable};
                    now: func() -> u64;
                    subscribe-duration: func(when: u64) -> pollable;
                }
                interface wall-clock {
                    record datetime { seconds: u64, nanoseconds: u32 }
                    now: func() -> datetime;
                }
            }

            package wasi:filesystem@0.2.0 {
                interface types { resource descriptor; }
                interface preopens {
                    use types.{descriptor};
                    get-directories: func() -> list<tuple<descriptor, string>>;
                }
            }

            package wasi:random@0.2.99 {
                interface random {
                    get-random-bytes: func(len: u64) -> list<u8>;
                    get-random-u64: func() -> u64;
                }
                interface insecure-seed { insecure-seed: func() -> tuple<u64, u64>; }
            }

            package wasi:sockets@0.2.6 {
                interface network {
                    resource network;
                    enum error-code { unknown, access-denied, not-supported }
                    enum ip-address-family { ipv4, ipv6 }
                }
                interface instance-network {
                    use network.{network};
                    instance-network: func() -> network;
                }
                interface ip-name-lookup {
                    use network.{network, error-code};
                    resource resolve-address-stream;
                    resolve-addresses: func(network: borrow<network>, name: string)
                        -> result<resolve-address-stream, error-code>;
                }
                interface tcp { resource tcp-socket; }
                interface tcp-create-socket {
                    use network.{error-code, ip-address-family};
                    use tcp.{tcp-socket};
                    create-tcp-socket: func(address-family: ip-address-family) -> result<tcp-socket, error-code>;
                }
            }
        ",
        generate_all,
    });
}
