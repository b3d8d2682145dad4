//! Ways to be wrong on purpose. The checkers of exactly-once must notice each of them: one that stays silent has no teeth.
//!
//! Without the feature `testing`, which only the tests turn on, [`Mutation::is_on`] is a constant `false`.

/// A rule of exactly-once that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// An aborted round counts as done: its records are not given again.
    NoRewind,
    /// An output that the client did not take is passed over.
    IgnoreProduceResult,
    /// What is held of a revoked partition is committed all the same, under the new generation.
    CommitRevoked,
    /// Offsets are committed beside the transaction, before it.
    OffsetsOutside,
    /// A transaction is committed though the one before it, whose commit was under way, was not.
    OutOfTurn,
    /// Once, a session is made to fetch a partition no more, and is not told. Breaks no rule but that of progress: the
    /// watchdog has to notice, and the records have to arrive all the same.
    Deaf,
    /// Workers never hear that they are to end. (Nothing of exactly-once: it shows what becomes of a process that is late.)
    NeverDrain,
    /// Once, a worker panics, and tells in it all that it knows of the configuration. (It shows that even a bug tells no secret.)
    Panic,
}

impl Mutation {
    /// All that break exactly-once.
    pub const ALL: [Self; 5] =
        [Self::NoRewind, Self::IgnoreProduceResult, Self::CommitRevoked, Self::OffsetsOutside, Self::OutOfTurn];

    /// What stands in `MILLRACE_MUTATION` to turn it on for a process.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRewind => "no-rewind",
            Self::IgnoreProduceResult => "ignore-produce-result",
            Self::CommitRevoked => "commit-revoked",
            Self::OffsetsOutside => "offsets-outside",
            Self::OutOfTurn => "out-of-turn",
            Self::Deaf => "deaf",
            Self::NeverDrain => "never-drain",
            Self::Panic => "panic",
        }
    }

    /// Whether the rule is broken now: on this thread, or in this process.
    #[cfg(not(feature = "testing"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }

    /// The same, once in this process.
    #[cfg(not(feature = "testing"))]
    #[inline(always)]
    pub const fn is_due(self) -> bool {
        false
    }
}

#[cfg(feature = "testing")]
mod switch {
    use super::Mutation;
    use std::cell::Cell;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    thread_local! {
        static HERE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    impl Mutation {
        /// Whether the rule is broken now: on this thread, or in this process.
        pub fn is_on(self) -> bool {
            static PROCESS: OnceLock<Option<Mutation>> = OnceLock::new();
            let named = || {
                let name = std::env::var("MILLRACE_MUTATION").ok()?;
                let found = Self::ALL.into_iter().chain([Self::Deaf, Self::NeverDrain, Self::Panic]);
                let found = found.into_iter().find(|mutation| mutation.name() == name);
                Some(found.unwrap_or_else(|| panic!("MILLRACE_MUTATION={name} names no mutation")))
            };
            HERE.get() == Some(self) || *PROCESS.get_or_init(named) == Some(self)
        }

        /// The same, once in this process.
        pub fn is_due(self) -> bool {
            static WAS: AtomicBool = AtomicBool::new(false);
            self.is_on() && !WAS.swap(true, Relaxed)
        }

        /// Runs `work` with the rule broken on this thread.
        pub fn during<T>(self, work: impl FnOnce() -> T) -> T {
            struct Off;
            impl Drop for Off {
                fn drop(&mut self) {
                    HERE.set(None);
                }
            }
            HERE.set(Some(self));
            let _off = Off;
            work()
        }
    }
}
