//! What can be wrong with one record on its way through a route. A closed list, each with a stable code.

use std::fmt;

use super::PluginName;

/// The stable code of a fault, as it stands in metrics, logs and dead-letter headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultCode {
    /// The plugin said no to this record, or a condition about it is neither true nor false.
    Refused,
    /// The guest trapped (panic, out-of-bounds access, stack overflow, unreachable).
    Trapped,
    /// The guest used up its CPU time.
    TimedOut,
    /// The guest asked for more memory than its ceiling.
    OutOfMemory,
    /// What the plugin returned cannot be used: unknown destination, too many or too large outputs, a broken column.
    BadOutput,
    /// The plugin could not be instantiated or configured.
    NotReady,
    /// The plugin asked to be tried again and `retry` is spent.
    Unavailable,
    /// The destination refuses this record for good.
    Rejected,
}

impl FaultCode {
    /// Every code, in the order of the contract.
    pub const ALL: [Self; 8] = [
        Self::Refused,
        Self::Trapped,
        Self::TimedOut,
        Self::OutOfMemory,
        Self::BadOutput,
        Self::NotReady,
        Self::Unavailable,
        Self::Rejected,
    ];

    /// The code as users read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Trapped => "trapped",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
            Self::BadOutput => "bad_output",
            Self::NotReady => "not_ready",
            Self::Unavailable => "unavailable",
            Self::Rejected => "rejected",
        }
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fault of one source record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which of the closed list.
    pub code: FaultCode,
    /// What happened, for people; without the record's coordinates, which its bearer knows.
    pub message: String,
    /// The plugin at fault; none where the destination rejected the record, or a condition cannot be told.
    pub plugin: Option<PluginName>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plugin {
            Some(plugin) => write!(f, "{} in plugin {plugin}: {}", self.code, self.message),
            None => write!(f, "{}: {}", self.code, self.message),
        }
    }
}
