//! A filter that reads WASI's clock, as what a language's standard library drags in: a core module that cannot be wrapped
//! without an adapter. It keeps records while the clock says that it is the first hour of 1970.

use millrace_plugin::{Filter, NoConfig, Record, Verdict, export_filter};

/// In nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

struct NeedsWasi;

impl Filter for NeedsWasi {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn filter(&mut self, _: &Record<'_>) -> Verdict {
        if (1..HOUR).contains(&now()) { Verdict::Keep } else { Verdict::Drop }
    }
}

export_filter!(NeedsWasi);

#[cfg(target_arch = "wasm32")]
fn now() -> u64 {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
    }
    let mut time = 0;
    // SAFETY: `time` is valid for the call, which is all that the function asks for.
    unsafe { clock_time_get(0, 1, &raw mut time) };
    time
}

#[cfg(not(target_arch = "wasm32"))]
fn now() -> u64 {
    0
}
