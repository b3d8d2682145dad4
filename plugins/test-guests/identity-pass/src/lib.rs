//! Keeps every record without looking at it: what a call costs, and that nothing changes.

use millrace_plugin::{Filter, NoConfig, Record, Verdict, export_filter};

struct IdentityPass;

impl Filter for IdentityPass {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn filter(&mut self, _: &Record<'_>) -> Verdict {
        Verdict::Keep
    }
}

export_filter!(IdentityPass);
