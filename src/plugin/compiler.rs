//! The compiler, in a process of its own: this same program under another verb, which nobody types. It reads a plugin's file, makes
//! a component of a core module, and compiles it. What that costs is the plugin's choice, and nothing within a process could end
//! it; so the kernel bounds it (CPU time, memory, what is written), it is ended at a deadline, and what it took is given back when
//! it ends. It has the plugin in a file in memory as its standard input, where it puts the component in its place; it writes
//! machine code into the file that is its standard output, and inherits nothing else. Even one whose stack overflows, which no
//! process survives, costs the plugin alone.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setpriority_process, setrlimit,
};

use super::compile::LoadError;
use super::engine;
use super::fault::{printable, size};
use super::inherited;
use super::inspect::{self, Inspection};
use crate::model::Digest;
use crate::telemetry::Limits;

/// The verb of this program that compiles a plugin.
pub const COMPILE_VERB: &str = "compile-plugin";

/// This program, whatever has taken its place on disk meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// CPU time for a plugin of no size, for each MiB of it, and for any. An interpreter takes a tenth of it.
const CPU_MIN: Duration = Duration::from_secs(10);
const CPU_PER_MIB: Duration = Duration::from_secs(10);
const CPU_MAX: Duration = Duration::from_secs(300);
/// How much longer than its CPU time it may take: it yields to the routes.
const PATIENCE: u32 = 3;
/// Memory of its own, bytes; what is only reserved does not count. Less where the container has less left: where it runs short, the
/// kernel may end all that is in it.
const MEMORY_MAX: u64 = 2 << 30;
/// Of what the container has left, so much is for what others in it take meanwhile: an eighth.
const LEFT_TO_OTHERS: u64 = 8;
/// Machine code, bytes.
const CODE_MAX: u64 = 1 << 30;
/// The compiler takes the processors that the routes leave to it.
const NICENESS: i32 = 10;
/// Whom the kernel ends first where memory is short: it, and not the routes.
const EXPENDABLE: &str = "1000";
const FOR_ITS_SIZE: &str = "the most for a plugin of its size";
/// The exit code for a plugin that is refused; why is on standard error: a [`LoadError`] as JSON, in a line of its own.
const REFUSED: u8 = 1;
/// The exit code for a process that cannot set its limits; the reason is on standard error.
const UNCONFINED: u8 = 3;
/// So much of what is on standard error is looked at, bytes.
const SAID_MAX: u64 = 64 << 10;
/// The longest sentence that is taken from there, bytes.
const REASON_MAX: usize = 2048;

/// What compiling one plugin may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// CPU time of all its threads together, whole seconds.
    pub cpu: Duration,
    /// Memory of its own, bytes.
    pub memory: u64,
}

impl CompileLimits {
    /// For a plugin of so many bytes, where so much memory is left.
    fn of(size: usize, left: Option<u64>) -> Self {
        let mib = u32::try_from(size >> 20).unwrap_or(u32::MAX);
        let memory = left.map_or(MEMORY_MAX, |left| MEMORY_MAX.min(left - left / LEFT_TO_OTHERS));
        Self { cpu: CPU_PER_MIB.saturating_mul(mib).saturating_add(CPU_MIN).min(CPU_MAX), memory }
    }

    fn time(&self) -> Duration {
        self.cpu * PATIENCE
    }
}

// ---- the process that asks ------------------------------------------------------------------------------------------

/// Starts compilers.
#[derive(Debug, Clone)]
pub(super) struct Compiler {
    program: PathBuf,
}

/// How a compiler ended, and what it said.
enum End {
    /// By itself, or by a limit of the kernel's.
    Ended(ExitStatus, String),
    /// It was ended at its deadline.
    Late,
}

impl Compiler {
    /// By this millrace; by default, by the one that runs.
    pub(super) fn new(program: Option<PathBuf>) -> Self {
        Self { program: program.unwrap_or_else(|| THIS_PROGRAM.into()) }
    }

    /// Reads and compiles a plugin. Waits for it.
    pub(super) fn compile(&self, plugin: &[u8]) -> Result<Output, LoadError> {
        let limits = CompileLimits::of(plugin.len(), Limits::memory_left());
        let no_compiler = |error: io::Error| LoadError::Engine(format!("its compiler cannot be run: {error}"));
        let component = in_memory("plugin", plugin).map_err(no_compiler)?;
        let code = in_memory("compiled-plugin", &[]).map_err(no_compiler)?;
        let child = self.start(&component, &code, &limits).map_err(no_compiler)?;
        match wait(child, limits.time()).map_err(no_compiler)? {
            End::Ended(status, _) if status.success() => Ok(Output { code, component }),
            End::Ended(status, said) => Err(refusal(status, &said, &limits)),
            End::Late => Err(too_costly(format!("{:?}, {FOR_ITS_SIZE}", limits.time()))),
        }
    }

