//! A running route: its workers, each on a thread of its own, and the sessions that they go through.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::board::{RoutePhase, RouteReport, StatusBoard};
use super::once::Once;
use super::plan::RoutePlan;
use super::report::WorkerNews;
use super::status::Time;
use crate::config::Settings;
use crate::kafka::{self, Cluster, Instance, LeftOut, PartitionCounts, Session, SessionOptions, Topics};
use crate::model::{Mutation, RouteName};
use crate::pipeline::ports::{Broker, Event, Trouble, TroubleKind};
use crate::pipeline::report::{Health, Phase, Report};
use crate::pipeline::seek::Seek;
use crate::pipeline::skip::Skip;
use crate::pipeline::tap::Tap;
use crate::pipeline::task::{Stop, Task};
use crate::pipeline::worker::{Exit, Order, RouteWorker};
use crate::telemetry::{Metrics, Tracer};

/// A session that has lived this long was a good one: the next back-off begins anew.
const GOOD_SESSION: Duration = Duration::from_secs(60);

/// The clients of a configuration: routes made with others have to be made anew.
pub struct Clients {
    pub(super) cluster: Cluster,
    instance: Instance,
}

impl Clients {
    /// Connects in the background. `word` stands for this process where it has no `instance`.
    ///
    /// # Errors
    /// What librdkafka has against the properties under `kafka:`.
    pub fn connect(settings: &Settings, word: &str) -> Result<Arc<Self>, String> {
        let instance = match &settings.instance {
            Some(name) => Instance::Named(name.clone()),
            None => Instance::Random(word.to_owned()),
        };
        Ok(Arc::new(Self { cluster: Cluster::connect(&settings.kafka)?, instance }))
    }

    /// Whether others give members the same names.
    pub(super) fn names(&self, others: &Self) -> bool {
        self.instance == others.instance && self.cluster.kafka().prefix == others.cluster.kafka().prefix
    }
}

/// What all routes share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) metrics: Metrics,
    pub(super) board: Arc<StatusBoard>,
    /// Where spans go.
    pub(super) tracer: Tracer,
}

/// A route that runs.
pub(super) struct RunningRoute {
    plan: Arc<RoutePlan>,
    clients: Arc<Clients>,
    force: Arc<Force>,
    report: RouteReport,
    ended: Arc<dyn Fn() + Send + Sync>,
    workers: Vec<Line>,
    /// Workers that have not ended, those among them that were told to go.
    alive: usize,
}

/// What is in force for all workers of a route; a session that is opened goes by it.
struct Force {
    plan: ArcSwap<RoutePlan>,
    left_out: Arc<ArcSwap<LeftOut>>,
    counts: Arc<PartitionCounts>,
    generation: AtomicU64,
    /// Workers that start find it so.
    paused: AtomicBool,
    /// `start` is resolved by whichever worker comes first, before any of them joins.
    start: Once,
    /// Set when the workers are to end.
    stop: Stop,
    /// Shows what passes to who listens.
    tap: Tap,
    metrics: Metrics,
    tracer: Tracer,
}

impl Force {
    /// What a worker does by a plan.
    fn task(&self, plan: &RoutePlan, worker: u16, generation: u64) -> Task {
        let mut task = plan.shared_task(generation, &self.stop);
        task.chain.show(&self.tap);
        task.shadow = plan.start_shadow(worker, &self.metrics);
        task.chain.trace(&self.tracer);
        task
    }
}

/// By which a worker is given orders.
struct Line {
    orders: Sender<Order>,
    bell: Bell,
}

impl Line {
    fn give(&self, order: Order) {
        // A worker that is gone has nothing left to obey.
        let _ = self.orders.send(order);
        self.bell.ring();
    }
}

/// Ends a session's wait for records.
type Wake = Box<dyn Fn() + Send>;

/// Wakes a worker that waits for records, so that it need not look for orders all the time.
#[derive(Clone, Default)]
struct Bell(Arc<Mutex<Option<Wake>>>);

impl Bell {
    /// The worker's session is this, or there is none.
    fn hang(&self, wake: Option<Wake>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = wake;
    }
    fn ring(&self) {
        if let Some(wake) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            wake();
        }
    }
}

