//! The simulated world: whose turn it is, what time it is, what goes wrong. One seed decides all of it.
//!
//! Each process of millrace is a thread, but only one runs at a time: whoever makes a simulated call passes the turn on to
//! the one that is due next. So anything can happen between any two calls of another.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use millrace::config::settings::Delivery;
use millrace::model::clock::SimulatedClock;
use millrace::pipeline::task::Task;
use millrace::pipeline::worker::Order;
use millrace::policy::OnError;

use super::checker::Checker;
pub(super) use super::faults::Call;
use super::faults::{Failing, TABLE};
use super::kafka::{Kafka, TRANSACTION_TIMEOUT};
use super::records::{Kind, PARTITIONS, Source};

/// Prints each step, for a seed that has failed.
pub(super) const TRACE: &str = "SIMULATION_TRACE";

/// After faults have ceased, all must be done within so many calls.
const CALLS_TO_FINISH: u64 = 40_000;

/// What a seed stands for.
#[derive(Clone)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) delivery: Delivery,
    pub(super) on_error: OnError,
    /// The names of the processes; those without one are dynamic members.
    pub(super) instances: Vec<Option<String>>,
    /// A second process of the first one's name begins after so many calls.
    pub(super) twin_after: Option<u64>,
    /// How many of 1,000 calls fail, until so many calls were made.
    pub(super) faults: u32,
    pub(super) faults_until: u64,
    /// What is done to the records of each source partition, where that is not drawn.
    pub(super) kinds: Option<&'static [Kind]>,
    /// Most records of one batch, and of one transaction.
    pub(super) batch: usize,
    pub(super) round: usize,
    /// How many sets of plugins each process has.
    pub(super) parallelism: usize,
    /// Whether the checker looks at who commits, and does not only see what comes of it.
    pub(super) asks_for_owners: bool,
    /// The calls before or after which a process dies: at the how manieth.
    pub(super) crashes: Vec<(Call, Moment, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moment {
    Before,
    After,
}

/// A process of millrace, from its start to its end.
pub(super) struct Process {
    /// Which actor it is a process of.
    pub(super) actor: usize,
    pub(super) instance: Option<String>,
    /// While it lives.
    pub(super) orders: Option<Sender<Order>>,
    /// Makes the task of a generation.
    pub(super) task: Box<dyn Fn(u64) -> Task + Send>,
    /// The generation of the last task that it was given, and of the last that it worked by.
    pub(super) handed_out: u64,
    pub(super) worked_by: u64,
    /// The outputs of a round of which it is not known whether it was committed.
    pub(super) in_doubt: Option<u64>,
}

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) rng: fastrand::Rng,
    pub(super) kafka: Kafka,
    pub(super) sources: Vec<Source>,
    pub(super) checker: Checker,
    pub(super) processes: Vec<Process>,
    /// The producers that live, with the actor they belong to, and whether a transaction is open in them.
    pub(super) producers: BTreeMap<u64, (usize, bool)>,
    pub(super) producers_ever: u64,
    /// What has happened, and how often.
    pub(super) met: BTreeMap<String, u64>,
    /// The generation of the configuration.
    pub(super) generation: u64,
    /// How long the call of the moment takes.
    pub(super) wait: Duration,
    /// Outputs that may be missing in at_most_once: counted, or in doubt when a process died.
    pub(super) losses: u64,
    /// Source records that were counted as routed. The count is in doubt where a process has died with a round, and where a
    /// commit of unknown outcome was found done: it may have been another's.
    pub(super) counted: u64,
    pub(super) count_in_doubt: bool,
    paused: bool,
    pub(super) draining: bool,
    pub(super) steps: u64,
    calm_since: Option<u64>,
    clock: SimulatedClock,
    trace: DefaultHasher,
    /// Whether each step is printed.
    tells: bool,
    running: usize,
    wakes: Vec<Option<Duration>>,
    wrong: Option<String>,
}

/// What a run came to.
pub(super) struct Summary {
    pub(super) trace: u64,
    pub(super) met: BTreeMap<String, u64>,
    pub(super) looks: u64,
    pub(super) compared: u64,
    pub(super) read: u64,
    pub(super) repeated: u64,
}

