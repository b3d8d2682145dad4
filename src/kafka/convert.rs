//! Fetched messages as the pipeline's source batches. And what of them goes out again as it is.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{Offset, SourceBatch, TopicPartition};
use crate::pipeline::ports::Headers;

use super::raw::{Client, HeaderList, Message, Messages, Place};

/// Messages of one partition, in offset order, given back to librdkafka when dropped, if not before.
pub(super) struct FetchedBatch {
    from: TopicPartition,
    messages: Messages,
}

impl SourceBatch for FetchedBatch {
    fn topic_partition(&self) -> &TopicPartition {
        &self.from
    }
    fn len(&self) -> usize {
        self.messages.len()
    }
    fn bytes(&self) -> usize {
        self.messages.bytes()
    }
    fn size(&self, index: usize) -> usize {
        self.messages.size(index)
    }
    fn offset(&self, index: usize) -> Offset {
        self.messages.offset(index)
    }
    fn timestamp(&self, index: usize) -> i64 {
        self.messages.timestamp(index)
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        self.messages.key(index)
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        self.messages.value(index)
    }
    fn may_have_headers(&self) -> bool {
        self.messages.may_have_headers()
    }
    fn header_count(&self, index: usize) -> usize {
        self.messages.header_count(index)
    }
    fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        self.messages.header(index, nth)
    }
}

/// Sorts what one poll fetched into one batch a partition, each in the order it came; drops what `keep` does not want.
pub(super) fn batches(
    messages: Vec<Message>,
    client: &Arc<Client>,
    keep: impl Fn(&TopicPartition) -> bool,
) -> Vec<Arc<dyn SourceBatch>> {
    let mut groups: Vec<Vec<Message>> = Vec::new();
    let mut places: HashMap<Place, usize> = HashMap::new();
    let mut last: Option<(Place, usize)> = None;
    for message in messages {
        let place = message.place();
        // Messages come in runs of one partition: the map is asked once a run.
        let group = match last {
            Some((same, group)) if same == place => group,
            _ => *places.entry(place).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            }),
        };
        last = Some((place, group));
        groups[group].push(message);
    }
    let batch = |list: Vec<Message>| {
        let from = list.first()?.topic_partition().filter(&keep)?;
        Some(Arc::new(FetchedBatch { from, messages: Messages::new(list, client) }) as Arc<dyn SourceBatch>)
    };
    groups.into_iter().filter_map(batch).collect()
}

/// An output's headers, for the client: those of a source record are handed over where nobody has looked at them, others copied.
pub(super) fn header_list(headers: Headers<'_>) -> Option<HeaderList> {
    if let Headers::Of(items, item) = headers
        && item.headers.is_none()
        && let Some(batch) = (&*items.source as &dyn Any).downcast_ref::<FetchedBatch>()
        && let Ok(taken) = batch.messages.take_headers(item.source as usize)
    {
        return taken;
    }
    let copied = (0..headers.len()).map(|nth| headers.get(nth));
    (copied.len() > 0).then(|| HeaderList::new(copied))
}
