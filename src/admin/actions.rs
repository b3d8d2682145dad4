//! What changes a route, or the log, while it runs: `POST` and `PUT`. Each answers once it is done, or says that it is still
//! under way.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::pages::{Context, error, json, no_such_route};
use crate::control::status::{RouteState, RouteStatus};
use crate::control::supervisor::{Act, Refusal};
use crate::model::{Offset, RouteName, TopicName, TopicPartition};
use crate::pipeline::seek::{Seek, SeekTo, Sought};
use crate::pipeline::skip::Skip;

/// How long who asks waits until a route has done what it was told: a transaction may be under way.
const DONE_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) async fn pause(State(context): State<Context>, Path(name): Path<String>) -> Response {
    told(&context, &name, Act::Pause, "paused", |state| state == RouteState::Paused).await
}

pub(super) async fn resume(State(context): State<Context>, Path(name): Path<String>) -> Response {
    told(&context, &name, Act::Resume, "resumed", |state| state != RouteState::Paused).await
}

pub(super) async fn restart(State(context): State<Context>, Path(name): Path<String>) -> Response {
    told(&context, &name, Act::Restart, "restarted", |_| true).await
}

/// Tells a route, waits until it is so, and answers with its status.
async fn told(
    context: &Context,
    name: &str,
    act: Act,
    word: &'static str,
    is_done: impl Fn(RouteState) -> bool,
) -> Response {
    let Ok(route) = RouteName::new(name) else { return no_such_route(name) };
    if let Err(refusal) = context.sources.supervision.act(&route, act).await {
        return refused(name, &refusal);
    }
    tracing::info!(%route, "{word}, as the admin endpoint was asked");
    let until = Instant::now() + DONE_WITHIN;
    loop {
        let Some(status) = context.sources.board.route_snapshot(name) else { return no_such_route(name) };
        if is_done(status.state) {
            return json::<RouteStatus>(StatusCode::OK, &status);
        }
        if Instant::now() >= until {
            return json::<RouteStatus>(StatusCode::ACCEPTED, &status);
        }
        sleep(LOOK_EVERY).await;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SkipBody {
    topic: String,
    partition: i32,
    offset: Offset,
    dead_letter: Option<String>,
    /// Who asks, for the log.
    by: Option<String>,
}

#[derive(Serialize)]
struct Skipped {
    topic: TopicName,
    partition: i32,
    offset: Offset,
    dead_letter: Option<TopicName>,
    by: String,
}

/// Passes one record by, in a transaction of its own.
pub(super) async fn skip(State(context): State<Context>, Path(name): Path<String>, body: Bytes) -> Response {
    let Ok(route) = RouteName::new(&name) else { return no_such_route(&name) };
    let body: SkipBody = match read(
        &body,
        "{\"topic\": …, \"partition\": …, \"offset\": …}, with \"dead_letter\" and \"by\" if need be",
    ) {
        Ok(body) => body,
        Err(problem) => return bad_body(&problem),
    };
    let topic = |name: &str| TopicName::new(name).map_err(|problem| problem.to_string());
    let (at, dead_letter) = match (topic(&body.topic), body.dead_letter.as_deref().map(topic).transpose()) {
        (Ok(topic), Ok(dead_letter)) => (TopicPartition { topic, partition: body.partition }, dead_letter),
        (Err(problem), _) | (_, Err(problem)) => return bad_body(&problem),
    };
    let by = asker(body.by);
    let (answer, answered) = channel();
    let (offset, act) = (
        body.offset,
        Skip { at: at.clone(), offset: body.offset, dead_letter: dead_letter.clone(), by: by.clone(), answer },
    );
    if let Err(refusal) = context.sources.supervision.act(&route, Act::Skip(act)).await {
        return refused(&name, &refusal);
    }
    let waited = tokio::task::spawn_blocking(move || answered.recv_timeout(DONE_WITHIN)).await;
    match waited {
        Ok(Ok(Ok(()))) => {
            let kept = dead_letter.as_ref().map(TopicName::as_str);
            tracing::warn!(%route, topic = %at.topic, partition = at.partition, offset, by, dead_letter = kept, "a record is passed by, as asked");
            json(StatusCode::OK, &Skipped { topic: at.topic, partition: at.partition, offset, dead_letter, by })
        }
        Ok(Ok(Err(why))) => error(StatusCode::CONFLICT, "not_skipped", &format!("nothing is passed by: {why}")),
        Ok(Err(RecvTimeoutError::Timeout)) => error(
            StatusCode::ACCEPTED,
            "under_way",
            "it is not committed yet; the route's status says what it waits for",
        ),
        Ok(Err(RecvTimeoutError::Disconnected)) | Err(_) => error(
            StatusCode::CONFLICT,
            "not_owned",
            &format!(
                "{at} is not owned by this process now: nothing is passed by; ask the one that owns it, or again later"
            ),
        ),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeekBody {
    to: To,
    #[serde(default)]
    dry_run: bool,
    /// Who asks, for the log.
    by: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum To {
    Offset(Offset),
    Word(String),
}

impl To {
    fn read(&self) -> Result<SeekTo, String> {
        match self {
            Self::Offset(offset) if *offset >= 0 => Ok(SeekTo::Offset(*offset)),
            Self::Word(word) if word == "earliest" => Ok(SeekTo::Earliest),
            Self::Word(word) if word == "latest" => Ok(SeekTo::Latest),
            Self::Word(word) => match word.parse::<jiff::Timestamp>() {
                Ok(time) => Ok(SeekTo::Time(time.as_millisecond())),
                Err(_) => Err(format!(
                    "{word:?} is neither earliest, latest, an offset nor a time such as 2026-11-27T03:10:00Z"
                )),
            },
            Self::Offset(offset) => Err(format!("there is no offset {offset}")),
        }
    }
}

#[derive(Serialize)]
struct SeekAnswer {
    dry_run: bool,
    partitions: Vec<SoughtPartition>,
}

#[derive(Serialize)]
struct SoughtPartition {
    topic: TopicName,
    partition: i32,
    from: Option<Offset>,
    to: Offset,
    low: Offset,
    high: Offset,
}

/// Moves the position of a paused route in the partitions that are owned here.
pub(super) async fn seek(State(context): State<Context>, Path(name): Path<String>, body: Bytes) -> Response {
    let Ok(route) = RouteName::new(&name) else { return no_such_route(&name) };
    let SeekBody { to, dry_run, by } =
        match read(&body, "{\"to\": OFFSET, \"earliest\", \"latest\" or a time}, with \"dry_run\" and \"by\"") {
            Ok(body) => body,
            Err(problem) => return bad_body(&problem),
        };
    let to = match to.read() {
        Ok(to) => to,
        Err(problem) => return bad_body(&problem),
    };
    let (answer, answered) = channel();
    if let Err(refusal) = context.sources.supervision.act(&route, Act::Seek(Seek { to, dry_run, answer })).await {
        return refused(&name, &refusal);
    }
    let all = tokio::task::spawn_blocking(move || collect(&answered)).await;
    let sought = match all.unwrap_or_else(|_| Err("nobody answers".to_owned())) {
        Ok(sought) if sought.is_empty() => {
            return error(
                StatusCode::CONFLICT,
                "not_owned",
                "no partition of the route is owned by this process now: nothing is moved",
            );
        }
        Ok(sought) => sought,
        Err(why) => return error(StatusCode::CONFLICT, "not_moved", &why),
    };
    if !dry_run {
        let by = asker(by);
        for Sought { partition, from, to, .. } in &sought {
            tracing::warn!(%route, topic = %partition.topic, partition = partition.partition, from, to, by, "the position is moved, as asked");
        }
    }
    let told = |Sought { partition, from, to, low, high }| SoughtPartition {
        topic: partition.topic,
        partition: partition.partition,
        from,
        to,
        low,
        high,
    };
    json(StatusCode::OK, &SeekAnswer { dry_run, partitions: sought.into_iter().map(told).collect() })
}

/// What all workers say: until the last has answered, or has dropped the order because it owns nothing.
fn collect(answered: &Receiver<Result<Vec<Sought>, String>>) -> Result<Vec<Sought>, String> {
    let until = std::time::Instant::now() + DONE_WITHIN;
    let mut all = Vec::new();
    loop {
        match answered.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
            Ok(sought) => all.extend(sought?),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                return Err("not all workers have answered in time: look at the log for what was moved".to_owned());
            }
        }
    }
    all.sort_by(|a, b| a.partition.cmp(&b.partition));
    Ok(all)
}

fn asker(by: Option<String>) -> String {
    let by = by.filter(|by| !by.trim().is_empty()).unwrap_or_else(|| "somebody at the admin endpoint".to_owned());
    by.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogBody {
    level: String,
}

#[derive(Serialize)]
struct LogState {
    level: String,
}

pub(super) async fn log(State(context): State<Context>) -> Response {
    json(StatusCode::OK, &LogState { level: context.sources.log.directives() })
}

/// Changes what is logged, until a configuration is applied.
pub(super) async fn set_log(State(context): State<Context>, body: Bytes) -> Response {
    let expected =
        "{\"level\": …}: trace, debug, info, warn or error, or directives such as millrace::kafka=debug,info";
    let LogBody { level } = match read(&body, expected) {
        Ok(body) => body,
        Err(problem) => return bad_body(&problem),
    };
    if let Err(problem) = context.sources.log.direct(&level) {
        return bad_body(&problem);
    }
    tracing::warn!(level, "the admin endpoint was asked to log like this, until a configuration is applied");
    log(State(context)).await
}

fn read<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|problem| format!("{problem}: write {expected}"))
}

fn bad_body(problem: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "bad_body", problem)
}

fn refused(name: &str, refusal: &Refusal) -> Response {
    match refusal {
        Refusal::Unknown => no_such_route(name),
        Refusal::NotRunning(help) => {
            error(StatusCode::CONFLICT, "not_running", &format!("route \"{name}\" does not run: {help}"))
        }
        Refusal::Senseless(why) => error(StatusCode::CONFLICT, "refused", why),
        Refusal::ShuttingDown => {
            error(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the process is shutting down")
        }
    }
}
