//! `millrace check --connect`: what a configuration needs of its cluster, held against the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::advice::advice;
use super::plan::{Plan, RoutePlan, problem_at};
use crate::config::settings::{Delivery, Target, TopicSelector};
use crate::config::{Place, Places, Problem, Problems, PropertyScope};
use crate::kafka::{Audit, Cluster, Operation, Questions, Topics, source_topics};
use crate::model::TopicName;
use crate::pipeline::ports::{Trouble, TroubleKind};
use crate::policy::Partitioning;

/// How long the cluster may take to answer a question.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What refuses us refuses us at once, and need not be waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Everything that keeps a configuration from running on its cluster, and what is hazardous there.
pub fn connect(plan: &Plan, places: &Places) -> Problems {
    let mut problems = Problems::new();
    match ask(plan) {
        Ok((topics, audit)) => {
            let timeout = plan.settings.kafka.transaction_timeout();
            ClusterLook { plan, topics: &topics, audit: &audit, places }.at_cluster(&mut problems);
            for route in plan.routes.values() {
                Look { route, topics: &topics, audit: &audit, places, timeout }.at_route(&mut problems);
            }
        }
        Err(why) => problems.push(unreachable(&why, places)),
    }
    problems.sort();
    problems
}

fn ask(plan: &Plan) -> Result<(Arc<Topics>, Audit), String> {
    let cluster = Cluster::connect(&plan.settings.kafka)?;
    let topics = reach(&cluster).map_err(|trouble| trouble.message)?;
    let mut questions = Questions::default();
    for route in plan.routes.values() {
        questions.topics.extend(source_topics(&route.route.source, &topics, &route.left_out));
        questions.topics.extend(route.needed_topics().cloned());
        questions.groups.insert(route.route.source.group.clone());
        if route.route.delivery == Delivery::ExactlyOnce {
            questions.transactional.insert(route.route.source.group.clone());
        }
    }
    let is_there = |topic: &TopicName| topics.by_name.contains_key(topic);
    questions.unseen = questions.topics.iter().filter(|topic| !is_there(topic)).cloned().collect();
    questions.topics.retain(|topic| is_there(topic));
    questions.topics.extend(topics.by_name.keys().filter(|topic| KAFKAS_OWN.contains(&topic.as_str())).cloned());
    let audit = Audit::of(&cluster, &questions, ANSWER_WITHIN);
    Ok((topics, audit))
}

fn reach(cluster: &Cluster) -> Result<Arc<Topics>, Trouble> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    loop {
        match cluster.refresh_now(LOOK_EVERY) {
            Err(trouble) if trouble.kind == TroubleKind::Passing && Instant::now() < deadline => {}
            answer => return answer,
        }
    }
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

/// Where Kafka keeps committed offsets, and the states of transactions.
const KAFKAS_OWN: [&str; 2] = ["__consumer_offsets", TRANSACTION_LOG];
const TRANSACTION_LOG: &str = "__transaction_state";

/// What all routes share, looked at.
struct ClusterLook<'a> {
    plan: &'a Plan,
    topics: &'a Topics,
    audit: &'a Audit,
    places: &'a Places,
}

impl ClusterLook<'_> {
    fn at_cluster(&self, problems: &mut Problems) {
        let is_transactional = self.plan.routes.values().any(|plan| plan.route.delivery == Delivery::ExactlyOnce);
        for name in KAFKAS_OWN.iter().filter(|name| is_transactional || **name != TRANSACTION_LOG) {
            let Some((topic, audit)) = self.audit.topics.iter().find(|(topic, _)| topic.as_str() == *name) else {
                continue;
            };
            let replicas = self.topics.by_name.get(topic).map_or(0, |state| state.replicas);
            not_durable(topic.as_str(), replicas, &audit.settings, self.places.kafka(), problems);
        }
        if let Some(broker) = self.audit.broker.as_ref().filter(|_| is_transactional) {
            self.transactions(broker, problems);
        }
    }

    /// The brokers' limits for transactions, where they may be seen.
    fn transactions(&self, broker: &BTreeMap<String, String>, problems: &mut Problems) {
        let setting = |name: &str| broker.get(name).and_then(|value| value.parse::<u64>().ok());
        let ours = self.plan.settings.kafka.transaction_timeout();
        if let Some(most) = setting("transaction.max.timeout.ms").filter(|most| u128::from(*most) < ours.as_millis()) {
            problems.push(too_long(ours, Some(most), self.places));
        }
        // What the log of transactions will be made with; one that is there is looked at itself.
        if self.topics.by_name.keys().any(|topic| topic.as_str() == TRANSACTION_LOG) {
            return;
        }
        if let Some(message) = no_transaction_log(broker, self.topics.brokers.len()) {
            problems.push(problem_at(self.places.kafka(), message, "transactions"));
        }
    }
}

