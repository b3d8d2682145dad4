//! Names that may not be confused get a type of their own; the constructor checks, nothing checks again.

use std::fmt;
use std::sync::Arc;

/// Why a text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub String);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes the name.
            ///
            /// # Errors
            /// A sentence that says which rule the text breaks.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                $check(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of a route: a YAML key, a metric label and a part of transactional ids.
    RouteName,
    check_label
);
name!(
    /// The name of a plugin: a YAML key and a metric label.
    PluginName,
    check_label
);
name!(
    /// The name that plugins use for a destination; the topic's own unless `name:` is set.
    DestinationName,
    check_topic
);
name!(
    /// A Kafka topic's name: 1 to 249 of ASCII letters, digits, `.`, `_` and `-`, neither `.` nor `..`
    /// (Kafka's own `Topic.validate`).
    TopicName,
    check_topic
);
name!(
    /// A consumer group's id: 1 to 249 characters, no control characters.
    GroupId,
    check_group
);

fn check_label(text: &str) -> Result<(), InvalidName> {
    check_characters(text, 100)
}

fn check_topic(text: &str) -> Result<(), InvalidName> {
    if text == "." || text == ".." {
        return Err(InvalidName(format!("a name cannot be \"{text}\"")));
    }
    check_characters(text, 249)
}

fn check_characters(text: &str, longest: usize) -> Result<(), InvalidName> {
    check_length(text, longest)?;
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(c) => Err(InvalidName(format!(
            "{c:?} cannot be part of a name: ASCII letters, digits, \".\", \"_\" and \"-\" can"
        ))),
        None => Ok(()),
    }
}

fn check_group(text: &str) -> Result<(), InvalidName> {
    check_length(text, 249)?;
    if text.chars().any(char::is_control) {
        return Err(InvalidName("a group id cannot hold control characters".into()));
    }
    Ok(())
}

fn check_length(text: &str, longest: usize) -> Result<(), InvalidName> {
    match text.len() {
        0 => Err(InvalidName("a name cannot be empty".into())),
        n if n > longest => Err(InvalidName(format!("a name has at most {longest} characters, this one has {n}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_follow_kafkas_rules() {
        for good in ["orders", "a.b-c_D9", "__consumer_offsets", &"x".repeat(249)] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ключ", &"x".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad}");
        }
    }
}
