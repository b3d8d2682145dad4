//! Every metric, once: its name, kind, labels and help. A metric is added by a row here and a caller.

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// As Prometheus knows it; the unit is its suffix.
    pub name: &'static str,
    /// What it is and who keeps it.
    pub kind: Kind,
    /// Its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// For people.
    pub help: &'static str,
}

/// What a metric is, and who keeps its series.
///
/// The exporter keeps whole counters and process-wide gauges. It forgets no series, counts no fractions and stores every
/// sample of a histogram until somebody scrapes; what needs one of these is kept by [`super::series`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number that only grows; kept by the exporter for the life of the process.
    Counter,
    /// A value of the whole process; kept by the exporter.
    Gauge,
    /// A fractional number that only grows; kept for the life of the process.
    SecondsCounter,
    /// A counter whose series vanishes with its last holder (a partition's, once it is revoked).
    HeldCounter,
    /// A gauge whose series vanishes with its last holder; what several holders of the same labels say is merged.
    Held(Merge),
    /// As `Held`, but what is kept is the moment when something began; what is shown are the seconds since. The oldest wins.
    HeldSince,
    /// Counts by class; upper bounds in seconds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The word of the `# TYPE` line.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::Counter | Self::SecondsCounter | Self::HeldCounter => "counter",
            Self::Gauge | Self::Held(_) | Self::HeldSince => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// How several holders of the same series make one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// They are added.
    Sum,
    /// The largest counts.
    Max,
}

/// Classes of `millrace_commit_duration_seconds`: 1 ms to 10 s.
pub const COMMIT_BOUNDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Classes of `millrace_record_latency_seconds`: 5 ms to 5 min.
pub const LATENCY_BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

macro_rules! table {
    ($($row:ident: $name:literal $kind:expr, [$($label:literal),*], $help:literal;)*) => {
        $(pub(super) static $row: Metric =
            Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)*
        /// Every metric.
        pub static ALL: &[&Metric] = &[$(&$row),*];
    };
}

use Kind::{Counter, Gauge, Held, HeldCounter, HeldSince, Histogram, SecondsCounter};
use Merge::{Max, Sum};

