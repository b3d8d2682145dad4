//! `millrace test`: the tests that are written in a configuration. The plan, the plugins and the routing are the daemon's;
//! only Kafka is not there.

mod compare;
mod give;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};

use self::compare::Verdict;
use super::plugin::diff::{self, Line};
use super::{ConfigArgument, Failure, environment, run};
use crate::config::{self, Loaded, TestCase};
use crate::control::plan::Plan;
use crate::telemetry::{self, GuestLine, GuestLines};

const PASSED: Style = AnsiColor::Green.on_default();
const FAILED: Style = AnsiColor::Red.on_default().bold();
const REMOVED: Style = AnsiColor::Red.on_default();
const ADDED: Style = AnsiColor::Green.on_default();
const DIM: Style = Style::new().dimmed();

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Run only the tests whose names contain this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Write what came out into the YAML, in the place of what failing tests expect; all else stays as it is written
    #[arg(long)]
    update: bool,
    /// Print the results as JSON, on stdout
    #[arg(long)]
    json: bool,
}

/// A test that was run.
struct Ran<'t> {
    test: &'t TestCase,
    verdict: Verdict,
    /// What its plugins logged.
    lines: Vec<GuestLine>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut loaded = config::load(&arguments.config.path()?, &environment).map_err(Failure::Invalid)?;
    // One that is not to run yet can be tested all the same.
    loaded.settings.routes.values_mut().for_each(|route| route.enabled = true);
    let colour = telemetry::stderr_has_colour(&environment);
    let lines = GuestLines::capture(tracing::Level::INFO, colour).map_err(|error| Failure::Running(error.into()))?;
    let plan = run::build(&loaded, &run::engine(&loaded)?)?;
    let tests = selected(&loaded, arguments.name.as_deref())?;
    lines.take();
    let ran: Vec<Ran<'_>> = tests.into_iter().map(|test| run_one(test, &plan, &lines)).collect();
    let failed = ran.iter().filter(|ran| !ran.verdict.passed()).count();
    if arguments.json {
        anstream::println!("{:#}", results(&ran, failed));
    } else {
        print(&ran, failed).context("stdout cannot be written").map_err(Failure::Environment)?;
    }
    match failed {
        0 => Ok(()),
        _ if arguments.update => update(&ran),
        _ => Err(Failure::Said(1)),
    }
}

fn selected<'l>(loaded: &'l Loaded, name: Option<&str>) -> Result<Vec<&'l TestCase>, Failure> {
    let tests: Vec<&TestCase> =
        loaded.tests.iter().filter(|test| name.is_none_or(|name| test.name.contains(name))).collect();
    match name {
        Some(name) if tests.is_empty() => {
            Err(Failure::Usage(anyhow!("no test has `{name}` in its name (there are {})", loaded.tests.len())))
        }
        _ => Ok(tests),
    }
}

fn run_one<'t>(test: &'t TestCase, plan: &Plan, lines: &GuestLines) -> Ran<'t> {
    let route =
        plan.routes.get(&test.route).expect("tests of routes that are not there are problems, and all are enabled");
    let verdict = match give::give(test, route) {
        Ok(came) => compare::judge(test, &came),
        Err(trouble) => Verdict::broken(trouble.message),
    };
    Ran { test, verdict, lines: lines.take() }
}

fn results(ran: &[Ran<'_>], failed: usize) -> Value {
    let result = |ran: &Ran<'_>| {
        let place = &ran.test.place;
        let lines = ran.lines.iter().map(|line| json!({ "level": level(line), "message": line.message }));
        json!({
            "name": ran.test.name, "route": ran.test.route, "passed": ran.verdict.passed(),
            "file": place.path().display().to_string(), "line": place.line(), "column": place.column(),
            "differences": ran.verdict.differences, "notes": ran.verdict.notes, "logs": lines.collect::<Vec<_>>(),
        })
    };
    json!({ "passed": ran.len() - failed, "failed": failed, "tests": ran.iter().map(result).collect::<Vec<_>>() })
}

fn level(line: &GuestLine) -> String {
    line.level.as_str().to_lowercase()
}

fn print(ran: &[Ran<'_>], failed: usize) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    for each in ran {
        if each.verdict.passed() {
            writeln!(out, "{PASSED}ok{PASSED:#}    {}", each.test.name)?;
        } else {
            print_failure(&mut out, each)?;
        }
    }
    let passed = ran.len() - failed;
    match (ran.len(), failed) {
        (0, _) => writeln!(out, "there are no tests"),
        (_, 0) => writeln!(out, "{passed} passed"),
        _ => writeln!(out, "{passed} passed, {failed} failed"),
    }
}

fn print_failure(out: &mut impl io::Write, ran: &Ran<'_>) -> io::Result<()> {
    let Ran { test, verdict, lines } = ran;
    writeln!(out, "{FAILED}FAIL{FAILED:#}  {}", test.name)?;
    writeln!(out, "      {DIM}{}, route {}{DIM:#}", test.place, test.route)?;
    for difference in &verdict.differences {
        writeln!(out, "      {} ({REMOVED}- expected{REMOVED:#}, {ADDED}+ came out{ADDED:#}):", difference.of)?;
        for line in diff::lines(&difference.expected, &difference.came) {
            match line {
                Line::Removed(text) => writeln!(out, "      {REMOVED}- {text}{REMOVED:#}")?,
                Line::Added(text) => writeln!(out, "      {ADDED}+ {text}{ADDED:#}")?,
                Line::Same(text) => writeln!(out, "        {text}")?,
                Line::Note(text) => writeln!(out, "      {DIM}… {text}{DIM:#}")?,
            }
        }
    }
    for note in &verdict.notes {
        writeln!(out, "      {note}")?;
    }
    for line in lines {
        writeln!(out, "      {DIM}a plugin logged, {}:{DIM:#} {}", level(line), diff::bounded(&line.message))?;
    }
    Ok(())
}

fn update(ran: &[Ran<'_>]) -> Result<(), Failure> {
    let failed = || ran.iter().filter(|ran| !ran.verdict.passed());
    if let Some(broken) = failed().find(|ran| ran.verdict.new.is_none()) {
        return Err(Failure::Running(anyhow!(
            "{}: nothing can be expected of a test that cannot run",
            broken.test.place
        )));
    }
    let new = failed().filter_map(|ran| Some((ran.test, ran.verdict.new.clone()?)));
    let files = config::rewrite(new)
        .map_err(|(test, why)| Failure::Running(anyhow!("{}: \"{}\" is not updated: {why}", test.place, test.name)))?;
    for file in &files {
        replace(&file.path, &file.text)
            .with_context(|| format!("{} cannot be written", file.path.display()))
            .map_err(Failure::Environment)?;
    }
    let names: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
    anstream::eprintln!("updated what {} failing tests expect, in {}", failed().count(), names.join(", "));
    Ok(())
}

/// The whole text or none of it, in the place of the file that a link leads to.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::Builder::new().prefix(".millrace-").tempfile_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(fs::metadata(&path)?.permissions())?;
    new.as_file().sync_all()?;
    new.persist(&path)?;
    Ok(())
}
