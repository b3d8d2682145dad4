//! The supervisor: one owner of all that runs, with one mailbox. It is given what is wanted and brings what runs there,
//! route by route; nothing that can fail is left to do.
//!
//! Its state is compared with what is wanted, whatever has come in between: a reload that finds the last one still
//! under way (routes draining, restarts waiting for their turn) needs no case of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use super::board::{RouteFacts, RoutePhase, RouteReport, StatusBoard};
use super::plan::{Plan, RoutePlan};
use super::route::{Clients, RunningRoute, Shared};
use super::status::RouteState;
use crate::model::RouteName;
use crate::pipeline::seek::Seek;
use crate::pipeline::skip::Skip;
use crate::telemetry::{Metrics, Tracer};

/// How long a route that is restarted with all the others may take to run again before the next one follows: one that
/// cannot must not keep the others from the new clients.
const TURN_LONGEST: Duration = Duration::from_secs(30);
/// When a route is started again whose workers have ended by themselves: a thread could not be had, or a bug.
const REVIVE_AFTER: Duration = Duration::from_secs(10);
/// How often it is looked whether it does.
const TURN_LOOK: Duration = Duration::from_millis(50);

/// What is to run.
#[derive(Clone)]
pub struct Wanted {
    /// The routes.
    pub plan: Arc<Plan>,
    /// What they talk to Kafka with.
    pub clients: Arc<Clients>,
    /// The generation of this configuration.
    pub generation: u64,
}

enum Message {
    Want(Wanted),
    /// A worker of the life of this number has ended.
    Ended(RouteName, u64),
    Do(RouteName, Act, tokio::sync::oneshot::Sender<Result<(), Refusal>>),
    Drain(Duration, tokio::sync::oneshot::Sender<Vec<RouteName>>),
}

/// What somebody asks to be done with a route.
#[derive(Debug)]
pub enum Act {
    /// Keep its partitions, and let them wait: until it is resumed, or the process ends.
    Pause,
    /// Go on.
    Resume,
    /// Start what has stopped, and try again at once what waits.
    Restart,
    /// Pass a record by.
    Skip(Skip),
    /// Move the positions of its partitions.
    Seek(Seek),
}

/// Why it is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such route.
    Unknown,
    /// It does not run; what is to be done about that.
    NotRunning(String),
    /// It makes no sense.
    Senseless(String),
    /// The process is on its way out.
    ShuttingDown,
}

/// Tells the supervisor what to do. Cheap to clone.
#[derive(Clone)]
pub struct Supervision(Sender<Message>);

/// Comes when the supervisor is gone: drained, or by a bug, and then nothing is routed any more.
pub type Gone = tokio::sync::oneshot::Receiver<()>;

impl Supervision {
    /// This is to run from now on.
    pub fn want(&self, wanted: Wanted) {
        // (an error: the process is on its way out)
        let _ = self.0.send(Message::Want(wanted));
    }

    /// Has something done with a route. Answers once its workers are told.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn act(&self, route: &RouteName, act: Act) -> Result<(), Refusal> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let _ = self.0.send(Message::Do(route.clone(), act, answer));
        answered.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// One that nobody attends to.
    #[cfg(test)]
    pub(crate) fn unattended() -> Self {
        Self(channel().0)
    }

    /// Drains all routes at once, and wants nothing any more. Answers the names of those that had not ended within that
    /// time.
    pub async fn drain(&self, within: Duration) -> Vec<RouteName> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let _ = self.0.send(Message::Drain(within, answer));
        // (an error: it is gone, and the routes with it)
        answered.await.unwrap_or_default()
    }
}

