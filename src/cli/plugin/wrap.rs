//! `millrace plugin wrap`: a core module becomes a component.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{ValueEnum, ValueHint};
use serde_json::json;

use super::super::Failure;
use super::load;
use crate::plugin::{self, World};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A core WebAssembly module, built with the bindings of the interface
    #[arg(value_name = "MODULE.wasm", value_hint = ValueHint::FilePath)]
    module: PathBuf,
    /// Where the component is written [default: in the module's place]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// The world whose type is embedded, where the module carries none [default: transform where the module imports
    /// output, else filter]
    #[arg(long, value_enum, value_name = "WORLD")]
    world: Option<WorldName>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WorldName {
    Filter,
    Transform,
}

impl From<WorldName> for World {
    fn from(name: WorldName) -> Self {
        match name {
            WorldName::Filter => Self::Filter,
            WorldName::Transform => Self::Transform,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { module: path, output, world, json } = arguments;
    let module = load::read(path)?;
    let component = plugin::wrap(&module, world.map(Into::into))
        .with_context(|| format!("{} cannot be made a plugin", path.display()))
        .map_err(Failure::Usage)?;
    let output = output.as_ref().unwrap_or(path);
    write_whole(output, &component).map_err(Failure::Environment)?;
    if *json {
        anstream::println!("{:#}", json!({ "component": output, "size": component.len() }));
    }
    Ok(())
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
    written.with_context(|| format!("{} cannot be written", path.display()))
}
