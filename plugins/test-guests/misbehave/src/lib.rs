//! A transform that misbehaves as it is told to, for every fault that a host must survive. On the bare bindings: the SDK
//! would not let it do most of this.
//!
//! `config: { do: <behaviour>, when: <marker>, n: <number> }`. It misbehaves on records whose value contains the marker
//! (no marker: on every record) and passes everything else. The behaviours are the variants of [`Behaviour`].
#![cfg(target_arch = "wasm32")]

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use bindings::exports::millrace::plugin::lifecycle;
use bindings::millrace::plugin::input::Batch;
use bindings::millrace::plugin::log::{self, Level};
use bindings::millrace::plugin::output;
use bindings::millrace::plugin::types::{Column, Failure};

#[allow(missing_docs, unreachable_pub, reason = "generated; the WIT files are the documentation")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "transform", generate_all });
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    r#do: Behaviour,
    when: Option<String>,
    n: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Behaviour {
    // In `process`, on a marked record.
    /// Never returns.
    Loop,
    /// Allocates memory without end.
    Grow,
    /// Panics with a message.
    Trap,
    /// Emits the record, then panics: nothing of it may be seen.
    EmitThenTrap,
    /// Calls itself without end.
    Recurse,
    /// Refuses the record, with a reason.
    Refuse,
    /// Refuses the record without saying why.
    RefuseSilently,
    /// Emits `n` items (1,000,000), 10,000 a call.
    ManyOutputs,
    /// Emits one value of `n` bytes (16 MiB).
    LargeOutput,
    /// Emits to a destination that no route has.
    ForeignDestination,
    /// Returns 7 for the record.
    BadVerdict,
    /// Emits a column whose ends descend.
    BadColumn,
    /// Emits from a record beyond the batch.
    BadIndex,
    /// Sets a header on an item that it did not emit.
    BadItem,
    /// Writes `n` log lines (10,000) and passes the record.
    LogFlood,
    // In `process`, on a batch that has a marked record.
    /// Returns one verdict too few.
    ShortVerdicts,
    /// Fails for good.
    Permanent,
    /// Asks for ever to be tried again.
    Retry,
    /// Asks to be tried again, `n` times (1) in the life of the instance; then passes.
    RetryTimes,
    // Outside of `process`, marker or not.
    /// Says that its configuration is bad.
    FailConfigure,
    /// Panics in `configure`.
    TrapConfigure,
    /// Never returns from `configure`.
    LoopConfigure,
    /// Never returns from `shutdown`.
    LoopInShutdown,
    /// Panics in `shutdown`.
    TrapInShutdown,
}

struct State {
    config: Config,
    retries: u32,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

struct Misbehave;
bindings::export!(Misbehave with_types_in bindings);

impl lifecycle::Guest for Misbehave {
    fn configure(config: String) -> Result<(), Failure> {
        std::panic::set_hook(Box::new(|panic| log::log(Level::Error, &panic.to_string(), None)));
        let config: Config = serde_json::from_str(&config).map_err(|error| Failure::BadConfig(error.to_string()))?;
        match config.r#do {
            Behaviour::FailConfigure => return Err(Failure::BadConfig("told to fail in configure".into())),
            Behaviour::TrapConfigure => panic!("told to trap in configure"),
            Behaviour::LoopConfigure => spin(),
            _ => {}
        }
        *STATE.lock().unwrap_or_else(PoisonError::into_inner) = Some(State { config, retries: 0 });
        Ok(())
    }

    fn shutdown() {
        let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        match state.as_ref().map(|state| state.config.r#do) {
            Some(Behaviour::LoopInShutdown) => spin(),
            Some(Behaviour::TrapInShutdown) => panic!("told to trap in shutdown"),
            _ => {}
        }
    }
}

impl bindings::Guest for Misbehave {
    fn process(batch: &Batch) -> Result<Vec<u8>, Failure> {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        let state = state.as_mut().expect("configure comes first");
        let marked = marked(batch, state.config.when.as_deref());
        let mut verdicts = vec![0; marked.len()];
        for index in (0..marked.len()).filter(|&index| marked[index]) {
            verdicts[index] = misbehave_on(&state.config, batch, index as u32);
        }
        if marked.contains(&true) {
            misbehave_on_batch(state, &mut verdicts)?;
        }
        Ok(verdicts)
    }
}

