//! The board on which workers and the supervisor write how things stand, and from which the admin endpoint reads. Knows
//! neither HTTP nor Kafka.
//!
//! It is locked where something changes state, or where somebody looks; never for a record. A route's state is not written
//! by anybody: it follows from what its workers say, in one place ([`derive()`]), and its gauges follow with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use super::lag::{RouteLag, Turned};
use super::status::{
    HeldPartition, LastFault, PluginStatus, Reload, ReloadOutcome, RouteState, RouteStatus, ShadowExample,
    ShadowStatus, Status, Time, Told, WorkerPhase, WorkerStatus,
};
use crate::config::settings::{Delivery, LagAlert};
use crate::model::{Digest, GroupId, RouteName, TopicName, TopicPartition};
use crate::pipeline::compare::Difference;
use crate::pipeline::report::PartitionLag;
use crate::pipeline::shadow::{Compared, Example, Sums};
use crate::pipeline::tap::Tap;
use crate::telemetry::{ConfigMetrics, InfoGauge, Metrics, RouteGauges, Totals};

/// Where everybody writes how things stand, and the admin endpoint reads.
#[derive(Debug)]
pub struct StatusBoard {
    started_at: Time,
    metrics: Metrics,
    next_id: AtomicU64,
    board: Mutex<Board>,
    /// The routes' taps. They outlive what they show, so that who listens goes on listening after a reload.
    taps: Mutex<BTreeMap<RouteName, Tap>>,
}

#[derive(Debug)]
struct Board {
    instance: Option<String>,
    generation: u64,
    shutting_down: bool,
    last_reload: Option<Reload>,
    last_applied: Option<Reload>,
    config: ConfigMetrics,
    routes: BTreeMap<RouteName, Route>,
}

/// A route's entry on the board.
#[derive(Debug)]
struct Route {
    /// Whose entry it is: a report of an earlier life of the route may still be about.
    id: u64,
    facts: RouteFacts,
    phase: RoutePhase,
    workers: BTreeMap<u16, WorkerStatus>,
    generations: BTreeMap<u16, u64>,
    lag: RouteLag,
    last_fault: Option<LastFault>,
    standing: Standing,
    since: Time,
    gauges: RouteGauges,
    plugin_infos: Vec<InfoGauge>,
    totals: Arc<Totals>,
}

/// What is known of a route before it runs.
#[derive(Debug, Clone)]
pub struct RouteFacts {
    /// What it promises.
    pub delivery: Delivery,
    /// Its consumer group.
    pub group: GroupId,
    /// Its plugins, in order.
    pub plugins: Vec<PluginStatus>,
    /// Its shadow, if it has one.
    pub shadow: Option<ShadowFacts>,
    /// How many workers it will have.
    pub workers: u16,
    /// How many sets of plugin instances each of them has.
    pub parallelism: u16,
    /// When its lag raises an alert.
    pub lag_alert: Option<LagAlert>,
}

/// What is known of a shadow.
#[derive(Debug, Clone)]
pub struct ShadowFacts {
    /// Its plugins, in order.
    pub plugins: Vec<PluginStatus>,
    /// It sees one source record in so many.
    pub one_in: u32,
    /// Where it counts.
    pub sums: Arc<Sums>,
}

impl ShadowFacts {
    fn status(&self) -> ShadowStatus {
        let Compared { records, differing, kinds, examples } = self.sums.compared();
        let kinds = Difference::ALL.into_iter().zip(kinds).filter(|(_, records)| *records > 0);
        let example = |example: Example| ShadowExample {
            topic: example.at.topic,
            partition: example.at.partition,
            offset: example.offset,
            differences: example.differences.iter().map(|kind| kind.as_str()).collect(),
            first: example.first,
            second: example.second,
        };
        ShadowStatus {
            plugins: self.plugins.clone(),
            sample: self.one_in,
            since: self.sums.since().into(),
            compared: records,
            differing,
            skipped: self.sums.skipped(),
            differences: kinds.map(|(kind, records)| (kind.as_str(), records)).collect(),
            examples: examples.into_iter().map(example).collect(),
        }
    }
}

