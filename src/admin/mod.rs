//! The admin endpoint: health, metrics, status and what can be done with a route, over HTTP. It reads the status board,
//! renders metrics and asks the supervisor; it knows neither workers nor Kafka.
//!
//! [`access`] says who may ask what, [`pages`] answers, [`actions`] changes what runs. Everything is bounded, so that nobody who may connect can keep
//! the kubelet out: connections, the time for a request's head, the size of head and body, the life of a connection.

mod access;
mod actions;
mod console;
mod pages;
mod tap;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use self::access::Access;
use crate::config::settings::{Admin, PropertyValue};
use crate::control::board::StatusBoard;
use crate::control::reload::Reloader;
use crate::control::supervisor::Supervision;
use crate::telemetry::{ErrorChain, LogHandle};

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

/// What is answered from.
#[derive(Clone)]
pub struct Sources {
    /// How things stand.
    pub board: Arc<StatusBoard>,
    /// The metrics.
    pub metrics: RenderMetrics,
    /// Takes orders to reload, and knows the configuration in force.
    pub reloader: Reloader,
    /// Takes orders about routes.
    pub supervision: Supervision,
    /// Changes what is logged.
    pub log: LogHandle,
}

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
#[derive(Debug, Clone, PartialEq)]
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

/// The endpoint, listening already but not yet answering: what can fail is behind it.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: AdminOptions,
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
        Ok(Self { listener, address, options: options.clone() })
    }

    /// Where it listens; with the true port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on.
    pub fn serve(self, sources: Sources) -> Endpoint {
        let serving = Serving::start(self, &sources);
        Endpoint { sources, serving: Some(serving) }
    }
}

/// The endpoint as it answers. Dropped, it stops.
pub struct Endpoint {
    sources: Sources,
    /// None only where an address was given up for another, and neither can be had.
    serving: Option<Serving>,
}

struct Serving {
    options: AdminOptions,
    address: SocketAddr,
    access: Arc<ArcSwap<Access>>,
    stop: oneshot::Sender<()>,
    /// Comes when the address is free again, which is before the last connection has ended.
    released: oneshot::Receiver<()>,
    done: tokio::task::JoinHandle<()>,
}

impl Serving {
    fn start(server: Server, sources: &Sources) -> Self {
        let Server { listener, address, options } = server;
        let access = Access::new(address.ip(), &options);
        info!(%address, "admin endpoint listening");
        if access.is_closed() {
            warn!(%address, "only health and metrics are answered: admin.listen is not loopback and admin.token is not set");
        }
        let access = Arc::new(ArcSwap::from_pointee(access));
        let (stop, stopped) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let router = pages::router(sources.clone(), Arc::clone(&access));
        let done = tokio::spawn(answer(listener, router, stopped, release));
        Self { options, address, access, stop, released, done }
    }
}

