//! `GET /api/v1/routes/NAME/tap`: records of a live route as they pass, as server-sent events.
//!
//! A stream lives as long as its connection may; who wants more connects again, as browsers' `EventSource` does by itself.

use std::pin::Pin;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::body::{Bytes, Frame};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{Interval, interval};

use super::pages::{Context, error, no_such_route};
use crate::model::RouteName;
use crate::pipeline::tap::{Listening, Seen, Shown, Stage, Wanted};

/// Records that wait to be sent to one listener; more pass unseen.
const WAITING_MAX: usize = 512;
/// How often a listener is told how much passed unseen, or that there is nothing to tell.
const TELL_EVERY: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The stream ends after so many records.
    limit: Option<u64>,
    /// One of the stages.
    stage: Option<String>,
    /// Only records with this key.
    key: Option<String>,
    /// Only records with this header: `name` or `name=value`.
    header: Option<String>,
    /// One source record in so many.
    sample: Option<u32>,
}

impl Asked {
    fn wanted(&self) -> Result<Wanted, String> {
        let named = |name: &String| {
            let found = Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
            let names = || Stage::ALL.map(Stage::as_str).join(", ");
            found.ok_or_else(|| format!("there is no stage {name:?}: it is one of {}", names()))
        };
        let header = self.header.as_deref().map(|header| match header.split_once('=') {
            Some((name, value)) => (name.as_bytes().to_vec(), Some(value.as_bytes().to_vec())),
            None => (header.as_bytes().to_vec(), None),
        });
        Ok(Wanted {
            stages: self.stage.as_ref().map(named).transpose()?.into_iter().collect(),
            key: self.key.as_ref().map(|key| key.as_bytes().to_vec()),
            header,
            one_in: self.sample.unwrap_or(1),
        })
    }
}

pub(super) async fn tap(
    State(context): State<Context>,
    Path(name): Path<String>,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let bad = |message: &str| error(StatusCode::BAD_REQUEST, "bad_query", message);
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(problem) => return bad(&problem.body_text()),
    };
    let wanted = match asked.wanted() {
        Ok(wanted) => wanted,
        Err(problem) => return bad(&problem),
    };
    let route = RouteName::new(&name).ok().filter(|_| context.sources.board.route_snapshot(&name).is_some());
    let Some(route) = route else { return no_such_route(&name) };
    let (sender, records) = mpsc::channel(WAITING_MAX);
    let take = Box::new(move |see: &mut dyn FnMut() -> Seen| sender.try_reserve().map(|room| room.send(see())).is_ok());
    let Some(listening) = context.sources.board.tap(&route).listen(wanted, take) else {
        let message = "as many listen to this route as may: end one of them, or wait";
        return error(StatusCode::TOO_MANY_REQUESTS, "too_many_listeners", message);
    };
    let graph = context.sources.reloader.graph();
    let edges = graph.routes.iter().find(|edges| edges.name == route);
    let destinations = edges.map(|edges| edges.to.iter().map(|to| to.name.to_string()).collect()).unwrap_or_default();
    let left = asked.limit.unwrap_or(u64::MAX);
    let events = Events { records, listening, told: 0, left, tick: interval(TELL_EVERY), destinations };
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::new(events)).into_response()
}

/// The body of an answer: an event a record, until enough have passed or nobody reads.
struct Events {
    records: Receiver<Seen>,
    listening: Listening,
    /// How much has been told to have passed unseen.
    told: u64,
    left: u64,
    tick: Interval,
    /// The route's, by number.
    destinations: Vec<String>,
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        poller: &mut Poller<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let event = |text: String| Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))));
        // (first: where records never run out, something would be missed and never told)
        if self.tick.poll_tick(poller).is_ready() {
            let missed = self.listening.missed();
            let news = missed != self.told;
            self.told = missed;
            // (a comment keeps the connection, and shows whether anybody is at its other end)
            return event(if news { format!("event: missed\ndata: {missed}\n\n") } else { ":\n\n".to_owned() });
        }
        match self.records.poll_recv(poller) {
            Poll::Ready(Some(seen)) => {
                self.left -= 1;
                event(format!("event: record\ndata: {}\n\n", json_of(&seen, &self.destinations)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn json_of(seen: &Seen, destinations: &[String]) -> Value {
    let destination = seen.destination.and_then(|number| destinations.get(usize::from(number)));
    json!({
        "stage": seen.stage.as_str(), "topic": seen.topic, "partition": seen.partition, "offset": seen.offset,
        "plugin": seen.plugin, "record": seen.record.as_ref().map(record), "destination": destination,
        "fault": seen.fault.as_ref().map(|(code, message)| json!({ "code": code.as_str(), "message": message })),
    })
}

fn record(record: &Shown) -> Value {
    let header =
        |(name, value): &(Vec<u8>, Option<Vec<u8>>)| json!([String::from_utf8_lossy(name), bytes(value.as_deref())]);
    json!({
        "timestamp": record.timestamp, "key": bytes(record.key.as_deref()), "value": bytes(record.value.as_deref()),
        "value_bytes": record.value_bytes, "headers": record.headers.iter().map(header).collect::<Vec<_>>(),
    })
}

/// Text as it is, else base64. (What was cut may end amid a character: that is no reason to encode the rest.)
fn bytes(bytes: Option<&[u8]>) -> Value {
    let Some(bytes) = bytes else { return Value::Null };
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(error) if error.error_len().is_none() => String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into(),
        Err(_) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}
