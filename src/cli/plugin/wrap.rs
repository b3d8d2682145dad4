//! `millrace plugin wrap`: a core module becomes a component.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::ValueHint;

use super::WorldArgument;
use crate::cli::Failure;
use crate::plugin::{self, WrapError};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A core WebAssembly module, built with the bindings of the interface
    #[arg(value_name = "MODULE.wasm", value_hint = ValueHint::FilePath)]
    module: PathBuf,
    /// Where the component is written [default: the module's own place]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// The world whose type is embedded, where the module carries none [default: what its imports show]
    #[arg(long, value_enum)]
    world: Option<WorldArgument>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.module;
    let module = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let module = module.map_err(Failure::Environment)?;
    let component = plugin::wrap(&module, arguments.world.map(Into::into)).map_err(|error| refused(path, &error))?;
    let output = arguments.output.as_ref().unwrap_or(path);
    write_whole(output, &component).map_err(Failure::Environment)
}

fn refused(path: &Path, error: &WrapError) -> Failure {
    anstream::eprintln!("millrace: {}: {error}", path.display());
    Failure::Said(2)
}

/// Replaces the file in one go: a daemon that watches it never sees a part of it.
fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().ok_or_else(|| anyhow!("{} is not the name of a file", path.display()))?;
    let part = path.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // (what is left over is of no use; that the writing failed is what is told)
        let _ = std::fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
