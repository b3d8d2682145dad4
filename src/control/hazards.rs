//! What an operator should know before a change is made: where keys and positions go, what is read again, what is missing.
//! Some of it keeps a reload from being made.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::change::{Action, Changes};
use super::facts::{Facts, Keys, is_enabled};
use super::plan::{Plan, RoutePlan};
use crate::config::settings::{Delivery, TopicSelector};
use crate::kafka::{Cluster, Topics, committed, loops, source_topics};
use crate::model::{RouteName, TopicPartition};

/// Something about a change that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hazard {
    /// Which kind, for machines.
    pub code: HazardCode,
    /// The route that it concerns; none: all of them.
    pub route: Option<RouteName>,
    /// What happens, where, and what to do instead.
    pub message: String,
    /// Whether a reload is refused for it.
    pub refused: bool,
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(route) = &self.route {
            write!(f, "route {route}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The kinds of hazard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HazardCode {
    /// A route is renamed and gets a new group: it would read all history again. Refused unless accepted.
    NewGroup,
    /// A group changes hands, or is not new: `start` does not hold.
    GroupReused,
    /// A route's group changes: it starts anew at `start`.
    GroupChanged,
    /// A topic comes to a group that has committed others: it is read from its beginning.
    History,
    /// Keys go to other partitions than before.
    Partitioning,
    /// The promise gets weaker.
    Delivery,
    /// A pattern matches a topic that the route writes; it is left out.
    Loop,
    /// A pattern matches a dead-letter topic; it is left out.
    DeadLetterInSource,
    /// A topic is not there. Refused.
    MissingTopic,
    /// The partitions do not fit `partition: source`. Refused.
    PartitionCount,
    /// A plugin is granted more, or less, than before.
    Capabilities,
    /// The cluster could not be asked. Refused where its address or its secrets are what changes.
    ClusterUnreachable,
}

/// What is hazardous about going from `before` to `after`. Without `topics`, what only the cluster knows is left out.
pub fn hazards(
    before: &Facts,
    after: &Plan,
    changes: &Changes,
    topics: Option<&Topics>,
    accept_new_group: bool,
) -> Vec<Hazard> {
    let now = after.facts();
    let mut found = Found::default();
    renames(before, &now, changes, accept_new_group, &mut found);
    for (name, change) in &changes.routes {
        let (Some(plan), Some(is)) = (after.routes.get(name), now.routes.get(name)) else { continue };
        let was = before.routes.get(name).filter(|was| is_enabled(was));
        if change.action == Action::Unchanged {
            continue;
        }
        groups(before, name, was, is, &mut found);
        if let Some(was) = was {
            promises(name, was, is, plan, &mut found);
        }
        if let Some(topics) = topics {
            let known = was.filter(|_| !changes.restarts_all());
            missing(name, known, plan, topics, &mut found);
            partitions(name, was, is, topics, &mut found);
            left_out(name, plan, topics, &mut found);
        }
    }
    found.0
}

/// Groups of routes that start anew and that are not new: what only the cluster knows. Costs a request for each.
pub fn history(cluster: &Cluster, after: &Plan, before: &Facts, changes: &Changes, topics: &Topics) -> Vec<Hazard> {
    let mut found = Found::default();
    for (name, plan) in &after.routes {
        let group = &plan.route.source.group;
        let same = before.routes.get(name).filter(|was| is_enabled(was) && text(was, "source.group") == group.as_str());
        if changes.action(name) == Action::Unchanged || same.is_some() {
            continue;
        }
        let partitions: Vec<TopicPartition> = source_topics(&plan.route.source, topics, &plan.left_out)
            .into_iter()
            .flat_map(|topic| {
                let count = topics.partitions(topic.as_str()).unwrap_or(0);
                (0..count).map(move |partition| TopicPartition { topic: topic.clone(), partition })
            })
            .collect();
        match committed(cluster, &plan.route, &partitions) {
            Ok(offsets) if offsets.is_empty() => {}
            Ok(offsets) => found.tell(
                HazardCode::GroupReused,
                name,
                format!(
                    "group {group} has committed {} of {} partitions already: it goes on there, and `start` does not hold",
                    offsets.len(),
                    partitions.len()
                ),
            ),
            Err(trouble) => found.tell(
                HazardCode::ClusterUnreachable,
                name,
                format!("group {group} cannot be asked for what it has committed: {}", trouble.message),
            ),
        }
    }
    found.0
}

#[derive(Default)]
struct Found(Vec<Hazard>);

impl Found {
    fn tell(&mut self, code: HazardCode, route: &RouteName, message: String) {
        self.0.push(Hazard { code, route: Some(route.clone()), message, refused: false });
    }

    fn refuse(&mut self, code: HazardCode, route: &RouteName, message: String) {
        self.0.push(Hazard { code, route: Some(route.clone()), message, refused: true });
    }
}

fn text<'k>(keys: &'k Keys, key: &str) -> &'k str {
    keys.get(key).map_or("", |fact| fact.as_str())
}

