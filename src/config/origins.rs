//! Where each value that is written came from: its place, and the variables and files that were replaced in it. Keys are
//! paths through the YAML, as those of what is in force.

use std::collections::BTreeMap;

use super::interpolate::references;
use super::source::Place;
use super::tree::{Entry, Node, Value};

/// Where values came from, by their keys. What is not here is a default.
#[derive(Debug, Clone, Default)]
pub struct Origins(BTreeMap<String, Origin>);

/// Where one value came from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Where it is written.
    pub place: Place,
    /// What was replaced in it: `${NAME}` and `${file:PATH}`, without defaults.
    pub replaced: Vec<String>,
}

impl Origins {
    /// Where the value of a key came from, if it is written.
    pub fn get(&self, key: &str) -> Option<&Origin> {
        self.0.get(key)
    }

    /// Where the value of a route's key came from, if the route or `defaults` says it.
    pub fn of_route(&self, route: &str, key: &str) -> Option<&Origin> {
        // What is in force has one name for each: `commit_interval` is short, and a plugin's own keys stand with it.
        let also = match key {
            "transaction.interval" => Some("commit_interval"),
            _ => None,
        };
        let own =
            |key: &str| self.get(&format!("routes.{route}.{key}")).or_else(|| self.get(&format!("defaults.{key}")));
        own(key).or_else(|| also.and_then(own)).or_else(|| key.starts_with("plugins.").then(|| self.get(key)).flatten())
    }

    /// Adds what one file holds. Where a key is written twice, which is a problem, the first counts.
    pub(super) fn add(&mut self, root: &Node) {
        self.walk("", root);
    }

    fn walk(&mut self, path: &str, node: &Node) {
        if !path.is_empty() {
            self.0.entry(path.to_owned()).or_insert_with(|| Origin::of(node));
        }
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match &node.value {
            Value::Scalar(_) => {}
            Value::Map(entries) => entries.iter().for_each(|entry| self.walk(&below(&entry.key), &entry.value)),
            Value::List(list) => {
                for (number, node) in list.iter().enumerate() {
                    let name = if path.ends_with(".destinations") { destination(node) } else { None };
                    self.walk(&below(&name.unwrap_or_else(|| number.to_string())), node);
                }
            }
        }
    }
}

/// A destination goes by its name.
fn destination(node: &Node) -> Option<String> {
    let Value::Map(entries) = &node.value else { return None };
    let text = |key: &str| {
        let entry: &Entry = entries.iter().find(|entry| entry.key == key)?;
        match &entry.value.value {
            Value::Scalar(scalar) => Some(scalar.text.clone()),
            Value::List(_) | Value::Map(_) => None,
        }
    };
    text("name").or_else(|| text("topic"))
}

impl Origin {
    fn of(node: &Node) -> Self {
        let written = &node.place.file().text()[node.place.range()];
        let replaced = match &node.value {
            Value::Scalar(_) => references(written),
            // Each of what it holds says it for itself.
            Value::List(_) | Value::Map(_) => Vec::new(),
        };
        Self { place: node.place.clone(), replaced }
    }
}
