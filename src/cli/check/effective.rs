//! `check --print`: what applies after merge, defaults and interpolation, each value with where it came from. Secrets are
//! redacted already: what is in force shows none.

use anstyle::Style;
use serde_json::{Value, json};

use crate::config::{Loaded, Origin};
use crate::control::facts::Keys;
use crate::control::plan::Plan;

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// Where a value came from.
enum From<'o> {
    Written(&'o Origin),
    /// The plugin's file, which has this digest.
    File,
    Default,
}

fn from<'l>(loaded: &'l Loaded, route: Option<&str>, key: &str) -> From<'l> {
    let written = match route {
        Some(route) => loaded.origins.of_route(route, key),
        None => loaded.origins.get(key),
    };
    match written {
        Some(origin) => From::Written(origin),
        None if key.starts_with("plugins.") && key.ends_with(".sha256") => From::File,
        None => config_of_plugin(loaded, route, key).map_or(From::Default, From::Written),
    }
}

/// A step without a configuration has its plugin's.
fn config_of_plugin<'l>(loaded: &'l Loaded, route: Option<&str>, key: &str) -> Option<&'l Origin> {
    let route = loaded.settings.routes.values().find(|of| Some(of.name.as_str()) == route)?;
    let (key, steps) = match (key.strip_prefix("shadow."), &route.shadow) {
        (Some(key), Some(shadow)) => (key, &shadow.pipeline),
        _ => (key, &route.pipeline),
    };
    let number: usize = key.strip_prefix("pipeline.")?.strip_suffix(".config")?.parse().ok()?;
    loaded.origins.get(&format!("plugins.{}.config", steps.get(number)?.plugin))
}

/// As people read it.
pub(super) fn print(loaded: &Loaded, plan: &Plan) {
    let facts = plan.facts();
    section(loaded, "process", None, &facts.process);
    for (route, keys) in &facts.routes {
        section(loaded, &format!("route {route}"), Some(route.as_str()), keys);
    }
}

fn section(loaded: &Loaded, title: &str, route: Option<&str>, keys: &Keys) {
    anstream::println!("{BOLD}{title}{BOLD:#}");
    let widest = |texts: &mut dyn Iterator<Item = usize>, most: usize| texts.max().unwrap_or(0).min(most);
    let key_width = widest(&mut keys.keys().map(|key| key.chars().count()), 40);
    let value_width = widest(&mut keys.values().map(|fact| fact.as_str().chars().count()), 32);
    for (key, fact) in keys {
        let from = match from(loaded, route, key) {
            From::Written(Origin { place, replaced }) if replaced.is_empty() => {
                format!("{}:{}", place.path().display(), place.line())
            }
            From::Written(Origin { place, replaced }) => {
                format!("{}:{} {}", place.path().display(), place.line(), replaced.join(" "))
            }
            From::File => "the plugin's file".to_owned(),
            From::Default => "default".to_owned(),
        };
        let value = fact.as_str().escape_debug().to_string().replace("\\\"", "\"").replace("\\\\", "\\");
        anstream::println!("  {key:<key_width$}  {value:<value_width$}  {DIM}{from}{DIM:#}");
    }
}

/// For machines: each key with its value and where that came from.
pub(super) fn as_json(loaded: &Loaded, plan: &Plan) -> Value {
    let facts = plan.facts();
    let keys = |route: Option<&str>, keys: &Keys| -> Value {
        let one = |(key, fact): (&String, &crate::control::facts::Fact)| {
            let from = match from(loaded, route, key) {
                From::Written(Origin { place, replaced }) => json!({
                    "file": place.path().display().to_string(), "line": place.line(), "column": place.column(),
                    "replaced": replaced,
                }),
                From::File => "file".into(),
                From::Default => "default".into(),
            };
            (key.clone(), json!({ "value": fact.as_str(), "from": from }))
        };
        Value::Object(keys.iter().map(one).collect())
    };
    let routes = facts.routes.iter().map(|(name, of)| (name.to_string(), keys(Some(name.as_str()), of)));
    json!({ "process": keys(None, &facts.process), "routes": routes.collect::<serde_json::Map<_, _>>() })
}