impl World {
    pub(super) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm_since.is_some()
    }

    pub(super) fn chance(&mut self, of_1000: u32) -> bool {
        !self.is_calm() && self.rng.u32(0..1000) < of_1000
    }

    pub(super) fn meet(&mut self, what: impl Into<String>) {
        *self.met.entry(what.into()).or_default() += 1;
    }

    pub(super) fn trace(&mut self, what: impl Debug) {
        format!("{what:?}").hash(&mut self.trace);
        self.tell(what);
    }

    fn trace_call(&mut self, call: Call) {
        (self.running, call as u8, self.now()).hash(&mut self.trace);
        self.tell(call);
    }

    fn tell(&self, what: impl Debug) {
        if self.tells {
            println!("{:>9.3} s, {}: {what:?}", self.now().as_secs_f64(), self.running);
        }
    }

    /// How the call of the moment fails, if it does.
    pub(super) fn fault(&mut self, call: Call) -> Option<Failing> {
        let (_, ways) = TABLE.iter().find(|(of, _)| *of == call)?;
        // (there are many more of some)
        let of = match call {
            Call::Produce => 10_000,
            Call::Poll => 5_000,
            Call::SendOffsets | Call::Commit | Call::Abort | Call::CommitOffsets | Call::Committed => 500,
            _ => 1_000,
        };
        if self.is_calm() || self.rng.u32(0..of) >= self.scenario.faults {
            return None;
        }
        let way = ways[self.rng.usize(0..ways.len())];
        self.meet(met_fault(call, &way));
        self.trace(way);
        Some(way)
    }

    /// Between nothing and `most`.
    pub(super) fn some(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.f64())
    }

    pub(super) fn say_wrong(&mut self, what: impl Into<String>) {
        self.wrong.get_or_insert(what.into());
    }

    fn dies(&mut self, call: Call, moment: Moment) -> bool {
        if self.is_calm() {
            return false;
        }
        let Some(at) = self.scenario.crashes.iter().position(|(of, when, _)| (*of, *when) == (call, moment)) else {
            return false;
        };
        if self.scenario.crashes[at].2 > 0 {
            self.scenario.crashes[at].2 -= 1;
            return false;
        }
        self.scenario.crashes.remove(at);
        self.meet(format!("crash {moment:?} {call:?}"));
        true
    }

    /// What happens without anybody asking for it.
    fn happen(&mut self) {
        if self.calm_since.is_none() && self.steps >= self.scenario.faults_until {
            self.calm_since = Some(self.steps);
        }
        let now = self.now();
        for _ in 0..self.kafka.end_timed_out(now) {
            self.meet("transaction timed out");
        }
        self.late_requests_arrive(now);
        self.group_moves(now);
        if self.chance(8) && !self.draining {
            self.meet("reload");
            self.generation += 1;
            let generation = self.generation;
            for process in &mut self.processes {
                if let Some(orders) = &process.orders {
                    process.handed_out = generation;
                    let _ = orders.send(Order::Swap(Box::new((process.task)(generation))));
                }
            }
        }
        let turns = match self.paused {
            true => self.is_calm() || self.chance(30),
            false => self.chance(2),
        };
        if turns {
            self.paused = !self.paused;
            self.meet(if self.paused { "paused" } else { "resumed" });
            for orders in self.processes.iter().filter_map(|process| process.orders.as_ref()) {
                let _ = orders.send(if self.paused { Order::Pause } else { Order::Resume });
            }
        }
    }

    fn late_requests_arrive(&mut self, now: Duration) {
        let mut at = 0;
        while at < self.kafka.late.len() {
            let is_old = now.saturating_sub(self.kafka.late[at].since) > Duration::from_secs(30);
            if is_old || self.rng.u8(0..20) == 0 {
                let late = self.kafka.late.remove(at);
                let result = self.kafka.end(&late.id, late.epoch, late.commit);
                let name = if late.commit { "commit" } else { "abort" };
                self.meet(format!("late {name} {}", if result.is_ok() { "taken" } else { "refused" }));
            } else {
                at += 1;
            }
        }
    }

    fn group_moves(&mut self, now: Duration) {
        for (member, timed_out) in self.kafka.dead_members(now) {
            if timed_out || self.chance(20) {
                self.meet("session timed out");
                self.kafka.remove(member);
            }
        }
        let members: Vec<_> = self.kafka.members.keys().copied().collect();
        if members.is_empty() {
            return;
        }
        for partition in self.kafka.unowned() {
            if self.rng.bool() {
                let to = members[self.rng.usize(0..members.len())];
                self.kafka.assign(partition, to);
                self.meet("assigned");
            }
        }
        if self.chance(25) {
            self.kafka.ask_back(self.rng.usize(0..PARTITIONS));
            self.meet("asked back");
        }
        if self.chance(4) {
            // The member does not know yet: a zombie, until it hears of it.
            self.kafka.remove(members[self.rng.usize(0..members.len())]);
            self.meet("member thrown out");
        }
    }

    fn look(&mut self) {
        if let Err(wrong) = self.checker.look(&self.kafka, &self.sources) {
            self.say_wrong(wrong);
        }
        if let Some(since) = self.calm_since
            && self.steps - since > CALLS_TO_FINISH
        {
            self.say_wrong(format!("STUCK: not done {CALLS_TO_FINISH} calls after the faults have ceased"));
        }
        let is_done = |(at, source): (usize, &Source)| source.before(self.kafka.committed[at]) >= source.end;
        if !self.draining && self.sources.iter().enumerate().all(is_done) {
            self.draining = true;
            self.calm_since.get_or_insert(self.steps);
            for orders in self.processes.iter().filter_map(|process| process.orders.as_ref()) {
                let _ = orders.send(Order::Drain { leave: false, within: Duration::from_secs(60) });
            }
        }
    }

    /// The end of a process, in whichever way.
    pub(super) fn end_process(&mut self, number: usize) {
        self.processes[number].orders = None;
        self.doubt(number);
        let now = self.now();
        self.kafka.process_died(number, now);
    }

    /// Nobody will learn any more what became of the round that the process was at.
    pub(super) fn doubt(&mut self, number: usize) {
        if let Some(outputs) = self.processes[number].in_doubt.take() {
            self.losses += outputs;
            self.count_in_doubt = true;
        }
    }

    /// A younger process of the same name lives.
    pub(super) fn has_younger_twin(&self, number: usize) -> bool {
        let instance = &self.processes[number].instance;
        let mut younger = self.processes[number + 1..].iter();
        instance.is_some() && younger.any(|process| process.instance == *instance && process.orders.is_some())
    }

    fn pass_on(&mut self) {
        let due = |(actor, wake): (usize, &Option<Duration>)| wake.map(|wake| (wake, actor));
        match self.wakes.iter().enumerate().filter_map(due).min() {
            Some((wake, actor)) => {
                self.clock.advance_to(wake);
                self.running = actor;
            }
            // The last place is that of whoever started it all.
            None => self.running = self.wakes.len(),
        }
    }
}

