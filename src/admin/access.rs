//! Who may ask what. Knows requests, not what is answered.
//!
//! Health and metrics answer anybody: kubelets and Prometheus come by address and without secrets. For all else `Host` must
//! be one of ours, or a page from anywhere could reach a loopback endpoint through a name that resolves to it (DNS
//! rebinding), and `Origin`, which browsers send, must be our own. The token is asked for where the endpoint is open to
//! other machines, and for what changes state.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, Method, Uri, header};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use subtle::ConstantTimeEq as _;

use super::{AdminOptions, console};

/// Paths that answer anybody.
const OPEN: [&str; 4] = ["/livez", "/readyz", "/healthz", "/metrics"];

/// The console's files.
const PAGE: [&str; 2] = ["/console.css", "/console.js"];

/// The rules of one endpoint.
#[derive(Debug)]
pub(super) struct Access {
    loopback: bool,
    token: Option<Token>,
    /// What a browser shows in the token's place. Made up for these rules: others ask for the token again.
    session: Option<Token>,
    allowed_hosts: Vec<String>,
}

/// The cookie's name.
const COOKIE: &str = "millrace_session";

/// Not for showing.
struct Token(String);

impl Token {
    /// 256 bits of the system's randomness; none where it has none.
    fn made_up() -> Option<Self> {
        let mut bytes = [0; 32];
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            match getrandom(&mut *rest, GetRandomFlags::empty()) {
                Ok(got) => rest = &mut rest[got..],
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        Some(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the Host of the request is neither loopback nor one of admin.allowed_hosts")]
    Host,
    #[error("the request comes from a page of another origin")]
    Origin,
    #[error("a token is needed: send it as \"Authorization: Bearer <admin.token>\"")]
    TokenMissing,
    #[error("the token is not the one of admin.token")]
    TokenWrong,
    #[error("this endpoint is not on loopback and has no token: set admin.token to open more than health and metrics")]
    Closed,
}

impl Access {
    /// The rules for an endpoint that listens on `address`.
    pub(super) fn new(address: IpAddr, options: &AdminOptions) -> Self {
        Self {
            loopback: address.to_canonical().is_loopback(),
            token: options.token.as_ref().map(|token| Token(token.reveal().to_owned())),
            session: Token::made_up(),
            allowed_hosts: options.allowed_hosts.clone(),
        }
    }

    /// Whether nothing but health and metrics can be answered.
    pub(super) fn is_closed(&self) -> bool {
        !self.loopback && self.token.is_none()
    }

    /// Whether this request may be answered.
    pub(super) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        if OPEN.contains(&uri.path()) {
            return Ok(());
        }
        let host = self.check_host(uri, headers)?;
        check_origin(host, headers)?;
        // The page holds nothing: it is where somebody signs in.
        if PAGE.contains(&uri.path()) || (uri.path() == "/" && console::is_browser(headers)) {
            return Ok(());
        }
        self.check_token(method, headers)
    }

    /// For the cookie of who has shown the token; none where no secret could be made up.
    pub(super) fn session_cookie(&self) -> Option<String> {
        let session = self.session.as_ref()?;
        Some(format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200", session.0))
    }

    /// The host of the request, which is one of ours.
    fn check_host<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Refusal> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Refusal::Host) };
        let host = host.to_str().map_err(|_| Refusal::Host)?;
        // A request line with a whole URL speaks of a host, too.
        let of_line = uri.authority().map_or(host, |authority| authority.as_str());
        if self.is_ours(host) && self.is_ours(of_line) { Ok(host) } else { Err(Refusal::Host) }
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = without_port(host);
        is_loopback(name)
            || self
                .allowed_hosts
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
    }

    fn check_token(&self, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let changes_state = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        match &self.token {
            None if self.loopback => Ok(()),
            None => Err(Refusal::Closed),
            Some(_) if self.loopback && !changes_state => Ok(()),
            Some(token) => {
                let Some(given) = bearer(headers) else {
                    let is_ours = |given| self.session.as_ref().is_some_and(|session| session.is(given));
                    let session = cookie(headers).is_some_and(is_ours);
                    return if session { Ok(()) } else { Err(Refusal::TokenMissing) };
                };
                if token.is(given) { Ok(()) } else { Err(Refusal::TokenWrong) }
            }
        }
    }
}

