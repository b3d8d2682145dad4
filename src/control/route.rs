//! A running route: its workers, each on a thread of its own, and the sessions that they go through.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::plan::RoutePlan;
use super::report::WorkerNews;
use super::status::{RouteReport, StatusBoard};
use crate::kafka::{self, Cluster, Instance, Session, SessionOptions};
use crate::pipeline::ports::{Trouble, TroubleKind};
use crate::pipeline::report::{Health, Phase, Report};
use crate::pipeline::worker::{Exit, Order, RouteWorker, Task};
use crate::telemetry::Metrics;

/// A session that has lived this long was a good one: the next back-off begins anew.
const GOOD_SESSION: Duration = Duration::from_secs(60);

/// What all routes share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) cluster: Cluster,
    pub(super) instance: Arc<Instance>,
    pub(super) metrics: Metrics,
    pub(super) board: Arc<StatusBoard>,
}

/// A route that runs.
pub(super) struct RunningRoute {
    report: RouteReport,
    workers: Vec<Worker>,
}

struct Worker {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

impl RunningRoute {
    /// Starts the workers of a route.
    pub(super) fn start(plan: Arc<RoutePlan>, shared: &Shared, generation: u64) -> Self {
        let route = &plan.route;
        let report = shared.board.route(&route.name, plan.facts());
        // `start` is resolved by whichever worker comes first, before any of them joins.
        let started = Arc::new(Mutex::new(false));
        let workers = (0..route.workers).map(|number| {
            let mut metrics = shared.metrics.route(&route.name);
            metrics.follow(
                plan.named_topics(),
                plan.plugins().map(|(name, _)| name),
                route.destinations.iter().map(|to| &to.name),
            );
            let news = WorkerNews::new(route.name.clone(), number, metrics, report.worker(number));
            let (orders, mailbox) = channel();
            let life = Life {
                task: plan.task(generation),
                plan: Arc::clone(&plan),
                shared: shared.clone(),
                number,
                started: Arc::clone(&started),
                news,
                paused: false,
                tries: 0,
            };
            let thread = std::thread::Builder::new()
                .name(format!("{}-{number}", route.name))
                .spawn(move || life.run(&mailbox))
                .expect("the process can start a thread for each worker");
            Worker { orders, thread }
        });
        Self { workers: workers.collect(), report }
    }

    /// Gives each worker an order.
    pub(super) fn order(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            // A worker that is gone has nothing left to obey.
            let _ = worker.orders.send(order());
        }
    }

    /// Waits until the workers are gone, at most until `deadline`. Returns how many are not.
    pub(super) fn join(self, deadline: Instant) -> usize {
        let Self { workers, report } = self;
        while workers.iter().any(|worker| !worker.thread.is_finished()) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        drop(report);
        workers.into_iter().filter(|worker| !worker.thread.is_finished()).count()
    }
}

/// A worker's life: one session after the other, until it is told to drain.
struct Life {
    plan: Arc<RoutePlan>,
    shared: Shared,
    number: u16,
    started: Arc<Mutex<bool>>,
    news: WorkerNews,
    task: Task,
    paused: bool,
    tries: u32,
}

impl Life {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            self.tell(Phase::Starting);
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
                Err(trouble) => return Exit::Broken(trouble),
            };
            let Self { plan, number, task, paused, news, .. } = self;
            RouteWorker::new(session, &plan.route.name, *number, task, paused, orders, news).run()
        }));
        worked.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let message = format!("a bug in millrace, please report it: {}", said.unwrap_or("a panic"));
            Exit::Broken(Trouble { code: "BUG".into(), message, kind: TroubleKind::Denied })
        })
    }

    fn open(&mut self) -> Result<Session, Trouble> {
        let (cluster, plan) = (&self.shared.cluster, &self.plan);
        let topics = plan.check_topics(cluster)?;
        {
            let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            if !*started {
                let source = kafka::source_topics(&plan.route, &topics, &plan.dead_letter_topics);
                kafka::resolve_start(cluster, &plan.route, &source)?;
                *started = true;
            }
        }
        Session::open(&SessionOptions {
            cluster,
            route: &plan.route,
            worker: plan.first_worker + self.number,
            instance: &self.shared.instance,
            dead_letters: Arc::clone(&plan.dead_letter_topics),
            memory: plan.memory,
        })
    }

    /// Waits before the next session, taking orders meanwhile. True: told to drain.
    fn back_off(&mut self, trouble: Trouble, orders: &Receiver<Order>) -> bool {
        let doubled = |first: Duration, most: Duration| first.saturating_mul(1 << (self.tries - 1).min(16)).min(most);
        let wait = match trouble.kind {
            TroubleKind::Moved | TroubleKind::Passing => doubled(Duration::from_millis(100), Duration::from_secs(5)),
            TroubleKind::Denied => doubled(Duration::from_secs(1), Duration::from_secs(60)),
            TroubleKind::Duplicate => doubled(self.plan.session_timeout, Duration::from_secs(300)),
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
                    self.tries = 0;
                    return false;
                }
                Ok(Order::Pause) => self.paused = true,
                Ok(Order::Resume) => self.paused = false,
                Ok(Order::Swap(task)) => self.task = *task,
                Ok(Order::Drain { .. }) | Err(RecvTimeoutError::Disconnected) => {
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