/// Calls it when dropped, however the thread ends that holds it.
struct AtEnd(Arc<dyn Fn() + Send + Sync>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl RunningRoute {
    /// Starts the workers of a route; `paused`: they take up their partitions, and let them wait. `ended` is called as the last thing that each worker does.
    pub(super) fn start(
        plan: Arc<RoutePlan>,
        clients: &Arc<Clients>,
        shared: &Shared,
        generation: u64,
        paused: bool,
        ended: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let force = Arc::new(Force {
            plan: ArcSwap::new(Arc::clone(&plan)),
            left_out: Arc::new(ArcSwap::new(Arc::clone(&plan.left_out))),
            counts: Arc::default(),
            generation: AtomicU64::new(generation),
            paused: AtomicBool::new(paused),
            start: Once::default(),
            stop: Stop::default(),
            tap: shared.board.tap(&plan.route.name),
            metrics: shared.metrics.clone(),
            tracer: shared.tracer.clone(),
        });
        let mut route = Self {
            report: shared.board.route(&plan.route.name, plan.facts()),
            ended: Arc::new(ended),
            workers: Vec::new(),
            alive: 0,
            clients: Arc::clone(clients),
            force,
            plan,
        };
        route.fill(generation);
        route
    }

    /// Starts the workers that it has not got yet.
    fn fill(&mut self, generation: u64) {
        for number in self.workers.len()..usize::from(self.plan.route.workers) {
            let number = u16::try_from(number).expect("a route has at most 512 workers");
            self.workers.push(self.start_worker(number, generation));
            self.alive += 1;
        }
    }

    fn start_worker(&self, number: u16, generation: u64) -> Line {
        let (plan, route) = (&self.plan, &self.plan.route);
        let mut metrics = self.force.metrics.route(&route.name);
        metrics.follow(
            plan.named_topics(),
            plan.plugins().map(|(name, _)| name),
            route.destinations.iter().map(|to| &to.name),
        );
        let status = self.report.worker(number);
        status.taken_up(generation);
        let (orders, mailbox) = unbounded();
        let bell = Bell::default();
        let life = Life {
            route: route.name.clone(),
            task: self.force.task(plan, number, generation),
            force: Arc::clone(&self.force),
            clients: Arc::clone(&self.clients),
            number,
            bell: bell.clone(),
            news: WorkerNews::new(route.name.clone(), number, metrics, status),
            paused: self.force.paused.load(Relaxed),
            tries: 0,
            yields: false,
        };
        let ended = AtEnd(Arc::clone(&self.ended));
        let thread = std::thread::Builder::new().name(format!("{}-{number}", route.name));
        let thread = thread.spawn(move || {
            let _ended = ended;
            life.run(&mailbox);
        });
        // Nobody waits for it: it says when it is done. One that cannot be started has said so already.
        if let Err(error) = thread {
            tracing::error!(route = %route.name, worker = number, "the worker's thread cannot be started: {error}");
        }
        Line { orders, bell }
    }

    /// What it runs.
    pub(super) fn plan(&self) -> &Arc<RoutePlan> {
        &self.plan
    }

    /// What it was made with.
    pub(super) fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    /// Goes on as `plan` says, which asks for the same source and delivery: each worker takes it up between two
    /// transactions. Workers that are too many leave the group, `within` that time; those that are missing join it.
    pub(super) fn swap(&mut self, plan: Arc<RoutePlan>, generation: u64, within: Duration) {
        self.take(&plan);
        self.force.generation.store(generation, Relaxed);
        self.report.changed(plan.facts());
        let stay = self.workers.len().min(usize::from(plan.route.workers));
        for worker in self.workers.drain(stay..) {
            worker.give(Order::Drain { leave: true, within });
        }
        for (number, worker) in (0..).zip(&self.workers) {
            worker.give(Order::Swap(Box::new(self.force.task(&plan, number, generation))));
        }
        self.plan = plan;
        self.fill(generation);
    }

    /// Whether none of its workers has ended, or is about to.
    pub(super) fn is_whole(&self) -> bool {
        self.alive == self.workers.len()
    }

    /// Goes on as it is, within the bounds of `plan`, which is the same in all else.
    pub(super) fn keep(&mut self, plan: Arc<RoutePlan>) {
        self.take(&plan);
        if plan.bounds != self.plan.bounds {
            self.order(|| Order::Bound(plan.bounds));
        }
        self.plan = plan;
    }

    fn take(&self, plan: &Arc<RoutePlan>) {
        self.force.plan.store(Arc::clone(plan));
        // The pointer is how sessions see a change.
        if plan.left_out != self.plan.left_out {
            self.force.left_out.store(Arc::clone(&plan.left_out));
        }
    }

    /// Finishes what is in work and ends, within this time; `leave`: the group, even as a static member.
    pub(super) fn drain(&self, leave: bool, within: Duration) {
        self.report.phase(RoutePhase::Draining);
        if Mutation::NeverDrain.is_on() {
            return;
        }
        self.force.stop.by(Instant::now() + within);
        self.order(|| Order::Drain { leave, within });
    }

    /// Lets its partitions wait, or flow again. They stay where they are.
    pub(super) fn pause(&self, paused: bool) {
        self.force.paused.store(paused, Relaxed);
        self.order(|| if paused { Order::Pause } else { Order::Resume });
    }

    /// Starts what has stopped, and tries again at once what waits.
    pub(super) fn restart(&self) {
        self.order(|| Order::Restart);
    }

    /// Passes a record by; the worker that owns its partition answers.
    pub(super) fn skip(&self, skip: &Skip) {
        self.order(|| Order::Skip(skip.clone()));
    }

    /// Moves the positions of its partitions; each worker that owns some answers.
    pub(super) fn seek(&self, seek: &Seek) {
        self.order(|| Order::Seek(seek.clone()));
    }

    /// Gives each worker an order.
    fn order(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            worker.give(order());
        }
    }

    /// Its workers have ended without being told to; they are started again then.
    pub(super) fn fail(&self, next_attempt: Time) {
        let reason = "its workers have ended by themselves: see the log".to_owned();
        self.report.phase(RoutePhase::Failed { reason, next_attempt: Some(next_attempt) });
    }

    /// One worker has ended. True: it was the last.
    pub(super) fn has_lost_a_worker(&mut self) -> bool {
        self.alive = self.alive.saturating_sub(1);
        self.alive == 0
    }
}

