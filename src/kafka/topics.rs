//! What the cluster is known to hold: one client a process, a thread that asks for all topics every few seconds (and one for
//! the ends of logs: [`super::log_ends`]), and a snapshot that everybody reads for nothing. Creates no topic, ever: it asks for all of them, which does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::settings::{Destination, Kafka, Source, Target, TopicSelector};
use crate::model::{GroupId, TopicName, TopicPartition};
use crate::pipeline::ports::Trouble;

use super::client_options;
use super::errors::{self, About, trouble};
use super::log_ends::{LogEnds, Looks};
use super::raw::{self, Client, Context, Error, Kind, Member, Topic, lock};
use super::shared_question::SharedQuestion;
use super::twins;

/// How often the cluster is asked. New topics and partitions are taken up within 30 s of their creation.
const REFRESH_EVERY: Duration = Duration::from_secs(10);
/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The same as long as the cluster has never answered: routes wait for it to say what keeps them.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What is known of a Kafka cluster. A handle: cloning it shares the connection.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    kafka: Kafka,
    client: Arc<Client>,
    topics: ArcSwap<Topics>,
    /// Whether the cluster has ever answered; and whether it did when it was last asked.
    known: AtomicBool,
    answers: AtomicBool,
    /// One request at a time; holds when the last failed and why, if it did.
    asking: Mutex<Option<(Instant, Trouble)>>,
    looks: Looks,
    ids: SharedQuestion,
    /// Tells the thread to end, by being dropped.
    _stop: mpsc::Sender<()>,
}

/// The topics of a cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topics {
    /// Every topic that may be seen, internal ones too, by name.
    pub by_name: BTreeMap<TopicName, TopicState>,
    /// The brokers, as `host:port`.
    pub brokers: Vec<String>,
}

/// One topic of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicState {
    /// How many partitions, at least 1.
    pub partitions: i32,
    /// The smallest number of replicas that any of them has.
    pub replicas: usize,
    /// Partitions without a leader.
    pub leaderless: usize,
}

impl Topics {
    /// How many partitions the topic has, if it exists.
    pub fn partitions(&self, topic: &str) -> Option<i32> {
        self.by_name.get(topic).map(|topic| topic.partitions)
    }

    /// All partitions of those of these topics that exist.
    pub(super) fn partitions_of(&self, topics: &[TopicName]) -> BTreeSet<TopicPartition> {
        let of = |topic: &TopicName| {
            let at = |partition| TopicPartition { topic: topic.clone(), partition };
            (0..self.partitions(topic.as_str()).unwrap_or(0)).map(at).collect::<Vec<_>>()
        };
        topics.iter().flat_map(of).collect()
    }
}

