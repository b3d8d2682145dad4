//! Series that the exporter cannot keep: those that vanish with their holder, fractional counters, and histograms that
//! count into classes at once. Knows the table, and nothing of who counts.
//!
//! A holder keeps an `Arc`, the registry a `Weak`: a series is shown for as long as somebody holds it, so nothing has to
//! be unregistered. Several workers may hold the same labels; what they say is merged when it is read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use super::table::{Kind, Merge, Metric};

/// All series of this kind. The lock is taken where a handle is made and where text is rendered, never where one counts.
#[derive(Debug, Default)]
pub(super) struct Registry {
    families: Mutex<BTreeMap<&'static str, Family>>,
}

#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    series: BTreeMap<Vec<String>, Series>,
}

#[derive(Debug)]
enum Series {
    Held(Vec<Weak<Cell>>),
    Kept(Arc<Cell>),
    Histogram(Arc<Classes>),
}

impl Registry {
    /// A value that is shown while the handle lives; not before it is first set.
    pub(super) fn held(&self, metric: &'static Metric, labels: &[&str]) -> Value {
        let cell = Arc::new(Cell::new(f64::NAN));
        let held = Arc::downgrade(&cell);
        self.with(metric, labels, |series| {
            let series = series.get_or_insert_with(|| Series::Held(Vec::new()));
            let Series::Held(holders) = series else { unreachable!("a metric has one kind") };
            holders.retain(|holder| holder.strong_count() > 0);
            holders.push(held);
        });
        Value(cell)
    }

    /// A counter for the life of the process, from 0.
    pub(super) fn kept(&self, metric: &'static Metric, labels: &[&str]) -> Value {
        self.with(metric, labels, |series| match series.get_or_insert_with(|| Series::Kept(Arc::new(Cell::new(0.0)))) {
            Series::Kept(cell) => Value(cell.clone()),
            Series::Held(_) | Series::Histogram(_) => unreachable!("a metric has one kind"),
        })
    }

    /// A histogram for the life of the process.
    pub(super) fn histogram(&self, metric: &'static Metric, labels: &[&str]) -> Histogram {
        let Kind::Histogram(bounds) = metric.kind else { unreachable!("asked for by its row") };
        self.with(metric, labels, |series| {
            match series.get_or_insert_with(|| Series::Histogram(Arc::new(Classes::new(bounds)))) {
                Series::Histogram(classes) => Histogram(classes.clone()),
                Series::Held(_) | Series::Kept(_) => unreachable!("a metric has one kind"),
            }
        })
    }

    /// Appends all series in Prometheus' text format, at the moment `now` (Unix time).
    pub(super) fn render(&self, text: &mut String, now: f64) {
        for family in self.lock().values_mut() {
            family.render(text, now);
        }
    }

