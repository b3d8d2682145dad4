//! A plugin ready for one step of one route, and its instances: each has a store of its own, with its ceilings of memory
//! and time. A faulted instance is never called again.

use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use wasmtime::Store;
use wasmtime::component::Resource;

use super::bindings::{ColumnBuffer, Configure, Failure, Process, Shutdown};
use super::clock::{Deadline, Watch};
use super::compile::{Compiled, LoadError};
use super::convert::Call;
use super::fault::{Circumstances, HostFault, MESSAGE_MAX, classify, printable};
use super::host::log::{self, Gate, Speaker};
use super::host::metrics::Counting;
use super::host::wasi::Stands;
use super::lines::Lines;
use super::memory::MemoryLimiter;
use super::pool::Slots;
use super::step::PluginStep;
use crate::config::settings::{Capability, Destination, PluginLimits, Target};
use crate::model::{DestinationName, Digest, FaultCode, PluginName, RouteName};
use crate::pipeline::task::Stop;
use crate::telemetry::PluginMetrics;

/// Starting and ending an instance may use this many times a record's CPU time, and never less than the second figure:
/// a large runtime has to come up, once.
const START_FACTOR: u32 = 5;
const START_MIN: Duration = Duration::from_secs(2);
/// Least data that one host call may take from the guest; the ceiling is the guest's own memory otherwise.
const HOST_CALL_MIN: usize = 1 << 20;
/// Resource handles that a guest may hold; a plugin needs one.
const HANDLES_MAX: usize = 10_000;
/// A column's buffer is kept from call to call up to this size, bytes.
const COLUMN_KEPT_MAX: usize = 4 << 20;
/// Calls that an instance has done before its memory may be found to be used up by them, and not by what it needs.
const WORN_AFTER: u32 = 8;
/// The longest of a guest's last words in a fault's message, bytes.
const LAST_WORDS_MAX: usize = 1024;

/// A destination as plugins may name it.
#[derive(Debug, Clone)]
pub struct DestinationSpec {
    /// Its name for plugins.
    pub name: DestinationName,
    /// What a topic that a plugin names must match (the whole name), where the destination has a pattern.
    pub topic_pattern: Option<Regex>,
}

impl From<&Destination> for DestinationSpec {
    fn from(destination: &Destination) -> Self {
        let topic_pattern = match &destination.target {
            Target::Topic(_) => None,
            Target::Pattern(pattern) => Some(pattern.clone()),
        };
        Self { name: destination.name.clone(), topic_pattern }
    }
}

/// What a plugin is prepared with.
#[derive(Debug, Clone)]
pub struct Prepare {
    /// Its name.
    pub plugin: PluginName,
    /// The route of the step.
    pub route: RouteName,
    /// The step's configuration as JSON text.
    pub config_json: String,
    /// Ceilings of each instance.
    pub limits: PluginLimits,
    /// Capabilities granted.
    pub allow: Vec<Capability>,
    /// The route's destinations, in its order.
    pub destinations: Arc<[DestinationSpec]>,
}

/// A plugin configured for one step of one route, proven to work; shared by the route's workers.
#[derive(Debug)]
pub struct Prepared {
    compiled: Compiled,
    with: Prepare,
}

impl Prepared {
    pub(super) fn new(compiled: Compiled, with: Prepare) -> Result<Self, LoadError> {
        let prepared = Self { compiled, with };
        let metrics = PluginMetrics::hidden(*prepared.sha256());
        let instance = prepared.instantiate(Gate::default(), &metrics, &Stop::default());
        let mut instance = instance.map_err(|not_ready| LoadError::NotReady(not_ready.message))?;
        instance.shut_down(&prepared);
        Ok(prepared)
    }

    /// A step with an instance of its own, made at its first call.
    pub fn step(self: &Arc<Self>) -> PluginStep {
        PluginStep::new(Arc::clone(self), self.metrics())
    }

    /// As [`Prepared::step`], with its instance made already: one that is taken up between two transactions costs nothing
    /// there. Where no instance can be had now, the first call tries again and tells.
    pub fn ready_step(self: &Arc<Self>) -> PluginStep {
        let mut step = self.step();
        step.make_ready();
        step
    }