/// What the supervisor knows of a route and its workers cannot say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePhase {
    /// Nothing: the workers speak for it.
    Workers,
    /// It cannot be started now; that passes.
    Waiting {
        /// Why.
        reason: String,
        /// When it is tried again.
        next_attempt: Time,
    },
    /// It cannot be started until somebody acts.
    Failed {
        /// Why.
        reason: String,
        /// When it is tried again all the same.
        next_attempt: Option<Time>,
    },
    /// Told to pause.
    Paused,
    /// It is being stopped.
    Draining,
    /// `enabled: false`.
    Disabled,
}

impl StatusBoard {
    /// An empty board of a process that starts now.
    pub fn new(instance: Option<String>, metrics: Metrics) -> Arc<Self> {
        let config = metrics.config();
        let board = Board {
            instance,
            generation: 0,
            shutting_down: false,
            last_reload: None,
            last_applied: None,
            config,
            routes: BTreeMap::new(),
        };
        Arc::new(Self {
            started_at: Time::now(),
            metrics,
            next_id: AtomicU64::new(0),
            board: Mutex::new(board),
            taps: Mutex::default(),
        })
    }

    /// Where the records of a route can be seen as they pass.
    pub fn tap(&self, route: &RouteName) -> Tap {
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.entry(route.clone()).or_default().clone()
    }

    /// A configuration, of this digest, is in force; `told` says what changed. Answers its generation.
    pub fn applied(&self, hash: &Digest, told: impl Into<Told>) -> u64 {
        let mut board = self.lock();
        board.generation += 1;
        let generation = board.generation;
        board.config.applied(generation, hash);
        board.reloaded(ReloadOutcome::Applied, told.into());
        generation
    }

    /// The configured name of this process is this from now on.
    pub fn named(&self, instance: Option<String>) {
        self.lock().instance = instance;
    }

    /// A configuration was read and is the one in force.
    pub fn unchanged(&self, told: impl Into<Told>) {
        let mut board = self.lock();
        board.config.unchanged();
        board.reloaded(ReloadOutcome::Unchanged, told.into());
    }

    /// A configuration was refused, and why.
    pub fn rejected(&self, told: impl Into<Told>) {
        let mut board = self.lock();
        board.config.rejected();
        board.reloaded(ReloadOutcome::Rejected, told.into());
    }

    /// The process is on its way out: it is no longer ready.
    pub fn shutting_down(&self) {
        self.lock().shutting_down = true;
    }

    /// Puts a route on the board, in place of one of the same name; it stays while the report lives.
    pub fn route(self: &Arc<Self>, name: &RouteName, facts: RouteFacts) -> RouteReport {
        let id = self.next_id.fetch_add(1, Relaxed);
        let mut route = Route {
            id,
            plugin_infos: self.plugin_infos(name, &facts),
            facts,
            phase: RoutePhase::Workers,
            workers: BTreeMap::new(),
            generations: BTreeMap::new(),
            lag: RouteLag::default(),
            last_fault: None,
            standing: Standing::plain(RouteState::Starting),
            since: Time::now(),
            gauges: self.metrics.route_gauges(name, &RouteState::WORDS),
            totals: self.metrics.totals(name),
        };
        route.refresh();
        self.lock().routes.insert(name.clone(), route);
        RouteReport(Entry { board: self.clone(), name: name.clone(), id })
    }

