//! Asks the admin endpoint of a running daemon, for the verbs that are about one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::StatusCode;

use super::{ConfigArgument, Failure, environment};
use crate::config::{self, Loaded};

/// Longer than the endpoint itself waits for a reload.
const ANSWER_WITHIN: Duration = Duration::from_secs(65);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Which daemon.
#[derive(clap::Args)]
pub(super) struct DaemonArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Its admin endpoint, such as http://127.0.0.1:9400 [default: `admin.listen` of the configuration]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Which daemon, for the verbs that print what it answers.
#[derive(clap::Args)]
pub(super) struct AskArguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    /// Print what the daemon answers, as JSON, on stdout
    #[arg(long)]
    pub(super) json: bool,
}

impl DaemonArguments {
    /// How to ask it. The configuration only says where the daemon is: with --url, it need not be there, nor right.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let loaded = match (&self.url, self.config.path()) {
            (Some(_), path) => path.ok().and_then(|path| config::load(&path, &environment).ok()),
            (None, path) => Some(config::load(&path?, &environment).map_err(Failure::Invalid)?),
        };
        Client::new(self.url.as_deref(), loaded.as_ref())
    }
}

/// The admin endpoint of a daemon.
pub(super) struct Client {
    agent: Agent,
    /// Without a slash at its end.
    base: String,
    token: Option<String>,
}

/// An answer that the endpoint gave in good order.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: String,
}

impl Client {
    /// The daemon at `url`, else the one that the configuration is for. Its token is `$MILLRACE_TOKEN`, else the
    /// configuration's.
    pub(super) fn new(url: Option<&str>, loaded: Option<&Loaded>) -> Result<Self, Failure> {
        let admin = loaded.map(|loaded| &loaded.settings.admin);
        let base = match (url, admin) {
            (Some(url), _) => checked(url)?,
            (None, Some(admin)) => url_of(admin.listen)?,
            (None, None) => return Err(usage("say which daemon: --url http://HOST:PORT")),
        };
        let of_config = admin.and_then(|admin| admin.token.as_ref()).map(|token| token.reveal().to_owned());
        let token = environment("MILLRACE_TOKEN").filter(|token| !token.is_empty()).or(of_config);
        Ok(Self { agent: agent(ANSWER_WITHIN), base, token })
    }

    /// The same, which waits no longer than this for an answer.
    pub(super) fn within(self, limit: Duration) -> Self {
        Self { agent: agent(limit), ..self }
    }

    /// Where it is.
    pub(super) fn url(&self) -> &str {
        &self.base
    }

    /// GET, of what must be there.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = self.answer(request.call())?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(&answer));
        }
        answer.json(self)
    }

    /// GET without the token, of what may be asked without one; whatever the answer is.
    pub(super) fn look(&self, path: &str) -> Result<Answer, Failure> {
        self.answer(self.agent.get(format!("{}{path}", self.base)).call())
    }

    /// GET, of an answer that goes on.
    pub(super) fn stream(&self, path: &str) -> Result<impl std::io::Read + use<>, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        // (the endpoint ends it in good time)
        let request = request.config().timeout_global(None).build();
        let no_answer = || format!("no daemon answers at {}: is it running, and is this its admin.listen?", self.base);
        let mut response = request.call().with_context(no_answer).map_err(Failure::Environment)?;
        if response.status() != StatusCode::OK {
            let body = response.body_mut().read_to_string().unwrap_or_default();
            return Err(self.declined(&Answer { status: response.status(), body }));
        }
        Ok(response.into_body().into_reader())
    }

    /// POST, without a body.
    pub(super) fn post(&self, path: &str) -> Result<Answer, Failure> {
        self.answer(self.posting(path).send_empty())
    }

    /// POST, with this body.
    pub(super) fn post_json(&self, path: &str, body: &serde_json::Value) -> Result<Answer, Failure> {
        self.answer(self.posting(path).header("Content-Type", "application/json").send(body.to_string()))
    }

    /// PUT, with this body.
    pub(super) fn put_json(&self, path: &str, body: &serde_json::Value) -> Result<Answer, Failure> {
        let request = self.signed(self.agent.put(format!("{}{path}", self.base)));
        self.answer(request.header("Content-Type", "application/json").send(body.to_string()))
    }

    fn posting(&self, path: &str) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
        self.signed(self.agent.post(format!("{}{path}", self.base)))
    }

    fn signed<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// An answer as what it is read as.
    pub(super) fn understood<T: DeserializeOwned>(&self, answer: serde_json::Value) -> Result<T, Failure> {
        let not_ours = || format!("{} does not answer as a millrace of this version does", self.base);
        serde_json::from_value(answer).with_context(not_ours).map_err(Failure::Environment)
    }

    /// Why the daemon did not do what it was asked. That a route is not there, or not in a state for it, is no trouble with
    /// the environment.
    pub(super) fn declined(&self, answer: &Answer) -> Failure {
        let said: Option<serde_json::Value> = serde_json::from_str(&answer.body).ok();
        let said = said.as_ref().map(|said| &said["error"]);
        let (code, message) = said.map_or((None, None), |said| (said["code"].as_str(), said["message"].as_str()));
        match (answer.status, code, message) {
            (StatusCode::NOT_FOUND, Some("no_such_route"), Some(message)) => Failure::Usage(anyhow!("{message}")),
            (StatusCode::CONFLICT | StatusCode::ACCEPTED | StatusCode::BAD_REQUEST, _, Some(message)) => {
                Failure::Running(anyhow!("{message}"))
            }
            _ => self.refused(answer),
        }
    }

    fn answer(&self, result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, Failure> {
        let no_answer = || format!("no daemon answers at {}: is it running, and is this its admin.listen?", self.base);
        let mut response = result.with_context(no_answer).map_err(Failure::Environment)?;
        let body = response.body_mut().read_to_string().with_context(no_answer).map_err(Failure::Environment)?;
        Ok(Answer { status: response.status(), body })
    }

    /// What the endpoint has against a request, in its own words.
    pub(super) fn refused(&self, answer: &Answer) -> Failure {
        let said: Option<serde_json::Value> = serde_json::from_str(&answer.body).ok();
        let message = said.as_ref().and_then(|said| said["error"]["message"].as_str()).unwrap_or("it does not say why");
        let help = match answer.status {
            StatusCode::UNAUTHORIZED => " (from here: set MILLRACE_TOKEN)",
            StatusCode::NOT_FOUND => " (an older millrace, or something else?)",
            _ => "",
        };
        Failure::Environment(anyhow!("{} answers {}: {message}{help}", self.base, answer.status))
    }
}