    fn with<T>(&self, metric: &'static Metric, labels: &[&str], then: impl FnOnce(&mut Option<Series>) -> T) -> T {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let mut families = self.lock();
        let family = families.entry(metric.name).or_insert_with(|| Family { metric, series: BTreeMap::new() });
        let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
        let mut series = family.series.remove(&labels);
        let answer = then(&mut series);
        family.series.extend(series.map(|series| (labels, series)));
        answer
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        // A panic elsewhere leaves at worst one series out: no reason to lose the others.
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Family {
    fn render(&mut self, text: &mut String, now: f64) {
        let Self { metric, series } = self;
        series.retain(|_, series| match series {
            Series::Held(holders) => holders.iter().any(|holder| holder.strong_count() > 0),
            Series::Kept(_) | Series::Histogram(_) => true,
        });
        let mut lines = String::new();
        for (labels, series) in series {
            match series {
                Series::Held(holders) => {
                    let values =
                        holders.iter().filter_map(Weak::upgrade).map(|cell| shown(metric.kind, cell.get(), now));
                    if let Some(value) = values.filter(|value| !value.is_nan()).reduce(|a, b| merge(metric.kind, a, b))
                    {
                        write_line(&mut lines, metric.name, labels_of(metric, labels), value);
                    }
                }
                Series::Kept(cell) => write_line(&mut lines, metric.name, labels_of(metric, labels), cell.get()),
                Series::Histogram(classes) => classes.render(&mut lines, metric.name, &labels_of(metric, labels)),
            }
        }
        if !lines.is_empty() {
            let Metric { name, kind, help, .. } = metric;
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {}\n{lines}\n", kind.type_name());
        }
    }
}

/// What is shown of the value that a holder has set.
fn shown(kind: Kind, value: f64, now: f64) -> f64 {
    match kind {
        // `max` would turn the NaN of a value never set into 0.
        Kind::HeldSince if !value.is_nan() => (now - value).max(0.0),
        _ => value,
    }
}

fn merge(kind: Kind, a: f64, b: f64) -> f64 {
    match kind {
        Kind::Held(Merge::Sum) | Kind::HeldCounter => a + b,
        _ => a.max(b),
    }
}

fn labels_of<'a>(metric: &Metric, values: &'a [String]) -> Vec<(&'a str, &'a str)> {
    metric.labels.iter().copied().zip(values.iter().map(String::as_str)).collect()
}

/// Appends one sample in Prometheus' text format.
pub(super) fn write_line<'a>(
    text: &mut String,
    name: &str,
    labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    value: f64,
) {
    text.push_str(name);
    let mut before = '{';
    for (label, value) in labels {
        let _ = write!(text, "{before}{label}=\"");
        value.chars().for_each(|c| match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        });
        text.push('"');
        before = ',';
    }
    if before == ',' {
        text.push('}');
    }
    let _ = match value {
        // As the format has it; we would write "inf".
        f64::INFINITY => writeln!(text, " +Inf"),
        _ => writeln!(text, " {value}"),
    };
}

/// A number that anybody may read while its holders change it.
#[derive(Debug)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    pub(super) fn new(value: f64) -> Self {
        Self(AtomicU64::new(value.to_bits()))
    }
    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
    pub(super) fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
    pub(super) fn add(&self, by: f64) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + by).to_bits()));
    }
}

/// A series' value.
#[derive(Debug, Clone)]
pub(super) struct Value(Arc<Cell>);

impl Value {
    pub(super) fn set(&self, value: f64) {
        self.0.set(value);
    }
    pub(super) fn add(&self, by: f64) {
        self.0.add(by);
    }
    /// For a series that shows the seconds since: something began at `at`.
    pub(super) fn since(&self, at: SystemTime) {
        self.set(unix(at));
    }
    /// For a series that shows the seconds since: nothing is going on, it shows 0.
    pub(super) fn idle(&self) {
        self.set(f64::INFINITY);
    }
}

/// A histogram that counts into its classes at once, in constant memory.
#[derive(Debug, Clone)]
pub(super) struct Histogram(Arc<Classes>);

#[derive(Debug)]
pub(super) struct Classes {
    bounds: &'static [f64],
    /// One more than bounds: the last has none.
    counts: Box<[AtomicU64]>,
    sum: Cell,
}

impl Histogram {
    pub(super) fn observe(&self, value: f64) {
        self.0.observe(value);
    }

    /// Adds what was counted elsewhere, by class; `sum` is that of all its values.
    pub(super) fn add(&self, counts: &[u64], sum: f64) {
        for (count, by) in self.0.counts.iter().zip(counts).filter(|(_, by)| **by > 0) {
            count.fetch_add(*by, Relaxed);
        }
        self.0.sum.add(sum);
    }
}

impl Classes {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: Cell::new(0.0) }
    }

    pub(super) fn observe(&self, value: f64) {
        let class = self.bounds.partition_point(|bound| *bound < value);
        self.counts[class].fetch_add(1, Relaxed);
        self.sum.add(value);
    }

    pub(super) fn render(&self, text: &mut String, name: &str, labels: &[(&str, &str)]) {
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (class, count) in self.counts.iter().enumerate() {
            below += count.load(Relaxed);
            let le = self.bounds.get(class).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            write_line(text, &bucket, labels.iter().copied().chain([("le", le.as_str())]), below as f64);
        }
        write_line(text, &format!("{name}_sum"), labels.iter().copied(), self.sum.get());
        write_line(text, &format!("{name}_count"), labels.iter().copied(), below as f64);
    }
}

