//! FLOOR 3: the data plane. Knows neither rdkafka nor wasmtime nor YAML: it speaks to both through [`ports`], so that a
//! simulation can run it.

pub mod ports;