    fn start(&self, component: &File, code: &File, limits: &CompileLimits) -> io::Result<Child> {
        let CompileLimits { cpu, memory } = limits;
        Command::new(&self.program)
            .arg0("millrace")
            .args([COMPILE_VERB, &cpu.as_secs().to_string(), &memory.to_string()])
            .env_clear()
            // (a Ctrl-C is for who asks, who then ends it)
            .process_group(0)
            .stdin(component.try_clone()?)
            .stdout(code.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()
    }
}

/// What a compiler has made of a plugin, in files in memory.
pub(super) struct Output {
    pub(super) code: File,
    component: File,
}

impl Output {
    /// The component that it made of a core module.
    pub(super) fn component(&self) -> io::Result<Vec<u8>> {
        let (mut component, mut file) = (Vec::new(), &self.component);
        file.rewind()?;
        file.read_to_end(&mut component)?;
        Ok(component)
    }
}

fn in_memory(name: &str, content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    // (who inherits it goes on where this one stopped)
    file.rewind()?;
    Ok(file)
}

/// Waits for its end, which comes by `time` at the latest.
fn wait(mut child: Child, time: Duration) -> io::Result<End> {
    let mut errors = child.stderr.take().expect("it is piped");
    let (said, ended) = mpsc::channel();
    // Its standard error is closed when it ends, and not before.
    let listen = move || {
        let mut text = Vec::new();
        let _ =
            (&mut errors).take(SAID_MAX).read_to_end(&mut text).and_then(|_| io::copy(&mut errors, &mut io::sink()));
        let _ = said.send(String::from_utf8_lossy(&text).into_owned());
    };
    thread::scope(|scope| {
        let started = thread::Builder::new().spawn_scoped(scope, listen);
        let said = match &started {
            Ok(_) => ended.recv_timeout(time).ok(),
            Err(_) => None,
        };
        if said.is_none() {
            child.kill()?;
        }
        let status = child.wait()?;
        started?;
        Ok(said.map_or(End::Late, |said| End::Ended(status, said)))
    })
}

/// Why there is no machine code.
fn refusal(status: ExitStatus, said: &str, limits: &CompileLimits) -> LoadError {
    let by = |signal: Signal| status.signal() == Some(signal.as_raw());
    // (as wasmtime says it, and as Rust does)
    let out_of_memory = ["out of memory", "memory allocation of"].iter().any(|words| said.contains(words));
    let is_refused = status.code() == Some(REFUSED.into());
    let sentence = || printable(said.trim_end(), REASON_MAX);
    if (is_refused || by(Signal::ABORT)) && out_of_memory {
        let why =
            if limits.memory < MEMORY_MAX { "all that the container has left" } else { "the most for any plugin" };
        too_costly(format!("{} of memory, {why}", size(limits.memory >> 20 << 20)))
    } else if is_refused {
        // (before it may stand what a panic printed)
        let last = said.trim_end().rsplit('\n').next().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|_| LoadError::Invalid(sentence()))
    } else if status.code() == Some(UNCONFINED.into()) {
        LoadError::Engine(format!("its compiler cannot be confined: {}", sentence()))
    } else if by(Signal::XCPU) {
        too_costly(format!("{:?} of CPU time, {FOR_ITS_SIZE}", limits.cpu))
    } else if by(Signal::XFSZ) {
        too_costly(format!("{} of machine code, the most for any plugin", size(CODE_MAX)))
    } else if by(Signal::KILL) {
        too_costly("the memory that is left here (the kernel ended the compiler)".into())
    } else {
        LoadError::Invalid("the compiler failed on it".into())
    }
}

fn too_costly(most: String) -> LoadError {
    LoadError::TooCostly { most }
}

// ---- the process that compiles --------------------------------------------------------------------------------------

/// Compiles what is on standard input to standard output, within limits that hold for the whole process from now on. Returns the
/// exit code. For [`COMPILE_VERB`] alone.
pub fn compile_within(limits: &CompileLimits) -> u8 {
    let confined = confine(limits).map_err(|error| (UNCONFINED, error.to_string()));
    match confined.and_then(|()| compile().map_err(|refused| (REFUSED, as_line(refused)))) {
        Ok(()) => 0,
        Err((code, reason)) => {
            eprintln!("{reason}");
            code
        }
    }
}

fn as_line(refused: LoadError) -> String {
    let refused = match refused {
        LoadError::Invalid(reason) => LoadError::Invalid(printable(&reason, REASON_MAX)),
        short => short,
    };
    serde_json::to_string(&refused).unwrap_or_else(|_| refused.to_string())
}

