//! The plugins of a plan: their files read and compiled, and each step of each route configured once. What the plan before
//! had already is taken from it: a reload costs what has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::look::Stamp;
use super::plan::{RoutePlan, problem_at};
use crate::config::settings::{PipelineStep, Plugin, Route};
use crate::config::{Loaded, Place, Problem, Problems, UNREADABLE};
use crate::model::{Digest, PluginName};
use crate::plugin::{Compiled, DestinationSpec, Engine, LoadError, PLUGIN_BYTES_MAX, Prepare, Prepared};

/// The plugins of a configuration, compiled.
#[derive(Default)]
pub(super) struct Plugins {
    by_name: BTreeMap<PluginName, Arc<LoadedPlugin>>,
    /// Files that could not be used and may not be whole yet.
    pub(super) unfinished: BTreeSet<PathBuf>,
}

/// A plugin's file as it was read.
struct LoadedPlugin {
    path: PathBuf,
    stamp: Stamp,
    compiled: Compiled,
}

/// A step of a route, configured.
pub(super) struct ReadyStep {
    pub(super) prepared: Arc<Prepared>,
    pub(super) timeout: Duration,
    pub(super) plugin: PluginName,
    pub(super) sha256: Digest,
}

impl Plugins {
    /// Reads and compiles every plugin of a configuration, save those whose files `before` has read as they are.
    pub(super) fn load(loaded: &Loaded, engine: &Engine, before: Option<&Self>, problems: &mut Problems) -> Self {
        let mut plugins = Self::default();
        // A file that several plugins name is read once, so that all of them are the same bytes.
        let mut files: BTreeMap<&Path, Result<(Stamp, Contents), String>> = BTreeMap::new();
        for plugin in loaded.settings.plugins.values() {
            let known = before.and_then(|before| before.by_path(&plugin.path));
            let file = files.entry(&plugin.path).or_insert_with(|| Contents::of(&plugin.path, known));
            let compiled =
                file.as_ref().map_err(|why| Unusable::Unreadable(why.clone())).and_then(|(stamp, contents)| {
                    let compiled = contents.compile(engine, plugin)?;
                    Ok(LoadedPlugin { path: plugin.path.clone(), stamp: *stamp, compiled })
                });
            match compiled {
                Ok(done) => drop(plugins.by_name.insert(plugin.name.clone(), Arc::new(done))),
                Err(unusable) => {
                    if unusable.may_be_unfinished() {
                        plugins.unfinished.insert(plugin.path.clone());
                    }
                    problems.push(unusable.at(loaded, &plugin.name));
                }
            }
        }
        plugins
    }

    /// Each plugin's digest.
    pub(super) fn digests(&self) -> BTreeMap<&PluginName, &Digest> {
        self.by_name.iter().map(|(name, plugin)| (name, plugin.compiled.sha256())).collect()
    }

    fn by_path(&self, path: &Path) -> Option<&LoadedPlugin> {
        self.by_name.values().find(|plugin| plugin.path == path).map(Arc::as_ref)
    }

    /// Configures every step of a route, save those that the route had before in the same way. What could not be compiled
    /// is a problem already.
    pub(super) fn prepare(
        &self,
        loaded: &Loaded,
        route: &Route,
        before: Option<&RoutePlan>,
        problems: &mut Problems,
    ) -> Vec<Arc<ReadyStep>> {
        let place = |number| loaded.places.step(&route.name, number);
        self.prepare_steps(loaded, route, (&route.pipeline, &place), before, problems)
    }

    /// The same for its shadow, if it has one.
    pub(super) fn prepare_shadow(
        &self,
        loaded: &Loaded,
        route: &Route,
        before: Option<&RoutePlan>,
        problems: &mut Problems,
    ) -> Option<Vec<Arc<ReadyStep>>> {
        let place = |number| loaded.places.shadow_step(&route.name, number);
        let shadow = route.shadow.as_ref()?;
        Some(self.prepare_steps(loaded, route, (&shadow.pipeline, &place), before, problems))
    }

