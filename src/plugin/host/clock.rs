//! The capability `clock`: the wall clock of the host, in the units of records' timestamps and in finer ones.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wasmtime::StoreContextMut;
use wasmtime::component::LinkerInstance;

use crate::plugin::sandbox::State;

pub(in crate::plugin) fn define(clock: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    clock.func_wrap("now-ms", |cx: StoreContextMut<'_, State>, ()| {
        cx.data().look_at_deadline()?;
        Ok((i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX),))
    })?;
    clock.func_wrap("now-ns", |cx: StoreContextMut<'_, State>, ()| {
        cx.data().look_at_deadline()?;
        Ok((u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX),))
    })
}

/// A clock that is set before 1970 stands at it.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
