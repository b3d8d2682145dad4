//! The cluster of a configuration, for the verbs that read or write topics themselves.

use anyhow::anyhow;

use super::Failure;
use crate::config::Loaded;
use crate::kafka::Cluster;
use crate::pipeline::ports::{Trouble, TroubleKind};

/// A connection, which has been answered.
pub(super) fn connect(loaded: &Loaded) -> Result<Cluster, Failure> {
    let cluster = Cluster::connect(&loaded.settings.kafka)
        .map_err(|message| Failure::Environment(anyhow!("the clients cannot be made: {message}")))?;
    cluster.topics().map_err(failed)?;
    Ok(cluster)
}

/// What a trouble is to somebody who waits for a command.
pub(super) fn failed(trouble: Trouble) -> Failure {
    let error = anyhow!("{} ({})", trouble.message, trouble.code);
    match trouble.kind {
        TroubleKind::Passing | TroubleKind::Denied => Failure::Environment(error),
        TroubleKind::Moved | TroubleKind::Duplicate => Failure::Running(error),
    }
}