/// A worker's life: one session after the other, until it is told to drain.
struct Life {
    route: RouteName,
    force: Arc<Force>,
    clients: Arc<Clients>,
    number: u16,
    bell: Bell,
    news: WorkerNews,
    task: Task,
    paused: bool,
    tries: u32,
    /// A process with the same `instance` has taken the work over.
    yields: bool,
}

impl Life {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            // (one that tries again is waiting, or failed, until it has joined)
            if self.tries == 0 {
                self.tell(Phase::Starting);
            }
            let began = Instant::now();
            let trouble = match self.session(orders) {
                Exit::Drained => return,
                Exit::Broken(trouble) => trouble,
            };
            self.tries = if began.elapsed() > GOOD_SESSION { 1 } else { self.tries.saturating_add(1) };
            if self.back_off(trouble, orders) {
                return;
            }
        }
    }

    /// Opens a session and works in it until it ends. A panic is a bug of ours; it costs a session, not a record: nothing
    /// is committed that was not done, and the next session starts from what is committed.
    fn session(&mut self, orders: &Receiver<Order>) -> Exit {
        let worked = catch_unwind(AssertUnwindSafe(|| {
            let session = match self.open() {
                Ok(session) => session,
                Err(_) if self.force.stop.is_set() => {
                    self.tell(Phase::Stopped);
                    return Exit::Drained;
                }
                Err(trouble) => return Exit::Broken(trouble),
            };
            self.bell.hang(Some(Box::new(session.waker())));
            let Self { route, number, task, paused, news, .. } = self;
            RouteWorker::new(session, route, *number, task, paused, orders, news).run()
        }));
        self.bell.hang(None);
        worked.unwrap_or_else(|panic| {
            // Nobody knows in which state it left its plugins, nor which orders it had taken.
            self.task = self.force.task(&self.force.plan.load(), self.number, self.force.generation.load(Relaxed));
            self.news.taken_up(&self.task);
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let message = format!("a bug in millrace, please report it: {}", said.unwrap_or("a panic"));
            Exit::Broken(Trouble { code: "BUG".into(), message, kind: TroubleKind::Denied })
        })
    }

    fn open(&mut self) -> Result<Session, Trouble> {
        let (cluster, plan) = (&self.clients.cluster, self.force.plan.load_full());
        if Mutation::Panic.is_due() {
            panic!("of {:?} with {:?}", plan.route, cluster.kafka());
        }
        let topics = plan.check_topics(cluster)?;
        self.settle_start(&plan, &topics)?;
        // Each of these steps may take its time; one that is to end begins no other.
        if self.force.stop.is_set() {
            let message = "the worker is to end".to_owned();
            return Err(Trouble { code: "STOPPED".into(), message, kind: TroubleKind::Passing });
        }
        self.join(&plan)
    }

    fn join(&self, plan: &RoutePlan) -> Result<Session, Trouble> {
        Session::open(&SessionOptions {
            cluster: &self.clients.cluster,
            route: &plan.route,
            worker: plan.first_worker + self.number,
            instance: &self.clients.instance,
            left_out: &self.force.left_out,
            counts: &self.force.counts,
            share: plan.share,
            session_timeout: plan.session_timeout,
            yields: self.yields,
        })
    }

    /// A static member outlives its sessions, and what it owns waits for it. One that has none now and is to leave joins
    /// for a moment, since only a member can leave. Where it cannot, the group gives it up after its session timeout.
    fn leave(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let Ok(mut session) = self.join(&self.force.plan.load()) else { return };
        let mut events = Vec::new();
        let has_joined = |event: &Event| matches!(event, Event::Assigned(_) | Event::Broken(_));
        while !events.iter().any(has_joined) && Instant::now() < deadline {
            session.poll(Duration::from_millis(100), 1, &mut events);
        }
        session.close(true, deadline.saturating_duration_since(Instant::now()));
    }

    fn settle_start(&self, plan: &RoutePlan, topics: &Topics) -> Result<(), Trouble> {
        self.force.start.settle(|| {
            let source = kafka::source_topics(&plan.route.source, topics, &plan.left_out);
            kafka::resolve_start(&self.clients.cluster, &plan.route, &source).map(drop)
        })
    }

    /// Waits before the next session, taking orders meanwhile. True: told to drain.
    fn back_off(&mut self, trouble: Trouble, orders: &Receiver<Order>) -> bool {
        let is_twin = trouble.kind == TroubleKind::Duplicate;
        if is_twin != std::mem::replace(&mut self.yields, is_twin) {
            // (what was tried for another reason does not make this wait longer)
            self.tries = 1;
        }
        let doubled = |first: Duration, most: Duration| first.saturating_mul(1 << (self.tries - 1).min(16)).min(most);
        let wait = match trouble.kind {
            TroubleKind::Moved | TroubleKind::Passing => doubled(Duration::from_millis(100), Duration::from_secs(5)),
            TroubleKind::Denied => doubled(Duration::from_secs(1), Duration::from_secs(60)),
            TroubleKind::Duplicate => doubled(self.force.plan.load().session_timeout, Duration::from_secs(300)),
        };
        let until = Instant::now() + wait;
        let next_attempt = SystemTime::now() + wait;
        self.news.trouble(&trouble);
        match trouble.kind {
            TroubleKind::Moved | TroubleKind::Passing => self.tell(Phase::Waiting { trouble, next_attempt }),
            TroubleKind::Denied | TroubleKind::Duplicate => self.tell(Phase::Failed { trouble, next_attempt }),
        }
        loop {
            match orders.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => return false,
                Ok(Order::Restart) => {
                    (self.tries, self.yields) = (0, false);
                    return false;
                }
                Ok(Order::Pause) => self.paused = true,
                Ok(Order::Resume) => self.paused = false,
                // (unanswered: no partition is owned)
                Ok(Order::Skip(_) | Order::Seek(_)) => {}
                Ok(Order::Swap(task)) => {
                    self.task.chain.shutdown();
                    self.task = *task;
                    self.news.taken_up(&self.task);
                    // What kept the old task from its work may not keep the new one; a twin of this process does.
                    if !self.yields {
                        self.tries = 0;
                        return false;
                    }
                }
                Ok(Order::Bound(bounds)) => self.task.bounds = bounds,
                Ok(Order::Drain { leave, within }) => {
                    // (a twin that has taken the name keeps it)
                    if leave && self.clients.instance.is_named() && !self.yields {
                        self.tell(Phase::Draining);
                        self.leave(within);
                    }
                    self.tell(Phase::Stopped);
                    return true;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.tell(Phase::Stopped);
                    return true;
                }
            }
        }
    }

    fn tell(&mut self, phase: Phase) {
        self.news.health(&Health { phase, assignment: Vec::new(), held: Vec::new() });
    }
}
