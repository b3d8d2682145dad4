//! Sets one header on every record and keeps all else: which version of the plugin, or of its config, a record met.

use millrace_plugin::{DEFAULT, Output, Record, Transform, Verdict, export_transform};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stamp {
    name: String,
    value: String,
}

impl Transform for Stamp {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, String> {
        Ok(config)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        output.emit(DEFAULT, record.value()).header(&self.name, self.value.as_bytes());
        Verdict::Drop
    }
}

export_transform!(Stamp);
