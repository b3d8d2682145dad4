//! Runs a slice of a route's source through its plugins again, beside the live group: nothing of it moves.

use std::sync::Arc;

use super::plan::RoutePlan;
use crate::kafka::{Cluster, ReadFrom, Reader, source_topics};
use crate::model::{SourceBatch, TopicName};
use crate::pipeline::chain::{Chain, Processed};
use crate::pipeline::ports::Trouble;
use crate::pipeline::task::Stop;

/// A route's plugins, away from its group.
pub struct Bench {
    chain: Chain,
    plan: Arc<RoutePlan>,
}

impl Bench {
    /// With instances of its own.
    pub fn new(plan: &Arc<RoutePlan>) -> Self {
        Self { chain: plan.task(0, &Stop::default()).chain, plan: Arc::clone(plan) }
    }

    /// What the plugins make of all records of a batch. One that asks for its record again later has had its retries.
    pub fn apply(&mut self, batch: &Arc<dyn SourceBatch>) -> Vec<Processed> {
        self.chain.apply_all(batch, self.plan.bounds.processing)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.chain.shutdown();
    }
}

/// The topics that a route reads now.
///
/// # Errors
/// The cluster does not answer.
pub fn topics_of(cluster: &Cluster, plan: &RoutePlan) -> Result<Vec<TopicName>, Trouble> {
    Ok(source_topics(&plan.route.source, &*cluster.topics()?, &plan.left_out))
}

/// Hands each batch of these topics to `see` that holds records from time `from` on (ms since 1970; none: from the beginning)
/// up to now.
///
/// # Errors
/// They cannot be read; or what `see` says.
pub fn each_batch<E: From<Trouble>>(
    cluster: &Cluster,
    topics: &[TopicName],
    from: Option<i64>,
    mut see: impl FnMut(&Arc<dyn SourceBatch>) -> Result<(), E>,
) -> Result<(), E> {
    for topic in topics {
        let mut reader = Reader::open(cluster, topic, |_| from.map_or(ReadFrom::Beginning, ReadFrom::Time))?;
        while let Some(batches) = reader.next()? {
            batches.iter().try_for_each(&mut see)?;
        }
    }
    Ok(())
}
