//! What a run tells at its end, in one block. Knows nothing about how it was found.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::time::Duration;

use super::events::{Action, Assignment, Membership, Shape, name_of};

/// The figures of one run.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) what: String,
    pub(crate) took: Duration,
    pub(crate) events: BTreeMap<&'static str, usize>,
    pub(crate) figures: Vec<(&'static str, String)>,
    pub(crate) complaints: Vec<String>,
}

impl Summary {
    pub(crate) fn new(seed: u64, shape: &Shape) -> Self {
        let Shape { nodes, membership, assignment, length } = shape;
        let nodes = nodes.map_or("somebody's".to_owned(), |nodes| nodes.to_string());
        let (membership, assignment) = (name_of(&Membership::ALL, membership), name_of(&Assignment::ALL, assignment));
        let seconds = length.as_secs();
        let what = format!("seed {seed}, nodes: {nodes}, {membership}, {assignment}, {seconds} s of faults");
        Self { what, ..Self::default() }
    }

    pub(crate) fn count(&mut self, action: &Action) {
        *self.events.entry(kind(action)).or_default() += 1;
    }

    pub(crate) fn figure(&mut self, name: &'static str, value: impl fmt::Display) {
        self.figures.push((name, value.to_string()));
    }

    /// Prints it, and appends it to the file that `TORTURE_SUMMARY` names.
    pub(crate) fn tell(&self) {
        // (not by eprint, which the harness keeps to itself where a test passes)
        let _ = write!(std::io::stderr(), "{self}");
        if let Some(path) = std::env::var_os("TORTURE_SUMMARY").filter(|path| !path.is_empty()) {
            let file = std::fs::File::options().create(true).append(true).open(&path);
            let written = file.and_then(|mut file| file.write_all(self.to_string().as_bytes()));
            written.unwrap_or_else(|e| panic!("TORTURE_SUMMARY={}: {e}", path.display()));
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "---- torture: {}, {:.0} s in all", self.what, self.took.as_secs_f64())?;
        let events: Vec<String> = self.events.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(f, "events: {}", events.join(", "))?;
        for (name, value) in &self.figures {
            writeln!(f, "{name}: {value}")?;
        }
        for complaint in &self.complaints {
            writeln!(f, "COMPLAINT {complaint}")?;
        }
        writeln!(f, "---- {}", if self.complaints.is_empty() { "nothing to complain of" } else { "complaints" })
    }
}

fn kind(action: &Action) -> &'static str {
    match action {
        Action::Kill(_) => "kill -9",
        Action::Abort(_) => "SIGABRT",
        Action::Segfault(_) => "SIGSEGV",
        Action::Terminate(_) => "SIGTERM",
        Action::Start(_) => "start",
        Action::Stop(..) => "SIGSTOP",
        Action::Continue(_) => "SIGCONT",
        Action::StartTwin(_) => "twin",
        Action::EndElder(_) => "elder's end",
        Action::EndTwin(_) => "twin's end",
        Action::KillBroker(_) => "broker kill -9",
        Action::ShutDownBroker(_) => "broker shutdown",
        Action::StartBroker => "broker start",
        Action::StopBroker(_) => "broker SIGSTOP",
        Action::ContinueBroker => "broker SIGCONT",
        Action::MoveLeaders => "leader election",
        Action::Reload => "reload",
        Action::BreakConfig => "broken configuration",
    }
}
