//! A worker's news, passed on to metrics, log and status board. Called a few times a transaction at most.

use std::mem::{Discriminant, discriminant};
use std::time::{Duration, SystemTime};

use super::board::WorkerReport;
use super::status::{HeldPartition, LastFault, Time, WorkerPhase};
use crate::model::{ErrorId, Fault, FaultCode, Offset, PluginName, RouteName, TopicPartition};
use crate::pipeline::ports::{Trouble, TroubleKind, Usage};
use crate::pipeline::report::{Fate, Health, PartitionLag, Phase, Report, Spent, Tally};
use crate::pipeline::task::Task;
use crate::telemetry::{Repeats, RouteMetrics};

/// One line a route, worker and kind of trouble in this time; the rest is counted.
const REPEAT_EVERY: Duration = Duration::from_secs(10);

/// The news of one worker.
pub(super) struct WorkerNews {
    route: RouteName,
    worker: u16,
    metrics: RouteMetrics,
    status: WorkerReport,
    /// By fate as well: that a record was given up must not be lost among the lines of its tries.
    faults: Repeats<(FaultCode, Option<PluginName>, Discriminant<Fate>)>,
    troubles: Repeats<String>,
    phase: Option<Phase>,
    stopped: Vec<TopicPartition>,
}

impl WorkerNews {
    pub(super) fn new(route: RouteName, worker: u16, metrics: RouteMetrics, status: WorkerReport) -> Self {
        let (faults, troubles) = (Repeats::new(REPEAT_EVERY), Repeats::new(REPEAT_EVERY));
        Self { route, worker, metrics, status, faults, troubles, phase: None, stopped: Vec::new() }
    }

    fn log_phase(&mut self, phase: &Phase) {
        let (route, worker) = (&self.route, self.worker);
        match phase {
            Phase::Running => tracing::info!(%route, worker, "running"),
            // The trouble itself is told by `trouble`, with a bound; here it would come again with every attempt.
            Phase::Waiting { trouble, .. } => tracing::debug!(%route, worker, code = trouble.code, "waiting"),
            Phase::Failed { trouble, .. } => tracing::debug!(%route, worker, code = trouble.code, "failed"),
            Phase::Paused => tracing::info!(%route, worker, "paused"),
            Phase::Draining => tracing::debug!(%route, worker, "draining"),
            Phase::Stopped => tracing::info!(%route, worker, "drained"),
            Phase::Starting => tracing::debug!(%route, worker, "joining the group"),
        }
    }

    /// Tells how many were left out of what has not happened again since: the next line of its kind, which would, may never come.
    fn tell_left_out(&mut self) {
        let (route, worker) = (&self.route, self.worker);
        for ((code, plugin, _), seen) in self.faults.settled() {
            let (plugin, left_out) = (plugin.as_ref().map(PluginName::as_str), seen.left_out);
            tracing::warn!(%route, worker, plugin, %code, left_out, "more records at fault, like the one that was told");
        }
        for (code, seen) in self.troubles.settled() {
            tracing::warn!(%route, worker, code, left_out = seen.left_out, "more trouble, like what was told");
        }
    }

    /// Says once that a partition has stopped, and once that it goes on.
    fn log_stopped(&mut self, health: &Health) {
        let (route, worker) = (&self.route, self.worker);
        let stopped =
            |partition: &TopicPartition| health.held.iter().any(|held| held.stopped && held.partition == *partition);
        for held in health.held.iter().filter(|held| held.stopped && !self.stopped.contains(&held.partition)) {
            let (partition, code) = (&held.partition, &held.code);
            let error_id = held.error_id.map(tracing::field::display);
            match held.offset {
                Some(offset) => tracing::error!(
                    %route, worker, topic = %partition.topic, partition = partition.partition, offset, code, error_id,
                    "the partition has stopped before this record, the others go on: {}", held.message
                ),
                None => tracing::error!(
                    %route, worker, topic = %partition.topic, partition = partition.partition, code,
                    "the partition has stopped, the others go on: {}", held.message
                ),
            }
        }
        for partition in
            self.stopped.iter().filter(|partition| health.assignment.contains(partition) && !stopped(partition))
        {
            tracing::info!(%route, worker, topic = %partition.topic, partition = partition.partition, "the partition is tried again");
        }
        self.stopped = health.held.iter().filter(|held| held.stopped).map(|held| held.partition.clone()).collect();
    }
}

impl Report for WorkerNews {
    fn taken_up(&mut self, task: &Task) {
        self.metrics.follow(
            [],
            task.chain.plugins().map(|(name, _)| name),
            task.destinations.iter().map(|to| &to.name),
        );
        self.status.taken_up(task.generation);
        tracing::debug!(route = %self.route, worker = self.worker, generation = task.generation, "taken up");
    }

    fn health(&mut self, health: &Health) {
        if self.phase.as_ref().map(discriminant) != Some(discriminant(&health.phase)) {
            self.log_phase(&health.phase);
        }
        self.metrics.assigned(&health.assignment);
        self.phase = Some(health.phase.clone());
        self.log_stopped(health);
        let of = |stopped| health.held.iter().filter(move |held| held.stopped == stopped).map(held_partition).collect();
        self.status.health(worker_phase(&health.phase), &health.assignment, of(true), of(false));
    }

    fn transaction_begins(&mut self) {
        self.metrics.transaction_begins();
    }

    fn transaction(&mut self, outcome: &'static str, took: Duration) {
        self.metrics.transaction(outcome, took);
    }