impl Answer {
    /// Its body.
    pub(super) fn json<T: DeserializeOwned>(&self, client: &Client) -> Result<T, Failure> {
        let not_ours = || format!("{} does not answer as a millrace of this version does", client.base);
        serde_json::from_str(&self.body).with_context(not_ours).map_err(Failure::Environment)
    }
}

fn agent(within: Duration) -> Agent {
    let agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_WITHIN.min(within)))
        .timeout_global(Some(within))
        .max_redirects(0)
        .build();
    agent.into()
}

fn usage(message: &str) -> Failure {
    anstream::eprintln!("millrace: {message}");
    Failure::Said(2)
}

fn checked(url: &str) -> Result<String, Failure> {
    if url.starts_with("https://") {
        return Err(usage("the admin endpoint speaks no TLS: give an http:// address, through a tunnel if need be"));
    }
    let rest = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', '?', '#', ' ']) {
        return Err(usage(&format!("{url:?} is no address of a daemon: write http://HOST:PORT")));
    }
    Ok(format!("http://{rest}"))
}

/// How to reach what listens there: what listens everywhere is on loopback, too.
fn url_of(listen: SocketAddr) -> Result<String, Failure> {
    if listen.port() == 0 {
        return Err(usage(
            "admin.listen takes any free port (0): say which one it has, as the daemon logged it, with --url",
        ));
    }
    let ip = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(format!("http://{}", SocketAddr::new(ip, listen.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_found_where_it_listens() {
        for (listen, url) in [
            ("127.0.0.1:9400", "http://127.0.0.1:9400"),
            ("0.0.0.0:9400", "http://127.0.0.1:9400"),
            ("[::]:1", "http://[::1]:1"),
            ("10.0.0.7:9400", "http://10.0.0.7:9400"),
        ] {
            assert_eq!(url_of(listen.parse().unwrap()).ok().as_deref(), Some(url), "{listen}");
        }
        assert!(matches!(url_of("127.0.0.1:0".parse().unwrap()), Err(Failure::Said(2))));
    }

    #[test]
    fn an_address_may_be_written_in_short_and_nothing_else_is_taken_for_one() {
        for (written, url) in
            [("http://a:1/", "http://a:1"), ("a:1", "http://a:1"), ("http://[::1]:2", "http://[::1]:2")]
        {
            assert_eq!(checked(written).ok().as_deref(), Some(url), "{written}");
        }
        for written in ["https://a:1", "http://", "a:1/api", "a b"] {
            assert!(matches!(checked(written), Err(Failure::Said(2))), "{written}");
        }
    }
}