/// All routes of the process.
pub struct Supervisor {
    shared: Shared,
    slots: BTreeMap<RouteName, Slot>,
    /// Keep the routes on the board that do not run: the disabled ones, and those that wait for their group to be left.
    idle: BTreeMap<RouteName, RouteReport>,
    wanted: Option<Wanted>,
    /// Routes that were told to pause; they stay so across reloads.
    paused: BTreeSet<RouteName>,
    /// Routes that wait for their turn to restart, when all of them do; and whose turn it is, until when at most.
    turns: VecDeque<RouteName>,
    turn: Option<(RouteName, Instant)>,
    lives: u64,
    mailbox: Receiver<Message>,
    own: Sender<Message>,
}

/// A route that is, or was, wanted.
struct Slot {
    route: RunningRoute,
    life: u64,
    /// It has been told to drain. When it has ended, it starts anew if it is still wanted.
    draining: bool,
    /// It has ended by itself, and starts anew then.
    revive_at: Option<Instant>,
}

/// What a route that runs needs to become what is wanted.
enum Need {
    Nothing,
    Swap,
    /// `leave`: nobody comes back as the members that go.
    Restart {
        leave: bool,
    },
    /// The same, for all routes: one after the other.
    Reconnect {
        leave: bool,
    },
}

impl Supervisor {
    /// Starts it. Nothing is wanted yet. Routes tell their spans to `tracer`.
    pub fn start(metrics: Metrics, board: Arc<StatusBoard>, tracer: Tracer) -> (Supervision, Gone) {
        let (own, mailbox) = channel();
        let supervisor = Self {
            shared: Shared { metrics, board, tracer },
            slots: BTreeMap::new(),
            idle: BTreeMap::new(),
            wanted: None,
            paused: BTreeSet::new(),
            turns: VecDeque::new(),
            turn: None,
            lives: 0,
            mailbox,
            own: own.clone(),
        };
        let thread = std::thread::Builder::new().name("supervisor".into());
        let (alive, gone) = tokio::sync::oneshot::channel();
        let run = move || {
            let _alive = alive;
            supervisor.run();
        };
        thread.spawn(run).expect("the process can start a thread");
        (Supervision(own), gone)
    }

