//! `millrace plugin bindings`: the interface in C or Go, written into a directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{ValueEnum, ValueHint};

use super::WorldArgument;
use crate::cli::Failure;
use crate::plugin::{self, BindingsLanguage};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The language
    #[arg(long, value_enum)]
    lang: Language,
    /// The world
    #[arg(long, value_enum, default_value = "transform")]
    world: WorldArgument,
    /// Where the files go; it is made where it is missing
    #[arg(value_name = "DIR", default_value = "bindings", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Language {
    /// A header, a source file and an object file with the component type
    C,
    /// Packages below the module whose go.mod lies above DIR; what they export is implemented beside it, in
    /// millrace/export_wit_world and millrace/export_millrace_plugin_lifecycle
    Go,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    write(arguments.lang, arguments.world.into(), &arguments.directory).map_err(Failure::Environment)
}

fn write(language: Language, world: plugin::World, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let language = match language {
        Language::C => BindingsLanguage::C,
        Language::Go => {
            let package = go_import_path(directory)?;
            let beside = package.rsplit_once('/').map_or("", |(parent, _)| parent);
            BindingsLanguage::Go { exports: format!("{beside}/millrace"), package }
        }
    };
    let files = plugin::bindings(&language, world).map_err(|error| anyhow!("the bindings cannot be made: {error}"))?;
    for (name, content) in files {
        let path = directory.join(name);
        let parent = path.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The import path of a directory: the name of the module that it lies in, and the way from there.
fn go_import_path(directory: &Path) -> anyhow::Result<String> {
    let directory = directory.canonicalize().with_context(|| format!("cannot read {}", directory.display()))?;
    for above in directory.ancestors().skip(1) {
        let Ok(text) = std::fs::read_to_string(above.join("go.mod")) else { continue };
        let module = text.lines().find_map(|line| line.strip_prefix("module ")).map(str::trim);
        let module = module.ok_or_else(|| anyhow!("{} names no module", above.join("go.mod").display()))?;
        let way = directory.strip_prefix(above).context("a directory lies below those above it")?;
        return Ok(format!("{}/{}", module.trim_matches('"'), way.display()));
    }
    Err(anyhow!("there is no go.mod above {}: run it in a Go module (`go mod init NAME`)", directory.display()))
}