    /// As [`Prepared::ready_step`], for records that go through the route's own plugins as well: what it counts itself is
    /// not shown, since it would be counted twice.
    pub fn shadow_step(self: &Arc<Self>) -> PluginStep {
        let mut step = PluginStep::new(Arc::clone(self), PluginMetrics::hidden(*self.sha256()));
        step.make_ready();
        step
    }

    /// The plugin's name.
    pub fn plugin(&self) -> &PluginName {
        &self.with.plugin
    }

    /// The digest of the plugin's bytes.
    pub fn sha256(&self) -> &Digest {
        self.compiled.sha256()
    }

    /// Whether a plugin of these bytes, prepared like this, would be the same.
    pub fn serves(&self, sha256: &Digest, with: &Prepare) -> bool {
        let Prepare { plugin, route, config_json, limits, allow, destinations } = &self.with;
        let names = |list: &[DestinationSpec]| -> Vec<_> {
            let pattern = |to: &DestinationSpec| to.topic_pattern.as_ref().map(|pattern| pattern.as_str().to_owned());
            list.iter().map(|to| (to.name.clone(), pattern(to))).collect()
        };
        self.sha256() == sha256
            && (plugin, route, config_json, limits) == (&with.plugin, &with.route, &with.config_json, &with.limits)
            && *allow == with.allow
            && names(destinations) == names(&with.destinations)
    }

    /// What one of its instances takes.
    pub fn slots(&self) -> Slots {
        self.compiled.slots()
    }

    pub(super) fn with(&self) -> &Prepare {
        &self.with
    }

    /// What the plugin counts itself in this route. Shown for as long as a step holds it: what is only planned, or was in
    /// force once, shows nothing.
    fn metrics(&self) -> PluginMetrics {
        if self.with.allow.contains(&Capability::Metrics) {
            self.compiled.engine().custom_metrics().of(&self.with.route, &self.with.plugin, self.sha256())
        } else {
            PluginMetrics::hidden(*self.sha256())
        }
    }

    /// A fresh instance, configured; or why there is none.
    pub(super) fn instantiate(&self, gate: Gate, metrics: &PluginMetrics, stop: &Stop) -> Result<Instance, NotReady> {
        let mut store = self.store(gate, metrics.clone(), stop.clone());
        match self.start(&mut store) {
            Ok(functions) => Ok(Instance { store, functions, calls: 0, memory_at_first: 0 }),
            Err(message) => Err(NotReady { message, gate: store.into_data().gate }),
        }
    }

    fn start(&self, store: &mut Store<State>) -> Result<Functions, String> {
        let budget = self.start_budget();
        let _running = self.compiled.engine().ticker().running();
        set_deadline(store, budget);
        let functions = self.compiled.instantiate(store);
        let functions = functions.map_err(|error| self.explain("it cannot be instantiated", &error, store))?;
        set_deadline(store, budget);
        let configured = functions.configure.call(&mut *store, (self.with.config_json.clone(),));
        store.data_mut().end_lines();
        match configured {
            Ok((Ok(()),)) => Ok(functions),
            Ok((Err(Failure::BadConfig(message)),)) => {
                Err(format!("it refuses its config: {}", printable(&message, MESSAGE_MAX)))
            }
            Ok((Err(Failure::Retry(message) | Failure::Permanent(message)),)) => {
                Err(format!("it failed to configure itself: {}", printable(&message, MESSAGE_MAX)))
            }
            Err(error) => Err(self.explain("it cannot be configured", &error, store)),
        }
    }

    fn store(&self, gate: Gate, metrics: PluginMetrics, stop: Stop) -> Store<State> {
        let speaker = Speaker { route: self.with.route.clone(), plugin: self.with.plugin.clone() };
        let state = State {
            memory: MemoryLimiter::new(self.with.limits.memory),
            deadline: Deadline::default(),
            watch: self.compiled.engine().ticker().watch(),
            stop,
            call: None,
            column: Arc::default(),
            gate,
            speaker,
            last_words: None,
            wasi: Stands::default(),
            metrics: Counting::new(metrics),
        };
        let most = state.memory.limit().max(HOST_CALL_MIN);
        let mut store = Store::new(self.compiled.engine().wasmtime(), state);
        store.limiter(|state| &mut state.memory);
        store.epoch_deadline_callback(|cx| Ok(cx.data().deadline.check(cx.data().stop.is_set())));
        store.set_hostcall_fuel(most);
        store.set_max_component_handles(HANDLES_MAX);
        store
    }

