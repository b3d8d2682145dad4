//! How long each step with the brokers may take at most. `kafka` and the workers keep to these; that they fit into each
//! other is checked where the configuration is read.

use std::time::Duration;

use super::settings::Kafka;

/// Time to end a consumer, and the process, once a worker has let go of everything else.
pub const CLOSE: Duration = Duration::from_secs(1);

/// The longest steps around a transaction; they follow from `transaction.timeout.ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// `transaction.timeout.ms`: from begin to commit.
    pub transaction: Duration,
    /// `message.timeout.ms`: after this an output counts as not delivered, which leaves time to commit. 0.8 of the
    /// transaction's.
    pub delivery: Duration,
    /// An abort: a quarter of the transaction's. One that takes longer is left to the next producer.
    pub abort: Duration,
    /// Until a new producer is ready: a quarter of the transaction's, from 2 to 10 s.
    pub ready: Duration,
    /// A commit of offsets outside of transactions, or a question about them: a third of the transaction's, from 1 to 10 s.
    pub offsets: Duration,
}

impl Times {
    /// Those that follow from `transaction.timeout.ms`.
    pub fn of(transaction: Duration) -> Self {
        let part = |of: u32, least: u64| (transaction / of).clamp(Duration::from_secs(least), Duration::from_secs(10));
        let (ready, offsets) = (part(4, 2), part(3, 1));
        Self { transaction, delivery: transaction * 4 / 5, abort: transaction / 4, ready, offsets }
    }

    /// Those of the clients under `kafka:`.
    pub fn of_clients(kafka: &Kafka) -> Self {
        Self::of(kafka.transaction_timeout().max(Duration::from_secs(1)))
    }

    /// The longest work on one transaction, whatever comes of it: it is aborted and its producer replaced, at worst.
    pub fn commit(&self) -> Duration {
        self.transaction + self.abort + self.ready
    }

    /// The longest from the order to drain to the end of a worker: plugins are interrupted, and of what is in work no
    /// transaction is begun that this leaves no time for.
    pub fn drain(&self) -> Duration {
        self.commit() + CLOSE
    }

    /// The longest between two polls of the group: plugins at work for `processing`, of which one record may overrun by two
    /// `timeout`s; then a transaction.
    pub fn turn(&self, processing: Duration, timeout: Duration) -> Duration {
        processing + timeout * 2 + self.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_into_each_other() {
        let seconds = Duration::from_secs;
        let times = Times::of(seconds(15));
        assert!(times.delivery < times.transaction);
        assert_eq!(times.drain(), Duration::from_millis(23_500), "below the default shutdown_timeout of 25 s");
        assert_eq!(times.turn(seconds(30), seconds(1)), Duration::from_millis(54_500), "far below five minutes");
    }

    #[test]
    fn the_other_modes_drain_in_no_longer_than_a_transaction() {
        for seconds in 3..=900 {
            let times = Times::of(Duration::from_secs(seconds));
            // A producer is made, outputs are sent (the client looks at their time once a second), offsets committed.
            let sent = times.ready + times.delivery + Duration::from_secs(1) + times.offsets;
            assert!(sent <= times.drain(), "{times:?}");
            // What became of a commit is asked for.
            assert!(times.ready + times.offsets <= times.commit(), "{times:?}");
        }
    }
}
