//! The daemon: settings → build all that can fail → run → drain.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::{self, AdminOptions, Endpoint, Server};
use crate::config::Loaded;
use crate::config::settings::{self, Log, LogLevel, Settings};
use crate::config::share::process_ceiling;
use crate::control::Clients;
use crate::control::board::StatusBoard;
use crate::control::plan::Plan;
use crate::control::reload::{self, Ask, Environment, Obstacle, Reloader, Sources};
use crate::control::status::{Cause, PluginStatus};
use crate::control::supervisor::Supervisor;
use crate::kafka;
use crate::model::{Digest, RouteName};
use crate::plugin::Engine;
use crate::telemetry::{Exporter, Limits, LogFormat, LogHandle, Metrics, Tracer};

/// How long the last spans may take, once all routes are drained.
const SPANS_WITHIN: Duration = Duration::from_secs(1);

/// Why the daemon cannot run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The client cannot be made from the properties under `kafka:`.
    #[error("the Kafka client cannot be made: {0}")]
    Client(String),
    /// The admin endpoint cannot listen.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    /// Spans cannot be exported.
    #[error("the thread that exports spans cannot be started")]
    Tracing(#[source] std::io::Error),
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for")]
    Signals(#[source] std::io::Error),
    /// What routes records is gone.
    #[error(
        "a bug in millrace, please report it with the lines above: what was in work is uncommitted and will be read again"
    )]
    Bug,
    /// Draining took longer than `shutdown_timeout`.
    #[error(
        "not drained within {within:?} (shutdown_timeout): {}; what was in work is uncommitted and will be read again",
        names(routes)
    )]
    NotDrained {
        /// The bound.
        within: Duration,
        /// Which routes.
        routes: Vec<RouteName>,
    },
}

fn names(routes: &[RouteName]) -> String {
    routes.iter().map(RouteName::as_str).collect::<Vec<_>>().join(", ")
}

/// What can be seen of a daemon that has started.
pub struct Running {
    /// Where its admin endpoint listens.
    pub admin: SocketAddr,
    /// How its routes fare.
    pub board: Arc<StatusBoard>,
}

/// What the daemon is made of.
pub struct Options {
    /// The configuration: a file or a directory.
    pub path: PathBuf,
    /// Where the values of its variables come from.
    pub env: Environment,
    /// Compiles plugins.
    pub engine: Engine,
    /// Changes what is logged.
    pub log: LogHandle,
    /// Where compiled plugins are kept if the configuration does not say.
    pub cache_dir: Option<PathBuf>,
    /// What a configuration that is loaded while it runs must comply with, besides being right.
    pub condition: Option<Condition>,
}

/// Says why a configuration is not to be taken up, if it is not.
pub type Condition = Box<dyn Fn(&Loaded) -> Result<(), String> + Send>;

/// Runs the plan, and what the configuration becomes while it runs, until `stop` says so, then drains.
///
/// # Errors
/// [`AppError`].
pub async fn run(
    options: Options,
    loaded: &Loaded,
    plan: Plan,
    stop: impl Future<Output = ()>,
) -> Result<(), AppError> {
    run_watched(options, loaded, plan, stop, |_| {}).await
}

