//! Tokens for SASL's OAUTHBEARER, by OIDC's client credentials. librdkafka would ask for them with libcurl, which is not
//! linked: they are asked for here, by the same properties. Knows no client; `raw.rs` hands librdkafka a token when it
//! wants one.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::client_options::Options;

/// Longer than any issuer takes; librdkafka wants a token when four fifths of the last one's life are over.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A token with what is said about it; Kafka itself takes no more than that in one request of SASL.
const LONGEST_ANSWER: u64 = 512 << 10;

const METHOD: &str = "sasl.oauthbearer.method";
const CLIENT_ID: &str = "sasl.oauthbearer.client.id";
const CLIENT_SECRET: &str = "sasl.oauthbearer.client.secret";
const SCOPE: &str = "sasl.oauthbearer.scope";
const EXTENSIONS: &str = "sasl.oauthbearer.extensions";
const URL: &str = "sasl.oauthbearer.token.endpoint.url";
const GRANT_TYPE: &str = "sasl.oauthbearer.grant.type";
const CA_LOCATION: &str = "https.ca.location";
const CA_PEM: &str = "https.ca.pem";
const OURS: [&str; 9] = [METHOD, CLIENT_ID, CLIENT_SECRET, SCOPE, EXTENSIONS, URL, GRANT_TYPE, CA_LOCATION, CA_PEM];

/// The property's first name, where it is one that is read here instead of by librdkafka.
fn ours(name: &str) -> Option<&'static str> {
    let name = match name {
        "sasl.oauthbearer.client.credentials.client.id" => CLIENT_ID,
        "sasl.oauthbearer.client.credentials.client.secret" => CLIENT_SECRET,
        name => name,
    };
    OURS.into_iter().find(|own| *own == name)
}

/// What is wrong with a property that is read here; none where librdkafka has to judge.
pub(super) fn check_property(name: &str, value: &str) -> Option<Result<(), String>> {
    if name.starts_with("sasl.oauthbearer.assertion.") || name.starts_with("sasl.oauthbearer.metadata.") {
        return Some(Err("is not supported: tokens are asked for with `sasl.oauthbearer.client.id` and \
                         `sasl.oauthbearer.client.secret`"
            .to_owned()));
    }
    Some(match ours(name)? {
        METHOD if !["default", "oidc"].contains(&value) => Err("is `oidc` or `default`".to_owned()),
        GRANT_TYPE if value != "client_credentials" => Err("is `client_credentials`: no other is supported".to_owned()),
        URL => checked_url(value),
        EXTENSIONS => extensions(value).map(drop),
        _ => Ok(()),
    })
}

fn checked_url(url: &str) -> Result<(), String> {
    let parsed = url.parse::<ureq::http::Uri>().ok().filter(|url| url.host().is_some());
    match parsed.as_ref().and_then(ureq::http::Uri::scheme_str) {
        Some("http" | "https") => Ok(()),
        _ => Err("is an address that begins with https://".to_owned()),
    }
}

/// `name=value,name=value`.
fn extensions(written: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = written.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').ok_or("is `name=value`, with commas between")?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    pairs.map(pair).collect()
}

/// A token, as librdkafka takes it.
pub(super) struct Token {
    pub(super) value: String,
    /// Milliseconds since 1970.
    pub(super) expires: i64,
    /// Whose it is.
    pub(super) principal: String,
}

/// Who is asked for tokens, and how.
pub(super) struct Issuer {
    agent: Agent,
    url: String,
    id: String,
    secret: String,
    scope: Option<String>,
    /// What the brokers are told beside the token.
    pub(super) extensions: Vec<(String, String)>,
}