fn misbehave_on(config: &Config, batch: &Batch, index: u32) -> u8 {
    let n = |default| config.n.unwrap_or(default);
    match config.r#do {
        Behaviour::Loop => spin(),
        Behaviour::Grow => grow(),
        Behaviour::Trap => panic!("told to trap"),
        Behaviour::EmitThenTrap => {
            emit("", index, b"emitted before the trap");
            panic!("told to trap after emitting")
        }
        Behaviour::Recurse => {
            black_box(recurse(0));
        }
        Behaviour::Refuse => {
            batch.refuse(index, "told to refuse");
            return 2;
        }
        Behaviour::RefuseSilently => return 2,
        Behaviour::ManyOutputs => many_outputs(index, n(1_000_000)),
        Behaviour::LargeOutput => emit("", index, &vec![b'x'; n(16 << 20) as usize]),
        Behaviour::ForeignDestination => emit("no-such-destination", index, b"where to?"),
        Behaviour::BadVerdict => return 7,
        Behaviour::BadColumn => {
            let column = Column { bytes: b"abcdef".to_vec(), ends: vec![4, 2], nulls: Vec::new() };
            output::emit("", &[index, index], &column);
        }
        Behaviour::BadIndex => emit("", batch.len(), b"whose?"),
        Behaviour::BadItem => output::set_header(1_000_000, "header", &column_of(b"on what?")),
        Behaviour::LogFlood => {
            (0..n(10_000)).for_each(|line| log::log(Level::Info, &format!("line {line}"), Some(index)))
        }
        Behaviour::ShortVerdicts
        | Behaviour::Permanent
        | Behaviour::Retry
        | Behaviour::RetryTimes
        | Behaviour::FailConfigure
        | Behaviour::TrapConfigure
        | Behaviour::LoopConfigure
        | Behaviour::LoopInShutdown
        | Behaviour::TrapInShutdown => {}
    }
    0
}

fn misbehave_on_batch(state: &mut State, verdicts: &mut Vec<u8>) -> Result<(), Failure> {
    match state.config.r#do {
        Behaviour::ShortVerdicts => {
            verdicts.pop();
        }
        Behaviour::Permanent => return Err(Failure::Permanent("told to fail for good".into())),
        Behaviour::Retry => return Err(Failure::Retry("told to ask again for ever".into())),
        Behaviour::RetryTimes if state.retries < state.config.n.unwrap_or(1) => {
            state.retries += 1;
            return Err(Failure::Retry(format!("told to ask again, {} so far", state.retries)));
        }
        _ => {}
    }
    Ok(())
}

/// Which records' values contain the marker.
fn marked(batch: &Batch, marker: Option<&str>) -> Vec<bool> {
    let len = batch.len();
    let Some(marker) = marker.filter(|marker| !marker.is_empty()) else {
        return vec![true; len as usize];
    };
    let values = batch.values(0, len);
    let starts = std::iter::once(0).chain(values.ends.iter().copied());
    let contains = |value: &[u8]| value.windows(marker.len()).any(|window| window == marker.as_bytes());
    starts.zip(&values.ends).map(|(start, &end)| contains(&values.bytes[start as usize..end as usize])).collect()
}

fn emit(destination: &str, source: u32, value: &[u8]) {
    output::emit(destination, &[source], &column_of(value));
}

fn column_of(value: &[u8]) -> Column {
    Column { bytes: value.to_vec(), ends: vec![value.len() as u32], nulls: Vec::new() }
}

fn many_outputs(source: u32, mut n: u32) {
    while n > 0 {
        let now = n.min(10_000);
        let column = Column { bytes: Vec::new(), ends: vec![0; now as usize], nulls: Vec::new() };
        output::emit("", &vec![source; now as usize], &column);
        n -= now;
    }
}

fn spin() -> ! {
    loop {
        black_box(0);
    }
}

fn grow() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1_u8; 1 << 20]));
    }
}

#[expect(unconditional_recursion, reason = "this is what it is for")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    recurse(depth + 1) + black_box(frame)[depth as usize % 32]
}
