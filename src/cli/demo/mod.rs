//! `millrace demo`: a whole working system in one process. The daemon runs as it always does ([`app`]); what is special is
//! around it: a mock of a broker, a writer of events, and a watcher of the topics that the routes write to.

mod directory;
mod events;
mod screen;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;

use self::directory::Directory;
use self::screen::Screen;
use super::{Failure, environment, run};
use crate::app::{self, Running};
use crate::config::settings::{Delivery, Route, Target, TopicSelector};
use crate::config::{self, Loaded};
use crate::control::plan::Plan;
use crate::control::status::{ReloadOutcome, RouteState, Status, Time};
use crate::kafka::{MockCluster, Watcher, Writer};
use crate::model::{RouteName, TopicName, TopicPartition};

/// Where the demo sends its events.
const EVENTS: &str = "quakes";
/// Of each topic.
const PARTITIONS: i32 = 3;
/// How long what was sent may take to arrive, at the end; it takes milliseconds.
const SETTLE: Duration = Duration::from_secs(10);
/// The same, when somebody waits for the end.
const SETTLE_INTERRUPTED: Duration = Duration::from_secs(1);
/// How often the demo looks up while nothing arrives.
const LOOK: Duration = Duration::from_millis(50);
/// Records that arrive this soon after another are brought into the order of events.
const GATHER: Duration = Duration::from_millis(30);

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Events a second
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// End after this many events [default: go on until Ctrl-C]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time, such as 30s
    #[arg(long = "for", value_name = "DURATION", value_parser = config::parse_duration)]
    time: Option<Duration>,
    /// Keep the configuration in this directory, and use what is in it already: edit it and run again
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Directory of drop-where.wasm and redact-fields.wasm [default: ./plugins/dist, else plugins beside the binary]
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Print each record that arrives as a line of JSON, and all else to stderr
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = Directory::prepare(arguments.config_dir.as_deref(), arguments.plugins.as_deref())
        .map_err(Failure::Environment)?;
    // Never dropped: it goes with the process. If it went before the last client had ended, that one would complain.
    let broker = ManuallyDrop::new(MockCluster::start(1).map_err(cannot_start)?);
    let loaded = load(&directory, &broker)?;
    let log = run::start_logging(&loaded.settings.log).map_err(Failure::Running)?;
    let bootstrap = broker.bootstrap();
    if let Err(refusal) = can_be_shown(&loaded, &bootstrap) {
        anstream::eprintln!("millrace: {refusal}");
        return Err(Failure::Said(2));
    }
    let mut show = Show::new(arguments, &loaded, &broker).map_err(cannot_start)?;
    if show.introduce(&loaded, &broker, &directory).is_err() {
        return Ok(()); // nobody reads
    }
    let engine = run::engine(&loaded)?;
    let plan = run::build(&loaded, &engine)?;
    let options = app::Options {
        path: directory.path().to_owned(),
        env: Arc::new(variables(bootstrap.clone())),
        engine,
        log: log.clone(),
        cache_dir: run::default_cache_dir(),
        condition: Some(Box::new(move |loaded| can_be_shown(loaded, &bootstrap))),
    };
    let played = run::runtime()?.block_on(play(show, options, &loaded, plan));
    log.finish();
    let (show, ran) = played?;
    let told = show.conclude(&directory);
    ran?;
    told
}

fn cannot_start(error: String) -> Failure {
    Failure::Environment(anyhow!(error).context("the embedded broker cannot be started"))
}

/// Reads the configuration, with the embedded broker in the variable that it names for Kafka's address.
fn load(directory: &Directory, broker: &MockCluster) -> Result<Loaded, Failure> {
    config::load(directory.path(), &variables(broker.bootstrap())).map_err(Failure::Invalid)
}

fn variables(bootstrap: String) -> impl Fn(&str) -> Option<String> {
    move |name| match name {
        "KAFKA_BOOTSTRAP_SERVERS" => Some(bootstrap.clone()),
        other => environment(other),
    }
}

