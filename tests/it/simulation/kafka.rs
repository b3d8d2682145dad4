//! A Kafka in memory: partitions with transactional records in order, a transaction coordinator with epochs, fencing and
//! timeouts, a group coordinator with generations, static members and offsets that wait for their transaction.
//!
//! It is as the broker is, not as millrace would like it: it takes offsets of whoever is a member of the generation, and
//! ends whatever transaction is open when a late request of the right epoch arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace::kafka::seam::Known;
use millrace::model::Offset;

use super::records::{PARTITIONS, PLACES, Place};

/// After this the coordinator aborts a transaction and moves its producer's epoch on.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// After this a member that has died is no longer one.
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);

/// A record of a destination or of the dead-letter topic.
pub(super) struct Entry {
    pub(super) source: usize,
    pub(super) record: usize,
    /// The number of its transaction; none where it was produced outside of one.
    pub(super) transaction: Option<usize>,
}

/// How a transaction stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Open,
    Committed,
    Aborted,
}

/// What the coordinator knows of a transactional id.
#[derive(Default)]
struct Producer {
    epoch: i32,
    open: Option<Open>,
    /// How its last transaction ended, for a request that is repeated.
    last: Option<Fate>,
}

struct Open {
    number: usize,
    since: Duration,
    offsets: BTreeMap<usize, Offset>,
}

/// A request to end a transaction that is still on its way.
pub(super) struct Late {
    pub(super) id: String,
    pub(super) epoch: i32,
    pub(super) commit: bool,
    pub(super) since: Duration,
}

pub(super) struct Member {
    pub(super) process: usize,
    pub(super) instance: Option<String>,
    pub(super) assigned: BTreeSet<usize>,
    /// Of those, the ones that it has to give back, and those that it has yet to hear of.
    pub(super) to_revoke: BTreeSet<usize>,
    pub(super) to_assign: BTreeSet<usize>,
    died: Option<Duration>,
}

#[derive(Default)]
pub(super) struct Kafka {
    pub(super) logs: [Vec<Entry>; PLACES],
    pub(super) transactions: Vec<Fate>,
    producers: BTreeMap<String, Producer>,
    pub(super) late: Vec<Late>,
    pub(super) generation: i32,
    members_ever: u32,
    pub(super) members: BTreeMap<u32, Member>,
    fenced: BTreeSet<u32>,
    pub(super) committed: [Offset; PARTITIONS],
    /// How often something has changed that a reader could notice.
    pub(super) changes: u64,
    pub(super) asks_for_owners: bool,
    /// What must never be, and was.
    pub(super) wrong: Option<String>,
}

impl Kafka {
    pub(super) fn new(asks_for_owners: bool) -> Self {
        Self { asks_for_owners, ..Self::default() }
    }

    // ---- transactions -----------------------------------------------------------------

    /// The epoch of a producer that takes over the id; what its predecessor left open is aborted.
    pub(super) fn init(&mut self, id: &str) -> i32 {
        self.end_open(id, Fate::Aborted);
        let producer = self.producers.entry(id.to_owned()).or_default();
        producer.epoch += 1;
        producer.last = None;
        producer.epoch
    }

    /// What the broker does on its own account: a transaction ends, and its producer is fenced.
    pub(super) fn fence(&mut self, id: &str) {
        self.end_open(id, Fate::Aborted);
        self.producers.entry(id.to_owned()).or_default().epoch += 1;
    }

    fn check_epoch(&self, id: &str, epoch: i32) -> Result<(), Known> {
        match self.producers.get(id) {
            Some(producer) if producer.epoch == epoch => Ok(()),
            _ => Err(Known::RD_KAFKA_RESP_ERR__FENCED),
        }
    }

    /// The transaction that the producer has open at the coordinator; one begins if there is none.
    fn open(&mut self, id: &str, epoch: i32, now: Duration) -> Result<&mut Open, Known> {
        self.check_epoch(id, epoch)?;
        let producer = self.producers.get_mut(id).expect("checked above");
        let number = self.transactions.len();
        if producer.open.is_none() {
            self.transactions.push(Fate::Open);
        }
        Ok(producer.open.get_or_insert_with(|| Open { number, since: now, offsets: BTreeMap::new() }))
    }

    pub(super) fn append(
        &mut self,
        writer: Option<(&str, i32)>,
        place: Place,
        origin: (usize, usize),
        now: Duration,
    ) -> Result<(), Known> {
        let transaction = match writer {
            Some((id, epoch)) => Some(self.open(id, epoch, now)?.number),
            None => None,
        };
        self.changes += 1;
        self.logs[place].push(Entry { source: origin.0, record: origin.1, transaction });
        Ok(())
    }

    /// Adds offsets to a transaction. The outer error is the transaction coordinator's, the inner the group's.
    pub(super) fn add_offsets(
        &mut self,
        (id, epoch): (&str, i32),
        (member, generation): (u32, i32),
        offsets: &BTreeMap<usize, Offset>,
        now: Duration,
    ) -> Result<Result<(), Known>, Known> {
        self.open(id, epoch, now)?;
        if let Err(code) = self.check_member(member, generation) {
            return Ok(Err(code));
        }
        self.check_ownership(member, offsets);
        self.open(id, epoch, now)?.offsets.extend(offsets);
        Ok(Ok(()))
    }