/// `Origin` absent, or the host that was asked (behind a proxy that ends TLS: by https).
fn check_origin(host: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let of = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")).unwrap_or_default();
        if !of.eq_ignore_ascii_case(host) {
            return Err(Refusal::Origin);
        }
    }
    Ok(())
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The value of our cookie.
fn cookie(headers: &HeaderMap) -> Option<&[u8]> {
    let all = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    all.filter_map(|one| one.trim_ascii().strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"=")).next()
}

/// `name:port` → `name`, `[::1]:port` → `[::1]`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_loopback(name: &str) -> bool {
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match bracketed {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok_and(|v6| v6.to_canonical().is_loopback()),
        None => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse::<std::net::Ipv4Addr>().is_ok_and(|v4| v4.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::PropertyValue;

    const OPEN_TO_ALL: &str = "0.0.0.0:9400";
    const LOOPBACK: &str = "127.0.0.1:9400";

    fn check(
        listen: &str,
        token: Option<&str>,
        request: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<(), Refusal> {
        let options = AdminOptions {
            listen: listen.parse().unwrap(),
            token: token.map(PropertyValue::secret),
            allowed_hosts: vec!["millrace.example".into(), "other.example:8443".into()],
        };
        let (method, uri) = request.split_once(' ').unwrap();
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let access = Access::new(options.listen.ip(), &options);
        access.check(&method.parse().unwrap(), &uri.parse().unwrap(), &headers)
    }

    #[test]
    fn health_and_metrics_answer_anybody() {
        for path in OPEN {
            for listen in [LOOPBACK, OPEN_TO_ALL] {
                for headers in [&[][..], &[(header::HOST, "10.0.0.7:9400"), (header::ORIGIN, "null")]] {
                    assert_eq!(check(listen, Some("s"), &format!("GET {path}?routes=all"), headers), Ok(()), "{path}");
                }
            }
        }
    }

    #[test]
    fn hosts_are_loopback_or_allowed() {
        let cases = [
            ("localhost", true),
            ("LocalHost:9400", true),
            ("127.0.0.1:9400", true),
            ("127.8.9.1", true),
            ("[::1]:9400", true),
            ("[::ffff:127.0.0.1]", true),
            ("millrace.example", true),
            ("Millrace.Example:443", true),
            ("other.example:8443", true),
            ("other.example", false),
            ("other.example:1", false),
            ("evil.example", false),
            ("localhost.evil.example:9400", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.7:9400", false),
            ("localhost@evil.example", false),
            ("localhost:", false),
            ("", false),
        ];
        for (host, ours) in cases {
            let expected = if ours { Ok(()) } else { Err(Refusal::Host) };
            assert_eq!(check(LOOPBACK, None, "GET /api/v1/status", &[(header::HOST, host)]), expected, "{host:?}");
        }
        assert_eq!(check(LOOPBACK, None, "GET /", &[]), Err(Refusal::Host));
        let url = "GET http://evil.example/";
        assert_eq!(check(LOOPBACK, None, url, &[(header::HOST, "localhost")]), Err(Refusal::Host));
    }

    #[test]
    fn origins_are_absent_or_our_own() {
        let cases = [
            ("http://localhost:9400", true),
            ("https://LOCALHOST:9400", true),
            ("http://localhost", false),
            ("http://localhost:94000", false),
            ("http://evil.example", false),
            ("file://localhost:9400", false),
            ("null", false),
            ("", false),
        ];
        for (origin, ours) in cases {
            let headers = [(header::HOST, "localhost:9400"), (header::ORIGIN, origin)];
            let expected = if ours { Ok(()) } else { Err(Refusal::Origin) };
            assert_eq!(check(LOOPBACK, None, "POST /-/reload", &headers), expected, "{origin:?}");
        }
    }

    #[test]
    fn a_token_is_asked_for_by_what_changes_state_and_by_what_is_open_to_other_machines() {
        use Refusal::{Closed, TokenMissing, TokenWrong};
        let cases = [
            (LOOPBACK, None, "GET /api/v1/status", None, Ok(())),
            (LOOPBACK, None, "POST /-/reload", None, Ok(())),
            (LOOPBACK, Some("s3cret"), "GET /api/v1/status", None, Ok(())),
            (LOOPBACK, Some("s3cret"), "POST /-/reload", None, Err(TokenMissing)),
            (LOOPBACK, Some("s3cret"), "POST /-/reload", Some("Bearer wrong"), Err(TokenWrong)),
            (LOOPBACK, Some("s3cret"), "POST /-/reload", Some("bearer s3cret"), Ok(())),
            (OPEN_TO_ALL, None, "GET /api/v1/status", None, Err(Closed)),
            (OPEN_TO_ALL, None, "GET /api/v1/status", Some("Bearer "), Err(Closed)),
            (OPEN_TO_ALL, Some("s3cret"), "GET /", None, Err(TokenMissing)),
            (OPEN_TO_ALL, Some("s3cret"), "GET /", Some("Basic s3cret"), Err(TokenMissing)),
            (OPEN_TO_ALL, Some("s3cret"), "GET /", Some("Bearer s3cret!"), Err(TokenWrong)),
            (OPEN_TO_ALL, Some("s3cret"), "GET /", Some("Bearer s3cret"), Ok(())),
        ];
        for (listen, token, request, given, expected) in cases {
            let mut headers = vec![(header::HOST, "localhost")];
            headers.extend(given.map(|given| (header::AUTHORIZATION, given)));
            assert_eq!(check(listen, token, request, &headers), expected, "{listen} {token:?} {request} {given:?}");
        }
    }

    #[test]
    fn a_session_stands_for_the_token_until_the_rules_change_and_goes_by_cookie_alone() {
        let options = AdminOptions {
            listen: OPEN_TO_ALL.parse().unwrap(),
            token: Some(PropertyValue::secret("s3cret")),
            allowed_hosts: vec![],
        };
        let [access, other] = [(); 2].map(|()| Access::new(options.listen.ip(), &options));
        let given = access.session_cookie().unwrap();
        assert!(given.contains("HttpOnly") && given.contains("SameSite=Strict"), "{given}");
        let value = given.split(';').next().unwrap();
        let ask = |access: &Access, name: header::HeaderName, value: &str| {
            let headers =
                [(header::HOST, "localhost"), (name, value)].map(|(name, value)| (name, value.parse().unwrap()));
            let uri = "/api/v1/routes/r/pause".parse().unwrap();
            access.check(&Method::POST, &uri, &headers.into_iter().collect())
        };
        assert_eq!(ask(&access, header::COOKIE, &format!("a=b; {value}")), Ok(()));
        assert_eq!(ask(&other, header::COOKIE, value), Err(Refusal::TokenMissing));
        assert_eq!(ask(&access, header::COOKIE, &format!("{value}0")), Err(Refusal::TokenMissing));
        let bearer = format!("Bearer {}", value.split_once('=').unwrap().1);
        assert_eq!(ask(&access, header::AUTHORIZATION, &bearer), Err(Refusal::TokenWrong));
    }

    #[test]
    fn the_page_is_for_whoever_may_reach_the_host_and_the_lines_are_not() {
        let page = [(header::HOST, "localhost"), (header::ACCEPT, "text/html,*/*")];
        assert_eq!(check(OPEN_TO_ALL, Some("s3cret"), "GET /", &page), Ok(()));
        assert_eq!(check(OPEN_TO_ALL, Some("s3cret"), "GET /console.js", &page[..1]), Ok(()));
        assert_eq!(check(OPEN_TO_ALL, Some("s3cret"), "GET /", &page[..1]), Err(Refusal::TokenMissing));
        let elsewhere = [(header::HOST, "evil.example"), (header::ACCEPT, "text/html")];
        assert_eq!(check(OPEN_TO_ALL, Some("s3cret"), "GET /", &elsewhere), Err(Refusal::Host));
    }

    #[test]
    fn the_token_is_never_shown() {
        let options = AdminOptions {
            listen: LOOPBACK.parse().unwrap(),
            token: Some(PropertyValue::secret("s3cret")),
            allowed_hosts: vec![],
        };
        assert!(!format!("{options:?} {:?}", Access::new(options.listen.ip(), &options)).contains("s3cret"));
    }
}
