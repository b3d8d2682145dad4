//! `millrace check`: everything that can be known to be wrong, without running.

mod effective;

use serde_json::json;

use super::{ConfigArgument, Failure, code_of, environment, run};
use crate::config;
use crate::control::{acls, connect};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Ask the cluster too: that it answers, topics, partitions, durability, permissions, transactions. Changes no topic and no group
    #[arg(long)]
    connect: bool,
    /// Print the kafka-acls.sh lines that grant what the configuration needs, and nothing else
    #[arg(long, conflicts_with_all = ["print", "json", "connect"])]
    acls: bool,
    /// Show what applies after merge, defaults and variables, each value with where it came from
    #[arg(long)]
    print: bool,
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
    let checked = match checked {
        Ok((_, plan)) if arguments.acls => {
            acls::acls(&plan).iter().for_each(|line| anstream::println!("{line}"));
            return Ok(());
        }
        Ok((mut loaded, plan)) if arguments.connect => {
            loaded.warnings.extend(connect::connect(&plan, &loaded.places));
            loaded.warnings.sort();
            if loaded.warnings.has_errors() { Err(Failure::Invalid(loaded.warnings)) } else { Ok((loaded, plan)) }
        }
        checked => checked,
    };
    match checked {
        Ok((loaded, plan)) => {
            let counts = [
                (loaded.files.len(), "file"),
                (plan.settings.routes.len(), "route"),
                (plan.settings.plugins.len(), "plugin"),
            ];
            if arguments.json {
                let [files, routes, plugins] = counts.map(|(number, _)| number);
                let mut valid = json!({
                    "valid": true, "files": files, "routes": routes, "plugins": plugins, "problems": loaded.warnings,
                });
                if arguments.print {
                    valid["effective"] = effective::as_json(&loaded, &plan);
                }
                anstream::println!("{valid:#}");
                return Ok(());
            }
            if !loaded.warnings.is_empty() {
                anstream::eprintln!("{}\n", loaded.warnings.render(true));
            }
            if arguments.print {
                effective::print(&loaded, &plan);
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
            Err(Failure::Said(code_of(&problems)))
        }
        Err(failure) => Err(failure),
    }
}

fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
