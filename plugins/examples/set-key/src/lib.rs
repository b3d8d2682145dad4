//! Makes a field of a record's JSON its key: `config: { field: customer.id }`.
//!
//! Text becomes the key as it is, a number or a boolean its JSON. A record that has no such field, or is no JSON, is refused: it would
//! go to a partition by chance. A tombstone keeps its key, since it has nothing else.

use millrace_plugin::{DEFAULT, Output, Record, Transform, Verdict, export_transform};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetKey {
    field: String,
}

impl Transform for SetKey {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, String> {
        if config.field.is_empty() {
            return Err("field: name one, such as customer.id".into());
        }
        Ok(config)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        let Some(value) = record.value() else { return Verdict::Keep };
        match self.key(value) {
            Ok(key) => {
                output.emit(DEFAULT, Some(value)).key(Some(key.as_bytes()));
                Verdict::Drop
            }
            Err(why) => Verdict::Refuse(why),
        }
    }
}

impl SetKey {
    fn key(&self, value: &[u8]) -> Result<String, String> {
        let json: Value = serde_json::from_slice(value).map_err(|error| format!("the value is not JSON: {error}"))?;
        match self.field.split('.').try_fold(&json, |object, name| object.get(name)) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(scalar @ (Value::Number(_) | Value::Bool(_))) => Ok(scalar.to_string()),
            Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => {
                Err(format!("{} is no text, number or boolean", self.field))
            }
        }
    }
}

export_transform!(SetKey);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(field: &str, value: &str) -> Result<String, String> {
        SetKey { field: field.into() }.key(value.as_bytes())
    }

    #[test]
    fn a_field_becomes_the_key() {
        assert_eq!(key("id", r#"{"id": "u1"}"#).as_deref(), Ok("u1"));
        assert_eq!(
            key("customer.id", r#"{"customer": {"id": 12345678901234567890}}"#).as_deref(),
            Ok("12345678901234567890")
        );
        assert_eq!(key("id", r#"{"id": true}"#).as_deref(), Ok("true"));
    }

    #[test]
    fn what_has_no_such_field_is_refused() {
        for value in [r#"{"name": "u1"}"#, r#"{"id": null}"#, r#"{"id": ["u1"]}"#, "[]", "not JSON", ""] {
            assert!(key("id", value).is_err(), "{value}");
        }
    }
}
