//! Replaces the values of JSON fields by `"[redacted]"`: `config: { fields: [card, customer.email] }`.
//!
//! A name leads into objects, and into every object of an array. A record without these fields passes byte for byte;
//! one that is not JSON is refused, since nobody can say what stands in it.

use millrace_plugin::{DEFAULT, Output, Record, Transform, Verdict, export_transform};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedactFields {
    fields: Vec<String>,
}

impl Transform for RedactFields {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, String> {
        if config.fields.is_empty() {
            return Err("fields: name at least one".into());
        }
        Ok(config)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        let Some(value) = record.value() else { return Verdict::Keep };
        match self.redact(value) {
            Ok(None) => Verdict::Keep,
            Ok(Some(redacted)) => {
                output.emit(DEFAULT, Some(&redacted));
                Verdict::Drop
            }
            Err(error) => Verdict::Refuse(format!("the value is not JSON: {error}")),
        }
    }
}

impl RedactFields {
    /// The value with its fields redacted; `None` where it has none of them.
    fn redact(&self, value: &[u8]) -> serde_json::Result<Option<Vec<u8>>> {
        let mut json: Value = serde_json::from_slice(value)?;
        let found = self.fields.iter().filter(|field| replace(&mut json, field)).count();
        if found == 0 { Ok(None) } else { serde_json::to_vec(&json).map(Some) }
    }
}

fn replace(json: &mut Value, path: &str) -> bool {
    match json {
        Value::Array(items) => items.iter_mut().fold(false, |found, item| replace(item, path) | found),
        Value::Object(fields) => match path.split_once('.') {
            Some((name, rest)) => fields.get_mut(name).is_some_and(|inner| replace(inner, rest)),
            None => fields.get_mut(path).map(|field| *field = "[redacted]".into()).is_some(),
        },
        _ => false,
    }
}

export_transform!(RedactFields);

#[cfg(test)]
mod tests {
    use millrace_plugin::testing::{self, Given};

    use super::*;

    fn redact(fields: &[&str], value: &str) -> Option<String> {
        let plugin = RedactFields { fields: fields.iter().map(|&field| field.into()).collect() };
        plugin.redact(value.as_bytes()).unwrap().map(|redacted| String::from_utf8(redacted).unwrap())
    }

    #[test]
    fn redacts_the_fields_and_keeps_order_and_digits() {
        let given = r#"{"z":1.10,"card":"4711","a":12345678901234567890,"customer":{"email":"a@b.c","name":"é"}}"#;
        let expected =
            r#"{"z":1.10,"card":"[redacted]","a":12345678901234567890,"customer":{"email":"[redacted]","name":"é"}}"#;
        assert_eq!(redact(&["card", "customer.email"], given).as_deref(), Some(expected));
    }

    #[test]
    fn redacts_in_every_object_of_an_array_and_whatever_the_value_is() {
        let given = r#"{"items":[{"card":null},{"n":1},{"card":{"number":1}}]}"#;
        let expected = r#"{"items":[{"card":"[redacted]"},{"n":1},{"card":"[redacted]"}]}"#;
        assert_eq!(redact(&["items.card"], given).as_deref(), Some(expected));
    }

    #[test]
    fn a_value_without_the_fields_is_not_touched() {
        assert_eq!(redact(&["card", "customer.email"], r#"{ "customer": "card" }"#), None);
    }

    #[test]
    fn tombstones_pass_and_what_is_not_json_is_refused() {
        let mut plugin = RedactFields { fields: vec!["card".into()] };
        let given = [Given::default(), Given::value("no JSON"), Given::value(r#"{"card":1}"#).key("k")];
        let outcome = testing::transform(&mut plugin, &given);
        assert_eq!(outcome.verdicts[0], Verdict::Keep);
        assert!(matches!(&outcome.verdicts[1], Verdict::Refuse(reason) if reason.starts_with("the value is not JSON")));
        assert_eq!(outcome.verdicts[2], Verdict::Drop);
        assert_eq!(outcome.sent[0].value.as_deref(), Some(&br#"{"card":"[redacted]"}"#[..]));
        assert_eq!(outcome.sent[0].key.as_deref(), Some(&b"k"[..]));
    }
}