    fn start_budget(&self) -> Duration {
        (self.with.limits.timeout * START_FACTOR).max(START_MIN)
    }

    fn explain(&self, what: &str, error: &wasmtime::Error, store: &mut Store<State>) -> String {
        let (code, message) = store.data_mut().classify(error, self.compiled.lines());
        format!("{what}: {code}: {message}")
    }
}

fn set_deadline(store: &mut Store<State>, budget: Duration) {
    let deadline = Deadline::start(budget);
    store.set_epoch_deadline(deadline.first_check());
    store.data().watch.start(&deadline);
    store.data_mut().deadline = deadline;
}

/// Why there is no instance, and what outlives the attempt.
pub(super) struct NotReady {
    pub(super) message: String,
    pub(super) gate: Gate,
}

/// The functions that a plugin exports.
pub(super) struct Functions {
    pub(super) process: Process,
    pub(super) configure: Configure,
    pub(super) shutdown: Shutdown,
}

/// One instance. Whoever gets a fault from it drops it.
pub(super) struct Instance {
    store: Store<State>,
    functions: Functions,
    calls: u32,
    /// After the first call, bytes.
    memory_at_first: usize,
}

/// What the guest answered to a call.
pub(super) enum Answer {
    Verdicts(Vec<u8>),
    Failure(Failure),
    Fault(FaultCode, String),
}

impl Instance {
    /// Calls the guest once. Gives the call back, whatever happened in it, and the CPU time it took.
    pub(super) fn process(
        &mut self,
        of: &Prepared,
        call: Box<Call>,
        cpu: Duration,
    ) -> (Answer, Option<Box<Call>>, Duration) {
        let running = of.compiled.engine().ticker().running();
        let state = self.store.data_mut();
        state.call = Some(call);
        state.last_words = None;
        state.memory.take_refused();
        set_deadline(&mut self.store, cpu);
        let result = self.functions.process.call(&mut self.store, (Resource::new_borrow(0),));
        let spent = self.store.data().deadline.spent();
        drop(running);
        let answer = match result {
            Ok((Ok(verdicts),)) => Answer::Verdicts(verdicts),
            Ok((Err(failure),)) => Answer::Failure(failure),
            Err(error) => {
                let (code, message) = self.store.data_mut().classify(&error, of.compiled.lines());
                Answer::Fault(code, message)
            }
        };
        let state = self.store.data_mut();
        state.end_lines();
        state.trim_column();
        if self.calls == 0 {
            self.memory_at_first = state.memory.used();
        }
        self.calls = self.calls.saturating_add(1);
        (answer, state.call.take(), spent)
    }

    /// Whether its calls have used up its memory little by little, as a runtime does that does not give all back: less than an eighth is
    /// left, and they have taken more than a quarter. It would run out in the middle of one of the next.
    pub(super) fn is_worn(&self) -> bool {
        let (used, limit) = (self.store.data().memory.used(), self.store.data().memory.limit());
        self.calls >= WORN_AFTER && used > limit - limit / 8 && used - self.memory_at_first > limit / 4
    }

    /// The guest's `shutdown`; what goes wrong in it can harm nobody.
    pub(super) fn shut_down(&mut self, of: &Prepared) {
        let _running = of.compiled.engine().ticker().running();
        set_deadline(&mut self.store, of.start_budget());
        if let Err(error) = self.functions.shutdown.call(&mut self.store, ()) {
            let (code, message) = self.store.data_mut().classify(&error, of.compiled.lines());
            let Speaker { route, plugin } = &self.store.data().speaker;
            tracing::debug!(%route, %plugin, %code, "the plugin failed to shut down: {message}");
        }
        self.store.data_mut().end_lines();
    }

    /// From now on it is interrupted once this is set.
    pub(super) fn heed(&mut self, stop: &Stop) {
        self.store.data_mut().stop = stop.clone();
    }

