//! Stand-ins for WASI 0.2, which the standard libraries of most languages drag in. They grant nothing: no environment, no
//! arguments, no files, no sockets; input is at its end, output becomes log lines, clocks and randomness count calls, and
//! exit is a fault. Not a capability, hence never in `allow`.
//!
//! They are made from what the component says it imports, so that every version of WASI 0.2 is served without a copy of
//! its interfaces: the few functions that programs cannot do without have an answer of their own ([`StandIn`]), all
//! others the neutral one of their result's type ([`neutral`]).

use std::borrow::Cow;
use std::collections::HashMap;

use wasmtime::StoreContextMut;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{Component, Linker, ResourceAny, ResourceDynamic, ResourceType, Type, Val};

use super::log::LINE_MAX;
use crate::plugin::engine::Engine;
use crate::plugin::fault::HostFault;
use crate::plugin::sandbox::State;

/// The packages that are stood in for.
pub(in crate::plugin) const PACKAGES: [&str; 6] = ["cli", "clocks", "filesystem", "io", "random", "sockets"];
/// And their versions.
pub(in crate::plugin) const VERSIONS: &str = "0.2.x";

/// How far the clocks move on each time they are asked, nanoseconds: loops that wait for a time to come must end.
const TICK_NANOS: u64 = 1_000_000;
/// What a guest may write in one go, and ask for of random bytes.
const BYTES_MAX: usize = 64 << 10;
/// The most kinds of resources of which a handle is handed out; all of WASI 0.2 has some twenty.
const RESOURCES_MAX: u32 = 256;
/// Output streams of standard output and standard error, by the number that the host knows them by.
const STDOUT: u32 = 1;
const STDERR: u32 = 2;

