//! Destinations of a route.

use super::super::decode::{At, Fields, boolean, condition, list, non_empty, text, wrong_type};
use super::super::keys;
use super::super::problem::{Problem, Problems};
use super::super::settings::Target;
use super::super::source::Place;
use super::super::tree::{Entry, Node, Typed, Value};
use super::routes::{pattern, topic};
use super::{RawDestination, named};
use crate::model::DestinationName;
use crate::policy::Partitioning;

pub(super) fn destinations(entry: &Entry, problems: &mut Problems) -> Vec<RawDestination> {
    let Some(nodes) = list(&entry.value, "a list of destinations", problems) else { return Vec::new() };
    if nodes.is_empty() {
        let problem = Problem::at(&entry.key_place, "a route needs at least one destination").code("missing_key");
        problems.push(problem.help("write `destinations: [{ topic: TOPIC }]`"));
    }
    nodes.iter().filter_map(|node| destination(node, problems)).collect()
}

fn destination(node: &Node, problems: &mut Problems) -> Option<RawDestination> {
    if let Value::Scalar(scalar) = &node.value
        && let Typed::Text(topic) = scalar.typed()
    {
        problems.push(wrong_type(node, "a destination").help(format!("write `topic: {topic}`")));
        return None;
    }
    let mut fields = Fields::of(&keys::DESTINATION_KEYS, node, &node.place, "a destination", problems)?;
    let name = fields.get(&keys::DESTINATION_NAME).and_then(|node| {
        let text = text(node, "a name", problems)?;
        named(&text, "the name of a destination", DestinationName::new(&text.value), problems)
    });
    let (target, place) = target(&mut fields, node, problems);
    let ways = Partitioning::ALL.map(|partitioning| (partitioning.as_str(), partitioning));
    let partition = fields.choice(&keys::PARTITION, &ways, problems);
    let default = fields.get(&keys::DESTINATION_DEFAULT).and_then(|node| boolean(node, problems)).map(|at| at.value);
    let when = fields.get(&keys::DESTINATION_WHEN).and_then(|node| condition(node, problems)).map(|at| at.value);
    let unnamed = name.is_none() && fields.entry(&keys::DESTINATION_NAME).is_none();
    fields.finish(problems);
    let target = target?;
    let name = match &target {
        _ if !unnamed => name?,
        Target::Topic(topic) => At::new(DestinationName::new(topic).ok()?, &place),
        Target::Pattern(_) => {
            let problem =
                Problem::at(&place, "a destination with a `topic_pattern` needs a `name`").code("missing_key");
            problems.push(problem.help("plugins send records there by its name: `name: NAME`"));
            return None;
        }
    };
    Some(RawDestination { place, name, target, partition, default, when })
}

fn target(fields: &mut Fields<'_>, node: &Node, problems: &mut Problems) -> (Option<Target>, Place) {
    match (fields.entry(&keys::TOPIC_KEY), fields.entry(&keys::TOPIC_PATTERN)) {
        (Some(one), None) => {
            let text = non_empty(&one.value, "a topic", problems);
            (text.and_then(|text| topic(&text, problems)).map(Target::Topic), one.value.place.clone())
        }
        (None, Some(many)) => {
            let text = non_empty(&many.value, "a pattern of topics", problems);
            (text.and_then(|text| pattern(&text, problems)).map(Target::Pattern), many.value.place.clone())
        }
        (Some(one), Some(many)) => {
            let problem = Problem::at(&many.key_place, "a destination has a `topic` or a `topic_pattern`, not both");
            problems.push(problem.related(&one.key_place, "also given here").help("make two destinations of it"));
            (None, one.value.place.clone())
        }
        (None, None) => {
            let problem = Problem::at(&node.place, "this destination has no topic").code("missing_key");
            problems
                .push(problem.help("write `topic: TOPIC`, or `topic_pattern: \"^…$\"` for topics that a plugin names"));
            (None, node.place.clone())
        }
    }
}
