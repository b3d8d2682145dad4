//! The daemon: settings → build all that can fail → run → drain.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::{self, AdminOptions};
use crate::config::Loaded;
use crate::config::settings::TopicSelector;
use crate::control::plan::Plan;
use crate::control::status::StatusBoard;
use crate::control::supervisor::Supervisor;
use crate::kafka::{self, Cluster, Instance};
use crate::model::RouteName;
use crate::telemetry::Metrics;

/// Why the daemon cannot run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The client cannot be made from the properties under `kafka:`.
    #[error("the Kafka client cannot be made: {0}")]
    Client(String),
    /// The admin endpoint cannot listen.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
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

/// Runs the plan until `stop` says so, then drains.
///
/// # Errors
/// [`AppError`].
pub async fn run(loaded: &Loaded, plan: Plan, stop: impl Future<Output = ()>) -> Result<(), AppError> {
    run_watched(loaded, plan, stop, |_| {}).await
}

/// As [`run`]; `started` is shown what runs.
///
/// # Errors
/// [`AppError`].
pub async fn run_watched(
    loaded: &Loaded,
    plan: Plan,
    stop: impl Future<Output = ()>,
    started: impl FnOnce(Running),
) -> Result<(), AppError> {
    kafka::raise_open_files();
    let settings = Arc::clone(&plan.settings);
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let board = StatusBoard::new(settings.instance.clone(), metrics.clone());
    let instance = match &settings.instance {
        Some(name) => Instance::Named(name.clone()),
        None => Instance::Random(std::iter::repeat_with(fastrand::alphanumeric).take(10).collect()),
    };
    let cluster = Cluster::connect(&settings.kafka).map_err(AppError::Client)?;
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let render = {
        let metrics = metrics.clone();
        Arc::new(move || metrics.render())
    };
    let server = admin::Server::bind(&AdminOptions::from(&settings.admin)).await?;
    let address = server.address();
    let admin = tokio::spawn(server.answer(Arc::clone(&board), render, async {
        // (gone, if this function is left early)
        let _ = closed.await;
    }));

    let mut supervisor = Supervisor::new(cluster, instance, metrics, Arc::clone(&board));
    supervisor.start(&plan);
    announce(loaded, &plan);
    started(Running { admin: address, board });
    stop.await;

    let within = settings.shutdown_timeout;
    tracing::info!(within = ?within, "draining");
    let late = tokio::task::spawn_blocking(move || supervisor.drain(within));
    let late = late.await.expect("draining does not panic");
    let _ = close.send(());
    let _ = admin.await;
    if late.is_empty() {
        tracing::info!("drained");
        Ok(())
    } else {
        Err(AppError::NotDrained { within, routes: late })
    }
}

/// What runs, on one screen.
fn announce(loaded: &Loaded, plan: &Plan) {
    let settings = &plan.settings;
    let brokers = settings.kafka.common.get("bootstrap.servers").map(ToString::to_string).unwrap_or_default();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        brokers,
        instance = settings.instance.as_deref().unwrap_or("(dynamic membership)"),
        files = loaded.files.len(),
        routes = plan.routes.len(),
        "millrace is running"
    );
    for planned in plan.routes.values() {
        let route = &planned.route;
        let from: Vec<_> = route.source.topics.iter().map(selector).collect();
        let to: Vec<_> = route.destinations.iter().map(|to| to.name.to_string()).collect();
        let through: Vec<_> = planned.plugins().map(|(name, _)| name.to_string()).collect();
        tracing::info!(
            route = %route.name,
            delivery = route.delivery.as_str(),
            group = %route.source.group,
            workers = route.workers,
            "{} → [{}] → {}", from.join(", "), through.join(" → "), to.join(", ")
        );
    }
}

fn selector(topics: &TopicSelector) -> String {
    match topics {
        TopicSelector::Name(name) => name.to_string(),
        TopicSelector::Pattern(pattern) => pattern.to_string(),
    }
}
