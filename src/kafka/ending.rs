//! The end of a transaction: offsets and commit, asked for again where that may help. It takes nothing but the client, so that
//! others can go on meanwhile.

use std::any::Any;
use std::time::{Duration, Instant};

use crate::model::{OffsetMap, clock};

use super::raw::{Error, Failures};
use super::seam::{ProducerClient, TopicIds};

/// Between two tries of a call that may be made again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What ends a transaction of which everything has been produced: its offsets, where they are not added yet, and the commit.
pub(super) struct Ending<C: ProducerClient> {
    pub(super) client: C,
    /// Where they are not added yet.
    pub(super) offsets: Option<Offsets<C>>,
    pub(super) offsets_by: Instant,
    pub(super) deadline: Instant,
    /// To be kept until it has ended.
    pub(super) _hold: Option<Hold>,
}

/// Offsets, the ids of their topics, and who commits them.
pub(super) type Offsets<C> = (OffsetMap, TopicIds, <C as ProducerClient>::Member);

/// Something that is kept until a transaction has ended.
pub type Hold = Box<dyn Any + Send>;

/// What came of the end of a transaction, and how long it took.
pub(super) type Ended = (Result<(), Failed>, Duration);

/// Why a transaction was not ended, as far as one knows.
pub(super) enum Failed {
    /// Its offsets were not added.
    Offsets(Error),
    /// It was not committed.
    Commit(Error, Failures),
}

impl<C: ProducerClient> Ending<C> {
    pub(super) fn run(self) -> Ended {
        let asked = clock::now();
        let result = send_offsets(&self.client, self.offsets.as_ref(), self.offsets_by).and_then(|()| self.commit());
        (result, clock::now() - asked)
    }

    fn commit(&self) -> Result<(), Failed> {
        loop {
            let Err(error) = self.client.commit_transaction(until(self.deadline)) else { return Ok(()) };
            let late = clock::now() + RETRY_PAUSE >= self.deadline;
            if error.must_abort || error.fatal || !error.retriable || late {
                return Err(Failed::Commit(error, self.client.take_failures()));
            }
            self.client.serve(RETRY_PAUSE);
        }
    }
}

/// Adds offsets to the transaction, where there are any.
pub(super) fn send_offsets<C: ProducerClient>(
    client: &C,
    offsets: Option<&Offsets<C>>,
    deadline: Instant,
) -> Result<(), Failed> {
    let Some((offsets, ids, member)) = offsets else { return Ok(()) };
    loop {
        let Err(error) = client.send_offsets(offsets, ids, member, until(deadline)) else { return Ok(()) };
        let is_late = clock::now() + RETRY_PAUSE >= deadline;
        if error.must_abort || error.fatal || !error.retriable || is_late {
            return Err(Failed::Offsets(error));
        }
        client.serve(RETRY_PAUSE);
    }
}

/// The time left, never zero: zero would not even ask.
pub(super) fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(clock::now()).max(Duration::from_millis(1))
}
