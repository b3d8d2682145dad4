//! The image of `Containerfile`, built of this very binary and run: what it may not do, and that it routes, reloads and drains
//! all the same. Needs podman and runc, as root; where containers cannot run, these tests fail and say so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::alerts::assert_fires;
use crate::support::config::plugin;
use crate::support::daemon::{Response, admin_address, http, sum_of};
use crate::support::kafka::{Isolation, Kafka, Record, shared};
use crate::support::load::Load;
use crate::support::{root, scratch, unique, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// What a container may have. Its process says so when it starts.
const MEMORY_MIB: u64 = 512;
const THREADS: u64 = 100;
const OPEN_FILES: u64 = 1_024;
/// The image's user.
const NOBODY: &str = "65532";

/// The image, built once. Its name stays the same, so that a run leaves no more behind than one image.
static IMAGE: LazyLock<&str> = LazyLock::new(|| {
    const TAG: &str = "localhost/millrace-test";
    let mut command = Command::new(root().join("scripts/container"));
    command.args(["build", "--tag", TAG, "--binary", env!("CARGO_BIN_EXE_millrace")]);
    succeed(command.env("CONTAINER_ENGINE", engine().join(" ")));
    // (what an earlier run had made of it)
    succeed(&mut podman(&["image", "prune", "--force"]));
    TAG
});

/// Podman, with images and containers of its own below the build directory, in a form that needs nothing of the kernel.
fn engine() -> [String; 9] {
    let storage =
        |part: &str| Path::new(env!("CARGO_TARGET_TMPDIR")).join("containers").join(part).display().to_string();
    let words = ["podman", "--runtime", "runc", "--storage-driver", "vfs", "--root", "", "--runroot", ""];
    let mut words = words.map(str::to_owned);
    (words[6], words[8]) = (storage("root"), storage("run"));
    words
}

/// Runs a command that must succeed.
#[track_caller]
fn succeed(command: &mut Command) -> Output {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error} (scripts/setup test installs podman and runc)"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

fn podman(arguments: &[&str]) -> Command {
    let [program, options @ ..] = engine();
    let mut command = Command::new(program);
    // Without systemd there is nobody who would run the health check by its interval: the tests ask for it.
    command.env("DISABLE_HC_SYSTEMD", "true").args(options).args(arguments);
    command
}

/// A running container. Gone with the value; what it said is shown when the test fails.
struct Container {
    name: String,
    pid: u32,
    admin: std::net::SocketAddr,
}

impl Container {
    /// Runs the image as the manifests in deploy/ have Kubernetes do: nothing of it may be written but the cache.
    fn start(config: &Path) -> Self {
        let name = unique("millrace-it");
        let mount = |from: &Path, to: &str| format!("{}:{to}:ro", from.display());
        let mut command = podman(&[
            "run",
            "--detach",
            "--name",
            &name,
            "--network",
            "host",
            "--read-only",
            "--read-only-tmpfs=false",
        ]);
        command.args(["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]);
        command.args(["--memory", &format!("{MEMORY_MIB}m"), "--pids-limit", &THREADS.to_string()]);
        command.args(["--ulimit", &format!("nofile={OPEN_FILES}:{OPEN_FILES}"), "--ulimit", "nproc=1024:1024"]);
        command.args(["--tmpfs", "/var/cache:rw,exec,mode=1777,size=128m"]);
        command.args(["--volume", &mount(config, "/etc/millrace")]);
        command.args(["--volume", &mount(plugin("stamp").parent().expect("a folder"), "/plugins")]);
        let mut container = Self { name, pid: 0, admin: std::net::SocketAddr::from(([127, 0, 0, 1], 0)) };
        succeed(command.arg(*IMAGE));
        container.admin = wait_for(PATIENCE, "the container says where its admin endpoint listens", || {
            assert!(container.exit_code().is_none(), "the container ended while starting:\n{}", container.log());
            admin_address(&container.log())
        });
        container.pid = container.inspect("{{.State.Pid}}").parse().expect("a pid");
        wait_until(PATIENCE, "the container is ready", || container.get("/readyz").status == 200);
        container
    }

    fn inspect(&self, format: &str) -> String {
        let output = succeed(&mut podman(&["inspect", "--format", format, &self.name]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn exit_code(&self) -> Option<i32> {
        let state = self.inspect("{{.State.Status}} {{.State.ExitCode}}");
        state.strip_prefix("exited ").map(|code| code.parse().expect("a code"))
    }

    fn log(&self) -> String {
        let output = succeed(&mut podman(&["logs", &self.name]));
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    #[track_caller]
    fn get(&self, path: &str) -> Response {
        http(self.admin, "GET", path).unwrap_or_else(|| panic!("no answer from {}{path}", self.admin))
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        sum_of(&self.get("/metrics").body, name, labels)
    }

    /// A file of /proc about its process.
    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The file of its control group that bounds its memory.
    fn memory_limit(&self) -> PathBuf {
        let groups = self.proc("cgroup");
        let of = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/').to_owned());
            let file = match controllers {
                "" => Path::new("/sys/fs/cgroup").join(path).join("memory.max"),
                "memory" => Path::new("/sys/fs/cgroup/memory").join(path).join("memory.limit_in_bytes"),
                _ => return None,
            };
            file.exists().then_some(file)
        };
        groups.lines().find_map(of).unwrap_or_else(|| panic!("no limit of memory: {groups}"))
    }

    /// Runs the binary once more, within the container.
    fn exec(&self, arguments: &[&str]) -> Output {
        podman(&["exec", &self.name, "/usr/bin/millrace"]).args(arguments).output().expect("podman runs")
    }

    /// Has it stop, as the kubelet does. Returns its exit code and how long it took.
    fn stop(&self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        succeed(&mut podman(&["stop", "--time", "30", &self.name]));
        (self.exit_code(), began.elapsed())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = podman(&["logs", "--tail", "60", &self.name]).output();
            let said = logs.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
            eprintln!("---- the container's last lines\n{}----", String::from_utf8_lossy(&said));
        }
        // (errors: it is gone already)
        let _ = podman(&["rm", "--force", "--time", "0", &self.name]).output();
    }
}

/// A ConfigMap as the kubelet mounts it: files in a directory named after the time, `..data` that leads there, and links to
/// the files through it.
struct ConfigMap {
    folder: PathBuf,
}

impl ConfigMap {
    fn new(yaml: &str) -> Self {
        let map = Self { folder: scratch("config-map") };
        fs::create_dir_all(&map.folder).expect("a directory");
        map.put(yaml);
        symlink("..data/millrace.yaml", map.folder.join("millrace.yaml")).expect("a link");
        map
    }

    /// Puts another content in the place of what is there, in one rename.
    fn put(&self, yaml: &str) {
        let [time, temporary] = [unique("..2026"), "..data_tmp".to_owned()];
        let folder = self.folder.join(&time);
        fs::create_dir(&folder).expect("a directory");
        fs::write(folder.join("millrace.yaml"), yaml).expect("a file");
        let (temporary, data) = (self.folder.join(temporary), self.folder.join("..data"));
        let before = fs::read_link(&data).ok();
        symlink(&time, &temporary).expect("a link");
        fs::rename(&temporary, &data).expect("the link takes its place");
        before.into_iter().for_each(|before| fs::remove_dir_all(self.folder.join(before)).expect("the old one goes"));
    }
}

impl Drop for ConfigMap {
    fn drop(&mut self) {
        // (left behind where a test fails, to be looked at)
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A route that puts a stamp on each record.
fn stamping(kafka: &Kafka, prefix: &str, [source, target]: [&str; 2], stamp: &str) -> String {
    format!(
        "kafka: {{ prefix: {prefix}, bootstrap.servers: \"{}\" }}
admin: {{ listen: \"127.0.0.1:0\" }}
memory: 128MiB
plugins:
  stamp: {{ path: /plugins/stamp.wasm, config: {{ name: stamp, value: \"{stamp}\" }} }}
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: stamp }}]
    destinations: [{{ topic: {target} }}]
",
        kafka.bootstrap
    )
}

#[test]
fn the_image_routes_records_reloads_a_swapped_config_map_and_drains_with_nothing_but_what_it_needs() {
    let kafka = shared();
    let [source, target] = ["container", "container-out"].map(unique);
    for topic in [&source, &target] {
        kafka.create_topic(topic, 1, &[]);
    }
    let prefix = unique("it");
    let yaml = |stamp: &str| stamping(kafka, &prefix, [&source, &target], stamp);
    let map = ConfigMap::new(&yaml("one"));
    let container = Container::start(&map.folder);

    kafka.produce(&source, &[Record::new("k", "1")]);
    kafka.await_records(&target, 1, PATIENCE);
    assert_confined(&container);
    assert_told(&container);

    map.put(&yaml("two"));
    wait_until(PATIENCE, "the new ConfigMap is in force", || {
        container.metric("millrace_config_generation", &[]) == Some(2.0)
    });
    // What the first worker takes up between two transactions is there a moment later.
    let records = wait_for(PATIENCE, "a record meets the new ConfigMap", || {
        kafka.produce(&source, &[Record::new("k", "2")]);
        let records = kafka.kcat_consume(&target, Isolation::ReadCommitted);
        records.last().is_some_and(|last| last.headers[0].1.as_deref() == Some(b"two")).then_some(records)
    });
    assert_eq!(records[0].headers[0].1.as_deref(), Some(&b"one"[..]));
    assert_memory_alert(&container);
    map.put("nonsense: true");
    wait_until(PATIENCE, "a ConfigMap that makes no sense is refused", || {
        container.metric("millrace_config_last_reload_successful", &[]) == Some(0.0)
    });
    assert_eq!(container.get("/readyz").status, 200);

    let (code, took) = container.stop();
    assert_eq!(code, Some(0), "{}", container.log());
    assert!(took < Duration::from_secs(25), "it drained for {took:?}");
    assert!(container.log().contains("drained"), "{}", container.log());
    let committed = kafka.committed(&format!("{prefix}.r"), &source);
    let ends = kafka.end_offsets(&source, Isolation::ReadCommitted);
    assert_eq!(committed, ends, "all that was sent is committed");
}

/// By what the kernel says about the process.
#[track_caller]
fn assert_confined(container: &Container) {
    let status = container.proc("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} {status}"));
        line.split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), [NOBODY; 4]);
    assert_eq!(field("Gid:"), [NOBODY; 4]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"]);
    let mounts = container.proc("mountinfo");
    let options = |at: &str| {
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[4] == at);
        mount.unwrap_or_else(|| panic!("{at} in {mounts}"))[5].to_owned()
    };
    for at in ["/", "/etc/millrace", "/plugins"] {
        assert!(options(at).starts_with("ro,"), "{at}: {}", options(at));
    }
    let threads: u64 = field("Threads:")[0].parse().expect("a number");
    assert!(threads < THREADS, "{threads} threads");

    // Neither a shell nor anything else that could be run. What the engine itself puts in is not in the image.
    let inside = PathBuf::from(format!("/proc/{}/root", container.pid));
    for folder in ["usr/bin", "bin", "usr/sbin", "sbin", "usr/local/bin"] {
        let programs: Vec<_> = fs::read_dir(inside.join(folder))
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        let expected: &[&str] = if folder == "usr/bin" { &["millrace"] } else { &[] };
        assert_eq!(programs, expected, "{folder}");
    }
    // The plugin's machine code, and the component that it is of, are kept where something writable is mounted.
    let kept = fs::read_dir(inside.join("var/cache/millrace")).expect("the cache is made");
    let mut kinds: Vec<_> = kept.filter_map(|entry| Some(entry.ok()?.path().extension()?.to_owned())).collect();
    kinds.sort();
    assert_eq!(kinds, ["component", "cwasm"]);
    assert!(!container.log().contains("cache"), "a complaint about the cache: {}", container.log());
}

/// Its memory is nearly all that it may have, for a while: it sees that, and the alert fires.
#[track_caller]
fn assert_memory_alert(container: &Container) {
    wait_until(PATIENCE, "it is idle", || container.metric("millrace_consumer_lag_records", &[]) == Some(0.0));
    let before = container.get("/metrics").body;
    let resident = sum_of(&before, "process_resident_memory_bytes", &[]).expect("it is measured");
    let limit = container.memory_limit();
    let was = fs::read_to_string(&limit).expect("the limit");
    fs::write(&limit, ((resident / 0.95) as u64).to_string()).expect("what it has charged is less");
    let after = container.get("/metrics").body;
    fs::write(&limit, was.trim()).expect("the limit");
    assert_fires(
        &[("a", &[before, after])],
        &[r#"alertname="MillraceMemoryNearLimit",severity="ticket",instance="a",job="m""#],
    );
}

/// By what it says itself: its limits at the start and in its metrics, its health by its own binary.
#[track_caller]
fn assert_told(container: &Container) {
    let log = container.log();
    let line = log.lines().find(|line| line.contains("limits of this process")).unwrap_or_else(|| panic!("{log}"));
    for told in [
        format!("memory=\"{MEMORY_MIB} MiB\""),
        format!("threads=\"{THREADS}\""),
        format!("open_files=\"{OPEN_FILES}\""),
    ] {
        assert!(line.contains(&told), "{told}: {line}");
    }
    assert_eq!(container.metric("millrace_memory_limit_bytes", &[]), Some((MEMORY_MIB << 20) as f64));
    assert_eq!(container.metric("process_max_fds", &[]), Some(OPEN_FILES as f64));
    let resident = container.metric("process_resident_memory_bytes", &[]).expect("it is measured");
    assert!(resident < (MEMORY_MIB << 20) as f64, "{resident}");

    // The health check that the image has, and the same by hand. (Where it listens is known to the log alone: port 0.)
    let check = container.inspect("{{json .Config.Healthcheck.Test}}");
    assert_eq!(check, r#"["CMD","/usr/bin/millrace","health"]"#);
    let url = format!("http://{}", container.admin);
    let healthy = container.exec(&["health", "--ready", "--route", "r", "--url", &url]);
    assert_eq!(healthy.status.code(), Some(0), "{}", String::from_utf8_lossy(&healthy.stderr));
    let sick = container.exec(&["health", "--url", "http://127.0.0.1:9"]);
    assert_eq!(sick.status.code(), Some(1), "{}", String::from_utf8_lossy(&sick.stderr));
}

#[test]
fn a_second_container_of_the_group_comes_and_the_first_goes_under_load_and_nothing_is_lost_or_doubled() {
    const PARTITIONS: i32 = 4;
    let kafka = shared();
    let [source, target] = ["containers", "containers-out"].map(unique);
    for topic in [&source, &target] {
        kafka.create_topic(topic, PARTITIONS, &[]);
    }
    let map = ConfigMap::new(&stamping(kafka, &unique("it"), [&source, &target], "s"));
    let assigned = |container: &Container| container.metric("millrace_partitions_assigned", &[]).unwrap_or_default();
    let first = Container::start(&map.folder);
    let load = Load::start(kafka, &source, PARTITIONS as usize, 300);
    wait_until(PATIENCE, "the first has all partitions", || assigned(&first) == f64::from(PARTITIONS));

    let second = Container::start(&map.folder);
    wait_until(PATIENCE, "each has half of the partitions", || {
        [&first, &second].map(assigned) == [f64::from(PARTITIONS / 2); 2]
    });
    let seen = load.sent();
    wait_until(PATIENCE, "records flow through both", || load.sent() > seen + 300);
    assert_eq!(first.stop().0, Some(0), "{}", first.log());
    wait_until(PATIENCE, "the second has all partitions", || assigned(&second) == f64::from(PARTITIONS));
    let sent = load.stop();
    let arrived = kafka.await_records(&target, sent.count, PATIENCE);
    sent.assert_whole(&arrived, "two containers");
    assert_eq!(second.stop().0, Some(0), "{}", second.log());
}
