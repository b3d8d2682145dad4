//! `millrace check --connect`: what a configuration needs of its cluster, held against the cluster. Changes nothing there. And
//! the permissions that it needs, which `--acls` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::plan::{Plan, RoutePlan, problem_at};
use crate::config::settings::{Target, TopicSelector};
use crate::config::{Place, Places, Problem, Problems, PropertyScope, fixed_beginning};
use crate::kafka::{Audit, Cluster, Operation, TopicAudit, Topics, source_topics};
use crate::model::{GroupId, TopicName};
use crate::policy::Partitioning;

/// How long the cluster may take to answer a question.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Everything that keeps a configuration from running on its cluster, and what is hazardous there.
pub fn connect(plan: &Plan, places: &Places) -> Problems {
    let mut problems = Problems::new();
    match ask(plan) {
        Ok((topics, audit)) => {
            for route in plan.routes.values() {
                Look { route, topics: &topics, audit: &audit, places }.at_route(&mut problems);
            }
        }
        Err(why) => problems.push(unreachable(&why, places)),
    }
    problems.sort();
    problems
}

fn ask(plan: &Plan) -> Result<(Topics, Audit), String> {
    let cluster = Cluster::connect(&plan.settings.kafka)?;
    let topics = cluster.refresh_now(ANSWER_WITHIN).map_err(|trouble| trouble.message)?;
    let mut needed = BTreeSet::new();
    let mut groups = BTreeSet::new();
    for route in plan.routes.values() {
        needed.extend(source_topics(&route.route.source, &topics, &route.left_out));
        needed.extend(route.needed_topics().cloned());
        groups.insert(route.route.source.group.clone());
    }
    needed.retain(|topic| topics.by_name.contains_key(topic));
    let (needed, groups): (Vec<TopicName>, Vec<GroupId>) = (needed.into_iter().collect(), groups.into_iter().collect());
    let audit = Audit::of(&cluster, &needed, &groups, ANSWER_WITHIN);
    Ok((Topics::clone(&topics), audit))
}

/// Why the cluster does not answer, with what to do in words.
fn unreachable(why: &str, places: &Places) -> Problem {
    let place = places.property(&PropertyScope::Common, "bootstrap.servers").or_else(|| places.kafka());
    let problem = problem_at(place, format!("the brokers do not answer: {why}"), "unreachable");
    match advice(why) {
        Some(advice) => problem.help(advice),
        None => problem,
    }
}

/// What librdkafka's words mean, for who has to mend it.
fn advice(why: &str) -> Option<&'static str> {
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if says(&["certificate verify failed", "CERTIFICATE_VERIFY_FAILED"]) {
        Some(
            "the broker's certificate is signed by none of the authorities in `ssl.ca.location`, or is for another host",
        )
    } else if says(&["SSL handshake failed", "SSL routines", "wrong version number"]) {
        Some(
            "the listener speaks no TLS, or asks for a client's certificate: see `security.protocol`, `ssl.certificate.location`",
        )
    } else if says(&["Authentication failed", "SASL authentication error", "Invalid credentials"]) {
        Some(
            "the broker refuses `sasl.username` and `sasl.password`, or the user has no credentials for `sasl.mechanism`",
        )
    } else if says(&["SASL handshake", "mechanism"]) {
        Some("the broker does not offer this `sasl.mechanism`")
    } else if says(&["verify that security.protocol", "Disconnected", "disconnected"]) {
        Some("the listener speaks another `security.protocol`")
    } else if says(&["Connection refused"]) {
        Some("nothing listens there: see `bootstrap.servers`, and the broker's `advertised.listeners`")
    } else if says(&["Failed to resolve", "not known", "No address"]) {
        Some("the host's name is not known here: see `bootstrap.servers`")
    } else {
        None
    }
}

/// One route, looked at.
struct Look<'a> {
    route: &'a RoutePlan,
    topics: &'a Topics,
    audit: &'a Audit,
    places: &'a Places,
}

