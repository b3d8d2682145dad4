//! The engine: one for the process. It holds wasmtime's settings, the functions that plugins can import, the ticker that
//! wakes deadlines, and the cache of compiled plugins.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use wasmtime::component::Linker;
use wasmtime::{Config, OptLevel, Strategy, WasmBacktraceDetails};

use super::bindings;
use super::cache::Cache;
use super::clock::Ticker;
use super::compile::{self, LoadError};
use super::compiler::Compiler;
use super::pool::Slots;
use super::sandbox::State;
use crate::model::Digest;
use crate::telemetry::CustomMetrics;

/// A guest's own stack, bytes. It lies on the worker's thread stack, which must be larger (2 MiB by default).
const STACK_MAX: usize = 256 << 10;
/// The largest image of a memory that may be empty for the most part, bytes.
const IMAGE_MAX: u64 = 1 << 20;
/// Frames that a trap's backtrace keeps.
const BACKTRACE_MAX: usize = 32;

/// What an engine is made with.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Where compiled plugins are kept between runs; nowhere if none.
    pub cache_dir: Option<PathBuf>,
    /// The millrace that compiles, in a process of its own; the one that runs if none.
    pub compiler: Option<PathBuf>,
    /// Where instances lie; as many as any process needs if none.
    pub slots: Option<Slots>,
}

/// Compiles plugins and runs them; cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    wasmtime: wasmtime::Engine,
    /// Where instances lie; nowhere in particular if none.
    slots: Option<Slots>,
    linker: Linker<State>,
    ticker: Ticker,
    compiler: Compiler,
    cache: ArcSwapOption<Cache>,
    /// Plugins that somebody holds, by digest.
    in_use: Mutex<HashMap<Digest, Weak<compile::Inner>>>,
    custom: CustomMetrics,
}

impl Engine {
    /// An engine.
    ///
    /// # Errors
    /// [`LoadError::Engine`]: the machine lacks what wasmtime needs. A cache directory that cannot be used is only warned of.
    pub fn new(options: EngineOptions) -> Result<Self, LoadError> {
        let failed = |error: wasmtime::Error| LoadError::Engine(format!("{error:#}"));
        let (wasmtime, slots) = with_slots(options.slots.unwrap_or(Slots::USUAL)).map_err(failed)?;
        let mut linker = Linker::new(&wasmtime);
        bindings::define(&mut linker).map_err(failed)?;
        let ticker = Ticker::start(wasmtime.clone()).map_err(|error| LoadError::Engine(error.to_string()))?;
        let engine = Self(Arc::new(Inner {
            wasmtime,
            slots,
            linker,
            ticker,
            compiler: Compiler::new(options.compiler),
            cache: ArcSwapOption::empty(),
            in_use: Mutex::default(),
            custom: CustomMetrics::default(),
        }));
        engine.keep_in(options.cache_dir);
        Ok(engine)
    }

    /// Keeps compiled plugins in this directory from now on, or nowhere. One that cannot be used is only warned of.
    pub fn keep_in(&self, directory: Option<PathBuf>) {
        let cache = directory.and_then(|directory| match Cache::open(directory.clone(), &self.0.wasmtime) {
            Ok(cache) => Some(Arc::new(cache)),
            Err(reason) => {
                let directory = directory.display();
                tracing::warn!(%directory, "the cache of compiled plugins is not used: {reason}");
                None
            }
        });
        self.0.cache.store(cache);
    }

    /// Where instances lie: slots that were reserved beforehand; none where the addresses for them were not to be had.
    pub fn slots(&self) -> Option<Slots> {
        self.0.slots
    }

    /// What plugins count themselves.
    pub fn custom_metrics(&self) -> CustomMetrics {
        self.0.custom.clone()
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.wasmtime
    }

    pub(super) fn linker(&self) -> &Linker<State> {
        &self.0.linker
    }

    pub(super) fn ticker(&self) -> &Ticker {
        &self.0.ticker
    }

    pub(super) fn compiler(&self) -> &Compiler {
        &self.0.compiler
    }

    pub(super) fn in_use(&self) -> MutexGuard<'_, HashMap<Digest, Weak<compile::Inner>>> {
        // (every change of it is complete before anything that could panic)
        self.0.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cache(&self) -> Option<Arc<Cache>> {
        self.0.cache.load_full()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

/// wasmtime for running plugins: with slots for their instances, or without where the addresses for them are not to be had.
fn with_slots(slots: Slots) -> wasmtime::Result<(wasmtime::Engine, Option<Slots>)> {
    // Where the kernel gives huge pages unasked, the first element of a table would take 2 MiB of memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let mut config = config();
    slots.reserve(&mut config);
    match wasmtime::Engine::new(&config) {
        Ok(wasmtime) => Ok((wasmtime, Some(slots))),
        Err(error) => {
            tracing::warn!(
                "plugins' instances are not pooled, each is given memory when it is made, which takes somewhat longer. There are no \
                 addresses for {slots} (`ulimit -v`, or a kernel with few): {error:#}"
            );
            Ok((wasmtime()?, None))
        }
    }
}

/// wasmtime, with the settings that machine code is made and run with.
pub(super) fn wasmtime() -> wasmtime::Result<wasmtime::Engine> {
    wasmtime::Engine::new(&config())
}

/// What machine code depends on; where instances lie is none of it.
fn config() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_MAX)
        .memory_init_cow(true)
        // A few bytes at both ends of a memory make an image of all that lies between: only a small one is for nothing.
        .memory_guaranteed_dense_image_size(IMAGE_MAX)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_MAX))
        // A plugin's debug information is hostile, too: `lines` reads what can be read safely.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // Triples the cost of a call.
        .concurrency_support(false)
        // A shared memory would grow past the limiter.
        .shared_memory(false)
        // Guard pages, which cost nothing, only cover 32 bit addresses.
        .wasm_memory64(false)
        // The same records give the same result on every machine.
        .relaxed_simd_deterministic(true);
    config
}
