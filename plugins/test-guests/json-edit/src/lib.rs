//! Drops the records whose `status` is `test`, and edits the others: what a JSON transform costs beside the same code without
//! a sandbox.

mod edit;

use millrace_plugin::{DEFAULT, NoConfig, Output, Record, Transform, Verdict, export_transform};

struct JsonEdit;

impl Transform for JsonEdit {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        match edit::edit(record.value().unwrap_or_default()) {
            Ok(edited) => {
                if let Some(value) = edited {
                    output.emit(DEFAULT, Some(&value));
                }
                Verdict::Drop
            }
            Err(error) => Verdict::Refuse(format!("the value is not a JSON object: {error}")),
        }
    }
}

export_transform!(JsonEdit);
