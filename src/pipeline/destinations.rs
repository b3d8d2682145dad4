//! A route's destinations: which of them an item goes to, which topic that is, and which partition.

use std::collections::HashMap;

use super::ports::{LookUp, TopicError, TopicInfo, Trouble};
use crate::config::settings::{Destination, Target};
use crate::model::{DestinationName, Fault, FaultCode, Item, Items, SendTo, TopicName};
use crate::policy::{Partitioning, Values, partition_for_key};

/// Where one item goes: one entry an item and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// The source record.
    pub source: u32,
    /// Its place in the batch's items.
    pub item: u32,
    /// Which destination.
    pub destination: u16,
    /// [`TopicInfo::slot`].
    pub topic: u16,
    /// The partition.
    pub partition: i32,
}

/// Why an item cannot be sent where it should go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misrouted {
    /// The plugin's doing.
    Fault(Fault),
    /// A destination's condition is neither true nor false.
    Undecided(Fault),
    /// The destination has too few partitions for `partition: source`: the source partition stops before this record.
    NoCounterpart(String),
    /// The cluster cannot be asked now.
    Trouble(Trouble),
}

/// All destinations of a route, with what a session knows of their topics.
pub struct Destinations {
    list: Vec<Destination>,
    /// Turns of `round_robin` and of null keys, one counter a destination.
    turns: Vec<i32>,
    /// Topics of destinations that have one.
    fixed: Vec<Option<TopicInfo>>,
    /// Topics that plugins have named, and the dead-letter topic.
    known: HashMap<TopicName, TopicInfo>,
}

impl Destinations {
    /// Destinations in the order of the YAML.
    pub fn new(list: Vec<Destination>) -> Self {
        let (turns, fixed) = (vec![0; list.len()], vec![None; list.len()]);
        Self { list, turns, fixed, known: HashMap::new() }
    }

    /// The destinations.
    pub fn list(&self) -> &[Destination] {
        &self.list
    }

    /// Takes up partition counts that have changed. Between transactions only.
    pub fn refresh(&mut self, look_up: &mut LookUp<'_>) {
        self.fixed.fill(None);
        // (an error: it is told when a record wants to go there)
        self.known.retain(|name, info| {
            look_up(name).is_ok_and(|now| {
                *info = now;
                true
            })
        });
    }

    /// Appends to `routed` where an item goes, which has this number. Nothing appended and no error: no destination takes it.
    ///
    /// # Errors
    /// [`Misrouted`]; what was appended for the item is taken back.
    pub fn route(
        &mut self,
        items: &Items,
        item: (usize, &Item),
        values: &mut Values,
        look_up: &mut LookUp<'_>,
        routed: &mut Vec<Routed>,
    ) -> Result<(), Misrouted> {
        let before = routed.len();
        let sent = match item.1.send_to {
            SendTo::Named(number) => self.route_to(number, items, item, values, look_up, routed),
            SendTo::Unset | SendTo::Defaults => self.route_to_defaults(items, item, values, look_up, routed),
        };
        sent.inspect_err(|_| routed.truncate(before))
    }

    /// Where a record goes that is sent to `topic` outside the route's destinations: a dead letter, placed by its key.
    ///
    /// # Errors
    /// The topic is not there, or the cluster cannot be asked now.
    pub fn route_dead_letter(
        &mut self,
        topic: &TopicName,
        key: Option<&[u8]>,
        look_up: &mut LookUp<'_>,
    ) -> Result<(u16, i32), Trouble> {
        let info = self.look_up(topic, look_up).map_err(|error| expected(error, topic))?;
        let partition =
            key.map_or_else(|| fastrand::i32(0..info.partitions), |key| partition_for_key(key, info.partitions));
        Ok((info.slot, partition))
    }

    fn route_to_defaults(
        &mut self,
        items: &Items,
        item: (usize, &Item),
        values: &mut Values,
        look_up: &mut LookUp<'_>,
        routed: &mut Vec<Routed>,
    ) -> Result<(), Misrouted> {
        for number in 0..self.list.len() {
            if self.list[number].default {
                self.route_to(number as u16, items, item, values, look_up, routed)?;
            }
        }
        Ok(())
    }

    fn route_to(
        &mut self,
        number: u16,
        items: &Items,
        (index, item): (usize, &Item),
        values: &mut Values,
        look_up: &mut LookUp<'_>,
        routed: &mut Vec<Routed>,
    ) -> Result<(), Misrouted> {
        if !self.takes(number, items, item, values)? {
            return Ok(());
        }
        let info = self.topic_for(number, item, look_up)?;
        let partition = self.partition_for(number, items, item, info)?;
        routed.push(Routed {
            source: item.source,
            item: index as u32,
            destination: number,
            topic: info.slot,
            partition,
        });
        Ok(())
    }

