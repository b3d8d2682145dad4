//! Drops the records whose JSON value has a field with a given value: `config: { field: status, equals: test }`.
//!
//! `field` can lead into objects (`customer.country`). What has no such field, or is no JSON at all, is kept.

use millrace_plugin::{Filter, Record, Verdict, export_filter};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropWhere {
    field: String,
    equals: Value,
}

impl Filter for DropWhere {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, String> {
        if config.equals.is_object() || config.equals.is_array() {
            return Err("equals: write a string, a number, true, false or null".into());
        }
        Ok(config)
    }

    fn filter(&mut self, record: &Record<'_>) -> Verdict {
        match record.value() {
            Some(value) if self.matches(value) => Verdict::Drop,
            _ => Verdict::Keep,
        }
    }
}

impl DropWhere {
    fn matches(&self, value: &[u8]) -> bool {
        let Ok(json) = serde_json::from_slice::<Value>(value) else { return false };
        let field = self.field.split('.').try_fold(&json, |object, name| object.get(name));
        field.is_some_and(|field| same(field, &self.equals))
    }
}

/// Equal as JSON means it: 1 is 1.0, but two integers are not equal for being the same float.
fn same(left: &Value, right: &Value) -> bool {
    let integer = |value: &Value| value.is_i64() || value.is_u64();
    left == right
        || !(integer(left) && integer(right)) && left.as_f64().is_some_and(|float| right.as_f64() == Some(float))
}

export_filter!(DropWhere);

#[cfg(test)]
mod tests {
    use millrace_plugin::{Config as _, testing};
    use serde_json::json;

    use super::*;

    fn plugin(field: &str, equals: Value) -> DropWhere {
        DropWhere { field: field.into(), equals }
    }

    #[test]
    fn drops_where_the_field_has_the_value() {
        assert!(plugin("status", json!("test")).matches(br#"{"status": "test"}"#));
        assert!(plugin("customer.country", json!(null)).matches(br#"{"customer": {"country": null}}"#));
        assert!(plugin("n", json!(1)).matches(br#"{"n": 1.0}"#));
        assert!(plugin("n", json!(1.5)).matches(br#"{"n": 15e-1}"#));
    }

    #[test]
    fn keeps_what_differs_lacks_the_field_or_is_no_json() {
        for value in [r#"{"status": "paid"}"#, r#"{"state": "test"}"#, r#"["test"]"#, "test", "", "\u{0}"] {
            assert!(!plugin("status", json!("test")).matches(value.as_bytes()), "{value}");
        }
        assert!(!plugin("n", json!(9007199254740992_u64)).matches(br#"{"n": 9007199254740993}"#));
        assert!(!plugin("n", json!(1)).matches(br#"{"n": "1"}"#));
        assert!(!plugin("n", json!(null)).matches(b"{}"));
    }

    #[test]
    fn keeps_a_tombstone() {
        let verdicts = testing::filter(&mut plugin("status", json!("test")), &[testing::Given::default()]);
        assert_eq!(verdicts, [Verdict::Keep]);
    }

    #[test]
    fn a_config_that_can_never_match_is_refused() {
        let configure = |text| DropWhere::from_json(text).and_then(DropWhere::configure);
        assert!(configure(r#"{"field": "status", "equals": "test"}"#).is_ok());
        assert!(configure(r#"{"field": "status", "equals": ["test"]}"#).is_err());
        assert!(configure(r#"{"field": "status"}"#).is_err());
        assert!(configure(r#"{"field": "status", "equals": 1, "not": true}"#).is_err());
    }
}
