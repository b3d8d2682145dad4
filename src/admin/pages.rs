//! What is answered, path by path. Every answer for programs is JSON, errors too, and each error says what to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::access::{Access, Refusal};
use super::{Sources, actions, console, tap};
use crate::control::facts::Facts;
use crate::control::graph::Graph;
use crate::control::reload::Ask;
use crate::control::status::{Cause, ReloadOutcome, RouteState, RouteStatus, Status};
use crate::model::RouteName;

/// Bytes of a request's body; what changes state is told in a few words.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long who asks for a reload waits for its outcome: less than a connection lives.
const RELOAD_WITHIN: Duration = Duration::from_secs(50);

#[derive(Clone)]
pub(super) struct Context {
    pub(super) sources: Sources,
    access: Arc<ArcSwap<Access>>,
}

impl Context {
    pub(super) fn access(&self) -> Arc<Access> {
        self.access.load_full()
    }
}

/// Method, path, what it is, and who answers.
type Asked = (&'static str, &'static str, &'static str, MethodRouter<Context>);

/// What can be asked. `access` asks for the token by the method: what changes
/// state is none that only reads.
pub(super) fn endpoints() -> Vec<Asked> {
    vec![
        ("GET", "/livez", "the process turns", get(live)),
        ("GET", "/healthz", "the same", get(live)),
        ("GET", "/readyz", "a configuration is applied; ?routes=all and ?route=NAME ask for routes", get(ready)),
        ("GET", "/metrics", "for Prometheus", get(metrics_text)),
        ("GET", "/", "the console; without a browser: how things stand, and this list", get(index)),
        ("GET", "/console.js", "the console's script", get(console::script)),
        ("GET", "/console.css", "the console's style", get(console::style)),
        ("POST", "/api/v1/session", "a cookie for the console, in the token's place", post(console::session)),
        ("GET", "/api/v1/status", "everything, as JSON", get(status)),
        ("GET", "/api/v1/routes", "all routes", get(routes)),
        ("GET", "/api/v1/routes/{name}", "one of them", get(route)),
        ("POST", "/api/v1/routes/{name}/pause", "let its partitions wait; they stay here", post(actions::pause)),
        ("POST", "/api/v1/routes/{name}/resume", "let them flow again", post(actions::resume)),
        (
            "POST",
            "/api/v1/routes/{name}/restart",
            "start what has stopped, and try at once what waits",
            post(actions::restart),
        ),
        ("POST", "/api/v1/routes/{name}/skip", "pass one record by", post(actions::skip)),
        ("POST", "/api/v1/routes/{name}/seek", "move the position of a paused route", post(actions::seek)),
        (
            "GET",
            "/api/v1/routes/{name}/tap",
            "records as they pass, as server-sent events; ?stage=&key=&header=&sample=&limit=",
            get(tap::tap),
        ),
        ("GET", "/api/v1/graph", "topics, routes and plugins", get(graph)),
        (
            "GET",
            "/api/v1/config",
            "the configuration in force, as what is compared when it is loaded again",
            get(config),
        ),
        ("POST", "/api/v1/reload", "load the configuration again", post(reload)),
        ("POST", "/-/reload", "the same", post(reload)),
        ("GET", "/api/v1/log", "what is logged", get(actions::log)),
        ("PUT", "/api/v1/log", "log something else, until a configuration is applied", put(actions::set_log)),
        ("GET", "/api/v1/openapi.json", "all of this for programs, as OpenAPI 3.1", get(openapi)),
    ]
}

/// All paths, behind the rules of `access`.
pub(super) fn router(sources: Sources, access: Arc<ArcSwap<Access>>) -> Router {
    let context = Context { sources, access };
    let add = |router: Router<Context>, (_, path, _, answers)| router.route(path, answers);
    endpoints()
        .into_iter()
        .fold(Router::new(), add)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(context.clone(), guard))
        .with_state(context)
}

