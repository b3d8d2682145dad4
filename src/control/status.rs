//! What runs and how it fares: the words of `GET /api/v1/status`. Who writes them is [`super::board`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::change::Changes;
use super::hazards::Hazard;
use crate::config::Problems;
use crate::model::{Digest, ErrorId, FaultCode, GroupId, Offset, PluginName, RouteName, TopicName};
use crate::telemetry::TotalsSnapshot;

/// The process at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Of millrace.
    pub version: &'static str,
    /// The configured name of this process, if it has one.
    pub instance: Option<String>,
    /// How many configurations were applied; 0 before the first.
    pub generation: u64,
    /// When the process started.
    pub started_at: Time,
    /// Whether the process is on its way out.
    pub shutting_down: bool,
    /// The last attempt to load a configuration, the first included.
    pub last_reload: Option<Reload>,
    /// The attempt that made the configuration in force.
    pub last_applied: Option<Reload>,
    /// All routes of the configuration, the disabled ones too.
    pub routes: BTreeMap<RouteName, RouteStatus>,
}

/// An attempt to load a configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Reload {
    /// What became of it.
    pub outcome: ReloadOutcome,
    /// When.
    pub at: Time,
    /// The generation in force since.
    pub generation: u64,
    /// What there is to tell of it.
    #[serde(flatten)]
    pub told: Told,
}

/// What there is to tell of an attempt to load a configuration.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Told {
    /// What changed, or why it was refused, in one line.
    pub message: String,
    /// What set it off.
    pub cause: Cause,
    /// How long it took, ms: from the files to what runs told to take it up.
    pub took_ms: u64,
    /// What is done with each route, where it came to that.
    pub changes: Option<Changes>,
    /// What an operator should know of these changes.
    pub hazards: Vec<Hazard>,
    /// What is wrong with the configuration, each at its place.
    pub problems: Problems,
}

impl<T: Into<String>> From<T> for Told {
    fn from(message: T) -> Self {
        Self { message: message.into(), ..Self::default() }
    }
}

/// What sets an attempt to load a configuration off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The process starts.
    #[default]
    Start,
    /// A file has changed.
    Files,
    /// What kept the last attempt may have passed.
    Retry,
    /// SIGHUP.
    Signal,
    /// Somebody asked by the admin endpoint.
    Api,
}

impl Cause {
    /// As users read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Files => "files",
            Self::Retry => "retry",
            Self::Signal => "signal",
            Self::Api => "api",
        }
    }

    /// Whether somebody waits to be told.
    pub const fn is_asked(self) -> bool {
        match self {
            Self::Signal | Self::Api => true,
            Self::Start | Self::Files | Self::Retry => false,
        }
    }
}

/// What became of an attempt to load a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// It is in force, as a new generation.
    Applied,
    /// It is the one in force already.
    Unchanged,
    /// It was refused; nothing that runs was touched.
    Rejected,
}

/// A route at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct RouteStatus {
    /// Its state.
    pub state: RouteState,
    /// Why it is in this state, where there is more to say.
    pub reason: Option<String>,
    /// Since when it is in this state.
    pub since: Time,
    /// When it tries again, where it waits or has failed.
    pub next_attempt: Option<Time>,
    /// What it promises.
    pub delivery: &'static str,
    /// Its consumer group.
    pub group: GroupId,
    /// Its plugins, in order.
    pub plugins: Vec<PluginStatus>,
    /// Its shadow, if it has one.
    pub shadow: Option<ShadowStatus>,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
    /// How many sets of plugin instances each of them has.
    pub parallelism: u16,
    /// How far behind it is, as far as this process owns its partitions.
    pub lag: LagStatus,
    /// The last record at fault.
    pub last_fault: Option<LastFault>,
    /// What it has done since the process started.
    pub totals: TotalsSnapshot,
}

/// How far behind a route is: looked at every few seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LagStatus {
    /// Records that are not committed, of all partitions owned here, up to the last stable offset.
    pub records: u64,
    /// The age of the oldest of them.
    pub seconds: f64,
    /// Whether it is above the route's `lag_alert`; none where there is no such.
    pub alert: Option<bool>,
    /// Partition by partition.
    pub partitions: Vec<PartitionLagStatus>,
}