impl Endpoint {
    /// Answers by these options from now on: at another address, if they say so, which it has before it gives the old one
    /// up, unless the one stands in the way of the other.
    ///
    /// # Errors
    /// [`BindError`]: the address cannot be had; all is as it was.
    pub async fn take_up(&mut self, options: &AdminOptions) -> Result<(), BindError> {
        let Some(serving) = self.serving.take() else {
            self.serving = Some(Serving::start(Server::bind(options).await?, &self.sources));
            return Ok(());
        };
        if serving.options.listen == options.listen {
            serving.access.store(Arc::new(Access::new(serving.address.ip(), options)));
            self.serving = Some(Serving { options: options.clone(), ..serving });
            return Ok(());
        }
        match Server::bind(options).await {
            Ok(server) => {
                let _ = serving.stop.send(());
                self.serving = Some(Serving::start(server, &self.sources));
                Ok(())
            }
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse && same_port(&serving, options) => {
                let before = AdminOptions { listen: serving.address, ..serving.options };
                let _ = serving.stop.send(());
                let _ = serving.released.await;
                let bound = Server::bind(options).await;
                let server = if bound.is_ok() { bound } else { Server::bind(&before).await };
                self.serving = server.ok().map(|server| Serving::start(server, &self.sources));
                if self.serving.as_ref().is_some_and(|serving| serving.options.listen == options.listen) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Err(error) => {
                self.serving = Some(serving);
                Err(error)
            }
        }
    }

    /// Stops, and gives responses under way a few seconds.
    pub async fn stop(mut self) {
        if let Some(Serving { stop, done, .. }) = self.serving.take() {
            let _ = stop.send(());
            let _ = done.await;
        }
    }
}

/// Whether our own listening could be what keeps the address from being had: on all addresses of the machine, or on one.
fn same_port(serving: &Serving, options: &AdminOptions) -> bool {
    serving.address.port() == options.listen.port()
}

/// Answers until told to stop, or until nobody can tell, then gives responses under way a few seconds.
async fn answer(listener: TcpListener, router: Router, stopped: oneshot::Receiver<()>, release: oneshot::Sender<()>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut stopped = pin!(stopped);
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
            _ = &mut stopped => break,
        }
    }
    drop((listener, stop));
    let _ = release.send(());
    while connections.join_next().await.is_some() {}
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read as _, Write as _};

    use serde_json::Value;

    use super::*;
    use crate::config::settings::Delivery;
    use crate::control::board::{RouteFacts, RoutePhase, RouteReport, ShadowFacts};
    use crate::control::facts::{Facts, Keys};
    use crate::control::status::{PluginStatus, WorkerPhase};
    use crate::model::{Digest, GroupId, PluginName, RouteName};
    use crate::telemetry::Metrics;

    /// An endpoint with two routes, one running and one without its workers yet.
    struct Running {
        address: SocketAddr,
        board: Arc<StatusBoard>,
        reports: [RouteReport; 2],
        endpoint: Endpoint,
    }

    async fn start() -> Running {
        let metrics = Metrics::new("0.0.0");
        let board = StatusBoard::new(Some("pod-0".into()), metrics.clone());
        let facts = RouteFacts {
            delivery: Delivery::ExactlyOnce,
            group: GroupId::new("millrace.r").unwrap(),
            plugins: vec![PluginStatus { plugin: PluginName::new("p").unwrap(), sha256: Digest::of(b"") }],
            shadow: Some(ShadowFacts { plugins: vec![], one_in: 10, sums: Arc::default() }),
            workers: 1,
            parallelism: 1,
            lag_alert: None,
        };
        let reports = ["good", "late"].map(|name| board.route(&RouteName::new(name).unwrap(), facts.clone()));
        reports[0].worker(0).health(WorkerPhase::Running, &[], vec![], vec![]);
        let options = AdminOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            token: Some(PropertyValue::secret("s3cret")),
            allowed_hosts: vec![],
        };
        let server = Server::bind(&options).await.unwrap();
        let address = server.address();
        let facts = Facts { hash: String::new(), process: Keys::new(), routes: BTreeMap::new() };
        let reloader = Reloader::unattended(facts);
        let render: RenderMetrics = Arc::new(move || metrics.render());
        let (supervision, log) = (Supervision::unattended(), LogHandle::detached());
        let endpoint = server.serve(Sources { board: board.clone(), metrics: render, reloader, supervision, log });
        Running { address, board, reports, endpoint }
    }

    impl Running {
        /// Status line, head and body of the answer to `request`, which closes its connection.
        async fn ask(&self, request: &str) -> (u16, String, String) {
            let text = exchange(self.address, request.to_owned()).await;
            let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP response");
            (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
        }

        async fn get(&self, path: &str) -> (u16, String, String) {
            self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
        }

        async fn get_json(&self, path: &str) -> (u16, Value) {
            let (status, head, body) = self.get(path).await;
            assert!(head.contains("content-type: application/json"), "{head}");
            (status, serde_json::from_str(&body).unwrap())
        }
    }

    async fn exchange(address: SocketAddr, request: String) -> String {
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .await
        .unwrap()
    }

    #[test]
    fn the_openapi_document_has_every_path_and_method_and_no_other() {
        let document: Value = serde_json::from_str(pages::OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let written = paths.iter().flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
        });
        let answered = pages::endpoints().into_iter().map(|(method, path, ..)| (method.to_owned(), path.to_owned()));
        let (mut written, mut answered): (Vec<_>, Vec<_>) = (written.collect(), answered.collect());
        written.sort();
        answered.sort();
        assert_eq!(written, answered);
        // (every reference leads somewhere)
        for at in pages::OPENAPI.split("\"$ref\": \"#").skip(1) {
            let pointer = at.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_answers_are_as_the_openapi_document_says() {
        let running = start().await;
        running.board.applied(&Digest::of(b""), "first");
        running.board.rejected("millrace.yaml:1:1: no routes");
        let document: Value = serde_json::from_str(pages::OPENAPI).unwrap();
        for (path, of) in [
            ("/readyz", "/readyz"),
            ("/readyz?routes=all", "/readyz"),
            ("/api/v1/status", "/api/v1/status"),
            ("/api/v1/routes", "/api/v1/routes"),
            ("/api/v1/routes/good", "/api/v1/routes/{name}"),
            ("/api/v1/routes/unknown", "/api/v1/routes/{name}"),
            ("/api/v1/graph", "/api/v1/graph"),
            ("/api/v1/config", "/api/v1/config"),
            ("/api/v1/log", "/api/v1/log"),
        ] {
            let (status, answer) = running.get_json(path).await;
            let said = &document["paths"][of]["get"]["responses"][status.to_string()];
            let said = resolved(&document, said);
            let schema = &said["content"]["application/json"]["schema"];
            assert_fits(&document, schema, &answer, path);
        }
    }

    fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(pointer) => document.pointer(&pointer[1..]).unwrap(),
            None => value,
        }
    }

    /// Whether a value is as its schema says, as far as our document says it: types, what must be there, and nothing else.
    fn assert_fits(document: &Value, schema: &Value, value: &Value, at: &str) {
        let schema = resolved(document, schema);
        if let Some(choices) = schema["anyOf"].as_array() {
            let choice = &choices[usize::from(value.is_null())];
            return assert_fits(document, choice, value, at);
        }
        let types: Vec<_> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        let is = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        assert!(
            types.contains(&is) || (is == "integer" && types.contains(&"number")),
            "{at}: {is} is none of {types:?}"
        );
        if let Some(allowed) = schema["enum"].as_array() {
            assert!(allowed.contains(value), "{at}: {value} is none of {allowed:?}");
        }
        for (nth, each) in value.as_array().into_iter().flatten().enumerate() {
            assert_fits(document, &schema["items"], each, &format!("{at}.{nth}"));
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(value.get(required.as_str().unwrap()).is_some(), "{at}: {required} is missing");
        }
        for (name, each) in value.as_object().into_iter().flatten() {
            let (known, others) = (&schema["properties"][name], &schema["additionalProperties"]);
            let of = if known.is_null() { others } else { known };
            assert!(!of.is_null() || schema["properties"].is_null(), "{at}: {name} is not in the document");
            if !of.is_null() {
                assert_fits(document, of, each, &format!("{at}.{name}"));
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn readiness_follows_the_configuration_and_the_routes_that_are_asked_for() {
        let running = start().await;
        assert_eq!(running.get("/livez").await.0, 200);
        assert_eq!(running.get("/healthz").await.0, 200);
        assert_eq!(running.get("/readyz").await.0, 503);
        running.board.applied(&Digest::of(b""), "first");
        let cases = [
            ("/readyz", 200),
            ("/readyz?routes=all", 503),
            ("/readyz?route=good", 200),
            ("/readyz?route=late", 503),
            ("/readyz?route=unknown", 404),
            ("/readyz?routes=some", 400),
        ];
        for (path, expected) in cases {
            assert_eq!(running.get_json(path).await.0, expected, "{path}");
        }
        assert_eq!(
            running.get_json("/readyz?routes=all").await.1,
            serde_json::json!({
                "ready": false, "reason": "route late is starting", "routes": { "good": "running", "late": "starting" },
            })
        );
        running.reports[1].phase(RoutePhase::Paused);
        assert_eq!(running.get("/readyz?routes=all").await.0, 200);
        running.reports[1].phase(RoutePhase::Disabled);
        assert_eq!(running.get("/readyz?routes=all").await.0, 200);
        assert_eq!(running.get("/readyz?route=late").await.0, 503);
        running.board.shutting_down();
        assert_eq!(running.get("/readyz").await.0, 503);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn status_routes_and_metrics_are_answered() {
        let running = start().await;
        running.board.applied(&Digest::of(b""), "first");
        let (code, status) = running.get_json("/api/v1/status").await;
        assert_eq!((code, &status["instance"], &status["generation"]), (200, &"pod-0".into(), &1.into()));
        assert_eq!(status["last_reload"]["outcome"], "applied");
        assert_eq!(running.get_json("/api/v1/routes").await.1["routes"]["good"]["state"], "running");
        assert_eq!(running.get_json("/api/v1/routes/late").await.1["state"], "starting");
        assert_eq!(running.get_json("/api/v1/routes/none").await.0, 404);
        let (code, head, body) = running.get("/metrics").await;
        assert_eq!(code, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("millrace_route_state{route=\"good\",state=\"running\"} 1\n"), "{body}");
        assert!(running.get("/").await.2.contains("/api/v1/status"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_may_not_be_asked_is_refused_in_words() {
        let running = start().await;
        let line = |line: &str, host: &str| format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let cases = [
            (line("GET /nothing", "localhost"), 404, "not_found"),
            (line("GET /api/v1/nothing", "localhost"), 404, "not_found"),
            (line("GET /api/v1/status", "evil.example"), 403, "host_not_allowed"),
            (line("DELETE /api/v1/status", "localhost"), 401, "token_missing"),
            (line("DELETE /metrics", "localhost"), 405, "method_not_allowed"),
        ];
        for (request, expected, code) in cases {
            let (status, head, body) = running.ask(&request).await;
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((status, body["error"]["code"].as_str()), (expected, Some(code)), "{request}{head}{body}");
            assert!(head.contains("cache-control: no-store"), "{head}");
            assert_eq!(head.contains("www-authenticate: bearer"), expected == 401, "{head}");
            assert_eq!(head.matches("allow: get, head").count(), usize::from(expected == 405), "{head}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nonsense_is_answered_or_dropped_and_the_next_request_served() {
        let running = start().await;
        let huge = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
        for request in ["\0\0\0\r\n\r\n", "GET\r\n\r\n", &huge] {
            let address = running.address;
            let request = request.to_owned();
            // The peer may close before it has read everything: writing and reading may fail, serving may not.
            tokio::task::spawn_blocking(move || {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                let _ = stream.write_all(request.as_bytes());
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
            })
            .await
            .unwrap();
        }
        assert_eq!(running.get("/livez").await.0, 200);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_shutdown_frees_the_address_even_with_idle_connections_open() {
        let running = start().await;
        let mut idle = std::net::TcpStream::connect(running.address).unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_ne!(idle.read(&mut [0; 1024]).unwrap(), 0);
        running.endpoint.stop().await;
        TcpListener::bind(running.address).await.unwrap();
    }

    #[tokio::test]
    async fn an_address_in_use_is_said_with_what_to_do() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap();
        let options = AdminOptions { listen, token: None, allowed_hosts: vec![] };
        let error = Server::bind(&options).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {listen} for the admin endpoint: another process (another millrace?) has it: set \
                 admin.listen to another port, or to port 0 for a free one"
            )
        );
    }
}
