//! What a reload changes, as data: for each route what is done with it and why. Pure; the same comparison serves the
//! reload, the status and `millrace plan`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Keys, is_enabled};
use crate::model::RouteName;

/// What is done with a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It starts.
    Added,
    /// It finishes what it holds, and leaves its group.
    Removed,
    /// It finishes what it holds, and starts anew with other clients.
    Restarted,
    /// Each worker takes the change up between two transactions, with the same membership.
    Swapped,
    /// Nothing.
    Unchanged,
}

impl Action {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 5] = [Self::Added, Self::Removed, Self::Restarted, Self::Swapped, Self::Unchanged];

    /// As people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Restarted => "restarted",
            Self::Swapped => "swapped in place",
            Self::Unchanged => "unchanged",
        }
    }
}

/// What a reload changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Each route of both configurations; one that is disabled in both is left out.
    pub routes: BTreeMap<RouteName, RouteChange>,
    /// Keys of the process that have changed.
    pub process: Vec<KeyChange>,
}

/// What is done with a route, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteChange {
    /// What.
    pub action: Action,
    /// The keys that have changed; for a route that starts or stops only `enabled`, if that is why.
    pub why: Vec<KeyChange>,
}

impl RouteChange {
    /// The keys that have changed, without those below another of them: a new destination brings all of its own.
    pub fn keys(&self) -> Vec<&str> {
        let keys = || self.why.iter().map(|change| change.key.as_str());
        let is_below = |key: &str, other: &str| key.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'));
        keys().filter(|key| !keys().any(|other| is_below(key, other))).collect()
    }
}

/// A key whose value has changed; absent on one side where it is not set there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// As a path through the YAML.
    pub key: String,
    /// Its value until now.
    pub from: Option<String>,
    /// Its value from now on.
    pub to: Option<String>,
}

/// What a change of a key takes. `docs/configuration.md` says it of every key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadClass {
    /// Taken up in place.
    InPlace,
    /// Restarts the route.
    Route,
    /// Restarts all routes, one after the other.
    AllRoutes,
}

impl ReloadClass {
    /// Of a key of a route.
    pub fn of_route(key: &str) -> Self {
        match key {
            "delivery" | "on_partition_change" => Self::Route,
            key if key.starts_with("source.") => Self::Route,
            _ => Self::InPlace,
        }
    }

    /// Of a key of the process.
    pub fn of_process(key: &str) -> Self {
        if key == "instance" || key.starts_with("kafka.") { Self::AllRoutes } else { Self::InPlace }
    }
}

impl Changes {
    /// From one configuration to another.
    pub fn between(before: &Facts, after: &Facts) -> Self {
        let process = key_changes(&before.process, &after.process);
        let all: Vec<KeyChange> = process
            .iter()
            .filter(|change| ReloadClass::of_process(&change.key) == ReloadClass::AllRoutes)
            .cloned()
            .collect();
        let names = before.routes.keys().chain(after.routes.keys());
        let change = |name: &RouteName| {
            let change = route_change(before.routes.get(name), after.routes.get(name), &all)?;
            Some((name.clone(), change))
        };
        Self { routes: names.filter_map(change).collect(), process }
    }

    /// The routes with which this is done.
    pub fn routes(&self, action: Action) -> impl Iterator<Item = (&RouteName, &RouteChange)> {
        self.routes.iter().filter(move |(_, change)| change.action == action)
    }

    /// What is done with a route.
    pub fn action(&self, name: &RouteName) -> Action {
        self.routes.get(name).map_or(Action::Unchanged, |change| change.action)
    }

    /// Whether all clients are made anew.
    pub fn restarts_all(&self) -> bool {
        self.process.iter().any(|change| ReloadClass::of_process(&change.key) == ReloadClass::AllRoutes)
    }
}

fn route_change(before: Option<&Keys>, after: Option<&Keys>, all: &[KeyChange]) -> Option<RouteChange> {
    let none = Keys::new();
    let keys = || key_changes(before.unwrap_or(&none), after.unwrap_or(&none));
    // For a route that starts or stops because of a new value of `enabled`; all its other keys say no more.
    let enabled = |change: &KeyChange| change.key == "enabled" && change.from.is_some() && change.to.is_some();
    Some(match (before.is_some_and(is_enabled), after.is_some_and(is_enabled)) {
        (false, false) => return None,
        (false, true) => RouteChange { action: Action::Added, why: keys().into_iter().filter(enabled).collect() },
        (true, false) => RouteChange { action: Action::Removed, why: keys().into_iter().filter(enabled).collect() },
        (true, true) => {
            let why: Vec<KeyChange> = all.iter().cloned().chain(keys()).collect();
            let restarts = |change: &KeyChange| ReloadClass::of_route(&change.key) == ReloadClass::Route;
            let action = match why.is_empty() {
                true => Action::Unchanged,
                false if !all.is_empty() || why.iter().any(restarts) => Action::Restarted,
                false => Action::Swapped,
            };
            RouteChange { action, why }
        }
    })
}

fn key_changes(before: &Keys, after: &Keys) -> Vec<KeyChange> {
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    let text = |keys: &Keys, key: &String| keys.get(key).map(|fact| fact.as_str().to_owned());
    changed.map(|key| KeyChange { key: key.clone(), from: text(before, key), to: text(after, key) }).collect()
}

/// Longest text of a value that is shown; a digest is told by its beginning.
const VALUE_SHOWN: usize = 60;
const DIGEST_SHOWN: usize = 12;

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, from, to } = self;
        let shown = |value: &Option<String>| {
            let Some(value) = value else { return "(not set)".to_owned() };
            let is_digest = value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
            let most = if is_digest { DIGEST_SHOWN } else { VALUE_SHOWN };
            match value.char_indices().nth(most) {
                Some((end, _)) => format!("{}…", &value[..end]),
                None => value.clone(),
            }
        };
        let (from, to) = (shown(from), shown(to));
        if from == to { write!(f, "{key}") } else { write!(f, "{key}: {from} → {to}") }
    }
}

/// Routes named in the one line that tells a change; the rest is counted.
const ROUTES_TOLD: usize = 5;

/// In one line: how many of each, with names and keys of the first.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for action in Action::ALL {
            let count = self.routes(action).count();
            if count == 0 {
                continue;
            }
            let named = self.routes(action).take(ROUTES_TOLD).map(|(name, change)| {
                let keys = change.keys();
                if keys.is_empty() { name.to_string() } else { format!("{name}: {}", keys.join(", ")) }
            });
            let mut named: Vec<String> = named.collect();
            if count > ROUTES_TOLD {
                named.push("…".to_owned());
            }
            parts.push(match action {
                Action::Unchanged => format!("{count} unchanged"),
                _ => format!("{count} {} ({})", action.as_str(), named.join("; ")),
            });
        }
        if !self.process.is_empty() {
            let keys: Vec<&str> = self.process.iter().map(|change| change.key.as_str()).collect();
            parts.push(format!("process: {}", keys.join(", ")));
        }
        f.write_str(if parts.is_empty() { "no routes" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}
