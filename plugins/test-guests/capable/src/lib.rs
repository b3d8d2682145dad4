//! A filter that asks for every capability, and does with each what a record's value says: it refuses the record with what
//! it got as the reason, or keeps it where there is nothing to tell.

use millrace_plugin::{Filter, NoConfig, Record, Verdict, clock, export_filter, log, metrics, random};

struct Capable;

impl Filter for Capable {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        let value = String::from_utf8_lossy(record.value().unwrap_or_default());
        let words: Vec<&str> = value.split(' ').collect();
        let labels =
            |words: &[&str]| words.iter().filter_map(|word| word.split_once('=')).map(owned).collect::<Vec<_>>();
        let number = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
        match words[..] {
            ["now-ms"] => Verdict::Refuse(clock::now_ms().to_string()),
            ["now-ns"] => Verdict::Refuse(clock::now_ns().to_string()),
            ["random-bytes", count] => {
                Verdict::Refuse(format!("{:?}", random::bytes(count.parse().unwrap_or_default())))
            }
            ["random-number"] => Verdict::Refuse(random::number().to_string()),
            ["log", message] => {
                log::warn(message);
                Verdict::Keep
            }
            ["series", count] => {
                (0..count.parse().unwrap_or(0)).for_each(|n: u32| metrics::add(&format!("series_{n}"), &[], 1.0));
                Verdict::Keep
            }
            ["trap"] => panic!("told to trap"),
            [what, name, value, ref rest @ ..] => {
                let labels = labels(rest);
                let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
                match what {
                    "add" => metrics::add(name, &labels, number(value)),
                    "set" => metrics::set(name, &labels, number(value)),
                    "observe" => metrics::observe(name, &labels, number(value)),
                    _ => return Verdict::Refuse(format!("unknown: {what}")),
                }
                Verdict::Keep
            }
            _ => Verdict::Keep,
        }
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

export_filter!(Capable);