fn confine(limits: &CompileLimits) -> io::Result<()> {
    inherited::close()?;
    // (who asked has ended, should it go before this one)
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let cpu = limits.cpu.as_secs();
    for (resource, most, at_last) in [
        // (where the two are the same, it is killed without a word of why)
        (Resource::Cpu, cpu, cpu + 1),
        (Resource::Data, limits.memory, limits.memory),
        (Resource::Fsize, CODE_MAX, CODE_MAX),
        (Resource::Core, 0, 0),
    ] {
        // (who started millrace may have set a lower one, which nobody can raise)
        let at_last = getrlimit(resource).maximum.map_or(at_last, |given| given.min(at_last));
        setrlimit(resource, Rlimit { current: Some(most.min(at_last)), maximum: Some(at_last) })?;
    }
    // (where these are not to be had, it goes on as it is)
    let _ = setpriority_process(None, NICENESS);
    let _ = std::fs::write("/proc/self/oom_score_adj", EXPENDABLE);
    Ok(())
}

fn compile() -> Result<(), LoadError> {
    let invalid = |error: wasmtime::Error| LoadError::Invalid(format!("{error:#}"));
    let no_file = |error: io::Error| LoadError::Engine(format!("its compiler cannot read or write: {error}"));
    let mut plugin = Vec::new();
    io::stdin().lock().read_to_end(&mut plugin).map_err(no_file)?;
    let component = inspect::component_of_file(&plugin)?;
    Inspection::of(&plugin, Digest::of(&plugin), &component)?.check()?;
    if let Cow::Owned(made) = &component {
        put_in_its_place(made).map_err(no_file)?;
    }
    let code = engine::wasmtime().and_then(|engine| engine.precompile_component(&component)).map_err(invalid)?;
    let mut output = io::stdout().lock();
    output.write_all(&code).and_then(|()| output.flush()).map_err(no_file)
}

fn put_in_its_place(component: &[u8]) -> io::Result<()> {
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_is_ended_by_a_limit_tells_which() {
        let limits = CompileLimits { cpu: Duration::from_secs(10), memory: MEMORY_MAX };
        // (a process that a signal has ended has that for its status)
        for (signal, said, words) in [
            (Signal::XCPU, "", "takes more than 10s of CPU time"),
            (Signal::XFSZ, "", "takes more than 1024MiB of machine code"),
            (Signal::KILL, "", "takes more than the memory that is left"),
            (Signal::ABORT, "memory allocation of 5 bytes failed", "takes more than 2048MiB of memory"),
            (Signal::ABORT, "thread has overflowed its stack", "the compiler failed on it"),
            (Signal::SEGV, "", "the compiler failed on it"),
        ] {
            let refused = refusal(ExitStatus::from_raw(signal.as_raw()), said, &limits).to_string();
            assert!(refused.contains(words), "{signal:?} {said}: {refused}");
        }
        let by_itself = |said: &str| refusal(ExitStatus::from_raw(i32::from(REFUSED) << 8), said, &limits);
        let too_large = by_itself("out of memory (failed to allocate 5 bytes)").to_string();
        assert!(too_large.contains("takes more than 2048MiB of memory"), "{too_large}");
        assert_eq!(by_itself("unknown type\n"), LoadError::Invalid("unknown type".into()));
        let refused = LoadError::TooMuch { what: "functions".into(), found: 7, most: 5 };
        assert_eq!(by_itself(&format!("thread panicked\n{}\n", as_line(refused.clone()))), refused);
        let panicked = refusal(ExitStatus::from_raw(101 << 8), "thread panicked", &limits);
        assert_eq!(panicked, LoadError::Invalid("the compiler failed on it".into()));
    }

    #[test]
    fn a_larger_component_has_more_time_up_to_a_bound() {
        let seconds = |size: usize| CompileLimits::of(size, None).cpu.as_secs();
        assert_eq!([0, 36 << 10, 1 << 20, 20 << 20, 256 << 20].map(seconds), [10, 10, 20, 210, 300]);
    }

    #[test]
    fn a_compiler_takes_no_more_memory_than_its_container_has_left() {
        let mib = |left: Option<u64>| CompileLimits::of(0, left.map(|mib| mib << 20)).memory >> 20;
        assert_eq!([None, Some(1 << 20), Some(800), Some(0)].map(mib), [2048, 2048, 700, 0]);
        let limits = CompileLimits::of(0, Some(800 << 20));
        let refused = refusal(ExitStatus::from_raw(Signal::ABORT.as_raw()), "memory allocation of 5", &limits);
        let words = "more than 700MiB of memory, all that the container has left";
        assert!(refused.to_string().contains(words), "{refused}");
    }
}
