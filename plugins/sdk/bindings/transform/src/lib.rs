//! Generated bindings of the world `transform`, with the types of `filter`'s where both have them, so that one piece of
//! glue serves both.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, unreachable_pub, reason = "generated; the WIT files are the documentation")]

pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../../wit",
        world: "transform",
        pub_export_macro: true,
        with: {
            "millrace:plugin/types@0.1.1": millrace_plugin_filter_bindings::bindings::millrace::plugin::types,
            "millrace:plugin/input@0.1.1": millrace_plugin_filter_bindings::bindings::millrace::plugin::input,
            "millrace:plugin/log@0.1.1": millrace_plugin_filter_bindings::bindings::millrace::plugin::log,
        },
        generate_all,
    });
}
