//! `on_error`: what happens to a record at fault.

use std::time::Duration;

use crate::model::TopicName;

/// What a route does with a record at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnError {
    /// Tried again first, where asked for.
    pub retry: Option<Retry>,
    /// Then this.
    pub then: Disposition,
}

/// How often and how long a record at fault is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first; at least 1.
    pub attempts: u32,
    /// Before the first of them; default 100 ms. Doubles each time.
    pub backoff: Duration,
    /// The longest wait; default 10 s.
    pub max_backoff: Duration,
}

/// What finally happens to a record at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Its partition stops before it.
    Stop,
    /// It is passed by, counted and logged.
    Skip,
    /// It goes to this topic, in the same transaction.
    DeadLetter(TopicName),
}

/// What to do now about a record at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Try again after this wait.
    RetryAfter(Duration),
    /// Nothing is left to try.
    Dispose(&'a Disposition),
}

impl Default for OnError {
    fn default() -> Self {
        Self { retry: None, then: Disposition::Stop }
    }
}

impl OnError {
    /// Decides about a record that has been tried `attempts` times (at least once).
    pub fn decide(&self, attempts: u32) -> Decision<'_> {
        match self.retry {
            Some(retry) if attempts <= retry.attempts => Decision::RetryAfter(retry.wait_before(attempts)),
            _ => Decision::Dispose(&self.then),
        }
    }

    /// The dead-letter topic, where there is one.
    pub fn dead_letter_topic(&self) -> Option<&TopicName> {
        match &self.then {
            Disposition::DeadLetter(topic) => Some(topic),
            Disposition::Stop | Disposition::Skip => None,
        }
    }
}

impl Retry {
    /// The wait before try `number` (from 1): doubling, up to the longest.
    fn wait_before(self, number: u32) -> Duration {
        let doublings = number.saturating_sub(1).min(31);
        self.backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_tried_again_as_often_as_asked_then_disposed_of() {
        let ms = Duration::from_millis;
        let retry = Retry { attempts: 3, backoff: ms(100), max_backoff: ms(300) };
        let policy = OnError { retry: Some(retry), then: Disposition::Skip };
        let decisions: Vec<_> = (1..=5).map(|attempts| policy.decide(attempts)).collect();
        assert_eq!(
            decisions,
            [
                Decision::RetryAfter(ms(100)),
                Decision::RetryAfter(ms(200)),
                Decision::RetryAfter(ms(300)),
                Decision::Dispose(&Disposition::Skip),
                Decision::Dispose(&Disposition::Skip),
            ]
        );
        assert_eq!(OnError::default().decide(1), Decision::Dispose(&Disposition::Stop));
    }
}