impl Cluster {
    /// A handle of the cluster that `kafka` names. Connects in the background, and asks for its topics until dropped.
    ///
    /// # Errors
    /// What librdkafka has against the properties.
    pub fn connect(kafka: &Kafka) -> Result<Self, String> {
        let mut options = client_options::asking(kafka, None);
        // A listener that wants TLS closes a connection without it, which is no error to librdkafka; but it can be heard saying so.
        client_options::put(&mut options, &[("log.connection.close", "true"), ("log_level", "6")]);
        let client = Client::new(Kind::Consumer, &options, Context::new("cluster", None))?;
        let (stop, stopped) = mpsc::channel();
        let inner = Arc::new(Inner {
            kafka: kafka.clone(),
            client,
            topics: ArcSwap::default(),
            known: AtomicBool::new(false),
            answers: AtomicBool::new(false),
            asking: Mutex::new(None),
            looks: Looks::default(),
            ids: SharedQuestion::default(),
            _stop: stop,
        });
        let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let started = std::thread::Builder::new().name(name.into()).spawn(work);
            started.map_err(|error| format!("cannot start a thread: {error}"))
        };
        let weak = Arc::downgrade(&inner);
        thread("kafka-topics", Box::new(move || watch(&weak, &stopped)))?;
        let (weak, looks, client) = (Arc::downgrade(&inner), inner.looks.clone(), Arc::clone(&inner.client));
        let answers = move || weak.upgrade().is_some_and(|inner| inner.answers.load(Ordering::Acquire));
        thread("kafka-ends", Box::new(move || looks.run(&client, answers)))?;
        Ok(Self(inner))
    }

    /// The settings it was made of.
    pub fn kafka(&self) -> &Kafka {
        &self.0.kafka
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.0.client
    }

    /// The topics as last seen, not older than [`REFRESH_EVERY`] while the cluster answers. The same `Arc` as long as
    /// nothing changes.
    ///
    /// # Errors
    /// The cluster has never answered: what the client says why, so far.
    pub fn topics(&self) -> Result<Arc<Topics>, Trouble> {
        if self.0.known.load(Ordering::Acquire) {
            return Ok(self.0.topics.load_full());
        }
        self.refresh_now(FIRST_ANSWER_WITHIN)
    }

    /// Asks the cluster now.
    ///
    /// # Errors
    /// It does not answer in time: what the client says why.
    pub fn refresh_now(&self, wait: Duration) -> Result<Arc<Topics>, Trouble> {
        self.0.refresh(wait)?;
        Ok(self.0.topics.load_full())
    }

    /// Why the cluster did not answer when last asked, if it did not.
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.0.asking).as_ref().map(|(_, trouble)| trouble.clone())
    }

    /// A session's part in the looks at the ends of logs.
    pub(super) fn log_ends(&self) -> LogEnds {
        self.0.looks.join()
    }

    /// The ids of those of these topics that exist. One that is deleted and created again has another.
    pub(super) fn topic_ids(&self, topics: &[TopicName], wait: Duration) -> Result<BTreeMap<TopicName, String>, Error> {
        // The mock cluster never answers such a request, nor can its topics be deleted.
        if topics.is_empty() || self.0.client.is_mock_cluster() {
            return Ok(BTreeMap::new());
        }
        self.0.ids.ask(topics, wait, |topics, wait| self.0.client.topic_ids(topics, wait))
    }

    /// The member of a group with this `group.instance.id` and another member id than `own`, waited for so long.
    pub(super) fn twin(&self, group: &GroupId, instance: &str, own: Option<&str>, wait: Duration) -> Option<Member> {
        twins::find(&self.0.client, group, instance, own, wait)
    }

    /// Asks for one topic, without creating it: its partitions, or why not.
    pub(super) fn look_up(&self, topic: &TopicName, wait: Duration) -> Result<i32, Error> {
        let handle = Topic::new(&self.0.client, topic)?;
        let metadata = self.0.client.metadata(Some(&handle), wait)?;
        match metadata.topics.into_iter().find(|(name, _, _)| name == topic.as_str()) {
            Some((_, partitions, _)) if !partitions.is_empty() => {
                Ok(i32::try_from(partitions.len()).unwrap_or(i32::MAX))
            }
            Some((_, _, code)) if code != raw::Code::NONE => Err(Error::of(code)),
            _ => Err(Error::of(raw::Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART.into())),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.looks.end();
    }
}

