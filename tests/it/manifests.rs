//! The manifests in `deploy/kubernetes`, held against the schemas of Kubernetes and KEDA and against millrace's own
//! configuration. Knows nothing about whether a cluster would run them.

use std::fs;
use std::path::Path;

use millrace::config::settings::{Settings, Start};
use millrace::config::{self, share};
use serde_json::Value;

use self::schema::Schemas;
use crate::support::{root, scratch};

const MANIFESTS: [&str; 3] = ["sidecar.yaml", "deployment.yaml", "statefulset.yaml"];
/// What is left of a grace period when everything that has its own time has had it.
const TO_SPARE: u64 = 5;
/// For the application beside a sidecar: Kubernetes' own default.
const APPLICATION: u64 = 30;
const SECRET: &str = "/run/secrets/millrace/admin-token";

fn manifests() -> impl Iterator<Item = (&'static str, Vec<Value>)> {
    MANIFESTS.into_iter().map(|name| {
        let path = root().join("deploy/kubernetes").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (name, documents(&text))
    })
}

fn documents(yaml: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    serde_yaml::Deserializer::from_str(yaml).map(|one| Value::deserialize(one).expect("it is YAML")).collect()
}

fn one_of<'a>(documents: &'a [Value], kinds: &[&str]) -> &'a Value {
    let mut found = documents.iter().filter(|document| kinds.contains(&document["kind"].as_str().expect("a kind")));
    let one = found.next().unwrap_or_else(|| panic!("no {kinds:?}"));
    assert!(found.next().is_none(), "more than one {kinds:?}");
    one
}

fn pod(documents: &[Value]) -> &Value {
    &one_of(documents, &["Deployment", "StatefulSet"])["spec"]["template"]["spec"]
}

/// All containers of a pod, and then millrace's own.
fn containers(pod: &Value) -> (Vec<&Value>, &Value) {
    let lists = [&pod["initContainers"], &pod["containers"]];
    let all: Vec<_> = lists.into_iter().filter_map(Value::as_array).flatten().collect();
    let millrace = all.iter().find(|container| container["name"] == "millrace").expect("millrace is one of them");
    (all.clone(), millrace)
}

/// The configuration of a ConfigMap, read as the daemon reads it.
fn settings(name: &str, documents: &[Value]) -> Settings {
    let folder = scratch("manifest");
    fs::create_dir_all(&folder).expect("a folder");
    let secret = folder.join("token");
    fs::write(&secret, "a token of the test").expect("a file");
    for (file, text) in one_of(documents, &["ConfigMap"])["data"].as_object().expect("files") {
        let text = text.as_str().expect("text").replace(SECRET, secret.to_str().expect("text"));
        fs::write(folder.join(file), text).expect("a file");
    }
    let (_, millrace) = containers(pod(documents));
    let variables = millrace["env"].as_array().expect("variables");
    let value = |variable: &Value| variable["value"].as_str().unwrap_or("millrace-0").to_owned();
    let environment = |name: &str| variables.iter().find(|variable| variable["name"] == name).map(value);
    let loaded = config::load(&folder, &environment).unwrap_or_else(|problems| panic!("{name}:\n{problems}"));
    assert!(loaded.warnings.is_empty(), "{name}:\n{}", loaded.warnings);
    fs::remove_dir_all(&folder).expect("it is ours");
    loaded.settings
}

fn mebibytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().expect("a quantity");
    text.strip_suffix("Mi").and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("not in Mi: {text}"))
}

#[test]
fn the_manifests_are_what_the_schemas_of_kubernetes_and_keda_say() {
    let schemas = Schemas::read(&root().join("tests/it/schemas"));
    for (name, documents) in manifests() {
        for document in &documents {
            assert_eq!(schemas.check(document), [""; 0], "{name}: {}", document["kind"]);
        }
    }
}

