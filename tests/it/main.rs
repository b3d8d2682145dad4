//! The one integration binary: what the parts do together, with a real Kafka where it takes one.

mod architecture;
mod demo;
mod java_partitions;
mod kafka_session;
mod simulation;
mod support;
