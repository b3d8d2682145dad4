//! A route that puts a stamp on every record, by which it shows which configuration the record met. Knows nothing about
//! how configurations change.

use std::cell::RefCell;
use std::time::Duration;

use super::config::head;
use super::kafka::{ConsumedRecord, Isolation, Sender, shared};
use super::{unique, wait_for};

/// The route's name.
pub(crate) const ROUTE: &str = "stamped";
/// The header that holds the stamp.
const HEADER: &str = "stamp";

/// The route's topics, and its YAML.
pub(crate) struct Stamped {
    pub(crate) source: String,
    pub(crate) destination: String,
    prefix: String,
    probes: RefCell<Probes>,
}

struct Probes {
    sender: Sender,
    sent: usize,
}

impl Stamped {
    /// Its topics, of one partition each: what arrives is one sequence. The destination keeps the time at which a record
    /// came, so that it also shows for how long nothing did.
    pub(crate) fn new(name: &str) -> Self {
        let [source, destination] = [unique(name), unique(&format!("{name}-out"))];
        shared().create_topic(&source, 1, &[("retention.ms", "-1")]);
        let properties = [("retention.ms", "-1"), ("message.timestamp.type", "LogAppendTime")];
        shared().create_topic(&destination, 1, &properties);
        let probes = RefCell::new(Probes { sender: shared().sender(&source), sent: 0 });
        Self { source, destination, prefix: unique("it"), probes }
    }

    /// What the configuration begins with.
    pub(crate) fn head(&self) -> String {
        head(&shared().bootstrap, &self.prefix)
    }

    /// The route; a plugin `stamp` has to stand elsewhere. Ends with its last line's end, so that more may follow.
    pub(crate) fn route(&self, stamp: &str) -> String {
        let Self { source, destination, .. } = self;
        format!(
            "routes:
  {ROUTE}:
    source: {{ topics: [{source}], start: earliest }}
    pipeline:
      - {{ plugin: stamp, config: {{ name: {HEADER}, value: \"{stamp}\" }} }}
    destinations: [{{ topic: {destination} }}]
    on_error: skip
"
        )
    }

    /// Its group.
    pub(crate) fn group(&self) -> String {
        format!("{}.{ROUTE}", self.prefix)
    }

    /// Sends a record through the route, and answers the stamp with which it arrives.
    #[track_caller]
    pub(crate) fn probe(&self, timeout: Duration) -> String {
        let Probes { sender, sent } = &mut *self.probes.borrow_mut();
        let value = format!("probe-{sent}");
        *sent += 1;
        sender.send(&value);
        sender.await_stored();
        wait_for(timeout, &format!("{value} arrives in {}", self.destination), || {
            self.arrived().iter().rev().find(|record| record.text() == value).map(stamp_of)
        })
    }

    /// All that has arrived, in order.
    pub(crate) fn arrived(&self) -> Vec<ConsumedRecord> {
        shared().kcat_consume(&self.destination, Isolation::ReadCommitted)
    }
}

/// The stamp of a record; `""` where it has none.
pub(crate) fn stamp_of(record: &ConsumedRecord) -> String {
    let header = record.headers.iter().find(|(name, _)| name == HEADER);
    String::from_utf8(header.and_then(|(_, value)| value.clone()).unwrap_or_default()).expect("a stamp is text")
}
