//! `millrace run`: the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigArgument, Failure, environment};
use crate::app;
use crate::config::settings::Log;
use crate::config::{self, Loaded};
use crate::control::plan::Plan;
use crate::control::reload::Environment;
use crate::plugin::{Engine, EngineOptions};
use crate::telemetry::{self, LogHandle, LogOptions};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.config.path()?;
    let loaded = config::load(&path, &environment).map_err(Failure::Invalid)?;
    let log = start_logging(&loaded.settings.log).map_err(Failure::Running)?;
    let ended = serve(path, &loaded, log.clone());
    log.finish();
    ended
}

fn serve(path: PathBuf, loaded: &Loaded, log: LogHandle) -> Result<(), Failure> {
    for warning in loaded.warnings.iter() {
        tracing::warn!(at = warning.place().map(ToString::to_string), "{}", warning.message());
    }
    let engine = engine(loaded)?;
    let plan = build(loaded, &engine)?;
    let env: Environment = Arc::new(environment);
    let options = app::Options { path, env, engine, log: log.clone(), cache_dir: default_cache_dir(), condition: None };
    runtime()?.block_on(async {
        let stop = stop_signal(log.clone()).context("signals cannot be waited for").map_err(Failure::Running)?;
        app::run(options, loaded, plan, stop).await.map_err(failure)
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
        app::AppError::Signals(_)
        | app::AppError::Tracing(_)
        | app::AppError::Bug
        | app::AppError::NotDrained { .. } => Failure::Running(error.into()),
    }
}

/// The engine that a configuration's `cache_dir` asks for.
pub(super) fn engine(loaded: &Loaded) -> Result<Engine, Failure> {
    let cache_dir = loaded.settings.cache_dir.clone().or_else(default_cache_dir);
    Engine::new(EngineOptions { cache_dir, ..EngineOptions::default() })
        .map_err(|error| Failure::Environment(error.into()))
}

/// The plan of a configuration.
pub(super) fn build(loaded: &Loaded, engine: &Engine) -> Result<Plan, Failure> {
    Plan::build(loaded, engine, None).map_err(|refused| Failure::Invalid(refused.problems))
}

pub(super) fn default_cache_dir() -> Option<PathBuf> {
    let below = |variable: &str, path: &str| {
        environment(variable).filter(|dir| !dir.is_empty()).map(|dir| Path::new(&dir).join(path))
    };
    below("XDG_CACHE_HOME", "millrace").or_else(|| below("HOME", ".cache/millrace"))
}

pub(super) fn start_logging(log: &Log) -> anyhow::Result<LogHandle> {
    let (level, format) = app::log_options(log);
    let colour = telemetry::stderr_has_colour(&environment);
    let options = LogOptions { level, format, filter: environment("MILLRACE_LOG"), colour };
    Ok(LogHandle::init(&options)?)
}

/// Resolves at the first SIGTERM or SIGINT. A second one ends the process at once: 143 or 130, as a shell would say.
pub(super) fn stop_signal(log: LogHandle) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (first, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            let (name, code) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            };
            match first.take() {
                Some(first) => {
                    tracing::info!("{name}: stopping; once more ends at once");
                    let _ = first.send(());
                }
                None => {
                    tracing::warn!("{name} again: ending at once, what is in work is uncommitted");
                    log.finish();
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