/// Says nothing of the secret.
impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("url", &self.url).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Issuer {
    /// Who these properties say, of which a later one replaces an earlier one, if anybody; and the properties that are for
    /// librdkafka.
    ///
    /// # Errors
    /// One that is needed is missing, or a file of certificates cannot be read.
    pub(super) fn of(properties: &[(String, String)]) -> Result<(Option<Self>, Options), String> {
        let (own, rest): (Vec<_>, Vec<_>) = properties.iter().cloned().partition(|(name, _)| ours(name).is_some());
        let get =
            |name: &str| own.iter().rev().find(|(own, _)| ours(own) == Some(name)).map(|(_, value)| value.clone());
        let mechanisms = ["sasl.mechanism", "sasl.mechanisms"];
        let mechanism = rest.iter().rev().find(|(name, _)| mechanisms.contains(&name.as_str()));
        if get(METHOD).as_deref() != Some("oidc") || mechanism.is_none_or(|(_, value)| value != "OAUTHBEARER") {
            return Ok((None, rest));
        }
        let needed = |name: &str| {
            let value = get(name).filter(|value| !value.is_empty());
            value.ok_or_else(|| format!("`{METHOD}: oidc` wants `{name}`, too"))
        };
        let issuer = Self {
            url: needed(URL)?,
            id: needed(CLIENT_ID)?,
            secret: needed(CLIENT_SECRET)?,
            scope: get(SCOPE),
            extensions: extensions(&get(EXTENSIONS).unwrap_or_default())
                .map_err(|why| format!("`{EXTENSIONS}` {why}"))?,
            agent: agent(get(CA_LOCATION), get(CA_PEM))?,
        };
        Ok((Some(issuer), rest))
    }

    /// Asks for a token.
    ///
    /// # Errors
    /// In words, without a secret.
    pub(super) fn token(&self) -> Result<Token, String> {
        let failed = |why: String| format!("no token from {}: {why}", self.url);
        let (status, body) = self.ask().map_err(|error| failed(error.to_string()))?;
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        if !(200..300).contains(&status) {
            let said = ["error", "error_description"].map(|key| answer[key].as_str().unwrap_or_default());
            return Err(failed(format!("it answers {status} {}", said.join(" ")).trim_end().to_owned()));
        }
        self.read(&answer).map_err(failed)
    }

    fn ask(&self) -> Result<(u16, String), ureq::Error> {
        let mut form = "grant_type=client_credentials".to_owned();
        if let Some(scope) = self.scope.as_deref().filter(|scope| !scope.is_empty()) {
            form.push_str("&scope=");
            form.push_str(&encoded(scope));
        }
        let credentials = STANDARD.encode(format!("{}:{}", self.id, self.secret));
        let request = self.agent.post(&self.url).header("Authorization", format!("Basic {credentials}"));
        let request = request.header("Accept", "application/json");
        let mut answer = request.header("Content-Type", "application/x-www-form-urlencoded").send(form)?;
        let body = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string()?;
        Ok((answer.status().as_u16(), body))
    }

    /// The end of a token's life and its owner stand in the token, if it is a JSON Web Token; else the answer says how long
    /// it lives.
    fn read(&self, answer: &Value) -> Result<Token, String> {
        let value = answer["access_token"].as_str().ok_or("its answer holds no `access_token`")?;
        let claims = claims(value).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let end = claims["exp"].as_f64().or_else(|| Some(now + answer["expires_in"].as_f64()?));
        let end = end.ok_or("it says nowhere when the token ends (`exp` in the token, or `expires_in`)")?;
        let principal = claims["sub"].as_str().unwrap_or(&self.id).to_owned();
        Ok(Token { value: value.to_owned(), expires: (end * 1000.0) as i64, principal })
    }
}

