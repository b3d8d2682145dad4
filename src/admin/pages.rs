//! What is answered, path by path. Every answer for programs is JSON, errors too, and each error says what to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

use super::RenderMetrics;
use super::access::{Access, Refusal};
use crate::control::status::{RouteState, RouteStatus, Status, StatusBoard};
use crate::model::RouteName;

/// Bytes of a request's body; what changes state is told in a few words.
const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone)]
struct Context {
    board: Arc<StatusBoard>,
    metrics: RenderMetrics,
    access: Arc<Access>,
}

/// All paths, behind the rules of `access`.
pub(super) fn router(board: Arc<StatusBoard>, metrics: RenderMetrics, access: Access) -> Router {
    let context = Context { board, metrics, access: Arc::new(access) };
    Router::new()
        .route("/livez", get(live))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .route("/", get(index))
        // What changes state comes here, as `post(…)`; `access` asks for the token by the method.
        .nest(
            "/api/v1",
            Router::new()
                .route("/status", get(status))
                .route("/routes", get(routes))
                .route("/routes/{name}", get(route)),
        )
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(context.clone(), guard))
        .with_state(context)
}

/// Lets through what the rules allow, and marks every answer as one not to keep and not to guess the type of.
async fn guard(State(context): State<Context>, request: Request, next: Next) -> Response {
    let mut response = match context.access.check(request.method(), request.uri(), request.headers()) {
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
    let states = context.board.route_states();
    if let Some(name) = one.as_deref().filter(|name| !states.contains_key(*name)) {
        return no_such_route(name);
    }
    let asked = |name: &RouteName, state: RouteState| {
        one.as_deref() == Some(name.as_str()) || (all.is_some() && state != RouteState::Disabled)
    };
    let not_ready = states.iter().find(|(name, state)| asked(name, **state) && !state.is_ready());
    let reason = match not_ready {
        _ if !context.board.ready() => Some("no configuration is applied, or the process is shutting down".to_owned()),
        Some((name, state)) => Some(format!("route {name} is {}", state.as_str())),
        None => None,
    };
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Readiness { ready: reason.is_none(), reason, routes: states })
}

async fn metrics_text(State(context): State<Context>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (context.metrics)()).into_response()
}

async fn status(State(context): State<Context>) -> Response {
    json::<Status>(StatusCode::OK, &context.board.snapshot())
}

#[derive(Serialize)]
struct Routes {
    routes: BTreeMap<RouteName, RouteStatus>,
}

async fn routes(State(context): State<Context>) -> Response {
    json(StatusCode::OK, &Routes { routes: context.board.snapshot().routes })
}

async fn route(State(context): State<Context>, Path(name): Path<String>) -> Response {
    match context.board.route_snapshot(&name) {
        Some(route) => json(StatusCode::OK, &route),
        None => no_such_route(&name),
    }
}

async fn index() -> &'static str {
    concat!(
        "millrace ",
        env!("CARGO_PKG_VERSION"),
        "\n\n",
        "  /livez               the process turns\n",
        "  /readyz              a configuration is applied; ?routes=all and ?route=NAME ask for routes\n",
        "  /metrics             for Prometheus\n",
        "  /api/v1/status       everything, as JSON\n",
        "  /api/v1/routes       all routes\n",
        "  /api/v1/routes/NAME  one of them\n",
    )
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
    // All there is so far is read.
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
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
