//! `millrace check`: everything that can be known to be wrong, without running.

use serde_json::json;

use super::{ConfigArgument, Failure, environment, run};
use crate::config;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Print the result as JSON, on stdout.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.config.path()?;
    let checked = config::load(&path, &environment).map_err(Failure::Invalid).and_then(|loaded| {
        let plan =
            run::engine(&loaded).and_then(|engine| run::build(&loaded, &engine)).map_err(|failure| match failure {
                Failure::Invalid(mut problems) => {
                    problems.extend(loaded.warnings.clone());
                    Failure::Invalid(problems)
                }
                other => other,
            })?;
        Ok((loaded, plan))
    });
    match checked {
        Ok((loaded, plan)) => {
            let counts = [
                (loaded.files.len(), "file"),
                (plan.settings.routes.len(), "route"),
                (plan.settings.plugins.len(), "plugin"),
            ];
            if arguments.json {
                let [files, routes, plugins] = counts.map(|(number, _)| number);
                let valid = json!({
                    "valid": true, "files": files, "routes": routes, "plugins": plugins, "problems": loaded.warnings,
                });
                anstream::println!("{valid:#}");
                return Ok(());
            }
            if !loaded.warnings.is_empty() {
                anstream::eprintln!("{}\n", loaded.warnings.render(true));
            }
            anstream::println!(
                "{} is valid: {}",
                path.display(),
                counts.map(|(number, of)| count(number, of)).join(", ")
            );
            Ok(())
        }
        Err(Failure::Invalid(problems)) if arguments.json => {
            anstream::println!("{:#}", json!({ "valid": false, "problems": problems }));
            Err(Failure::Said(super::code_of(&problems)))
        }
        Err(failure) => Err(failure),
    }
}

fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