pub(super) fn met_fault(call: Call, way: &Failing) -> String {
    format!("{call:?}: {} {:?} {:?}", way.name(), way.flag, way.effect)
}

struct Shared {
    world: Mutex<World>,
    turns: Vec<Condvar>,
}

/// One of those who take turns.
#[derive(Clone)]
pub(super) struct Actor {
    shared: Arc<Shared>,
    me: usize,
}

/// Why a thread unwinds that has not panicked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwound {
    /// The process died, as after `kill -9`.
    Died,
    /// The run is over.
    Over,
}

impl Actor {
    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn number(&self) -> usize {
        self.me
    }

    /// A simulated call: something may happen first, the process may die before or after it, the invariants are looked
    /// at, and then it is somebody else's turn.
    pub(super) fn call<T>(&self, call: Call, act: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.lock();
        world.steps += 1;
        if world.dies(call, Moment::Before) {
            self.unwind(world, Unwound::Died);
        }
        // These are inside of the client or of the process: nobody else could tell when they happen.
        let takes_turns = !matches!(call, Call::Plugin | Call::Begin | Call::Produce);
        if takes_turns {
            world.happen();
        }
        let result = act(&mut world);
        world.look();
        world.trace_call(call);
        if world.wrong.is_some() {
            self.unwind(world, Unwound::Over);
        }
        if world.dies(call, Moment::After) {
            self.unwind(world, Unwound::Died);
        }
        if takes_turns {
            // Often it goes on at once: passing the turn on costs more than all else.
            let latency = if world.rng.bool() { Duration::ZERO } else { world.some(Duration::from_millis(6)) };
            let mut takes = std::mem::take(&mut world.wait) + latency;
            if world.chance(4) {
                world.meet("stopped for long");
                takes += world.some(3 * TRANSACTION_TIMEOUT);
            }
            self.sleep_in(world, takes);
        }
        result
    }

    /// Nothing for a while.
    pub(super) fn sleep(&self, wait: Duration) {
        self.sleep_in(self.lock(), wait);
    }

