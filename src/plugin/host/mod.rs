//! What the host grants, one file a capability.

pub(super) mod log;