    fn prepare_steps<'l>(
        &self,
        loaded: &'l Loaded,
        route: &Route,
        (steps, place): (&[PipelineStep], &dyn Fn(usize) -> Option<&'l Place>),
        before: Option<&RoutePlan>,
        problems: &mut Problems,
    ) -> Vec<Arc<ReadyStep>> {
        let destinations: Arc<[DestinationSpec]> = route.destinations.iter().map(DestinationSpec::from).collect();
        let known = || {
            let shadow = before.and_then(|before| before.shadow.as_ref());
            before
                .into_iter()
                .flat_map(|before| &before.steps)
                .chain(shadow.into_iter().flat_map(|shadow| &shadow.steps))
        };
        let mut ready = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let Some(code) = self.by_name.get(&step.plugin) else { continue };
            let Plugin { limits, allow, .. } = &loaded.settings.plugins[&step.plugin];
            let with = Prepare {
                plugin: step.plugin.clone(),
                route: route.name.clone(),
                config_json: step.config.json.to_string(),
                limits: *limits,
                allow: allow.clone(),
                destinations: Arc::clone(&destinations),
            };
            let sha256 = *code.compiled.sha256();
            let same = |step: &&Arc<ReadyStep>| step.prepared.serves(&sha256, &with);
            if let Some(step) = known().find(same) {
                ready.push(Arc::clone(step));
                continue;
            }
            match code.compiled.prepare(with) {
                Ok(prepared) => ready.push(Arc::new(ReadyStep {
                    prepared: Arc::new(prepared),
                    timeout: limits.timeout,
                    plugin: step.plugin.clone(),
                    sha256,
                })),
                Err(error) => {
                    let message = format!("plugin \"{}\" in route \"{}\": {error}", step.plugin, route.name);
                    problems.push(problem_at(place(number), message, "invalid_plugin"));
                }
            }
        }
        ready
    }
}

/// What a file held when it was read, or that it still is the file that was compiled before.
enum Contents {
    Read(Vec<u8>),
    Same(Compiled),
}

impl Contents {
    fn of(path: &Path, known: Option<&LoadedPlugin>) -> Result<(Stamp, Self), String> {
        let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
        let file = File::open(path).map_err(unreadable)?;
        let stamp = Stamp::of(&file.metadata().map_err(unreadable)?);
        if let Some(known) = known.filter(|known| known.stamp == stamp) {
            return Ok((stamp, Self::Same(known.compiled.clone())));
        }
        // One byte more than any plugin has is enough to tell that it is too large.
        let mut bytes = Vec::new();
        file.take(PLUGIN_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Ok((stamp, Self::Read(bytes)))
    }

    fn compile(&self, engine: &Engine, plugin: &Plugin) -> Result<Compiled, Unusable> {
        let refused = |error: LoadError| {
            let message = format!("{} cannot be used: {error}", plugin.path.display());
            match error {
                LoadError::NotGranted { .. } => Unusable::NotGranted(format!("plugin \"{}\": {message}", plugin.name)),
                error => Unusable::Refused { message, may_be_unfinished: error.may_be_unfinished() },
            }
        };
        let pin = plugin.sha256.as_ref();
        let compiled = match self {
            Self::Same(known) => known.clone().pinned(pin),
            Self::Read(bytes) => engine.compile_pinned(&plugin.name, bytes, pin),
        };
        let granted = |compiled: &Compiled| compiled.inspection().granted(&plugin.allow);
        compiled.and_then(|compiled| granted(&compiled).map(|()| compiled)).map_err(refused)
    }
}

/// Why a plugin cannot be used, without its place.
enum Unusable {
    Unreadable(String),
    Refused { message: String, may_be_unfinished: bool },
    NotGranted(String),
}

impl Unusable {
    /// A file that is not there may be on its way, too.
    fn may_be_unfinished(&self) -> bool {
        match self {
            Self::Unreadable(_) => true,
            Self::NotGranted(_) => false,
            Self::Refused { may_be_unfinished, .. } => *may_be_unfinished,
        }
    }

    fn at(self, loaded: &Loaded, plugin: &PluginName) -> Problem {
        let places = &loaded.places;
        let path = places.plugin_path(plugin).or_else(|| places.plugin(plugin));
        match self {
            Self::Unreadable(message) => problem_at(path, message, UNREADABLE),
            Self::Refused { message, .. } => problem_at(path, message, "invalid_plugin"),
            Self::NotGranted(message) => problem_at(places.plugin_allow(plugin), message, "not_granted"),
        }
    }
}
