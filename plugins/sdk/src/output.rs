//! What goes out: items that a transform makes of its records, gathered by destination and handed to the host packed, in
//! few calls at the end of the batch.
//!
//! The host sends the items of one source record in the order of the calls that brought them. So items are gathered in
//! **groups**, each of which becomes one call, and the items of one record only ever go to the group of the item before
//! or a later one: order is kept, and a batch that all goes one way is one call.

use crate::record::Column;

/// The route's default destinations, whatever an earlier step said.
pub const DEFAULT: &str = "";

/// Takes what a transform makes of the records of one batch.
#[derive(Debug, Default)]
pub struct Output {
    groups: Vec<Group>,
    /// Index of the record at hand, and the group that its last item went to.
    source: u32,
    group: usize,
}

impl Output {
    /// Makes an item with that value (`None`: a tombstone) of the record at hand and sends it to `destination`, a name of
    /// the route, or [`DEFAULT`]; where an earlier step was sending the record no longer counts. It keeps the record's key,
    /// headers and timestamp unless they are set on it.
    pub fn emit(&mut self, destination: &str, value: Option<&[u8]>) -> Item<'_> {
        let source = self.source;
        let group = self.group_for(destination, false);
        let index = group.sources.len() as u32;
        group.sources.push(source);
        group.values.push(value);
        Item { group, index, header: 0 }
    }

    /// Sends the record at hand to `destination` as it is, without copying it. With the verdict
    /// [`Keep`](crate::Verdict::Keep) it goes there besides where it was going; with [`Drop`](crate::Verdict::Drop) only there.
    pub fn forward(&mut self, destination: &str) {
        let source = self.source;
        self.group_for(destination, true).sources.push(source);
    }

    pub(crate) fn start_record(&mut self, source: usize) {
        self.source = source as u32;
        self.group = 0;
    }

    /// Hands everything over.
    pub(crate) fn finish(self, host: &mut impl Sink) {
        for group in self.groups {
            group.finish(host);
        }
    }

    fn group_for(&mut self, destination: &str, forward: bool) -> &mut Group {
        let fits = |group: &Group| group.forward == forward && group.destination == destination;
        let found = self.groups[self.group.min(self.groups.len())..].iter().position(fits);
        self.group = found.map_or(self.groups.len(), |after| self.group + after);
        if found.is_none() {
            self.groups.push(Group { destination: destination.to_owned(), forward, ..Group::default() });
        }
        &mut self.groups[self.group]
    }
}

/// An item just emitted; each method changes one thing about it.
#[derive(Debug)]
pub struct Item<'a> {
    group: &'a mut Group,
    index: u32,
    /// The group that its last header went to.
    header: usize,
}

impl Item<'_> {
    /// Sets the key; `None` makes it null.
    pub fn key(self, key: Option<&[u8]>) -> Self {
        run_at(&mut self.group.keys, self.index, Column::len).push(key);
        self
    }

    /// Sets the timestamp, milliseconds since 1970-01-01 UTC.
    pub fn timestamp(self, timestamp: i64) -> Self {
        run_at(&mut self.group.timestamps, self.index, Vec::len).push(timestamp);
        self
    }

    /// Sets the partition, for a destination with `partition: plugin`.
    pub fn partition(self, partition: i32) -> Self {
        run_at(&mut self.group.partitions, self.index, Vec::len).push(partition);
        self
    }

    /// Names the topic, for a destination with a `topic_pattern`, which it must match.
    pub fn topic(self, topic: &str) -> Self {
        run_at(&mut self.group.topics, self.index, Vec::len).push(topic.to_owned());
        self
    }

    /// Sets a header: where the first of that name stands (else last), in place of all of that name.
    pub fn header(self, name: &str, value: &[u8]) -> Self {
        self.change_header(false, name, Some(value))
    }

    /// Removes all headers of that name.
    pub fn remove_header(self, name: &str) -> Self {
        self.change_header(false, name, None)
    }

    /// Adds a header after those that are there; `None` gives it a null value.
    pub fn add_header(self, name: &str, value: Option<&[u8]>) -> Self {
        self.change_header(true, name, value)
    }

    /// Headers too have an order, and are grouped like items.
    fn change_header(mut self, add: bool, name: &str, value: Option<&[u8]>) -> Self {
        let groups = &mut self.group.headers;
        let found =
            groups[self.header.min(groups.len())..].iter().position(|group| group.add == add && group.name == name);
        let at = found.map_or(groups.len(), |after| self.header + after);
        if found.is_none() {
            groups.push(HeaderGroup { name: name.to_owned(), add, runs: Vec::new() });
        }
        run_at(&mut groups[at].runs, self.index, Column::len).push(value);
        // The next change of this item comes after this one.
        self.header = at + 1;
        self
    }
}

