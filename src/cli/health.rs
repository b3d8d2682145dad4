//! `millrace health`: whether a daemon lives, told by the exit code. For a container's health check, where there is no shell
//! and no curl.

use std::time::Duration;

use ureq::http::StatusCode;

use super::Failure;
use super::client::DaemonArguments;

/// Less than who checks waits for us: 5 s in the Containerfile.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: DaemonArguments,
    /// Ask whether a configuration is applied and the process can serve, not only whether it turns
    #[arg(long)]
    ready: bool,
    /// Ask whether this route is running or paused, too
    #[arg(long, value_name = "NAME", requires = "ready")]
    route: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.daemon.client()?.within(ANSWER_WITHIN);
    let answer = client.look(&path(arguments)).map_err(|failure| match failure {
        // No answer is what is asked about, not something that is missing to ask.
        Failure::Environment(error) => Failure::Running(error),
        other => other,
    })?;
    if answer.status == StatusCode::OK {
        return Ok(());
    }
    let detail: serde_json::Value = answer.json(&client).unwrap_or_default();
    let why = detail["reason"].as_str().or(detail["error"]["message"].as_str()).unwrap_or("it does not say why");
    Err(Failure::Running(anyhow::anyhow!("{} answers {}: {why}", client.url(), answer.status)))
}

fn path(arguments: &Arguments) -> String {
    match (arguments.ready, &arguments.route) {
        (false, _) => "/livez".to_owned(),
        (true, None) => "/readyz".to_owned(),
        (true, Some(route)) => format!("/readyz?route={route}"),
    }
}