    fn sleep_in(&self, mut world: MutexGuard<'_, World>, wait: Duration) {
        let wake = world.now() + wait;
        world.wakes[self.me] = Some(wake);
        world.pass_on();
        let next = world.running;
        if next != self.me {
            self.shared.turns[next].notify_one();
        }
        self.wait_for_turn(world);
    }

    fn wait_for_turn(&self, mut world: MutexGuard<'_, World>) {
        while world.running != self.me {
            world = self.shared.turns[self.me].wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        if world.wrong.is_some() {
            self.unwind(world, Unwound::Over);
        }
    }

    fn unwind(&self, world: MutexGuard<'_, World>, why: Unwound) -> ! {
        drop(world);
        // (which calls no panic hook)
        std::panic::resume_unwind(Box::new(why))
    }

    /// To be called once it is on its own thread, before anything else.
    pub(super) fn begin(&self) {
        let world = self.lock();
        world.clock.rule_this_thread();
        self.wait_for_turn(world);
    }

    /// It takes no more turns.
    pub(super) fn finish(&self) {
        let mut world = self.lock();
        world.wakes[self.me] = None;
        world.pass_on();
        let next = world.running;
        self.shared.turns[next].notify_one();
    }
}

/// Runs a scenario with one thread for each of `actors`, and says what was wrong, if anything.
pub(super) fn run(scenario: Scenario, actors: usize, live: impl Fn(Actor) + Sync) -> Result<Summary, String> {
    let mut rng = fastrand::Rng::with_seed(scenario.seed);
    let Scenario { on_error, delivery, kinds, asks_for_owners, .. } = &scenario;
    let asks_for_owners = *asks_for_owners;
    let source = |number| Source::new(&mut rng, number, *kinds, &on_error.then, *delivery);
    let sources = (0..PARTITIONS).map(source).collect();
    let world = World {
        checker: Checker::new(scenario.delivery),
        scenario,
        rng,
        kafka: Kafka::new(asks_for_owners),
        sources,
        processes: Vec::new(),
        producers: BTreeMap::new(),
        producers_ever: 0,
        met: BTreeMap::new(),
        generation: 1,
        wait: Duration::ZERO,
        losses: 0,
        counted: 0,
        count_in_doubt: false,
        paused: false,
        draining: false,
        steps: 0,
        calm_since: None,
        clock: SimulatedClock::default(),
        trace: DefaultHasher::new(),
        tells: std::env::var_os(TRACE).is_some(),
        running: actors,
        wakes: vec![Some(Duration::ZERO); actors],
        wrong: None,
    };
    let turns = (0..=actors).map(|_| Condvar::new()).collect();
    let shared = Arc::new(Shared { world: Mutex::new(world), turns });
    let actor = |me| Actor { shared: Arc::clone(&shared), me };
    std::thread::scope(|scope| {
        for me in 0..actors {
            let (actor, live) = (actor(me), &live);
            scope.spawn(move || live(actor));
        }
        let starter = actor(actors);
        let mut world = starter.lock();
        world.pass_on();
        starter.shared.turns[world.running].notify_one();
        while world.running != actors {
            world = starter.shared.turns[actors].wait(world).unwrap_or_else(PoisonError::into_inner);
        }
    });
    let starter = actor(actors);
    let mut world = starter.lock();
    world.finish_up()?;
    let (trace, met) = (world.trace.finish(), std::mem::take(&mut world.met));
    let Checker { looks, compared, read, repeated, .. } = world.checker;
    Ok(Summary { trace, met, looks, compared, read, repeated })
}

impl World {
    /// Waits until the last transaction has timed out; all must have been done by then.
    fn finish_up(&mut self) -> Result<(), String> {
        self.clock.advance_to(self.now() + 2 * TRANSACTION_TIMEOUT);
        let now = self.now();
        self.kafka.end_timed_out(now);
        self.look();
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        self.checker.finish(&self.kafka, &self.sources, self.losses)?;
        let all: usize = self.sources.iter().map(|source| source.end).sum();
        let is_exact = self.scenario.delivery == Delivery::ExactlyOnce && !self.count_in_doubt;
        if is_exact && self.counted != all as u64 {
            return Err(format!("COUNT: {} of {all} records were counted as routed", self.counted));
        }
        self.meet(if is_exact { "count compared" } else { "count in doubt" });
        Ok(())
    }
}