    /// Whether the destination's condition holds.
    fn takes(&self, number: u16, items: &Items, item: &Item, values: &mut Values) -> Result<bool, Misrouted> {
        let destination = &self.list[number as usize];
        let Some(when) = &destination.when else { return Ok(true) };
        when.holds(items, item, values).map_err(|why| Misrouted::Undecided(undecided(&destination.name, &why)))
    }

    fn topic_for(&mut self, number: u16, item: &Item, look_up: &mut LookUp<'_>) -> Result<TopicInfo, Misrouted> {
        if let Some(info) = self.fixed[number as usize] {
            return Ok(info);
        }
        let destination = &self.list[number as usize];
        let named = match (&destination.target, &item.topic) {
            (Target::Topic(name), _) => {
                let name = name.clone();
                let found = self.look_up(&name, look_up);
                let info = found.map_err(|error| Misrouted::Trouble(expected(error, &name)))?;
                self.fixed[number as usize] = Some(info);
                return Ok(info);
            }
            (Target::Pattern(pattern), Some(named)) if pattern.is_match(named.as_str()) => named,
            (Target::Pattern(pattern), Some(named)) => {
                return Err(bad_output(format!(
                    "topic \"{named}\" does not match the topic_pattern \"{pattern}\" of destination \"{}\"",
                    destination.name
                )));
            }
            (Target::Pattern(_), None) => {
                return Err(bad_output(format!(
                    "destination \"{}\" has a topic_pattern and no plugin named a topic",
                    destination.name
                )));
            }
        };
        self.look_up(named, look_up).map_err(|error| match error {
            TopicError::Unknown => {
                bad_output(format!("topic \"{named}\" does not exist, and millrace creates no topic"))
            }
            TopicError::Trouble(trouble) => Misrouted::Trouble(trouble),
        })
    }

    fn look_up(&mut self, name: &TopicName, look_up: &mut LookUp<'_>) -> Result<TopicInfo, TopicError> {
        if let Some(info) = self.known.get(name) {
            return Ok(*info);
        }
        let info = look_up(name)?;
        self.known.insert(name.clone(), info);
        Ok(info)
    }

    fn partition_for(&mut self, number: u16, items: &Items, item: &Item, info: TopicInfo) -> Result<i32, Misrouted> {
        let destination = &self.list[number as usize];
        let count = info.partitions;
        match destination.partition {
            Partitioning::Plugin => match item.partition {
                Some(partition) if (0..count).contains(&partition) => return Ok(partition),
                Some(partition) => {
                    return Err(bad_output(format!(
                        "partition {partition} is out of range: destination \"{}\" has {count} partitions",
                        destination.name
                    )));
                }
                None => {}
            },
            Partitioning::Source => {
                let redriven = items.source.redriven(item.source as usize).map(|redriven| redriven.from.partition);
                let partition = redriven.unwrap_or_else(|| items.source.topic_partition().partition);
                if partition >= count {
                    return Err(Misrouted::NoCounterpart(format!(
                        "destination \"{}\" has {count} partitions and `partition: source` needs partition {partition}: \
                         raise it to at least {} partitions",
                        destination.name,
                        partition + 1
                    )));
                }
                return Ok(partition);
            }
            Partitioning::RoundRobin => return Ok(self.turn(number, count)),
            Partitioning::Key => {}
        }
        match items.key(item) {
            Some(key) => Ok(partition_for_key(key, count)),
            // Nothing orders records without a key, so they spread evenly.
            None => Ok(self.turn(number, count)),
        }
    }

    fn turn(&mut self, number: u16, count: i32) -> i32 {
        let turn = &mut self.turns[number as usize];
        *turn = (*turn + 1) % count;
        *turn
    }
}

/// A topic that the configuration names should be there: that it is not is a trouble, nobody's fault.
fn expected(error: TopicError, topic: &TopicName) -> Trouble {
    match error {
        TopicError::Unknown => Trouble::missing_topic(topic),
        TopicError::Trouble(trouble) => trouble,
    }
}

/// The fault of a record for which a destination's condition is neither true nor false.
pub(super) fn undecided(destination: &DestinationName, why: &str) -> Fault {
    let message = format!("`when` of destination \"{destination}\": {why}");
    Fault { code: FaultCode::Refused, message, plugin: None }
}

fn bad_output(message: String) -> Misrouted {
    Misrouted::Fault(Fault { code: FaultCode::BadOutput, message, plugin: None })
}
