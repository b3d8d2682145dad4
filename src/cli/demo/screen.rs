//! What the demo shows: a line for each record that arrives, a status line below them on a terminal, a summary. Knows
//! neither brokers nor clocks.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use serde_json::Value;

use crate::kafka::Arrival;

/// What the redacting plugin puts in place of a value.
const REDACTED: &str = "[redacted]";

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const STRONG: Style = AnsiColor::Yellow.on_default();
const SEVERE: Style = AnsiColor::Red.on_default().bold();
const HIDDEN: Style = AnsiColor::Magenta.on_default().bold();
/// One a route, in turn.
const ROUTES: [Style; 3] = [AnsiColor::Green.on_default(), AnsiColor::Cyan.on_default(), AnsiColor::Blue.on_default()];

const TIME: usize = 8;
const MAGNITUDE: usize = 4;
const POSITION: usize = 18;
const PLACE_MIN: usize = 16;
const PLACE_MAX: usize = 50;
/// Between columns.
const GAP: usize = 2;
/// Where no terminal says how wide it is.
const USUAL_WIDTH: usize = 100;

/// Records for people, or a JSON object for each.
pub(super) struct Screen {
    records: Box<dyn Write + Send>,
    /// All but records: beside them, or out of the way of what reads them as JSON.
    talk: Box<dyn Write + Send>,
    as_json: bool,
    widths: Widths,
    /// How many columns of the last line the status takes; none where there is no terminal.
    status: Option<usize>,
}

struct Widths {
    total: usize,
    flow: usize,
    place: usize,
}

impl Screen {
    /// `flow_width`: of the widest `route → topic`.
    pub(super) fn new(as_json: bool, flow_width: usize) -> Self {
        let stdout = io::stdout();
        let total = terminal_width().unwrap_or(USUAL_WIDTH);
        // Without colours there may still be a status line; a terminal that cannot go back to the line's start has none.
        let has_status = !as_json && stdout.is_terminal() && super::environment("TERM").is_none_or(|t| t != "dumb");
        let talk: Box<dyn Write + Send> =
            if as_json { Box::new(anstream::stderr()) } else { Box::new(anstream::stdout()) };
        Self {
            records: Box::new(anstream::AutoStream::auto(stdout)),
            talk,
            as_json,
            widths: Widths::new(total, flow_width),
            status: has_status.then_some(0),
        }
    }

    /// A line that is not a record: a heading in bold and what belongs to it.
    pub(super) fn say(&mut self, heading: &str, text: &str) -> io::Result<()> {
        writeln!(self.talk, "{BOLD}{heading}{BOLD:#}{text}")
    }

    /// A thing by name, with what there is to say about it, on one line or more.
    pub(super) fn entry(&mut self, name: &str, text: &str) -> io::Result<()> {
        let names = std::iter::once(name).chain(std::iter::repeat(""));
        names.zip(text.lines()).try_for_each(|(name, line)| self.say(&format!("  {name:<9}"), line))
    }

    /// The names of the columns.
    pub(super) fn columns(&mut self) -> io::Result<()> {
        if self.as_json {
            return Ok(());
        }
        let Widths { flow, place, .. } = self.widths;
        let cells = [("UTC", TIME), ("ROUTE → TOPIC", flow), (" MAG", MAGNITUDE), ("PLACE", place), ("LAT LON", 0)];
        let line: Vec<String> = cells.iter().map(|(name, width)| pad(name, *width)).collect();
        writeln!(self.talk, "\n{DIM}{}{DIM:#}", line.join("  "))
    }

    /// A record that has arrived. `nth`: of the route among all.
    pub(super) fn record(&mut self, route: &str, nth: usize, record: &Arrival) -> io::Result<()> {
        if self.as_json {
            return writeln!(self.records, "{}", as_json(route, record));
        }
        self.clear_status()?;
        writeln!(self.records, "{}", self.widths.line(route, nth, record))
    }

    /// What stands below the records, where there is a terminal.
    pub(super) fn status(&mut self, text: &str) -> io::Result<()> {
        if self.status.is_none() {
            return self.records.flush();
        }
        self.clear_status()?;
        let text = fit(text, self.widths.total.saturating_sub(1));
        self.status = Some(text.chars().count());
        write!(self.records, "{BOLD}{text}{BOLD:#}")?;
        self.records.flush()
    }

    pub(super) fn clear_status(&mut self) -> io::Result<()> {
        if let Some(width @ 1..) = self.status {
            self.status = Some(0);
            // By spaces: an escape sequence would not pass where colours are not wanted.
            write!(self.records, "\r{:width$}\r", "")?;
        }
        Ok(())
    }
}

fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

impl Widths {
    fn new(total: usize, flow: usize) -> Self {
        let others = TIME + flow + MAGNITUDE + POSITION + 4 * GAP;
        Self { total, flow, place: total.saturating_sub(others).clamp(PLACE_MIN, PLACE_MAX) }
    }