fn renames(before: &Facts, after: &Facts, changes: &Changes, accept: bool, found: &mut Found) {
    for (added, _) in changes.routes(Action::Added) {
        let is = &after.routes[added];
        let same_source = |gone: &&RouteName| {
            let was = &before.routes[*gone];
            ["source.topics", "source.exclude"].iter().all(|key| text(was, key) == text(is, key))
        };
        let Some(gone) = changes.routes(Action::Removed).map(|(name, _)| name).find(same_source) else { continue };
        let (old, new) = (text(&before.routes[gone], "source.group"), text(is, "source.group"));
        if old == new {
            continue;
        }
        let message = format!(
            "{added} takes the place of {gone} and reads the same topics under another group: group {new} starts at \
             `start: {}`, whatever group {old} has done. Keep the positions with `source: {{ group: {old} }}`, or accept \
             it with --accept-new-group",
            text(is, "source.start")
        );
        found.0.push(Hazard { code: HazardCode::NewGroup, route: Some(added.clone()), message, refused: !accept });
    }
}

fn groups(before: &Facts, name: &RouteName, was: Option<&Keys>, is: &Keys, found: &mut Found) {
    let group = text(is, "source.group");
    if let Some(old) = was.map(|was| text(was, "source.group")).filter(|old| *old != group) {
        let start = text(is, "source.start");
        let message = format!(
            "the group changes from {old} to {group}: where {group} has committed nothing, it starts at `start: {start}`, \
             whatever {old} has done"
        );
        found.tell(HazardCode::GroupChanged, name, message);
    }
    let owner = before.routes.iter().find(|(other, keys)| *other != name && text(keys, "source.group") == group);
    if let Some((other, _)) = owner.filter(|_| was.is_none_or(|was| text(was, "source.group") != group)) {
        let message = format!(
            "group {group} was that of {other}: {name} goes on where {other} has committed, and `start` does not hold there"
        );
        found.tell(HazardCode::GroupReused, name, message);
    }
    if let Some(was) = was.filter(|was| text(was, "source.group") == group) {
        let old = topics_of(was);
        let new: Vec<String> = topics_of(is).into_iter().filter(|topic| !old.contains(topic)).collect();
        if !new.is_empty() {
            let message = format!(
                "new to group {group}: {}. It is read from its beginning, unless the group has committed it before",
                new.join(", ")
            );
            found.tell(HazardCode::History, name, message);
        }
    }
}

fn topics_of(keys: &Keys) -> Vec<String> {
    serde_json::from_str(text(keys, "source.topics")).unwrap_or_default()
}

fn promises(name: &RouteName, was: &Keys, is: &Keys, plan: &RoutePlan, found: &mut Found) {
    let delivery = (text(was, "delivery"), text(is, "delivery"));
    if delivery.0 != delivery.1 && plan.route.delivery != Delivery::ExactlyOnce {
        let message =
            format!("delivery changes from {} to {}: docs/delivery.md says what that costs", delivery.0, delivery.1);
        found.tell(HazardCode::Delivery, name, message);
    }
    for key in is.keys() {
        let Some(plugin) = key.strip_prefix("plugins.").and_then(|key| key.strip_suffix(".allow")) else { continue };
        if was.contains_key(key) && text(was, key) != text(is, key) {
            let message = format!("plugin {plugin} is granted {} instead of {}", text(is, key), text(was, key));
            found.tell(HazardCode::Capabilities, name, message);
        }
    }
}

