//! What has arrived, held against what was sent. Pure: a loss, a double, a disorder is found in lists of records, wherever they
//! come from.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::kafka::ConsumedRecord;

/// What marks a record that the plugin can never take.
pub(crate) const POISON: &str = "poison";

/// A record as the checkers know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) id: usize,
    pub(crate) is_poison: bool,
}

impl Seen {
    /// The value is the number, and the mark where there is one.
    pub(crate) fn of(record: &ConsumedRecord) -> Self {
        let text = record.text();
        let (id, mark) = text.split_once(' ').unwrap_or((&text, ""));
        let id = id.parse().unwrap_or_else(|_| panic!("a record of ours: {record:?}"));
        Self { partition: record.partition, key: record.key_text(), id, is_poison: mark == POISON }
    }
}

/// How what has arrived differs from what was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Sent, and not arrived.
    pub(crate) lost: Vec<usize>,
    /// Arrived more often than it was sent, once for each time.
    pub(crate) doubled: Vec<usize>,
    /// First copies that arrived, from one partition in another, after a record that was sent after them.
    pub(crate) disordered: Vec<usize>,
    /// Keys that arrived in more than one partition.
    pub(crate) moved: Vec<String>,
    /// Arrived, and never sent.
    pub(crate) foreign: Vec<usize>,
}

/// Compares. Both are in the order of their partitions' logs.
pub(crate) fn compare<'a>(sent: impl IntoIterator<Item = &'a Seen>, arrived: &[Seen]) -> Difference {
    let mut difference = Difference::default();
    // Where each stands in the source (its partition, its place), and how many of it are still to come.
    let mut expected: BTreeMap<usize, (i32, usize, usize)> = BTreeMap::new();
    for (place, record) in sent.into_iter().enumerate() {
        expected.entry(record.id).or_insert((record.partition, place, 0)).2 += 1;
    }
    let mut lanes: BTreeMap<(i32, i32), usize> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut partitions: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
    for record in arrived {
        partitions.entry(&record.key).or_default().insert(record.partition);
        let Some((from, place, left)) = expected.get_mut(&record.id) else {
            difference.foreign.push(record.id);
            continue;
        };
        match left.checked_sub(1) {
            Some(rest) => *left = rest,
            None => difference.doubled.push(record.id),
        }
        if seen.insert(record.id) {
            let last = lanes.entry((*from, record.partition)).or_insert(*place);
            if *last > *place {
                difference.disordered.push(record.id);
            }
            *last = (*last).max(*place);
        }
    }
    let missing = expected.iter().filter(|(_, (_, _, left))| *left > 0);
    difference.lost = missing.map(|(id, _)| *id).collect();
    let moved = partitions.into_iter().filter(|(_, partitions)| partitions.len() > 1);
    difference.moved = moved.map(|(key, _)| key.to_owned()).collect();
    difference
}

impl Difference {
    /// What is to be said about it, each with the name of what was checked and some of the records.
    pub(crate) fn complaints(&self, what: &str) -> Vec<String> {
        let ids = [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("disordered", &self.disordered),
            ("foreign", &self.foreign),
        ];
        let mut all: Vec<String> = ids
            .into_iter()
            .filter(|(_, ids)| !ids.is_empty())
            .map(|(how, ids)| format!("{what}: {} {how}: {:?}", ids.len(), &ids[..ids.len().min(20)]))
            .collect();
        if !self.moved.is_empty() {
            all.push(format!("{what}: {} keys in more than one partition: {:?}", self.moved.len(), self.moved));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records of two source partitions; the key is the id modulo 4.
    fn sent() -> Vec<Seen> {
        let record = |id: usize| seen(id, (id % 2) as i32);
        [0, 2, 4, 6, 1, 3, 5, 7].map(record).to_vec()
    }

    fn seen(id: usize, partition: i32) -> Seen {
        Seen { partition, key: (id % 4).to_string(), id, is_poison: false }
    }

    fn arrived(ids: &[usize]) -> Vec<Seen> {
        ids.iter().map(|id| seen(*id, 0)).collect()
    }

    fn check(ids: &[usize], expected: Difference) {
        assert_eq!(compare(&sent(), &arrived(ids)), expected, "{ids:?}");
        let is_clean = expected == Difference::default();
        assert_eq!(expected.complaints("what").is_empty(), is_clean);
    }

    #[test]
    fn what_arrives_once_and_in_order_of_its_source_is_clean_and_partitions_may_overtake_each_other() {
        check(&[0, 2, 4, 6, 1, 3, 5, 7], Difference::default());
        check(&[1, 3, 0, 5, 2, 4, 7, 6], Difference::default());
    }

    #[test]
    fn a_planted_loss_is_found() {
        check(&[0, 2, 6, 1, 3, 5, 7], Difference { lost: vec![4], ..Difference::default() });
        check(&[0, 2, 4, 6, 1, 3, 5], Difference { lost: vec![7], ..Difference::default() });
    }

    #[test]
    fn a_planted_double_is_found_and_its_later_copy_is_no_disorder() {
        check(&[0, 2, 4, 2, 6, 1, 3, 5, 7], Difference { doubled: vec![2], ..Difference::default() });
        check(&[0, 0, 0, 2, 4, 6, 1, 3, 5, 7], Difference { doubled: vec![0, 0], ..Difference::default() });
    }

    #[test]
    fn a_planted_disorder_is_found_and_only_where_it_is_one() {
        check(&[0, 4, 2, 6, 1, 3, 5, 7], Difference { disordered: vec![2], ..Difference::default() });
        check(&[0, 2, 4, 6, 7, 1, 3, 5], Difference { disordered: vec![1, 3, 5], ..Difference::default() });
    }

    #[test]
    fn a_key_in_two_partitions_and_a_record_of_nobody_are_found() {
        let mut all = arrived(&[0, 2, 4, 6, 1, 3, 5, 7]);
        all[2].partition = 1;
        assert_eq!(compare(&sent(), &all).moved, ["0"]);
        check(&[0, 2, 4, 6, 1, 3, 5, 7, 99], Difference { foreign: vec![99], ..Difference::default() });
    }

    #[test]
    fn a_record_that_the_source_holds_twice_may_arrive_twice() {
        let source = [seen(0, 0), seen(0, 0)];
        assert_eq!(compare(&source, &arrived(&[0, 0])), Difference::default());
        assert_eq!(compare(&source, &arrived(&[0])).lost, [0]);
        assert_eq!(compare(&source, &arrived(&[0, 0, 0])).doubled, [0]);
    }
}
