//! The interface `millrace:plugin@0.1.1` in Rust: the types that cross the boundary, and its functions in the linker.
//! Written by hand rather than generated, so that columns cross without a copy or an allocation of their own: those
//! that go in are lent from a buffer that is used again, those that come out are views of the guest's memory.

use std::sync::Arc;

use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource, ResourceType, WasmList, WasmStr};
use wasmtime::{AsContext, StoreContext, StoreContextMut};

use super::convert::{Call, Column, HeaderOut};
use super::fault::HostFault;
use super::host;
use super::sandbox::State;
use crate::config::settings::Capability;

/// The package, and the version that this host speaks.
pub(super) const PACKAGE: &str = "millrace:plugin";
pub(super) const VERSION: (u64, u64, u64) = (0, 1, 1);
pub(super) const LIFECYCLE: &str = "millrace:plugin/lifecycle";

/// The host's side of the `batch` resource. There is one batch a call, which lies in the store.
pub(super) struct Batch;

pub(super) type Process = wasmtime::component::TypedFunc<(Resource<Batch>,), (Result<Vec<u8>, Failure>,)>;
pub(super) type Configure = wasmtime::component::TypedFunc<(String,), (Result<(), Failure>,)>;
pub(super) type Shutdown = wasmtime::component::TypedFunc<(), ()>;

/// Why a plugin cannot go on.
#[derive(Debug, ComponentType, Lift)]
#[component(variant)]
pub(super) enum Failure {
    #[component(name = "bad-config")]
    BadConfig(String),
    #[component(name = "retry")]
    Retry(String),
    #[component(name = "permanent")]
    Permanent(String),
}

/// A column on its way into the guest.
#[derive(Debug, Default, ComponentType, Lower)]
#[component(record)]
pub(super) struct ColumnBuffer {
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<u32>,
    pub(super) nulls: Vec<u32>,
}

/// A column that lies in the guest's memory, for as long as the host function runs.
#[derive(ComponentType, Lift)]
#[component(record)]
struct ColumnView {
    bytes: WasmList<u8>,
    ends: WasmList<u32>,
    nulls: WasmList<u32>,
}

#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made from the guest's number")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl ColumnView {
    fn read<'a>(&self, store: &'a StoreContext<'_, State>) -> Result<Column<'a>, HostFault> {
        Column::new(self.bytes.as_le_slice(store), self.ends.as_le_slice(store), self.nulls.as_le_slice(store))
    }
}

type Cx<'a> = StoreContextMut<'a, State>;
type ToGuest<T> = wasmtime::Result<(T,)>;

/// Defines everything that a plugin can import.
pub(super) fn define(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let (major, minor, patch) = VERSION;
    let name = |interface: &str| format!("{PACKAGE}/{interface}@{major}.{minor}.{patch}");
    linker.instance(&name("types"))?;
    define_input(&mut linker.instance(&name("input"))?)?;
    define_output(&mut linker.instance(&name("output"))?)?;
    linker.instance(&name("log"))?.func_wrap("log", log)?;
    // Capabilities are defined for all and granted one by one: whoever imports one that it is not granted is not linked.
    host::clock::define(&mut linker.instance(&name(Capability::Clock.as_str()))?)?;
    host::metrics::define(&mut linker.instance(&name(Capability::Metrics.as_str()))?)?;
    host::random::define(&mut linker.instance(&name(Capability::Random.as_str()))?)
}

type Instance<'a> = wasmtime::component::LinkerInstance<'a, State>;

fn define_input(input: &mut Instance<'_>) -> wasmtime::Result<()> {
    type Of = Resource<Batch>;
    type Range = (Of, u32, u32);
    input.resource("batch", ResourceType::host::<Batch>(), |_, _| Ok(()))?;
    input
        .func_wrap("[method]batch.len", |cx: Cx<'_>, (_,): (Of,)| -> ToGuest<u32> { Ok((cx.data().call()?.len(),)) })?;
    input.func_wrap("[method]batch.topic", |cx: Cx<'_>, (_,): (Of,)| -> ToGuest<String> {
        Ok((cx.data().call()?.topic_partition().topic.to_string(),))
    })?;
    input.func_wrap("[method]batch.partition", |cx: Cx<'_>, (_,): (Of,)| -> ToGuest<i32> {
        Ok((cx.data().call()?.topic_partition().partition,))
    })?;
    input.func_wrap("[method]batch.offsets", |cx: Cx<'_>, (_, start, end): Range| -> ToGuest<Vec<i64>> {
        Ok((cx.data().call()?.offsets(start, end)?,))
    })?;
    input.func_wrap("[method]batch.timestamps", |cx: Cx<'_>, (_, start, end): Range| -> ToGuest<Vec<i64>> {
        Ok((cx.data().call()?.timestamps(start, end)?,))
    })?;
    input.func_wrap("[method]batch.value-sizes", |cx: Cx<'_>, (_, start, end): Range| -> ToGuest<Vec<u32>> {
        Ok((cx.data().call()?.value_sizes(start, end)?,))
    })?;
    input.func_wrap("[method]batch.keys", |mut cx: Cx<'_>, (_, start, end): Range| -> ToGuest<Arc<ColumnBuffer>> {
        Ok((cx.data_mut().lend(|call, column| call.keys(start, end, column))?,))
    })?;
    input.func_wrap(
        "[method]batch.values",
        |mut cx: Cx<'_>, (_, start, end): Range| -> ToGuest<Arc<ColumnBuffer>> {
            Ok((cx.data_mut().lend(|call, column| call.values(start, end, column))?,))
        },
    )?;
    input.func_wrap(
        "[method]batch.header",
        |mut cx: Cx<'_>, (_, start, end, name): (Of, u32, u32, String)| -> ToGuest<Arc<ColumnBuffer>> {
            Ok((cx.data_mut().lend(|call, column| call.header(start, end, &name, column))?,))
        },
    )?;
    input.func_wrap("[method]batch.headers", |cx: Cx<'_>, (_, index): (Of, u32)| -> ToGuest<Vec<HeaderOut>> {
        Ok((cx.data().call()?.headers(index)?,))
    })?;
    input.func_wrap("[method]batch.refuse", |mut cx: Cx<'_>, (_, index, reason): (Of, u32, String)| {
        Ok(cx.data_mut().call_mut()?.refuse(index, &reason)?)
    })
}

