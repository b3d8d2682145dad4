//! `millrace compile-plugin`: the process that the plugin host has a plugin compiled in. Not for people, hence in no help.

use std::time::Duration;

use super::Failure;
use crate::plugin::{CompileLimits, compile_within};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// CPU time, seconds
    #[arg(value_name = "SECONDS")]
    cpu: u64,
    /// Memory, bytes
    #[arg(value_name = "BYTES")]
    memory: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { cpu, memory } = *arguments;
    match compile_within(&CompileLimits { cpu: Duration::from_secs(cpu), memory }) {
        0 => Ok(()),
        code => Err(Failure::Said(code)),
    }
}
