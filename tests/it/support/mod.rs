//! What several tests need.

#![allow(dead_code, reason = "a harness offers whole sets of words, of which today's tests may use some")]

pub(crate) mod guests;
pub(crate) mod memory_batch;
