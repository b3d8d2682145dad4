//! `millrace plugin inspect`: what a plugin's file says about itself, and the YAML that goes with it.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::ValueHint;
use serde_json::json;

use super::super::Failure;
use super::load;
use crate::plugin::{AskKind, Inspection, LoadError, World, inspect, spoken};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The plugin: a component, or a core module that carries its component type
    #[arg(value_name = "PLUGIN.wasm", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let bytes = load::read(&arguments.file)?;
    let found = inspect(&bytes).map_err(|error| load::cannot_be_used(&arguments.file, error))?;
    let refusal = found.refusal();
    if arguments.json {
        anstream::println!("{:#}", as_json(&found, refusal.as_ref()));
    } else {
        print(arguments, &found);
    }
    match refusal {
        None => Ok(()),
        Some(_) if arguments.json => Err(Failure::Said(2)),
        Some(error) => {
            Err(Failure::Usage(anyhow!(error).context(format!("{} would not be loaded", arguments.file.display()))))
        }
    }
}

fn as_json(found: &Inspection, refusal: Option<&LoadError>) -> serde_json::Value {
    json!({
        "world": found.world.map(|world| world.to_string()), "interface": found.version, "speaks": spoken(),
        "form": form(found), "size": found.size, "sha256": found.sha256,
        "capabilities": capabilities(found), "wasi": found.asks_of(AskKind::StandIn),
        "foreign": found.asks_of(AskKind::Unknown),
        "imports": found.imports, "exports": found.exports,
        "refused": refusal.map(ToString::to_string),
    })
}

/// By the words that `allow` grants them with.
fn capabilities(found: &Inspection) -> Vec<&str> {
    found.capabilities().map(|(capability, _)| capability.as_str()).collect()
}

fn form(found: &Inspection) -> &'static str {
    if found.core_module { "core module" } else { "component" }
}

fn print(arguments: &Arguments, found: &Inspection) {
    let world = match found.world {
        Some(World::Filter) => "filter: keeps or drops records",
        Some(World::Transform) => "transform: rewrites, drops, splits and routes records",
        None => "none: this is no plugin",
    };
    let interface = found.version.as_ref().map_or("none".to_owned(), |version| format!("millrace:plugin@{version}"));
    let form =
        if found.core_module { "core module with its component type, wrapped when it is loaded" } else { form(found) };
    let capabilities = capabilities(found);
    let foreign = found.asks_of(AskKind::Unknown);
    for (what, text) in [
        ("world", world.to_owned()),
        ("interface", format!("{interface}; this millrace speaks {}", spoken())),
        ("form", form.to_owned()),
        ("size", format!("{} bytes", found.size)),
        ("sha256", found.sha256.to_string()),
        ("asks for", none_or(&[&capabilities[..], &foreign].concat(), "nothing but its records and the log")),
        ("WASI", none_or(&found.asks_of(AskKind::StandIn), "none")),
        ("imports", none_or(&found.imports, "none")),
        ("exports", none_or(&found.exports, "none")),
    ] {
        anstream::println!("{what:<11}{text}");
    }
    let name = arguments.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    anstream::println!("\nplugins:\n  {name}:\n    path: {}\n    sha256: {}", arguments.file.display(), found.sha256);
    if !capabilities.is_empty() {
        anstream::println!("    allow: [{}]", capabilities.join(", "));
    }
}

/// A list with one name a line, under each other.
fn none_or<T: AsRef<str>>(names: &[T], none: &str) -> String {
    let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
    if names.is_empty() { none.to_owned() } else { names.join(&format!("\n{:<11}", "")) }
}
