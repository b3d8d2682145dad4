//! The permissions that a configuration needs, as lines for `kafka-acls.sh`, which `millrace check --acls` prints.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Plan;
use crate::config::fixed_beginning;
use crate::config::settings::{Target, TopicSelector};
use crate::kafka::Operation;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("orders.paid"), "orders.paid");
        assert_eq!(quoted("*"), "'*'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
