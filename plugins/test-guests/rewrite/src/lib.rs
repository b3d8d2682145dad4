//! Replaces every value by its upper case: what rewriting costs.

use millrace_plugin::{DEFAULT, NoConfig, Output, Record, Transform, Verdict, export_transform};

struct Rewrite;

impl Transform for Rewrite {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        let upper = record.value().map(<[u8]>::to_ascii_uppercase);
        output.emit(DEFAULT, upper.as_deref());
        Verdict::Drop
    }
}

export_transform!(Rewrite);
