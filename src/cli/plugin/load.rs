//! A plugin's file on the command line, made ready as the router does it: read, compiled, instantiated and configured.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::ValueHint;
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;
use serde_json::value::RawValue;

use super::super::{Failure, run};
use crate::config::settings::{Capability, PluginLimits};
use crate::config::{parse_duration, parse_size};
use crate::model::{DestinationName, PluginName, RouteName};
use crate::pipeline::chain::Chain;
use crate::pipeline::ports::Step;
use crate::plugin::{Compiled, DestinationSpec, Engine, EngineOptions, LoadError, PLUGIN_BYTES_MAX, Prepare, Prepared};

/// The default of `batch.bytes`: a call gets no more bytes of values than that.
const CALL_BYTES: usize = 256 << 10;
/// Defaults of `max_outputs` and `max_output_bytes`.
const OUTPUTS: u32 = 1_000;
const OUTPUT_BYTES: u64 = 16 << 20;

/// A plugin, and what its YAML would say of it.
#[derive(clap::Args)]
pub(super) struct PluginArguments {
    /// The plugin: a component, or a core module that carries its component type
    #[arg(value_name = "PLUGIN.wasm", value_hint = ValueHint::FilePath)]
    pub(super) file: PathBuf,
    /// Its config: JSON, or @FILE for what a file holds [default: {}]
    #[arg(long, value_name = "JSON|@FILE")]
    config: Option<String>,
    /// A destination that it may name; NAME=REGEX for one whose topic it names, which must match. May be repeated
    #[arg(long = "destination", value_name = "NAME[=REGEX]", value_parser = destination)]
    destinations: Vec<DestinationSpec>,
    /// A capability that it is granted: metrics, clock or random. May be repeated
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',', value_parser = capability)]
    allow: Vec<Capability>,
    /// Ceiling of its memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    memory: u64,
    /// Ceiling of its CPU time for one record
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    timeout: Duration,
}

fn destination(text: &str) -> Result<DestinationSpec, String> {
    let (name, pattern) = text.split_once('=').map_or((text, None), |(name, pattern)| (name, Some(pattern)));
    let name = DestinationName::new(name).map_err(|error| error.to_string())?;
    let topic_pattern = pattern.map(|pattern| Regex::new(&format!("^(?:{pattern})$")));
    Ok(DestinationSpec { name, topic_pattern: topic_pattern.transpose().map_err(|error| error.to_string())? })
}

fn capability(text: &str) -> Result<Capability, String> {
    let found = Capability::ALL.into_iter().find(|capability| capability.as_str() == text);
    found.ok_or_else(|| format!("it can be {}", Capability::ALL.map(Capability::as_str).join(", ")))
}

impl PluginArguments {
    /// The engine with the cache that the daemon uses by default.
    pub(super) fn engine() -> Result<Engine, Failure> {
        engine(run::default_cache_dir())
    }

    /// The plugin by its file's name.
    pub(super) fn name(&self) -> PluginName {
        let stem = self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        PluginName::new(stem).unwrap_or_else(|_| PluginName::new("plugin").expect("it is a name"))
    }

    pub(super) fn compile(&self, engine: &Engine, bytes: &[u8]) -> Result<Compiled, Failure> {
        engine.compile(&self.name(), bytes).map_err(|error| cannot_be_used(&self.file, error))
    }

    /// Instantiated and configured, to prove that it works.
    pub(super) fn prepare(&self, compiled: &Compiled) -> Result<Arc<Prepared>, Failure> {
        let with = Prepare {
            plugin: self.name(),
            route: RouteName::new("plugin-run").expect("it is a name"),
            config_json: self.config_json()?,
            limits: PluginLimits {
                memory: self.memory,
                timeout: self.timeout,
                outputs: OUTPUTS,
                output_bytes: OUTPUT_BYTES,
            },
            destinations: self.destinations.as_slice().into(),
            allow: self.allow.clone(),
        };
        compiled.prepare(with).map(Arc::new).map_err(|error| cannot_be_used(&self.file, error))
    }

    /// The router's own chain with this one step, and so many records at most in a call.
    pub(super) fn chain(&self, prepared: &Arc<Prepared>, records: usize) -> Chain {
        let step: Box<dyn Step> = Box::new(prepared.ready_step());
        Chain::new(vec![(step, self.timeout)], records, CALL_BYTES)
    }

    /// Names of the destinations, in the order of their indices.
    pub(super) fn destination_name(&self, index: u16) -> &str {
        self.destinations[usize::from(index)].name.as_str()
    }

    fn config_json(&self) -> Result<String, Failure> {
        let text = match self.config.as_deref() {
            None => "{}".to_owned(),
            Some(given) => match given.strip_prefix('@') {
                None => given.to_owned(),
                Some(path) => fs::read_to_string(path)
                    .with_context(|| format!("{path} (--config) cannot be read"))
                    .map_err(Failure::Environment)?,
            },
        };
        serde_json::from_str::<&RawValue>(&text)
            .map_err(|error| Failure::Usage(anyhow!("--config is not JSON: {error}")))?;
        Ok(text)
    }
}

pub(super) fn engine(cache_dir: Option<PathBuf>) -> Result<Engine, Failure> {
    Engine::new(EngineOptions { cache_dir, ..EngineOptions::default() })
        .map_err(|error| Failure::Environment(error.into()))
}

/// The plugin's bytes; one byte more than any plugin has is enough to tell that it is too large.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PLUGIN_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("{} cannot be read", path.display())).map_err(Failure::Environment)?;
    Ok(bytes)
}

pub(super) fn cannot_be_used(path: &Path, error: LoadError) -> Failure {
    let engine = matches!(error, LoadError::Engine(_));
    let error = anyhow!(error).context(format!("{} cannot be used", path.display()));
    if engine { Failure::Environment(error) } else { Failure::Usage(error) }
}

/// Does what may take long, and says so on a terminal meanwhile.
pub(in crate::cli) fn with_progress<T>(what: &str, work: impl FnOnce() -> T) -> T {
    // (stays silent where stderr is no terminal)
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("it is a template"));
    spinner.enable_steady_tick(Duration::from_millis(150));
    let done = work();
    spinner.finish_and_clear();
    done
}
