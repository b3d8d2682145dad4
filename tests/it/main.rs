//! The one integration binary: what the parts do together, with a real Kafka where it takes one.

mod architecture;
mod cli;
mod crash;
mod end_to_end;
mod java_partitions;
mod kafka_session;
mod routes;
mod simulation;
mod support;