fn define_output(output: &mut Instance<'_>) -> wasmtime::Result<()> {
    output.func_wrap(
        "emit",
        |mut cx: Cx<'_>, (destination, source, values): (WasmStr, WasmList<u32>, ColumnView)| -> ToGuest<u32> {
            let first = with_call(&mut cx, |call, cx| {
                let send_to = call.send_to(&destination.to_str(cx)?)?;
                Ok(call.emit(send_to, source.as_le_slice(cx), &values.read(cx)?)?)
            })?;
            Ok((first,))
        },
    )?;
    output.func_wrap("forward", |mut cx: Cx<'_>, (destination, source): (WasmStr, WasmList<u32>)| {
        with_call(&mut cx, |call, cx| {
            let send_to = call.send_to(&destination.to_str(cx)?)?;
            Ok(call.forward(send_to, source.as_le_slice(cx))?)
        })
    })?;
    output.func_wrap("set-keys", |mut cx: Cx<'_>, (first, keys): (u32, ColumnView)| {
        with_call(&mut cx, |call, cx| Ok(call.set_keys(first, &keys.read(cx)?)?))
    })?;
    output.func_wrap("set-partitions", |mut cx: Cx<'_>, (first, partitions): (u32, WasmList<i32>)| {
        with_call(&mut cx, |call, cx| Ok(call.set_partitions(first, partitions.as_le_slice(cx))?))
    })?;
    output.func_wrap("set-timestamps", |mut cx: Cx<'_>, (first, timestamps): (u32, WasmList<i64>)| {
        with_call(&mut cx, |call, cx| Ok(call.set_timestamps(first, timestamps.as_le_slice(cx))?))
    })?;
    output.func_wrap("set-topics", |mut cx: Cx<'_>, (first, topics): (u32, Vec<String>)| {
        Ok(cx.data_mut().call_mut()?.set_topics(first, &topics)?)
    })?;
    output.func_wrap("set-header", |mut cx: Cx<'_>, (first, name, values): (u32, WasmStr, ColumnView)| {
        with_call(&mut cx, |call, cx| Ok(call.set_header(first, &name.to_str(cx)?, &values.read(cx)?)?))
    })?;
    output.func_wrap("add-header", |mut cx: Cx<'_>, (first, name, values): (u32, WasmStr, ColumnView)| {
        with_call(&mut cx, |call, cx| Ok(call.add_header(first, &name.to_str(cx)?, &values.read(cx)?)?))
    })
}

/// Changes the call while the guest's memory is looked at, which both lie in the store.
fn with_call<T>(
    cx: &mut Cx<'_>,
    change: impl FnOnce(&mut Call, &StoreContext<'_, State>) -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    cx.data().look_at_deadline()?;
    let mut call = cx.data_mut().call.take().ok_or_else(HostFault::outside_of_process)?;
    let result = change(&mut call, &cx.as_context());
    cx.data_mut().call = Some(call);
    result
}

fn log(mut cx: Cx<'_>, (level, message, about): (Level, WasmStr, Option<u32>)) -> wasmtime::Result<()> {
    cx.data().look_at_deadline()?;
    let level = match level {
        Level::Trace => tracing::Level::TRACE,
        Level::Debug => tracing::Level::DEBUG,
        Level::Info => tracing::Level::INFO,
        Level::Warn => tracing::Level::WARN,
        Level::Error => tracing::Level::ERROR,
    };
    if !host::log::wanted(level) {
        return Ok(());
    }
    let message = host::log::bounded(&message.to_str(&cx)?);
    cx.data_mut().log(level, &message, about);
    Ok(())
}
