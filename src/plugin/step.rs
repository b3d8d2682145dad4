//! A plugin as a step of a worker's pipeline: one instance at a time, replaced after a fault.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::bindings::Failure;
use super::convert::Call;
use super::fault::{MESSAGE_MAX, printable};
use super::host::log::Gate;
use super::sandbox::{Answer, Instance, Prepare, Prepared};
use crate::model::{Digest, FaultCode, Items, PluginName};
use crate::pipeline::ports::{CallError, CallOutput, Step, Usage};
use crate::pipeline::task::Stop;
use crate::telemetry::PluginMetrics;

/// One worker's step.
pub struct PluginStep {
    prepared: Arc<Prepared>,
    life: Life,
    usage: Usage,
    metrics: PluginMetrics,
    stop: Stop,
}

enum Life {
    /// The next call makes an instance.
    Spent(Gate),
    Ready(Instance),
}

impl PluginStep {
    pub(super) fn new(prepared: Arc<Prepared>, metrics: PluginMetrics) -> Self {
        Self { prepared, metrics, life: Life::Spent(Gate::default()), usage: Usage::default(), stop: Stop::default() }
    }

    pub(super) fn make_ready(&mut self) {
        if let Ok(instance) = self.take_instance() {
            self.put_back(instance);
        }
    }

    /// The instance, out of the step's hands: only a call that leaves it sound puts it back.
    fn take_instance(&mut self) -> Result<Instance, CallError> {
        match std::mem::replace(&mut self.life, Life::Spent(Gate::default())) {
            Life::Ready(instance) => Ok(instance),
            Life::Spent(gate) => {
                let instance = self.prepared.instantiate(gate, &self.metrics, &self.stop).map_err(|not_ready| {
                    self.life = Life::Spent(not_ready.gate);
                    fault(FaultCode::NotReady, not_ready.message)
                })?;
                self.usage.instances += 1;
                Ok(instance)
            }
        }
    }

    fn put_back(&mut self, instance: Instance) {
        self.usage.memory = instance.memory();
        self.life = Life::Ready(instance);
    }

    /// Ends it in good order; the next call makes another.
    fn retire(&mut self, mut instance: Instance) {
        let (memory, Prepare { plugin, route, limits, .. }) = (instance.memory(), self.prepared.with());
        tracing::debug!(%route, %plugin, memory, limit = limits.memory, "a plugin's instance has used up its memory and is replaced");
        instance.shut_down(&self.prepared);
        self.discard(instance);
    }

    fn discard(&mut self, instance: Instance) {
        self.usage.memory = 0;
        self.life = Life::Spent(instance.into_gate());
    }
}

impl Step for PluginStep {
    fn plugin(&self) -> &PluginName {
        self.prepared.plugin()
    }

    fn sha256(&self) -> &Digest {
        self.prepared.sha256()
    }

    fn call(&mut self, items: &mut Items, range: Range<usize>, cpu: Duration) -> Result<CallOutput, CallError> {
        let mut instance = self.take_instance()?;
        let with = self.prepared.with();
        let call = Box::new(Call::begin(items, range, with.limits, Arc::clone(&with.destinations)));
        let (answer, call, spent) = instance.process(&self.prepared, call, cpu);
        let call = call.expect("host functions put it back");
        self.usage.calls += 1;
        self.usage.cpu += spent;
        let result = match answer {
            Answer::Verdicts(verdicts) => {
                call.succeed(items, &verdicts).map_err(|bad_output| fault(bad_output.code, bad_output.message))
            }
            Answer::Failure(failure) => {
                call.fail(items);
                Err(failed(failure))
            }
            Answer::Fault(code, message) => {
                call.fail(items);
                Err(fault(code, message))
            }
        };
        match &result {
            // A guest that answers in good order stays, whatever it answers.
            Ok(_) | Err(CallError::Retry(_) | CallError::Fault { code: FaultCode::Refused, .. }) => {
                match instance.is_worn() {
                    true => self.retire(instance),
                    false => self.put_back(instance),
                }
            }
            Err(CallError::Fault { .. }) => self.discard(instance),
        }
        result
    }

    fn heed(&mut self, stop: &Stop) {
        self.stop = stop.clone();
        if let Life::Ready(instance) = &mut self.life {
            instance.heed(stop);
        }
    }

    fn take_usage(&mut self) -> Usage {
        let memory = self.usage.memory;
        std::mem::replace(&mut self.usage, Usage { memory, ..Usage::default() })
    }

    fn shutdown(&mut self) {
        if let Life::Ready(mut instance) = std::mem::replace(&mut self.life, Life::Spent(Gate::default())) {
            instance.shut_down(&self.prepared);
            self.discard(instance);
        }
    }
}

fn failed(failure: Failure) -> CallError {
    match failure {
        Failure::Retry(message) => CallError::Retry(printable(&message, MESSAGE_MAX)),
        Failure::Permanent(message) => fault(FaultCode::Refused, printable(&message, MESSAGE_MAX)),
        Failure::BadConfig(message) => fault(
            FaultCode::BadOutput,
            format!("it answered `bad-config` from `process`: {}", printable(&message, MESSAGE_MAX)),
        ),
    }
}

fn fault(code: FaultCode, message: String) -> CallError {
    CallError::Fault { code, message }
}
