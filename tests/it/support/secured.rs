//! A broker that asks who one is, by every means that Kafka has, and what one may: one that all tests share. With the
//! certificates that it takes, and an issuer of tokens.
//!
//! To whoever comes without TLS it is an open house, by which tests set it up and look: that user may do everything.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use super::kafka::{Cluster, run};
use super::{root, scratch};

/// Begins the names of all topics, groups and transactional ids that its users may do everything with.
pub(crate) const PREFIX: &str = "secured";

/// The broker.
pub(crate) fn secured() -> &'static Secured {
    static SECURED: LazyLock<Secured> = LazyLock::new(Secured::start);
    &SECURED
}

pub(crate) struct Secured {
    pub(crate) cluster: Cluster,
    pub(crate) issuer: Issuer,
    certificates: PathBuf,
}

/// Where it listens, beside the address without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// TLS, and SASL by every mechanism.
    Secure = 1,
    /// TLS with certificates on both sides.
    Mutual = 2,
    /// TLS with a certificate that has expired.
    Expired = 3,
}

/// Ways to say who one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    Plain,
    Scram256,
    Scram512,
    Certificate,
    Token,
}

impl Login {
    pub(crate) const ALL: [Self; 5] = [Self::Plain, Self::Scram256, Self::Scram512, Self::Certificate, Self::Token];
}

impl Secured {
    fn start() -> Self {
        let certificates = scratch("certificates");
        make_certificates(&certificates);
        let at = |name: &str| certificates.join(name).display().to_string();
        let module = |name: &str| format!("org.apache.kafka.common.security.{name} required");
        let validator = "org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler";
        let config = [
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
            "super.users=User:ANONYMOUS".to_owned(),
            "transaction.max.timeout.ms=60000".to_owned(),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", at("broker.pem")),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", at("ca.pem")),
            "listener.name.expired.ssl.keystore.type=PEM".to_owned(),
            format!("listener.name.expired.ssl.keystore.location={}", at("expired.pem")),
            "listener.name.mutual.ssl.client.auth=required".to_owned(),
            "listener.name.mutual.ssl.principal.mapping.rules=RULE:^CN=(.*)$/$1/".to_owned(),
            "listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".to_owned(),
            // Who stays connected has to say again and again who they are: an old password is found out soon.
            "listener.name.secure.connections.max.reauth.ms=4000".to_owned(),
            format!(
                "listener.name.secure.plain.sasl.jaas.config={} user_alice=\"alice-secret\" user_eve=\"eve-secret\";",
                module("plain.PlainLoginModule")
            ),
            format!("listener.name.secure.scram-sha-256.sasl.jaas.config={};", module("scram.ScramLoginModule")),
            format!("listener.name.secure.scram-sha-512.sasl.jaas.config={};", module("scram.ScramLoginModule")),
            format!(
                "listener.name.secure.oauthbearer.sasl.jaas.config={};",
                module("oauthbearer.OAuthBearerLoginModule")
            ),
            format!("listener.name.secure.oauthbearer.sasl.server.callback.handler.class={validator}"),
        ];
        let config: Vec<&str> = config.iter().map(String::as_str).collect();
        let listeners = ["SECURE:SASL_SSL", "MUTUAL:SSL", "EXPIRED:SSL"];
        let cluster = Cluster::start_listening(&listeners, &config);
        let issuer = Issuer::start(&certificates);
        let secured = Self { cluster, issuer, certificates };
        // (each takes the start of a JVM)
        std::thread::scope(|scope| {
            scope.spawn(|| secured.set_password("bob", "SCRAM-SHA-256", "bob-secret"));
            scope.spawn(|| secured.set_password("bea", "SCRAM-SHA-512", "bea-secret"));
            scope.spawn(|| secured.set_password("frank", "SCRAM-SHA-512", "first"));
            scope.spawn(|| {
                let mut grants = vec!["--add", "--operation", "All", "--resource-pattern-type", "prefixed"];
                for resource in ["--topic", "--group", "--transactional-id"] {
                    grants.extend([resource, PREFIX]);
                }
                for user in ["User:alice", "User:bob", "User:bea", "User:carol", "User:dave", "User:frank"] {
                    grants.extend(["--allow-principal", user]);
                }
                secured.cluster.tool("AclCommand", &grants);
            });
        });
        secured
    }

    /// Gives a user this password, by a mechanism of SCRAM.
    pub(crate) fn set_password(&self, user: &str, mechanism: &str, password: &str) {
        let credentials = format!("{mechanism}=[password={password}]");
        self.cluster.tool(
            "kafka.admin.ConfigCommand",
            &["--alter", "--entity-type", "users", "--entity-name", user, "--add-config", &credentials],
        );
    }

    /// The address of a listener.
    pub(crate) fn address(&self, listener: Listener) -> String {
        let (host, port) = self.cluster.bootstrap.rsplit_once(':').expect("an address");
        format!("{host}:{}", port.parse::<u16>().expect("a port") + 10 * listener as u16)
    }

    /// One of the files of certificates and keys: `ca.pem`, `other.pem`, `carol.crt`, `mallory.key`, …
    pub(crate) fn file(&self, name: &str) -> String {
        self.certificates.join(name).display().to_string()
    }

    /// What a login takes in the YAML: the address, and more keys of `kafka`.
    pub(crate) fn login(&self, login: Login) -> (String, String) {
        let ca = format!(", ssl.ca.location: \"{}\"", self.file("ca.pem"));
        let sasl = |mechanism: &str, rest: &str| {
            let yaml = format!("{ca}, security.protocol: SASL_SSL, sasl.mechanism: {mechanism}, {rest}");
            (self.address(Listener::Secure), yaml)
        };
        let user = |name: &str| format!("sasl.username: {name}, sasl.password: {name}-secret");
        match login {
            Login::Plain => sasl("PLAIN", &user("alice")),
            Login::Scram256 => sasl("SCRAM-SHA-256", &user("bob")),
            Login::Scram512 => sasl("SCRAM-SHA-512", &user("bea")),
            Login::Token => sasl("OAUTHBEARER", &self.issuer.yaml(&self.file("ca.pem"), "dave-secret")),
            // (by their content, so that a certificate that is renewed is noticed)
            Login::Certificate => {
                let part = |key: &str, file: &str| format!(", {key}: \"${{file:{}}}\"", self.file(file));
                let pair = part("ssl.certificate.pem", "carol.crt") + &part("ssl.key.pem", "carol.key");
                (self.address(Listener::Mutual), format!("{ca}, security.protocol: SSL{pair}"))
            }
        }
    }
}

