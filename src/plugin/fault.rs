//! What can go wrong in a guest, brought to the closed list of faults.

use std::fmt::Write as _;
use std::time::Duration;

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use super::lines::Lines;
use super::memory::Refused;
use crate::model::FaultCode;

/// The longest message of a fault, bytes: it goes into logs and into a dead letter's headers.
pub(super) const MESSAGE_MAX: usize = 2048;
/// Innermost functions named in the message of a trap.
const FRAMES_MAX: usize = 6;

/// A fault that a host function found: returned to wasmtime it becomes a trap of the guest, and is found again in the
/// error that the call ends with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct HostFault {
    pub(super) code: FaultCode,
    pub(super) message: String,
}

impl HostFault {
    pub(super) fn bad_output(message: impl Into<String>) -> Self {
        Self { code: FaultCode::BadOutput, message: message.into() }
    }

    pub(super) fn trapped(message: impl Into<String>) -> Self {
        Self { code: FaultCode::Trapped, message: message.into() }
    }

    pub(super) fn timed_out(budget: Duration) -> Self {
        Self { code: FaultCode::TimedOut, message: format!("it used up its {budget:?} of CPU time") }
    }

    pub(super) fn outside_of_process() -> Self {
        Self::trapped("it used the records or outputs of a call outside of `process`")
    }
}

/// What the host knows of the call that failed.
pub(super) struct Circumstances<'a> {
    /// What the memory limiter refused during the call.
    pub(super) refused: Option<Refused>,
    /// The CPU time that it might use.
    pub(super) budget: Duration,
    /// The last error that the guest logged during the call: most languages write their panics there.
    pub(super) last_words: Option<&'a str>,
    /// What the plugin carries of its source's lines.
    pub(super) lines: &'a Lines,
}

/// Names the fault that ended a call.
pub(super) fn classify(error: &wasmtime::Error, circumstances: &Circumstances<'_>) -> (FaultCode, String) {
    let (code, what) = if let Some(refused) = circumstances.refused {
        (FaultCode::OutOfMemory, refused.to_string())
    } else if let Some(fault) = error.downcast_ref::<HostFault>() {
        (fault.code, fault.message.clone())
    } else if error.is::<PoolConcurrencyLimitError>() {
        let full = "every slot for a plugin's memory or table is taken: have fewer `workers`, or share the routes out among several processes";
        (FaultCode::OutOfMemory, full.to_owned())
    } else {
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => {
                let timed_out = HostFault::timed_out(circumstances.budget);
                (timed_out.code, timed_out.message)
            }
            Some(trap) => (FaultCode::Trapped, trap.to_string()),
            None => (FaultCode::Trapped, error.root_cause().to_string()),
        }
    };
    let mut message = what;
    if let Some(words) = circumstances.last_words {
        let _ = write!(message, "; it logged: {words}");
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        write_frames(&mut message, backtrace, circumstances.lines);
    }
    (code, printable(&message, MESSAGE_MAX))
}

/// The innermost functions, by name where the plugin carries names, with file and line where it carries those.
fn write_frames(message: &mut String, backtrace: &WasmBacktrace, lines: &Lines) {
    // Only wasmtime's own rendering undoes the mangling of names; a frame's line is `N: 0xOFFSET - MODULE!FUNCTION`.
    let rendered = backtrace.to_string();
    let frames = rendered.lines().filter_map(frame_of);
    let mut frames: Vec<_> = frames.skip_while(|(function, _)| is_machinery(function)).collect();
    frames.dedup_by(|one, other| one.0 == other.0);
    for (nth, (function, offset)) in frames.iter().take(FRAMES_MAX).enumerate() {
        message.push_str(if nth == 0 { "; in " } else { " < " });
        message.push_str(function);
        if let Some(place) = offset.and_then(|offset| lines.at(offset)) {
            let _ = write!(message, " ({place})");
        }
    }
}

/// Functions of the language, which say how a panic came about and not where.
fn is_machinery(function: &str) -> bool {
    ["__rust", "<wasm function", "abort", "alloc::", "core::", "std::"].iter().any(|start| function.starts_with(start))
}

/// The function of a rendered frame, and where in the component it was.
fn frame_of(line: &str) -> Option<(String, Option<u64>)> {
    let (number, frame) = line.trim_start().split_once(": ")?;
    number.parse::<u32>().ok()?;
    let (offset, frame) = frame.split_once(" - ").unwrap_or(("", frame));
    let offset = offset.trim_start().strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let function = frame.split_once('!').map_or(frame, |(_, function)| function);
    Some((without_crate_hashes(function), offset))
}

/// Rust's names with their crates' hashes are twice as long and no clearer.
fn without_crate_hashes(function: &str) -> String {
    let mut parts = function.split('[');
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(']') {
            Some((hash, rest))
                if (12..=16).contains(&hash.len()) && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
            {
                short.push_str(rest);
            }
            _ => {
                short.push('[');
                short.push_str(part);
            }
        }
    }
    short
}

/// A size as it is written in the configuration.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{}MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

/// The text on one line, cut to at most `max` bytes.
pub(super) fn printable(text: &str, max: usize) -> String {
    let mut printable = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let start = printable.len();
        if c.is_control() {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
        if printable.len() > max {
            printable.truncate(start.min(printable.floor_char_boundary(max.saturating_sub("…".len()))));
            printable.push('…');
            break;
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn circumstances() -> Circumstances<'static> {
        static NO_LINES: LazyLock<Lines> = LazyLock::new(Lines::default);
        Circumstances { refused: None, budget: Duration::from_millis(5), last_words: None, lines: &NO_LINES }
    }

    #[test]
    fn a_refusal_of_memory_explains_whatever_trap_follows() {
        let error = wasmtime::Error::from(Trap::UnreachableCodeReached);
        let refused = Circumstances { refused: Some(Refused::Memory(65536)), ..circumstances() };
        assert_eq!(classify(&error, &refused).0, FaultCode::OutOfMemory);
        assert_eq!(classify(&error, &circumstances()).0, FaultCode::Trapped);
    }

    #[test]
    fn a_host_function_names_its_own_fault() {
        let error = wasmtime::Error::from(HostFault::bad_output("unknown destination \"x\""));
        let expected = (FaultCode::BadOutput, "unknown destination \"x\"".to_owned());
        assert_eq!(classify(&error.context("in a host call"), &circumstances()), expected);
    }

    #[test]
    fn an_interrupt_is_a_time_out() {
        let (code, message) = classify(&Trap::Interrupt.into(), &circumstances());
        assert_eq!(code, FaultCode::TimedOut);
        assert_eq!(message, "it used up its 5ms of CPU time");
    }

    #[test]
    fn frames_are_functions_names_and_places_in_the_component() {
        let line =
            "    0: 0x1a2b - misbehave.wasm!<std[0123456789abcdef]::io::Write as core[fedcba9876543210]::X<[u8]>>::f";
        assert_eq!(frame_of(line), Some(("<std::io::Write as core::X<[u8]>>::f".into(), Some(0x1a2b))));
        assert_eq!(frame_of("    1:   0x5 - m!<wasm function 12>"), Some(("<wasm function 12>".into(), Some(5))));
        assert_eq!(frame_of("    1: m!f"), Some(("f".into(), None)));
        assert_eq!(frame_of("error while executing at wasm backtrace:"), None);
    }

    #[test]
    fn messages_are_one_bounded_line() {
        assert_eq!(printable("a\nb\u{1b}[31m", 100), "a\\nb\\u{1b}[31m");
        let long = printable(&"é".repeat(100), 21);
        assert!(long.len() <= 21 && long.ends_with('…'), "{long}");
    }
}
