//! millrace: a WebAssembly-pluggable event router for Kafka.
//!
//! The map, lowest floor first; a module names only lower floors, which `tests/it/architecture.rs` checks.
//! ARCHITECTURE.md tells the journeys through it.

pub mod model;

pub mod policy;
pub mod telemetry;

pub mod config;

pub mod pipeline;

pub mod kafka;
pub mod plugin;

pub mod control;

pub mod admin;
pub mod app;
pub mod cli;
