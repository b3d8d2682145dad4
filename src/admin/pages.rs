//! What is answered, path by path. Every answer for programs is JSON, errors too, and each error says what to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Sources;
use super::access::{Access, Refusal};
use crate::control::facts::Facts;
use crate::control::reload::Ask;
use crate::control::status::{Cause, ReloadOutcome, RouteState, RouteStatus, Status};
use crate::model::RouteName;

/// Bytes of a request's body; what changes state is told in a few words.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long who asks for a reload waits for its outcome: less than a connection lives.
const RELOAD_WITHIN: Duration = Duration::from_secs(50);

#[derive(Clone)]
struct Context {
    sources: Sources,
    access: Arc<ArcSwap<Access>>,
}

/// All paths, behind the rules of `access`.
pub(super) fn router(sources: Sources, access: Arc<ArcSwap<Access>>) -> Router {
    let context = Context { sources, access };
    Router::new()
        .route("/livez", get(live))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .route("/", get(index))
        // What changes state is `post(…)`; `access` asks for the token by the method.
        .route("/-/reload", post(reload))
        .nest(
            "/api/v1",
            Router::new()
                .route("/status", get(status))
                .route("/routes", get(routes))
                .route("/routes/{name}", get(route))
                .route("/config", get(config))
                .route("/reload", post(reload)),
        )
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
    let reason = match not_ready {
        _ if !context.sources.board.ready() => {
            Some("no configuration is applied, or the process is shutting down".to_owned())
        }
        Some((name, state)) => Some(format!("route {name} is {}", state.as_str())),
        None => None,
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
async fn index(State(context): State<Context>) -> String {
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
    text + INDEX
}

const INDEX: &str = concat!(
    "\n",
    "  /livez               the process turns\n",
    "  /readyz              a configuration is applied; ?routes=all and ?route=NAME ask for routes\n",
    "  /metrics             for Prometheus\n",
    "  /api/v1/status       everything, as JSON\n",
    "  /api/v1/routes       all routes\n",
    "  /api/v1/routes/NAME  one of them\n",
    "  /api/v1/config       the configuration in force, as what is compared when it is loaded again\n",
    "  POST /api/v1/reload  load the configuration again, as /-/reload does\n",
);

async fn not_found(uri: Uri) -> Response {
    error(StatusCode::NOT_FOUND, "not_found", &format!("there is nothing at {}; / lists what there is", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        &format!("{} cannot be asked with {method}; / lists what there is", uri.path()),
    );
    let allowed = if uri.path().ends_with("/reload") { "POST" } else { "GET, HEAD" };
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn no_such_route(name: &str) -> Response {
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

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    json(status, &Error { error: ErrorBody { code, message } })
}

/// Indented: people read it, too.
fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    let mut body = serde_json::to_string_pretty(body).expect("our words are maps with text for keys");
    body.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
