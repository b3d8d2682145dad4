//! `millrace log-level`: what a running daemon logs.

use serde_json::{Value, json};
use ureq::http::StatusCode;

use super::Failure;
use super::client::AskArguments;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// trace, debug, info, warn or error, or a list such as millrace::kafka=debug,info
    #[arg(value_name = "LEVEL")]
    level: String,
    #[command(flatten)]
    ask: AskArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.ask.daemon.client()?;
    let answer = client.put_json("/api/v1/log", &json!({ "level": arguments.level }))?;
    if answer.status != StatusCode::OK {
        return Err(client.declined(&answer));
    }
    let log: Value = answer.json(&client)?;
    if arguments.ask.json {
        anstream::println!("{log:#}");
    } else {
        let level = log["level"].as_str().unwrap_or(&arguments.level);
        anstream::println!("it logs {level}, until a configuration is applied");
    }
    Ok(())
}
