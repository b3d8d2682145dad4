//! FLOOR 4: the plugin host, only owner of wasmtime. It takes a plugin's bytes and gives back steps of a pipeline, whose
//! guests have no capability but `log` and those they are granted, and cannot exceed their memory, their time or their output. It knows nothing of
//! Kafka, YAML or what becomes of a fault.
//!
//! The life of a plugin: bytes → [`Engine::compile`] → [`Compiled::prepare`] (for one step of one route) →
//! [`Prepared::step`] (for one worker) → calls. Read `engine` first, then `sandbox`, then `convert`.

mod bindings;
mod cache;
mod clock;
mod compile;
mod compiler;
mod convert;
mod engine;
mod fault;
#[cfg(feature = "testing")]
pub mod fuzz;
mod host;
mod inherited;
mod inspect;
mod interface;
mod lines;
mod mapped;
mod memory;
mod pool;
mod sandbox;
mod scan;
mod step;
mod wrap;

pub use compile::{Compiled, LoadError};
pub use compiler::{COMPILE_VERB, CompileLimits, compile_within};
pub use engine::{Engine, EngineOptions};
pub use inspect::{Ask, AskKind, Inspection, PLUGIN_BYTES_MAX, World, inspect, spoken};
pub use pool::Slots;
pub use sandbox::{DestinationSpec, Prepare, Prepared};
pub use step::PluginStep;
pub use wrap::{WrapError, wrap};