    pub(super) fn end(&mut self, id: &str, epoch: i32, commit: bool) -> Result<(), Known> {
        self.check_epoch(id, epoch)?;
        let fate = if commit { Fate::Committed } else { Fate::Aborted };
        let producer = &self.producers[id];
        match (producer.open.is_some(), producer.last == Some(fate)) {
            (true, _) => self.end_open(id, fate),
            (false, true) => {}
            (false, false) => return Err(Known::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE),
        }
        Ok(())
    }

    fn end_open(&mut self, id: &str, fate: Fate) {
        let Some(producer) = self.producers.get_mut(id) else { return };
        let Some(open) = producer.open.take() else { return };
        producer.last = Some(fate);
        self.changes += 1;
        self.transactions[open.number] = fate;
        if fate == Fate::Committed {
            self.set_committed(&open.offsets);
        }
    }

    pub(super) fn end_timed_out(&mut self, now: Duration) -> usize {
        let timed_out = |producer: &Producer| {
            producer.open.as_ref().is_some_and(|open| now.saturating_sub(open.since) >= TRANSACTION_TIMEOUT)
        };
        let ids: Vec<_> =
            self.producers.iter().filter(|(_, producer)| timed_out(producer)).map(|(id, _)| id.clone()).collect();
        ids.iter().for_each(|id| self.fence(id));
        ids.len()
    }

    // ---- the group --------------------------------------------------------------------

    /// A new member; one of the same instance takes over from the old, whose id is fenced.
    pub(super) fn join(&mut self, process: usize, instance: Option<String>) -> u32 {
        self.members_ever += 1;
        let id = self.members_ever;
        let same = |member: &Member| instance.is_some() && member.instance == instance;
        let old = self.members.iter().find(|(_, member)| same(member)).map(|(id, _)| *id);
        let assigned = match old {
            Some(old) => {
                self.fenced.insert(old);
                self.members.remove(&old).expect("it was found").assigned
            }
            None => {
                self.generation += 1;
                BTreeSet::new()
            }
        };
        let to_assign = assigned.clone();
        let member = Member { process, instance, assigned, to_revoke: BTreeSet::new(), to_assign, died: None };
        self.members.insert(id, member);
        id
    }

    pub(super) fn remove(&mut self, member: u32) {
        if self.members.remove(&member).is_some() {
            self.generation += 1;
        }
    }

    pub(super) fn is_fenced(&self, member: u32) -> bool {
        self.fenced.contains(&member)
    }

    /// The process is no more, or has gone without leaving.
    pub(super) fn process_died(&mut self, process: usize, now: Duration) {
        for member in self.members.values_mut().filter(|member| member.process == process) {
            member.died = Some(now);
        }
    }

    /// Members whose process has died; those whose session has timed out first.
    pub(super) fn dead_members(&self, now: Duration) -> Vec<(u32, bool)> {
        let dead = |member: &Member| member.died.map(|died| now.saturating_sub(died) >= SESSION_TIMEOUT);
        self.members.iter().filter_map(|(id, member)| Some((*id, dead(member)?))).collect()
    }

    pub(super) fn unowned(&self) -> Vec<usize> {
        (0..PARTITIONS).filter(|at| self.members.values().all(|member| !member.assigned.contains(at))).collect()
    }

    pub(super) fn assign(&mut self, partition: usize, to: u32) {
        let member = self.members.get_mut(&to).expect("a member");
        member.assigned.insert(partition);
        member.to_assign.insert(partition);
        self.generation += 1;
    }

    /// A member is asked to give the partition back, which it does when it next polls.
    pub(super) fn ask_back(&mut self, partition: usize) {
        if let Some(owner) = self.members.values_mut().find(|member| member.assigned.contains(&partition)) {
            owner.to_revoke.insert(partition);
            self.generation += 1;
        }
    }

    fn check_member(&self, member: u32, generation: i32) -> Result<(), Known> {
        if self.fenced.contains(&member) {
            return Err(Known::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
        }
        if !self.members.contains_key(&member) {
            return Err(Known::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
        }
        if self.generation != generation {
            return Err(Known::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION);
        }
        Ok(())
    }

    /// The broker takes offsets of any partition; millrace must not offer those of another's.
    fn check_ownership(&mut self, member: u32, offsets: &BTreeMap<usize, Offset>) {
        let owned = &self.members[&member].assigned;
        if let Some(other) = offsets.keys().find(|at| self.asks_for_owners && !owned.contains(at)) {
            self.wrong = Some(format!("OWNERSHIP: member {member} commits in/{other}, which is not its own"));
        }
    }

    pub(super) fn commit(
        &mut self,
        (member, generation): (u32, i32),
        offsets: &BTreeMap<usize, Offset>,
    ) -> Result<(), Known> {
        self.check_member(member, generation)?;
        self.check_ownership(member, offsets);
        self.set_committed(offsets);
        Ok(())
    }

    fn set_committed(&mut self, offsets: &BTreeMap<usize, Offset>) {
        self.changes += 1;
        for (partition, to) in offsets {
            let from = std::mem::replace(&mut self.committed[*partition], *to);
            if from > *to {
                self.wrong =
                    Some(format!("OFFSETS: the committed offset of in/{partition} goes back from {from} to {to}"));
            }
        }
    }

    /// What is committed; unknown while a transaction on it is open.
    pub(super) fn stable_committed(&self, partition: usize) -> Option<Offset> {
        let mut open = self.producers.values().filter_map(|producer| producer.open.as_ref());
        (!open.any(|open| open.offsets.contains_key(&partition))).then_some(self.committed[partition])
    }
}