#[test]
fn what_is_wrong_in_a_manifest_is_found() {
    let schemas = Schemas::read(&root().join("tests/it/schemas"));
    let (_, documents) = manifests().find(|(name, _)| *name == "deployment.yaml").expect("it is one of them");
    let container = "/spec/template/spec/containers/0";
    for (kind, place, value, problem) in [
        ("Deployment", format!("{container}/readinesProbe"), Value::from(1), "readinesProbe: unknown key"),
        ("Deployment", format!("{container}/readinessProbe/periodSeconds"), "5".into(), "periodSeconds: not integer"),
        ("Deployment", format!("{container}/name"), Value::Null, "0: name is missing"),
        ("Deployment", format!("{container}/env/0"), serde_json::json!([]), "env.0: not object"),
        ("Deployment", "/apiVersion".into(), "apps/v1beta1".into(), "no schema for apps/v1beta1 Deployment"),
        ("Deployment", "/spec/strategy/rollingUpdate/maxSurge".into(), serde_json::json!({}), "maxSurge: none of"),
        ("ScaledObject", "/spec/pollingIntervall".into(), Value::from(15), "pollingIntervall: unknown key"),
        ("ScaledObject", "/spec/scaleTargetRef/name".into(), Value::Null, "scaleTargetRef: name is missing"),
        ("ScaledObject", "/spec/triggers/0/metadata/lagTreshold".into(), "1".into(), "lagTreshold: unknown key"),
        ("ScaledObject", "/spec/triggers/0/metadata/offsetResetPolicy".into(), "none".into(), "not one of"),
        ("ScaledObject", "/spec/triggers/0/metadata/lagThreshold".into(), Value::from(5), "lagThreshold: not string"),
    ] {
        let mut wrong = one_of(&documents, &[kind]).clone();
        let (parent, key) = place.rsplit_once('/').expect("a pointer");
        match wrong.pointer_mut(parent).unwrap_or_else(|| panic!("there is no {parent}")) {
            Value::Object(map) if value.is_null() => drop(map.remove(key)),
            Value::Object(map) => drop(map.insert(key.to_owned(), value)),
            Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value,
            other => panic!("{parent}: {other}"),
        }
        let found = schemas.check(&wrong);
        // (a trigger's metadata is looked at twice: as what KEDA's definition leaves open, and as what its scaler reads)
        let told = !found.is_empty() && found.iter().all(|found| found.contains(problem));
        assert!(told, "{place}: {found:?}");
    }
}

#[test]
fn a_pod_gives_its_processes_the_time_and_the_memory_that_their_configuration_takes_and_no_rights() {
    for (name, documents) in manifests() {
        let (settings, pod) = (settings(name, &documents), pod(&documents));
        let (all, millrace) = containers(pod);
        let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a grace period");
        let own = settings.shutdown_timeout.as_secs() + TO_SPARE;
        let is_sidecar = pod["initContainers"].is_array();
        assert!(grace >= own + if is_sidecar { APPLICATION } else { 0 }, "{name}: {grace} s are too few");

        let limit = mebibytes(&millrace["resources"]["limits"]["memory"]);
        let needed = share::process_ceiling(&settings).div_ceil(1 << 20);
        assert!(limit >= needed, "{name}: {limit} MiB, {needed} are needed");
        assert_eq!(millrace["resources"]["limits"]["cpu"], Value::Null, "{name}: a worker would be held back");

        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in all {
            let rights = &container["securityContext"];
            let expected = [
                ("runAsNonRoot", Value::from(true)),
                ("readOnlyRootFilesystem", true.into()),
                ("allowPrivilegeEscalation", false.into()),
                ("capabilities", serde_json::json!({ "drop": ["ALL"] })),
            ];
            for (key, value) in expected {
                assert_eq!(rights[key], value, "{name}: {}: {key}", container["name"]);
            }
        }
        let image = fs::read_to_string(root().join("Containerfile")).expect("it is there");
        let user = millrace["securityContext"]["runAsUser"].as_u64().expect("a user");
        assert!(image.contains(&format!("USER {user}:{user}\n")), "{name}: the image's user is not {user}");
    }
}

#[test]
fn probes_ask_where_millrace_listens_and_one_poison_record_takes_nobody_out_of_service() {
    for (name, documents) in manifests() {
        let port = settings(name, &documents).admin.listen.port();
        let (_, millrace) = containers(pod(&documents));
        assert_eq!(millrace["ports"][0]["containerPort"], port, "{name}");
        for (probe, path) in [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
            let get = &millrace[probe]["httpGet"];
            // (without ?routes=all or ?route=)
            assert_eq!((&get["path"], &get["port"]), (&path.into(), &millrace["ports"][0]["name"]), "{name}: {probe}");
        }
    }
}

#[test]
fn a_sidecar_stays_beside_its_application_and_starts_before_it() {
    let (_, documents) = manifests().find(|(name, _)| *name == "sidecar.yaml").expect("it is one of them");
    let sidecar = &pod(&documents)["initContainers"][0];
    assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&"millrace".into(), &"Always".into()));
    assert!(sidecar["startupProbe"].is_object(), "the application waits for it");
    for mount in sidecar["volumeMounts"].as_array().expect("mounts") {
        // (a file that is mounted by itself is never changed)
        assert_eq!(mount["subPath"], Value::Null, "{mount}");
    }
}

#[test]
fn membership_is_static_where_names_come_back_and_only_there() {
    for (name, documents) in manifests() {
        let instance = settings(name, &documents).instance;
        let is_static = one_of(&documents, &["Deployment", "StatefulSet"])["kind"] == "StatefulSet";
        assert_eq!(instance.as_deref(), is_static.then_some("millrace-0"), "{name}");
        let (_, millrace) = containers(pod(&documents));
        let named =
            millrace["env"].as_array().expect("variables").iter().find(|variable| variable["name"] == "POD_NAME");
        let from = named.map(|variable| &variable["valueFrom"]["fieldRef"]["fieldPath"]);
        assert_eq!(from, is_static.then_some(&"metadata.name".into()), "{name}");
    }
}