/// The second part of a JSON Web Token, whose signature is the brokers' to judge.
fn claims(token: &str) -> Option<Value> {
    let part = token.split('.').nth(1)?;
    let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// As in a form.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let byte = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}

fn agent(ca_location: Option<String>, ca_pem: Option<String>) -> Result<Agent, String> {
    let file = ca_location.filter(|path| path != "probe").map(|path| {
        std::fs::read(&path)
            .map_err(|error| format!("`{CA_LOCATION}`: cannot read {path}: {error} (it is a file of PEM)"))
    });
    let pem = match file {
        Some(read) => Some(read?),
        None => ca_pem.map(String::into_bytes),
    };
    let roots = match pem {
        None => RootCerts::PlatformVerifier,
        Some(pem) => {
            let items: Result<Vec<PemItem<'_>>, _> = parse_pem(&pem).collect();
            let items = items.map_err(|error| format!("the certificates of `https.ca…` cannot be read: {error}"))?;
            let certificate = |item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            };
            RootCerts::Specific(Arc::new(items.into_iter().filter_map(certificate).collect()))
        }
    };
    let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build();
    let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).tls_config(tls);
    Ok(config.timeout_global(Some(ANSWER_WITHIN)).build().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn issuer() -> Issuer {
        let written = properties(&[
            ("sasl.mechanism", "OAUTHBEARER"),
            (METHOD, "oidc"),
            (URL, "https://issuer.example/token"),
            ("sasl.oauthbearer.client.credentials.client.id", "router"),
            (CLIENT_SECRET, "hunter2"),
            (EXTENSIONS, "logicalCluster=lkc-1, identityPoolId=pool-2"),
        ]);
        let (issuer, rest) = Issuer::of(&written).expect("all that is needed");
        assert_eq!(rest, written[..1]);
        issuer.expect("somebody to ask")
    }

    #[test]
    fn what_is_needed_for_a_token_and_missing_is_told() {
        let all = [("sasl.mechanisms", "OAUTHBEARER"), (METHOD, "oidc"), (URL, "https://a/b"), (CLIENT_ID, "c")];
        let missing = Issuer::of(&properties(&all)).map(drop).unwrap_err();
        assert!(missing.contains(CLIENT_SECRET), "{missing}");
        for without in [&all[1..], &all[..1], &[("sasl.mechanisms", "PLAIN"), (METHOD, "oidc")]] {
            assert!(Issuer::of(&properties(without)).unwrap().0.is_none(), "{without:?}");
        }
        let unreadable = [&all[..], &[(CLIENT_SECRET, "s"), (CA_LOCATION, "/nonexistent/ca.pem")]].concat();
        let told = Issuer::of(&properties(&unreadable)).map(drop).unwrap_err();
        assert!(told.contains("/nonexistent/ca.pem"), "{told}");
    }

    #[test]
    fn properties_that_make_no_sense_are_told_and_others_are_librdkafkas() {
        for (name, value, words) in [
            (METHOD, "oauth", "`oidc`"),
            (URL, "issuer.example/token", "https://"),
            (GRANT_TYPE, "password", "`client_credentials`"),
            (EXTENSIONS, "logicalCluster", "name=value"),
            ("sasl.oauthbearer.assertion.algorithm", "RS256", "not supported"),
            ("sasl.oauthbearer.metadata.authentication.type", "azure_imds", "not supported"),
        ] {
            let told = check_property(name, value).expect("one of ours").unwrap_err();
            assert!(told.contains(words), "{name}: {told}");
        }
        assert_eq!(check_property(URL, "http://127.0.0.1:8080/token"), Some(Ok(())));
        assert_eq!(check_property("sasl.oauthbearer.config", "x"), None);
    }

    #[test]
    fn the_end_of_a_token_and_its_owner_are_read_from_the_token_or_from_what_is_said_about_it() {
        let issuer = issuer();
        assert_eq!(issuer.extensions[1], ("identityPoolId".to_owned(), "pool-2".to_owned()));
        let jwt = format!("e30.{}.x", URL_SAFE_NO_PAD.encode(r#"{"sub":"somebody","exp":4102444800}"#));
        let token = issuer.read(&serde_json::json!({ "access_token": jwt })).expect("a token");
        assert_eq!((token.value, token.expires, &*token.principal), (jwt, 4_102_444_800_000, "somebody"));
        let opaque = serde_json::json!({ "access_token": "opaque", "expires_in": 60 });
        let token = issuer.read(&opaque).expect("a token");
        assert!(token.expires > 1_700_000_000_000 && token.principal == "router");
        for (answer, words) in [("{}", "no `access_token`"), (r#"{"access_token":"a.b.c"}"#, "when the token ends")] {
            let told = issuer.read(&serde_json::from_str(answer).unwrap()).map(drop).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
        assert!(!format!("{issuer:?}").contains("hunter2"));
        assert_eq!(encoded("kafka:write a+b"), "kafka%3Awrite%20a%2Bb");
    }
}
