//! TLS, SASL and permissions on a real broker that insists on them: every way to say who one is routes records, a secret that
//! is rotated is taken up while they flow, and `check --connect` tells in words what a broker refuses.

use std::process::Stdio;
use std::time::Duration;

use crate::connect::{assert_told, check, problems};
use crate::support::config::{Config, head_with};
use crate::support::daemon::{Daemon, millrace};
use crate::support::kafka::{ConsumedRecord, Isolation, Record};
use crate::support::load::Load;
use crate::support::secured::{Listener, Login, PREFIX, Secured, secured};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// Topics of these names that every user may read and write.
fn topics<const N: usize>(names: [&str; N]) -> [String; N] {
    let names = names.map(|name| unique(&format!("{PREFIX}-{name}")));
    secured().cluster.create_topics(&names, 1, &[("retention.ms", "-1")]);
    names
}

/// A configuration with one route for each pair of topics, and what `login` takes.
fn config(login: &(String, String), routes: &[(&str, &str, &str)]) -> Config {
    let mut text = head_with(&login.0, &unique(PREFIX), &login.1);
    text.push_str("routes:\n");
    for (name, from, to) in routes {
        text.push_str(&format!(
            "  {name}: {{ source: {{ topics: [{from}], start: earliest }}, destinations: [{{ topic: {to} }}] }}\n"
        ));
    }
    Config::of(&text)
}

#[test]
fn records_are_routed_whichever_way_millrace_says_who_it_is() {
    let kafka = &secured().cluster;
    // All at once: each takes a few seconds to join its group.
    let running = Login::ALL.map(|login| {
        let [from, to] = topics([&format!("{login:?}-in"), &format!("{login:?}-out")]);
        let config = config(&secured().login(login), &[("r", &from, &to)]);
        let daemon = Daemon::spawn(config.path(), |_| {});
        (login, from, to, config, daemon)
    });
    let send = |values: &[&str]| {
        for (login, from, ..) in &running {
            let records: Vec<_> = values.iter().map(|value| Record::new("k", format!("{login:?} {value}"))).collect();
            kafka.produce(from, &records);
        }
    };
    send(&["1", "2"]);
    for (_, _, to, ..) in &running {
        kafka.await_records(to, 2, PATIENCE);
    }
    // A token lives for 5 s: each of its three clients asks for another in time, and goes on with it.
    let given = secured().issuer.given();
    wait_until(PATIENCE, "tokens are refreshed", || secured().issuer.given() >= given + 3);
    send(&["3"]);
    for (login, _, to, _, daemon) in &running {
        let arrived: Vec<_> = kafka.await_records(to, 3, PATIENCE).iter().map(ConsumedRecord::text).collect();
        assert_eq!(arrived, ["1", "2", "3"].map(|value| format!("{login:?} {value}")));
        assert_eq!(daemon.await_state("r", "running", PATIENCE), "", "{login:?}");
    }
}