/// A configuration may have been edited. What the mock cluster would only pretend to do is not shown.
fn can_be_shown(loaded: &Loaded, bootstrap: &str) -> Result<(), String> {
    let settings = &loaded.settings;
    let mut routes = settings.routes.values().filter(|route| route.enabled);
    let elsewhere = settings.kafka.common.get("bootstrap.servers").map(|servers| servers.reveal().to_owned());
    if elsewhere.is_some_and(|servers| servers != bootstrap) {
        return Err(
            "the demo runs on its embedded broker only: leave ${KAFKA_BOOTSTRAP_SERVERS} in bootstrap.servers, or \
                    use `millrace run` for another broker"
                .to_owned(),
        );
    }
    if let Some(route) = routes.clone().find(|route| route.delivery == Delivery::ExactlyOnce) {
        return Err(format!(
            "route {} asks for exactly_once, which the demo cannot show: its embedded broker has no working transactions. \
             Write `delivery: at_least_once`, or use `millrace run` with a real Kafka",
            route.name
        ));
    }
    if !routes.any(|route| reads(route, EVENTS)) {
        return Err(format!(
            "no route reads the topic {EVENTS}, to which the demo sends its events: name it in a `source`"
        ));
    }
    Ok(())
}

/// Runs the daemon and the show until the show is over; a signal ends the show.
async fn play(
    mut show: Show,
    options: app::Options,
    loaded: &Loaded,
    plan: Plan,
) -> Result<(Show, Result<(), Failure>), Failure> {
    let interrupted =
        run::stop_signal(options.log.clone()).context("signals cannot be waited for").map_err(Failure::Running)?;
    let stop = Arc::clone(&show.stop);
    let signals = tokio::spawn(async move {
        interrupted.await;
        stop.store(true, Relaxed);
    });
    let (start, started) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let playing = tokio::task::spawn_blocking(move || {
        // (an error: the daemon could not start, and says why)
        if let Ok(running) = started.blocking_recv() {
            show.play(running);
        }
        let _ = end.send(());
        show
    });
    let until_ended = async {
        let _ = ended.await;
    };
    let running = |running| {
        let _ = start.send(running);
    };
    let ran = app::run_watched(options, loaded, plan, until_ended, running).await.map_err(run::failure);
    let show = playing.await.expect("the show does not panic");
    signals.abort();
    Ok((show, ran))
}

/// Sends events and shows what becomes of them.
struct Show {
    screen: Screen,
    rate: u32,
    count: u64,
    time: Option<Duration>,
    /// Set by a signal.
    stop: Arc<AtomicBool>,
    writer: Writer,
    watcher: Watcher,
    flows: Vec<Flow>,
    sent: u64,
    /// Records that have arrived, by topic.
    arrived: BTreeMap<TopicName, u64>,
    running: Option<Running>,
    /// When the configuration was last loaded, as far as it was shown.
    reloaded_at: Option<Time>,
    /// How the routes fared, before they were stopped.
    last: Option<Status>,
    /// Why not everything was shown.
    trouble: Option<String>,
}

/// A route, as the show follows it.
struct Flow {
    route: Route,
    /// Where its records, and its dead letters, arrive.
    topics: BTreeSet<TopicName>,
    /// Arrived ones in which something was redacted.
    redacted: u64,
    arrived: u64,
}

impl Show {
    fn new(arguments: &Arguments, loaded: &Loaded, broker: &MockCluster) -> Result<Self, String> {
        let routes = loaded.settings.routes.values().filter(|route| route.enabled);
        let mut flows: Vec<_> = routes.map(Flow::new).collect();
        flows.sort_by_key(|flow| !reads(&flow.route, EVENTS));
        let events = TopicName::new(EVENTS).expect("a topic's name");
        let outlets: BTreeSet<_> = flows.iter().flat_map(|flow| flow.topics.clone()).collect();
        let sources = flows.iter().flat_map(|flow| named_topics(&flow.route)).cloned();
        let all: BTreeSet<_> = outlets.iter().cloned().chain(sources).chain([events.clone()]).collect();
        for topic in &all {
            broker.create_topic(topic.as_str(), PARTITIONS)?;
        }
        let partitions = outlets
            .iter()
            .flat_map(|topic| (0..PARTITIONS).map(|partition| TopicPartition { topic: topic.clone(), partition }));
        let widest = flows.iter().flat_map(Flow::titles).map(|title| title.chars().count()).max();
        Ok(Self {
            screen: Screen::new(arguments.json, widest.unwrap_or(0)),
            rate: arguments.rate,
            count: arguments.count.unwrap_or(u64::MAX),
            time: arguments.time,
            stop: Arc::default(),
            writer: broker.writer(&events)?,
            watcher: broker.watcher(partitions)?,
            flows,
            sent: 0,
            arrived: BTreeMap::new(),
            running: None,
            reloaded_at: None,
            last: None,
            trouble: None,
        })
    }