/// Whether an import, by its full name, is stood in for.
pub(in crate::plugin) fn stands_in(import: &str) -> bool {
    let name = import.strip_prefix("wasi:").and_then(|name| name.split_once('/'));
    let version = name.and_then(|(_, rest)| rest.split_once("@0.2.")).map(|(_, patch)| patch);
    name.is_some_and(|(package, _)| PACKAGES.contains(&package))
        && version.is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The engine's linker, with stand-ins for what this component imports of WASI.
pub(in crate::plugin) fn define<'e>(
    engine: &'e Engine,
    component: &Component,
) -> wasmtime::Result<Cow<'e, Linker<State>>> {
    let component = component.component_type();
    let mut linker = Cow::Borrowed(engine.linker());
    // One number for each resource: an interface that uses another's names it by the same name.
    let mut resources: HashMap<String, u32> = HashMap::new();
    for (import, item) in component.imports(engine.wasmtime()).filter(|(import, _)| stands_in(import)) {
        let ComponentItem::ComponentInstance(interface) = item.ty else { continue };
        let mut instance = linker.to_mut().instance(import)?;
        for (name, item) in interface.exports(engine.wasmtime()) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => {
                    let stand_in = StandIn::of(import, name);
                    instance.func_new(name, move |cx, ty, params, results| stand_in.call(cx, &ty, params, results))?;
                }
                ComponentItem::Resource(_) => {
                    // (a component has far fewer than 2^32 of them)
                    let next = resources.len() as u32;
                    let number = *resources.entry(name.to_owned()).or_insert(next);
                    instance.resource(name, ResourceType::host_dynamic(number), |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(linker)
}

/// What a function of WASI does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StandIn {
    /// Answers nothing, or refuses: see [`neutral`].
    Neutral,
    /// Hands out this standard stream.
    Stream(u32),
    /// How much may be written to a stream.
    Room,
    /// Writes to a stream, of which standard output and error become log lines.
    Write,
    /// Has written.
    Flush,
    /// Whatever is waited for is there.
    Ready,
    /// Which of what is waited for are there: all.
    Poll,
    /// A moment, in nanoseconds.
    Monotonic,
    /// A moment, in seconds and nanoseconds.
    Wall,
    /// How exact clocks are, in each form.
    MonotonicResolution,
    WallResolution,
    RandomBytes,
    RandomNumber,
    RandomSeed,
    Exit,
}

impl StandIn {
    fn of(import: &str, function: &str) -> Self {
        let interface = import.trim_start_matches("wasi:").split('@').next().unwrap_or_default();
        match (interface, function) {
            ("cli/stdout", "get-stdout") => Self::Stream(STDOUT),
            ("cli/stderr", "get-stderr") => Self::Stream(STDERR),
            ("cli/exit", _) => Self::Exit,
            ("io/streams", "[method]output-stream.check-write") => Self::Room,
            ("io/streams", "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush") => {
                Self::Write
            }
            ("io/streams", "[method]output-stream.flush" | "[method]output-stream.blocking-flush") => Self::Flush,
            ("io/poll", "[method]pollable.ready") => Self::Ready,
            ("io/poll", "poll") => Self::Poll,
            ("clocks/monotonic-clock", "now") => Self::Monotonic,
            ("clocks/monotonic-clock", "resolution") => Self::MonotonicResolution,
            ("clocks/wall-clock", "now") => Self::Wall,
            ("clocks/wall-clock", "resolution") => Self::WallResolution,
            ("random/random", "get-random-bytes") | ("random/insecure", "get-insecure-random-bytes") => {
                Self::RandomBytes
            }
            ("random/random", "get-random-u64") | ("random/insecure", "get-insecure-random-u64") => Self::RandomNumber,
            ("random/insecure-seed", "insecure-seed") => Self::RandomSeed,
            _ => Self::Neutral,
        }
    }

    fn call(
        self,
        mut cx: StoreContextMut<'_, State>,
        ty: &ComponentFunc,
        params: &[Val],
        results: &mut [Val],
    ) -> wasmtime::Result<()> {
        cx.data().look_at_deadline()?;
        // Handles lent for the call have to be given back, whatever it does with them.
        let mut handles = Vec::new();
        params.iter().for_each(|param| collect_handles(param, &mut handles));
        let mut numbers = Vec::new();
        for handle in handles {
            numbers.push(handle.try_into_resource_dynamic(&mut cx)?.rep());
        }
        let Some((result, ty)) = results.first_mut().zip(ty.results().next()) else {
            return if self == Self::Exit { Err(exit(params).into()) } else { Ok(()) };
        };
        let stands = &mut cx.data_mut().wasi;
        *result = match self {
            Self::Neutral | Self::Exit => neutral(&ty, 0, &mut cx)?,
            Self::Stream(number) => neutral(&ty, number, &mut cx)?,
            Self::Room => ok(Some(Val::U64(BYTES_MAX as u64))),
            Self::Write => {
                write(&mut cx, numbers.first().copied(), params.get(1));
                ok(None)
            }
            Self::Flush => ok(None),
            Self::Ready => Val::Bool(true),
            Self::Poll => Val::List((0..).take(numbers.len()).map(Val::U32).collect()),
            Self::Monotonic => Val::U64(stands.moment()),
            Self::MonotonicResolution => Val::U64(TICK_NANOS),
            Self::Wall => datetime(stands.moment()),
            Self::WallResolution => datetime(TICK_NANOS),
            Self::RandomBytes => Val::List(stands.bytes(params.first())?),
            Self::RandomNumber => Val::U64(stands.random.u64(..)),
            Self::RandomSeed => Val::Tuple(vec![Val::U64(stands.random.u64(..)), Val::U64(stands.random.u64(..))]),
        };
        Ok(())
    }
}

/// What the stand-ins of one instance remember. The same calls get the same answers in every instance.
#[derive(Debug)]
pub(in crate::plugin) struct Stands {
    calls: u64,
    random: fastrand::Rng,
    stdout: Line,
    stderr: Line,
}

impl Default for Stands {
    fn default() -> Self {
        let line = || Line { bytes: Vec::new() };
        Self { calls: 0, random: fastrand::Rng::with_seed(0), stdout: line(), stderr: line() }
    }
}

impl Stands {
    fn moment(&mut self) -> u64 {
        self.calls += 1;
        self.calls.saturating_mul(TICK_NANOS)
    }

    fn bytes(&mut self, count: Option<&Val>) -> Result<Vec<Val>, HostFault> {
        match count {
            Some(Val::U64(count)) if *count <= BYTES_MAX as u64 => {
                Ok((0..*count).map(|_| Val::U8(self.random.u8(..))).collect())
            }
            _ => Err(HostFault::trapped(format!("it asked WASI for more than {BYTES_MAX} random bytes at once"))),
        }
    }

    /// What was written and not ended by a newline, as the lines that it then is: whether to standard error, and the text.
    pub(in crate::plugin) fn take_rests(&mut self) -> impl Iterator<Item = (bool, String)> + use<> {
        [(false, self.stdout.take()), (true, self.stderr.take())]
            .into_iter()
            .filter_map(|(is_error, line)| Some((is_error, line?)))
    }
}

/// What was written of a line so far, up to a little more than a log line may have.
#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
}

impl Line {
    /// Appends bytes, and hands over each line that they end.
    fn push(&mut self, bytes: impl Iterator<Item = u8>, lines: &mut Vec<String>) {
        for byte in bytes {
            if byte == b'\n' {
                lines.extend(self.take());
            } else if self.bytes.len() <= LINE_MAX {
                self.bytes.push(byte);
            }
        }
    }

    /// The line, unless it is blank.
    fn take(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.bytes);
        let line = String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned();
        (!line.is_empty()).then_some(line)
    }
}

fn write(cx: &mut StoreContextMut<'_, State>, stream: Option<u32>, bytes: Option<&Val>) {
    let Some(Val::List(bytes)) = bytes else { return };
    let bytes = bytes.iter().filter_map(|byte| if let Val::U8(byte) = byte { Some(*byte) } else { None });
    let stands = &mut cx.data_mut().wasi;
    let mut lines = Vec::new();
    match stream {
        Some(STDOUT) => stands.stdout.push(bytes, &mut lines),
        Some(STDERR) => stands.stderr.push(bytes, &mut lines),
        _ => {}
    }
    lines.iter().for_each(|line| cx.data_mut().written(stream == Some(STDERR), line));
}

