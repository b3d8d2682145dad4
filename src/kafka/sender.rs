//! Writes records to one topic, outside of any group or transaction: for tools, never for routes.

use crate::config::settings::{Delivery, Route};
use crate::config::share::Share;
use crate::config::times::Times;
use crate::model::TopicName;
use crate::pipeline::ports::{Outputs, Trouble};

use super::client_options;
use super::errors::{About, passing, trouble};
use super::producer::Producer;
use super::raw::{Client, Context, Kind, Known};
use super::topics::Cluster;
use std::sync::Arc;
use std::time::Duration;

/// An idempotent producer on one topic.
pub struct Sender {
    producer: Producer<Arc<Client>>,
    /// How many partitions the topic has.
    partitions: i32,
    topic: TopicName,
}

impl Sender {
    /// For `topic`, with the client properties of `route`.
    ///
    /// # Errors
    /// The topic is not there, or the cluster does not answer.
    pub fn open(cluster: &Cluster, route: &Route, topic: &TopicName, share: Share) -> Result<Self, Trouble> {
        let partitions = cluster.topics()?.partitions(topic.as_str()).ok_or_else(|| Trouble::missing_topic(topic))?;
        let kafka = cluster.kafka();
        let route = Route { delivery: Delivery::AtLeastOnce, ..route.clone() };
        let properties = client_options::producer(kafka, &route, &format!("{}.sender", kafka.prefix), "", share);
        let label = format!("writer of {topic}");
        let make = move || Client::new(Kind::Producer, &properties, Context::new(label.clone(), None));
        let mut producer =
            Producer::new(Arc::new(make), route.source.group.clone(), None, false, Times::of_clients(kafka));
        producer.add_topic(topic, Duration::from_secs(10))?;
        Ok(Self { producer, partitions, topic: topic.clone() })
    }

    /// How many partitions the topic has.
    pub fn partitions(&self) -> i32 {
        self.partitions
    }

    /// Sends these, whose topic is 0, and waits until all are acknowledged.
    ///
    /// # Errors
    /// Some are not.
    pub fn send(&mut self, outputs: &dyn Outputs) -> Result<(), Trouble> {
        let failures = self.producer.send(outputs, true)?;
        match failures.first.first() {
            None if failures.count == 0 => Ok(()),
            Some(first) => {
                let error = super::raw::Error::of(first.code);
                Err(trouble(&error, About::Write(&self.topic)))
            }
            None => Err(passing(Known::RD_KAFKA_RESP_ERR__FAIL, "records could not be delivered")),
        }
    }
}
