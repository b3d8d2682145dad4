//! What happens in a run, and when: a plan that one seed and a shape decide, before anything starts. Knows nothing about how it
//! is done.

use std::time::Duration;

use fastrand::Rng;

/// Processes that share the work, at most; all but the last run all the time.
pub(crate) const SLOTS: usize = 3;
/// The process that only comes for a while.
const GUEST: usize = SLOTS - 1;

/// How the members of a group are known to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    Static,
    Dynamic,
}

impl Membership {
    pub(crate) const ALL: [(&str, Self); 2] = [("static", Self::Static), ("dynamic", Self::Dynamic)];
}

/// How the partitions of a group are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Assignment {
    Cooperative,
    Eager,
    /// The protocol of KIP-848.
    Consumer,
}

impl Assignment {
    pub(crate) const ALL: [(&str, Self); 3] =
        [("cooperative", Self::Cooperative), ("eager", Self::Eager), ("consumer", Self::Consumer)];
}

/// The name of a choice.
pub(crate) fn name_of<T: PartialEq>(all: &[(&'static str, T)], one: &T) -> &'static str {
    all.iter().find(|(_, other)| other == one).map_or("", |(name, _)| name)
}

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Nodes of a cluster of its own; none where the cluster is somebody's, who would mind.
    pub(crate) nodes: Option<u8>,
    pub(crate) membership: Membership,
    pub(crate) assignment: Assignment,
    /// For how long there are faults.
    pub(crate) length: Duration,
}

/// Something that is done to the system, or undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// kill -9.
    Kill(usize),
    /// SIGABRT, as when a library asserts in vain.
    Abort(usize),
    /// SIGSEGV, as when a library is wrong about its memory.
    Segfault(usize),
    /// SIGTERM, and its end is waited for.
    Terminate(usize),
    Start(usize),
    /// SIGSTOP, and for how long.
    Stop(usize, Duration),
    /// SIGCONT.
    Continue(usize),
    /// Another process with the same instance name.
    StartTwin(usize),
    /// Of the two, the older one leaves (SIGTERM).
    EndElder(usize),
    /// Of the two, the younger one leaves.
    EndTwin(usize),
    KillBroker(Node),
    ShutDownBroker(Node),
    StartBroker,
    StopBroker(Node),
    ContinueBroker,
    /// Each partition gets the leader that it prefers.
    MoveLeaders,
    /// Another valid configuration.
    Reload,
    /// One that must be refused, and then the one before again.
    BreakConfig,
}

impl Action {
    /// A process that does not get to end what it is at.
    pub(crate) fn takes_by_surprise(self) -> bool {
        matches!(self, Self::Kill(_) | Self::Abort(_) | Self::Segfault(_) | Self::Stop(..))
    }
}

/// A broker, by its number or by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Number(u8),
    GroupCoordinator,
    TransactionCoordinator,
}

/// A kind of fault: how often it comes, relative to the others, and whether it makes a zombie, of which what is sent late comes
/// late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    KillAll,
    Crash,
    Restart,
    Join,
    Stop,
    TwinOfStopped,
    TwinOfLive,
    KillBroker,
    KillCoordinator,
    ShutDownBroker,
    StopBroker,
    MoveLeaders,
    Reload,
    BreakConfig,
}

const FAULTS: [(Fault, usize); 15] = [
    (Fault::Kill, 8),
    (Fault::KillAll, 2),
    (Fault::Crash, 2),
    (Fault::Restart, 4),
    (Fault::Join, 3),
    (Fault::Stop, 5),
    (Fault::TwinOfStopped, 2),
    (Fault::TwinOfLive, 1),
    (Fault::KillBroker, 2),
    (Fault::KillCoordinator, 2),
    (Fault::ShutDownBroker, 1),
    (Fault::StopBroker, 3),
    (Fault::MoveLeaders, 1),
    (Fault::Reload, 4),
    (Fault::BreakConfig, 1),
];

impl Fault {
    fn is_of_broker(self) -> bool {
        use Fault::{KillBroker, KillCoordinator, MoveLeaders, ShutDownBroker, StopBroker};
        matches!(self, KillBroker | KillCoordinator | ShutDownBroker | StopBroker | MoveLeaders)
    }

    fn is_of_twins(self) -> bool {
        matches!(self, Self::TwinOfStopped | Self::TwinOfLive)
    }

    /// Something is stopped with records on their way, which arrive when others have gone on.
    fn makes_zombies(self) -> bool {
        matches!(self, Self::Stop | Self::StopBroker) || self.is_of_twins()
    }
}