#[test]
fn keda_scales_on_the_lag_of_the_route_that_the_deployment_runs() {
    let (name, documents) = manifests().find(|(name, _)| *name == "deployment.yaml").expect("it is one of them");
    let settings = settings(name, &documents);
    let scaled = &one_of(&documents, &["ScaledObject"])["spec"];
    let deployment = one_of(&documents, &["Deployment"]);
    assert_eq!(scaled["scaleTargetRef"]["name"], deployment["metadata"]["name"]);
    assert_eq!(deployment["spec"]["replicas"], Value::Null, "two would set it");
    let trigger = &scaled["triggers"][0];
    assert_eq!(trigger["type"], "kafka");
    let route = settings.routes.values().next().expect("a route");
    assert_eq!(trigger["metadata"]["consumerGroup"], route.source.group.to_string());
    assert_eq!(trigger["metadata"]["topic"], route.source.topics[0].to_string());
    let policy = match route.source.start {
        Start::Earliest => "earliest",
        Start::Latest | Start::At(_) => "latest",
    };
    assert_eq!(trigger["metadata"]["offsetResetPolicy"], policy);
    let fallback = scaled["fallback"]["replicas"].as_u64();
    assert!(fallback <= scaled["maxReplicaCount"].as_u64() && fallback >= scaled["minReplicaCount"].as_u64());
}

/// As much of JSON Schema as the schemas of Kubernetes and KEDA use.
mod schema {
    use super::*;

    pub(super) struct Schemas {
        kubernetes: Value,
        keda: Value,
    }

    impl Schemas {
        pub(super) fn read(folder: &Path) -> Self {
            let read = |name: &str| {
                let text = fs::read_to_string(folder.join(name)).expect("a schema");
                serde_json::from_str(&text).expect("a schema is JSON")
            };
            Self { kubernetes: read("kubernetes-1.37.json"), keda: read("keda-2.21.json") }
        }

        /// What is wrong with a manifest; nothing, if all is right.
        pub(super) fn check(&self, manifest: &Value) -> Vec<String> {
            let [version, kind] = ["apiVersion", "kind"].map(|key| manifest[key].as_str().unwrap_or_default());
            let known = self.kubernetes.as_object().expect("definitions").values().chain([&self.keda["ScaledObject"]]);
            let names = |schema: &&Value| {
                let is = |key: &str, word| schema["properties"][key]["enum"][0] == word;
                is("apiVersion", version) && is("kind", kind)
            };
            let Some(schema) = known.into_iter().find(names) else {
                return vec![format!("no schema for {version} {kind}")];
            };
            let mut found = Vec::new();
            self.hold(schema, manifest, "", &mut found);
            if kind == "ScaledObject" {
                for trigger in manifest["spec"]["triggers"].as_array().into_iter().flatten() {
                    self.hold(&self.keda["kafkaTriggerMetadata"], &trigger["metadata"], ".metadata", &mut found);
                }
            }
            found
        }

        fn hold(&self, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
            if let Some(name) = schema["$ref"].as_str() {
                return self.hold(&self.kubernetes[name], value, at, found);
            }
            if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
                let fits = |choice: &Value| {
                    let mut problems = Vec::new();
                    self.hold(choice, value, at, &mut problems);
                    problems.is_empty()
                };
                if !choices.iter().any(fits) {
                    found.push(format!("{at}: none of {choices:?}"));
                }
                return;
            }
            if !is_of_type(&schema["type"], value) {
                let names = schema["type"].as_str().or(schema["type"][0].as_str()).unwrap_or_default();
                return found.push(format!("{at}: not {names}"));
            }
            if schema["enum"].as_array().is_some_and(|allowed| !value.is_null() && !allowed.contains(value)) {
                found.push(format!("{at}: not one of {}", schema["enum"]));
            }
            match value {
                Value::Object(map) => self.hold_object(schema, map, at, found),
                Value::Array(list) => {
                    for (place, item) in list.iter().enumerate() {
                        self.hold(&schema["items"], item, &format!("{at}.{place}"), found);
                    }
                }
                _ => {}
            }
        }

        fn hold_object(&self, schema: &Value, map: &serde_json::Map<String, Value>, at: &str, found: &mut Vec<String>) {
            for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !map.contains_key(required) {
                    found.push(format!("{at}: {required} is missing"));
                }
            }
            for (key, value) in map {
                let at = format!("{at}.{key}");
                match (schema["properties"].get(key), &schema["additionalProperties"]) {
                    (Some(schema), _) => self.hold(schema, value, &at, found),
                    (None, Value::Object(_)) => self.hold(&schema["additionalProperties"], value, &at, found),
                    // An object of which nothing is said may hold anything.
                    (None, Value::Null) if schema["properties"].is_null() => {}
                    (None, _) => found.push(format!("{at}: unknown key")),
                }
            }
        }
    }

    fn is_of_type(allowed: &Value, value: &Value) -> bool {
        let is = |name: &Value| match name.as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            Some("null") => value.is_null(),
            other => panic!("a type that is not known here: {other:?}"),
        };
        match allowed {
            Value::Null => true,
            Value::Array(names) => names.iter().any(is),
            name => is(name),
        }
    }
}
