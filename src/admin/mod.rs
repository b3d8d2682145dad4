//! The admin endpoint: health, metrics and status over HTTP. It reads the status board and renders metrics; it knows
//! neither routes nor Kafka.
//!
//! [`access`] says who may ask what, [`pages`] answers. Everything is bounded, so that nobody who may connect can keep
//! the kubelet out: connections, the time for a request's head, the size of head and body, the life of a connection.

mod access;
mod pages;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use self::access::Access;
use crate::config::settings::{Admin, PropertyValue};
use crate::control::status::StatusBoard;
use crate::telemetry::ErrorChain;

/// Connections served at once; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 128;
/// For the head of a request, and for the pause between two on one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// After this a connection is closed as soon as its response is out: a peer that does not read holds it no longer than
/// this and [`LAST_RESPONSE`] together.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// For the response that is under way when a connection, or the server, ends.
const LAST_RESPONSE: Duration = Duration::from_secs(5);
/// Pause after a failed accept: out of file descriptors, mostly, which passes when some are closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Renders all metrics.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the admin endpoint: {}", advice(source))]
pub struct BindError {
    /// `admin.listen`.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process (another millrace?) has it: set admin.listen to another port, or to port 0 for a free one"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has this address: set admin.listen to one of its own"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: set admin.listen to a higher port",
        _ => "set admin.listen to an address of this machine and a free port",
    }
}

/// What the endpoint needs of the configuration.
#[derive(Debug, Clone)]
pub struct AdminOptions {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Needed for what changes state, and for all but health and metrics where `listen` is not loopback.
    pub token: Option<PropertyValue>,
    /// Values of `Host` that are answered besides loopback.
    pub allowed_hosts: Vec<String>,
}

impl From<&Admin> for AdminOptions {
    fn from(settings: &Admin) -> Self {
        let Admin { listen, token, allowed_hosts } = settings.clone();
        Self { listen, token, allowed_hosts }
    }
}

/// Takes the address and answers in the background until `shutdown`; the answer ends when the last response is out.
///
/// # Errors
/// The address cannot be had: a [`BindError`] in an [`io::Error`] of its kind.
pub async fn serve(
    options: AdminOptions,
    board: Arc<StatusBoard>,
    metrics: RenderMetrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let server = Server::bind(&options).await.map_err(|error| io::Error::new(error.source.kind(), error))?;
    Ok(tokio::spawn(server.answer(board, metrics, shutdown)))
}

/// The endpoint, listening already but not yet answering: what can fail is behind it.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    access: Access,
}

impl Server {
    /// Takes the address.
    ///
    /// # Errors
    /// [`BindError`]: it cannot be had.
    pub async fn bind(options: &AdminOptions) -> Result<Self, BindError> {
        let failed = |source| BindError { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let access = Access::new(address.ip(), options);
        Ok(Self { listener, address, access })
    }

    /// Where it listens; with the true port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`, then gives responses under way a few seconds.
    pub async fn answer(self, board: Arc<StatusBoard>, metrics: RenderMetrics, shutdown: impl Future<Output = ()>) {
        let Self { listener, address, access } = self;
        info!(%address, "admin endpoint listening");
        if access.is_closed() {
            warn!(%address, "only health and metrics are answered: admin.listen is not loopback and admin.token is not set");
        }
        let router = pages::router(board, metrics, access);
        let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (stop, stopping) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                (stream, place) = accept(&listener, free.clone()) => {
                    let serving = connection(stream, router.clone(), stopping.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Some(_) = connections.join_next() => {}
                () = &mut shutdown => break,
            }
        }
        drop((listener, stop));
        while connections.join_next().await.is_some() {}
    }
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, free: Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let place = free.acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                warn!(%error, "the admin endpoint cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until its peer, its age or the server ends it.
async fn connection(stream: TcpStream, router: Router, mut stopping: watch::Receiver<()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stopping.changed() => None,
        () = sleep(CONNECTION_AGE) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_RESPONSE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(error = %ErrorChain(&error), "a connection to the admin endpoint ended badly");
    }
}
