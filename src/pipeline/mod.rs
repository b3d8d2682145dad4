//! FLOOR 3: the data plane. Knows neither rdkafka nor wasmtime nor YAML: it speaks to both through [`ports`], so that a
//! simulation can run it.
//!
//! [`worker`] owns the loop; [`chain`] runs the plugins; [`unit`] is what one transaction does.

pub mod chain;
pub mod compare;
pub mod dead_letter;
mod desk;
pub mod destinations;
mod flight;
mod lag;
mod lane;
mod pieces;
pub mod ports;
pub mod rehearsal;
pub mod report;
pub mod seek;
pub mod shadow;
pub mod skip;
pub mod tap;
pub mod task;
mod traces;
pub mod unit;
pub mod worker;
