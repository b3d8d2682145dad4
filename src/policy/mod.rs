//! FLOOR 1: what an operator chooses. Pure: one file holds the YAML spelling, the decision and its table test.

mod condition;
mod error_policy;
mod partitioner;

pub use condition::{Condition, ConditionError, VARIABLES, Values};
pub use error_policy::{Decision, Disposition, OnError, Retry};
pub use partitioner::{Partitioning, murmur2, partition_for_key};
