//! A thing that several workers need done once, by whichever of them comes first.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::pipeline::ports::Trouble;

/// Whether it is done.
#[derive(Default)]
pub(super) struct Once(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Open,
    /// It could not be, then.
    Failed(Instant, Trouble),
    Settled,
}

impl Once {
    /// Does it, unless it is done. Who had to wait for another to fail makes no attempt of its own, which would fail as
    /// slowly: it has orders to take.
    ///
    /// # Errors
    /// It could not be done now.
    pub(super) fn settle(&self, attempt: impl FnOnce() -> Result<(), Trouble>) -> Result<(), Trouble> {
        self.settle_as_of(Instant::now(), attempt)
    }

    fn settle_as_of(&self, called: Instant, attempt: impl FnOnce() -> Result<(), Trouble>) -> Result<(), Trouble> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Settled => return Ok(()),
            State::Failed(at, trouble) if *at >= called => return Err(trouble.clone()),
            State::Open | State::Failed(..) => {}
        }
        let settled = attempt();
        *state = match &settled {
            Ok(()) => State::Settled,
            Err(trouble) => State::Failed(Instant::now(), trouble.clone()),
        };
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::ports::TroubleKind;

    #[test]
    fn who_waits_while_another_fails_makes_no_attempt_of_its_own() {
        let away = Trouble { code: "AWAY".into(), message: "nobody answers".into(), kind: TroubleKind::Passing };
        let once = Once::default();
        let called = Instant::now();
        assert_eq!(once.settle(|| Err(away.clone())), Err(away.clone()));
        let waited = once.settle_as_of(called, || panic!("an attempt of its own"));
        assert_eq!(waited, Err(away));
        assert_eq!(once.settle(|| Ok(())), Ok(()), "who comes later tries again");
        assert_eq!(once.settle(|| panic!("it is done")), Ok(()));
    }
}