/// Where it all goes: the host (`wasm.rs`) or a test (`testing.rs`).
pub(crate) trait Sink {
    fn emit(&mut self, destination: &str, sources: &[u32], values: Column) -> u32;
    fn forward(&mut self, destination: &str, sources: &[u32]);
    fn set_keys(&mut self, first: u32, keys: Column);
    fn set_timestamps(&mut self, first: u32, timestamps: &[i64]);
    fn set_partitions(&mut self, first: u32, partitions: &[i32]);
    fn set_topics(&mut self, first: u32, topics: &[String]);
    fn set_header(&mut self, first: u32, name: &str, values: Column);
    fn add_header(&mut self, first: u32, name: &str, values: Column);
}

/// Items that go to the host in one call, or records forwarded in one.
#[derive(Debug, Default)]
struct Group {
    destination: String,
    forward: bool,
    sources: Vec<u32>,
    values: Column,
    keys: Runs<Column>,
    timestamps: Runs<Vec<i64>>,
    partitions: Runs<Vec<i32>>,
    topics: Runs<Vec<String>>,
    headers: Vec<HeaderGroup>,
}

/// One change of a header, on the items that have it.
#[derive(Debug)]
struct HeaderGroup {
    name: String,
    add: bool,
    runs: Runs<Column>,
}

/// What was set on some of a group's items: the first item and the values for it and those after it without a gap.
type Runs<T> = Vec<(u32, T)>;

/// The run that the value for item `index` is to be pushed to.
fn run_at<T: Default>(runs: &mut Runs<T>, index: u32, len: impl Fn(&T) -> usize) -> &mut T {
    let continues = runs.last().is_some_and(|(first, run)| first + len(run) as u32 == index);
    if !continues {
        runs.push((index, T::default()));
    }
    &mut runs.last_mut().expect("pushed where there was none").1
}

