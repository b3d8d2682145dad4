//! The command line: one file a verb.
//!
//! Exit codes: 0 done · 1 failed while running · 2 usage or invalid configuration · 3 the environment is missing something
//! (broker unreachable, file unreadable) · 143/130 forced by a second signal.

mod act;
mod check;
mod client;
mod cluster;
mod compile_plugin;
mod demo;
mod dlq;
mod health;
mod log_level;
mod plan;
mod plugin;
mod reload;
mod replay;
mod run;
mod schema;
mod status;
mod tap;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueHint};

use crate::config::{self, Problems};
use crate::telemetry::ErrorChain;

/// Routes Kafka records through sandboxed WebAssembly plugins, exactly once.
#[derive(Parser)]
#[command(name = "millrace", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Environment:
  MILLRACE_CONFIG  the configuration, where none is named
  MILLRACE_LOG     what is logged, in place of log.level: debug, or millrace::kafka=trace,info
  MILLRACE_TOKEN   the daemon's admin.token, for the verbs that ask one, in place of the configuration's
  NO_COLOR         no colours

Exit codes:
  0        done
  1        failed while running
  2        usage, or an invalid configuration
  3        the environment is missing something: a file, a broker, a free port
  143, 130 ended by a second SIGTERM or SIGINT";

#[derive(Subcommand)]
enum Command {
    /// Run the daemon.
    ///
    /// Reads the configuration, compiles and configures every plugin, then routes records until SIGTERM or SIGINT. It then
    /// finishes what is in work and leaves; a second signal ends it at once. Changes of the YAML, of plugins and of secrets
    /// are taken up while it runs (see `watch`), and at SIGHUP; what cannot be taken up is told, and changes nothing.
    Run(run::Arguments),
    /// Validate a configuration without running it.
    ///
    /// Reads every file, compiles and configures every plugin, and prints every problem with its place. Needs no broker.
    Check(check::Arguments),
    /// Run the tests that are written in a configuration, without a broker.
    ///
    /// Gives each test's records to its route: the real plugins in the real chain, destinations, partitions and `on_error`.
    /// Only what a test names is compared. Shows how what came out differs, with the test's place. Exits with 1 if a test fails,
    /// with 2 if the configuration is invalid or no test has the name that is asked for.
    Test(test::Arguments),
    /// Show what a reload would do to a running daemon.
    ///
    /// Compares a configuration with the one that is in force there: which routes start, stop, restart, take the change up in
    /// place or stay, and why; and what is hazardous about it. Changes nothing. Exits with 2 or 3 if a reload would be refused.
    Plan(plan::Arguments),
    /// Have a running daemon read its configuration again.
    ///
    /// The daemon reads its own files, not those named here: CONFIG only says where it listens. Waits for the outcome, and
    /// exits with 2 if it is refused: what runs then goes on as it is.
    Reload(reload::Arguments),
    /// Show how a running daemon fares, on one screen.
    ///
    /// What needs somebody comes first. Per route its state, since when and why, how far behind it is, the last record at fault,
    /// and when it tries again.
    Status(status::Arguments),
    /// Let a route of a running daemon wait.
    ///
    /// Its partitions stay with the process and no transaction stays open. It stays paused across reloads, until `resume` or
    /// the end of the process; `enabled: false` is the lasting way.
    Pause(act::Arguments),
    /// Let a paused route go on.
    Resume(act::Arguments),
    /// Start what has stopped of a route of a running daemon, and try at once what waits.
    ///
    /// A partition that stands before a record at fault tries it again. Nothing leaves the group; a paused route stays paused.
    Restart(act::Arguments),
    /// Have a running daemon pass one record by.
    ///
    /// The record must be the one that its partition stands before, or comes next in while the route is paused. It is committed in
    /// a transaction of its own, counted as skipped (or as a dead letter), and logged with who asked.
    Skip(act::SkipArguments),
    /// Move the position of a paused route of a running daemon.
    ///
    /// Of all its partitions that the daemon owns; an offset that a log does not hold becomes the nearest one that it does. Says what
    /// that means for each partition; with --dry-run it says only that. Nothing flows until the route is resumed.
    Seek(act::SeekArguments),
    /// Have a running daemon log more, or less.
    ///
    /// Holds until a configuration is applied, which brings its own `log.level`. Of one level, lines of libraries show from `warn`; a list
    /// is taken as it is written.
    LogLevel(log_level::Arguments),
    /// Ask whether a running daemon lives.
    ///
    /// Exits with 0 if it answers that it does, else with 1 and the reason: for health checks where there is neither a shell nor
    /// curl. CONFIG only says where it listens.
    Health(health::Arguments),
    /// See it work, with nothing installed.
    ///
    /// Starts a broker inside this process, sends it real events (a week's earthquakes), runs two routes with a plugin each,
    /// and shows the records as they arrive. The broker is a mock of Kafka's protocol: it keeps nothing when it ends, and
    /// has no working transactions, so the routes run at_least_once.
    Demo(demo::Arguments),
    /// Write, try and measure plugins, without a broker.
    Plugin(plugin::Arguments),
    /// Show records of a running route as they pass.
    ///
    /// Before and behind each plugin, as they leave and where, and those at fault. A look costs the route next to nothing, and never
    /// holds it up: who reads slowly misses records, and is told how many.
    Tap(tap::Arguments),
    /// Look at dead letters, and send them through their route again.
    Dlq(dlq::Arguments),
    /// Run a slice of a route's source again, through its present plugins or others, beside the live group.
    ///
    /// Reads the route's topics from one time to another, gives the records to the plugins, and writes what they make to a file or
    /// a topic of its own; or shows, with --diff, what other plugins would make otherwise. Nothing of the route moves, and its
    /// destinations are never written. Needs no daemon.
    Replay(replay::Arguments),
    /// Print the JSON Schema of the configuration, for editors.
    ///
    /// yaml-language-server, which most editors have for YAML, completes and explains every key by it. Name it in the first line of a
    /// file: `# yaml-language-server: $schema=millrace.schema.json`.
    Schema,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which configuration.
#[derive(clap::Args)]
struct ConfigArgument {
    /// A YAML file, or a directory of them [default: $MILLRACE_CONFIG, else /etc/millrace, else ./config]
    #[arg(value_name = "CONFIG", value_hint = ValueHint::AnyPath)]
    config: Option<PathBuf>,
}

impl ConfigArgument {
    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.config {
            return Ok(path.clone());
        }
        let path = config::default_config_path(&environment);
        if environment("MILLRACE_CONFIG").is_none_or(|path| path.is_empty()) && !path.exists() {
            return Err(Failure::Environment(anyhow::anyhow!(
                "there is no configuration: no CONFIG is named, $MILLRACE_CONFIG is not set, and neither /etc/millrace nor \
                 ./config is there"
            )));
        }
        Ok(path)
    }
}

