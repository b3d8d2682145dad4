//! How what two pipelines make of the same record differs.

use std::borrow::Cow;
use std::fmt;

use super::chain::Processed;
use super::destinations::undecided;
use crate::config::settings::Destination;
use crate::model::{DestinationName, Fault, Item, Items, SendTo};
use crate::policy::Values;

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

    /// Their names, as shown.
    pub const WORDS: [&'static str; Self::ALL.len()] =
        ["fault", "count", "destination", "key", "value", "headers", "timestamp"];

    /// Its name, as shown.
    pub const fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a pipeline has made of some records of a batch: what is left of them, and those at fault.
pub type Part<'a> = (&'a Items, &'a [(u32, Fault)]);

impl Processed {
    /// As far as it is compared.
    pub fn part(&self) -> Part<'_> {
        (&self.items, &self.faults)
    }
}

/// What a pipeline has made of one record.
pub struct Made<'a> {
    /// What is sent, in order.
    pub outputs: Vec<Sent<'a>>,
    /// Why nothing is, where it is at fault.
    pub fault: Option<Cow<'a, Fault>>,
}

/// An output.
pub struct Sent<'a> {
    /// With the bytes of its batch.
    pub items: &'a Items,
    /// What it is.
    pub item: &'a Item,
    /// Where it goes, at least one.
    pub to: Vec<&'a DestinationName>,
}

impl<'a> Made<'a> {
    /// Of record `index` of a batch, of which `parts` are what was made. An output that no destination takes is none; a
    /// destination's condition that is neither true nor false is a fault, as in a route.
    pub fn of(parts: impl IntoIterator<Item = Part<'a>>, index: usize, destinations: &'a [Destination]) -> Self {
        let mut made = Self { outputs: Vec::new(), fault: None };
        for (items, faults) in parts {
            if let Ok(place) = faults.binary_search_by_key(&index, |(source, _)| *source as usize) {
                made.fault = Some(Cow::Borrowed(&faults[place].1));
            }
            let first = items.list.partition_point(|item| (item.source as usize) < index);
            let of_record = items.list[first..].iter().take_while(|item| item.source as usize == index);
            let mut values = Values::default();
            for item in of_record {
                match takers(items, item, destinations, &mut values) {
                    Ok(to) if to.is_empty() => {}
                    Ok(to) => made.outputs.push(Sent { items, item, to }),
                    Err(fault) => made.fault = made.fault.or(Some(Cow::Owned(fault))),
                }
            }
        }
        if made.fault.is_some() {
            made.outputs.clear();
        }
        made
    }

    /// How `other`, of the same record, differs: each kind once, nothing where both are the same.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let code = |made: &Self| made.fault.as_ref().map(|fault| fault.code);
        if code(self) != code(other) {
            return vec![Difference::Fault];
        }
        if self.outputs.len() != other.outputs.len() {
            return vec![Difference::Count];
        }
        let any = |differs: &dyn Fn(&Sent<'_>, &Sent<'_>) -> bool| {
            self.outputs.iter().zip(&other.outputs).any(|(one, two)| differs(one, two))
        };
        let differs = |kind: &Difference| match kind {
            Difference::Fault | Difference::Count => false,
            Difference::Destination => any(&|one, two| {
                one.to != two.to || (&one.item.topic, one.item.partition) != (&two.item.topic, two.item.partition)
            }),
            Difference::Key => any(&|one, two| one.items.key(one.item) != two.items.key(two.item)),
            Difference::Value => any(&|one, two| one.items.value(one.item) != two.items.value(two.item)),
            Difference::Headers => any(&|one, two| !one.headers().eq(two.headers())),
            Difference::Timestamp => any(&|one, two| one.items.timestamp(one.item) != two.items.timestamp(two.item)),
        };
        Difference::ALL.into_iter().filter(differs).collect()
    }
}

impl Sent<'_> {
    fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        (0..self.items.header_count(self.item)).map(|nth| self.items.header(self.item, nth))
    }
}

/// The destinations that take an item.
fn takers<'a>(
    items: &Items,
    item: &Item,
    destinations: &'a [Destination],
    values: &mut Values,
) -> Result<Vec<&'a DestinationName>, Fault> {
    let meant = destinations.iter().enumerate().filter(|(number, to)| match item.send_to {
        SendTo::Named(named) => usize::from(named) == *number,
        SendTo::Unset | SendTo::Defaults => to.default,
    });
    let mut takers = Vec::new();
    for (_, to) in meant {
        let takes = to.when.as_ref().map_or(Ok(true), |when| when.holds(items, item, values));
        if takes.map_err(|why| undecided(&to.name, &why))? {
            takers.push(&to.name);
        }
    }
    Ok(takers)
}
