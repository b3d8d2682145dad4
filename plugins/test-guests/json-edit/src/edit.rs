//! The edit itself, which knows no plugin: the bare loop of `make bench` is compiled with this file, too.

use serde_json::{Map, Value};

/// Without `ip` and with `routed_by`; nothing where `status` is `test`.
pub(crate) fn edit(value: &[u8]) -> serde_json::Result<Option<Vec<u8>>> {
    let mut fields: Map<String, Value> = serde_json::from_slice(value)?;
    if fields.get("status").and_then(Value::as_str) == Some("test") {
        return Ok(None);
    }
    fields.remove("ip");
    fields.insert("routed_by".into(), "router".into());
    serde_json::to_vec(&fields).map(Some)
}
