//! `millrace dlq redrive`: letters go through their route again.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::filter::Filter;
use super::{Failure, TopicArguments, connect, failed, route_of};
use crate::cli::plugin::load::with_progress;
use crate::cli::run::{build, engine};
use crate::control::redrive::{Course, Progress, Redrive, Said, Scan, Terms, ask, record_of};
use crate::control::replay::Bench;
use crate::model::{RouteName, TopicName};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: TopicArguments,
    /// Whose letters are meant [default: the only route that has TOPIC as its dead-letter topic]
    #[arg(long, value_name = "NAME", value_parser = |text: &str| RouteName::new(text))]
    route: Option<RouteName>,
    #[command(flatten)]
    filter: Filter,
    /// Only say what would be done, and what the route's present plugins make of each letter
    #[arg(long)]
    dry_run: bool,
    /// Letters that have been sent through so often already are not any more
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Where those go, instead of to the end of TOPIC
    #[arg(long, value_name = "TOPIC", value_parser = |text: &str| TopicName::new(text))]
    set_aside: Option<TopicName>,
    /// Letters a second, at most
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Back into the topics that they came from, as they came: every group that reads those sees them again
    #[arg(long)]
    to_source: bool,
    /// Do not ask before it begins
    #[arg(long)]
    yes: bool,
}

/// What a look at the letters has found.
#[derive(Default)]
struct Found {
    courses: BTreeMap<Course, u64>,
    codes: BTreeMap<String, u64>,
    /// What the present plugins say, where they are asked.
    said: BTreeMap<String, u64>,
}

