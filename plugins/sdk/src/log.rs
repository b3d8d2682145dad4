//! Log lines. They appear in the router's log with the plugin's name and, inside `filter` or `transform`, the coordinates
//! of the record at hand; the router limits their rate. In `cargo test` they go to standard error.

use std::sync::atomic::{AtomicU32, Ordering};

/// The index of the record at hand; `NONE` outside of one.
static CURRENT: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = u32::MAX;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For following single records.
    Trace,
    /// For the plugin's author.
    Debug,
    /// For the operator, in passing.
    Info,
    /// Something is odd, nothing is lost.
    Warn,
    /// An operator must act.
    Error,
}

/// Writes one line at `level`.
pub fn log(level: Level, message: impl AsRef<str>) {
    let about = Some(CURRENT.load(Ordering::Relaxed)).filter(|&index| index != NONE);
    write(level, message.as_ref(), about);
}

/// Writes one line for following single records.
pub fn trace(message: impl AsRef<str>) {
    log(Level::Trace, message);
}

/// Writes one line for the plugin's author.
pub fn debug(message: impl AsRef<str>) {
    log(Level::Debug, message);
}

/// Writes one line for the operator, in passing.
pub fn info(message: impl AsRef<str>) {
    log(Level::Info, message);
}

/// Writes one line about something odd.
pub fn warn(message: impl AsRef<str>) {
    log(Level::Warn, message);
}

/// Writes one line that asks the operator to act.
pub fn error(message: impl AsRef<str>) {
    log(Level::Error, message);
}

pub(crate) fn set_current(index: Option<usize>) {
    CURRENT.store(index.map_or(NONE, |index| index as u32), Ordering::Relaxed);
}

#[cfg(target_arch = "wasm32")]
use crate::wasm::write_log as write;

#[cfg(not(target_arch = "wasm32"))]
fn write(level: Level, message: &str, about: Option<u32>) {
    match about {
        Some(index) => eprintln!("{level:?} (record {index}): {message}"),
        None => eprintln!("{level:?}: {message}"),
    }
}