    fn committed(&mut self, tally: &Tally) {
        for (destination, [records, bytes]) in &tally.produced {
            self.metrics.produced(destination, *records, *bytes);
        }
        for (plugin, [items]) in &tally.filtered {
            self.metrics.filtered(plugin.as_ref(), *items);
        }
        for (code, [records]) in &tally.skipped {
            self.metrics.skipped(*code, *records);
        }
        for (code, [records]) in &tally.dead_letters {
            self.metrics.dead_letters(*code, *records);
        }
        // Last: who sees that records were consumed sees what became of them.
        for (topic, [records, bytes]) in &tally.consumed {
            self.metrics.consumed(topic, *records, *bytes);
        }
        self.metrics.latencies(&tally.latency, tally.latency_sum.as_secs_f64());
    }

    fn fault(&mut self, at: &TopicPartition, offset: Offset, error_id: ErrorId, fault: &Fault, fate: Fate) {
        if let Some(plugin) = &fault.plugin {
            self.metrics.plugin_fault(plugin, fault.code);
        }
        let (topic, partition) = (at.topic.clone(), at.partition);
        self.status.fault(LastFault {
            at: Time::now(),
            error_id,
            code: fault.code,
            plugin: fault.plugin.clone(),
            topic: topic.clone(),
            partition,
            offset,
            message: fault.message.clone(),
        });
        let seen = self.faults.happened(&(fault.code, fault.plugin.clone(), discriminant(&fate)));
        let (route, worker, code) = (&self.route, self.worker, fault.code);
        let plugin = fault.plugin.as_ref().map(PluginName::as_str);
        let fate = match fate {
            Fate::Retried(wait) => format!("tried again in {wait:?}"),
            Fate::Stopped => "its partition stops".into(),
            Fate::Skipped => "skipped".into(),
            Fate::DeadLettered => "sent to the dead-letter topic".into(),
        };
        let message = &fault.message;
        let Some(seen) = seen else {
            // Whoever looks for the id of a dead letter finds it at this level, however many there are.
            tracing::debug!(%route, worker, %topic, partition, offset, plugin, %code, %error_id, "record at fault, {fate}: {message}");
            return;
        };
        // (of those like it since the last line)
        let left_out = (seen.left_out > 0).then_some(seen.left_out);
        tracing::warn!(
            %route, worker, %topic, partition, offset, plugin, %code, %error_id, left_out,
            "record at fault, {fate}: {message}"
        );
    }

    fn usage(&mut self, plugin: &PluginName, usage: Usage) {
        self.metrics.used(plugin, usage.calls, usage.cpu, usage.instances, usage.memory);
    }

    fn trouble(&mut self, trouble: &Trouble) {
        self.metrics.broker_error(&trouble.code);
        if let Some(seen) = self.troubles.happened(&trouble.code) {
            let (route, worker, code) = (&self.route, self.worker, &trouble.code);
            let left_out = (seen.left_out > 0).then_some(seen.left_out);
            match trouble.kind {
                // Somebody has to act.
                TroubleKind::Denied | TroubleKind::Duplicate => {
                    tracing::error!(%route, worker, code, left_out, "failed: {}", trouble.message);
                }
                TroubleKind::Passing | TroubleKind::Moved => {
                    tracing::warn!(%route, worker, code, left_out, "{}", trouble.message);
                }
            }
        }
    }

    fn lost(&mut self, at: &TopicPartition, records: u64, why: &str) {
        let (route, topic, partition) = (&self.route, &at.topic, at.partition);
        tracing::error!(%route, worker = self.worker, %topic, partition, records, "records are lost: {why}");
        self.metrics.partition(at).lost(records);
    }

    fn rebalanced(&mut self) {
        self.metrics.rebalanced();
    }

    fn lag(&mut self, lags: &[PartitionLag]) {
        // (this comes every few seconds)
        self.tell_left_out();
        for lag in lags {
            let metrics = self.metrics.partition(&lag.partition);
            metrics.lag(lag.records, lag.oldest);
            metrics.blocked(lag.blocked, lag.blocked_since);
        }
        self.status.lag(lags);
    }

    fn spent(&mut self, spent: &Spent) {
        let Spent { polling, processing, producing, delivering, committing, cpu } = *spent;
        self.metrics.spent([polling, processing, producing, delivering, committing], cpu);
    }

    fn throttled(&mut self, time: Duration) {
        self.metrics.throttled(time);
    }
}

fn worker_phase(phase: &Phase) -> WorkerPhase {
    let told = |trouble: &Trouble, at: SystemTime| (format!("{}: {}", trouble.code, trouble.message), Time::from(at));
    match phase {
        Phase::Starting => WorkerPhase::Starting,
        Phase::Running => WorkerPhase::Running,
        Phase::Waiting { trouble, next_attempt } => {
            let (reason, next_attempt) = told(trouble, *next_attempt);
            WorkerPhase::Waiting { reason, next_attempt }
        }
        Phase::Failed { trouble, next_attempt } => {
            let (reason, next_attempt) = told(trouble, *next_attempt);
            WorkerPhase::Failed { reason, next_attempt }
        }
        Phase::Paused => WorkerPhase::Paused,
        Phase::Draining => WorkerPhase::Draining,
        Phase::Stopped => WorkerPhase::Stopped,
    }
}

fn held_partition(held: &crate::pipeline::report::HeldPartition) -> HeldPartition {
    HeldPartition {
        topic: held.partition.topic.clone(),
        partition: held.partition.partition,
        offset: held.offset,
        code: held.code.clone(),
        message: held.message.clone(),
        error_id: held.error_id,
        next_attempt: Some(Time::from(held.next_attempt)),
    }
}
