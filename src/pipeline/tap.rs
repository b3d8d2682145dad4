//! A look into a live route: records as they come in, after each plugin, and as they leave or fail, for who listens.
//!
//! While nobody does, it costs one look at an atomic a batch. A listener that does not keep up misses records and is told how
//! many; it never holds the route up.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::{Fault, FaultCode, Item, Items, Offset, PluginName, SendTo, SourceBatch, TopicName};

/// Listeners of one route.
const LISTENERS_MAX: usize = 16;
/// Bytes of a key, a value or a header's value that are shown.
const BYTES_MAX: usize = 16 * 1024;
/// Headers that are shown.
const HEADERS_MAX: usize = 64;

/// Where in the pipeline a record is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// As it comes, before the first plugin.
    Source,
    /// Behind one plugin.
    Step,
    /// Behind the last plugin, with the destinations that it goes to.
    Output,
    /// At fault.
    Error,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Source, Self::Step, Self::Output, Self::Error];

    /// Its name, as asked for and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Step => "step",
            Self::Output => "output",
            Self::Error => "error",
        }
    }
}

/// Which records a listener wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// At these stages; none: all.
    pub stages: Vec<Stage>,
    /// With this key.
    pub key: Option<Vec<u8>>,
    /// With a header of this name, and, where one is given, of this value.
    pub header: Option<(Vec<u8>, Option<Vec<u8>>)>,
    /// One source record in so many; 0 and 1 are all.
    pub one_in: u32,
}

impl Wanted {
    fn takes(&self, stage: Stage) -> bool {
        self.stages.is_empty() || self.stages.contains(&stage)
    }

    fn is(&self, batch: &dyn SourceBatch, index: usize) -> bool {
        let sampled = self.one_in < 2 || batch.offset(index).unsigned_abs().is_multiple_of(u64::from(self.one_in));
        let key = || self.key.as_deref().is_none_or(|key| batch.key(index) == Some(key));
        let header = || {
            self.header.as_ref().is_none_or(|(name, value)| {
                let all = (0..batch.header_count(index)).map(|nth| batch.header(index, nth));
                all.into_iter().any(|(of, is)| of == name && value.as_deref().is_none_or(|value| is == Some(value)))
            })
        };
        sampled && key() && header()
    }
}

/// A record as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where in the pipeline.
    pub stage: Stage,
    /// Where the record comes from.
    pub topic: TopicName,
    /// Its partition there.
    pub partition: i32,
    /// Its offset there.
    pub offset: Offset,
    /// The plugin that it has just left, or that it failed in.
    pub plugin: Option<PluginName>,
    /// `None` behind a plugin: nothing is left of it.
    pub record: Option<Shown>,
    /// Where a plugin sends it; none: to the default destinations.
    pub destination: Option<u16>,
    /// The fault.
    pub fault: Option<(FaultCode, String)>,
}

/// What a record holds, cut where it is long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// ms since 1970, or -1.
    pub timestamp: i64,
    /// `None` is null.
    pub key: Option<Vec<u8>>,
    /// `None` is null.
    pub value: Option<Vec<u8>>,
    /// Bytes of the whole value.
    pub value_bytes: usize,
    /// In order.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// Takes what was seen, which is copied out of the route's hands only when it is asked for. False: it cannot take it now, and
/// misses it.
pub type Take = Box<dyn FnMut(&mut dyn FnMut() -> Seen) -> bool + Send>;

/// The tap of a route. Its copies are the same tap.
#[derive(Clone, Default)]
pub struct Tap(Arc<Inner>);

#[derive(Default)]
struct Inner {
    count: AtomicUsize,
    listeners: Mutex<Vec<Listener>>,
}

struct Listener {
    wanted: Wanted,
    take: Take,
    missed: Arc<AtomicU64>,
}

/// Listens until dropped.
pub struct Listening {
    tap: Tap,
    missed: Arc<AtomicU64>,
}

