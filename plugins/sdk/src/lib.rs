//! Write millrace plugins in Rust.
//!
//! A plugin implements [`Filter`] (keeps or drops records) or [`Transform`] (also rewrites, splits and routes them), and
//! one macro makes a WebAssembly module of it:
//!
//! ```
//! use millrace_plugin::{Filter, NoConfig, Record, Verdict, export_filter};
//!
//! struct DropEmpty;
//!
//! impl Filter for DropEmpty {
//!     type Config = NoConfig;
//!     fn configure(_: NoConfig) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!     fn filter(&mut self, record: &Record<'_>) -> Verdict {
//!         if record.value() == Some(b"") { Verdict::Drop } else { Verdict::Keep }
//!     }
//! }
//!
//! export_filter!(DropEmpty);
//! ```
//!
//! Authors see records; what crosses the sandbox's border are whole batches in packed columns, and only the columns that
//! are asked for. Read on in `record.rs` (what comes in), `output.rs` (what goes out), `wasm.rs` (the border itself),
//! `testing.rs` (running a plugin in `cargo test`, where all of this is plain Rust).
//!
//! The features `clock`, `metrics` and `random` add a module each: capabilities that the operator has to grant by `allow`.

#[cfg(feature = "clock")]
pub mod clock;
mod config;
pub mod log;
#[cfg(feature = "metrics")]
pub mod metrics;
mod output;
#[cfg(feature = "random")]
pub mod random;
mod record;
pub mod testing;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod wasm;

pub use config::{Config, NoConfig, RawConfig};
pub use output::{DEFAULT, Item, Output};
pub use record::{Header, Record};

/// Keeps or drops records. Exported with [`export_filter!`].
///
/// An instance lives as long as the host likes: what it remembers is a cache, never a store, and the verdict on a record
/// must not depend on which other records share its batch.
pub trait Filter: Sized + 'static {
    /// The plugin's `config` in the YAML.
    type Config: Config;
    /// Called once, before any record. The error is shown to the operator as what is wrong with the `config`.
    fn configure(config: Self::Config) -> Result<Self, String>;
    /// The verdict on one record.
    fn filter(&mut self, record: &Record<'_>) -> Verdict;
    /// Called before an orderly shutdown or reload; not after a panic.
    fn shutdown(&mut self) {}
}

/// Rewrites, drops, splits and routes records. Exported with [`export_transform!`].
///
/// What is said of [`Filter`]'s state holds here too.
pub trait Transform: Sized + 'static {
    /// The plugin's `config` in the YAML.
    type Config: Config;
    /// Called once, before any record. The error is shown to the operator as what is wrong with the `config`.
    fn configure(config: Self::Config) -> Result<Self, String>;
    /// The verdict on one record; what `output` is given goes out besides. Nothing is sent before the whole batch is done.
    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict;
    /// Called before an orderly shutdown or reload; not after a panic.
    fn shutdown(&mut self) {}
}

/// What becomes of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The record goes on as it is.
    Keep,
    /// It does not; in a [`Transform`], what was emitted from it does.
    Drop,
    /// It cannot be processed, and why: it alone meets the route's `on_error`, as `refused`.
    Refuse(String),
    /// Not now, and why: the whole batch is given again later, within the route's `retry`.
    Retry(String),
    /// The whole batch can never be processed, and why: the host halves it to find the records that are to blame.
    /// Prefer `Refuse` where the record to blame is known.
    Permanent(String),
}

/// Makes the module's exports of a type that implements [`Filter`]. Once per crate, whose `crate-type` is `cdylib`.
#[macro_export]
macro_rules! export_filter {
    ($plugin:ty) => {
        $crate::__export!($plugin, Filter, filter, FilterPlugin);
    };
}

/// Makes the module's exports of a type that implements [`Transform`]. Once per crate, whose `crate-type` is `cdylib`.
#[macro_export]
macro_rules! export_transform {
    ($plugin:ty) => {
        $crate::__export!($plugin, Transform, transform, TransformPlugin);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($plugin:ty, $trait:ident, $world:ident, $adapter:ident) => {
        // Off WebAssembly there is nothing to export to; that the type fits is checked there too.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(<$plugin as $crate::$trait>::Config) -> ::std::result::Result<$plugin, ::std::string::String> =
            <$plugin as $crate::$trait>::configure;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::wasm::{self, $world as world};

            ::std::thread_local! {
                static INSTANCE: wasm::Instance<wasm::$adapter<$plugin>> = const { wasm::Instance::new() };
            }
            struct Component;
            impl world::exports::millrace::plugin::lifecycle::Guest for Component {
                fn configure(config: ::std::string::String) -> ::std::result::Result<(), wasm::Failure> {
                    INSTANCE.with(|instance| instance.configure(&config))
                }
                fn shutdown() {
                    INSTANCE.with(|instance| instance.shutdown())
                }
            }
            impl world::Guest for Component {
                fn process(batch: &wasm::Batch) -> ::std::result::Result<::std::vec::Vec<u8>, wasm::Failure> {
                    INSTANCE.with(|instance| instance.process(batch))
                }
            }
    world::export!(Component with_types_in world);
        };
    };
}
