//! Plugins.

use std::collections::BTreeSet;

use super::super::decode::{At, choice, json, list, text};
use super::super::keys;
use super::super::problem::{Problem, Problems};
use super::super::settings::{Capability, PluginConfig};
use super::super::tree::{Entry, Node};
use super::{RawPlugin, fields, key, named, path};
use crate::model::{Digest, PluginName};

pub(super) fn plugin(entry: &Entry, problems: &mut Problems) -> Option<RawPlugin> {
    let name = named(&key(entry), "the name of a plugin", PluginName::new(&entry.key), problems);
    let mut fields = fields(&keys::PLUGIN_KEYS, entry, "a plugin's settings", problems)?;
    let file = fields.required(&keys::PATH, "say where the plugin is: `path: ../plugins/NAME.wasm`", problems);
    let file = file.and_then(|node| path(node, "a path", problems));
    let sha256 = fields.get(&keys::SHA256).and_then(|node| sha256(node, problems));
    let config = fields.get(&keys::PLUGIN_CONFIG).map(|node| plugin_config(node, problems));
    let memory = fields.size(&keys::PLUGIN_MEMORY, problems);
    let timeout = fields.duration(&keys::TIMEOUT, problems);
    let outputs = fields.number(&keys::MAX_OUTPUTS, problems);
    let output_bytes = fields.size(&keys::MAX_OUTPUT_BYTES, problems);
    let allow = fields.get(&keys::ALLOW).map(|node| allow(node, problems));
    fields.finish(problems);
    Some(RawPlugin {
        name: name?,
        path: file,
        sha256,
        config,
        memory: memory.map(|at| at.value),
        timeout,
        outputs: outputs.and_then(|at| u32::try_from(at.value).ok()),
        output_bytes: output_bytes.map(|at| at.value),
        allow,
    })
}

fn sha256(node: &Node, problems: &mut Problems) -> Option<Digest> {
    let text = text(node, "a SHA-256 digest", problems)?;
    let digits = text.value.strip_prefix("sha256:").unwrap_or(&text.value);
    match digits.parse() {
        Ok(digest) => Some(digest),
        Err(_) => {
            let message =
                format!("expected a SHA-256 digest of 64 hexadecimal digits, found {} characters", digits.len());
            problems.push(Problem::at(&text.place, message).help("`sha256sum PLUGIN.wasm` prints it"));
            None
        }
    }
}

fn allow(node: &Node, problems: &mut Problems) -> At<Vec<Capability>> {
    let known = Capability::ALL.map(|capability| (capability.as_str(), capability));
    let nodes = list(node, "a list of capabilities", problems).unwrap_or_default();
    let granted = nodes.iter().filter_map(|node| choice(node, &known, problems)).map(|at| at.value);
    // In whatever order, and however often: the same grants are no change.
    let granted: BTreeSet<Capability> = granted.collect();
    At::new(granted.into_iter().collect(), &node.place)
}

pub(super) fn plugin_config(node: &Node, problems: &mut Problems) -> At<PluginConfig> {
    At::new(PluginConfig { json: json(node, problems), secret: node.holds_secret() }, &node.place)
}