/// Seconds since 1970-01-01 UTC.
pub(super) fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    fn text(registry: &Registry, now: f64) -> Vec<String> {
        let mut text = String::new();
        registry.render(&mut text, now);
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn a_held_series_shows_once_set_and_vanishes_with_its_holder() {
        let registry = Registry::default();
        let lag = registry.held(&table::LAG_RECORDS, &["r", "t", "3"]);
        assert_eq!(text(&registry, 0.0), [""; 0]);
        lag.set(7.0);
        assert_eq!(text(&registry, 0.0), [r#"millrace_consumer_lag_records{route="r",topic="t",partition="3"} 7"#]);
        drop(lag);
        assert_eq!(text(&registry, 0.0), [""; 0]);
    }

    #[test]
    fn what_several_holders_say_is_merged() {
        let registry = Registry::default();
        let memory = [10.0, 32.0].map(|bytes| {
            let value = registry.held(&table::PLUGIN_MEMORY, &["r", "p"]);
            value.set(bytes);
            value
        });
        let commits = [5.0, 9.0].map(|at| {
            let value = registry.held(&table::LAST_COMMIT, &["r"]);
            value.set(at);
            value
        });
        assert_eq!(
            text(&registry, 0.0),
            [
                r#"millrace_last_commit_timestamp_seconds{route="r"} 9"#,
                r#"millrace_plugin_memory_bytes{route="r",plugin="p"} 42"#
            ]
        );
        drop((memory, commits));
    }

    #[test]
    fn seconds_since_run_until_idle() {
        let registry = Registry::default();
        let open = registry.held(&table::TRANSACTION_OPEN, &["r"]);
        for (set, expected) in [(90.0, "10"), (f64::INFINITY, "0"), (101.0, "0")] {
            open.set(set);
            assert_eq!(
                text(&registry, 100.0),
                [format!("millrace_transaction_open_seconds{{route=\"r\"}} {expected}")]
            );
        }
    }

    #[test]
    fn a_histogram_counts_cumulatively_and_a_bound_belongs_to_its_class() {
        let registry = Registry::default();
        let commits = registry.histogram(&table::COMMIT_DURATION, &["r"]);
        commits.observe(0.001);
        commits.observe(99.0);
        commits.add(&[1, 2], 0.005);
        let lines = text(&registry, 0.0);
        for expected in [
            r#"millrace_commit_duration_seconds_bucket{route="r",le="0.001"} 2"#,
            r#"millrace_commit_duration_seconds_bucket{route="r",le="0.0025"} 4"#,
            r#"millrace_commit_duration_seconds_bucket{route="r",le="10"} 4"#,
            r#"millrace_commit_duration_seconds_bucket{route="r",le="+Inf"} 5"#,
            r#"millrace_commit_duration_seconds_sum{route="r"} 99.006"#,
            r#"millrace_commit_duration_seconds_count{route="r"} 5"#,
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected} is not in {lines:#?}");
        }
    }

    #[test]
    fn what_is_unlimited_is_written_as_the_format_has_it() {
        let registry = Registry::default();
        let limit = registry.held(&table::MEMORY_LIMIT, &[]);
        limit.set(f64::INFINITY);
        assert_eq!(text(&registry, 0.0), ["millrace_memory_limit_bytes +Inf"]);
    }

    #[test]
    fn label_values_are_escaped() {
        let registry = Registry::default();
        registry.kept(&table::BROKER_THROTTLE, &["a\"b\\c\nd"]);
        assert_eq!(text(&registry, 0.0), [r#"millrace_broker_throttle_seconds_total{route="a\"b\\c\nd"} 0"#]);
    }
}