/// As [`run`]; `started` is shown what runs.
///
/// # Errors
/// [`AppError`].
pub async fn run_watched(
    options: Options,
    loaded: &Loaded,
    plan: Plan,
    stop: impl Future<Output = ()>,
    started: impl FnOnce(Running),
) -> Result<(), AppError> {
    kafka::raise_open_files();
    let plan = Arc::new(plan);
    let settings = Arc::clone(&plan.settings);
    kafka::keep_freed_memory(settings.memory);
    let metrics = Metrics::with_custom(env!("CARGO_PKG_VERSION"), options.engine.custom_metrics());
    let board = StatusBoard::new(settings.instance.clone(), metrics.clone());
    let word: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
    let clients = Clients::connect(&settings, &word).map_err(AppError::Client)?;
    let traces = Tracing { tracer: Tracer::default(), word: word.clone(), metrics: metrics.clone() };
    traces.go_through(traces.exporter(&settings).map_err(AppError::Tracing)?);
    let server = Server::bind(&AdminOptions::from(&settings.admin)).await?;
    let address = server.address();
    // (before a reload can be asked for: without somebody who waits for it, the signal ends the process)
    let hangup = signal(SignalKind::hangup()).map_err(AppError::Signals)?;

    let Options { path, env, engine, log, cache_dir, condition } = options;
    let config = path.clone();
    let within = Arc::new(Mutex::new(settings.shutdown_timeout));
    let endpoint = Arc::new(tokio::sync::Mutex::new(None));
    let mut starting = endpoint.lock().await;
    let surroundings = Surroundings {
        runtime: tokio::runtime::Handle::current(),
        endpoint: Arc::clone(&endpoint),
        engine: engine.clone(),
        cache_dir: (settings.cache_dir.clone(), cache_dir),
        log: log.clone(),
        shutdown_timeout: Arc::clone(&within),
        tracing: traces.clone(),
        condition,
    };
    let (supervision, gone) = Supervisor::start(metrics.clone(), Arc::clone(&board), traces.tracer.clone());
    let sources = Sources { path, env, engine, word, surroundings: Box::new(surroundings) };
    let reloader = Reloader::start(sources, Arc::clone(&plan), clients, Arc::clone(&board), supervision.clone());
    let answers = admin::Sources {
        board: Arc::clone(&board),
        metrics: Arc::new(move || metrics.render()),
        reloader: reloader.clone(),
        supervision: supervision.clone(),
        log,
    };
    *starting = Some(server.serve(answers));
    drop(starting);
    let hangups = tokio::spawn(reload_at(hangup, reloader));
    announce(loaded, &plan, &config, address);
    started(Running { admin: address, board });
    tokio::select! {
        () = stop => {}
        _ = gone => return Err(AppError::Bug),
    }

    let asked = Instant::now();
    hangups.abort();
    let within = *within.lock().unwrap_or_else(PoisonError::into_inner);
    tracing::info!(within = ?within, "draining");
    let late = supervision.drain(within).await;
    if let Some(endpoint) = endpoint.lock().await.take() {
        endpoint.stop().await;
    }
    traces.tracer.finish(SPANS_WITHIN.min(within.saturating_sub(asked.elapsed())));
    if late.is_empty() {
        tracing::info!("drained");
        Ok(())
    } else {
        Err(AppError::NotDrained { within, routes: late })
    }
}

/// SIGHUP asks for a reload. What came of it is logged by who does it.
async fn reload_at(mut hangup: Signal, reloader: Reloader) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: loading the configuration again");
        let _ = reloader.ask(Cause::Signal, Ask::default()).await;
    }
}

/// What a configuration changes outside of routes. On the reloads' own thread, which may wait.
struct Surroundings {
    runtime: tokio::runtime::Handle,
    /// None when the process is on its way out.
    endpoint: Arc<tokio::sync::Mutex<Option<Endpoint>>>,
    engine: Engine,
    /// As it is configured, and where it is if it is not.
    cache_dir: (Option<PathBuf>, Option<PathBuf>),
    log: LogHandle,
    shutdown_timeout: Arc<Mutex<Duration>>,
    tracing: Tracing,
    condition: Option<Condition>,
}

impl reload::Surroundings for Surroundings {
    fn take_up(&mut self, loaded: &Loaded) -> Result<(), Obstacle> {
        let settings = &loaded.settings;
        if let Some(Err(message)) = self.condition.as_ref().map(|condition| condition(loaded)) {
            return Err(Obstacle { message, passes: false });
        }
        let exporter = self.tracing.exporter(settings);
        let exporter = exporter.map_err(|error| Obstacle { message: error.to_string(), passes: true })?;
        self.runtime
            .block_on(async {
                match &mut *self.endpoint.lock().await {
                    Some(endpoint) => endpoint.take_up(&AdminOptions::from(&settings.admin)).await,
                    None => Ok(()),
                }
            })
            .map_err(|error| Obstacle { message: error.to_string(), passes: true })?;
        self.tracing.go_through(exporter);
        let (level, format) = log_options(&settings.log);
        self.log.set(level, format);
        if self.cache_dir.0 != settings.cache_dir {
            self.cache_dir.0.clone_from(&settings.cache_dir);
            self.engine.keep_in(self.cache_dir.0.clone().or_else(|| self.cache_dir.1.clone()));
        }
        *self.shutdown_timeout.lock().unwrap_or_else(PoisonError::into_inner) = settings.shutdown_timeout;
        Ok(())
    }
}