    /// Everything, now.
    pub fn snapshot(&self) -> Status {
        let board = self.lock();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            instance: board.instance.clone(),
            generation: board.generation,
            started_at: self.started_at,
            shutting_down: board.shutting_down,
            last_reload: board.last_reload.clone(),
            last_applied: board.last_applied.clone(),
            routes: board.routes.iter().map(|(name, route)| (name.clone(), route.status())).collect(),
        }
    }

    /// One route, now.
    pub fn route_snapshot(&self, name: &str) -> Option<RouteStatus> {
        self.lock().routes.get(name).map(Route::status)
    }

    /// Whether a configuration is applied and the process serves, whatever single routes do.
    pub fn ready(&self) -> bool {
        let board = self.lock();
        board.generation > 0 && !board.shutting_down
    }

    /// The states of all routes.
    pub fn route_states(&self) -> BTreeMap<RouteName, RouteState> {
        self.lock().routes.iter().map(|(name, route)| (name.clone(), route.standing.state)).collect()
    }

    fn plugin_infos(&self, name: &RouteName, facts: &RouteFacts) -> Vec<InfoGauge> {
        facts.plugins.iter().map(|p| self.metrics.plugin_info(name, &p.plugin, &p.sha256)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        // Every change is complete before anything that could panic; the board must outlive a panicked worker.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    fn reloaded(&mut self, outcome: ReloadOutcome, told: Told) {
        let reload = Reload { outcome, at: Time::now(), generation: self.generation, told };
        if outcome == ReloadOutcome::Applied {
            self.last_applied = Some(reload.clone());
        }
        self.last_reload = Some(reload);
    }
}

/// A route's place on the board.
#[derive(Debug, Clone)]
struct Entry {
    board: Arc<StatusBoard>,
    name: RouteName,
    id: u64,
}

impl Entry {
    /// Changes the entry, unless a later life of the route has it now.
    fn change(&self, change: impl FnOnce(&mut Route)) {
        let mut board = self.board.lock();
        if let Some(route) = board.routes.get_mut(&self.name).filter(|route| route.id == self.id) {
            change(route);
            route.refresh();
        }
    }
}

/// By which the supervisor reports on a route. Dropped, the route leaves the board.
#[derive(Debug)]
pub struct RouteReport(Entry);

impl RouteReport {
    /// What the workers cannot say; [`RoutePhase::Workers`] gives the word back to them.
    pub fn phase(&self, phase: RoutePhase) {
        self.0.change(|route| route.phase = phase);
    }

    /// The route goes on with other plugins, or another number of workers.
    pub fn changed(&self, facts: RouteFacts) {
        // New series before the old ones go, so that those in both never blink.
        let infos = self.0.board.plugin_infos(&self.0.name, &facts);
        self.0.change(|route| {
            route.workers.retain(|worker, _| *worker < facts.workers);
            route.lag.workers(facts.workers);
            route.facts = facts;
            route.plugin_infos = infos;
        });
    }

    /// For the worker of this number.
    pub fn worker(&self, worker: u16) -> WorkerReport {
        WorkerReport { entry: self.0.clone(), worker }
    }
}

impl Drop for RouteReport {
    fn drop(&mut self) {
        let Entry { board, name, id } = &self.0;
        let mut board = board.lock();
        if board.routes.get(name).is_some_and(|route| route.id == *id) {
            board.routes.remove(name);
        }
    }
}

/// By which a worker reports.
#[derive(Debug, Clone)]
pub struct WorkerReport {
    entry: Entry,
    worker: u16,
}

impl WorkerReport {
    /// How the worker is, all of it: what it is doing, what it owns, what of it stands still.
    pub fn health(
        &self,
        phase: WorkerPhase,
        assignment: &[TopicPartition],
        stopped: Vec<HeldPartition>,
        retrying: Vec<HeldPartition>,
    ) {
        let mut by_topic = BTreeMap::<TopicName, BTreeSet<i32>>::new();
        for TopicPartition { topic, partition } in assignment {
            by_topic.entry(topic.clone()).or_default().insert(*partition);
        }
        let worker = self.worker;
        self.entry.change(|route| {
            // One that is leaving is not of the route any more.
            if worker >= route.facts.workers {
                return;
            }
            let generation = route.generations.get(&worker).copied().unwrap_or_default();
            let status = WorkerStatus { worker, generation, phase, assignment: by_topic, stopped, retrying };
            route.workers.insert(worker, status);
            route.lag.owned(worker, assignment);
        });
    }

