//! The capability `metrics`: what a plugin counts itself appears on `/metrics`, within the bounds that `telemetry` sets. What
//! goes beyond them is counted and told once an instance; it never harms the plugin.

use std::collections::HashMap;

use wasmtime::StoreContextMut;
use wasmtime::component::{LinkerInstance, WasmStr};

use crate::plugin::sandbox::State;
use crate::telemetry::{CustomKind, CustomSeries, PluginMetrics};

type Params = (WasmStr, Vec<(String, String)>, f64);

pub(in crate::plugin) fn define(metrics: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    for (name, kind) in [("add", CustomKind::Counter), ("set", CustomKind::Gauge), ("observe", CustomKind::Histogram)] {
        metrics.func_wrap(name, move |mut cx: StoreContextMut<'_, State>, (name, labels, number): Params| {
            cx.data().look_at_deadline()?;
            let refused = {
                let name = name.to_str(&cx)?.into_owned();
                cx.data_mut().metrics.count(kind, &name, &labels, number)
            };
            if let Some(reason) = refused {
                let message = format!("metrics that break a rule are left out, this one first: {reason}");
                cx.data_mut().log(tracing::Level::WARN, &super::log::bounded(&message), None);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// One instance's way to its metrics: series that it has used once are found without a lock.
#[derive(Debug)]
pub(in crate::plugin) struct Counting {
    metrics: PluginMetrics,
    known: HashMap<(CustomKind, String), CustomSeries>,
    has_told: bool,
}

impl Counting {
    pub(in crate::plugin) fn new(metrics: PluginMetrics) -> Self {
        Self { metrics, known: HashMap::new(), has_told: false }
    }

    /// Counts, or says the first time why it does not.
    fn count(&mut self, kind: CustomKind, name: &str, labels: &[(String, String)], number: f64) -> Option<String> {
        let refused = match self.series(kind, name, labels) {
            Ok(series) if series.take(number) => return None,
            Ok(_) => format!("metric \"{name}\": {number} is no number for it"),
            Err(reason) => reason,
        };
        self.metrics.dropped();
        (!std::mem::replace(&mut self.has_told, true)).then_some(refused)
    }

    fn series(&mut self, kind: CustomKind, name: &str, labels: &[(String, String)]) -> Result<CustomSeries, String> {
        // (no name that passes holds these marks)
        let key = labels.iter().fold(name.to_owned(), |key, (label, value)| key + "{" + label + "=" + value);
        let key = (kind, key);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let series = self.metrics.series(kind, name, labels)?;
        self.known.insert(key, series.clone());
        Ok(series)
    }
}