impl Listening {
    /// How many records the listener has missed so far, since it could not take them.
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listeners = self.tap.listeners();
        listeners.retain(|listener| !Arc::ptr_eq(&listener.missed, &self.missed));
        self.tap.0.count.store(listeners.len(), Relaxed);
    }
}

impl Tap {
    /// Listens from now on; none where too many do already. `take` is called on the route's own threads: it must not wait.
    pub fn listen(&self, wanted: Wanted, take: Take) -> Option<Listening> {
        let missed = Arc::new(AtomicU64::new(0));
        let mut listeners = self.listeners();
        if listeners.len() >= LISTENERS_MAX {
            return None;
        }
        listeners.push(Listener { wanted, take, missed: Arc::clone(&missed) });
        self.0.count.store(listeners.len(), Relaxed);
        Some(Listening { tap: self.clone(), missed })
    }

    /// Whether anybody listens. (Never in the build that is only there to measure what this costs.)
    pub(super) fn is_open(&self) -> bool {
        !cfg!(feature = "without-tap") && self.0.count.load(Relaxed) > 0
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Items at a stage. Behind a plugin: those of records in `gone`, too, of which nothing is left.
    pub(super) fn items(&self, stage: Stage, plugin: Option<&PluginName>, items: &Items, gone: &[u32]) {
        let source = &*items.source;
        for listener in self.listeners().iter_mut().filter(|listener| listener.wanted.takes(stage)) {
            let left = items.list.iter().map(|item| (item.source as usize, Some(item)));
            let dropped = gone.iter().map(|index| (*index as usize, None));
            let mut missed = 0;
            for (index, item) in left.chain(dropped) {
                if !listener.wanted.is(source, index) {
                    continue;
                }
                let mut see = || {
                    let destination = item.and_then(|item| match item.send_to {
                        SendTo::Named(number) => Some(number),
                        SendTo::Unset | SendTo::Defaults => None,
                    });
                    let record = item.map(|item| shown(items, item));
                    Seen { record, destination, ..seen(stage, source, index, plugin) }
                };
                // Who has no room for one has none for what follows it at once: it is not even asked.
                if missed > 0 || !(listener.take)(&mut see) {
                    missed += 1;
                }
            }
            listener.missed.fetch_add(missed, Relaxed);
        }
    }

    /// A record at fault.
    pub(super) fn fault(&self, items: &Items, source: u32, fault: &Fault) {
        let (batch, index) = (&*items.source, source as usize);
        let wants = |listener: &&mut Listener| listener.wanted.takes(Stage::Error) && listener.wanted.is(batch, index);
        for listener in self.listeners().iter_mut().filter(wants) {
            let taken = (listener.take)(&mut || Seen {
                record: Some(shown(items, &Item::of_source(source))),
                fault: Some((fault.code, fault.message.clone())),
                ..seen(Stage::Error, batch, index, fault.plugin.as_ref())
            });
            listener.missed.fetch_add(u64::from(!taken), Relaxed);
        }
    }
}

fn seen(stage: Stage, source: &dyn SourceBatch, index: usize, plugin: Option<&PluginName>) -> Seen {
    let at = source.topic_partition();
    Seen {
        stage,
        topic: at.topic.clone(),
        partition: at.partition,
        offset: source.offset(index),
        plugin: plugin.cloned(),
        record: None,
        destination: None,
        fault: None,
    }
}

fn shown(items: &Items, item: &Item) -> Shown {
    let cut = |bytes: &[u8]| bytes[..bytes.len().min(BYTES_MAX)].to_vec();
    let header = |nth| {
        let (name, value) = items.header(item, nth);
        (cut(name), value.map(cut))
    };
    Shown {
        timestamp: items.timestamp(item),
        key: items.key(item).map(cut),
        value: items.value(item).map(cut),
        value_bytes: items.value(item).map_or(0, <[u8]>::len),
        headers: (0..items.header_count(item).min(HEADERS_MAX)).map(header).collect(),
    }
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("listeners", &self.0.count).finish()
    }
}