#[test]
fn a_password_that_is_rotated_is_taken_up_route_by_route_with_nothing_lost_or_doubled() {
    let (broker, kafka) = (secured(), &secured().cluster);
    let (address, yaml) = broker.login(Login::Scram512);
    let yaml = yaml.replace(
        "sasl.username: bea, sasl.password: bea-secret",
        "sasl.username: frank, sasl.password: \"${file:password}\"",
    );
    let pairs = [topics(["rotated-a", "rotated-a-out"]), topics(["rotated-b", "rotated-b-out"])];
    let routes = [("a", &*pairs[0][0], &*pairs[0][1]), ("b", &*pairs[1][0], &*pairs[1][1])];
    let config = config(
        &(address, yaml + ", consumer: { session.timeout.ms: 6000 }, producer: { transaction.timeout.ms: 5000 }"),
        &routes,
    );
    // (who is found out with an old password drains in vain, as long as it may, and cannot leave its group)
    config.edit(|yaml| format!("shutdown_timeout: 18s\n{yaml}"));
    config.put("password", b"first\n");
    let daemon = Daemon::start(config.path());
    let loads = pairs.each_ref().map(|[from, _]| Load::start(kafka, from, 1, 100));
    let flows = |what: &str| {
        let sent = loads.each_ref().map(Load::sent);
        for (sent, (route, ..)) in sent.iter().zip(routes) {
            wait_until(PATIENCE, &format!("records of {route} flow {what}"), || {
                let consumed = daemon.metric("millrace_records_consumed_total", &[("route", route)]);
                consumed.unwrap_or_default() > *sent as f64
            });
        }
    };
    flows("with the first password");

    // The file is ahead of the brokers: what runs goes on, and the new one is tried until it is right.
    config.put("password", b"second\n");
    wait_until(PATIENCE, "the password is refused", || daemon.reloads("rejected") >= 1.0);
    let log = daemon.log();
    assert!(log.contains("it is tried again by itself") && log.contains("invalid credentials"), "{log}");
    flows("with the first password, which is right still");
    broker.set_password("frank", "SCRAM-SHA-512", "second");
    // Two routes never restart at once.
    wait_until(PATIENCE, "both routes run with the second password", || {
        let status = daemon.status();
        let is = |route: &str, state: &str| status["routes"][route]["state"] == state;
        assert!(["a", "b"].iter().any(|route| !is(route, "starting") && !is(route, "draining")), "{status:#}");
        status["generation"] == 2
            && ["a", "b"]
                .iter()
                .all(|route| is(route, "running") && status["routes"][route]["workers"][0]["generation"] == 2)
    });
    flows("with the second password");

    // The brokers are ahead of the file: those who are connected are found out, and wait.
    broker.set_password("frank", "SCRAM-SHA-512", "third");
    wait_until(PATIENCE, "somebody has noticed", || {
        daemon.log().matches("invalid credentials").count() > log.matches("invalid credentials").count()
    });
    config.put("password", b"third\n");
    wait_until(PATIENCE, "the third password is in force", || daemon.generation() == 3);
    flows("with the third password");

    for (load, [_, to]) in loads.into_iter().zip(&pairs) {
        let sent = load.stop();
        let arrived = kafka.await_records(to, sent.count, PATIENCE);
        sent.assert_whole(&arrived, to);
        assert_eq!(kafka.kcat_consume(to, Isolation::ReadCommitted).len(), sent.count, "{to}");
    }
}

/// What is wrong with a connection: the address, the YAML, and the words in which it is told.
fn broken_connections(broker: &Secured) -> Vec<(String, String, &'static [&'static str])> {
    let (secure, mutual) = (broker.address(Listener::Secure), broker.address(Listener::Mutual));
    let ca = format!(", ssl.ca.location: \"{}\"", broker.file("ca.pem"));
    let tls = |protocol: &str| format!("{ca}, security.protocol: {protocol}");
    let sasl = |mechanism: &str, password: &str| {
        let user = if mechanism == "PLAIN" { "alice" } else { "bob" };
        tls("SASL_SSL") + &format!(", sasl.mechanism: {mechanism}, sasl.username: {user}, sasl.password: {password}")
    };
    let pair = |name: &str| {
        let [public, private] = ["crt", "key"].map(|end| broker.file(&format!("{name}.{end}")));
        format!(", ssl.certificate.location: \"{public}\", ssl.key.location: \"{private}\"")
    };
    let token = |ca: &str, secret: &str| {
        tls("SASL_SSL") + ", sasl.mechanism: OAUTHBEARER, " + &broker.issuer.yaml(&broker.file(ca), secret)
    };
    let localhost = secure.replace("127.0.0.1", "localhost");
    vec![
        (secure.clone(), sasl("PLAIN", "wrong"), &["Invalid username or password", "refuses `sasl.username`"]),
        (secure.clone(), sasl("SCRAM-SHA-256", "wrong"), &["invalid credentials", "refuses `sasl.username`"]),
        (
            secure.clone(),
            sasl("PLAIN", "alice-secret").replace("ca.pem", "other.pem"),
            &["signed by none of the authorities"],
        ),
        (localhost, sasl("PLAIN", "alice-secret"), &["hostname mismatch", "is for another host"]),
        (broker.address(Listener::Expired), tls("SSL"), &["certificate has expired", "renewed"]),
        (secure.clone(), String::new(), &["speaks TLS"]),
        (secure.clone(), tls("SSL"), &["wants SASL"]),
        (broker.cluster.bootstrap.clone(), tls("SSL"), &["speaks no TLS"]),
        (mutual.clone(), tls("SSL"), &["asks for a client's certificate"]),
        (mutual, tls("SSL") + &pair("mallory"), &["asks for a client's certificate", "is not sent"]),
        (secure.clone(), token("ca.pem", "wrong"), &["401 invalid_client", "the issuer of tokens refuses"]),
        (secure, token("other.pem", "dave-secret"), &["no token from https://", "https.ca.location"]),
    ]
}

