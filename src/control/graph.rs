//! What flows where: topics, routes and plugins of the configuration in force, for who draws it.

use std::collections::BTreeSet;

use serde::Serialize;

use super::plan::Plan;
use super::status::PluginStatus;
use crate::config::settings::{Destination, PipelineStep, Route, Shadow, Target};
use crate::model::{DestinationName, GroupId, PluginName, RouteName, TopicName};

/// Everything, of one configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Graph {
    /// Topics that are named; patterns stand where they are used.
    pub topics: BTreeSet<TopicName>,
    /// Plugins that a route, or its shadow, runs.
    pub plugins: Vec<PluginStatus>,
    /// Routes, the disabled ones, too.
    pub routes: Vec<RouteEdges>,
}

/// A route, and what it connects.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteEdges {
    /// Its name.
    pub name: RouteName,
    /// `enabled`.
    pub enabled: bool,
    /// Its group.
    pub group: GroupId,
    /// What it promises.
    pub delivery: &'static str,
    /// Topics, and patterns that begin with `^`.
    pub from: Vec<String>,
    /// What of them it leaves out.
    pub except: Vec<String>,
    /// Its plugins, in order.
    pub through: Vec<PluginName>,
    /// Where records go.
    pub to: Vec<Edge>,
    /// Where records at fault go, if they are kept.
    pub dead_letters: Option<TopicName>,
    /// What looks at the same records beside it, and sends nothing.
    pub shadow: Option<ShadowEdges>,
}

/// A route's shadow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShadowEdges {
    /// Its plugins, in order.
    pub through: Vec<PluginName>,
    /// It sees one source record in so many.
    pub sample: u32,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Edge {
    /// Its name.
    pub name: DestinationName,
    /// Its topic, or the pattern that begins with `^`.
    pub topic: String,
    /// Whether it takes records that no plugin sends anywhere.
    pub default: bool,
}

impl Graph {
    /// Of a configuration that can run.
    pub fn of(plan: &Plan) -> Self {
        let routes: Vec<_> = plan.settings.routes.values().map(edges).collect();
        let mut topics = BTreeSet::new();
        for route in &routes {
            let named = route.from.iter().chain(route.to.iter().map(|to| &to.topic));
            topics.extend(named.filter_map(|name| TopicName::new(name.clone()).ok()));
            topics.extend(route.dead_letters.clone());
        }
        let shadows = routes.iter().flat_map(|route| &route.shadow).flat_map(|shadow| &shadow.through);
        let used: BTreeSet<_> = routes.iter().flat_map(|route| &route.through).chain(shadows).collect();
        let plugins = plan.digests().into_iter().filter(|(name, _)| used.contains(name));
        let plugins = plugins.map(|(name, sha256)| PluginStatus { plugin: name.clone(), sha256: *sha256 });
        Self { topics, plugins: plugins.collect(), routes }
    }
}

fn edges(route: &Route) -> RouteEdges {
    RouteEdges {
        name: route.name.clone(),
        enabled: route.enabled,
        group: route.source.group.clone(),
        delivery: route.delivery.as_str(),
        from: route.source.topics.iter().map(|topic| as_written(&topic.to_string())).collect(),
        except: route.source.exclude.iter().map(|topic| as_written(&topic.to_string())).collect(),
        through: plugins(&route.pipeline),
        to: route.destinations.iter().map(edge).collect(),
        dead_letters: route.on_error.dead_letter_topic().cloned(),
        shadow: route.shadow.as_ref().map(shadow),
    }
}

fn shadow(shadow: &Shadow) -> ShadowEdges {
    ShadowEdges { through: plugins(&shadow.pipeline), sample: shadow.one_in }
}

fn plugins(steps: &[PipelineStep]) -> Vec<PluginName> {
    steps.iter().map(|step| step.plugin.clone()).collect()
}

fn edge(to: &Destination) -> Edge {
    let topic = match &to.target {
        Target::Topic(topic) => topic.to_string(),
        Target::Pattern(pattern) => as_written(pattern.as_str()),
    };
    Edge { name: to.name.clone(), topic, default: to.default }
}

/// A pattern without the anchors that were put around it.
fn as_written(text: &str) -> String {
    text.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(text).to_owned()
}