/// How far behind a partition is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionLagStatus {
    /// Its topic.
    pub topic: TopicName,
    /// Its number.
    pub partition: i32,
    /// Records that are not committed, up to the last stable offset.
    pub records: u64,
    /// The age of the oldest of them.
    pub seconds: f64,
    /// Records that an open transaction upstream holds back.
    pub blocked_records: u64,
    /// Since how long.
    pub blocked_seconds: f64,
}

/// The state of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    /// Its workers are joining the group.
    Starting,
    /// Records are routed as they come.
    Running,
    /// Something passing keeps it: it goes on by itself.
    Waiting,
    /// Told to pause.
    Paused,
    /// A partition is stopped, or somebody must act.
    Failed,
    /// It finishes what it holds and leaves.
    Draining,
    /// `enabled: false`.
    Disabled,
}

impl RouteState {
    /// Every state as users read it, for the metric.
    pub const WORDS: [&'static str; 7] = ["starting", "running", "waiting", "paused", "failed", "draining", "disabled"];

    /// The state as users read it.
    pub const fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }

    /// Whether a probe that asks for this route is content.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// A plugin as a route runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PluginStatus {
    /// Its name.
    pub plugin: PluginName,
    /// The digest of its file.
    pub sha256: Digest,
}

/// What a second set of plugins makes otherwise than the first, of the records that have passed here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShadowStatus {
    /// Its plugins, in order.
    pub plugins: Vec<PluginStatus>,
    /// It sees one source record in so many.
    pub sample: u32,
    /// Since when the same plugins are compared.
    pub since: Time,
    /// Records that were compared.
    pub compared: u64,
    /// Those of them that differ.
    pub differing: u64,
    /// Records that passed while it was busy.
    pub skipped: u64,
    /// How many differ in what; one may count for several.
    pub differences: BTreeMap<&'static str, u64>,
    /// The last few of each kind.
    pub examples: Vec<ShadowExample>,
}

/// A record that differs. What it holds is not told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShadowExample {
    /// Its topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
    /// In what it differs.
    pub differences: Vec<&'static str>,
    /// What the route's plugins make of it, in a few words.
    pub first: String,
    /// The same of the shadow's.
    pub second: String,
}

/// A worker at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerStatus {
    /// Its number in this process, from 0.
    pub worker: u16,
    /// The generation of the configuration that it goes by: the last that changed something for this route.
    pub generation: u64,
    /// What it is doing.
    #[serde(flatten)]
    pub phase: WorkerPhase,
    /// The partitions that it owns, by topic.
    pub assignment: BTreeMap<TopicName, BTreeSet<i32>>,
    /// Those of them that stand still until somebody acts (or the back-off has passed).
    pub stopped: Vec<HeldPartition>,
    /// Those of them that wait for the next attempt at a record.
    pub retrying: Vec<HeldPartition>,
}

/// What a worker is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum WorkerPhase {
    /// Joining the group.
    Starting,
    /// Routing records, or ready to.
    Running,
    /// Kept from it by something that passes.
    Waiting {
        /// Why.
        reason: String,
        /// When it tries again.
        next_attempt: Time,
    },
    /// Kept from it until somebody acts; it tries again all the same.
    Failed {
        /// Why.
        reason: String,
        /// When it tries again.
        next_attempt: Time,
    },
    /// Told to pause.
    Paused,
    /// Finishing.
    Draining,
    /// Gone.
    Stopped,
}

/// A partition that stands still while the others go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldPartition {
    /// Its topic.
    pub topic: TopicName,
    /// Its number.
    pub partition: i32,
    /// The record it stands before, where one is to blame.
    pub offset: Option<Offset>,
    /// The fault's code, or `offset_lost`, `no_counterpart`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The id of the fault, as in the log; none where no single record is to blame.
    pub error_id: Option<ErrorId>,
    /// When it tries again by itself.
    pub next_attempt: Option<Time>,
}

/// A record that was at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastFault {
    /// When.
    pub at: Time,
    /// Its id, as in the log and in the dead letter.
    pub error_id: ErrorId,
    /// Which of the closed list.
    #[serde(serialize_with = "as_text")]
    pub code: FaultCode,
    /// The plugin at fault; none where the destination rejected the record.
    pub plugin: Option<PluginName>,
    /// The record's topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
    /// For people.
    pub message: String,
}

/// A moment, as RFC 3339 in UTC, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Timestamp);

impl Time {
    /// This one.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Time {
    fn from(at: SystemTime) -> Self {
        let at = Timestamp::try_from(at).unwrap_or(Timestamp::MAX);
        Self(Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at))
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn as_text<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
