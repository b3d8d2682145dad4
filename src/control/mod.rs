//! FLOOR 5: the control plane. From settings to what runs, and the words in which it is told how that fares.
//!
//! [`plan`] builds everything that can fail; [`reload`] notices changes and compares what is wanted with what runs;
//! [`supervisor`] owns what runs; a running [`route`](self) is its workers.

pub mod acls;
mod advice;
pub mod board;
pub mod change;
pub mod connect;
pub mod facts;
mod files;
pub mod graph;
pub mod hazards;
mod lag;
mod look;
mod once;
pub mod plan;
mod plugins;
pub mod redrive;
pub mod reload;
pub mod replay;
mod report;
mod route;
pub mod status;
pub mod supervisor;
mod watcher;

pub use route::Clients;
