//! `millrace compile-plugin`: the process that the plugin host has a plugin compiled in. Not for people, hence not among the verbs:
//! in no help and no completion.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use crate::plugin::{COMPILE_VERB, CompileLimits, compile_within};

/// Compiles, where this process was started for that: with CPU time in seconds, and memory in bytes.
pub(super) fn if_asked() -> Option<ExitCode> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [verb, cpu, memory] = &words[..] else { return None };
    let number = |word: &OsString| word.to_str()?.parse::<u64>().ok();
    if verb != COMPILE_VERB {
        return None;
    }
    let limits = CompileLimits { cpu: Duration::from_secs(number(cpu)?), memory: number(memory)? };
    Some(ExitCode::from(compile_within(&limits)))
}
