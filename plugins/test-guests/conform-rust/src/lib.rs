//! Does what the headers of a record say: the Rust guest of the conformance suite. `plugins/conformance/README.md` has the
//! commands.

use millrace_plugin::{DEFAULT, Item, NoConfig, Output, Record, Transform, Verdict, export_transform, log};

struct Conform;

impl Transform for Conform {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        let headers = record.headers();
        let mut verdict = Verdict::Keep;
        let mut commands = headers.iter().map(|(name, value)| (name.as_str(), text(value.as_deref()))).peekable();
        while let Some((command, argument)) = commands.next() {
            let mut item = match command {
                "emit" => output.emit(argument, record.value()),
                "emit-text" => output.emit(DEFAULT, Some(argument.as_bytes())),
                "emit-null" => output.emit(argument, None),
                "describe" => output.emit(DEFAULT, Some(describe(record).as_bytes())),
                "rebuild" => rebuild(record, output),
                _ => {
                    act(command, argument, record, output, &mut verdict);
                    continue;
                }
            };
            // What follows is about this item, as far as it goes.
            while let Some((command, argument)) = commands.next_if(|(command, _)| CHANGES.contains(command)) {
                item = change(item, command, argument);
            }
        }
        verdict
    }
}

const CHANGES: [&str; 9] =
    ["key", "key-null", "topic", "timestamp", "partition", "header", "add-header", "add-null-header", "remove-header"];

fn change<'a>(item: Item<'a>, command: &str, argument: &str) -> Item<'a> {
    let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
    match command {
        "key" => item.key(Some(argument.as_bytes())),
        "key-null" => item.key(None),
        "topic" => item.topic(argument),
        "timestamp" => item.timestamp(argument.parse().expect("a number")),
        "partition" => item.partition(argument.parse().expect("a number")),
        "header" => item.header(name, value.as_bytes()),
        "add-header" => item.add_header(name, Some(value.as_bytes())),
        "add-null-header" => item.add_header(argument, None),
        _ => item.remove_header(argument),
    }
}

fn act(command: &str, argument: &str, record: &Record<'_>, output: &mut Output, verdict: &mut Verdict) {
    match command {
        "copies" => (0..argument.parse().expect("a number")).for_each(|_| {
            output.emit(DEFAULT, record.value());
        }),
        "forward" => output.forward(argument),
        "drop" => *verdict = Verdict::Drop,
        "refuse" => *verdict = Verdict::Refuse(argument.into()),
        "retry" => *verdict = Verdict::Retry(argument.into()),
        "permanent" => *verdict = Verdict::Permanent(argument.into()),
        "log" => say(argument),
        "print" => println!("{argument}"),
        "trap" => panic!("{argument}"),
        _ => {}
    }
}

fn say(argument: &str) {
    let (level, message) = argument.split_once(' ').expect("a level and a message");
    match level {
        "trace" => log::trace(message),
        "debug" => log::debug(message),
        "info" => log::info(message),
        "warn" => log::warn(message),
        _ => log::error(message),
    }
}

fn rebuild<'a>(record: &Record<'_>, output: &'a mut Output) -> Item<'a> {
    let headers = record.headers();
    let mut item = output.emit(DEFAULT, record.value()).key(record.key());
    if let Some(timestamp) = record.timestamp() {
        item = item.timestamp(timestamp);
    }
    for (name, _) in &headers {
        item = item.remove_header(name);
    }
    headers.iter().fold(item, |item, (name, value)| item.add_header(name, value.as_deref()))
}

fn describe(record: &Record<'_>) -> String {
    let or_null =
        |bytes: Option<&[u8]>| bytes.map_or("null".into(), |bytes| String::from_utf8_lossy(bytes).into_owned());
    let timestamp = record.timestamp().map_or("null".into(), |timestamp| timestamp.to_string());
    let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
    format!("{topic}/{partition}/{offset} {timestamp} {} {}", or_null(record.key()), or_null(record.header("t")))
}

fn text(value: Option<&[u8]>) -> &str {
    value.and_then(|value| str::from_utf8(value).ok()).unwrap_or_default()
}

export_transform!(Conform);