    /// Says what is real and what is not, before anything moves.
    fn introduce(&mut self, loaded: &Loaded, broker: &MockCluster, directory: &Directory) -> io::Result<()> {
        let (bootstrap, events, rate) = (broker.bootstrap(), events::count(), self.rate);
        let about = format!(
            "embedded, on {bootstrap}: librdkafka's mock cluster, which speaks Kafka's protocol\n\
             in memory and keeps nothing: records and offsets are gone when the demo ends"
        );
        let used: BTreeSet<_> = self.flows.iter().map(|flow| flow.route.delivery.as_str()).collect();
        let delivery = format!(
            "{}, since the mock cluster has no working transactions\n\
             exactly_once, the default, takes a real Kafka (`make test` shows it on one)",
            Vec::from_iter(used).join(", ")
        );
        let replay = format!(
            "{events} real earthquakes of a week in 2018 (USGS, public domain), {rate} a second,\n\
             sent to the topic {EVENTS} as if they happened now"
        );
        let paths: Vec<_> = self.flows.iter().map(Flow::path).collect();
        let files: Vec<_> = loaded.files.iter().map(|file| file.display().to_string()).collect();
        let edit =
            "edit it while this runs, and see it taken up: let `equals: automatic` be `reviewed`, or hide `[place]`";
        let kept = match directory.is_temporary() {
            true => "\n(gone at the end: `millrace demo --config-dir DIR` keeps it there)",
            false => "",
        };
        self.screen.say("millrace demo", ": all of this runs in one process, with nothing installed\n")?;
        self.screen.entry("broker", &about)?;
        self.screen.entry("delivery", &delivery)?;
        self.screen.entry("events", &replay)?;
        self.screen.entry("routes", &paths.join("\n"))?;
        self.screen.entry("config", &format!("{}\n{edit}{kept}", files.join(", ")))
    }

    /// Until what was asked for is done, somebody interrupts, or nobody reads any more.
    fn play(&mut self, running: Running) {
        let admin = running.admin;
        self.running = Some(running);
        let shown = self
            .screen
            .entry("console", &format!("http://{admin}/ in a browser (and http://{admin}/metrics)"))
            .and_then(|()| self.screen.entry("Ctrl-C", "ends it"))
            .and_then(|()| self.screen.columns())
            .and_then(|()| self.send_and_show())
            .and_then(|()| self.settle());
        // An error here is a reader that has gone, as in `millrace demo | head`: no more to do.
        let _ = shown.and_then(|()| self.screen.clear_status());
        self.last = self.board();
    }

    fn send_and_show(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let mut events = events::replay();
        let is_over = |time: Option<Duration>| time.is_some_and(|time| begun.elapsed() >= time);
        while self.sent < self.count && !self.stop.load(Relaxed) && !is_over(self.time) {
            let due = begun.elapsed().as_secs_f64() * f64::from(self.rate);
            while self.sent < self.count && self.sent as f64 <= due {
                if let Err(error) = self.send(events.next().expect("they repeat for ever")) {
                    self.trouble = Some(format!("an event could not be sent to the embedded broker: {error}"));
                    return Ok(());
                }
            }
            let next = Duration::from_secs_f64(self.sent as f64 / f64::from(self.rate));
            self.show(next.saturating_sub(begun.elapsed()).min(LOOK))?;
        }
        Ok(())
    }

