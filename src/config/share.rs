//! A worker's share of `memory`, and what of it is for what. Everything that can grow with the records has a part.

use super::Settings;
use super::settings::{PipelineStep, Route};

/// Less than this is no use to a worker: its clients alone hold as much.
pub const SHARE_MIN: u64 = 4 << 20;

/// What a process takes that holds no record, and each worker with its two clients: "How much memory" in
/// docs/configuration.md, which tests/it/memory.rs holds.
const PROCESS: u64 = 64 << 20;
const WORKER: u64 = 2 << 20;
/// A thread beside it that only runs plugins.
const THREAD: u64 = 1 << 20;

/// The sum below which the whole process stays, in bytes: `memory`, every plugin instance's own, and itself.
pub fn process_ceiling(settings: &Settings) -> u64 {
    let route = |route: &Route| {
        let instances = |steps: &[PipelineStep]| -> u64 {
            let plugins = steps.iter().filter_map(|step| settings.plugins.get(&step.plugin));
            plugins.map(|plugin| plugin.limits.memory).sum()
        };
        let shadow = route.shadow.as_ref().map_or(0, |shadow| instances(&shadow.pipeline));
        let sets = u64::from(route.parallelism);
        u64::from(route.workers) * (WORKER + sets * instances(&route.pipeline) + (sets - 1) * THREAD + shadow)
    };
    settings.memory + PROCESS + settings.routes.values().filter(|route| route.enabled).map(route).sum::<u64>()
}

/// One worker's part of `memory`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u64);

impl Share {
    /// Equal parts for all workers of all enabled routes.
    pub fn of(settings: &Settings) -> Self {
        let workers: u64 =
            settings.routes.values().filter(|route| route.enabled).map(|route| u64::from(route.workers)).sum();
        Self(settings.memory / workers.max(1))
    }

    /// Records held in the worker, what keeping each of them takes included. From here on the source is not fetched.
    pub fn held(self) -> usize {
        self.part(4)
    }

    /// Source records of one transaction, and what one plugin makes of them.
    pub fn transaction(self) -> usize {
        self.part(8)
    }

    /// Records, with what the route's plugins have made of them, that one look of its shadow is about: one is under way, and
    /// one waits.
    pub fn shadow(self) -> usize {
        self.part(16)
    }

    /// What the consumer has fetched ahead. 16 MiB are as fast as librdkafka's own 64.
    pub fn queue(self) -> u64 {
        (self.0 / 8).clamp(SHARE_MIN / 16, 16 << 20)
    }

    /// One answer of a broker to a fetch, which the queue may be overshot by. Small, since a record of a few bytes takes
    /// some twenty times as much once it is unpacked.
    pub fn fetch(self) -> u64 {
        (self.0 / 32).clamp(SHARE_MIN / 64, 16 << 20)
    }

    /// What the producer has not got acknowledged. It has to take the largest record, `message` bytes, in any case.
    pub fn unsent(self, message: u64) -> u64 {
        (self.0 / 8).min(256 << 20).max(message + (64 << 10))
    }

    /// The same as a number of records, each of which takes some 250 bytes besides its own.
    pub fn unsent_records(self) -> u64 {
        (self.0 / 8 / 256).clamp(10_000, 500_000)
    }

    /// One batch of the producer. A handful of them are under way to each broker.
    pub fn batch(self) -> u64 {
        (self.0 / 64).clamp(16 << 10, 1_000_000)
    }

    fn part(self, of: u64) -> usize {
        usize::try_from(self.0 / of).unwrap_or(usize::MAX).max(1)
    }
}
