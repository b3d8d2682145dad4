//! What plugins count themselves: series that come into being while records flow, under names that strangers chose. Hence
//! bounded in number and length, and named by kind, so that no plugin can spoil the page or another's metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::series::{Cell, Classes, write_line};
use super::table::PLUGIN_METRICS_DROPPED;
use crate::model::{Digest, PluginName, RouteName};

/// Series of one plugin in one route.
pub const CUSTOM_SERIES_MAX: usize = 100;
const NAME_MAX: usize = 64;
const LABELS_MAX: usize = 4;
const LABEL_NAME_MAX: usize = 32;
const LABEL_VALUE_MAX: usize = 128;
/// Classes of every histogram, since its unit is unknown: 0.0001 to 50,000.
const BOUNDS: &[f64] = &[
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0,
    250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4,
];
/// What the exposition format puts behind a name itself.
const SUFFIXES: [&str; 5] = ["_total", "_bucket", "_sum", "_count", "_created"];

/// The kinds of metrics that a plugin can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CustomKind {
    /// Only grows.
    Counter,
    /// Is set.
    Gauge,
    /// Counts values by class.
    Histogram,
}

impl CustomKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The metrics of all plugins. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct CustomMetrics(Arc<Mutex<Shown>>);

type Shown = BTreeMap<(RouteName, PluginName), Weak<Set>>;

impl CustomMetrics {
    /// Those of a plugin in a route, shown for as long as somebody holds them. Where they are shown already for the same
    /// file they go on; another file begins anew and is shown instead.
    pub fn of(&self, route: &RouteName, plugin: &PluginName, sha256: &Digest) -> PluginMetrics {
        let mut shown = lock(&self.0);
        let key = (route.clone(), plugin.clone());
        if let Some(same) = shown.get(&key).and_then(Weak::upgrade).filter(|set| set.sha256 == *sha256) {
            return PluginMetrics(same);
        }
        shown.retain(|_, set| set.strong_count() > 0);
        let metrics = PluginMetrics::hidden(*sha256);
        shown.insert(key, Arc::downgrade(&metrics.0));
        metrics
    }

    /// Appends all in Prometheus' text format.
    pub fn render(&self, text: &mut String) {
        let mut families: BTreeMap<(CustomKind, String), String> = BTreeMap::new();
        let mut dropped = String::new();
        for ((route, plugin), set) in &*lock(&self.0) {
            let Some(set) = set.upgrade() else { continue };
            let own = [("route", route.as_str()), ("plugin", plugin.as_str())];
            write_line(&mut dropped, PLUGIN_METRICS_DROPPED.name, own, set.dropped.load(Relaxed) as f64);
            for ((kind, name, labels), series) in &*lock(&set.series) {
                let lines = families.entry((*kind, name.clone())).or_default();
                let labels = own.into_iter().chain(labels.iter().map(|(name, value)| (&**name, &**value)));
                series.render(lines, &shown_name(*kind, name), &labels.collect::<Vec<_>>());
            }
        }
        let mut family = |name: &str, help: &str, kind: &str, lines: &str| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}\n");
        };
        for ((kind, name), lines) in &families {
            let kind_name = kind.as_str();
            family(&shown_name(*kind, name), &format!("A {kind_name} of plugins' own."), kind_name, lines);
        }
        if !dropped.is_empty() {
            let dropping = &PLUGIN_METRICS_DROPPED;
            family(dropping.name, dropping.help, dropping.kind.type_name(), &dropped);
        }
    }
}

fn shown_name(kind: CustomKind, name: &str) -> String {
    let suffix = if kind == CustomKind::Counter { "_total" } else { "" };
    format!("millrace_plugin_{}_{name}{suffix}", kind.as_str())
}

type Labels = Vec<(String, String)>;

/// What one plugin counts in one route; all workers of the route count into the same. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PluginMetrics(Arc<Set>);

#[derive(Debug)]
struct Set {
    sha256: Digest,
    series: Mutex<BTreeMap<(CustomKind, String, Labels), CustomSeries>>,
    dropped: AtomicU64,
}

impl PluginMetrics {
    /// Metrics that are shown nowhere: of a plugin that is only tried out.
    pub fn hidden(sha256: Digest) -> Self {
        Self(Arc::new(Set { sha256, series: Mutex::default(), dropped: AtomicU64::new(0) }))
    }

