//! The capability `random`: the operator has to grant it (`allow: [random]`), else the plugin is refused when it is loaded.
//! In `cargo test` a fixed sequence stands in for it, so that tests repeat.

/// This many random bytes, fit for keys; at most 65,536, more is a fault.
pub fn bytes(count: u32) -> Vec<u8> {
    host::get_bytes(count)
}

/// A random number.
pub fn number() -> u64 {
    host::get_u64()
}

#[cfg(target_arch = "wasm32")]
use bindings::millrace::plugin::random as host;

#[cfg(target_arch = "wasm32")]
#[allow(missing_docs, reason = "generated; the WIT files are the documentation")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package millrace:sdk-random; world capability { import millrace:plugin/random@0.1.1; }",
        world: "millrace:sdk-random/capability",
        generate_all,
    });
}

#[cfg(not(target_arch = "wasm32"))]
mod host {
    use std::cell::Cell;

    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn get_bytes(count: u32) -> Vec<u8> {
        (0..count).map(|_| get_u64() as u8).collect()
    }

    /// SplitMix64.
    pub(super) fn get_u64() -> u64 {
        let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        STATE.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
