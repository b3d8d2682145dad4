//! Where things stand in the YAML, for whoever finds something wrong with them later: a plugin that does not compile, a
//! topic that does not exist, a property that librdkafka does not know.

use std::collections::HashMap;

use super::source::Place;
use crate::model::{PluginName, RouteName};

/// Where things stand in the YAML. `None` for what is not written there.
#[derive(Debug, Clone, Default)]
pub struct Places {
    pub(super) plugins: HashMap<PluginName, PluginPlaces>,
    pub(super) routes: HashMap<RouteName, RoutePlaces>,
    pub(super) properties: HashMap<(PropertyScope, String), Place>,
    pub(super) kafka: Option<Place>,
    pub(super) memory: Option<Place>,
}

#[derive(Debug, Clone)]
pub(super) struct PluginPlaces {
    pub(super) name: Place,
    pub(super) path: Option<Place>,
    pub(super) config: Option<Place>,
    pub(super) allow: Option<Place>,
}

#[derive(Debug, Clone)]
pub(super) struct RoutePlaces {
    pub(super) name: Place,
    pub(super) source: Option<Place>,
    pub(super) topics: Vec<Place>,
    pub(super) steps: Vec<(Place, Option<Place>)>,
    pub(super) shadow: Vec<(Place, Option<Place>)>,
    pub(super) destinations: Vec<Place>,
    pub(super) dead_letter: Option<Place>,
}

/// Which mapping of librdkafka properties.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PropertyScope {
    /// `kafka`.
    Common,
    /// `kafka.consumer`.
    Consumer,
    /// `kafka.producer`.
    Producer,
    /// A route's `source.consumer`.
    Route(RouteName),
}

impl Places {
    /// The plugin's name in `plugins`.
    pub fn plugin(&self, plugin: &PluginName) -> Option<&Place> {
        self.plugins.get(plugin).map(|places| &places.name)
    }

    /// The plugin's `path`.
    pub fn plugin_path(&self, plugin: &PluginName) -> Option<&Place> {
        self.plugins.get(plugin).and_then(|places| places.path.as_ref())
    }

    /// The plugin's own `config`, else its name.
    pub fn plugin_config(&self, plugin: &PluginName) -> Option<&Place> {
        self.plugins.get(plugin).map(|places| places.config.as_ref().unwrap_or(&places.name))
    }

    /// The plugin's `allow`, else its name.
    pub fn plugin_allow(&self, plugin: &PluginName) -> Option<&Place> {
        self.plugins.get(plugin).map(|places| places.allow.as_ref().unwrap_or(&places.name))
    }

    /// The route's name in `routes`.
    pub fn route(&self, route: &RouteName) -> Option<&Place> {
        self.routes.get(route).map(|places| &places.name)
    }

    /// The route's `source`.
    pub fn source(&self, route: &RouteName) -> Option<&Place> {
        self.routes.get(route).and_then(|places| places.source.as_ref())
    }

    /// The name or pattern of this number in the route's `source.topics`.
    pub fn source_topic(&self, route: &RouteName, index: usize) -> Option<&Place> {
        self.routes.get(route).and_then(|places| places.topics.get(index))
    }

    /// The plugin's name in the pipeline's step of this number.
    pub fn step(&self, route: &RouteName, index: usize) -> Option<&Place> {
        self.routes.get(route).and_then(|places| places.steps.get(index)).map(|(plugin, _)| plugin)
    }

    /// The step's own `config`, if it has one.
    pub fn step_config(&self, route: &RouteName, index: usize) -> Option<&Place> {
        self.routes.get(route).and_then(|places| places.steps.get(index)).and_then(|(_, config)| config.as_ref())
    }

    /// The plugin's name in the step of this number of `shadow`.
    pub fn shadow_step(&self, route: &RouteName, index: usize) -> Option<&Place> {
        self.routes.get(route).and_then(|places| places.shadow.get(index)).map(|(plugin, _)| plugin)
    }

    /// The topic or pattern of the destination of this number.
    pub fn destination(&self, route: &RouteName, index: usize) -> Option<&Place> {
        self.routes.get(route).and_then(|places| places.destinations.get(index))
    }

    /// The route's dead-letter topic, which may stand in `defaults`.
    pub fn dead_letter(&self, route: &RouteName) -> Option<&Place> {
        self.routes.get(route).and_then(|places| places.dead_letter.as_ref())
    }

    /// A librdkafka property's name.
    pub fn property(&self, scope: &PropertyScope, name: &str) -> Option<&Place> {
        self.properties.get(&(scope.clone(), name.to_owned()))
    }

    /// The key `kafka`.
    pub fn kafka(&self) -> Option<&Place> {
        self.kafka.as_ref()
    }

    /// The value of `memory`.
    pub fn memory(&self) -> Option<&Place> {
        self.memory.as_ref()
    }
}
