//! The one integration binary.

mod plugin_contract;
mod support;
