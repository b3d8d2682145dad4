//! A plugin's configuration: the `config` of the YAML, which reaches the plugin as JSON text (`{}` where it has none).

/// What [`Filter::Config`](crate::Filter::Config) can be: with the feature `serde` (default) any type that derives
/// `serde::Deserialize`; always [`NoConfig`] and [`RawConfig`].
///
/// Derive with `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error instead of a setting without effect.
pub trait Config: Sized {
    /// Reads the JSON text; the error is what the operator sees.
    fn from_json(text: &str) -> Result<Self, String>;
}

/// The configuration of a plugin that has none; anything written there is an error.
#[derive(Debug, Clone, Copy)]
pub struct NoConfig;

impl Config for NoConfig {
    fn from_json(text: &str) -> Result<Self, String> {
        let written: String = text.split_whitespace().collect();
        if written == "{}" || written == "null" { Ok(Self) } else { Err("this plugin takes no config".into()) }
    }
}

/// The JSON text itself, for a plugin that reads it in its own way.
#[derive(Debug, Clone)]
pub struct RawConfig(pub String);

impl Config for RawConfig {
    fn from_json(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

#[cfg(feature = "serde")]
impl<T: serde::de::DeserializeOwned> Config for T {
    fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_without_config_refuses_one() {
        assert!(NoConfig::from_json(" {} ").is_ok());
        assert!(NoConfig::from_json(r#"{"field": "status"}"#).is_err());
    }
}
