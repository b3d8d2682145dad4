//! Generated bindings of the world `filter`. Part of `millrace-plugin`; a crate of its own only because each world's
//! export macros need one.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, unreachable_pub, reason = "generated; the WIT files are the documentation")]

pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../../wit",
        world: "filter",
        pub_export_macro: true,
        generate_all,
    });
}