/// Lets through what the rules allow, and marks every answer as one not to keep and not to guess the type of.
async fn guard(State(context): State<Context>, request: Request, next: Next) -> Response {
    let mut response = match context.access.load().check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refused(refusal),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refused(refusal: Refusal) -> Response {
    let (status, code) = match refusal {
        Refusal::Host => (StatusCode::FORBIDDEN, "host_not_allowed"),
        Refusal::Origin => (StatusCode::FORBIDDEN, "origin_not_allowed"),
        Refusal::Closed => (StatusCode::FORBIDDEN, "no_token_configured"),
        Refusal::TokenMissing => (StatusCode::UNAUTHORIZED, "token_missing"),
        Refusal::TokenWrong => (StatusCode::UNAUTHORIZED, "token_wrong"),
    };
    let mut response = error(status, code, &refusal.to_string());
    if status == StatusCode::UNAUTHORIZED {
        let realm = HeaderValue::from_static("Bearer realm=\"millrace\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
    }
    response
}

/// The process turns: this was answered.
async fn live() -> &'static str {
    "ok\n"
}

#[derive(Deserialize)]
struct Ready {
    routes: Option<String>,
    route: Option<String>,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    routes: BTreeMap<RouteName, RouteState>,
}

/// Ready once a configuration is applied, whatever single routes do: one poison record must not take down the
/// application beside a sidecar. Who wants to know about routes asks for them.
async fn ready(
    State(context): State<Context>,
    query: Result<Query<Ready>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(Ready { routes: all, route: one })) = query else {
        return error(StatusCode::BAD_REQUEST, "bad_query", "ask for ?routes=all or ?route=NAME");
    };
    if all.as_deref().is_some_and(|all| all != "all") {
        return error(
            StatusCode::BAD_REQUEST,
            "bad_query",
            "the only value of routes is \"all\"; a single route is ?route=NAME",
        );
    }
    let states = context.sources.board.route_states();
    if let Some(name) = one.as_deref().filter(|name| !states.contains_key(*name)) {
        return no_such_route(name);
    }
    let asked = |name: &RouteName, state: RouteState| {
        one.as_deref() == Some(name.as_str()) || (all.is_some() && state != RouteState::Disabled)
    };
    let not_ready = states.iter().find(|(name, state)| asked(name, **state) && !state.is_ready());
    // (a configuration is applied a moment before its routes are there)
    let graph = context.sources.reloader.graph();
    let missing = graph.routes.iter().find(|route| all.is_some() && !states.contains_key(&route.name));
    let reason = match not_ready {
        _ if !context.sources.board.ready() => {
            Some("no configuration is applied, or the process is shutting down".to_owned())
        }
        Some((name, state)) => Some(format!("route {name} is {}", state.as_str())),
        None => missing.map(|route| format!("route {} is not there yet", route.name)),
    };
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Readiness { ready: reason.is_none(), reason, routes: states })
}

async fn metrics_text(State(context): State<Context>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (context.sources.metrics)()).into_response()
}

async fn status(State(context): State<Context>) -> Response {
    json::<Status>(StatusCode::OK, &context.sources.board.snapshot())
}

#[derive(Serialize)]
struct Routes {
    routes: BTreeMap<RouteName, RouteStatus>,
}

async fn routes(State(context): State<Context>) -> Response {
    json(StatusCode::OK, &Routes { routes: context.sources.board.snapshot().routes })
}

async fn route(State(context): State<Context>, Path(name): Path<String>) -> Response {
    match context.sources.board.route_snapshot(&name) {
        Some(route) => json(StatusCode::OK, &route),
        None => no_such_route(&name),
    }
}

async fn config(State(context): State<Context>) -> Response {
    json::<Facts>(StatusCode::OK, &context.sources.reloader.facts())
}

async fn graph(State(context): State<Context>) -> Response {
    json::<Graph>(StatusCode::OK, &context.sources.reloader.graph())
}

