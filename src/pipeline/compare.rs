//! How what two pipelines make of the same record differs.

use std::fmt;

use super::chain::Processed;
use crate::config::settings::Destination;
use crate::model::{DestinationName, Fault, Item, Items, SendTo};

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Difference {
    /// One is at fault and the other is not, or with another code.
    Fault,
    /// They make another number of outputs.
    Count,
    /// An output goes elsewhere: another destination, topic or partition that a plugin asked for.
    Destination,
    /// An output's key.
    Key,
    /// An output's value.
    Value,
    /// An output's headers, or their order.
    Headers,
    /// An output's timestamp.
    Timestamp,
}

impl Difference {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Fault, Self::Count, Self::Destination, Self::Key, Self::Value, Self::Headers, Self::Timestamp];

    /// Its name, as shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Count => "count",
            Self::Destination => "destination",
            Self::Key => "key",
            Self::Value => "value",
            Self::Headers => "headers",
            Self::Timestamp => "timestamp",
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a pipeline has made of one record.
pub struct Made<'a> {
    /// What is left of it, in order.
    pub outputs: Vec<(&'a Items, &'a Item)>,
    /// Why not, where it is at fault.
    pub fault: Option<&'a Fault>,
    /// The route's destinations.
    pub destinations: &'a [Destination],
}

impl<'a> Made<'a> {
    /// Of record `index` of a batch.
    pub fn of(processed: &'a [Processed], index: usize, destinations: &'a [Destination]) -> Self {
        let faults = processed.iter().flat_map(|done| &done.faults);
        let fault = faults.into_iter().find(|(source, _)| *source as usize == index).map(|(_, fault)| fault);
        let items = processed.iter().flat_map(|done| done.items.list.iter().map(move |item| (&done.items, item)));
        Self { outputs: items.filter(|(_, item)| item.source as usize == index).collect(), fault, destinations }
    }

    /// Where an output goes.
    pub fn destinations_of(&self, item: &Item) -> Vec<&'a DestinationName> {
        match item.send_to {
            SendTo::Named(index) => self.destinations.get(usize::from(index)).map(|to| &to.name).into_iter().collect(),
            SendTo::Unset | SendTo::Defaults => {
                self.destinations.iter().filter(|to| to.default).map(|to| &to.name).collect()
            }
        }
    }

    /// How `other`, of the same record, differs: each kind once, nothing where both are the same.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let code = |made: &Self| made.fault.map(|fault| fault.code);
        if code(self) != code(other) {
            return vec![Difference::Fault];
        }
        if self.outputs.len() != other.outputs.len() {
            return vec![Difference::Count];
        }
        let pairs = || self.outputs.iter().zip(&other.outputs);
        let headers = |(items, item): &(&Items, &Item)| -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
            let header = |nth| items.header(item, nth);
            (0..items.header_count(item))
                .map(header)
                .map(|(name, value)| (name.into(), value.map(Into::into)))
                .collect()
        };
        let differs = |kind: &Difference| match kind {
            Difference::Fault | Difference::Count => false,
            Difference::Destination => pairs().any(|((_, one), (_, two))| {
                self.destinations_of(one) != other.destinations_of(two)
                    || (&one.topic, one.partition) != (&two.topic, two.partition)
            }),
            Difference::Key => pairs().any(|((a, one), (b, two))| a.key(one) != b.key(two)),
            Difference::Value => pairs().any(|((a, one), (b, two))| a.value(one) != b.value(two)),
            Difference::Headers => pairs().any(|(one, two)| headers(one) != headers(two)),
            Difference::Timestamp => pairs().any(|((a, one), (b, two))| a.timestamp(one) != b.timestamp(two)),
        };
        Difference::ALL.into_iter().filter(differs).collect()
    }
}
