//! `millrace reload`: a running daemon reads its configuration again.

use serde::Deserialize;
use serde_json::Value;
use ureq::http::StatusCode;

use super::Failure;
use super::client::AskArguments;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    ask: AskArguments,
    /// Let a route be renamed, though its new group reads all history again
    #[arg(long)]
    accept_new_group: bool,
}

#[derive(Deserialize)]
struct Told {
    outcome: String,
    generation: u64,
    message: String,
    hazards: Vec<crate::control::hazards::Hazard>,
    problems: Vec<Value>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.ask.daemon.client()?;
    let query = if arguments.accept_new_group { "?accept_new_group=true" } else { "" };
    let answer = client.post(&format!("/api/v1/reload{query}"))?;
    if !matches!(answer.status, StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY) {
        return Err(client.refused(&answer));
    }
    if arguments.ask.json {
        anstream::println!("{:#}", answer.json::<Value>(&client)?);
    } else {
        print(&answer.json(&client)?);
    }
    // (told above: the daemon goes on as it was)
    if answer.status == StatusCode::OK { Ok(()) } else { Err(Failure::Said(2)) }
}

fn print(told: &Told) {
    for hazard in &told.hazards {
        anstream::eprintln!("{}: {hazard}", if hazard.refused { "error" } else { "warning" });
    }
    for problem in &told.problems {
        let text = |key: &str| problem[key].as_str().unwrap_or_default();
        let place = match (problem["file"].as_str(), &problem["line"], &problem["column"]) {
            (Some(file), line, column) => format!("{file}:{line}:{column}: "),
            (None, ..) => String::new(),
        };
        anstream::eprintln!("{}: {place}{}", text("severity"), text("message"));
    }
    let Told { outcome, generation, message, .. } = told;
    if outcome != "rejected" {
        return anstream::println!("generation {generation}: {message}");
    }
    // (problems and hazards have been told one by one)
    let told_above = told.problems.iter().any(|problem| problem["severity"] == "error")
        || told.hazards.iter().any(|hazard| hazard.refused);
    let why = if told_above { String::new() } else { format!(": {message}") };
    anstream::eprintln!("millrace: refused, and generation {generation} goes on as it was{why}");
}