    fn run(mut self) {
        loop {
            let revive_in = self.slots.values().filter_map(|slot| slot.revive_at).min();
            let revive_in = revive_in.map(|at| at.saturating_duration_since(Instant::now()));
            let turn_in = self.turn.is_some().then_some(TURN_LOOK);
            let wait = revive_in.into_iter().chain(turn_in).min().unwrap_or(Duration::from_secs(3600));
            match self.mailbox.recv_timeout(wait) {
                Ok(Message::Want(wanted)) => self.want(wanted),
                Ok(Message::Ended(name, life)) => self.ended(&name, life),
                Ok(Message::Do(name, act, answer)) => {
                    // (an error: who asked waits no longer)
                    let _ = answer.send(self.act(&name, &act));
                }
                Ok(Message::Drain(within, answer)) => {
                    let _ = answer.send(self.drain(within));
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.take_turns();
            self.revive();
        }
    }

    fn want(&mut self, wanted: Wanted) {
        let Wanted { plan, clients, generation } = &wanted;
        self.turns.clear();
        self.paused.retain(|name| plan.routes.contains_key(name));
        self.slots.retain(|_, slot| slot.revive_at.is_none());
        for (name, slot) in &mut self.slots {
            match plan.routes.get(name) {
                None if slot.draining => {}
                None => slot.drain(true, plan),
                // It starts as it is wanted then.
                Some(_) if slot.draining => {}
                Some(next) => match need(&slot.route, next, clients) {
                    Need::Nothing => slot.route.keep(Arc::clone(next)),
                    Need::Swap => slot.route.swap(Arc::clone(next), *generation, plan.settings.shutdown_timeout),
                    Need::Restart { leave } => slot.drain(leave, plan),
                    Need::Reconnect { .. } => self.turns.push_back(name.clone()),
                },
            }
        }
        self.wanted = Some(wanted);
        self.fill();
    }

    /// Starts what is wanted and does not run. A route whose group another one is about to leave waits for that: its
    /// members may get the same names.
    fn fill(&mut self) {
        let Some(Wanted { plan, clients, generation }) = self.wanted.clone() else { return };
        for (name, route) in &plan.routes {
            let group = &route.route.source.group;
            let is_left = |slot: &Slot| slot.draining && slot.route.plan().route.source.group == *group;
            if !self.slots.contains_key(name) && !self.slots.values().any(is_left) {
                let paused = self.paused.contains(name);
                let slot = start(&self.shared, &self.own, &mut self.lives, route, &clients, (generation, paused));
                self.slots.insert(name.clone(), slot);
            }
        }
        self.show_idle(&plan);
    }

    fn show_idle(&mut self, plan: &Plan) {
        let mut before = std::mem::take(&mut self.idle);
        // (one that still drains is shown as such)
        for route in plan.settings.routes.values().filter(|route| !self.slots.contains_key(&route.name)) {
            let facts = RouteFacts {
                delivery: route.delivery,
                group: route.source.group.clone(),
                plugins: Vec::new(),
                shadow: None,
                workers: route.workers,
                parallelism: route.parallelism,
                lag_alert: route.lag_alert,
            };
            let report =
                before.remove(&route.name).unwrap_or_else(|| self.shared.board.route(&route.name, facts.clone()));
            report.changed(facts);
            report.phase(if route.enabled { RoutePhase::Workers } else { RoutePhase::Disabled });
            self.idle.insert(route.name.clone(), report);
        }
    }

    fn act(&mut self, name: &RouteName, act: &Act) -> Result<(), Refusal> {
        let plan = &self.wanted.as_ref().ok_or(Refusal::ShuttingDown)?.plan;
        let Some(planned) = plan.routes.get(name) else {
            let disabled = plan.settings.routes.contains_key(name);
            let help = "it is disabled: write `enabled: true` in the configuration";
            return Err(if disabled { Refusal::NotRunning(help.to_owned()) } else { Refusal::Unknown });
        };
        // One that starts anew just now finds itself paused, or not, when it does.
        match act {
            Act::Pause => _ = self.paused.insert(name.clone()),
            Act::Resume => _ = self.paused.remove(name),
            Act::Restart => {}
            Act::Skip(skip) => planned.check_skip(skip).map_err(Refusal::Senseless)?,
            Act::Seek(_) if self.paused.contains(name) => {}
            Act::Seek(_) => return Err(Refusal::Senseless("the route is not paused: pause it first".to_owned())),
        }
        let Some(slot) = self.slots.get_mut(name) else { return Ok(()) };
        match act {
            Act::Pause => slot.route.pause(true),
            Act::Resume => slot.route.pause(false),
            Act::Restart => slot.route.restart(),
            Act::Skip(skip) => slot.route.skip(skip),
            Act::Seek(seek) => slot.route.seek(seek),
        }
        if matches!(act, Act::Restart) && slot.revive_at.is_some() {
            slot.revive_at = Some(Instant::now());
        }
        Ok(())
    }

    /// A worker has ended: a route without any is gone, or starts anew.
    fn ended(&mut self, name: &RouteName, life: u64) {
        let Some(slot) = self.slots.get_mut(name).filter(|slot| slot.life == life) else { return };
        if !slot.route.has_lost_a_worker() {
            return;
        }
        if !slot.draining {
            slot.revive_at = Some(Instant::now() + REVIVE_AFTER);
            slot.route.fail((SystemTime::now() + REVIVE_AFTER).into());
            return;
        }
        self.slots.remove(name);
        if self.wanted.as_ref().is_some_and(|wanted| !wanted.plan.routes.contains_key(name)) {
            tracing::info!(route = %name, "removed");
        }
        self.fill();
    }

    /// Starts the routes again that have ended by themselves.
    fn revive(&mut self) {
        let now = Instant::now();
        let before = self.slots.len();
        self.slots.retain(|_, slot| slot.revive_at.is_none_or(|at| at > now));
        if self.slots.len() < before {
            self.fill();
        }
    }

    /// Restarts the next of the routes that restart one after the other, when the one before runs again.
    fn take_turns(&mut self) {
        if let Some((name, until)) = &self.turn {
            let drains = self.slots.get(name).is_some_and(|slot| slot.draining);
            let starts = self.shared.board.route_states().get(name) == Some(&RouteState::Starting);
            if (drains || starts) && Instant::now() < *until {
                return;
            }
            self.turn = None;
        }
        let Some(Wanted { plan, clients, generation }) = self.wanted.clone() else { return };
        while let Some(name) = self.turns.pop_front() {
            let Some((slot, next)) = self.slots.get_mut(&name).zip(plan.routes.get(&name)) else { continue };
            let leave = match need(&slot.route, next, &clients) {
                Need::Restart { leave } | Need::Reconnect { leave } if !slot.draining => leave,
                Need::Swap if !slot.draining => {
                    slot.route.swap(Arc::clone(next), generation, plan.settings.shutdown_timeout);
                    continue;
                }
                _ => continue,
            };
            slot.drain(leave, &plan);
            self.turn = Some((name, Instant::now() + plan.settings.shutdown_timeout + TURN_LONGEST));
            return;
        }
    }

    /// Drains all routes at once. Returns the names of those that had not ended `within` that time.
    fn drain(&mut self, within: Duration) -> Vec<RouteName> {
        let deadline = Instant::now() + within;
        self.shared.board.shutting_down();
        self.wanted = None;
        self.slots.retain(|_, slot| slot.revive_at.is_none());
        for slot in self.slots.values_mut() {
            slot.draining = true;
            slot.route.drain(false, within);
        }
        while !self.slots.is_empty() {
            match self.mailbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Message::Ended(name, life)) => self.ended(&name, life),
                Ok(Message::Want(_) | Message::Drain(..) | Message::Do(..)) => {}
                Err(_) => break,
            }
        }
        std::mem::take(&mut self.slots).into_keys().collect()
    }
}

