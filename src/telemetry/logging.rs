//! Logs: fields first, one line an event, to stderr. Level and format can be changed while the process runs.
//!
//! A thread of its own writes them, where stderr is no file. Whoever reads a pipe may stop to do so: no route, no
//! call of a plugin and no thread of the client library waits for that. What there is no room for meanwhile is dropped and counted.

use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Registry, reload};

/// How many lines may wait to be written.
const LINES_MAX: usize = 16_384;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What to log and how.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Of our own events; the libraries' are shown from `warn`.
    pub level: Level,
    /// For people or for machines.
    pub format: LogFormat,
    /// Directives that replace `level` for the life of the process (`MILLRACE_LOG`): `debug`, `millrace::kafka=trace,info`.
    pub filter: Option<String>,
    /// Whether text is coloured: see [`stderr_has_colour`].
    pub colour: bool,
}

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The directives make no sense, and why.
    #[error("MILLRACE_LOG: {0}")]
    Filter(String),
    /// There can be one subscriber in a process.
    #[error("logging was set up twice in this process")]
    Twice(#[source] TryInitError),
}

/// Whether colours are welcome on stderr: on a terminal that knows them, unless `NO_COLOR` says no.
pub fn stderr_has_colour(env: &dyn Fn(&str) -> Option<String>) -> bool {
    std::io::stderr().is_terminal()
        && env("NO_COLOR").is_none_or(|value| value.is_empty())
        && env("TERM").is_none_or(|term| term != "dumb")
}

/// Changes what is logged while the process runs.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    json: Arc<AtomicBool>,
    fixed: bool,
    /// Writes what waits when it is dropped.
    writer: Arc<Mutex<Option<WorkerGuard>>>,
}

impl LogHandle {
    /// Sets up logging for the process.
    ///
    /// # Errors
    /// Directives that cannot be read, or a second call in one process.
    pub fn init(options: &LogOptions) -> Result<Self, InitError> {
        let filter = match &options.filter {
            Some(directives) => read(directives).map_err(InitError::Filter)?,
            None => filter(options.level),
        };
        let (filter, handle) = reload::Layer::new(filter);
        let json = Arc::new(AtomicBool::new(options.format == LogFormat::Json));
        let (writer, guard) = writer();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_ansi(options.colour)
            .event_format(Lines::new(json.clone()));
        tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(InitError::Twice)?;
        let writer = Arc::new(Mutex::new(guard));
        Ok(Self { filter: handle, json, fixed: options.filter.is_some(), writer })
    }

    /// At the end of the process: writes what still waits, for about a second at most. What is logged after that is lost.
    pub fn finish(&self) {
        drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Logs by these directives from now on, until the next [`LogHandle::set`].
    ///
    /// # Errors
    /// They cannot be read.
    pub fn direct(&self, directives: &str) -> Result<(), String> {
        let filter = match directives.trim().parse() {
            Ok(level) => filter(level),
            Err(_) => read(directives)?,
        };
        let _ = self.filter.reload(filter);
        Ok(())
    }

    /// By which directives it logs.
    pub fn directives(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// One that nobody writes by.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        let (layer, handle) = reload::Layer::new(filter(Level::INFO));
        // (the handle only works while there is a layer)
        std::mem::forget(layer);
        Self { filter: handle, json: Arc::default(), fixed: false, writer: Arc::default() }
    }

    /// Takes up another level (unless directives were given, which stay) and format.
    pub fn set(&self, level: Level, format: LogFormat) {
        if !self.fixed {
            // Fails only when the subscriber is gone, and with it every reader.
            let _ = self.filter.reload(filter(level));
        }
        self.json.store(format == LogFormat::Json, Relaxed);
    }
}

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// What a layer writes to, which never waits.
fn writer() -> (BoxMakeWriter, Option<WorkerGuard>) {
    // (a file takes all)
    let is_file = rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile);
    if is_file {
        return (BoxMakeWriter::new(std::io::stderr), None);
    }
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    let (writer, guard) = builder.finish(std::io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    (BoxMakeWriter::new(writer), Some(guard))
}

/// Lines of this process that were dropped since stderr took no more.
pub(super) fn dropped_lines() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Our own events from `level`; those of libraries from `warn`, since their `debug` is for their authors.
fn filter(level: Level) -> EnvFilter {
    let libraries = level.min(Level::WARN);
    EnvFilter::new(format!("{libraries},millrace={level}"))
}

/// Levels, each with a target or for all. The parser alone takes nothing for the end of all lines, and a slip such as `inof` for
/// a target, which ends them as well.
fn read(directives: &str) -> Result<EnvFilter, String> {
    let parts: Vec<&str> = directives.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_target =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
    let is_level = |name: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(name));
    let is_directive = |part: &&str| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(part),
    };
    let write = "write trace, debug, info, warn or error, or a list such as millrace::kafka=trace,info";
    match parts.iter().find(|part| !is_directive(part)) {
        Some(slip) => Err(format!("`{slip}` is no level: {write}")),
        None if parts.is_empty() => Err(format!("no level is given: {write}")),
        None => EnvFilter::builder().parse(parts.join(",")).map_err(|error| error.to_string()),
    }
}