fn exit(params: &[Val]) -> HostFault {
    let status = match params.first() {
        Some(Val::Result(Ok(_))) => "success".to_owned(),
        Some(Val::Result(Err(_))) => "failure".to_owned(),
        Some(Val::U8(code)) => code.to_string(),
        _ => String::new(),
    };
    HostFault::trapped(format!("it called exit ({status}), which ends the instance: a plugin returns its verdicts"))
}

fn datetime(nanos: u64) -> Val {
    let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    Val::Record(vec![("seconds".into(), Val::U64(seconds)), ("nanoseconds".into(), Val::U32(nanos as u32))])
}

fn ok(value: Option<Val>) -> Val {
    Val::Result(Ok(value.map(Box::new)))
}

fn collect_handles(value: &Val, handles: &mut Vec<ResourceAny>) {
    match value {
        Val::Resource(handle) => handles.push(*handle),
        Val::List(values) | Val::Tuple(values) => values.iter().for_each(|value| collect_handles(value, handles)),
        Val::Record(fields) => fields.iter().for_each(|(_, value)| collect_handles(value, handles)),
        Val::Option(Some(value)) | Val::Variant(_, Some(value)) => collect_handles(value, handles),
        _ => {}
    }
}

/// The answer that says nothing: zero, empty, none; and where a function can fail with a reason that fits, that it is
/// closed or not permitted. A handle that is handed out has this number.
fn neutral(ty: &Type, number: u32, cx: &mut StoreContextMut<'_, State>) -> wasmtime::Result<Val> {
    Ok(match ty {
        Type::Bool => Val::Bool(false),
        Type::S8 => Val::S8(0),
        Type::U8 => Val::U8(0),
        Type::S16 => Val::S16(0),
        Type::U16 => Val::U16(0),
        Type::S32 => Val::S32(0),
        Type::U32 => Val::U32(0),
        Type::S64 => Val::S64(0),
        Type::U64 => Val::U64(0),
        Type::Float32 => Val::Float32(0.0),
        Type::Float64 => Val::Float64(0.0),
        Type::Char => Val::Char('\0'),
        Type::String => Val::String(String::new()),
        Type::List(_) => Val::List(Vec::new()),
        Type::Option(_) => Val::Option(None),
        Type::Flags(_) => Val::Flags(Vec::new()),
        Type::Tuple(tuple) => {
            Val::Tuple(tuple.types().map(|ty| neutral(&ty, number, cx)).collect::<wasmtime::Result<_>>()?)
        }
        Type::Record(record) => {
            let field = |field: wasmtime::component::types::Field<'_>| {
                Ok((field.name.to_owned(), neutral(&field.ty, number, cx)?))
            };
            Val::Record(record.fields().map(field).collect::<wasmtime::Result<_>>()?)
        }
        Type::Enum(cases) => Val::Enum(cases.names().next().unwrap_or_default().to_owned()),
        Type::Result(result) => match result.err().as_ref().and_then(refusal) {
            Some(refusal) => Val::Result(Err(Some(Box::new(refusal)))),
            None => ok(result.ok().map(|ty| neutral(&ty, number, cx)).transpose()?),
        },
        Type::Own(resource) => {
            // (one of another interface, such as `batch`, has no number)
            let kind =
                (0..RESOURCES_MAX).find(|kind| ResourceType::host_dynamic(*kind) == *resource).ok_or_else(|| {
                    HostFault::trapped(format!(
                        "it called a function of WASI that returns a resource which is none of the first {RESOURCES_MAX} of WASI's"
                    ))
                })?;
            Val::Resource(ResourceDynamic::new_own(number, kind).try_into_resource_any(cx)?)
        }
        other => {
            let message = format!("it called a function of WASI that this host has no stand-in for ({other:?})");
            return Err(HostFault::trapped(message).into());
        }
    })
}

/// The error that says that nothing is to be had here, where this type of errors has one.
fn refusal(error: &Type) -> Option<Val> {
    const REFUSALS: [&str; 4] = ["access-denied", "access", "not-permitted", "not-supported"];
    match error {
        Type::Enum(cases) => {
            let refusal = REFUSALS.iter().find(|refusal| cases.names().any(|case| case == **refusal))?;
            Some(Val::Enum((*refusal).to_owned()))
        }
        Type::Variant(cases) => {
            let closed = cases.cases().any(|case| case.name == "closed" && case.ty.is_none());
            closed.then(|| Val::Variant("closed".to_owned(), None))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_newlines_and_bounded() {
        let (mut line, mut lines) = (Line { bytes: Vec::new() }, Vec::new());
        line.push(b"one\r\n\ntw".iter().copied(), &mut lines);
        line.push(b"o\nrest".iter().copied(), &mut lines);
        assert_eq!((lines.as_slice(), line.take().as_deref()), (&["one".into(), "two".into()][..], Some("rest")));
        line.push(std::iter::repeat_n(b'x', 10 * LINE_MAX), &mut lines);
        assert!(line.bytes.len() <= LINE_MAX + 1 && lines.len() == 2);
    }
}
