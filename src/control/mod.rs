//! (being built)

pub mod status;