const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

/// Both formats behind a switch. A layer that is exchanged while spans are open would find them without its own notes;
/// here spans are not part of a line, and the layer stays.
struct Lines {
    json: Arc<AtomicBool>,
    as_text: Format<Full>,
    as_json: Format<Json>,
}

impl Lines {
    fn new(json: Arc<AtomicBool>) -> Self {
        let as_json = Format::default().json().flatten_event(true).with_current_span(false).with_span_list(false);
        Self { json, as_text: Format::default(), as_json }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.json.load(Relaxed) {
            self.as_json.format_event(ctx, writer, event)
        } else {
            self.as_text.format_event(ctx, writer, event)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn the_format_changes_while_it_runs_even_inside_a_span() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let json = Arc::new(AtomicBool::new(false));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer({
                let written = written.clone();
                move || Sink(written.clone())
            })
            .with_ansi(false)
            .event_format(Lines::new(json.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let _span = tracing::info_span!("outer", a = 1).entered();
            tracing::info!(address = %"127.0.0.1:9400", "admin endpoint listening");
            json.store(true, Relaxed);
            tracing::info!(address = %"127.0.0.1:9400", "admin endpoint listening");
        });
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let (first, second) = text.trim_end().split_once('\n').unwrap();
        assert!(first.ends_with("admin endpoint listening address=127.0.0.1:9400"), "{first}");
        let second: serde_json::Value = serde_json::from_str(second).unwrap();
        assert_eq!(second["address"], "127.0.0.1:9400");
        assert_eq!(second["message"], "admin endpoint listening");
        assert_eq!(second["level"], "INFO");
    }

    #[test]
    fn libraries_are_quieter_than_we_are_and_never_louder_than_asked() {
        for (level, expected) in [(Level::DEBUG, "millrace=debug,warn"), (Level::ERROR, "millrace=error,error")] {
            assert_eq!(filter(level).to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_level_is_refused_and_changes_nothing() {
        let log = LogHandle::detached();
        for (slip, told) in [
            ("", "no level is given"),
            (" , ", "no level is given"),
            ("inof", "`inof` is no level"),
            ("trace*", "`trace*` is no level"),
            ("millrace=inof,info", "`millrace=inof` is no level"),
            ("=info", "`=info` is no level"),
            ("[span]=info", "`[span]=info` is no level"),
        ] {
            let refused = log.direct(slip).expect_err(slip);
            assert!(refused.starts_with(told) && refused.contains("millrace::kafka=trace,info"), "{refused}");
            assert_eq!(log.directives(), "millrace=info,warn");
        }
        for (taken, directives) in [(" debug ", "millrace=debug,warn"), ("h2=warn, DEBUG", "h2=warn,debug")] {
            assert_eq!(log.direct(taken), Ok(()));
            assert_eq!(log.directives(), directives);
        }
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