/// The document lies beside this file; a test holds the two together.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[derive(Deserialize)]
struct HowToReload {
    accept_new_group: Option<bool>,
}

/// Reads the configuration again, and answers what came of it: 200 in force (or what was in force already), 422 refused,
/// 202 still under way.
async fn reload(
    State(context): State<Context>,
    query: Result<Query<HowToReload>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(HowToReload { accept_new_group })) = query else {
        return error(StatusCode::BAD_REQUEST, "bad_query", "the only parameter is ?accept_new_group=true");
    };
    let ask = Ask { accept_new_group: accept_new_group.unwrap_or(false) };
    let answered = context.sources.reloader.ask(Cause::Api, ask);
    match timeout(RELOAD_WITHIN, answered).await {
        Ok(Ok(reload)) => {
            let status = match reload.outcome {
                ReloadOutcome::Applied | ReloadOutcome::Unchanged => StatusCode::OK,
                ReloadOutcome::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
            };
            json(status, &reload)
        }
        Ok(Err(_)) => error(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the process is shutting down"),
        Err(_) => error(
            StatusCode::ACCEPTED,
            "under_way",
            "the reload is still under way; last_reload of /api/v1/status will tell what came of it",
        ),
    }
}

/// How things stand, for people.
async fn index(State(context): State<Context>, headers: HeaderMap) -> Response {
    if console::is_browser(&headers) { console::page() } else { lines(&context).into_response() }
}

fn lines(context: &Context) -> String {
    let status = context.sources.board.snapshot();
    let mut text = format!("millrace {}, generation {}\n", status.version, status.generation);
    if let Some(reload) = &status.last_reload {
        let outcome = match reload.outcome {
            ReloadOutcome::Applied => "applied",
            ReloadOutcome::Unchanged => "unchanged",
            ReloadOutcome::Rejected => "refused; what runs goes on as it was",
        };
        text += &format!("configuration of {}: {outcome}: {}\n", reload.at, reload.told.message);
    }
    for (name, route) in &status.routes {
        let reason = route.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        text += &format!("route {name} is {}{reason}\n", route.state.as_str());
    }
    text + "\n" + &list()
}

/// What can be asked, a line each.
fn list() -> String {
    let line = |(method, path, what, _)| format!("  {method:4} {path:31} {what}\n");
    endpoints().into_iter().map(line).collect()
}

async fn not_found(uri: Uri) -> Response {
    error(StatusCode::NOT_FOUND, "not_found", &format!("there is nothing at {}; / lists what there is", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        &format!("{} cannot be asked with {method}; / lists what there is", uri.path()),
    );
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed(uri.path())));
    response
}

/// With which methods this path can be asked.
fn allowed(path: &str) -> &'static str {
    let is_meant = |pattern: &str| {
        let (mut is, mut of) = (path.split('/'), pattern.split('/'));
        (0..).map_while(|_| Some(is.next()).zip(Some(of.next()))).take_while(|pair| *pair != (None, None)).all(
            |(is, of)| is == of || (is.is_some_and(|is| !is.is_empty()) && of.is_some_and(|of| of.starts_with('{'))),
        )
    };
    let methods: Vec<_> = endpoints().iter().filter(|(_, of, ..)| is_meant(of)).map(|(method, ..)| *method).collect();
    match methods[..] {
        ["POST"] => "POST",
        ["GET", "PUT"] => "GET, HEAD, PUT",
        _ => "GET, HEAD",
    }
}

pub(super) fn no_such_route(name: &str) -> Response {
    error(
        StatusCode::NOT_FOUND,
        "no_such_route",
        &format!("there is no route \"{name}\" in the configuration; /api/v1/routes lists them"),
    )
}

#[derive(Serialize)]
struct Error<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'a str,
    message: &'a str,
}

pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    json(status, &Error { error: ErrorBody { code, message } })
}

/// Indented: people read it, too.
pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    let mut body = serde_json::to_string_pretty(body).expect("our words are maps with text for keys");
    body.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
