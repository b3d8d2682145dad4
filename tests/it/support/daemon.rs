//! The millrace binary as a process of its own: started, asked over HTTP, killed. Knows nothing about its inside.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{scratch, wait_for, wait_until};

/// Compiling the plugins of a cold cache is in it.
const START: Duration = Duration::from_secs(90);

/// The millrace binary with `args`, in an environment that configures nothing.
pub(crate) fn millrace(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(args).stdin(Stdio::null()).env("NO_COLOR", "1");
    for variable in ["MILLRACE_CONFIG", "MILLRACE_LOG", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command
}

/// Runs a command line to its end.
pub(crate) fn millrace_output(args: &[&str]) -> Output {
    millrace(args).output().expect("the millrace binary runs")
}

/// A running `millrace run`. Killed with the value; what it said is shown when the test fails.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    /// The log is somebody else's: it stays, and is not shown.
    keeps_log: bool,
    admin: SocketAddr,
}

impl Daemon {
    /// Starts `millrace run CONFIG` and waits until it is ready. The configuration must say
    /// `admin: { listen: "127.0.0.1:0" }`.
    pub(crate) fn start(config: &Path) -> Self {
        Self::start_with(config, |_| {})
    }

    /// As [`Daemon::start`]; `adjust` sees the command first (arguments, environment).
    pub(crate) fn start_with(config: &Path, adjust: impl FnOnce(&mut Command)) -> Self {
        let daemon = Self::spawn(config, adjust);
        wait_until(START, "the daemon is ready", || {
            daemon.try_get("/readyz").is_some_and(|response| response.status == 200)
        });
        daemon
    }

    /// Starts it and waits only for its admin endpoint.
    pub(crate) fn spawn(config: &Path, adjust: impl FnOnce(&mut Command)) -> Self {
        Self::launch(config, scratch("daemon").with_extension("log"), false, adjust)
    }

    /// As [`Daemon::spawn`]; what it says is left in this file, for a test with so many daemons that none can be shown.
    pub(crate) fn spawn_logging_to(log: PathBuf, config: &Path, adjust: impl FnOnce(&mut Command)) -> Self {
        Self::launch(config, log, true, adjust)
    }

    fn launch(config: &Path, log: PathBuf, keeps_log: bool, adjust: impl FnOnce(&mut Command)) -> Self {
        let file = File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let mut command = millrace(&["run"]);
        command.arg(config).stdout(file.try_clone().expect("a second handle")).stderr(file);
        adjust(&mut command);
        let child = command.spawn().expect("the millrace binary runs");
        // From here on the value's end cleans up, so that no failure below leaves the process behind.
        let mut daemon = Self { child, log, keeps_log, admin: SocketAddr::from(([127, 0, 0, 1], 0)) };
        daemon.admin = wait_for(START, "the daemon says where its admin endpoint listens", || {
            let ended = daemon.child.try_wait().expect("a child of ours");
            if let Some(status) = ended {
                panic!("the daemon ended while starting: {status} ({})", daemon.log.display());
            }
            admin_address(&daemon.log())
        });
        daemon
    }