    /// Linear memory, bytes.
    pub(super) fn memory(&self) -> u64 {
        self.store.data().memory.used() as u64
    }

    /// What outlives the instance.
    pub(super) fn into_gate(self) -> Gate {
        self.store.into_data().gate
    }
}

/// What a store holds beside the guest.
pub(super) struct State {
    memory: MemoryLimiter,
    deadline: Deadline,
    watch: Watch,
    stop: Stop,
    /// The call that runs.
    pub(super) call: Option<Box<Call>>,
    /// The buffer that columns are lent from.
    column: Arc<ColumnBuffer>,
    gate: Gate,
    speaker: Speaker,
    /// The last error that the guest logged during the call.
    last_words: Option<String>,
    pub(super) wasi: Stands,
    pub(super) metrics: Counting,
}

impl State {
    /// Interrupts a guest that has had its time. Every host function does so before its work: a guest that only calls the
    /// host is interrupted nowhere else.
    pub(super) fn look_at_deadline(&self) -> Result<(), HostFault> {
        match self.watch.is_over(&self.deadline, self.stop.is_set()) {
            true => Err(HostFault::timed_out(self.deadline.budget())),
            false => Ok(()),
        }
    }

    pub(super) fn call(&self) -> Result<&Call, HostFault> {
        self.look_at_deadline()?;
        self.call.as_deref().ok_or_else(HostFault::outside_of_process)
    }

    pub(super) fn call_mut(&mut self) -> Result<&mut Call, HostFault> {
        self.look_at_deadline()?;
        self.call.as_deref_mut().ok_or_else(HostFault::outside_of_process)
    }

    /// Fills the column buffer, and lends it to wasmtime until it is copied into the guest.
    pub(super) fn lend(
        &mut self,
        fill: impl FnOnce(&Call, &mut ColumnBuffer) -> Result<(), HostFault>,
    ) -> Result<Arc<ColumnBuffer>, HostFault> {
        self.look_at_deadline()?;
        let call = self.call.as_deref().ok_or_else(HostFault::outside_of_process)?;
        if Arc::get_mut(&mut self.column).is_none() {
            self.column = Arc::default();
        }
        fill(call, Arc::get_mut(&mut self.column).expect("nobody else has it"))?;
        Ok(Arc::clone(&self.column))
    }

    fn trim_column(&mut self) {
        if self.column.bytes.capacity() > COLUMN_KEPT_MAX {
            self.column = Arc::default();
        }
    }

    /// A line that the guest logs.
    pub(super) fn log(&mut self, level: tracing::Level, message: &str, about: Option<u32>) {
        if level == tracing::Level::ERROR {
            self.last_words = Some(printable(message, LAST_WORDS_MAX));
        }
        if level > tracing::level_filters::LevelFilter::current() || !self.gate.admit() {
            return;
        }
        if let Some(dropped) = self.gate.take_dropped() {
            log::write_dropped(&self.speaker, dropped);
        }
        let call = self.call.as_deref();
        let offset = about.zip(call).and_then(|(index, call)| call.offset(index));
        log::write(&self.speaker, level, message, call.map(Call::topic_partition), offset);
    }

    /// A line that the guest wrote to a standard stream of WASI. What goes to standard error may be its last words, which
    /// many languages write line by line.
    pub(super) fn written(&mut self, is_error: bool, line: &str) {
        let line = log::bounded(line);
        self.log(if is_error { tracing::Level::WARN } else { tracing::Level::INFO }, &line, None);
        if is_error {
            let before = self.last_words.take().map(|words| words + " / ").unwrap_or_default();
            self.last_words = Some(printable(&(before + &line), LAST_WORDS_MAX));
        }
    }

    /// Ends the lines that a call has left open.
    fn end_lines(&mut self) {
        self.wasi.take_rests().for_each(|(is_error, line)| self.written(is_error, &line));
    }

    fn classify(&mut self, error: &wasmtime::Error, lines: &Lines) -> (FaultCode, String) {
        self.end_lines();
        let refused = self.memory.take_refused();
        let last_words = self.last_words.take();
        let budget = self.deadline.budget();
        classify(error, &Circumstances { refused, budget, last_words: last_words.as_deref(), lines })
    }
}
