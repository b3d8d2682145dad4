//! `millrace plugin`: what a plugin's author needs, without a broker. One file a verb.

mod bindings;
mod wrap;

use clap::{Subcommand, ValueEnum};

use super::Failure;
use crate::plugin::World;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a component of a core module.
    ///
    /// Embeds the interface's type where the module carries none, and links an adapter for WASI (wasi_snapshot_preview1)
    /// that grants nothing: no files, sockets, environment or arguments, clocks that only count, randomness that repeats
    /// itself; stdout and stderr become log lines. The result imports nothing but millrace:plugin.
    Wrap(wrap::Arguments),
    /// Write the interface's bindings for C or Go.
    ///
    /// For languages whose toolchains generate none themselves. `plugin new` does it once; again after an update of millrace.
    Bindings(bindings::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Wrap(arguments) => wrap::run(arguments),
        Command::Bindings(arguments) => bindings::run(arguments),
    }
}

/// A world, as it is named on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum WorldArgument {
    /// Keeps or drops records.
    Filter,
    /// Rewrites, drops, splits and routes records.
    Transform,
}

impl From<WorldArgument> for World {
    fn from(world: WorldArgument) -> Self {
        match world {
            WorldArgument::Filter => Self::Filter,
            WorldArgument::Transform => Self::Transform,
        }
    }
}