/// What happens when. Sorted by time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<(Duration, Action)>,
    /// Whether something is stopped in it, and goes on later. One in four is without, so that order is judged where it is promised.
    pub(crate) has_zombies: bool,
}

impl Plan {
    pub(crate) fn new(seed: u64, shape: &Shape) -> Self {
        let mut random = Rng::with_seed(seed);
        let has_zombies = random.u8(..4) > 0;
        let mut planner = Planner { random, steps: Vec::new(), slots: [Duration::ZERO; SLOTS], broker: Duration::ZERO };
        let possible = |fault: Fault| {
            (has_zombies || !fault.makes_zombies())
                && match shape.nodes {
                    None => !fault.is_of_broker(),
                    // A partition whose only node starts or ends is without a leader meanwhile. Kafka's coordinator passes over
                    // such a partition when it ends a transaction, which then stays open in it (KAFKA-20734): no client can
                    // make up for that.
                    Some(1) => !fault.is_of_broker() || fault == Fault::StopBroker,
                    Some(_) => true,
                }
                && (shape.membership == Membership::Static || !fault.is_of_twins())
        };
        let faults: Vec<_> = FAULTS.into_iter().filter(|(fault, _)| possible(*fault)).collect();
        let mut now = Duration::from_secs(1);
        while now < shape.length {
            let fault = planner.choose(&faults);
            planner.add(fault, now, shape);
            now += planner.between(1_000, 3_000);
        }
        // (stable: of what happens at one time, the order stays)
        planner.steps.sort_by_key(|(at, _)| *at);
        Self { steps: planner.steps, has_zombies }
    }
}

struct Planner {
    random: Rng,
    steps: Vec<(Duration, Action)>,
    /// Until when each process is at fault already.
    slots: [Duration; SLOTS],
    /// Until when a broker is.
    broker: Duration,
}

