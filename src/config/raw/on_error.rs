//! `on_error`.

use std::time::Duration;

use super::super::decode::{Fields, did_you_mean, non_empty, wrong_type};
use super::super::keys;
use super::super::problem::{Problem, Problems};
use super::super::tree::{Entry, Node, Value};
use super::routes::topic;
use super::{RawOnError, fields};
use crate::policy::{Disposition, OnError, Retry};

const ON_ERROR: &str = "`stop`, `skip`, `{ dead_letter: TOPIC }` or `{ retry: { … }, then: … }`";

pub(super) fn on_error(entry: &Entry, problems: &mut Problems) -> Option<RawOnError> {
    if let Value::Scalar(_) = entry.value.value {
        return disposition(&entry.value, problems);
    }
    let mut inner = fields(&keys::ON_ERROR_KEYS, entry, ON_ERROR, problems)?;
    let retry_entry = inner.entry(&keys::RETRY);
    let then = inner.entry(&keys::THEN);
    let dead_letter = inner.entry(&keys::DEAD_LETTER);
    inner.finish(problems);
    let Some(retry_entry) = retry_entry else {
        if let Some(then) = then {
            let problem = Problem::at(&then.key_place, "`then` stands only beside `retry`").code("missing_key");
            problems.push(problem.help(format!("write one of {ON_ERROR}")));
            return None;
        }
        return disposition(&entry.value, problems);
    };
    if let Some(dead_letter) = dead_letter {
        let problem = Problem::at(&dead_letter.key_place, "beside `retry`, `dead_letter` stands under `then`");
        problems.push(problem.help("write `then: { dead_letter: TOPIC }`"));
    }
    let retry = retry(retry_entry, problems);
    let then = match then {
        Some(then) => disposition(&then.value, problems)?,
        None => RawOnError { policy: OnError::default(), dead_letter: None },
    };
    Some(RawOnError { policy: OnError { retry: Some(retry?), then: then.policy.then }, ..then })
}

/// `stop`, `skip` or `{ dead_letter: TOPIC }`.
fn disposition(node: &Node, problems: &mut Problems) -> Option<RawOnError> {
    const WHAT: &str = "`stop`, `skip` or `{ dead_letter: TOPIC }`";
    let (then, place) = match &node.value {
        Value::Scalar(scalar) if scalar.broken => return None,
        Value::Scalar(scalar) => match scalar.text.as_str() {
            "stop" => (Disposition::Stop, None),
            "skip" => (Disposition::Skip, None),
            other => {
                let problem = wrong_type(node, WHAT);
                problems.push(match did_you_mean(other, &["stop", "skip", "dead_letter"]) {
                    Some("dead_letter") => problem.help("write `{ dead_letter: TOPIC }`"),
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem,
                });
                return None;
            }
        },
        Value::List(_) | Value::Map(_) => {
            let mut fields = Fields::of(&keys::DEAD_LETTER_KEYS, node, &node.place, WHAT, problems)?;
            let topic_node = fields.required(&keys::DEAD_LETTER, &format!("write {WHAT}"), problems);
            // `on_error` itself has already told what else is written beside it.
            fields.entry_beside("retry");
            fields.entry_beside("then");
            fields.finish(problems);
            let text = non_empty(topic_node?, "a topic", problems)?;
            (Disposition::DeadLetter(topic(&text, problems)?), Some(text.place))
        }
    };
    Some(RawOnError { policy: OnError { retry: None, then }, dead_letter: place })
}

fn retry(entry: &Entry, problems: &mut Problems) -> Option<Retry> {
    let before = problems.len();
    let mut fields = fields(&keys::RETRY_KEYS, entry, "how often to try again", problems)?;
    let attempts = fields.number(&keys::ATTEMPTS, problems);
    let backoff = fields.duration(&keys::BACKOFF, problems);
    let longest = fields.duration(&keys::MAX_BACKOFF, problems);
    fields.finish(problems);
    let wait = backoff.as_ref().map_or(Duration::from_millis(100), |at| at.value);
    if let Some(longest) = longest.as_ref().filter(|longest| longest.value < wait) {
        problems.push(Problem::at(&longest.place, "`max_backoff` is below `backoff`").code("bounds"));
    }
    (problems.len() == before).then(|| Retry {
        attempts: attempts.and_then(|at| u32::try_from(at.value).ok()).unwrap_or(3),
        backoff: wait,
        max_backoff: longest.map_or(Duration::from_secs(10).max(wait), |at| at.value),
    })
}
