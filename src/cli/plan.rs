//! `millrace plan`: what a reload would do to a running daemon, before it is done.

use anstyle::{AnsiColor, Style};
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::{ConfigArgument, Failure, environment, run};
use crate::config;
use crate::control::change::{Action, Changes, KeyChange};
use crate::control::facts::Facts;
use crate::control::hazards::{Hazard, HazardCode, hazards, history};
use crate::control::plan::Plan;
use crate::kafka::{Cluster, Topics};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The daemon's admin endpoint, such as http://127.0.0.1:9400 [default: `admin.listen` of the configuration]
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// Plan as if a route may be renamed, though its new group reads all history again
    #[arg(long)]
    accept_new_group: bool,
    /// Print the plan as JSON, on stdout
    #[arg(long)]
    json: bool,
}

/// What is asked of the daemon's status.
#[derive(Deserialize)]
struct Daemon {
    version: String,
    generation: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let loaded = config::load(&arguments.config.path()?, &environment).map_err(Failure::Invalid)?;
    let plan = run::build(&loaded, &run::engine(&loaded)?)?;
    let client = Client::new(arguments.against.as_deref(), Some(&loaded))?;
    let daemon: Daemon = client.get("/api/v1/status")?;
    let before: Facts = client.get("/api/v1/config")?;
    let after = plan.facts();
    let changes = Changes::between(&before, &after);
    let found = look_ahead(&before, &plan, &changes, arguments.accept_new_group);
    let secrets = secrets_not_compared(&before, &after);
    let refused = found.iter().any(|hazard| hazard.refused);
    if arguments.json {
        let Daemon { version, generation } = &daemon;
        anstream::println!(
            "{:#}",
            json!({
                "against": { "url": client.url(), "version": version, "generation": generation },
                "changes": changes, "hazards": found, "secrets_not_compared": secrets, "refused": refused,
            })
        );
    } else {
        print(client.url(), &daemon, &changes, &found, &secrets);
    }
    match found.iter().find(|hazard| hazard.refused) {
        None => Ok(()),
        Some(Hazard { code: HazardCode::NewGroup, .. }) => Err(Failure::Said(2)),
        Some(_) => Err(Failure::Said(3)),
    }
}

/// What is hazardous about it; with what only the cluster knows, where it answers.
fn look_ahead(before: &Facts, plan: &Plan, changes: &Changes, accept_new_group: bool) -> Vec<Hazard> {
    let asked = ask(plan);
    let topics = asked.as_ref().ok().map(|(_, topics)| topics);
    let mut found = hazards(before, plan, changes, topics, accept_new_group);
    match &asked {
        Ok((cluster, topics)) => found.extend(history(cluster, plan, before, changes, topics)),
        Err(why) => found.push(Hazard {
            code: HazardCode::ClusterUnreachable,
            route: None,
            message: format!("the cluster was not asked for its topics and groups: {why}"),
            refused: changes.restarts_all(),
        }),
    }
    found
}

fn ask(plan: &Plan) -> Result<(Cluster, Topics), String> {
    let cluster = Cluster::connect(&plan.settings.kafka)?;
    let topics = cluster.topics().map_err(|trouble| trouble.message)?;
    Ok((cluster, Topics::clone(&topics)))
}

/// Keys whose values are secrets on both sides: whether they differ is for the daemon to find out.
fn secrets_not_compared(before: &Facts, after: &Facts) -> Vec<String> {
    let mut found: Vec<String> = before
        .process
        .iter()
        .filter(|(key, fact)| fact.is_opaque() && after.process.contains_key(*key))
        .map(|(key, _)| key.clone())
        .collect();
    for (name, keys) in &before.routes {
        let Some(now) = after.routes.get(name) else { continue };
        let secrets = keys.iter().filter(|(key, fact)| fact.is_opaque() && now.contains_key(*key));
        found.extend(secrets.map(|(key, _)| format!("routes.{name}.{key}")));
    }
    found
}

const fn mark(action: Action) -> (&'static str, Style) {
    match action {
        Action::Added => ("+", AnsiColor::Green.on_default()),
        Action::Removed => ("-", AnsiColor::Red.on_default()),
        Action::Restarted => ("!", AnsiColor::Yellow.on_default()),
        Action::Swapped => ("~", AnsiColor::Cyan.on_default()),
        Action::Unchanged => ("=", Style::new()),
    }
}

const fn meaning(action: Action) -> &'static str {
    match action {
        Action::Added => "starts",
        Action::Removed => "finishes what it holds, and leaves its group",
        Action::Restarted => "finishes what it holds, and starts anew",
        Action::Swapped => "takes it up in place, between two transactions",
        Action::Unchanged => "stays as it is",
    }
}

fn print(url: &str, daemon: &Daemon, changes: &Changes, hazards: &[Hazard], secrets: &[String]) {
    anstream::println!("against {url}: millrace {}, generation {}\n", daemon.version, daemon.generation);
    let widest = changes.routes.keys().map(|name| name.as_str().chars().count()).max().unwrap_or(0);
    for action in Action::ALL.into_iter().filter(|action| *action != Action::Unchanged) {
        for (name, change) in changes.routes(action) {
            let (mark, style) = mark(action);
            anstream::println!("  {style}{mark} {name:<widest$}{style:#}  {}", meaning(action));
            let shown = change.keys();
            print_keys(change.why.iter().filter(|why| shown.contains(&why.key.as_str())), "      ");
        }
    }
    if !changes.process.is_empty() {
        let all = if changes.restarts_all() { ": all routes restart, one after the other" } else { "" };
        anstream::println!("  process{all}");
        print_keys(changes.process.iter(), "      ");
    }
    let counts = Action::ALL.map(|action| (changes.routes(action).count(), action.as_str()));
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(n, of)| format!("{n} {of}")).collect();
    anstream::println!("  {}", if counts.is_empty() { "no routes".to_owned() } else { counts.join(", ") });
    if !secrets.is_empty() {
        anstream::println!("\n  not compared, since they are secrets: {}", secrets.join(", "));
    }
    if hazards.is_empty() {
        return;
    }
    anstream::println!();
    let (error, warning) = (AnsiColor::Red.on_default().bold(), AnsiColor::Yellow.on_default().bold());
    for hazard in hazards {
        let (style, word) = if hazard.refused { (error, "refused") } else { (warning, "hazard") };
        anstream::println!("{style}{word}{style:#}: {hazard}");
    }
    if hazards.iter().any(|hazard| hazard.refused) {
        anstream::println!("\na reload would be refused, and what runs would go on as it is");
    }
}

fn print_keys<'k>(keys: impl Iterator<Item = &'k KeyChange>, indent: &str) {
    for change in keys {
        anstream::println!("{indent}{change}");
    }
}