impl Planner {
    fn between(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.u64(from..to))
    }

    fn choose(&mut self, faults: &[(Fault, usize)]) -> Fault {
        let all: usize = faults.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.usize(..all);
        for (fault, weight) in faults {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *fault,
            }
        }
        unreachable!("the weights add up")
    }

    /// Puts it into the plan, unless all that it could meet is at fault at this time.
    fn add(&mut self, fault: Fault, now: Duration, shape: &Shape) {
        match fault {
            Fault::KillAll => {
                for slot in (0..GUEST).filter(|slot| self.slots[*slot] <= now).collect::<Vec<_>>() {
                    self.restart(slot, Action::Kill(slot), now);
                }
            }
            Fault::Join => self.join(now),
            Fault::Reload => self.steps.push((now, Action::Reload)),
            Fault::BreakConfig => self.steps.push((now, Action::BreakConfig)),
            fault if fault.is_of_broker() => self.break_broker(fault, now, shape.nodes.unwrap_or(1)),
            fault => {
                let idle: Vec<usize> = (0..GUEST).filter(|slot| self.slots[*slot] <= now).collect();
                if let Some(slot) = self.random.choice(idle) {
                    self.break_process(fault, slot, now);
                }
            }
        }
    }

    fn break_process(&mut self, fault: Fault, slot: usize, now: Duration) {
        match fault {
            Fault::Kill => self.restart(slot, Action::Kill(slot), now),
            Fault::Crash if self.random.bool() => self.restart(slot, Action::Abort(slot), now),
            Fault::Crash => self.restart(slot, Action::Segfault(slot), now),
            Fault::Restart => self.restart(slot, Action::Terminate(slot), now),
            Fault::Stop => {
                // Shorter than a session, longer than that, longer than a transaction and the broker's look at it.
                let (from, to) = self.random.choice([(2_000, 5_000), (6_500, 8_000), (9_000, 11_000)]).expect("some");
                let length = self.between(from, to);
                self.steps.push((now, Action::Stop(slot, length)));
                self.until(slot, now + length, Action::Continue(slot));
            }
            Fault::TwinOfStopped => {
                let (twin, wake, end) =
                    (self.between(500, 3_000), self.between(4_000, 8_000), self.between(2_000, 6_000));
                self.steps.push((now, Action::Stop(slot, twin + wake)));
                self.steps.push((now + twin, Action::StartTwin(slot)));
                self.steps.push((now + twin + wake, Action::Continue(slot)));
                self.until(slot, now + twin + wake + end, Action::EndElder(slot));
            }
            Fault::TwinOfLive => {
                let end = if self.random.bool() { Action::EndElder(slot) } else { Action::EndTwin(slot) };
                self.steps.push((now, Action::StartTwin(slot)));
                let after = self.between(3_000, 8_000);
                self.until(slot, now + after, end);
            }
            other => unreachable!("{other:?} is none of one process"),
        }
    }

    fn restart(&mut self, slot: usize, end: Action, now: Duration) {
        self.steps.push((now, end));
        let after = self.between(100, 3_000);
        self.until(slot, now + after, Action::Start(slot));
    }

    fn until(&mut self, slot: usize, at: Duration, action: Action) {
        self.steps.push((at, action));
        self.slots[slot] = at;
    }

    fn join(&mut self, now: Duration) {
        if self.slots[GUEST] > now {
            return;
        }
        let end = if self.random.u8(..4) == 0 { Action::Kill(GUEST) } else { Action::Terminate(GUEST) };
        self.steps.push((now, Action::Start(GUEST)));
        let after = self.between(3_000, 8_000);
        self.until(GUEST, now + after, end);
    }

    fn break_broker(&mut self, fault: Fault, now: Duration, nodes: u8) {
        // One at a time: two of three are what the cluster promises to live with.
        if self.broker > now {
            return;
        }
        let node = Node::Number(self.random.u8(1..=nodes));
        let (begin, after) = match fault {
            Fault::KillBroker => (Action::KillBroker(node), Some((self.between(200, 4_000), Action::StartBroker))),
            Fault::KillCoordinator => {
                let of = self.random.choice([Node::GroupCoordinator, Node::TransactionCoordinator]).expect("some");
                (Action::KillBroker(of), Some((self.between(200, 4_000), Action::StartBroker)))
            }
            Fault::ShutDownBroker => {
                (Action::ShutDownBroker(node), Some((self.between(200, 2_000), Action::StartBroker)))
            }
            Fault::StopBroker => {
                let most = if nodes == 1 { 5_000 } else { 9_000 };
                (Action::StopBroker(node), Some((self.between(3_000, most), Action::ContinueBroker)))
            }
            _ => (Action::MoveLeaders, None),
        };
        self.steps.push((now, begin));
        self.broker = now;
        if let Some((length, end)) = after {
            self.steps.push((now + length, end));
            // Time to be a cluster again, which a node's start takes long for, and to do some work as one.
            let settles = if end == Action::StartBroker { 25 } else { 12 };
            self.broker = now + length + Duration::from_secs(settles);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(nodes: Option<u8>, membership: Membership) -> Shape {
        Shape { nodes, membership, assignment: Assignment::Cooperative, length: Duration::from_secs(600) }
    }

    #[test]
    fn a_seed_decides_the_whole_plan_and_another_seed_another_one() {
        let shape = shape(Some(3), Membership::Static);
        assert_eq!(Plan::new(7, &shape), Plan::new(7, &shape));
        assert_ne!(Plan::new(7, &shape), Plan::new(8, &shape));
    }

    #[test]
    fn a_plan_ends_what_it_begins_and_leaves_other_peoples_brokers_alone() {
        use Action::{
            Continue, EndElder, EndTwin, Kill, KillBroker, Reload, Start, StartBroker, StartTwin, Stop, StopBroker,
        };
        for seed in 0..50 {
            let ours = Plan::new(seed, &shape(Some(3), Membership::Static));
            let count =
                |plan: &Plan, is: fn(&Action) -> bool| plan.steps.iter().filter(|(_, action)| is(action)).count();
            assert_eq!(count(&ours, |a| matches!(a, Stop(..))), count(&ours, |a| matches!(a, Continue(_))));
            assert_eq!(
                count(&ours, |a| matches!(a, StartTwin(_))),
                count(&ours, |a| matches!(a, EndElder(_) | EndTwin(_)))
            );
            assert!(count(&ours, |a| matches!(a, Kill(_))) > 0 && count(&ours, |a| *a == Reload) > 0);
            assert_eq!(ours.has_zombies, count(&ours, |a| matches!(a, Stop(..) | StopBroker(_) | StartTwin(_))) > 0);
            let theirs = Plan::new(seed, &shape(None, Membership::Dynamic));
            let of_brokers = |a: &Action| matches!(a, KillBroker(_) | StopBroker(_) | StartBroker | StartTwin(_));
            assert_eq!(count(&theirs, of_brokers), 0);
            assert!(count(&theirs, |a| matches!(a, Start(_))) > 0);
        }
    }
}
