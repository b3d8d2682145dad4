//! The demo's events: a week of real earthquakes, told as if they happened now. Knows no broker.

use serde_json::Value;

/// One event a line: `key` (a region), `timestamp`, `value`. U.S. Geological Survey, public domain.
const EARTHQUAKES: &str = include_str!("earthquakes.ndjson");

/// How many there are before they repeat.
pub(super) fn count() -> usize {
    EARTHQUAKES.lines().count()
}

/// An event to be sent.
pub(super) struct Event {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
}

/// All of them in order, over and over.
pub(super) fn replay() -> impl Iterator<Item = Value> + Send {
    EARTHQUAKES.lines().cycle().map(|line| serde_json::from_str(line).expect("the demo's own data is JSON"))
}

/// The event as if it happened at `now`, ms since 1970.
pub(super) fn happen(mut event: Value, now: i64) -> Event {
    let key = event["key"].as_str().unwrap_or_default().to_owned();
    let mut value = event["value"].take();
    for time in ["time", "updated"] {
        value[time] = now.into();
    }
    Event { key, value: value.to_string().into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_key_and_what_the_routes_and_the_screen_read() {
        for event in replay().take(count()) {
            let Event { key, value } = happen(event, 17);
            let value: Value = serde_json::from_slice(&value).unwrap();
            assert!(!key.is_empty() && value["status"].is_string() && value["place"].is_string(), "{value}");
            assert!(value["magnitude"].is_number() && value["latitude"].is_number(), "{value}");
            assert_eq!(value["time"], 17);
        }
    }
}