/// Why so many brokers with these settings cannot keep a log of transactions, if they cannot.
fn no_transaction_log(broker: &BTreeMap<String, String>, brokers: usize) -> Option<String> {
    let setting = |name: &str| broker.get(name).and_then(|value| value.parse::<usize>().ok());
    let copies = setting("transaction.state.log.replication.factor")?;
    if copies > brokers {
        return Some(format!(
            "no transaction can begin: the brokers are to keep their log of transactions {copies} times \
             (`transaction.state.log.replication.factor`), and there {} {brokers} of them",
            if brokers == 1 { "is" } else { "are" }
        ));
    }
    let in_sync = setting("transaction.state.log.min.isr").filter(|in_sync| *in_sync > copies)?;
    Some(format!(
        "no transaction can be committed: the brokers want {in_sync} copies of their log of transactions in sync \
         (`transaction.state.log.min.isr`) and keep {copies} (`transaction.state.log.replication.factor`)"
    ))
}

fn too_long(ours: Duration, most: Option<u64>, places: &Places) -> Problem {
    const NAME: &str = "transaction.timeout.ms";
    let place =
        places.property(&PropertyScope::Producer, NAME).or_else(|| places.property(&PropertyScope::Common, NAME));
    let brokers = most.map_or_else(String::new, |most| format!(" of {most} ms"));
    let message = format!(
        "`{NAME}` ({} ms) is above the brokers' `transaction.max.timeout.ms`{brokers}: no transaction can begin",
        ours.as_millis()
    );
    let problem = problem_at(place.or_else(|| places.kafka()), message, "transaction_timeout");
    problem.help(most.map_or_else(|| "write less".to_owned(), |most| format!("write at most {most}")))
}

/// What may be lost of a topic that is written, or why it cannot be.
fn not_durable(
    topic: &str,
    replicas: usize,
    settings: &Result<BTreeMap<String, String>, String>,
    place: Option<&Place>,
    problems: &mut Problems,
) {
    let mut weak = Vec::new();
    if replicas < 3 {
        weak.push(format!("it has {replicas} replica{} (3 survive the loss of two brokers)", plural(replicas)));
    }
    match settings {
        Err(why) => weak.push(format!("its settings cannot be read: {why}")),
        Ok(settings) => {
            let setting = |name: &str| settings.get(name).map_or("", String::as_str);
            let in_sync = setting("min.insync.replicas").parse::<usize>().ok();
            if let Some(in_sync) = in_sync.filter(|in_sync| *in_sync > replicas) {
                let message = format!(
                    "topic \"{topic}\" takes no records: it wants {in_sync} replicas in sync (`min.insync.replicas`), and has {replicas}"
                );
                problems.push(problem_at(place, message, "not_writable"));
            }
            if in_sync.is_some_and(|in_sync| in_sync < 2) {
                weak.push(
                    "`min.insync.replicas` is below 2: what one broker has acknowledged may be lost with it".into(),
                );
            }
            if setting("unclean.leader.election.enable") == "true" {
                weak.push("`unclean.leader.election.enable`: a broker that was behind may become leader".into());
            }
        }
    }
    if !weak.is_empty() {
        let message = format!("topic \"{topic}\" can lose records: {}", weak.join("; "));
        problems.push(problem_at(place, message, "not_durable").warning());
    }
}

