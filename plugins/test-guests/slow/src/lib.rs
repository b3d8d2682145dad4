//! Takes its time: so many rounds of arithmetic on each value, up to four times as many on some of them. What comes of it is
//! put behind the value, so that nobody can leave it out.

use millrace_plugin::{DEFAULT, Output, Record, Transform, Verdict, export_transform};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    rounds: u64,
}

struct Slow(Config);

impl Transform for Slow {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        Ok(Self(config))
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        let value = record.value().unwrap_or_default();
        // (FNV-1a, over and over: no round can be done before the one before it)
        let hash =
            |seed: u64| value.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let first = hash(0xcbf2_9ce4_8422_2325);
        let last = (0..self.0.rounds * (1 + first % 4)).fold(first, |seed, _| hash(seed));
        output.emit(DEFAULT, Some(&[value, format!(" {last:016x}").as_bytes()].concat()));
        Verdict::Drop
    }
}

export_transform!(Slow);
