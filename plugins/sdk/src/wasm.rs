//! The sandbox's border: the only file that knows the generated bindings. Hidden from authors; the export macros use it.

use std::cell::RefCell;

use crate::log::{self, Level};
use crate::output::{Output, Sink};
use crate::record::{self, Column, Columns, Header};
use crate::{Config, Filter, Transform, Verdict};

pub use filter::millrace::plugin::input::Batch;
pub use filter::millrace::plugin::types::Failure;
pub use millrace_plugin_filter_bindings::bindings as filter;
pub use millrace_plugin_transform_bindings::bindings as transform;

/// The plugin of this module instance, once configured.
pub struct Instance<P>(RefCell<Option<P>>);

impl<P: Plugin> Instance<P> {
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    pub fn configure(&self, config: &str) -> Result<(), Failure> {
        // Else the host would see a trap without a word about it.
        std::panic::set_hook(Box::new(|panic| log::error(panic.to_string())));
        *self.0.borrow_mut() = Some(P::configure(config).map_err(Failure::BadConfig)?);
        Ok(())
    }

    pub fn process(&self, batch: &Batch) -> Result<Vec<u8>, Failure> {
        let mut plugin = self.0.borrow_mut();
        let plugin = plugin.as_mut().ok_or_else(|| Failure::Permanent("called before it was configured".into()))?;
        let verdicts = plugin.process(batch);
        log::set_current(None);
        verdicts
    }

    pub fn shutdown(&self) {
        if let Some(plugin) = self.0.borrow_mut().as_mut() {
            plugin.shutdown();
        }
    }
}

/// What the two kinds of plugins have in common.
pub trait Plugin: Sized {
    fn configure(config: &str) -> Result<Self, String>;
    fn process(&mut self, batch: &Batch) -> Result<Vec<u8>, Failure>;
    fn shutdown(&mut self);
}

pub struct FilterPlugin<P>(P);

impl<P: Filter> Plugin for FilterPlugin<P> {
    fn configure(config: &str) -> Result<Self, String> {
        P::configure(P::Config::from_json(config)?).map(Self)
    }

    fn process(&mut self, batch: &Batch) -> Result<Vec<u8>, Failure> {
        let records = record::Batch::new(batch);
        let judge = |(index, record)| {
            log::set_current(Some(index));
            verdict_byte(batch, index, self.0.filter(&record))
        };
        records.records().enumerate().map(judge).collect()
    }

    fn shutdown(&mut self) {
        self.0.shutdown();
    }
}

pub struct TransformPlugin<P>(P);

impl<P: Transform> Plugin for TransformPlugin<P> {
    fn configure(config: &str) -> Result<Self, String> {
        P::configure(P::Config::from_json(config)?).map(Self)
    }

    fn process(&mut self, batch: &Batch) -> Result<Vec<u8>, Failure> {
        let records = record::Batch::new(batch);
        let mut output = Output::default();
        let judge = |(index, record)| {
            log::set_current(Some(index));
            output.start_record(index);
            verdict_byte(batch, index, self.0.transform(&record, &mut output))
        };
        let verdicts = records.records().enumerate().map(judge).collect::<Result<_, _>>()?;
        output.finish(&mut Host);
        Ok(verdicts)
    }

    fn shutdown(&mut self) {
        self.0.shutdown();
    }
}

fn verdict_byte(batch: &Batch, index: usize, verdict: Verdict) -> Result<u8, Failure> {
    match verdict {
        Verdict::Keep => Ok(0),
        Verdict::Drop => Ok(1),
        Verdict::Refuse(reason) => {
            batch.refuse(index as u32, &reason);
            Ok(2)
        }
        Verdict::Retry(reason) => Err(Failure::Retry(reason)),
        Verdict::Permanent(reason) => Err(Failure::Permanent(reason)),
    }
}

type HostColumn = filter::millrace::plugin::types::Column;

impl From<HostColumn> for Column {
    fn from(HostColumn { bytes, ends, nulls }: HostColumn) -> Self {
        Self { bytes, ends, nulls }
    }
}

impl From<Column> for HostColumn {
    fn from(Column { bytes, ends, nulls }: Column) -> Self {
        Self { bytes, ends, nulls }
    }
}

impl Columns for Batch {
    fn len(&self) -> usize {
        Batch::len(self) as usize
    }
    fn topic(&self) -> String {
        Batch::topic(self)
    }
    fn partition(&self) -> i32 {
        Batch::partition(self)
    }
    fn offsets(&self) -> Vec<i64> {
        Batch::offsets(self, 0, Batch::len(self))
    }
    fn timestamps(&self) -> Vec<i64> {
        Batch::timestamps(self, 0, Batch::len(self))
    }
    fn keys(&self) -> Column {
        Batch::keys(self, 0, Batch::len(self)).into()
    }
    fn values(&self) -> Column {
        Batch::values(self, 0, Batch::len(self)).into()
    }
    fn header(&self, name: &str) -> Column {
        Batch::header(self, 0, Batch::len(self), name).into()
    }
    fn headers(&self, index: u32) -> Vec<Header> {
        Batch::headers(self, index)
    }
}

struct Host;

use transform::millrace::plugin::output;

impl Sink for Host {
    fn emit(&mut self, destination: &str, sources: &[u32], values: Column) -> u32 {
        output::emit(destination, sources, &values.into())
    }
    fn forward(&mut self, destination: &str, sources: &[u32]) {
        output::forward(destination, sources);
    }
    fn set_keys(&mut self, first: u32, keys: Column) {
        output::set_keys(first, &keys.into());
    }
    fn set_timestamps(&mut self, first: u32, timestamps: &[i64]) {
        output::set_timestamps(first, timestamps);
    }
    fn set_partitions(&mut self, first: u32, partitions: &[i32]) {
        output::set_partitions(first, partitions);
    }
    fn set_topics(&mut self, first: u32, topics: &[String]) {
        output::set_topics(first, topics);
    }
    fn set_header(&mut self, first: u32, name: &str, values: Column) {
        output::set_header(first, name, &values.into());
    }
    fn add_header(&mut self, first: u32, name: &str, values: Column) {
        output::add_header(first, name, &values.into());
    }
}

pub(crate) fn write_log(level: Level, message: &str, about: Option<u32>) {
    use filter::millrace::plugin::log;
    let level = match level {
        Level::Trace => log::Level::Trace,
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    };
    log::log(level, message, about);
}