impl Found {
    fn count(&self, course: Course) -> u64 {
        self.courses.get(&course).copied().unwrap_or(0)
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let topic = &arguments.of.topic;
    let loaded = arguments.of.load()?;
    let name = route_of(&loaded, arguments.route.as_ref(), topic)?;
    let plan = with_progress("compiling plugins", || build(&loaded, &engine(&loaded)?))?;
    let Some(route) = plan.routes.get(name) else {
        return Err(Failure::Usage(anyhow::anyhow!("route \"{name}\" is not enabled: its plugins are not made")));
    };
    let cluster = connect(&loaded)?;
    let filter = arguments.filter.clone();
    let terms = Terms {
        wanted: Arc::new(move |letter, batch, index| filter.takes(letter, batch, index)),
        times: arguments.times,
        set_aside: arguments.set_aside.clone(),
        rate: arguments.rate,
        to_source: arguments.to_source,
    };
    let redrive = Redrive::new(&cluster, route, topic, terms);
    let mut found = Found::default();
    let mut bench = (arguments.dry_run && !arguments.to_source).then(|| Bench::new(route));
    let look = || {
        redrive.scan(|batch, index, course, letter| {
            *found.courses.entry(course).or_default() += 1;
            let Some(letter) = letter.filter(|_| course == Course::Redrive) else { return };
            if let Some(bench) = &mut bench {
                let said = match ask(bench, &record_of(batch, index, &letter)) {
                    Said::Fault(fault) => format!("at fault again: {}", fault.code),
                    Said::Dropped => "dropped".to_owned(),
                    Said::Passed(_) => "let through".to_owned(),
                };
                *found.said.entry(said).or_default() += 1;
            }
            *found.codes.entry(letter.code).or_default() += 1;
        })
    };
    let scan = with_progress(&format!("reading {topic}"), look).map_err(failed)?;
    let count = found.count(Course::Redrive);
    if !arguments.of.json || !arguments.dry_run {
        announce(arguments, name, &found);
    }
    if arguments.dry_run {
        if arguments.of.json {
            print_plan(name, &found);
        }
        return Ok(());
    }
    // (what would only be put back lies well where it is)
    let to_set_aside = found.count(Course::TooOften) + found.count(Course::Cut);
    if count == 0 && (arguments.set_aside.is_none() || to_set_aside == 0) {
        if arguments.of.json {
            print_done(&Progress::default());
        }
        return Ok(());
    }
    if !arguments.yes && std::io::stdin().is_terminal() && !is_confirmed(count.max(to_set_aside)) {
        return Err(Failure::Usage(anyhow::anyhow!("nothing was sent")));
    }
    let done = watched(&redrive, &scan, count)?;
    if arguments.of.json {
        print_done(&done)
    } else {
        tell_done(arguments, &done)
    }
    Ok(())
}

fn announce(arguments: &Arguments, route: &RouteName, found: &Found) {
    let topic = &arguments.of.topic;
    let count = found.count(Course::Redrive);
    let way = if arguments.to_source {
        "back into the topics that they came from: every group that reads those will see them again".to_owned()
    } else {
        format!("through route \"{route}\"")
    };
    anstream::eprintln!("{count} dead letters of \"{topic}\" go {way}");
    for (code, count) in &found.codes {
        anstream::eprintln!("  {count:>8}  {code}");
    }
    if !found.said.is_empty() {
        anstream::eprintln!("the route's plugins, as they are now:");
        for (said, count) in &found.said {
            anstream::eprintln!("  {count:>8}  {said}");
        }
    }
    let aside = match &arguments.set_aside {
        Some(topic) => format!("go to \"{topic}\""),
        None => "are put back at the end".to_owned(),
    };
    for (course, what) in [
        (Course::LeftOut, "do not match, and are put back at the end".to_owned()),
        (Course::TooOften, format!("have been sent through {} times or more, and {aside}", arguments.times)),
        (Course::Cut, format!("have lost a part of their value, and {aside}")),
        (Course::NotOurs, "are not this route's, and stay as they are".to_owned()),
    ] {
        let count = found.count(course);
        if count > 0 {
            anstream::eprintln!("{count} {what}");
        }
    }
}

fn is_confirmed(count: u64) -> bool {
    anstream::eprint!("send {count} letters? [y/N] ");
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Runs it, and shows on a terminal how far it is.
fn watched(redrive: &Redrive, scan: &Scan, count: u64) -> Result<Progress, Failure> {
    let bar = ProgressBar::new(count);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {msg}");
    bar.set_style(style.expect("it is a template"));
    let progress = redrive.progress();
    let done = std::thread::scope(|scope| {
        let work = scope.spawn(|| redrive.run(scan));
        while !work.is_finished() {
            let now = progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
            bar.set_position(now.redriven);
            bar.set_message(now.trouble.map(|trouble| format!("waiting: {}", trouble.message)).unwrap_or_default());
            std::thread::park_timeout(Duration::from_millis(100));
        }
        work.join()
    });
    bar.finish_and_clear();
    done.map_err(|_| Failure::Running(anyhow::anyhow!("a bug in millrace, please report it")))?.map_err(failed)
}

fn tell_done(arguments: &Arguments, done: &Progress) {
    let Progress { redriven, outputs, filtered, failed, put_back, set_aside, .. } = done;
    let again: u64 = failed.values().sum();
    anstream::println!(
        "{redriven} sent through: {outputs} records written, {filtered} dropped by plugins, {again} at fault again"
    );
    for (code, count) in failed {
        anstream::println!("  {count:>8}  {code}");
    }
    if *put_back > 0 {
        anstream::println!("{put_back} put back at the end of \"{}\"", arguments.of.topic);
    }
    if let (Some(topic), true) = (&arguments.set_aside, *set_aside > 0) {
        anstream::println!("{set_aside} set aside in \"{topic}\"");
    }
}

fn print_plan(route: &RouteName, found: &Found) {
    let object = json!({
        "route": route, "redrive": found.count(Course::Redrive), "codes": found.codes, "plugins_say": found.said,
        "left_out": found.count(Course::LeftOut), "too_often": found.count(Course::TooOften),
        "cut": found.count(Course::Cut), "not_ours": found.count(Course::NotOurs),
    });
    anstream::println!("{object:#}");
}

fn print_done(done: &Progress) {
    let failed: BTreeMap<_, _> = done.failed.iter().map(|(code, count)| (code.as_str(), count)).collect();
    let object = json!({
        "redriven": done.redriven, "outputs": done.outputs, "filtered": done.filtered, "failed": failed,
        "put_back": done.put_back, "set_aside": done.set_aside,
    });
    anstream::println!("{object:#}");
}
