//! A filter that imports an interface which the router does not have: a sound component that asks for a capability which
//! nobody can grant. To be refused when it is loaded, with the import's name.

use millrace_plugin::{Filter, NoConfig, Record, Verdict, export_filter};

struct NeedsClock;

impl Filter for NeedsClock {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn filter(&mut self, _: &Record<'_>) -> Verdict {
        if now() == 0 { Verdict::Drop } else { Verdict::Keep }
    }
}

export_filter!(NeedsClock);

#[cfg(target_arch = "wasm32")]
fn now() -> u64 {
    #[allow(missing_docs, reason = "generated")]
    mod bindings {
        wit_bindgen::generate!({
            inline: "
                package test:clock@1.0.0;
                interface clock { now: func() -> u64; }
                world needs-clock { import clock; }
            ",
        });
    }
    bindings::test::clock::clock::now()
}

#[cfg(not(target_arch = "wasm32"))]
fn now() -> u64 {
    0
}
