//! Notices a partition that has committed records ahead and gets none of them, as it has been seen to happen after
//! pauses and rebalances at an unlucky moment. What to do then is its caller's: a new client.
//!
//! Two things are compared: how far the client has fetched (its own statistics, which count marks of transactions and
//! aborted records, too) and where the log ends for a `read_committed` reader (asked of the broker, since a client that
//! does not fetch does not know). So neither a transaction upstream that stays open nor the marks of one that was aborted
//! looks like a standstill. It counts looks, not time: a process or machine that slept has not looked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::model::{Mutation, Offset, TopicName, TopicPartition};
use crate::pipeline::ports::{Trouble, TroubleKind};

use super::raw::Client;
use super::raw::admin::{Asked, Ends, Reader};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// So many looks in a row that find it behind and where it was: 60 s, in which a fetch has either ended or failed
/// (`socket.timeout.ms`).
const LOOKS: u32 = 4;

/// The client's `statistics.interval.ms`, which is when there is something to look at.
pub(super) fn look_every() -> Duration {
    // (a test does not wait for a minute)
    if Mutation::Deaf.is_on() { LOOK_EVERY / 40 } else { LOOK_EVERY }
}

/// Looks after one consumer's partitions.
#[derive(Default)]
pub(super) struct Watchdog {
    watched: Watched,
    asked: Option<Asked<Ends>>,
    drained: bool,
}

impl Watchdog {
    /// All that the client had fetched was handed out: what it does not have now it has not fetched.
    pub(super) fn drained(&mut self) {
        self.drained = true;
    }

    /// Looks, where it is time to. `flows`: whether a partition (fetched so far, or not yet anywhere) should get records.
    pub(super) fn look(
        &mut self,
        client: &Arc<Client>,
        flows: impl Fn(&TopicPartition, Option<Offset>) -> bool,
    ) -> Option<Trouble> {
        // (the next question would take the place of one that is answered)
        let answer = self.asked.as_ref().and_then(|asked| asked.answer(Duration::ZERO));
        let stalled = answer.and_then(|answer| {
            self.asked = None;
            self.watched.told(&answer.ok()?.0, Instant::now())
        });
        if let Some(statistics) = client.context().take_statistics() {
            let drained = std::mem::take(&mut self.drained);
            let flowing = positions(&statistics).into_iter().filter(|(at, position)| flows(at, *position));
            let ask = self.watched.look(flowing, drained);
            self.asked =
                if ask.is_empty() { None } else { Ends::ask(client, Reader::Committed, ask, look_every() / 2) };
        }
        stalled
    }
}

/// How far each partition is fetched, as the client's statistics tell; none of a partition without a leader.
fn positions(statistics: &str) -> Vec<(TopicPartition, Option<Offset>)> {
    #[derive(Deserialize)]
    struct Statistics {
        #[serde(default)]
        topics: HashMap<String, Topic>,
    }
    #[derive(Deserialize)]
    struct Topic {
        partitions: HashMap<String, Partition>,
    }
    #[derive(Deserialize)]
    struct Partition {
        partition: i32,
        leader: i32,
        next_offset: Offset,
    }
    // They are the library's: were they ever to change, there is nothing to see, and nothing breaks.
    let Ok(Statistics { topics }) = serde_json::from_str(statistics) else { return Vec::new() };
    let of_topic = |(name, topic): (String, Topic)| {
        let name = TopicName::new(name).ok()?;
        let led = topic.partitions.into_values().filter(|at| at.partition >= 0 && at.leader >= 0);
        let position = move |at: Partition| {
            (
                TopicPartition { topic: name.clone(), partition: at.partition },
                Some(at.next_offset).filter(|at| *at >= 0),
            )
        };
        Some(led.map(position))
    };
    topics.into_iter().filter_map(of_topic).flatten().collect()
}

/// Partitions as the last look found them.
#[derive(Default)]
struct Watched(BTreeMap<TopicPartition, Standing>);

#[derive(Clone)]
struct Standing {
    /// Up to where it was fetched; `None`: from nowhere yet.
    position: Option<Offset>,
    /// Whether it was asked where its log ends, and there is no answer yet.
    asked: bool,
    /// How many looks in a row found it here with records ahead; and the first of them.
    behind: Option<(u32, Instant)>,
}

impl Watched {
    /// Takes up how far those that flow are fetched; which of them stand where they stood, and have to be asked about.
    fn look(
        &mut self,
        flowing: impl Iterator<Item = (TopicPartition, Option<Offset>)>,
        drained: bool,
    ) -> Vec<TopicPartition> {
        let before = std::mem::take(&mut self.0);
        for (at, position) in flowing {
            let stood = before.get(&at).filter(|before| drained && before.position == position);
            let standing = match stood {
                // (a question without an answer: the broker is in trouble, which is not the client's)
                Some(Standing { asked: true, .. }) => Standing { position, asked: true, behind: None },
                Some(before) => Standing { asked: true, ..before.clone() },
                None => Standing { position, asked: false, behind: None },
            };
            self.0.insert(at, standing);
        }
        self.0.iter().filter(|(_, standing)| standing.asked).map(|(at, _)| at.clone()).collect()
    }

