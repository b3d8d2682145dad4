//! The partition counts that a route goes by, where it is to stop at a change (`on_partition_change: stop`).

use std::collections::HashMap;
use std::sync::Mutex;

use crate::model::TopicName;
use crate::pipeline::ports::{Trouble, TroubleKind};

use super::raw::lock;

/// Of destinations' topics.
#[derive(Debug, Default)]
pub struct PartitionCounts(Mutex<HashMap<TopicName, Count>>);

#[derive(Debug, Clone, Copy)]
struct Count {
    accepted: i32,
    seen: i32,
}

impl PartitionCounts {
    /// Compares with the first that was seen, or accepted since.
    ///
    /// # Errors
    /// It is another; the route waits until somebody accepts it, or it is the old one again.
    pub(super) fn check(&self, topic: &TopicName, now: i32) -> Result<(), Trouble> {
        let mut counts = lock(&self.0);
        let count = counts.entry(topic.clone()).or_insert(Count { accepted: now, seen: now });
        count.seen = now;
        if count.accepted == now {
            return Ok(());
        }
        let message = format!(
            "topic \"{topic}\" has {now} partitions instead of {}, so that a key may go to another one than before, and \
             `on_partition_change` is `stop`: `millrace restart` accepts it",
            count.accepted
        );
        Err(Trouble { code: "PARTITIONS_CHANGED".into(), message, kind: TroubleKind::Denied })
    }

    /// Accepts what was seen last.
    pub(super) fn accept(&self) {
        lock(&self.0).values_mut().for_each(|count| count.accepted = count.seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_refused_until_it_is_accepted_or_undone() {
        let (counts, topic) = (PartitionCounts::default(), TopicName::new("orders").unwrap());
        assert_eq!(counts.check(&topic, 4), Ok(()));
        let refused = counts.check(&topic, 6).unwrap_err();
        assert!(refused.message.starts_with("topic \"orders\" has 6 partitions instead of 4"), "{}", refused.message);
        assert_eq!(counts.check(&topic, 4), Ok(()));
        counts.check(&topic, 8).unwrap_err();
        counts.accept();
        assert_eq!(counts.check(&topic, 8), Ok(()));
    }
}
