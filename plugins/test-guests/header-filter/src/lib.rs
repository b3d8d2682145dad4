//! Keeps the records whose header `keep` is not `no`: what reading one header costs.

use millrace_plugin::{Filter, NoConfig, Record, Verdict, export_filter};

struct HeaderFilter;

impl Filter for HeaderFilter {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        if record.header("keep") == Some(b"no") { Verdict::Drop } else { Verdict::Keep }
    }
}

export_filter!(HeaderFilter);