    /// Of its admin endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// All it has printed.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// GET from the admin endpoint.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|| panic!("no answer from http://{}{path}", self.admin))
    }

    /// GET, or `None` where nothing answers.
    pub(crate) fn try_get(&self, path: &str) -> Option<Response> {
        http(self.admin, "GET", path)
    }

    /// Where its admin endpoint listened when it started.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// POST without a body.
    #[track_caller]
    pub(crate) fn post(&self, path: &str) -> Response {
        http(self.admin, "POST", path).unwrap_or_else(|| panic!("no answer from http://{}{path}", self.admin))
    }

    /// A request with a body.
    #[track_caller]
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> Response {
        let answer = http_with(self.admin, method, path, &[], body);
        answer.unwrap_or_else(|| panic!("no answer from http://{}{path}", self.admin))
    }

    /// The sum of the series of `name` that carry all of `labels`; `None` if there is none.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        sum_of(&self.get("/metrics").body, name, labels)
    }

    /// A route, as the API tells it.
    #[track_caller]
    pub(crate) fn route(&self, name: &str) -> serde_json::Value {
        self.get(&format!("/api/v1/routes/{name}")).json()
    }

    /// Waits until a route is in `state`. Returns the reason, `""` where there is none.
    #[track_caller]
    pub(crate) fn await_state(&self, route: &str, state: &str, timeout: Duration) -> String {
        wait_for(timeout, &format!("{route} is {state}"), || {
            let status = self.route(route);
            (status["state"] == state).then(|| status["reason"].as_str().unwrap_or_default().to_owned())
        })
    }

    /// The whole status.
    #[track_caller]
    pub(crate) fn status(&self) -> serde_json::Value {
        self.get("/api/v1/status").json()
    }

    /// The generation of the configuration in force.
    #[track_caller]
    pub(crate) fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().expect("a number")
    }

    /// How many attempts to load a configuration had this outcome.
    #[track_caller]
    pub(crate) fn reloads(&self, outcome: &str) -> f64 {
        self.metric("millrace_reloads_total", &[("outcome", outcome)]).unwrap_or_default()
    }

    /// Waits until a route's workers go by the configuration of this generation.
    #[track_caller]
    pub(crate) fn await_workers(&self, route: &str, generation: u64, timeout: Duration) {
        wait_until(timeout, &format!("the workers of {route} are at generation {generation}"), || {
            let workers = self.route(route)["workers"].as_array().cloned().unwrap_or_default();
            !workers.is_empty() && workers.iter().all(|worker| worker["generation"] == generation)
        });
    }

    /// Waits until `count` records of a route's source are committed, by its counters.
    #[track_caller]
    pub(crate) fn await_consumed(&self, route: &str, count: usize, timeout: Duration) {
        wait_until(timeout, &format!("{count} records of {route} are committed"), || {
            self.metric("millrace_records_consumed_total", &[("route", route)]).unwrap_or_default() >= count as f64
        });
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most memory that has been resident so far, in bytes.
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the daemon runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a process has it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
    }

    /// A crash.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("the daemon runs");
        self.child.wait().expect("a child of ours");
    }

    /// A crash by this signal, which may find the process stopped.
    #[track_caller]
    pub(crate) fn crash(&mut self, signal: Signal) {
        wait_until(Duration::from_secs(20), "it has crashed", || {
            if self.child.try_wait().expect("a child of ours").is_some() {
                return true;
            }
            // More than once: a handler that looks for stack overflows and traps lets the first SIGSEGV pass.
            self.signal(signal);
            self.signal(Signal::CONT);
            false
        });
    }

    /// An orderly shutdown. Returns the exit code.
    #[track_caller]
    pub(crate) fn sigterm_and_wait(&mut self, timeout: Duration) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait(timeout).code()
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self, timeout: Duration) -> ExitStatus {
        wait_for(timeout, "the daemon ends", || self.child.try_wait().expect("a child of ours"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the daemon runs");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // (errors: it has ended already)
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.keeps_log {
            return;
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- the daemon's last lines, of {} in {}", lines.len(), self.log.display());
            for line in &lines[lines.len().saturating_sub(100)..] {
                eprintln!("{line}");
            }
            eprintln!("----");
        } else {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

/// The address in the log line `admin endpoint listening address=127.0.0.1:PORT`, as text or as JSON.
pub(crate) fn admin_address(log: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("admin endpoint listening"))?;
    let after = &line[line.find("address")? + "address".len()..];
    let address = after.trim_start_matches(['=', ':', '"', ' ']);
    address.split([' ', '"', ',', '}']).next()?.parse().ok()
}

/// An answer over HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Response {
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.body))
    }
}

/// One request on a connection of its own, read to its end.
pub(crate) fn http(address: SocketAddr, method: &str, path: &str) -> Option<Response> {
    http_with(address, method, path, &[], "")
}

/// As [`http`], with headers and a body.
pub(crate) fn http_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Response> {
    let timeout = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, timeout).ok()?;
    stream.set_read_timeout(Some(timeout)).ok()?;
    let mut head = format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{head}\r\n{body}").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Response { status, body: body.to_owned() })
}

/// The sum of the series of `name` that carry all of `labels`, in Prometheus' text format; `None` if there is none.
pub(crate) fn sum_of(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut sum = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (family, rest) = series.split_once('{').unwrap_or((series, ""));
        // A series begins and a label follows with one of these, so that `a="b"` is not found within `ba="b"`.
        let has = |(key, value): &(&str, &str)| {
            let wanted = format!("{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
            rest.strip_suffix('}').is_some_and(|all| all.starts_with(&wanted) || all.contains(&format!(",{wanted}")))
        };
        if family == name && labels.iter().all(has) {
            *sum.get_or_insert(0.0) += value.parse::<f64>().expect("a series has a number");
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_address_is_found_in_either_log_format() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 4321)));
        for line in [
            "2026-01-01T00:00:00Z  INFO admin endpoint listening address=127.0.0.1:4321",
            "INFO millrace::admin: admin endpoint listening address=127.0.0.1:4321 token=none",
            r#"{"level":"INFO","fields":{"message":"admin endpoint listening","address":"127.0.0.1:4321"}}"#,
        ] {
            assert_eq!(admin_address(&format!("first\n{line}\nlast")), address, "{line}");
        }
        assert_eq!(admin_address("nothing yet"), None);
    }

    #[test]
    fn a_metric_is_the_sum_of_the_series_with_all_its_labels() {
        let text = "# HELP m a\nm{route=\"a\",topic=\"x\"} 1\nm{route=\"a\",topic=\"y\"} 2\nm{route=\"b\"} 4\nn 8\n";
        for (name, labels, sum) in [
            ("m", &[("route", "a")][..], Some(3.0)),
            ("m", &[("route", "a"), ("topic", "y")], Some(2.0)),
            ("m", &[], Some(7.0)),
            ("m", &[("route", "c")], None),
            ("m", &[("oute", "a")], None),
            ("n", &[], Some(8.0)),
            ("o", &[], None),
        ] {
            assert_eq!(sum_of(text, name, labels), sum, "{name} {labels:?}");
        }
    }
}
