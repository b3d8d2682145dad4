//! Traps now and then without a reason, and works when it is tried again: on every `every`th record of an instance's life. On
//! a record whose value contains `poison` it traps always. Every other record passes as it is.

use millrace_plugin::{Output, Record, Transform, Verdict, export_transform};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    every: u64,
    poison: String,
}

struct Flaky {
    config: Config,
    seen: u64,
}

impl Transform for Flaky {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        Ok(Self { config, seen: 0 })
    }

    fn transform(&mut self, record: &Record<'_>, _output: &mut Output) -> Verdict {
        let poison = self.config.poison.as_bytes();
        let value = record.value().unwrap_or_default();
        assert!(!value.windows(poison.len()).any(|window| window == poison), "a poisoned record");
        self.seen += 1;
        assert!(self.seen < self.config.every, "the {}th record of this instance", self.seen);
        Verdict::Keep
    }
}

export_transform!(Flaky);
