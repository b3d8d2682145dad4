//! What plugins log, kept for whoever runs one by hand instead of written: see `millrace plugin run`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::logging::InitError;

/// The target of guests' events.
const GUEST: &str = "millrace::guest";

/// One line that a plugin logged.
#[derive(Debug, Clone)]
pub struct GuestLine {
    /// Its level.
    pub level: Level,
    /// What it says.
    pub message: String,
    /// Everything else of it by name: the coordinates of the record that it is about, where there is one.
    pub fields: BTreeMap<&'static str, Value>,
}

/// The lines of this process's plugins; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct GuestLines(Arc<Mutex<Vec<GuestLine>>>);

impl GuestLines {
    /// From now on keeps plugins' lines from `level`, for the process. Our own warnings go to stderr.
    ///
    /// # Errors
    /// Logging was set up before in this process.
    pub fn capture(level: Level, colour: bool) -> Result<Self, InitError> {
        let lines = Self::default();
        let of_guests = lines.clone().with_filter(filter_fn(|metadata| metadata.target() == GUEST));
        let ours = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colour).without_time();
        let ours =
            ours.with_filter(filter_fn(|metadata| metadata.target() != GUEST && *metadata.level() <= Level::WARN));
        // (plugins are asked for lines of this level only by a filter of all layers)
        let all = tracing_subscriber::registry().with(LevelFilter::from_level(level)).with(of_guests).with(ours);
        all.try_init().map_err(InitError::Twice)?;
        Ok(lines)
    }

    /// The lines since this was last asked.
    pub fn take(&self) -> Vec<GuestLine> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<GuestLine>> {
        // (every change of it is complete before anything that could panic)
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for GuestLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, fields } = fields;
        self.lock().push(GuestLine { level: *event.metadata().level(), message, fields });
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    fields: BTreeMap<&'static str, Value>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => drop(self.fields.insert(name, format!("{value:?}").into())),
        }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            name => drop(self.fields.insert(name, value.into())),
        }
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.insert(field.name(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.insert(field.name(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.insert(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugins_line_is_kept_with_its_coordinates_and_nobody_elses_is() {
        let lines = GuestLines::default();
        let of_guests = lines.clone().with_filter(filter_fn(|metadata| metadata.target() == GUEST));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(of_guests), || {
            tracing::warn!(target: "millrace::guest", plugin = %"p", offset = Some(7_i64), topic = None::<&str>, "odd");
            tracing::warn!("ours");
        });
        let [line] = &lines.take()[..] else { panic!("not one line") };
        assert_eq!((line.level, line.message.as_str()), (Level::WARN, "odd"));
        assert_eq!((line.fields.get("offset"), line.fields.get("topic")), (Some(&7.into()), None));
        assert!(lines.take().is_empty());
    }
}
