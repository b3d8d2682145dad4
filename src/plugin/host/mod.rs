//! What the host grants, one file a capability; and what it stands in for.

pub(super) mod clock;
pub(super) mod log;
pub(super) mod metrics;
pub(super) mod random;
pub(super) mod wasi;