    /// How far behind the worker's partitions are.
    pub fn lag(&self, lags: &[PartitionLag]) {
        let mut turned = None;
        self.entry.change(|route| {
            let alert = route.facts.lag_alert;
            // (a rate is taken between two looks: so it is fresh for whoever asks)
            route.totals.snapshot();
            if self.worker >= route.facts.workers {
                return;
            }
            turned = route.lag.looked(self.worker, lags, alert.as_ref(), Instant::now(), SystemTime::now());
        });
        // (not under the board's lock: a log line may wait for whoever reads it)
        let route = &self.entry.name;
        match turned {
            Some(Turned::Above(what)) => tracing::warn!(%route, "lag is above lag_alert: {what}"),
            Some(Turned::Below(what)) => tracing::info!(%route, "lag is below half of lag_alert again: {what}"),
            None => {}
        }
    }

    /// The worker goes by this generation of the configuration from now on.
    pub fn taken_up(&self, generation: u64) {
        self.entry.change(|route| {
            route.generations.insert(self.worker, generation);
            if let Some(status) = route.workers.get_mut(&self.worker) {
                status.generation = generation;
            }
        });
    }

    /// A record was at fault.
    pub fn fault(&self, fault: LastFault) {
        self.entry.change(|route| route.last_fault = Some(fault));
    }
}

/// A route's state, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    state: RouteState,
    reason: Option<String>,
    next_attempt: Option<Time>,
}

impl Standing {
    const fn plain(state: RouteState) -> Self {
        Self { state, reason: None, next_attempt: None }
    }
    fn new(state: RouteState, reason: &str, next_attempt: Option<Time>) -> Self {
        Self { state, reason: Some(reason.to_owned()), next_attempt }
    }
}

impl Route {
    fn status(&self) -> RouteStatus {
        RouteStatus {
            state: self.standing.state,
            reason: self.standing.reason.clone(),
            since: self.since,
            next_attempt: self.standing.next_attempt,
            delivery: self.facts.delivery.as_str(),
            group: self.facts.group.clone(),
            plugins: self.facts.plugins.clone(),
            shadow: self.facts.shadow.as_ref().map(ShadowFacts::status),
            workers: self.workers.values().cloned().collect(),
            parallelism: self.facts.parallelism,
            lag: self.lag.status(self.facts.lag_alert.is_some(), SystemTime::now()),
            last_fault: self.last_fault.clone(),
            totals: self.totals.snapshot(),
        }
    }

    fn refresh(&mut self) {
        let standing = derive(&self.phase, &self.workers, self.facts.workers);
        if standing.state != self.standing.state {
            self.since = Time::now();
        }
        self.standing = standing;
        self.gauges.state(self.standing.state.as_str());
        self.gauges.lag_alert(self.facts.lag_alert.is_some().then(|| self.lag.is_above()));
        let assigned = |worker: &WorkerStatus| worker.assignment.values().map(BTreeSet::len).sum::<usize>();
        let idle = |worker: &&WorkerStatus| worker.phase == WorkerPhase::Running && worker.assignment.is_empty();
        self.gauges.partitions(
            self.workers.values().map(assigned).sum(),
            self.workers.values().map(|worker| worker.stopped.len()).sum(),
            self.workers.values().filter(idle).count(),
        );
    }
}

/// The state of a route: what the supervisor says of it, else what its workers say, the worst first.
fn derive(phase: &RoutePhase, workers: &BTreeMap<u16, WorkerStatus>, expected: u16) -> Standing {
    match phase {
        RoutePhase::Workers => from_workers(workers, expected),
        RoutePhase::Waiting { reason, next_attempt } => Standing::new(RouteState::Waiting, reason, Some(*next_attempt)),
        RoutePhase::Failed { reason, next_attempt } => Standing::new(RouteState::Failed, reason, *next_attempt),
        RoutePhase::Paused => Standing::plain(RouteState::Paused),
        RoutePhase::Draining => Standing::plain(RouteState::Draining),
        RoutePhase::Disabled => Standing::plain(RouteState::Disabled),
    }
}

