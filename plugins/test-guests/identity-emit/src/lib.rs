//! Drops every record and emits it again with all that it has rebuilt through the sandbox's border: a record that comes
//! out different shows a loss at the border.

use millrace_plugin::{DEFAULT, NoConfig, Output, Record, Transform, Verdict, export_transform};

struct IdentityEmit;

impl Transform for IdentityEmit {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        let headers = record.headers();
        let mut item = output.emit(DEFAULT, record.value()).key(record.key());
        if let Some(timestamp) = record.timestamp() {
            item = item.timestamp(timestamp);
        }
        for (name, _) in &headers {
            item = item.remove_header(name);
        }
        for (name, value) in &headers {
            item = item.add_header(name, value.as_deref());
        }
        Verdict::Drop
    }
}

export_transform!(IdentityEmit);
