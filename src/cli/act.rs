//! `millrace pause`, `resume`, `restart`, `skip`: what a running daemon does with one of its routes.

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::StatusCode;

use super::client::{Answer, AskArguments, Client};
use super::{Failure, environment};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The route
    #[arg(value_name = "ROUTE")]
    route: String,
    #[command(flatten)]
    ask: AskArguments,
}

#[derive(clap::Args)]
pub(super) struct SkipArguments {
    #[command(flatten)]
    of: Arguments,
    /// The record: it must be the one that its partition stands before
    #[arg(long, value_name = "TOPIC/PARTITION/OFFSET", value_parser = place)]
    at: Place,
    /// Keep the record in this topic, with the headers of a dead letter
    #[arg(long, value_name = "TOPIC")]
    dead_letter: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct SeekArguments {
    #[command(flatten)]
    of: Arguments,
    /// Where to: an offset, earliest, latest, or a time such as 2026-11-27T03:10:00Z
    #[arg(long, value_name = "OFFSET|TIME")]
    to: String,
    /// Only say what it would mean
    #[arg(long)]
    dry_run: bool,
}

/// Where a record lies.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    topic: String,
    partition: i32,
    offset: i64,
}

fn place(text: &str) -> Result<Place, String> {
    let mut parts = text.rsplitn(3, '/');
    let (offset, partition, topic) = (parts.next(), parts.next(), parts.next());
    let place = || {
        Some(Place {
            topic: topic.filter(|topic| !topic.is_empty())?.to_owned(),
            partition: partition?.parse().ok().filter(|partition| *partition >= 0)?,
            offset: offset?.parse().ok().filter(|offset| *offset >= 0)?,
        })
    };
    place().ok_or_else(|| "write TOPIC/PARTITION/OFFSET, such as orders/3/1042".to_owned())
}

/// `word`: what the path says, and what people do.
pub(super) fn run(arguments: &Arguments, word: &str) -> Result<(), Failure> {
    let client = arguments.ask.daemon.client()?;
    let answer = client.post(&path(&arguments.route, word))?;
    let route: Value = done(&client, &answer, &[StatusCode::OK, StatusCode::ACCEPTED])?;
    if arguments.ask.json {
        anstream::println!("{route:#}");
    } else {
        let reason = route["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = route["state"].as_str().unwrap_or("in a state that this version does not know");
        let yet =
            if answer.status == StatusCode::ACCEPTED { format!("told to {word}; it still ") } else { String::new() };
        anstream::println!("{}: {yet}is {state}{reason}", arguments.route);
    }
    Ok(())
}

/// Passes a record by.
pub(super) fn skip(arguments: &SkipArguments) -> Result<(), Failure> {
    let SkipArguments { of, at: Place { topic, partition, offset }, dead_letter } = arguments;
    let client = of.ask.daemon.client()?;
    let body = json!({
        "topic": topic, "partition": partition, "offset": offset, "dead_letter": dead_letter, "by": who(),
    });
    let answer = client.post_json(&path(&of.route, "skip"), &body)?;
    let skipped: Value = done(&client, &answer, &[StatusCode::OK])?;
    if of.ask.json {
        anstream::println!("{skipped:#}");
    } else {
        let kept = dead_letter.as_ref().map(|topic| format!(", and kept in {topic}")).unwrap_or_default();
        anstream::println!(
            "{}: {topic}/{partition} goes on behind offset {offset}, which is passed by{kept}",
            of.route
        );
    }
    Ok(())
}

#[derive(Deserialize)]
struct Sought {
    topic: String,
    partition: i32,
    from: Option<i64>,
    to: i64,
    low: i64,
}

/// Moves the position of a paused route.
pub(super) fn seek(arguments: &SeekArguments) -> Result<(), Failure> {
    let SeekArguments { of, to, dry_run } = arguments;
    let client = of.ask.daemon.client()?;
    let to = to.parse::<i64>().map_or_else(|_| json!(to), |offset| json!(offset));
    let ask = |dry_run: bool| -> Result<Value, Failure> {
        let body = json!({ "to": to, "dry_run": dry_run, "by": who() });
        let answer = client.post_json(&path(&of.route, "seek"), &body)?;
        done(&client, &answer, &[StatusCode::OK])
    };
    let answer = ask(*dry_run)?;
    if of.ask.json {
        anstream::println!("{answer:#}");
        return Ok(());
    }
    let sought: Vec<Sought> = client.understood(answer["partitions"].clone())?;
    for moved in &sought {
        anstream::println!("{}", meaning(moved));
    }
    anstream::println!(
        "{}",
        if *dry_run { "nothing is moved (--dry-run)" } else { "moved; `millrace resume` lets it go on" }
    );
    Ok(())
}

/// What it means for a partition, for people.
fn meaning(Sought { topic, partition, from, to, low }: &Sought) -> String {
    let from = from.unwrap_or(*low);
    let what = match from - to {
        0 => "stays".to_owned(),
        again @ 1.. => {
            format!("offsets {to} to {} are read AGAIN ({again}), and what they make is written again", from - 1)
        }
        _ => format!("offsets {from} to {} are PASSED BY ({})", to - 1, to - from),
    };
    format!("{topic}/{partition}: {from} → {to}: {what}")
}

fn path(route: &str, word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let route: String = route.chars().map(|c| if is_plain(c) { c } else { '?' }).collect();
    format!("/api/v1/routes/{}/{word}", route.replace('?', "%3F"))
}

/// What the daemon answered, if it did what it was asked.
fn done(client: &Client, answer: &Answer, good: &[StatusCode]) -> Result<Value, Failure> {
    if good.contains(&answer.status) {
        return answer.json(client);
    }
    Err(client.declined(answer))
}

/// For the daemon's log: who sits here.
fn who() -> Option<String> {
    let user = environment("SUDO_USER").or_else(|| environment("USER"))?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(format!("{user}@{}", host.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_named_by_topic_partition_and_offset() {
        let orders = Place { topic: "orders".into(), partition: 3, offset: 1042 };
        assert_eq!(place("orders/3/1042"), Ok(orders));
        for wrong in ["orders/3", "orders", "/3/4", "orders/x/4", "orders/3/-4", "orders/-1/4", ""] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_seek_says_what_is_read_again_and_what_is_passed_by() {
        let moved = |from, to| meaning(&Sought { topic: "orders".into(), partition: 3, from, to, low: 5 });
        assert_eq!(moved(Some(9), 9), "orders/3: 9 → 9: stays");
        assert_eq!(
            moved(Some(9), 7),
            "orders/3: 9 → 7: offsets 7 to 8 are read AGAIN (2), and what they make is written again"
        );
        assert_eq!(moved(None, 8), "orders/3: 5 → 8: offsets 5 to 7 are PASSED BY (3)");
    }

    #[test]
    fn a_route_cannot_lead_elsewhere() {
        assert_eq!(path("paid-orders", "pause"), "/api/v1/routes/paid-orders/pause");
        assert_eq!(path("../reload?x", "pause"), "/api/v1/routes/..%3Freload%3Fx/pause");
    }
}
