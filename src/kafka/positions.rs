//! Where a group that has never committed starts: resolved once, and committed before its first record is read, so that
//! a crash in between changes nothing. Knows the route's `start`, and nothing of sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::settings::{Route, Start};
use crate::model::{Offset, OffsetMap, TopicName, TopicPartition};
use crate::pipeline::ports::Trouble;

use super::client_options;
use super::errors::{About, passing, trouble};
use super::raw::{Client, Context, Error, Kind, Known, OFFSET_INVALID, PartitionList};
use super::topics::{Cluster, reason};

/// Longest wait for all answers. A predecessor's open transaction can hold the offsets back for longer: then they are asked
/// for again, and orders are taken in between.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// What [`resolve_start`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// The group had committed before.
    Before,
    /// It had not: these offsets are now committed.
    Now(OffsetMap),
}

/// Commits the route's `start` for every partition of `topics`, if its group has committed nothing on any of them.
/// To be done once by a route, before its workers join: Kafka takes such a commit only while the group is empty.
///
/// # Errors
/// [`Trouble`]: to be tried again after a back-off.
pub fn resolve_start(cluster: &Cluster, route: &Route, topics: &[TopicName]) -> Result<Started, Trouble> {
    let known = cluster.topics()?;
    let partitions: Vec<_> = topics
        .iter()
        .flat_map(|topic| (0..known.partitions(topic.as_str()).unwrap_or(0)).map(|number| at(topic, number)))
        .collect();
    let group = &route.source.group;
    if partitions.is_empty() {
        return Ok(Started::Before);
    }
    // Offsets of a transaction that a predecessor has left open would be waited for here, until its timeout at worst. The
    // sessions to come end it, if they have its name; and what was committed before it says that the group has started.
    let deadline = Instant::now() + ANSWERS_WITHIN;
    let at_once = client(client_options::asking_at_once(cluster.kafka(), group.as_str()), route)?;
    if has_committed(&at_once, &partitions, deadline).map_err(|error| explain(&at_once, &error, About::Group(group)))? {
        return Ok(Started::Before);
    }
    let client = asking(cluster, route)?;
    let failed = |error: Error| explain(&client, &error, About::Group(group));
    if has_committed(&client, &partitions, deadline).map_err(failed)? {
        return Ok(Started::Before);
    }
    let offsets = start_offsets(&client, route.source.start, &partitions, deadline).map_err(|error| {
        let topic = topics.first().map_or(About::Cluster, About::Read);
        explain(&client, &error, topic)
    })?;
    let ids = cluster.topic_ids(topics, left(deadline)).map_err(|error| explain(&client, &error, About::Cluster))?;
    let list = PartitionList::with_notes(&offsets, |topic| ids.get(topic).map(String::as_str));
    match client.commit_offsets(&list, left(deadline)) {
        Ok(()) => Ok(Started::Now(offsets)),
        // Another process was faster, and its members have joined: what it committed counts.
        Err(error) if is_refused_to_outsiders(&error) => {
            if has_committed(&client, &partitions, deadline).map_err(failed)? {
                return Ok(Started::Before);
            }
            let message = format!(
                "group {group} has members but no committed offset: another process is about to settle where it starts"
            );
            Err(passing(error.code.known(), message))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The committed offsets of a route's group on these partitions; those without one are left out.
///
/// # Errors
/// [`Trouble`]: the group coordinator does not answer, or refuses.
pub fn committed(cluster: &Cluster, route: &Route, partitions: &[TopicPartition]) -> Result<OffsetMap, Trouble> {
    let client = asking(cluster, route)?;
    let offsets = client
        .committed(partitions.iter().cloned(), ANSWERS_WITHIN)
        .map_err(|error| explain(&client, &error, About::Group(&route.source.group)))?;
    Ok(offsets.into_iter().filter(|found| found.offset >= 0).map(|found| (found.at, found.offset)).collect())
}

fn asking(cluster: &Cluster, route: &Route) -> Result<Arc<Client>, Trouble> {
    client(client_options::asking(cluster.kafka(), Some(route.source.group.as_str())), route)
}

fn client(options: client_options::Options, route: &Route) -> Result<Arc<Client>, Trouble> {
    let context = Context::new(format!("route {}, offsets", route.name), None);
    Client::new(Kind::Consumer, &options, context).map_err(|message| trouble(&configuration(message), About::Cluster))
}

/// librdkafka refuses to make a client.
pub(super) fn configuration(message: String) -> Error {
    Error { message, ..Error::of(Known::RD_KAFKA_RESP_ERR__INVALID_ARG.into()) }
}

fn explain(client: &Client, error: &Error, about: About<'_>) -> Trouble {
    client.serve(Duration::ZERO);
    match error.code.known() {
        Known::RD_KAFKA_RESP_ERR__TIMED_OUT | Known::RD_KAFKA_RESP_ERR__TRANSPORT => {
            reason(error, client.context().take_errors())
        }
        _ => trouble(error, about),
    }
}

fn has_committed(client: &Client, partitions: &[TopicPartition], deadline: Instant) -> Result<bool, Error> {
    let offsets = client.committed(partitions.iter().cloned(), left(deadline))?;
    Ok(offsets.iter().any(|found| found.offset != OFFSET_INVALID))
}

fn start_offsets(
    client: &Client,
    start: Start,
    partitions: &[TopicPartition],
    deadline: Instant,
) -> Result<OffsetMap, Error> {
    let ends = |partition: &TopicPartition| client.watermarks(partition, left(deadline));
    match start {
        Start::Earliest => partitions.iter().map(|at| Ok((at.clone(), ends(at)?.0))).collect(),
        Start::Latest => partitions.iter().map(|at| Ok((at.clone(), ends(at)?.1))).collect(),
        Start::At(time) => {
            let times = partitions.iter().map(|partition| (partition.clone(), time));
            let found = client.offsets_for_times(times, left(deadline))?;
            let or_end = |(partition, offset): (TopicPartition, Offset)| {
                let offset = if offset >= 0 { offset } else { ends(&partition)?.1 };
                Ok((partition, offset))
            };
            found.into_iter().map(or_end).collect()
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn is_refused_to_outsiders(error: &Error) -> bool {
    matches!(
        error.code.known(),
        Known::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
            | Known::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
            | Known::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS
            | Known::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH
    )
}

fn at(topic: &TopicName, partition: i32) -> TopicPartition {
    TopicPartition { topic: topic.clone(), partition }
}