impl Look<'_> {
    fn at_route(&self, problems: &mut Problems) {
        let name = &self.route.route.name;
        let source = source_topics(&self.route.route.source, self.topics, &self.route.left_out);
        for (number, selector) in self.route.route.source.topics.iter().enumerate() {
            let place = self.places.source_topic(name, number);
            match selector {
                TopicSelector::Name(topic) => self.reads(topic, place, problems),
                TopicSelector::Pattern(pattern) => {
                    let matched: Vec<_> = source.iter().filter(|topic| pattern.is_match(topic.as_str())).collect();
                    if matched.is_empty() {
                        let written = pattern.as_str().trim_start_matches("^(?:").trim_end_matches(")$");
                        let message = format!("the pattern `{written}` matches no topic yet");
                        problems.push(problem_at(place, message, "no_topic").warning());
                    }
                    matched.into_iter().for_each(|topic| self.reads(topic, place, problems));
                }
            }
        }
        for (number, destination) in self.route.route.destinations.iter().enumerate() {
            if let Target::Topic(topic) = &destination.target {
                self.writes(topic, self.places.destination(name, number), false, problems);
            }
        }
        if let Some(topic) = self.route.route.on_error.dead_letter_topic() {
            self.writes(topic, self.places.dead_letter(name), true, problems);
        }
        self.partitions(&source, problems);
        self.group(problems);
    }

    /// The topic is there, and we may do this with it.
    fn is_usable(&self, topic: &TopicName, need: Operation, place: Option<&Place>, problems: &mut Problems) -> bool {
        if self.topics.partitions(topic.as_str()).is_none() {
            let message = format!("topic \"{topic}\" does not exist, or may not be seen");
            let problem = problem_at(place, message, "missing_topic");
            problems.push(problem.help("create it (millrace creates no topic), or grant Describe on it"));
            return false;
        }
        let may = self.audit.topics.get(topic).and_then(|audit| audit.may.as_ref());
        if let Some(may) = may.filter(|may| !may.contains(&need)) {
            let message = format!("{} on topic \"{topic}\" is not granted", need.as_str());
            let problem = problem_at(place, message, "not_authorized");
            let granted: Vec<&str> = may.iter().map(|operation| operation.as_str()).collect();
            let help = format!("`--acls` prints what is needed; granted are: {}", none_or(&granted));
            problems.push(problem.help(help));
        }
        true
    }

    fn reads(&self, topic: &TopicName, place: Option<&Place>, problems: &mut Problems) {
        if self.is_usable(topic, Operation::Read, place, problems)
            && let Some(state) = self.topics.by_name.get(topic).filter(|state| state.leaderless > 0)
        {
            let message = format!("topic \"{topic}\": {} of its partitions have no leader", state.leaderless);
            problems.push(problem_at(place, message, "no_leader").warning());
        }
    }

    fn writes(&self, topic: &TopicName, place: Option<&Place>, dead_letters: bool, problems: &mut Problems) {
        if !self.is_usable(topic, Operation::Write, place, problems) {
            return;
        }
        let Some(state) = self.topics.by_name.get(topic) else { return };
        let mut weak = Vec::new();
        if state.replicas < 3 {
            weak.push(format!(
                "it has {} replica{} (3 survive the loss of two brokers)",
                state.replicas,
                plural(state.replicas)
            ));
        }
        let TopicAudit { settings, .. } = match self.audit.topics.get(topic) {
            Some(audit) => audit,
            None => return,
        };
        match settings {
            Err(why) => weak.push(format!("its settings cannot be read: {why}")),
            Ok(settings) => {
                let setting = |name: &str| settings.get(name).map_or("", String::as_str);
                if setting("min.insync.replicas").parse::<u32>().is_ok_and(|count| count < 2) {
                    weak.push(
                        "`min.insync.replicas` is below 2: what one broker has acknowledged may be lost with it".into(),
                    );
                }
                if setting("unclean.leader.election.enable") == "true" {
                    weak.push("`unclean.leader.election.enable`: a broker that was behind may become leader".into());
                }
                if dead_letters && setting("cleanup.policy").contains("compact") {
                    let message = format!(
                        "the dead-letter topic \"{topic}\" is compacted: of letters with one key only the last stays, and those without a key are refused"
                    );
                    let problem = problem_at(place, message, "compacted_dead_letters");
                    problems.push(problem.help("set its `cleanup.policy` to `delete`"));
                }
            }
        }
        if !weak.is_empty() {
            let message = format!("topic \"{topic}\" can lose records: {}", weak.join("; "));
            problems.push(problem_at(place, message, "not_durable").warning());
        }
    }

    /// Workers, and `partition: source`, against the partitions that are there.
    fn partitions(&self, source: &[TopicName], problems: &mut Problems) {
        let route = &self.route.route;
        let count = |topic: &TopicName| self.topics.partitions(topic.as_str()).unwrap_or(0);
        let all: i64 = source.iter().map(|topic| i64::from(count(topic))).sum();
        if all > 0 && i64::from(route.workers) > all {
            let message = format!(
                "{} workers for {all} partition{}: those too many stand idle",
                route.workers,
                plural(all as usize)
            );
            problems.push(problem_at(self.places.route(&route.name), message, "idle_workers").warning());
        }
        let Some(widest) = source.iter().max_by_key(|topic| count(topic)) else { return };
        for (number, destination) in route.destinations.iter().enumerate() {
            let Target::Topic(topic) = &destination.target else { continue };
            let has = count(topic);
            if destination.partition == Partitioning::Source && has > 0 && has < count(widest) {
                let message = format!(
                    "`partition: source` needs as many partitions in \"{topic}\" as in \"{widest}\": it has {has}, not {}",
                    count(widest)
                );
                let place = self.places.destination(&route.name, number);
                let help = format!("give it {} partitions, or choose another `partition`", count(widest));
                problems.push(problem_at(place, message, "partition_count").help(help));
            }
        }
    }

    fn group(&self, problems: &mut Problems) {
        let group = &self.route.route.source.group;
        let may = self.audit.groups.get(group).and_then(Option::as_ref);
        if may.is_some_and(|may| !may.contains(&Operation::Read)) {
            let message = format!("Read on group \"{group}\" is not granted");
            let problem = problem_at(self.places.source(&self.route.route.name), message, "not_authorized");
            problems.push(problem.help("`--acls` prints what is needed"));
        }
    }
}

const fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn none_or(granted: &[&str]) -> String {
    if granted.is_empty() { "none".to_owned() } else { granted.join(", ") }
}

// ---- permissions ------------------------------------------------------------------------

/// A resource, as the options of `kafka-acls.sh` name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Resource {
    Topic(String),
    Topics(String),
    Group(String),
    Groups(String),
    Transactions(String),
}

impl Resource {
    fn options(&self) -> String {
        match self {
            Self::Topic(name) => format!("--topic {}", quoted(name)),
            Self::Topics(prefix) => format!("--topic {} --resource-pattern-type prefixed", quoted(prefix)),
            Self::Group(name) => format!("--group {}", quoted(name)),
            Self::Groups(prefix) => format!("--group {} --resource-pattern-type prefixed", quoted(prefix)),
            Self::Transactions(prefix) => {
                format!("--transactional-id {} --resource-pattern-type prefixed", quoted(prefix))
            }
        }
    }
}

/// For a shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'$' | b':' | b'/' | b',');
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The lines for `kafka-acls.sh` that grant what a configuration needs, and no more.
pub fn acls(plan: &Plan) -> Vec<String> {
    let kafka = &plan.settings.kafka;
    let shown = |name: &str| kafka.common.get(name).filter(|value| !value.is_secret()).map(ToString::to_string);
    let servers = shown("bootstrap.servers").unwrap_or_else(|| "$BROKERS".to_owned());
    let principal = shown("sasl.username").map_or_else(|| "$PRINCIPAL".to_owned(), |user| format!("User:{user}"));
    let principal = if principal.starts_with('$') { format!("\"{principal}\"") } else { quoted(&principal) };
    let line = |(resource, operations): (Resource, BTreeSet<Operation>)| {
        let operations: Vec<String> =
            operations.into_iter().map(|operation| format!("--operation {}", operation.as_str())).collect();
        format!(
            "kafka-acls.sh --bootstrap-server {} --add --allow-principal {principal} {} {}",
            quoted(&servers),
            operations.join(" "),
            resource.options()
        )
    };
    needed(plan).into_iter().map(line).collect()
}

fn needed(plan: &Plan) -> BTreeMap<Resource, BTreeSet<Operation>> {
    use Operation::{Describe, Read, Write};
    let mut needed: BTreeMap<Resource, BTreeSet<Operation>> = BTreeMap::new();
    let mut need = |resource, operations: &[Operation]| needed.entry(resource).or_default().extend(operations);
    let prefix = format!("{}.", plan.settings.kafka.prefix);
    for route in plan.routes.values().map(|plan| &plan.route) {
        need(Resource::Transactions(prefix.clone()), &[Write, Describe]);
        let group = route.source.group.as_str();
        let of_prefix = group.starts_with(&prefix);
        need(
            if of_prefix { Resource::Groups(prefix.clone()) } else { Resource::Group(group.to_owned()) },
            &[Read, Describe],
        );
        for selector in &route.source.topics {
            need(topics(selector), &[Read, Describe]);
        }
        for destination in &route.destinations {
            match &destination.target {
                Target::Topic(topic) => need(Resource::Topic(topic.to_string()), &[Write, Describe]),
                Target::Pattern(pattern) => need(beginning_with(pattern.as_str()), &[Write, Describe]),
            }
        }
        if let Some(topic) = route.on_error.dead_letter_topic() {
            need(Resource::Topic(topic.to_string()), &[Write, Describe]);
        }
    }
    needed
}

fn topics(selector: &TopicSelector) -> Resource {
    match selector {
        TopicSelector::Name(topic) => Resource::Topic(topic.to_string()),
        TopicSelector::Pattern(pattern) => beginning_with(pattern.as_str()),
    }
}

/// Kafka knows prefixes, no patterns; `*` is every topic.
fn beginning_with(pattern: &str) -> Resource {
    match fixed_beginning(pattern) {
        prefix if prefix.is_empty() => Resource::Topic("*".to_owned()),
        prefix => Resource::Topics(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_is_told_in_words() {
        for (why, words) in [
            ("ssl://b:9093/bootstrap: SSL handshake failed: certificate verify failed", "ssl.ca.location"),
            ("sasl_ssl://b:9093/bootstrap: SASL authentication error: Authentication failed", "sasl.username"),
            (
                "b:9092/bootstrap: Disconnected: verify that security.protocol is correctly configured",
                "security.protocol",
            ),
            ("b:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused", "nothing listens"),
            ("nowhere:9092/bootstrap: Failed to resolve 'nowhere:9092': Name or service not known", "not known here"),
        ] {
            assert!(advice(why).is_some_and(|advice| advice.contains(words)), "{why}: {:?}", advice(why));
        }
        assert_eq!(advice("something else"), None);
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("orders.paid"), "orders.paid");
        assert_eq!(quoted("*"), "'*'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
