//! The one integration binary: what the parts do together, with a real Kafka where it takes one.

mod architecture;
mod bounds;
mod cli;
mod config_problems;
mod conformance;
mod crash;
mod demo;
mod docs;
mod end_to_end;
mod faults;
mod java_partitions;
mod kafka_session;
mod liveness;
mod memory;
mod newcomer;
mod plan;
mod plugin_contract;
mod positions;
mod rebalances;
mod reload;
mod routes;
mod simulation;
mod support;
mod torture;
