//! FLOOR 1: what the process says about itself: metrics, logs and spans. It knows the words of `model`, and neither where the
//! numbers come from nor who reads them.
//!
//! Start with [`table`], which lists every metric; [`metrics`] holds the handles that the rest of the code uses. Nothing
//! outside this module names the `metrics` crate.

mod custom;
mod errors;
mod limits;
mod lines;
mod logging;
mod metrics;
mod otlp;
mod process;
mod repeats;
mod series;
mod table;
mod trace;

pub use custom::{
    CUSTOM_SERIES_MAX, CustomClasses, CustomKind, CustomMetrics, CustomSeries, CustomValue, PluginMetrics,
};
pub use errors::ErrorChain;
pub use limits::Limits;
pub use lines::{GuestLine, GuestLines};
pub use logging::{InitError, LogFormat, LogHandle, LogOptions, stderr_has_colour};
pub use metrics::{
    ConfigMetrics, InfoGauge, Metrics, PartitionMetrics, RouteGauges, RouteMetrics, ShadowMetrics,
    TRANSACTION_OUTCOMES, Totals, TotalsSnapshot,
};
pub use otlp::Exporter;
pub use repeats::{Repeated, Repeats};
pub use table::{ALL, COMMIT_BOUNDS, Kind, LATENCY_BOUNDS, Merge, Metric};
pub use trace::{Span, SpanId, Spans, TRACEPARENT, TRACEPARENT_BYTES, TraceContext, Tracer, Work};
