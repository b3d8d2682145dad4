//! The capability `metrics`: metrics of the plugin's own on the router's `/metrics`, with the labels `route` and `plugin` and
//! those given here. The operator has to grant it (`allow: [metrics]`), else the plugin is refused when it is loaded.
//!
//! Names are lower-case letters, digits and `_`, 64 at most; a plugin has at most 100 series of at most 4 labels in a route.
//! What goes beyond is left out and counted in `millrace_plugin_metrics_dropped_total`. In `cargo test` they go nowhere.

/// Adds to the counter `millrace_plugin_counter_NAME_total`: a finite number, not below 0.
pub fn add(name: &str, labels: &[(&str, &str)], by: f64) {
    host::add(name, &owned(labels), by);
}

/// Sets the gauge `millrace_plugin_gauge_NAME`, which all workers of a route share.
pub fn set(name: &str, labels: &[(&str, &str)], value: f64) {
    host::set(name, &owned(labels), value);
}

/// Counts a value into the histogram `millrace_plugin_histogram_NAME`.
pub fn observe(name: &str, labels: &[(&str, &str)], value: f64) {
    host::observe(name, &owned(labels), value);
}

fn owned(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[cfg(target_arch = "wasm32")]
use bindings::millrace::plugin::metrics as host;

#[cfg(target_arch = "wasm32")]
#[allow(missing_docs, reason = "generated; the WIT files are the documentation")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package millrace:sdk-metrics; world capability { import millrace:plugin/metrics@0.1.1; }",
        world: "millrace:sdk-metrics/capability",
        generate_all,
    });
}

#[cfg(not(target_arch = "wasm32"))]
mod host {
    type Labels = [(String, String)];
    pub(super) fn add(_: &str, _: &Labels, _: f64) {}
    pub(super) fn set(_: &str, _: &Labels, _: f64) {}
    pub(super) fn observe(_: &str, _: &Labels, _: f64) {}
}