impl Group {
    fn finish(self, host: &mut impl Sink) {
        if self.forward {
            return host.forward(&self.destination, &self.sources);
        }
        let base = host.emit(&self.destination, &self.sources, self.values);
        self.keys.into_iter().for_each(|(first, keys)| host.set_keys(base + first, keys));
        self.timestamps.iter().for_each(|(first, timestamps)| host.set_timestamps(base + first, timestamps));
        self.partitions.iter().for_each(|(first, partitions)| host.set_partitions(base + first, partitions));
        self.topics.iter().for_each(|(first, topics)| host.set_topics(base + first, topics));
        for HeaderGroup { name, add, runs } in self.headers {
            for (first, values) in runs {
                match add {
                    true => host.add_header(base + first, &name, values),
                    false => host.set_header(base + first, &name, values),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Given, Sent};
    use crate::{NoConfig, Record, Transform, Verdict};

    /// A transform that is a function, to be run on records with the values "a", "b", "c" …
    struct Run(fn(&Record<'_>, &mut Output));

    impl Transform for Run {
        type Config = NoConfig;
        fn configure(_: NoConfig) -> Result<Self, String> {
            Err("made by hand".into())
        }
        fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
            (self.0)(record, output);
            Verdict::Drop
        }
    }

    fn run(on: &str, transform: fn(&Record<'_>, &mut Output)) -> Vec<Sent> {
        let given: Vec<_> = on.bytes().map(|value| Given::value([value]).header("h", "1").header("h", "2")).collect();
        testing::transform(&mut Run(transform), &given).sent
    }

    fn check_way(on: &str, transform: fn(&Record<'_>, &mut Output), expected: &str) {
        let show = |sent: &Sent| format!("{}>{}", sent.value.as_deref().unwrap().escape_ascii(), sent.destination);
        assert_eq!(run(on, transform).iter().map(show).collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn items_of_one_record_keep_the_order_of_the_calls() {
        let there_and_back = |_: &Record<'_>, output: &mut Output| {
            output.emit("x", Some(b"1"));
            output.emit("y", Some(b"2"));
            output.emit("x", Some(b"3"));
            output.forward("x");
            output.emit("x", Some(b"4"));
        };
        check_way("ab", there_and_back, "1>x 2>y 3>x a>x 4>x 1>x 2>y 3>x b>x 4>x");
        let by_value = |record: &Record<'_>, output: &mut Output| match record.value() {
            Some(b"a") => ["x", "y"].into_iter().for_each(|to| output.forward(to)),
            _ => ["y", "x"].into_iter().for_each(|to| output.forward(to)),
        };
        check_way("abab", by_value, "a>x a>y b>y b>x a>x a>y b>y b>x");
    }

    #[test]
    fn a_batch_that_goes_one_way_is_one_call() {
        let mut output = Output::default();
        for source in 0..100 {
            output.start_record(source);
            output.emit("x", None).key(None).add_header("n", Some(b"1")).add_header("n", None);
        }
        assert_eq!(output.groups.len(), 1);
        assert_eq!(output.groups[0].keys.len(), 1);
        assert_eq!(output.groups[0].headers.iter().map(|group| group.runs.len()).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn what_is_set_on_some_items_is_set_on_these_only() {
        let on_b = |record: &Record<'_>, output: &mut Output| {
            let item = output.emit("x", None);
            if record.value() == Some(b"b") {
                item.key(Some(b"")).timestamp(7).partition(3).topic("t").key(Some(b"k"));
            }
        };
        let sent = run("abcbb", on_b);
        for (item, changed) in sent.iter().zip([false, true, false, true, true]) {
            let expected = if changed { (Some(&b"k"[..]), 7, Some(3), Some("t")) } else { (None, -1, None, None) };
            assert_eq!((item.key.as_deref(), item.timestamp, item.partition, item.topic.as_deref()), expected);
            assert_eq!(item.value, None);
        }
    }

    #[test]
    fn headers_change_in_the_order_of_the_calls() {
        let rebuild = |record: &Record<'_>, output: &mut Output| {
            let item = output.emit("x", None);
            match record.value() {
                Some(b"a") => item.remove_header("h").add_header("n", None).add_header("h", Some(b"3")),
                Some(b"b") => item.add_header("h", Some(b"3")).add_header("n", Some(b"")),
                _ => item.header("n", b"").header("h", b"3").add_header("h", Some(b"4")),
            };
        };
        let sent = run("abc", rebuild);
        let some = |value: &str| Some(value.as_bytes().to_vec());
        let header = |name: &str, value| (name.to_owned(), value);
        assert_eq!(sent[0].headers, [header("n", None), header("h", some("3"))]);
        let expected = ["1", "2", "3"].map(|value| header("h", some(value)));
        assert_eq!(sent[1].headers[..3], expected);
        assert_eq!(sent[1].headers[3..], [header("n", some(""))]);
        assert_eq!(sent[2].headers, [header("h", some("3")), header("n", some("")), header("h", some("4"))]);
    }
}