    /// A series, made where it is not there yet.
    ///
    /// # Errors
    /// Which rule of names or bounds it breaks. The caller counts what it leaves out by [`PluginMetrics::dropped`].
    pub fn series(&self, kind: CustomKind, name: &str, labels: &[(String, String)]) -> Result<CustomSeries, String> {
        check(kind, name, labels)?;
        let mut labels = labels.to_vec();
        labels.sort_unstable();
        if labels.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("metric \"{name}\": it gives a label twice"));
        }
        let mut series = lock(&self.0.series);
        let key = (kind, name.to_owned(), labels);
        if let Some(known) = series.get(&key) {
            return Ok(known.clone());
        }
        if series.len() >= CUSTOM_SERIES_MAX {
            return Err(format!("metric \"{name}\": it has {CUSTOM_SERIES_MAX} series already"));
        }
        Ok(series.entry(key).or_insert_with(|| CustomSeries::new(kind)).clone())
    }

    /// One more was left out.
    pub fn dropped(&self) {
        self.0.dropped.fetch_add(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insertion: whole, or not there.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(kind: CustomKind, name: &str, labels: &[(String, String)]) -> Result<(), String> {
    let is_name = |name: &str, most: usize| {
        name.len() <= most
            && name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let named = |what: &str, name: &str, most: usize| {
        format!(
            "{what} {name:?}: names are a lower-case letter and then lower-case letters, digits and _, {most} at most"
        )
    };
    if !is_name(name, NAME_MAX) {
        return Err(named("metric", name, NAME_MAX));
    }
    if let Some(suffix) = SUFFIXES.iter().find(|suffix| name.ends_with(**suffix)) {
        return Err(format!("metric \"{name}\": `{suffix}` is added where it belongs, a name is without"));
    }
    if labels.len() > LABELS_MAX {
        return Err(format!("{} \"{name}\": it has {} labels, of at most {LABELS_MAX}", kind.as_str(), labels.len()));
    }
    for (label, value) in labels {
        if !is_name(label, LABEL_NAME_MAX) {
            return Err(named("label", label, LABEL_NAME_MAX));
        }
        if ["route", "plugin", "le"].contains(&label.as_str()) {
            return Err(format!("metric \"{name}\": the label `{label}` is the router's"));
        }
        if value.len() > LABEL_VALUE_MAX {
            return Err(format!("metric \"{name}\": the label `{label}` has more than {LABEL_VALUE_MAX} bytes"));
        }
    }
    Ok(())
}

/// A series of a plugin's own. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub enum CustomSeries {
    /// Only grows.
    Counter(CustomValue),
    /// Is set.
    Gauge(CustomValue),
    /// Counts values by class.
    Histogram(CustomClasses),
}

/// The number of a counter or a gauge.
#[derive(Debug, Clone)]
pub struct CustomValue(Arc<Cell>);

/// The classes of a histogram.
#[derive(Debug, Clone)]
pub struct CustomClasses(Arc<Classes>);

impl CustomSeries {
    fn new(kind: CustomKind) -> Self {
        let value = || CustomValue(Arc::new(Cell::new(0.0)));
        match kind {
            CustomKind::Counter => Self::Counter(value()),
            CustomKind::Gauge => Self::Gauge(value()),
            CustomKind::Histogram => Self::Histogram(CustomClasses(Arc::new(Classes::new(BOUNDS)))),
        }
    }

    /// Adds to a counter, sets a gauge, counts into a histogram; says whether the number can be taken.
    pub fn take(&self, number: f64) -> bool {
        match self {
            Self::Counter(value) if number.is_finite() && number >= 0.0 => value.0.add(number),
            Self::Gauge(value) if number.is_finite() => value.0.set(number),
            Self::Histogram(classes) if number.is_finite() => classes.0.observe(number),
            Self::Counter(_) | Self::Gauge(_) | Self::Histogram(_) => return false,
        }
        true
    }

    fn render(&self, lines: &mut String, name: &str, labels: &[(&str, &str)]) {
        match self {
            Self::Counter(value) | Self::Gauge(value) => write_line(lines, name, labels.iter().copied(), value.0.get()),
            Self::Histogram(classes) => classes.0.render(lines, name, labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> (CustomMetrics, PluginMetrics) {
        let all = CustomMetrics::default();
        let of = (RouteName::new("r").unwrap(), PluginName::new("p").unwrap());
        let metrics = all.of(&of.0, &of.1, &Digest::of(b"file"));
        (all, metrics)
    }

    fn text(all: &CustomMetrics) -> String {
        let mut text = String::new();
        all.render(&mut text);
        text
    }

    fn label(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn each_kind_is_shown_under_a_name_of_its_own_and_vanishes_with_its_holder() {
        let (all, metrics) = page();
        for kind in [CustomKind::Counter, CustomKind::Gauge, CustomKind::Histogram] {
            let series = metrics.series(kind, "x", &[label("b", "2\""), label("a", "1")]).unwrap();
            assert!(series.take(3.0));
        }
        let shown = text(&all);
        for line in [
            "# TYPE millrace_plugin_counter_x_total counter",
            r#"millrace_plugin_counter_x_total{route="r",plugin="p",a="1",b="2\""} 3"#,
            r#"millrace_plugin_gauge_x{route="r",plugin="p",a="1",b="2\""} 3"#,
            r#"millrace_plugin_histogram_x_bucket{route="r",plugin="p",a="1",b="2\"",le="2.5"} 0"#,
            r#"millrace_plugin_histogram_x_bucket{route="r",plugin="p",a="1",b="2\"",le="5"} 1"#,
            r#"millrace_plugin_histogram_x_sum{route="r",plugin="p",a="1",b="2\""} 3"#,
            r#"millrace_plugin_metrics_dropped_total{route="r",plugin="p"} 0"#,
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} is not in:\n{shown}");
        }
        drop(metrics);
        assert_eq!(text(&all), "");
    }

    #[test]
    fn the_same_file_goes_on_counting_and_another_begins_anew() {
        let (all, metrics) = page();
        let (route, plugin) = (RouteName::new("r").unwrap(), PluginName::new("p").unwrap());
        metrics.series(CustomKind::Counter, "x", &[]).unwrap().take(1.0);
        let same = all.of(&route, &plugin, &Digest::of(b"file"));
        same.series(CustomKind::Counter, "x", &[]).unwrap().take(1.0);
        assert!(text(&all).contains("_x_total{route=\"r\",plugin=\"p\"} 2\n"), "{}", text(&all));
        let _other = all.of(&route, &plugin, &Digest::of(b"other"));
        assert!(!text(&all).contains("_x_total"), "{}", text(&all));
    }

    #[test]
    fn what_breaks_a_rule_of_names_or_bounds_is_refused_with_the_rule() {
        let (_all, metrics) = page();
        let long = "x".repeat(65);
        let five: Vec<_> = (0..5).map(|n| label(&format!("l{n}"), "")).collect();
        /// A name, labels, and words of the rule that they break.
        type Case<'a> = (&'a str, &'a [(String, String)], &'a str);
        let cases: [Case<'_>; 11] = [
            ("", &[], "names are"),
            ("Upper", &[], "names are"),
            ("1st", &[], "names are"),
            ("a-b", &[], "names are"),
            (&long, &[], "64 at most"),
            ("x_total", &[], "`_total` is added"),
            ("x", &five, "5 labels"),
            ("x", &[label("le", "1")], "the router's"),
            ("x", &[label("__name__", "1")], "names are"),
            ("x", &[label("a", &"v".repeat(129))], "more than 128 bytes"),
            ("x", &[label("a", "1"), label("a", "2")], "twice"),
        ];
        for (name, labels, words) in cases {
            let refused = metrics.series(CustomKind::Gauge, name, labels).unwrap_err();
            assert!(refused.contains(words), "{name} {labels:?}: {refused}");
        }
        for (kind, number) in
            [(CustomKind::Counter, -1.0), (CustomKind::Gauge, f64::NAN), (CustomKind::Histogram, 1.0 / 0.0)]
        {
            assert!(!metrics.series(kind, "x", &[]).unwrap().take(number), "{kind:?} {number}");
        }
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let (_all, metrics) = page();
        let made = (0..200).filter(|n| metrics.series(CustomKind::Gauge, &format!("x{n}"), &[]).is_ok()).count();
        assert_eq!(made, CUSTOM_SERIES_MAX);
        assert!(metrics.series(CustomKind::Gauge, "x0", &[]).is_ok(), "one that is there stays in use");
    }
}