/// Why a command failed. The message is already on stderr where `Said`.
enum Failure {
    Running(anyhow::Error),
    Invalid(Problems),
    /// What was asked for, or what was given to work on, makes no sense.
    Usage(anyhow::Error),
    Environment(anyhow::Error),
    /// Told already; just the exit code.
    Said(u8),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if let Some(code) = compile_plugin::if_asked() {
        return code;
    }
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Pause(arguments) => act::run(&arguments, "pause"),
        Command::Resume(arguments) => act::run(&arguments, "resume"),
        Command::Restart(arguments) => act::run(&arguments, "restart"),
        Command::LogLevel(arguments) => log_level::run(&arguments),
        Command::Skip(arguments) => act::skip(&arguments),
        Command::Seek(arguments) => act::seek(&arguments),
        Command::Health(arguments) => health::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Plugin(arguments) => plugin::run(&arguments),
        Command::Tap(arguments) => tap::run(&arguments),
        Command::Dlq(arguments) => dlq::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Schema => schema::run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "millrace", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(tell(failure)),
    }
}

fn tell(failure: Failure) -> u8 {
    let (error, code) = match failure {
        Failure::Said(code) => return code,
        Failure::Invalid(problems) => {
            anstream::eprintln!("{}\n", problems.render(true));
            let code = code_of(&problems);
            let errors = problems.iter().filter(|problem| !problem.is_warning()).count();
            match (code, errors) {
                (3, _) => anstream::eprintln!("millrace: what the configuration needs is not there, or cannot be read"),
                (_, 1) => anstream::eprintln!("millrace: 1 problem in the configuration"),
                (_, errors) => anstream::eprintln!("millrace: {errors} problems in the configuration"),
            }
            return code;
        }
        Failure::Running(error) => (error, 1),
        Failure::Usage(error) => (error, 2),
        Failure::Environment(error) => (error, 3),
    };
    anstream::eprintln!("millrace: {}", ErrorChain(error.as_ref()));
    code
}

/// The exit code for problems: something is missing around the configuration, or it is wrong.
fn code_of(problems: &Problems) -> u8 {
    if problems.only_unreadable() { 3 } else { 2 }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