fn from_workers(workers: &BTreeMap<u16, WorkerStatus>, expected: u16) -> Standing {
    let any = |phase: WorkerPhase| workers.values().any(|worker| worker.phase == phase);
    if any(WorkerPhase::Draining) {
        return Standing::plain(RouteState::Draining);
    }
    // One that still works, or cannot say what became of its work, keeps the route from being called so.
    if workers.len() >= usize::from(expected.max(1))
        && workers.values().all(|worker| worker.phase == WorkerPhase::Paused)
    {
        return Standing::plain(RouteState::Paused);
    }
    if let Some(failed) = kept(workers, |phase| match phase {
        WorkerPhase::Failed { reason, next_attempt } => Some((reason, *next_attempt)),
        _ => None,
    }) {
        return Standing { state: RouteState::Failed, ..failed };
    }
    if let Some(stopped) = stopped(workers) {
        return stopped;
    }
    if let Some(waiting) = kept(workers, |phase| match phase {
        WorkerPhase::Waiting { reason, next_attempt } => Some((reason, *next_attempt)),
        _ => None,
    }) {
        return waiting;
    }
    if workers.len() < usize::from(expected) || any(WorkerPhase::Starting) {
        return Standing::plain(RouteState::Starting);
    }
    if any(WorkerPhase::Stopped) {
        return Standing::plain(RouteState::Draining);
    }
    Standing::plain(RouteState::Running)
}

/// The reason of the first worker that is kept from its work, and the earliest next attempt of them all.
fn kept(
    workers: &BTreeMap<u16, WorkerStatus>,
    by: impl Fn(&WorkerPhase) -> Option<(&String, Time)>,
) -> Option<Standing> {
    let (reason, _) = workers.values().find_map(|worker| by(&worker.phase))?;
    let next_attempt = workers.values().filter_map(|worker| by(&worker.phase)).map(|(_, at)| at).min();
    Some(Standing::new(RouteState::Waiting, reason, next_attempt))
}