    fn line(&self, route: &str, nth: usize, record: &Arrival) -> String {
        let value: Option<Value> = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        let field = |name: &str| value.as_ref().and_then(|value| value.get(name)).filter(|value| !value.is_null());
        let magnitude = field("magnitude");
        let place = match (field("place"), &record.value) {
            (Some(place), _) => text(place),
            (None, Some(other)) => String::from_utf8_lossy(other).into_owned(),
            (None, None) => "(null)".to_owned(),
        };
        let flow = format!("{route} → {}", record.at.topic);
        [
            paint(DIM, &clock(record.timestamp)),
            paint(ROUTES[nth % ROUTES.len()], &pad(&flow, self.flow)),
            cell(magnitude_style(magnitude), &magnitude.map_or("-".into(), decimal), MAGNITUDE, true),
            cell(Style::new(), &place, self.place, false),
            cell(Style::new(), &position(field("latitude"), field("longitude")), 0, false),
        ]
        .join("  ")
    }
}

fn magnitude_style(magnitude: Option<&Value>) -> Style {
    match magnitude.and_then(Value::as_f64) {
        Some(4.5..) => SEVERE,
        Some(3.0..) => STRONG,
        _ => Style::new(),
    }
}

fn position(latitude: Option<&Value>, longitude: Option<&Value>) -> String {
    let number = |value: &Value| value.as_f64().map_or_else(|| text(value), |number| format!("{number:.3}"));
    match (latitude, longitude) {
        (None, None) => "-".into(),
        (Some(latitude), Some(longitude)) if latitude == longitude => number(latitude),
        (latitude, longitude) => {
            let or_dash = |value: Option<&Value>| value.map_or("-".into(), number);
            format!("{} {}", or_dash(latitude), or_dash(longitude))
        }
    }
}

fn decimal(value: &Value) -> String {
    value.as_f64().map_or_else(|| text(value), |number| format!("{number:.1}"))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn clock(millis: i64) -> String {
    match Timestamp::from_millisecond(millis) {
        Ok(time) => time.strftime("%H:%M:%S").to_string(),
        Err(_) => pad("?", TIME),
    }
}

/// A cell whose redacted parts stand out.
fn cell(style: Style, text: &str, width: usize, to_the_right: bool) -> String {
    let text = if width > 0 && text != REDACTED { fit(text, width) } else { Cow::Borrowed(text) };
    let text: String = text.chars().map(|c| if c.is_control() { '·' } else { c }).collect();
    let space = " ".repeat(width.saturating_sub(text.chars().count()));
    let painted = match text.contains(REDACTED) {
        true => text.replace(REDACTED, &paint(HIDDEN, REDACTED)),
        false => paint(style, &text),
    };
    if to_the_right { space + &painted } else { painted + &space }
}

fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

fn pad(text: &str, width: usize) -> String {
    format!("{text:width$}")
}

/// The text, or as much of it as there is room for.
fn fit(text: &str, width: usize) -> Cow<'_, str> {
    if text.chars().count() <= width {
        return Cow::Borrowed(text);
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    Cow::Owned(kept + "…")
}

fn as_json(route: &str, record: &Arrival) -> Value {
    let lossy = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    let value = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_else(|_| lossy(bytes));
    serde_json::json!({
        "route": route,
        "topic": record.at.topic,
        "partition": record.at.partition,
        "offset": record.offset,
        "timestamp": Timestamp::from_millisecond(record.timestamp).map(|time| time.to_string()).ok(),
        "key": record.key.as_deref().map(lossy),
        "value": record.value.as_deref().map(value),
    })
}

/// Whether a plugin has redacted something in it.
pub(super) fn is_redacted(record: &Arrival) -> bool {
    let value = record.value.as_deref().unwrap_or_default();
    value.windows(REDACTED.len()).any(|window| window == REDACTED.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{TopicName, TopicPartition};

    fn record(value: &str) -> Arrival {
        let topic = TopicName::new("quakes.public").unwrap();
        Arrival {
            at: TopicPartition { topic, partition: 1 },
            offset: 7,
            timestamp: 1_517_363_399_650,
            key: Some(b"Washington".to_vec()),
            value: Some(value.into()),
        }
    }

    #[test]
    fn lines_are_aligned_and_redactions_stand_out() {
        let widths = Widths::new(100, 24);
        let line = |value: &str| {
            let line = widths.line("public", 0, &record(value));
            anstream::adapter::strip_str(&line).to_string()
        };
        let start = "01:49:59  public → quakes.public    ";
        for (value, expected) in [
            (
                r#"{"magnitude":0.31,"place":"37km NNE of Amboy, Washington","latitude":46.2035,"longitude":-122.197}"#,
                " 0.3  37km NNE of Amboy, Washington           46.203 -122.197",
            ),
            (
                r#"{"magnitude":5,"place":"here","latitude":"[redacted]","longitude":"[redacted]"}"#,
                " 5.0  here                                    [redacted]",
            ),
            (
                r#"{"magnitude":5,"place":"[redacted]","latitude":"[redacted]","longitude":1}"#,
                " 5.0  [redacted]                              [redacted] 1.000",
            ),
            ("\u{1b}[2J", "   -  ·[2J                                    -"),
        ] {
            assert_eq!(line(value), format!("{start}{expected}"));
        }
        let painted = widths.line("public", 0, &record(r#"{"place":"[redacted]"}"#));
        assert!(painted.contains(&paint(HIDDEN, REDACTED)), "{painted:?}");
    }

    #[test]
    fn a_long_place_is_cut_where_the_terminal_is_narrow() {
        let line = Widths::new(80, 24).line("public", 0, &record(r#"{"place":"6km WNW of The Geysers, California"}"#));
        let line = anstream::adapter::strip_str(&line).to_string();
        assert!(line.contains("  6km WNW of The Ge…  "), "{line}");
    }
}