#[test]
fn what_a_broker_refuses_is_told_in_words() {
    let broken = broken_connections(secured());
    // All at once: some are waited for in vain, until the brokers' time to answer is over.
    let asked: Vec<_> = broken
        .into_iter()
        .map(|(address, yaml, words)| {
            let config = config(&(address, yaml.clone()), &[("r", "secured-a", "secured-b")]);
            let mut command = millrace(&["check", "--connect"]);
            command.arg(config.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
            (yaml, words, config, command.spawn().expect("the millrace binary runs"))
        })
        .collect();
    for (yaml, words, _config, child) in asked {
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{yaml}:\n{said}");
        assert!(!said.contains("-secret"), "a secret is told:\n{said}");
        for words in ["the brokers do not answer"].iter().chain(words) {
            assert!(said.contains(words), "`{words}` is not in what is said of{yaml}:\n{said}");
        }
    }
}

#[test]
fn a_permission_that_is_missing_is_told_and_the_lines_that_grant_it_are_printed() {
    let cluster = &secured().cluster;
    // (not below the prefix of which other users may do everything)
    let [from, to, dead] = ["eves-orders", "eves-paid", "eves-dead"].map(unique);
    cluster.create_topic(&from, 1, &[]);
    cluster.create_topic(&to, 1, &[]);
    let (address, yaml) = secured().login(Login::Plain);
    let yaml = yaml.replace("alice", "eve");
    let text = format!(
        "{}routes:\n  r:\n    source: {{ topics: [{from}, \"^eves-in\\\\..*\"], start: earliest }}\n    destinations: [{{ topic: {to} }}]\n    \
         on_error: {{ dead_letter: {dead} }}\n",
        head_with(&address, &unique("eves"), &yaml)
    );
    let config = Config::of(&text);
    let output = check(&config, &["--connect", "--json"]);
    // (what is missing is around the configuration, not in it)
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let told = problems(&output);
    for words in [
        &format!("Read on topic \"{from}\" is not granted"),
        &format!("Write on topic \"{to}\" is not granted"),
        "Read on group \"eves",
        "Write on the transactional ids of group \"eves",
    ] {
        assert_told(&told, "not_authorized", words);
    }

    let output = check(&config, &["--acls"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        format!("--operation Write --operation Describe --topic {to}"),
        format!("--operation Read --operation Describe --topic {from}\n"),
        "--topic eves-in. --resource-pattern-type prefixed".to_owned(),
        format!("--topic {dead}"),
        "--transactional-id eves".to_owned(),
        "--allow-principal User:eve ".to_owned(),
    ] {
        assert!(lines.contains(&part), "`{part}` is not in:\n{lines}");
    }
    // Kafka's own tool takes the lines, and then nothing is missing but the topic.
    std::thread::scope(|scope| {
        for line in lines.lines() {
            let words: Vec<&str> = line.split_whitespace().skip(3).collect();
            scope.spawn(move || cluster.tool("AclCommand", &words));
        }
    });
    let told = problems(&check(&config, &["--connect", "--json"]));
    assert!(!told.iter().any(|(code, ..)| code == "not_authorized"), "{told:#?}");
    assert_told(&told, "missing_topic", &dead);
}

#[test]
fn a_transaction_timeout_above_the_brokers_limit_is_told_with_the_limit_where_that_may_be_seen() {
    let [from, to] = topics(["patient", "patient-out"]);
    let with_limits = |login: (String, String)| {
        let login = (login.0, login.1 + ", producer: { transaction.timeout.ms: 61000 }");
        let config = config(&login, &[("r", &from, &to)]);
        config.edit(|yaml| format!("shutdown_timeout: 200s\n{yaml}"));
        let output = check(&config, &["--connect", "--json"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        problems(&output)
    };
    let told = with_limits((secured().cluster.bootstrap.clone(), String::new()));
    assert_told(&told, "transaction_timeout", "`transaction.max.timeout.ms` of 60000 ms");
    assert_eq!(told.iter().filter(|(code, ..)| code == "transaction_timeout").count(), 1, "{told:#?}");
    let told = with_limits(secured().login(Login::Plain));
    assert_told(&told, "transaction_timeout", "`transaction.timeout.ms` (61000 ms) is above");
}