table! {
    // The process and its configuration.
    BUILD_INFO: "millrace_build_info" Gauge, ["version"], "Always 1; the version of this process is its label.";
    CONFIG_GENERATION: "millrace_config_generation" Gauge, [], "How many configurations this process has applied; 0 before the first.";
    CONFIG_LAST_RELOAD_SUCCESSFUL: "millrace_config_last_reload_successful" Gauge, [], "1 if the last attempt to load a configuration succeeded, else 0.";
    CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP: "millrace_config_last_reload_success_timestamp_seconds" Gauge, [], "When a configuration was last loaded successfully, as Unix time; 0 before the first.";
    CONFIG_HASH: "millrace_config_hash" Held(Max), ["sha256"], "Always 1; the digest of the configuration in force is its label. Differs between instances while a fleet is mixed.";
    RELOADS: "millrace_reloads_total" Counter, ["outcome"], "Attempts to load a configuration, by what became of them.";

    // Routes.
    ROUTE_STATE: "millrace_route_state" Held(Max), ["route", "state"], "1 for the state that the route is in, 0 for the others.";
    PARTITIONS_ASSIGNED: "millrace_partitions_assigned" Held(Sum), ["route"], "Source partitions that this process owns.";
    PARTITIONS_STOPPED: "millrace_partitions_stopped" Held(Sum), ["route"], "Owned partitions that stand still because of a fault or a lost offset.";
    WORKERS_IDLE: "millrace_workers_idle" Held(Sum), ["route"], "Workers that own no partition.";
    PLUGIN_INFO: "millrace_plugin_info" Held(Max), ["route", "plugin", "sha256"], "Always 1; which plugin file the route runs. Differs between instances while a fleet is mixed.";
    REBALANCES: "millrace_rebalances_total" Counter, ["route"], "Changes of this process's assignment by the consumer group.";

    // Records; committed ones only.
    RECORDS_CONSUMED: "millrace_records_consumed_total" Counter, ["route", "topic"], "Source records whose offsets are committed.";
    BYTES_CONSUMED: "millrace_bytes_consumed_total" Counter, ["route", "topic"], "Bytes (key and value) of source records whose offsets are committed.";
    RECORDS_PRODUCED: "millrace_records_produced_total" Counter, ["route", "destination"], "Records committed to a destination, without dead letters.";
    BYTES_PRODUCED: "millrace_bytes_produced_total" Counter, ["route", "destination"], "Bytes (key and value) of records committed to a destination.";
    RECORDS_FILTERED: "millrace_records_filtered_total" Counter, ["route", "plugin"], "Items that a plugin dropped; with an empty plugin those that no destination took.";
    RECORDS_SKIPPED: "millrace_records_skipped_total" Counter, ["route", "code"], "Source records at fault that were passed by, by fault code.";
    DEAD_LETTERS: "millrace_dead_letters_total" Counter, ["route", "code"], "Records committed to the dead-letter topic, by fault code.";
    RECORDS_LOST: "millrace_records_lost_total" HeldCounter, ["route", "topic", "partition"], "Records known to be lost: by an accepted loss of offsets, or by at_most_once.";

    // Shadows; everything that was compared, committed or not.
    SHADOW_RECORDS: "millrace_shadow_records_total" Counter, ["route", "outcome"], "Source records that a route's shadow made the same or something different of, and those that it skipped because it was busy.";
    SHADOW_DIFFERENCES: "millrace_shadow_differences_total" Counter, ["route", "code"], "In what these records differ; one record may count for several.";

    // Plugins; everything that ran, committed or not.
    PLUGIN_FAULTS: "millrace_plugin_faults_total" Counter, ["route", "plugin", "code"], "Faults of a plugin on a record, by code.";
    PLUGIN_CALLS: "millrace_plugin_calls_total" Counter, ["route", "plugin"], "Calls into a plugin; one takes a batch of records.";
    PLUGIN_SECONDS: "millrace_plugin_seconds_total" SecondsCounter, ["route", "plugin"], "CPU time spent in a plugin.";
    PLUGIN_MEMORY: "millrace_plugin_memory_bytes" Held(Sum), ["route", "plugin"], "Linear memory of a plugin's instances.";
    PLUGIN_INSTANCES: "millrace_plugin_instances_total" Counter, ["route", "plugin"], "Instances made of a plugin; more than one a worker means that some were replaced: after a fault, or because their calls had used up the memory.";
    PLUGIN_METRICS_DROPPED: "millrace_plugin_metrics_dropped_total" HeldCounter, ["route", "plugin"], "What a plugin wanted to count beyond the bounds of its own metrics. Shown for plugins that are granted metrics.";

    // Transactions.
    TRANSACTIONS: "millrace_transactions_total" Counter, ["route", "outcome"], "Transactions (or commits, in the other delivery modes), by outcome.";
    COMMIT_DURATION: "millrace_commit_duration_seconds" Histogram(COMMIT_BOUNDS), ["route"], "Time from a transaction's first record produced to its end.";
    RECORD_LATENCY: "millrace_record_latency_seconds" Histogram(LATENCY_BOUNDS), ["route"], "Time from a source record's timestamp to its commit.";
    WORKER_SECONDS: "millrace_worker_seconds_total" SecondsCounter, ["route", "state"], "Time of a route's workers, by what they did; under load they process while they produce, deliver and commit.";
    WORKER_CPU: "millrace_worker_cpu_seconds_total" SecondsCounter, ["route"], "CPU time of a route's workers, plugins included; the Kafka client's own threads are not.";
    LAST_COMMIT: "millrace_last_commit_timestamp_seconds" Held(Max), ["route"], "When the route last committed, as Unix time; absent before the first.";
    TRANSACTION_OPEN: "millrace_transaction_open_seconds" HeldSince, ["route"], "Age of the oldest transaction that is open now; 0 where none is.";

    // The source.
    LAG_RECORDS: "millrace_consumer_lag_records" Held(Max), ["route", "topic", "partition"], "Records between the committed offset and the last stable offset.";
    LAG_SECONDS: "millrace_consumer_lag_seconds" HeldSince, ["route", "topic", "partition"], "Age of the oldest record that is not committed; 0 at the end of the partition.";
    LAG_ALERT: "millrace_lag_alert" Held(Max), ["route"], "1 while the route's lag is above its lag_alert, else 0.";
    BLOCKED_RECORDS: "millrace_source_blocked_records" Held(Max), ["route", "topic", "partition"], "Records held back by an open transaction upstream (high watermark minus last stable offset).";
    BLOCKED_SECONDS: "millrace_source_blocked_seconds" HeldSince, ["route", "topic", "partition"], "How long an open transaction upstream has held the partition; 0 where none does.";

    // The broker.
    BROKER_ERRORS: "millrace_broker_errors_total" Counter, ["route", "code"], "Errors of the broker or the connection to it, by Kafka's or librdkafka's name.";
    BROKER_THROTTLE: "millrace_broker_throttle_seconds_total" SecondsCounter, ["route"], "Time for which a broker has throttled the route's clients.";

    // Traces.
    SPANS: "millrace_spans_total" Counter, ["outcome"], "Spans of traced records, exported to the collector or dropped. Shown from when a collector is configured.";

    // The process.
    LOG_LINES_DROPPED: "millrace_log_lines_dropped_total" HeldCounter, [], "Lines of the log that were dropped, since nobody read stderr.";
    MEMORY_LIMIT: "millrace_memory_limit_bytes" Held(Max), [], "Ceiling of memory that the container sets; +Inf where there is none.";

    // The process, by the names that every Prometheus client uses.
    PROCESS_CPU: "process_cpu_seconds_total" SecondsCounter, [], "CPU time of the process.";
    PROCESS_RESIDENT: "process_resident_memory_bytes" Held(Max), [], "Resident memory.";
    PROCESS_VIRTUAL: "process_virtual_memory_bytes" Held(Max), [], "Virtual memory.";
    PROCESS_FDS: "process_open_fds" Held(Max), [], "Open file descriptors.";
    PROCESS_MAX_FDS: "process_max_fds" Held(Max), [], "Ceiling of open file descriptors.";
    PROCESS_THREADS: "process_threads" Held(Max), [], "Threads.";
    PROCESS_START: "process_start_time_seconds" Held(Max), [], "When the process started, as Unix time.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_say_their_unit_and_carry_only_the_contracts_labels() {
        const LABELS: [&str; 10] =
            ["route", "plugin", "topic", "partition", "destination", "code", "state", "outcome", "sha256", "version"];
        for (place, metric) in ALL.iter().enumerate() {
            assert!(ALL[..place].iter().all(|other| other.name != metric.name), "{} twice", metric.name);
            assert_eq!(metric.kind.type_name() == "counter", metric.name.ends_with("_total"), "{}", metric.name);
            if matches!(metric.kind, Histogram(_) | HeldSince) {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
            }
            assert!(metric.labels.iter().all(|label| LABELS.contains(label)), "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\\', '\n']), "{}", metric.name);
        }
    }

    #[test]
    fn bounds_of_histograms_ascend() {
        for bounds in [COMMIT_BOUNDS, LATENCY_BOUNDS] {
            assert!(bounds.is_sorted_by(|a, b| a < b));
        }
    }
}