/// Two authorities; certificates of the first for the broker, one that has expired, and for the user carol; of the second for
/// mallory.
pub(crate) fn make_certificates(dir: &Path) {
    fs::create_dir_all(dir).expect("a directory for them");
    let openssl = |arguments: &[&str]| run(Command::new("openssl").args(arguments).current_dir(dir));
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"];
    for name in ["ca", "other"] {
        let (subject, pem, private) = (format!("/CN={name}"), format!("{name}.pem"), format!("{name}.key"));
        openssl(&[&["req", "-x509", "-days", "30"], &key[..], &[&subject, "-out", &pem, "-keyout", &private]].concat());
    }
    for (name, subject, authority, days) in [
        ("broker", "broker", "ca", "30"),
        ("expired", "broker", "ca", "-1"),
        ("carol", "carol", "ca", "30"),
        ("mallory", "mallory", "other", "30"),
    ] {
        let [request, private, public] = ["csr", "key", "crt"].map(|end| format!("{name}.{end}"));
        let (subject, host) = (format!("/CN={subject}"), "subjectAltName=IP:127.0.0.1");
        let asked = [&["req", "-new", "-addext", host], &key[..], &[&subject, "-out", &request, "-keyout", &private]];
        openssl(&asked.concat());
        let [by, by_key] = ["pem", "key"].map(|end| format!("{authority}.{end}"));
        let signed = ["x509", "-req", "-copy_extensions", "copyall", "-days", days, "-CA", &by, "-CAkey", &by_key];
        openssl(&[&signed[..], &["-in", &request, "-out", &public]].concat());
        let both = [&private, &public].map(|file| fs::read_to_string(dir.join(file)).expect("just made"));
        fs::write(dir.join(format!("{name}.pem")), both.concat()).expect("written");
    }
}

/// An issuer of tokens that live for some seconds. Gone with the value.
pub(crate) struct Issuer {
    port: u16,
    given: Arc<AtomicUsize>,
    _child: (Child, ChildStdin),
}

impl Issuer {
    fn start(certificates: &Path) -> Self {
        let mut command = Command::new("python3");
        command.arg(root().join("tests/it/support/issuer.py"));
        command.args(["broker.crt", "broker.key", "5"]).current_dir(certificates);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let tie = child.stdin.take().expect("a piped standard input");
        let mut lines = BufReader::new(child.stdout.take().expect("a piped standard output")).lines();
        let port = lines.next().and_then(Result::ok).and_then(|line| line.parse().ok()).expect("its port");
        let given = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&given);
        std::thread::spawn(move || lines.for_each(|_| _ = count.fetch_add(1, Relaxed)));
        Self { port, given, _child: (child, tie) }
    }

    /// How many tokens it has given.
    pub(crate) fn given(&self) -> usize {
        self.given.load(Relaxed)
    }

    /// What it takes in the YAML to ask it: who says so, its authority, and the client's secret.
    pub(crate) fn yaml(&self, ca: &str, secret: &str) -> String {
        format!(
            "sasl.oauthbearer.method: oidc, sasl.oauthbearer.token.endpoint.url: \"https://127.0.0.1:{}/token\", \
             sasl.oauthbearer.client.id: dave, sasl.oauthbearer.client.secret: {secret}, \
             sasl.oauthbearer.scope: records of all, https.ca.location: \"{ca}\"",
            self.port
        )
    }
}
