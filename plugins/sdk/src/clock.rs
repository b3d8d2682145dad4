//! The capability `clock`: the operator has to grant it (`allow: [clock]`), else the plugin is refused when it is loaded. In
//! `cargo test` it is the machine's clock.

use std::time::{Duration, SystemTime};

/// The wall clock's time.
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(now_ns())
}

/// Milliseconds since 1970-01-01 UTC, as records' timestamps are.
pub fn now_ms() -> i64 {
    host::now_ms()
}

/// Nanoseconds since 1970-01-01 UTC.
pub fn now_ns() -> u64 {
    host::now_ns()
}

#[cfg(target_arch = "wasm32")]
use bindings::millrace::plugin::clock as host;

#[cfg(target_arch = "wasm32")]
#[allow(missing_docs, reason = "generated; the WIT files are the documentation")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package millrace:sdk-clock; world capability { import millrace:plugin/clock@0.1.1; }",
        world: "millrace:sdk-clock/capability",
        generate_all,
    });
}

#[cfg(not(target_arch = "wasm32"))]
mod host {
    use std::time::{SystemTime, UNIX_EPOCH};

    pub(super) fn now_ms() -> i64 {
        (now_ns() / 1_000_000) as i64
    }

    pub(super) fn now_ns() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    }
}