    /// Takes up where logs end; the trouble with one that has been behind for too long.
    fn told(&mut self, ends: &[(TopicPartition, Offset)], now: Instant) -> Option<Trouble> {
        for (at, standing) in self.0.iter_mut().filter(|(_, standing)| standing.asked) {
            standing.asked = false;
            let ahead =
                ends.iter().find(|(of, end)| of == at && standing.position.is_none_or(|position| *end > position));
            standing.behind = ahead.map(|_| standing.behind.map_or((1, now), |(looks, since)| (looks + 1, since)));
            if let (Some((_, end)), Some((looks, since))) = (ahead, standing.behind)
                && looks >= LOOKS
            {
                return Some(stalled(at, standing.position, *end, now.duration_since(since)));
            }
        }
        None
    }
}

fn stalled(at: &TopicPartition, position: Option<Offset>, end: Offset, time: Duration) -> Trouble {
    let position = position.map_or("was never fetched".to_owned(), |position| format!("stands at offset {position}"));
    let seconds = time.as_secs();
    Trouble {
        code: "STALLED".into(),
        message: format!(
            "{at} {position}, its log holds committed records up to offset {end}, and nothing has come of them for \
             {seconds} s: the client is made anew"
        ),
        kind: TroubleKind::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: TopicName::new("t").unwrap(), partition }
    }

    /// What is found at a look: positions of partitions, whether all was handed out, and the ends that brokers answer.
    type Look<'a> = (&'a [(i32, i64)], bool, Option<&'a [(i32, i64)]>);

    /// At which look (from 1) a standstill is told, and what is said.
    fn check(looks: &[Look<'_>]) -> Option<(usize, String)> {
        let mut watched = Watched::default();
        let began = Instant::now();
        for (nth, (positions, drained, ends)) in looks.iter().enumerate() {
            let now = began + LOOK_EVERY * u32::try_from(nth).unwrap();
            let positions = positions.iter().map(|(p, offset)| (at(*p), Some(*offset).filter(|offset| *offset >= 0)));
            let asked = watched.look(positions, *drained);
            let Some(ends) = ends else { continue };
            let ends: Vec<_> = ends.iter().map(|(p, end)| (at(*p), *end)).filter(|(p, _)| asked.contains(p)).collect();
            if let Some(trouble) = watched.told(&ends, now) {
                return Some((nth + 1, trouble.message));
            }
        }
        None
    }

    /// The same look, so many times.
    fn again<'a>(look: Look<'a>, times: usize) -> Vec<Look<'a>> {
        vec![look; times]
    }

    #[test]
    fn a_partition_with_records_ahead_that_does_not_move_for_a_minute_is_told_with_its_position_and_the_end_of_its_log()
    {
        // The first look finds where it stands, the second that it still does.
        let (look, said) = check(&again((&[(0, 7), (1, 5)], true, Some(&[(0, 7), (1, 9)])), 9)).unwrap();
        assert_eq!(look, 5);
        let expected = "t/1 stands at offset 5, its log holds committed records up to offset 9, and nothing has come of \
                        them for 60 s: the client is made anew";
        assert_eq!(said, expected);
    }

    #[test]
    fn a_partition_that_was_never_fetched_is_told_too() {
        let (_, said) = check(&again((&[(0, -1)], true, Some(&[(0, 0)])), 9)).unwrap();
        assert!(said.starts_with("t/0 was never fetched"), "{said}");
    }

    #[test]
    fn one_that_is_at_the_end_that_committed_readers_see_is_idle_however_long() {
        // (so it is while a transaction upstream is open: its end stands, too)
        assert_eq!(check(&again((&[(0, 7)], true, Some(&[(0, 7)])), 100)), None);
    }

    #[test]
    fn one_step_forward_begins_the_count_anew() {
        let mut looks = again((&[(0, 7)], true, Some(&[(0, 9)])), 4);
        looks.extend(again((&[(0, 8)], true, Some(&[(0, 9)])), 4));
        assert_eq!(check(&looks), None);
    }

    #[test]
    fn a_look_at_which_it_did_not_flow_or_its_records_may_be_waiting_for_the_worker_or_nobody_answers_begins_it_anew() {
        for look in [(&[][..], true, Some(&[][..])), (&[(0, 7)], false, Some(&[(0, 9)])), (&[(0, 7)], true, None)] {
            let mut looks = again((&[(0, 7)], true, Some(&[(0, 9)])), 4);
            looks.push(look);
            looks.extend(again((&[(0, 7)], true, Some(&[(0, 9)])), 3));
            assert_eq!(check(&looks), None, "{look:?}");
        }
    }

    #[test]
    fn positions_are_read_from_the_clients_statistics() {
        let statistics = r#"{ "name": "c", "brokers": { "b:1/1": { "toppars": {} } }, "topics": { "t": { "topic": "t",
            "partitions": { "0": { "partition": 0, "leader": 1, "next_offset": 12, "fetch_state": "active" },
                            "1": { "partition": 1, "leader": -1, "next_offset": 5 },
                            "2": { "partition": 2, "leader": 2, "next_offset": -1001 },
                            "-1": { "partition": -1, "leader": -1, "next_offset": -1001 } } } } }"#;
        let mut found = positions(statistics);
        found.sort();
        assert_eq!(found, [(at(0), Some(12)), (at(2), None)]);
        assert_eq!(positions("nothing like it"), []);
    }
}