/// One route, looked at.
struct Look<'a> {
    route: &'a RoutePlan,
    topics: &'a Topics,
    audit: &'a Audit,
    places: &'a Places,
    /// Its transactions'.
    timeout: Duration,
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
        self.transactions(problems);
    }

    /// The topic is there, and we may do this with it.
    fn is_usable(&self, topic: &TopicName, need: Operation, place: Option<&Place>, problems: &mut Problems) -> bool {
        if self.audit.denied.contains(topic) {
            let message =
                format!("{} on topic \"{topic}\" is not granted, nor Describe: it cannot be seen", need.as_str());
            let problem = problem_at(place, message, "not_authorized");
            problems.push(problem.help("`--acls` prints what is needed"));
            return false;
        }
        if self.topics.partitions(topic.as_str()).is_none() {
            let message = format!("topic \"{topic}\" does not exist");
            let problem = problem_at(place, message, "missing_topic");
            problems.push(problem.help("create it: millrace creates no topic"));
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
        let (Some(state), Some(audit)) = (self.topics.by_name.get(topic), self.audit.topics.get(topic)) else { return };
        not_durable(topic.as_str(), state.replicas, &audit.settings, place, problems);
        let policy = audit.settings.as_ref().ok().and_then(|settings| settings.get("cleanup.policy"));
        if dead_letters && policy.is_some_and(|policy| policy.contains("compact")) {
            let message = format!(
                "the dead-letter topic \"{topic}\" is compacted: of letters with one key only the last stays, and those without a key are refused"
            );
            let problem = problem_at(place, message, "compacted_dead_letters");
            problems.push(problem.help("set its `cleanup.policy` to `delete`"));
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

    /// Whether transactions can begin for it, which the brokers have been asked for.
    fn transactions(&self, problems: &mut Problems) {
        let route = &self.route.route;
        let Some(trouble) = self.audit.transactions.get(&route.source.group) else { return };
        let place = self.places.source(&route.name);
        problems.push(match trouble.code.as_ref() {
            "TRANSACTIONAL_ID_AUTHORIZATION_FAILED" => {
                let message = format!(
                    "Write on the transactional ids of group \"{}\" is not granted, which `delivery: exactly_once` needs",
                    route.source.group
                );
                problem_at(place, message, "not_authorized").help("`--acls` prints what is needed")
            }
            // (with the brokers' limit it is told already, once)
            "INVALID_TRANSACTION_TIMEOUT" if self.audit.broker.is_some() => return,
            "INVALID_TRANSACTION_TIMEOUT" => too_long(self.timeout, None, self.places),
            _ => problem_at(place, format!("no transaction can begin: {}", trouble.message), "transactions"),
        });
    }
}

const fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn none_or(granted: &[&str]) -> String {
    if granted.is_empty() { "none".to_owned() } else { granted.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_transactions_that_wants_more_copies_than_there_can_be_is_told() {
        let broker = |copies: &str, in_sync: &str| {
            let settings =
                [("transaction.state.log.replication.factor", copies), ("transaction.state.log.min.isr", in_sync)];
            settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        for (copies, in_sync, brokers, words) in [
            ("3", "2", 1, Some("there is 1 of them")),
            ("3", "2", 2, Some("there are 2 of them")),
            ("2", "3", 3, Some("want 3 copies of their log of transactions in sync")),
            ("3", "2", 3, None),
            ("1", "1", 1, None),
        ] {
            let told = no_transaction_log(&broker(copies, in_sync), brokers);
            let is_right = words.map_or(told.is_none(), |words| told.as_ref().is_some_and(|told| told.contains(words)));
            assert!(is_right, "{copies} {in_sync} {brokers}: {told:?}");
        }
        assert_eq!(no_transaction_log(&BTreeMap::new(), 1), None, "what may not be seen is not guessed");
    }
}
