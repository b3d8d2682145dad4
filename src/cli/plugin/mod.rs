//! `millrace plugin …`: an author's tools. None of them needs a broker; those that run a plugin do it through the host and
//! the chain that the router has.

mod bench;
mod bindings;
pub(super) mod diff;
mod inspect;
pub(super) mod load;
mod new;
pub(super) mod records;
mod run;
mod show;
mod templates;
mod wrap;

use clap::Subcommand;

use super::Failure;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write a new project: a plugin that works, its test, and all that it takes to build it.
    ///
    /// The project carries the SDK and the interface that this millrace was made with, and builds with the language's stock
    /// tools, outside of any repository. It redacts JSON fields until you make something else of it.
    New(new::Arguments),
    /// Give records to a plugin, and show what it makes of each.
    ///
    /// Reads JSON Lines from stdin as they come. For each record: what became of it (kept, emitted, dropped, or its fault), what
    /// comes out and how that differs from what went in, what the plugin logged, and its CPU time in the guest. A summary
    /// goes to stderr. Exits with 1 if a record was at fault, a refused one too; with 2 if a line is no record.
    Run(run::Arguments),
    /// Show what a plugin's file says about itself, without running it.
    ///
    /// Its world and interface version, the capabilities that it asks for with the YAML that grants them, its size, and its
    /// SHA-256 as a pin. Exits with 2 if this millrace would not load it, and says why.
    Inspect(inspect::Arguments),
    /// Measure what a plugin costs: time a record at several batch sizes, memory, compiling and loading.
    ///
    /// The records go through the router's own chain, again and again. Times are CPU time of the thread, with the host's part in
    /// it; runs of all sizes take turns, so that a noisy machine is noisy for each. What is shown is the median, with the
    /// fastest and the slowest run.
    Bench(bench::Arguments),
    /// Generate the interface's bindings for C or Go.
    ///
    /// What `plugin new` wrote holds them already; this makes them anew, for a newer interface. JavaScript's, Python's and
    /// Rust's own tools make theirs when they build.
    Bindings(bindings::Arguments),
    /// Make a component of a core module.
    ///
    /// Embeds the interface's type where the module carries none, and links an adapter for WASI (wasi_snapshot_preview1) that
    /// grants nothing: no files, sockets, environment or arguments, clocks that only count, randomness that repeats itself;
    /// stdout and stderr become log lines. The result imports nothing but millrace:plugin. Exits with 2 if no plugin can be
    /// made of it, and says why.
    Wrap(wrap::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::New(arguments) => new::run(arguments),
        Verb::Run(arguments) => run::run(arguments),
        Verb::Inspect(arguments) => inspect::run(arguments),
        Verb::Bench(arguments) => bench::run(arguments),
        Verb::Bindings(arguments) => bindings::run(arguments),
        Verb::Wrap(arguments) => wrap::run(arguments),
    }
}
