//! `millrace tap`: records of a live route as they pass.

use std::io::{BufRead as _, BufReader, Write as _};

use serde_json::Value;

use super::Failure;
use super::client::DaemonArguments;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The route
    #[arg(value_name = "ROUTE")]
    route: String,
    #[command(flatten)]
    daemon: DaemonArguments,
    /// Only records at this stage: as they come, behind each plugin, as they leave, or at fault
    #[arg(long, value_name = "STAGE", value_parser = ["source", "step", "output", "error"])]
    stage: Option<String>,
    /// Only records with this key
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// Only records with this header
    #[arg(long, value_name = "NAME[=VALUE]")]
    header: Option<String>,
    /// One source record in N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,
    /// End after N records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print a JSON object a record
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.daemon.client()?;
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    // A stream ends with its connection, which the daemon gives a minute; the next goes on.
    while left > 0 {
        let path = path(arguments, left);
        let mut lines = BufReader::new(client.stream(&path)?).lines();
        let mut event = String::new();
        while let Some(Ok(line)) = lines.next() {
            if let Some(name) = line.strip_prefix("event: ") {
                event = name.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                if event == "missed" {
                    anstream::eprintln!(
                        "{data} records have passed unseen so far: they come faster than they are read"
                    );
                } else if !show(arguments.json, data) {
                    return Ok(());
                } else {
                    left = left.saturating_sub(1);
                }
            }
        }
    }
    Ok(())
}

fn path(arguments: &Arguments, left: u64) -> String {
    let mut query: Vec<(&str, String)> = Vec::new();
    let texts = [("stage", &arguments.stage), ("key", &arguments.key), ("header", &arguments.header)];
    query.extend(texts.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    query.extend(arguments.sample.map(|sample| ("sample", sample.to_string())));
    query.extend(arguments.limit.map(|_| ("limit", left.to_string())));
    let query: Vec<_> = query.into_iter().map(|(name, value)| format!("{name}={}", escaped(&value))).collect();
    format!("/api/v1/routes/{}/tap?{}", escaped(&arguments.route), query.join("&"))
}

/// Percent-encoding of all but what is never special (RFC 3986, section 2.3).
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// False where nobody reads on.
fn show(json: bool, data: &str) -> bool {
    let mut out = anstream::stdout();
    if json {
        return writeln!(out, "{data}").is_ok();
    }
    let Ok(seen) = serde_json::from_str::<Value>(data) else { return true };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (record, fault) = (&seen["record"], &seen["fault"]);
    let plugin = seen["plugin"].as_str().map(|plugin| format!(" {plugin}")).unwrap_or_default();
    let at = format!("{}/{}@{}", text(&seen["topic"]), seen["partition"], seen["offset"]);
    let became = match (seen["stage"].as_str(), fault.is_object(), record.is_null()) {
        (_, true, _) => format!("  {}: {}", text(&fault["code"]), text(&fault["message"])),
        (_, _, true) => "  dropped".to_owned(),
        (Some("output"), ..) => {
            format!("  → {}", seen["destination"].as_str().unwrap_or("the default destinations"))
        }
        _ => String::new(),
    };
    let shown = if record.is_null() {
        String::new()
    } else {
        format!("  {} = {}", text(&record["key"]), text(&record["value"]))
    };
    writeln!(out, "{:<7}{plugin} {at}{became}{shown}", text(&seen["stage"])).is_ok()
}
