//! FLOOR 5: the control plane. From settings to what runs, and the words in which it is told how that fares.
//!
//! [`plan`] builds everything that can fail; [`supervisor`] owns what runs; a running [`route`](self) is its workers.

pub mod plan;
mod report;
mod route;
pub mod status;
pub mod supervisor;
