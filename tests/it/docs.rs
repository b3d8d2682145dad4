//! What the documents say, held against the code: their configurations load, their metrics exist and are all there,
//! their links lead somewhere. Knows nothing about whether the prose is true.

use std::fs;
use std::path::{Path, PathBuf};

use millrace::config;
use millrace::telemetry::{ALL, Metric};

use crate::support;

/// README.md and every page below docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![
        support::root().join("README.md"),
        support::root().join("plugins/README.md"),
        support::root().join("examples/README.md"),
    ];
    let mut folders = vec![support::root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

fn read(page: &Path) -> String {
    fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()))
}

/// A fenced block: what stands behind the fence, the line of the fence, and the text.
struct Block {
    info: String,
    line: usize,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in page.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(info) => {
                open = true;
                blocks.push(Block { info: info.to_owned(), line: number + 1, text: String::new() });
            }
            None if open => {
                let block = blocks.last_mut().expect("one is open");
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!open, "a block without an end");
    blocks
}

/// The whole configuration that a block is, or is a part of; none for what is not of ours.
fn whole(block: &Block) -> Option<String> {
    const HEAD: &str = "kafka: { bootstrap.servers: b:1 }\nroutes:\n  r:\n    source: { topics: [orders], start: earliest }\n    \
                        destinations: [{ topic: orders.paid }]\n";
    match block.info.as_str() {
        "yaml" => Some(block.text.clone()),
        "yaml of a route" => Some(block.text.lines().fold(HEAD.to_owned(), |whole, line| whole + "    " + line + "\n")),
        "yaml of a test" => {
            let before = "    on_error: { dead_letter: orders.dead }\ntests:\n  - name: t\n    route: r\n    given: [{ key: u1 }]\n";
            Some(format!("{HEAD}{before}{}", block.text))
        }
        _ => None,
    }
}

#[test]
fn every_yaml_in_the_documents_is_right() {
    let mut loaded = 0;
    for page in pages() {
        for block in blocks(&read(&page)).iter().filter(|block| block.info.starts_with("yaml") || block.info == "yml") {
            let at = format!("{}:{}", page.display(), block.line);
            let Some(text) = whole(block) else {
                assert_eq!(block.info, "yaml of Kubernetes", "{at}");
                assert_probes(&block.text, &at);
                continue;
            };
            let folder = support::scratch("docs");
            let secrets = folder.join("secrets");
            fs::create_dir_all(&secrets).expect("a folder for it");
            for name in ["password", "client.crt", "client.key", "client-secret"] {
                fs::write(secrets.join(name), name).expect("a file for it");
            }
            let file = folder.join("config.yaml");
            fs::write(&file, text).expect("a file for it");
            let found = config::load(&file, &|_| None).unwrap_or_else(|problems| panic!("{at}:\n{problems}"));
            assert!(found.warnings.is_empty(), "{at}:\n{}", found.warnings);
            fs::remove_dir_all(&folder).expect("it is ours");
            loaded += 1;
        }
    }
    assert!(loaded >= 12, "only {loaded} configurations were found");
}

/// Probes of Kubernetes ask paths that the admin endpoint has.
fn assert_probes(text: &str, at: &str) {
    let probes: serde_json::Value = serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{at}: {error}"));
    let api = read(&support::root().join("src/admin/openapi.json"));
    for (name, probe) in probes.as_object().expect("probes by their names") {
        let path = probe["httpGet"]["path"].as_str().unwrap_or_else(|| panic!("{at}: {name} asks no path"));
        assert!(api.contains(&format!("\"{path}\":")), "{at}: {name}: there is no {path}");
    }
}

/// A metric's row in docs/metrics.md.
fn row(metric: &Metric) -> String {
    let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    format!("| `{}` | {} | {labels} | {} |", metric.name, metric.kind.type_name(), metric.help)
}

#[test]
fn the_page_of_metrics_has_every_metric_as_it_is() {
    let page = read(&support::root().join("docs/metrics.md"));
    let missing: Vec<_> = ALL.iter().map(|metric| row(metric)).filter(|row| !page.contains(row)).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks these rows:\n{}", missing.join("\n"));
}

#[test]
fn every_metric_that_a_document_names_exists() {
    for page in pages() {
        let text = read(&page);
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            let suffixes = ["", "_bucket", "_sum", "_count"];
            let is_one = |metric: &&Metric| suffixes.iter().any(|end| word.strip_suffix(end) == Some(metric.name));
            let is_a_plugins_own = word.contains("_NAME");
            // (functions and packages of the bindings for C and Go)
            let is_of_an_interface = word.starts_with("millrace_plugin_clock");
            let is_another = word == "millrace_plugin" || is_a_plugins_own || is_of_an_interface;
            let looks_like_one = word.starts_with("millrace_") && !is_another;
            assert!(!looks_like_one || ALL.iter().any(is_one), "{}: there is no metric {word}", page.display());
        }
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for page in pages() {
        let text = read(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            if path.contains("://") {
                continue;
            }
            let target = if path.is_empty() { page.clone() } else { page.parent().expect("a folder").join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if !heading.is_empty() {
                let there =
                    read(&target).lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
                assert!(there, "{}: {link} names no heading", page.display());
            }
        }
    }
}

/// A heading's name in a link, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}
