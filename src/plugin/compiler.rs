//! The compiler, in a process of its own: this same program under another verb, which nobody types. What a compilation costs is the
//! plugin's choice, and nothing within a process could end it; so the kernel bounds it (CPU time, memory, what is written), it is
//! ended at a deadline, and what it took is given back when it ends. It has the component on its standard input, writes machine
//! code into the file that is its standard output, and inherits nothing else. Even a compiler whose stack overflows, which no
//! process survives, costs the plugin alone.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
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

/// The verb of this program that compiles a component.
pub const COMPILE_VERB: &str = "compile-plugin";

/// This program, whatever has taken its place on disk meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// CPU time for a component of no size, for each MiB of it, and for any. An interpreter takes a tenth of it.
const CPU_MIN: Duration = Duration::from_secs(10);
const CPU_PER_MIB: Duration = Duration::from_secs(10);
const CPU_MAX: Duration = Duration::from_secs(300);
/// How much longer than its CPU time it may take: it yields to the routes.
const PATIENCE: u32 = 3;
/// Memory of its own, bytes; what is only reserved does not count.
const MEMORY_MAX: u64 = 2 << 30;
/// Machine code, bytes.
const CODE_MAX: u64 = 1 << 30;
/// The compiler takes the processors that the routes leave to it.
const NICENESS: i32 = 10;
/// Whom the kernel ends first where memory is short: it, and not the routes.
const EXPENDABLE: &str = "1000";
const FOR_ITS_SIZE: &str = "the most for a plugin of its size";
/// The exit code for a component that is not valid; the reason is on standard error.
const INVALID: u8 = 1;
/// The exit code for a process that cannot set its limits; the reason is on standard error.
const UNCONFINED: u8 = 3;
/// So much of what is on standard error is looked at, bytes.
const SAID_MAX: u64 = 4096;

/// What compiling one component may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// CPU time of all its threads together, whole seconds.
    pub cpu: Duration,
    /// Memory of its own, bytes.
    pub memory: u64,
}

impl CompileLimits {
    /// For a component of so many bytes.
    fn of(size: usize) -> Self {
        let mib = u32::try_from(size >> 20).unwrap_or(u32::MAX);
        Self { cpu: CPU_PER_MIB.saturating_mul(mib).saturating_add(CPU_MIN).min(CPU_MAX), memory: MEMORY_MAX }
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

    /// The component's machine code, in a file in memory. Waits for it.
    pub(super) fn compile(&self, component: &[u8]) -> Result<File, LoadError> {
        let limits = CompileLimits::of(component.len());
        let no_compiler = |error: io::Error| LoadError::Engine(format!("its compiler cannot be run: {error}"));
        let code = File::from(memfd_create("compiled-plugin", MemfdFlags::CLOEXEC).map_err(|e| no_compiler(e.into()))?);
        let child = self.start(&code, &limits).map_err(no_compiler)?;
        match wait(child, component, limits.time()).map_err(no_compiler)? {
            End::Ended(status, _) if status.success() => Ok(code),
            End::Ended(status, said) => Err(refusal(status, &said, &limits)),
            End::Late => Err(too_costly(format!("{:?}, {FOR_ITS_SIZE}", limits.time()))),
        }
    }

    fn start(&self, code: &File, limits: &CompileLimits) -> io::Result<Child> {
        let CompileLimits { cpu, memory } = limits;
        Command::new(&self.program)
            .arg0("millrace")
            .args([COMPILE_VERB, &cpu.as_secs().to_string(), &memory.to_string()])
            .env_clear()
            // (a Ctrl-C is for who asks, who then ends it)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(code.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()
    }
}

/// Gives it the component, and waits for its end, which comes by `time` at the latest.
fn wait(mut child: Child, component: &[u8], time: Duration) -> io::Result<End> {
    let mut input = child.stdin.take().expect("it is piped");
    let mut errors = child.stderr.take().expect("it is piped");
    let (said, ended) = mpsc::channel();
    // Its standard error is closed when it ends, and not before.
    let listen = move || {
        let mut text = Vec::new();
        let _ =
            (&mut errors).take(SAID_MAX).read_to_end(&mut text).and_then(|_| io::copy(&mut errors, &mut io::sink()));
        let _ = said.send(String::from_utf8_lossy(&text).into_owned());
    };
    // (one that does not read to the end says why)
    let feed = move || drop(input.write_all(component));
    thread::scope(|scope| {
        let started = thread::Builder::new()
            .spawn_scoped(scope, listen)
            .and_then(|_| thread::Builder::new().spawn_scoped(scope, feed));
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
    let is_invalid = status.code() == Some(INVALID.into());
    if (is_invalid || by(Signal::ABORT)) && out_of_memory {
        too_costly(format!("{} of memory, the most for any plugin", size(limits.memory)))
    } else if is_invalid {
        LoadError::Invalid(printable(said.trim_end(), SAID_MAX as usize / 2))
    } else if status.code() == Some(UNCONFINED.into()) {
        LoadError::Engine(format!(
            "its compiler cannot be confined: {}",
            printable(said.trim_end(), SAID_MAX as usize / 2)
        ))
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
    match confined.and_then(|()| compile().map_err(|reason| (INVALID, reason))) {
        Ok(()) => 0,
        Err((code, reason)) => {
            eprintln!("{reason}");
            code
        }
    }
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

fn compile() -> Result<(), String> {
    let mut component = Vec::new();
    io::stdin().lock().read_to_end(&mut component).map_err(|error| error.to_string())?;
    let engine = engine::wasmtime();
    let code =
        engine.and_then(|engine| engine.precompile_component(&component)).map_err(|error| format!("{error:#}"))?;
    let mut output = io::stdout().lock();
    output.write_all(&code).and_then(|()| output.flush()).map_err(|error| error.to_string())
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
        let by_itself = |said: &str| refusal(ExitStatus::from_raw(i32::from(INVALID) << 8), said, &limits);
        let too_large = by_itself("out of memory (failed to allocate 5 bytes)").to_string();
        assert!(too_large.contains("takes more than 2048MiB of memory"), "{too_large}");
        assert_eq!(by_itself("unknown type\n"), LoadError::Invalid("unknown type".into()));
        let panicked = refusal(ExitStatus::from_raw(101 << 8), "thread panicked", &limits);
        assert_eq!(panicked, LoadError::Invalid("the compiler failed on it".into()));
    }

    #[test]
    fn a_larger_component_has_more_time_up_to_a_bound() {
        let seconds = |size: usize| CompileLimits::of(size).cpu.as_secs();
        assert_eq!([0, 36 << 10, 1 << 20, 20 << 20, 256 << 20].map(seconds), [10, 10, 20, 210, 300]);
    }
}