fn stopped(workers: &BTreeMap<u16, WorkerStatus>) -> Option<Standing> {
    let stopped = || workers.values().flat_map(|worker| &worker.stopped);
    let HeldPartition { topic, partition, offset, code, message, .. } = stopped().next()?;
    let record = offset.map(|offset| format!(" before offset {offset}")).unwrap_or_default();
    let others = match stopped().count() - 1 {
        0 => String::new(),
        1 => " (and 1 more partition)".to_owned(),
        n => format!(" (and {n} more partitions)"),
    };
    let reason = format!("{topic}/{partition} is stopped{record}: {code}: {message}{others}");
    Some(Standing::new(RouteState::Failed, &reason, stopped().filter_map(|held| held.next_attempt).min()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::model::{ErrorId, FaultCode, PluginName};

    fn facts(workers: u16) -> RouteFacts {
        let plugins = vec![PluginStatus { plugin: PluginName::new("redact").unwrap(), sha256: Digest::of(b"") }];
        let group = GroupId::new("millrace.r").unwrap();
        let delivery = Delivery::ExactlyOnce;
        RouteFacts { delivery, group, plugins, shadow: None, workers, parallelism: 1, lag_alert: None }
    }

    fn at(seconds: u64) -> Time {
        (UNIX_EPOCH + Duration::from_secs(seconds)).into()
    }

    fn held(partition: i32) -> HeldPartition {
        HeldPartition {
            topic: TopicName::new("orders").unwrap(),
            partition,
            offset: Some(7),
            code: "trapped".into(),
            message: "unreachable".into(),
            error_id: None,
            next_attempt: Some(at(60)),
        }
    }

    fn owned(partitions: &[i32]) -> Vec<TopicPartition> {
        let topic = TopicName::new("orders").unwrap();
        partitions.iter().map(|partition| TopicPartition { topic: topic.clone(), partition: *partition }).collect()
    }

    fn board() -> (Arc<StatusBoard>, RouteName) {
        (StatusBoard::new(None, Metrics::new("0")), RouteName::new("r").unwrap())
    }

    #[test]
    fn the_state_of_a_route_follows_from_its_workers() {
        use WorkerPhase::{Draining, Failed, Paused, Running, Starting, Stopped, Waiting};
        let waiting = |seconds| Waiting { reason: "no coordinator".into(), next_attempt: at(seconds) };
        let failed = || Failed { reason: "no permission".into(), next_attempt: at(9) };
        type Case<'a> = (&'a [WorkerPhase], &'a str, Option<&'a str>, Option<Time>);
        let cases: [Case<'_>; 12] = [
            (&[], "starting", None, None),
            (&[Running], "starting", None, None),
            (&[Running, Starting], "starting", None, None),
            (&[Running, Running], "running", None, None),
            (&[Running, waiting(5)], "waiting", Some("no coordinator"), Some(at(5))),
            (&[waiting(8), waiting(5)], "waiting", Some("no coordinator"), Some(at(5))),
            (&[waiting(5), failed()], "failed", Some("no permission"), Some(at(9))),
            (&[Paused, Paused], "paused", None, None),
            (&[Paused, failed()], "failed", Some("no permission"), Some(at(9))),
            (&[Paused, Running], "running", None, None),
            (&[Draining, Running], "draining", None, None),
            (&[Stopped, Running], "draining", None, None),
        ];
        for (phases, state, reason, next_attempt) in cases {
            let (board, name) = board();
            let report = board.route(&name, facts(2));
            for (worker, phase) in (0..).zip(phases) {
                report.worker(worker).health(phase.clone(), &[], vec![], vec![]);
            }
            let status = board.route_snapshot("r").unwrap();
            assert_eq!(
                (status.state.as_str(), status.reason.as_deref(), status.next_attempt),
                (state, reason, next_attempt),
                "{phases:?}"
            );
        }
    }

    #[test]
    fn a_stopped_partition_fails_the_route_and_is_named_while_a_retried_one_does_not() {
        let (board, name) = board();
        let report = board.route(&name, facts(1));
        let worker = report.worker(0);
        worker.health(WorkerPhase::Running, &owned(&[1, 3]), vec![], vec![held(3)]);
        assert_eq!(board.route_snapshot("r").unwrap().state, RouteState::Running);
        worker.health(WorkerPhase::Running, &owned(&[1, 3]), vec![held(3), held(1)], vec![]);
        let status = board.route_snapshot("r").unwrap();
        assert_eq!(status.state, RouteState::Failed);
        assert_eq!(
            status.reason.as_deref(),
            Some("orders/3 is stopped before offset 7: trapped: unreachable (and 1 more partition)")
        );
        assert_eq!(status.next_attempt, Some(at(60)));
    }

    #[test]
    fn the_supervisors_word_on_a_route_goes_before_its_workers() {
        let (board, name) = board();
        let report = board.route(&name, facts(1));
        report.worker(0).health(WorkerPhase::Running, &[], vec![], vec![]);
        report.phase(RoutePhase::Failed { reason: "topic orders does not exist".into(), next_attempt: None });
        assert_eq!(board.route_snapshot("r").unwrap().reason.as_deref(), Some("topic orders does not exist"));
        report.phase(RoutePhase::Workers);
        assert_eq!(board.route_snapshot("r").unwrap().state, RouteState::Running);
    }

    #[test]
    fn a_route_leaves_the_board_with_its_report_but_not_its_successor() {
        let (board, name) = board();
        let first = board.route(&name, facts(1));
        let late = first.worker(0);
        let second = board.route(&name, facts(1));
        drop(first);
        late.health(WorkerPhase::Running, &[], vec![], vec![]);
        assert_eq!(board.route_snapshot("r").unwrap().state, RouteState::Starting);
        drop(second);
        assert!(board.route_snapshot("r").is_none());
    }

    #[test]
    fn gauges_follow_the_board() {
        let metrics = Metrics::new("0");
        let board = StatusBoard::new(None, metrics.clone());
        let name = RouteName::new("r").unwrap();
        let report = board.route(&name, facts(2));
        report.worker(0).health(WorkerPhase::Running, &owned(&[0, 1, 2]), vec![held(2)], vec![]);
        report.worker(1).health(WorkerPhase::Running, &[], vec![], vec![]);
        board.applied(&Digest::of(b"x"), "first");
        let text = metrics.render();
        for line in [
            r#"millrace_route_state{route="r",state="failed"} 1"#,
            r#"millrace_route_state{route="r",state="running"} 0"#,
            r#"millrace_partitions_assigned{route="r"} 3"#,
            r#"millrace_partitions_stopped{route="r"} 1"#,
            r#"millrace_workers_idle{route="r"} 1"#,
            "millrace_config_generation 1",
            r#"millrace_reloads_total{outcome="applied"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        drop(report);
        assert!(!metrics.render().contains("millrace_route_state"));
    }

    #[test]
    fn the_process_is_ready_from_the_first_configuration_to_the_shutdown() {
        let (board, _) = board();
        board.rejected("millrace.yaml:1:1: no routes");
        assert!(!board.ready());
        assert_eq!(board.applied(&Digest::of(b""), "first"), 1);
        board.rejected("millrace.yaml:1:1: no routes");
        assert!(board.ready());
        board.shutting_down();
        assert!(!board.ready());
    }

    #[test]
    fn the_process_is_called_as_it_is_now_configured() {
        let (board, _) = board();
        assert_eq!(board.snapshot().instance, None);
        board.named(Some("pod-0".into()));
        assert_eq!(board.snapshot().instance.as_deref(), Some("pod-0"));
    }

    #[test]
    fn the_status_reads_as_documented() {
        let (board, name) = board();
        let report = board.route(&name, facts(1));
        let waiting = WorkerPhase::Waiting { reason: "no coordinator".into(), next_attempt: at(5) };
        report.worker(0).health(waiting, &owned(&[0, 3]), vec![held(3)], vec![]);
        let error_id = ErrorId::random();
        report.worker(0).fault(LastFault {
            at: at(1),
            error_id,
            code: FaultCode::Trapped,
            plugin: None,
            topic: TopicName::new("orders").unwrap(),
            partition: 3,
            offset: 7,
            message: "unreachable".into(),
        });
        let mut status = serde_json::to_value(board.snapshot()).unwrap();
        assert!(status["routes"]["r"]["since"].take().as_str().unwrap().ends_with('Z'));
        assert_eq!(
            status["routes"]["r"],
            serde_json::json!({
                "state": "failed",
                "reason": "orders/3 is stopped before offset 7: trapped: unreachable",
                "since": null,
                "next_attempt": "1970-01-01T00:01:00.000Z",
                "delivery": "exactly_once",
                "group": "millrace.r",
                "plugins": [{ "plugin": "redact", "sha256": Digest::of(b"").to_string() }],
                "shadow": null,
                "parallelism": 1,
                "workers": [{
                    "worker": 0,
                    "generation": 0,
                    "state": "waiting",
                    "reason": "no coordinator",
                    "next_attempt": "1970-01-01T00:00:05.000Z",
                    "assignment": { "orders": [0, 3] },
                    "stopped": [{
                        "topic": "orders", "partition": 3, "offset": 7, "code": "trapped", "message": "unreachable",
                        "error_id": null, "next_attempt": "1970-01-01T00:01:00.000Z",
                    }],
                    "retrying": [],
                }],
                "lag": { "records": 0, "seconds": 0.0, "alert": null, "partitions": [] },
                "last_fault": {
                    "at": "1970-01-01T00:00:01.000Z", "error_id": error_id.to_string(), "code": "trapped",
                    "plugin": null, "topic": "orders", "partition": 3, "offset": 7, "message": "unreachable",
                },
                "totals": {
                    "consumed": 0, "produced": 0, "filtered": 0, "skipped": 0, "dead_letters": 0,
                    "consumed_per_second": 0.0, "worker_seconds": {
                        "polling": 0.0, "processing": 0.0, "producing": 0.0, "delivering": 0.0, "committing": 0.0, "cpu": 0.0,
                    },
                },
            })
        );
    }
}
