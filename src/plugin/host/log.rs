//! The capability `log`, always granted: a guest's lines become events of the host's log, with the coordinates of the
//! record they are about. Rate-limited, so that a guest cannot flood the log or wait for it.

use std::time::{Duration, Instant};

use crate::model::{Offset, PluginName, RouteName, TopicPartition};
use crate::plugin::fault::printable;

/// The longest line, bytes.
pub(super) const LINE_MAX: usize = 4096;
/// Lines a second, and how many may come at once.
const LINES_PER_SECOND: f64 = 100.0;
const BURST: f64 = 200.0;

/// Whose lines these are.
#[derive(Debug, Clone)]
pub(in crate::plugin) struct Speaker {
    pub(in crate::plugin) route: RouteName,
    pub(in crate::plugin) plugin: PluginName,
}

/// Whether a line of this level is worth taking out of the guest: errors are, for a fault's message.
pub(in crate::plugin) fn wanted(level: tracing::Level) -> bool {
    level == tracing::Level::ERROR || level <= tracing::level_filters::LevelFilter::current()
}

/// A line's message as it is logged.
pub(in crate::plugin) fn bounded(message: &str) -> String {
    printable(message, LINE_MAX)
}

/// Writes a line. `at` is what the call under way is about, `offset` the record that the line is.
pub(in crate::plugin) fn write(
    speaker: &Speaker,
    level: tracing::Level,
    message: &str,
    at: Option<&TopicPartition>,
    offset: Option<Offset>,
) {
    let Speaker { route, plugin } = speaker;
    let topic = at.map(|at| at.topic.as_str());
    let partition = at.map(|at| at.partition);
    macro_rules! event {
        ($level:expr) => {
            tracing::event!(target: "millrace::guest", $level, %route, %plugin, topic, partition, offset, "{message}")
        };
    }
    match level {
        tracing::Level::TRACE => event!(tracing::Level::TRACE),
        tracing::Level::DEBUG => event!(tracing::Level::DEBUG),
        tracing::Level::INFO => event!(tracing::Level::INFO),
        tracing::Level::WARN => event!(tracing::Level::WARN),
        tracing::Level::ERROR => event!(tracing::Level::ERROR),
    }
}

/// A token bucket over the lines of one step; outlives the step's instances.
#[derive(Debug)]
pub(in crate::plugin) struct Gate {
    tokens: f64,
    filled: Instant,
    dropped: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { tokens: BURST, filled: Instant::now(), dropped: 0 }
    }
}

impl Gate {
    /// Whether a line may pass now; excess is counted.
    pub(in crate::plugin) fn admit(&mut self) -> bool {
        self.admit_at(Instant::now())
    }

    fn admit_at(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = now;
        self.tokens = (self.tokens + elapsed.as_secs_f64() * LINES_PER_SECOND).min(BURST);
        if self.tokens < 1.0 {
            self.dropped += 1;
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// How many lines were dropped since this was last asked.
    pub(in crate::plugin) fn take_dropped(&mut self) -> Option<u64> {
        let dropped = std::mem::take(&mut self.dropped);
        (dropped > 0).then_some(dropped)
    }
}

/// Says how many lines were dropped.
pub(in crate::plugin) fn write_dropped(speaker: &Speaker, dropped: u64) {
    let limit = Duration::from_secs_f64(1.0 / LINES_PER_SECOND);
    let Speaker { route, plugin } = speaker;
    tracing::warn!(target: "millrace::guest", %route, %plugin, dropped, "{dropped} log lines dropped: more than one every {limit:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_burst_are_dropped_and_counted_until_time_has_passed() {
        let start = Instant::now();
        let mut gate = Gate { filled: start, ..Gate::default() };
        let admitted = (0..250).filter(|_| gate.admit_at(start)).count();
        assert_eq!(admitted, 200);
        assert_eq!(gate.take_dropped(), Some(50));
        assert_eq!(gate.take_dropped(), None);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..250).filter(|_| gate.admit_at(later)).count(), 10);
    }
}
