//! Looks at every byte of every value, and drops the records that hold 0xFF (which UTF-8 never does): what reading values
//! costs.

use millrace_plugin::{Filter, NoConfig, Record, Verdict, export_filter};

struct Scan;

impl Filter for Scan {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        let found = record.value().is_some_and(|value| memchr::memchr(0xFF, value).is_some());
        if found { Verdict::Drop } else { Verdict::Keep }
    }
}

export_filter!(Scan);