fn watch(inner: &Weak<Inner>, stopped: &mpsc::Receiver<()>) {
    while let Some(inner) = inner.upgrade() {
        // A failure is kept for whoever asks; the next round tries again.
        let known = inner.known.load(Ordering::Acquire);
        let _ = inner.refresh(if known { ANSWER_WITHIN } else { FIRST_ANSWER_WITHIN });
        drop(inner);
        match stopped.recv_timeout(REFRESH_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Inner {
    fn refresh(&self, wait: Duration) -> Result<(), Trouble> {
        let called = Instant::now();
        let mut last = lock(&self.asking);
        // Whoever had to wait for another's request to fail need not wait for one of its own: many routes ask at once.
        if let Some((_, trouble)) = last.as_ref().filter(|(failed, _)| *failed >= called) {
            return Err(trouble.clone());
        }
        let metadata = self.client.metadata(None, wait).map_err(|error| {
            self.answers.store(false, Ordering::Release);
            let found = self.explain(error);
            // The client says once why it cannot connect, and from then on only that it cannot.
            let found = match last.take() {
                Some((_, before)) if tells_little(&found) => before,
                _ => found,
            };
            *last = Some((Instant::now(), found.clone()));
            found
        })?;
        let _ = self.client.context().take_errors();
        self.client.context().forget_failed();
        *last = None;
        let topics = Topics {
            by_name: metadata.topics.iter().filter_map(|(name, partitions, _)| topic(name, partitions)).collect(),
            brokers: metadata.brokers,
        };
        // The pointer is how others see a change.
        if **self.topics.load() != topics {
            self.topics.store(Arc::new(topics));
        }
        self.known.store(true, Ordering::Release);
        self.answers.store(true, Ordering::Release);
        Ok(())
    }

    /// The reason behind "timed out": what the connections said meanwhile, a refusal first.
    fn explain(&self, mut error: Error) -> Trouble {
        self.client.serve(Duration::ZERO);
        let (said, failed) = (self.client.context().take_errors(), self.client.context().failed());
        if let Some(failed) = failed.filter(|_| said.is_empty()) {
            error.message = failed;
        }
        reason(&error, said)
    }
}

/// A client's last words are more telling than that it timed out.
pub(super) fn reason(error: &Error, said: Vec<Error>) -> Trouble {
    let mut said: Vec<_> = said.iter().map(|error| trouble(error, About::Cluster)).collect();
    // Denied before passing; "all brokers down" tells least.
    said.sort_by_key(|trouble| (trouble.kind != crate::pipeline::ports::TroubleKind::Denied, tells_little(trouble)));
    said.into_iter().next().unwrap_or_else(|| trouble(error, About::Cluster))
}

/// Whether it says no more than that there was no answer.
fn tells_little(trouble: &Trouble) -> bool {
    matches!(trouble.code.as_ref(), "_ALL_BROKERS_DOWN" | "_TIMED_OUT")
}

fn topic(name: &str, partitions: &[raw::PartitionMetadata]) -> Option<(TopicName, TopicState)> {
    if partitions.is_empty() {
        return None;
    }
    let topic = TopicState {
        partitions: i32::try_from(partitions.len()).ok()?,
        replicas: partitions.iter().map(|partition| partition.replicas).min()?,
        leaderless: partitions.iter().filter(|partition| partition.leader < 0).count(),
    };
    Some((TopicName::new(name).ok()?, topic))
}

/// What the patterns of a route's source leave out, beside internal topics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeftOut {
    /// Where the route writes: reading that would close a loop.
    pub destinations: Vec<Destination>,
    /// Every route's dead-letter topics.
    pub dead_letters: Arc<BTreeSet<TopicName>>,
}

impl LeftOut {
    fn is_written(&self, topic: &TopicName) -> bool {
        self.destinations.iter().any(|destination| match &destination.target {
            Target::Topic(name) => name == topic,
            Target::Pattern(pattern) => pattern.is_match(topic.as_str()),
        })
    }
}

/// The topics that a route reads: those it names, and those of the cluster that its patterns match, in order.
///
/// A pattern never matches an internal topic (`__…`), a dead-letter topic of any route, or one that this route writes.
pub fn source_topics(source: &Source, topics: &Topics, left_out: &LeftOut) -> Vec<TopicName> {
    let mut selected = BTreeSet::new();
    for selector in &source.topics {
        match selector {
            TopicSelector::Name(name) => {
                selected.insert(name.clone());
            }
            TopicSelector::Pattern(pattern) => {
                let matches = |name: &&TopicName| {
                    pattern.is_match(name.as_str())
                        && !name.as_str().starts_with("__")
                        && !left_out.dead_letters.contains(*name)
                        && !left_out.is_written(name)
                };
                selected.extend(topics.by_name.keys().filter(matches).cloned());
            }
        }
    }
    selected.retain(|name| !source.exclude.iter().any(|selector| selector.matches(name.as_str())));
    selected.into_iter().collect()
}

/// Topics that a route's patterns match and that are left out because the route writes them: each would close a loop.
pub fn loops(source: &Source, topics: &Topics, left_out: &LeftOut) -> Vec<TopicName> {
    let matches = |name: &&TopicName| {
        let pattern =
            |s: &TopicSelector| matches!(s, TopicSelector::Pattern(pattern) if pattern.is_match(name.as_str()));
        source.topics.iter().any(pattern)
            && !source.exclude.iter().any(|selector| selector.matches(name.as_str()))
            && left_out.is_written(name)
    };
    topics.by_name.keys().filter(matches).cloned().collect()
}

/// Whether an error may mean that the snapshot is out of date.
pub(super) fn should_refresh(code: raw::Code) -> bool {
    errors::is_stale_metadata(code)
}
