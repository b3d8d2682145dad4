//! `millrace check`: everything that can be known to be wrong, without running.

use super::{ConfigArgument, Failure, environment, run};
use crate::config::{self, Problems};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Print the result as JSON, on stdout.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.config.path();
    let checked = config::load(&path, &environment).and_then(|loaded| {
        let mut problems = Problems::new();
        let summary = match run::build(&loaded) {
            Ok(plan) => {
                let (routes, plugins) = (plan.settings.routes.len(), plan.settings.plugins.len());
                Some((loaded.files.len(), routes, plugins))
            }
            Err(Failure::Invalid(found)) => {
                problems.extend(found);
                None
            }
            Err(_) => None,
        };
        problems.extend(loaded.warnings);
        match summary {
            Some(summary) => Ok((problems, summary)),
            None => Err(problems),
        }
    });
    match checked {
        Ok((warnings, (files, routes, plugins))) if arguments.json => {
            let value = serde_json::json!({
                "valid": true, "files": files, "routes": routes, "plugins": plugins, "problems": warnings,
            });
            anstream::println!("{value:#}");
            Ok(())
        }
        Ok((warnings, (files, routes, plugins))) => {
            if !warnings.is_empty() {
                anstream::eprintln!("{}", warnings.render(true));
            }
            anstream::println!(
                "{} is valid: {}, {}, {}",
                path.display(),
                count(files, "file"),
                count(routes, "route"),
                count(plugins, "plugin")
            );
            Ok(())
        }
        Err(problems) if arguments.json => {
            anstream::println!("{:#}", serde_json::json!({ "valid": false, "problems": problems }));
            Err(Failure::Said(if problems.only_unreadable() { 3 } else { 2 }))
        }
        Err(problems) => Err(Failure::Invalid(problems)),
    }
}

fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