    fn send(&mut self, event: serde_json::Value) -> Result<(), String> {
        let now = now();
        let event = events::happen(event, now);
        self.writer.send(event.key.as_bytes(), &event.value, now)?;
        self.sent += 1;
        Ok(())
    }

    /// Waits until what was sent has come through.
    fn settle(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        while !self.is_settled() {
            let is_interrupted = self.stop.load(Relaxed);
            let patience = if is_interrupted { SETTLE_INTERRUPTED } else { SETTLE };
            if begun.elapsed() >= patience {
                if !is_interrupted && self.trouble.is_none() {
                    self.trouble = Some(self.what_is_missing(patience));
                }
                break;
            }
            self.show(LOOK)?;
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let Some(status) = self.board() else { return true };
        let totals = |flow: &Flow| status.routes.get(&flow.route.name).map(|route| route.totals).unwrap_or_default();
        let written = |flow: &Flow| totals(flow).produced + totals(flow).dead_letters;
        let all_read = self.flows.iter().all(|flow| totals(flow).consumed >= self.waiting_for(&flow.route));
        all_read && self.flows.iter().map(written).sum::<u64>() <= self.arrived.values().sum()
    }

    fn what_is_missing(&self, patience: Duration) -> String {
        let mut text = format!("not all that was sent has come through within {patience:?}");
        for (name, route) in self.board().into_iter().flat_map(|status| status.routes) {
            if route.state != RouteState::Running {
                let reason = route.reason.unwrap_or_default();
                text += &format!("; route {name} is {}: {reason}", route.state.as_str());
            }
        }
        text
    }

    /// How many records there are for a route to read.
    fn waiting_for(&self, route: &Route) -> u64 {
        let arrived = self.arrived.iter().filter(|(topic, _)| reads(route, topic.as_str())).map(|(_, count)| count);
        arrived.sum::<u64>() + if reads(route, EVENTS) { self.sent } else { 0 }
    }

    /// Says that the configuration was taken up anew, or why it was not.
    fn show_reload(&mut self) -> io::Result<()> {
        let Some(reload) = self.board().and_then(|status| status.last_reload) else { return Ok(()) };
        if self.reloaded_at.replace(reload.at).is_none_or(|before| before == reload.at) {
            return Ok(());
        }
        let text = match reload.outcome {
            ReloadOutcome::Applied => format!("generation {}: {}", reload.generation, reload.told.message),
            ReloadOutcome::Unchanged => reload.told.message,
            ReloadOutcome::Rejected => format!("refused, what runs goes on: {}", reload.told.message),
        };
        self.screen.clear_status()?;
        self.screen.entry("reload", &text)
    }

    /// Shows what arrives within `wait`.
    fn show(&mut self, wait: Duration) -> io::Result<()> {
        self.show_reload()?;
        let mut records = self.watcher.poll(wait);
        if !records.is_empty() {
            records.extend(self.watcher.poll(GATHER));
        }
        // (two routes that write to one topic cannot be told apart there)
        let writer = |topic: &TopicName| self.flows.iter().position(|flow| flow.topics.contains(topic));
        let arrivals = records.into_iter().filter_map(|record| Some((writer(&record.at.topic)?, record)));
        let mut arrivals: Vec<_> = arrivals.collect();
        // They come partition by partition. An event's timestamp stays with it on all its way.
        arrivals.sort_by_key(|(nth, record)| (record.timestamp, *nth));
        for (nth, record) in &arrivals {
            *self.arrived.entry(record.at.topic.clone()).or_default() += 1;
            let flow = &mut self.flows[*nth];
            flow.arrived += 1;
            flow.redacted += u64::from(screen::is_redacted(record));
            self.screen.record(flow.route.name.as_str(), *nth, record)?;
        }
        if arrivals.is_empty() { Ok(()) } else { self.screen.status(&self.status_line()) }
    }

    fn status_line(&self) -> String {
        let status = self.board();
        let of = |name: &RouteName| status.as_ref().and_then(|status| status.routes.get(name));
        let mut parts = vec![format!("{} sent", self.sent)];
        for Flow { route, arrived, redacted, .. } in &self.flows {
            let mut part = format!("{}: {arrived} out", route.name);
            if let Some(status) = of(&route.name) {
                if status.totals.filtered > 0 {
                    part += &format!(", {} dropped", status.totals.filtered);
                }
                if !matches!(status.state, RouteState::Running | RouteState::Starting) {
                    part += &format!(" ({})", status.state.as_str());
                }
            }
            if *redacted > 0 {
                part += &format!(", {redacted} redacted");
            }
            parts.push(part);
        }
        parts.join(" │ ")
    }

    fn board(&self) -> Option<Status> {
        self.running.as_ref().map(|running| running.board.snapshot())
    }

    /// Says what has happened.
    fn conclude(mut self, directory: &Directory) -> Result<(), Failure> {
        let Some(status) = self.last.take() else { return Ok(()) };
        let kept = match directory.is_temporary() {
            true => "nothing".to_owned(),
            false => format!("the configuration in {}", directory.path().display()),
        };
        // (an error: nobody reads)
        let _ = self
            .screen
            .say("", "")
            .and_then(|()| self.screen.entry("sent", &format!("{} events to {EVENTS}", self.sent)))
            .and_then(|()| self.summary(&status).iter().try_for_each(|(name, line)| self.screen.entry(name, line)))
            .and_then(|()| self.screen.entry("kept", &kept));
        match self.trouble {
            Some(trouble) => Err(Failure::Running(anyhow!(trouble))),
            None => Ok(()),
        }
    }

    fn summary(&self, status: &Status) -> Vec<(String, String)> {
        let line = |flow: &Flow| {
            let totals = status.routes.get(&flow.route.name)?.totals;
            let mut line = format!("{} in, {} out", totals.consumed, totals.produced);
            let plugins: Vec<_> = flow.route.pipeline.iter().map(|step| step.plugin.as_str()).collect();
            for (count, what) in [
                (totals.filtered, format!("dropped by {}", plugins.join(" or "))),
                (flow.redacted, "with fields redacted".to_owned()),
                (totals.skipped, "skipped".to_owned()),
                (totals.dead_letters, "dead letters".to_owned()),
            ] {
                if count > 0 {
                    line += &format!(", {count} {what}");
                }
            }
            Some((flow.route.name.to_string(), line))
        };
        self.flows.iter().filter_map(line).collect()
    }
}

impl Flow {
    fn new(route: &Route) -> Self {
        let fixed = route.destinations.iter().filter_map(|to| match &to.target {
            Target::Topic(topic) => Some(topic),
            Target::Pattern(_) => None,
        });
        let topics = fixed.chain(route.on_error.dead_letter_topic()).cloned().collect();
        Self { route: route.clone(), topics, redacted: 0, arrived: 0 }
    }

    /// What stands in front of its records.
    fn titles(&self) -> impl Iterator<Item = String> {
        self.topics.iter().map(|topic| format!("{} → {topic}", self.route.name))
    }

    /// Its way from source to destinations.
    fn path(&self) -> String {
        let Route { name, source, pipeline, .. } = &self.route;
        let from: Vec<_> = source.topics.iter().map(ToString::to_string).collect();
        let through: String = pipeline.iter().map(|step| format!("{} → ", step.plugin)).collect();
        let to: Vec<_> = self.topics.iter().map(TopicName::as_str).collect();
        format!("{name}: {} → {through}{}", from.join(", "), to.join(", "))
    }
}

fn named_topics(route: &Route) -> impl Iterator<Item = &TopicName> {
    route.source.topics.iter().filter_map(|selector| match selector {
        TopicSelector::Name(name) => Some(name),
        TopicSelector::Pattern(_) => None,
    })
}

fn reads(route: &Route, topic: &str) -> bool {
    let matches = |selector: &TopicSelector| selector.matches(topic);
    route.source.topics.iter().any(matches) && !route.source.exclude.iter().any(matches)
}

/// ms since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