/// Topics that are not there, save those that kept the route waiting already.
fn missing(name: &RouteName, was: Option<&Keys>, plan: &RoutePlan, topics: &Topics, found: &mut Found) {
    let known = was.map(needed).unwrap_or_default();
    let absent: BTreeSet<&str> =
        plan.needed_topics().map(|topic| topic.as_str()).filter(|topic| topics.partitions(topic).is_none()).collect();
    for topic in absent.iter().filter(|topic| !known.contains(**topic)) {
        let message = format!("topic \"{topic}\" does not exist, and millrace creates no topic: create it");
        found.refuse(HazardCode::MissingTopic, name, message);
    }
    if absent.is_empty()
        && let Some(trouble) = plan.topic_trouble(topics)
    {
        found.refuse(HazardCode::PartitionCount, name, trouble.message);
    }
}

/// The topics that a route with these keys names.
fn needed(keys: &Keys) -> BTreeSet<String> {
    let mut needed: BTreeSet<String> = topics_of(keys).into_iter().filter(|topic| !topic.starts_with('^')).collect();
    for (key, fact) in keys {
        if key.starts_with("destinations.") && key.ends_with(".topic") {
            needed.insert(fact.as_str().to_owned());
        }
    }
    needed.extend(text(keys, "on_error").strip_prefix("dead_letter: ").map(str::to_owned));
    needed
}

fn partitions(name: &RouteName, was: Option<&Keys>, is: &Keys, topics: &Topics, found: &mut Found) {
    let Some(was) = was else { return };
    for (old, new) in successors(was, is) {
        let of =
            |keys, destination: &str, what: &str| text(keys, &format!("destinations.{destination}.{what}")).to_owned();
        let mode = (of(was, &old, "partition"), of(is, &new, "partition"));
        let topic = (of(was, &old, "topic"), of(is, &new, "topic"));
        if mode.0 != mode.1 {
            let message = format!(
                "destination {new} chooses partitions by `{}` instead of `{}`: a key's records no longer go where the \
                 earlier ones are",
                mode.1, mode.0
            );
            found.tell(HazardCode::Partitioning, name, message);
        } else if let (Some(before), Some(after)) = (topics.partitions(&topic.0), topics.partitions(&topic.1))
            && before != after
            && mode.1 != "round_robin"
        {
            let message = format!(
                "its records go to \"{}\" with {after} partitions instead of \"{}\" with {before}: keys have other \
                 partitions there",
                topic.1, topic.0
            );
            found.tell(HazardCode::Partitioning, name, message);
        }
    }
}

/// Destinations before and after: of the same name; and those that went with those that came, in their order, since a
/// destination is named after its topic where it has no name of its own.
fn successors(was: &Keys, is: &Keys) -> Vec<(String, String)> {
    let names = |keys| serde_json::from_str::<Vec<String>>(text(keys, "destinations")).unwrap_or_default();
    let (old, new) = (names(was), names(is));
    let stayed = old.iter().filter(|name| new.contains(name)).map(|name| (name.clone(), name.clone()));
    let gone = old.iter().filter(|name| !new.contains(name)).cloned();
    let came = new.iter().filter(|name| !old.contains(name)).cloned();
    stayed.chain(gone.zip(came)).collect()
}

fn left_out(name: &RouteName, plan: &RoutePlan, topics: &Topics, found: &mut Found) {
    for topic in loops(&plan.route.source, topics, &plan.left_out) {
        let message =
            format!("its source's pattern matches \"{topic}\", which it writes: left out, it would be a loop");
        found.tell(HazardCode::Loop, name, message);
    }
    let source = &plan.route.source;
    let by_pattern = |topic: &str| {
        source
            .topics
            .iter()
            .any(|selector| matches!(selector, TopicSelector::Pattern(pattern) if pattern.is_match(topic)))
            && !source.exclude.iter().any(|selector| selector.matches(topic))
    };
    for topic in plan.left_out.dead_letters.iter().filter(|topic| by_pattern(topic.as_str())) {
        let message = format!("its source's pattern matches the dead-letter topic \"{topic}\", which no pattern reads");
        found.tell(HazardCode::DeadLetterInSource, name, message);
    }
}
