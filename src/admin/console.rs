//! The console: a page with its style and its script, out of the binary, and the session that it gets for the token.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::pages::{Context, error};

/// Nothing but the page's own files, and its own endpoint to ask.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) const SCRIPT: &str = include_str!("console/console.js");
pub(super) const STYLE: &str = include_str!("console/console.css");
const PAGE: &str = include_str!("console/index.html");

/// The page, for a browser.
pub(super) fn page() -> Response {
    with("text/html; charset=utf-8", PAGE)
}

pub(super) async fn script() -> Response {
    with("text/javascript; charset=utf-8", SCRIPT)
}

pub(super) async fn style() -> Response {
    with("text/css; charset=utf-8", STYLE)
}

fn with(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("x-frame-options"), "DENY"),
    ];
    (headers, text).into_response()
}

/// Whether a browser asks, which wants the page and not the lines.
pub(super) fn is_browser(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/html"))
}

/// Gives who has shown the token (the guard has looked) a cookie in its place, so that no script ever holds it.
pub(super) async fn session(State(context): State<Context>) -> Response {
    let cookie = context.access().session_cookie().and_then(|cookie| HeaderValue::from_str(&cookie).ok());
    match cookie {
        Some(cookie) => (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response(),
        None => error(StatusCode::SERVICE_UNAVAILABLE, "no_session", "the system has no randomness for a session"),
    }
}