/// Where spans go, as the configuration has it.
#[derive(Clone)]
struct Tracing {
    tracer: Tracer,
    /// Stands for this process where it has no `instance`.
    word: String,
    metrics: Metrics,
}

/// What `telemetry.otlp` asks for.
enum Exporting {
    AsBefore,
    From(Option<Exporter>),
}

impl Tracing {
    /// What can fail of taking a configuration up.
    fn exporter(&self, settings: &Settings) -> std::io::Result<Exporting> {
        let url = settings.telemetry.otlp.as_deref();
        if self.tracer.goes_to(url) {
            return Ok(Exporting::AsBefore);
        }
        let instance = || settings.instance.clone().unwrap_or_else(|| self.word.clone());
        let start = |url| Exporter::start(url, env!("CARGO_PKG_VERSION"), instance(), &self.metrics);
        Ok(Exporting::From(url.map(start).transpose()?))
    }

    fn go_through(&self, exporting: Exporting) {
        match exporting {
            Exporting::AsBefore => {}
            Exporting::From(exporter) => self.tracer.go_through(exporter),
        }
    }
}

/// What is to be logged, in telemetry's words.
pub fn log_options(log: &Log) -> (tracing::Level, LogFormat) {
    let level = match log.level {
        LogLevel::Trace => tracing::Level::TRACE,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    let format = match log.format {
        settings::LogFormat::Text => LogFormat::Text,
        settings::LogFormat::Json => LogFormat::Json,
    };
    (level, format)
}

/// What this process may have, and whether that is enough for what its configuration lets it take.
fn announce_limits(settings: &Settings) {
    let Limits { memory, threads, open_files } = Limits::read();
    let needed = process_ceiling(settings);
    let told = |limit: Option<u64>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    tracing::info!(
        memory = memory.map_or_else(|| "none".to_owned(), |bytes| format!("{} MiB", mib(bytes))),
        needed = format!("{} MiB", mib(needed)),
        threads = told(threads),
        open_files = told(open_files),
        "limits of this process, and the memory that its configuration lets it take"
    );
    if let Some(limit) = memory.filter(|limit| *limit < needed) {
        tracing::warn!(
            "the container ends this process at {} MiB, and its configuration lets it take {}: give it more, or lower `memory`",
            mib(limit),
            mib(needed)
        );
    }
}

/// What runs, on one screen.
fn announce(loaded: &Loaded, plan: &Plan, path: &Path, admin: SocketAddr) {
    let settings = &plan.settings;
    let brokers = settings.kafka.common.get("bootstrap.servers").map(ToString::to_string).unwrap_or_default();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        brokers,
        instance = settings.instance.as_deref().unwrap_or("(dynamic membership)"),
        config = %path.display(),
        files = loaded.files.len(),
        sha256 = short(&plan.hash),
        generation = 1,
        routes = plan.routes.len(),
        %admin,
        "millrace is running"
    );
    announce_limits(settings);
    for planned in plan.routes.values() {
        let route = &planned.route;
        let from: Vec<_> = route.source.topics.iter().map(ToString::to_string).collect();
        let to: Vec<_> = route.destinations.iter().map(|to| to.name.to_string()).collect();
        let through: Vec<_> = planned.plugins().map(|(name, sha256)| format!("{name}@{}", short(sha256))).collect();
        let shadow = planned.facts().shadow.map(|shadow| {
            let named = |of: &PluginStatus| format!("{}@{}", of.plugin, short(&of.sha256));
            format!("[{}]", shadow.plugins.iter().map(named).collect::<Vec<_>>().join(" → "))
        });
        tracing::info!(
            route = %route.name,
            delivery = route.delivery.as_str(),
            group = %route.source.group,
            workers = route.workers,
            parallelism = (route.parallelism > 1).then_some(route.parallelism),
            shadow,
            "{} → [{}] → {}", from.join(", "), through.join(" → "), to.join(", ")
        );
    }
    let off = settings.routes.values().filter(|route| !route.enabled).map(|route| route.name.as_str());
    let off: Vec<_> = off.collect();
    if !off.is_empty() {
        tracing::info!("disabled: {}", off.join(", "));
    }
}

/// So much of a digest as people compare by eye.
fn short(digest: &Digest) -> String {
    let mut text = digest.to_string();
    text.truncate(12);
    text
}
