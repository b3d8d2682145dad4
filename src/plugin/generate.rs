//! Bindings of the interface for the languages whose toolchains have no generator of their own, so that a plugin's author
//! needs no tool but millrace and a compiler.

use wit_bindgen_core::{Files, WorldGenerator};

use super::inspect::World;
use super::interface::{INTERFACE, world as interface_world};

/// A language to write bindings for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindingsLanguage {
    /// C: a header, a source file and an object file that holds the component type.
    C,
    /// Go: packages of which `package` is the import path that they lie below, and `exports` the import path of those that the
    /// plugin itself brings (`export_wit_world`, `export_millrace_plugin_lifecycle`).
    Go {
        /// The import path of the bindings' directory.
        package: String,
        /// The import path of the directory with the packages that implement what is exported.
        exports: String,
    },
}

/// The bindings' files: path below their directory, and content. Go's are formatted where there is a `gofmt`.
///
/// # Errors
/// The generator's message.
pub fn bindings(language: &BindingsLanguage, world: World) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut generator: Box<dyn WorldGenerator> = match language {
        BindingsLanguage::C => wit_bindgen_c::Opts::default().build(),
        BindingsLanguage::Go { package, exports } => wit_bindgen_go::Opts {
            pkg_name: Some(package.clone()),
            export_pkg_name: Some(exports.clone()),
            ..wit_bindgen_go::Opts::default()
        }
        .build(),
    };
    let (resolve, package) = &*INTERFACE;
    let mut resolve = resolve.clone();
    let world = interface_world(&resolve, *package, world);
    let mut files = Files::default();
    generator.generate(&mut resolve, world, &mut files).map_err(|error| format!("{error:#}"))?;
    Ok(files.iter().map(|(path, content)| (path.to_owned(), content.to_vec())).collect())
}
