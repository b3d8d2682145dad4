//! `millrace plugin bindings`: the interface as code of C or Go, made by wit-bindgen's own generators, so that an author needs
//! no second toolbox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{ValueEnum, ValueHint};
use serde_json::json;
use wit_bindgen_core::wit_parser::{Resolve, SourceMap, UnresolvedPackageGroup, WorldId};
use wit_bindgen_core::{Files, WorldGenerator};

use super::super::Failure;
use super::new::write_files;
use super::templates::{self, Language, ProjectFile};

/// Where a project has its bindings.
const DIRECTORY: &str = "bindings";
/// The package of a Go project that implements what a plugin exports, below the module.
const GO_EXPORTS: &str = "millrace";

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The language
    #[arg(long, value_name = "LANGUAGE", value_enum)]
    lang: Generated,
    /// Where to write them; a file that is there already is replaced
    #[arg(value_name = "DIR", default_value = DIRECTORY, value_hint = ValueHint::DirPath)]
    directory: PathBuf,
    /// The interface's files [default: those that this millrace was made with]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    wit: Option<PathBuf>,
    /// What the plugin is: a filter cannot emit
    #[arg(long, value_name = "WORLD", default_value = "transform", value_parser = ["transform", "filter"])]
    world: String,
    /// Go: the import path of DIR, such as example.org/my-plugin/bindings [default: by the go.mod beside DIR]
    #[arg(long, value_name = "PATH")]
    package: Option<String>,
    /// Go: the import path below which lie the packages export_… that implement the exports [default: by the go.mod
    /// beside DIR, the package millrace of its module]
    #[arg(long, value_name = "PATH")]
    export_package: Option<String>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Generated {
    C,
    Go,
}

/// How Go finds the packages.
struct GoPackages {
    bindings: String,
    exports: String,
}

impl GoPackages {
    fn of_module(module: &str, directory: &str) -> Self {
        Self { bindings: format!("{module}/{directory}"), exports: format!("{module}/{GO_EXPORTS}") }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { directory, world, json, .. } = arguments;
    let files = match &arguments.wit {
        None => templates::wit().map(|(name, content)| (name.to_owned(), content.to_vec())).collect(),
        Some(wit) => read_wit(wit).map_err(Failure::Environment)?,
    };
    let generator = match arguments.lang {
        Generated::C => c(),
        Generated::Go => go(&go_packages(arguments)?),
    };
    let written = generate(generator, &files, world).map_err(Failure::Usage)?;
    write_files(directory, &written).map_err(Failure::Environment)?;
    let paths: Vec<_> = written.iter().map(|(path, _)| directory.join(path)).collect();
    if *json {
        anstream::println!("{:#}", json!({ "world": world, "files": paths }));
    } else {
        paths.iter().for_each(|path| anstream::println!("{}", path.display()));
    }
    Ok(())
}

/// The bindings of a new project, with paths below it.
pub(super) fn of_project(language: Language, name: &str) -> anyhow::Result<Vec<ProjectFile>> {
    let generator = match language {
        Language::C => c(),
        Language::Go => go(&GoPackages::of_module(name, DIRECTORY)),
        Language::Rust | Language::Javascript | Language::Python => return Ok(Vec::new()),
    };
    let wit: Vec<_> = templates::wit().map(|(name, content)| (name.to_owned(), content.to_vec())).collect();
    let files = generate(generator, &wit, "transform")?;
    Ok(files.into_iter().map(|(path, content)| (format!("{DIRECTORY}/{path}"), content)).collect())
}

fn c() -> Box<dyn WorldGenerator> {
    wit_bindgen_c::Opts::default().build()
}

fn go(packages: &GoPackages) -> Box<dyn WorldGenerator> {
    let (pkg_name, export_pkg_name) = (Some(packages.bindings.clone()), Some(packages.exports.clone()));
    wit_bindgen_go::Opts { pkg_name, export_pkg_name, ..wit_bindgen_go::Opts::default() }.build()
}

fn go_packages(arguments: &Arguments) -> Result<GoPackages, Failure> {
    let Arguments { directory, package, export_package, .. } = arguments;
    if let (Some(bindings), Some(exports)) = (package, export_package) {
        return Ok(GoPackages { bindings: bindings.clone(), exports: exports.clone() });
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let module = go_module(&parent.join("go.mod"));
    let last = directory.file_name().map(|name| name.to_string_lossy().into_owned());
    let (Some(module), Some(last)) = (module, last) else {
        return Err(Failure::Usage(anyhow!(
            "there is no go.mod that names a module beside {}: name --package and --export-package",
            directory.display()
        )));
    };
    let GoPackages { bindings, exports } = GoPackages::of_module(&module, &last);
    Ok(GoPackages { bindings: package.clone().unwrap_or(bindings), exports: export_package.clone().unwrap_or(exports) })
}

fn go_module(manifest: &Path) -> Option<String> {
    let manifest = fs::read_to_string(manifest).ok()?;
    manifest.lines().find_map(|line| Some(line.strip_prefix("module ")?.trim().trim_matches('"').to_owned()))
}

fn read_wit(directory: &Path) -> anyhow::Result<Vec<ProjectFile>> {
    let unreadable = || format!("{} cannot be read", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "wit") {
            let content = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            files.push((path.display().to_string(), content));
        }
    }
    anyhow::ensure!(!files.is_empty(), "{} holds no .wit file", directory.display());
    files.sort_unstable();
    Ok(files)
}

fn generate(
    mut generator: Box<dyn WorldGenerator>,
    wit: &[ProjectFile],
    world: &str,
) -> anyhow::Result<Vec<ProjectFile>> {
    let (mut resolve, world) = resolve(wit, world)?;
    let mut files = Files::default();
    generator.generate(&mut resolve, world, &mut files)?;
    Ok(files.iter().map(|(path, content)| (path.to_owned(), content.to_vec())).collect())
}

fn resolve(wit: &[ProjectFile], world: &str) -> anyhow::Result<(Resolve, WorldId)> {
    let mut map = SourceMap::new();
    for (path, content) in wit {
        let text = str::from_utf8(content).with_context(|| format!("{path} is not text"))?;
        map.push_str(path, text);
    }
    let group: UnresolvedPackageGroup = map.parse().map_err(|(map, error)| anyhow!(error.render(&map)))?;
    let mut resolve = Resolve::default();
    let package = resolve.push_group(group)?;
    let world = resolve.select_world(&[package], Some(world))?;
    Ok((resolve, world))
}