impl Slot {
    fn drain(&mut self, leave: bool, plan: &Plan) {
        self.draining = true;
        self.route.drain(leave, plan.settings.shutdown_timeout);
    }
}

fn start(
    shared: &Shared,
    own: &Sender<Message>,
    lives: &mut u64,
    route: &Arc<RoutePlan>,
    clients: &Arc<Clients>,
    (generation, paused): (u64, bool),
) -> Slot {
    *lives += 1;
    let (name, life, own) = (route.route.name.clone(), *lives, own.clone());
    let ended = move || {
        // (an error: the process is on its way out)
        let _ = own.send(Message::Ended(name.clone(), life));
    };
    let route = RunningRoute::start(Arc::clone(route), clients, shared, generation, paused, ended);
    Slot { route, life, draining: false, revive_at: None }
}

fn need(running: &RunningRoute, next: &Arc<RoutePlan>, clients: &Arc<Clients>) -> Need {
    let is = running.plan();
    if Arc::ptr_eq(is, next) && Arc::ptr_eq(running.clients(), clients) {
        return Need::Nothing;
    }
    let (route, wanted) = (&is.route, &next.route);
    // Members that come back under the same names need not leave: a static member's partitions then wait for it.
    let same_names = is.first_worker == next.first_worker
        && route.source.group == wanted.source.group
        && route.delivery == wanted.delivery
        && running.clients().names(clients);
    let as_many = route.workers == wanted.workers;
    let leave = !same_names || !as_many;
    if !Arc::ptr_eq(running.clients(), clients) {
        return Need::Reconnect { leave };
    }
    // A worker that joins must not meet one of its name that has yet to leave.
    if !same_names || route.source != wanted.source || !(as_many || running.is_whole()) {
        return Need::Restart { leave };
    }
    if is.does_the_same(next) { Need::Nothing } else { Need::Swap }
}
