//! `millrace run`: the daemon.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigArgument, Failure, environment};
use crate::app;
use crate::config::settings::{Log, LogFormat, LogLevel};
use crate::config::{self, Loaded};
use crate::control::plan::Plan;
use crate::plugin::{Engine, EngineOptions};
use crate::telemetry::{self, LogHandle, LogOptions};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let loaded = config::load(&arguments.config.path()?, &environment).map_err(Failure::Invalid)?;
    start_logging(&loaded.settings.log).map_err(Failure::Running)?;
    for warning in loaded.warnings.iter() {
        tracing::warn!(at = warning.place().map(ToString::to_string), "{}", warning.message());
    }
    let plan = build(&loaded)?;
    runtime()?.block_on(async {
        let stop = stop_signal().context("signals cannot be waited for").map_err(Failure::Running)?;
        app::run(&loaded, plan, stop).await.map_err(failure)
    })
}

/// What serves HTTP and signals; routes have threads of their own.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build();
    runtime.context("the runtime cannot be started").map_err(Failure::Running)
}

pub(super) fn failure(error: app::AppError) -> Failure {
    match error {
        app::AppError::Client(_) | app::AppError::Admin(_) => Failure::Environment(error.into()),
        app::AppError::NotDrained { .. } => Failure::Running(error.into()),
    }
}

/// The plan of a configuration, with the engine that its `cache_dir` asks for.
pub(super) fn build(loaded: &Loaded) -> Result<Plan, Failure> {
    let cache_dir = loaded.settings.cache_dir.clone().or_else(default_cache_dir);
    let engine = Engine::new(EngineOptions { cache_dir }).map_err(|error| Failure::Environment(error.into()))?;
    Plan::build(loaded, &engine).map_err(Failure::Invalid)
}

fn default_cache_dir() -> Option<std::path::PathBuf> {
    let below = |variable: &str, path: &str| {
        environment(variable).filter(|dir| !dir.is_empty()).map(|dir| std::path::Path::new(&dir).join(path))
    };
    below("XDG_CACHE_HOME", "millrace").or_else(|| below("HOME", ".cache/millrace"))
}

pub(super) fn start_logging(log: &Log) -> anyhow::Result<LogHandle> {
    let level = match log.level {
        LogLevel::Trace => tracing::Level::TRACE,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    let format = match log.format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    let colour = telemetry::stderr_has_colour(&environment);
    let options = LogOptions { level, format, filter: environment("MILLRACE_LOG"), colour };
    Ok(LogHandle::init(&options)?)
}

/// Resolves at the first SIGTERM or SIGINT. A second one ends the process at once: 143 or 130, as a shell would say.
pub(super) fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (first, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            let (name, code) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
                _ = hangup.recv() => {
                    tracing::warn!("SIGHUP: this version takes up changes at a restart only");
                    continue;
                }
            };
            match first.take() {
                Some(first) => {
                    tracing::info!("{name}: stopping; once more ends at once");
                    let _ = first.send(());
                }
                None => {
                    tracing::warn!("{name} again: ending at once, what is in work is uncommitted");
                    #[expect(clippy::disallowed_methods, reason = "a second signal asks for exactly this")]
                    std::process::exit(code);
                }
            }
        }
    });
    Ok(async {
        let _ = stop.await;
    })
}
