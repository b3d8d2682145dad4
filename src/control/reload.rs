//! Reloads: from a change of files, or a word from outside, to what the supervisor is told to run. On a thread of its own,
//! away from the data path: reading, compiling and asking the cluster may take their time here.
//!
//! Everything new is built before anything that runs is touched, so there is no rollback: a configuration that cannot be
//! is told, and forgotten. What is compared are levels: the files as they are with the files as they were taken up, what
//! is wanted with what runs. However many changes come, and whatever is missed, the next look finds it.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use super::board::StatusBoard;
use super::change::{Action, Changes};
use super::facts::Facts;
use super::hazards::{Hazard, HazardCode, hazards};
use super::look::Look;
use super::plan::{Plan, Refused};
use super::route::Clients;
use super::status::{Cause, Reload, Told};
use super::supervisor::{Supervision, Wanted};
use super::watcher::Watcher;
use crate::config::settings::{Watch, WatchMethod};
use crate::config::{self, Loaded, Problem, Problems};
use crate::kafka::Topics;
use crate::plugin::Engine;

/// A configuration that changes all the time is taken up after this, or twenty times `watch.debounce`, all the same.
const RESTLESS: Duration = Duration::from_secs(5);
/// A plugin file that is no plugin, and a configuration that has lost routes, are taken for files that are still being
/// written until they have kept still for this long.
const WHOLE_WITHIN: Duration = Duration::from_secs(2);
/// How often a configuration is tried again that was refused for something outside of it: a topic, the cluster, an address.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Looks at files follow each other no sooner than this, however much happens around them.
const LOOK_SOONEST: Duration = Duration::from_millis(20);
/// How long the cluster may take to say which topics there are.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// Reading a configuration names files that have to be looked at before they are read; one that names others each time it is
/// read changes faster than anybody can read it.
const READS_MOST: usize = 3;
/// Problems of a refused configuration that are logged; the rest is counted.
const PROBLEMS_LOGGED: usize = 20;

/// Where the values of `${…}` come from.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What else a configuration changes, outside of routes.
pub trait Surroundings: Send {
    /// Takes up what concerns it: the last thing of a reload that can fail.
    ///
    /// # Errors
    /// [`Obstacle`]; all is as it was.
    fn take_up(&mut self, loaded: &Loaded) -> Result<(), Obstacle>;
}

/// Why a configuration cannot be taken up that is right in itself.
pub struct Obstacle {
    /// For people.
    pub message: String,
    /// Whether it may pass without a change of the configuration.
    pub passes: bool,
}

/// What reloads are made of.
pub struct Sources {
    /// The configuration: a file or a directory.
    pub path: PathBuf,
    /// Where the values of its variables come from.
    pub env: Environment,
    /// Compiles plugins.
    pub engine: Engine,
    /// Stands for this process where it has no `instance`.
    pub word: String,
    /// What else changes.
    pub surroundings: Box<dyn Surroundings>,
}

/// Asks for reloads, and knows what is in force. Cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    mailbox: Sender<Message>,
    facts: Arc<ArcSwap<Facts>>,
}

/// How a reload is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// A route may be renamed and get a new group.
    pub accept_new_group: bool,
}

enum Message {
    /// Something has happened to a file.
    Heard,
    Ask(Cause, Ask, oneshot::Sender<Reload>),
}

impl Reloader {
    /// Reads the configuration again. The answer comes when it is taken up or refused; never, if the process ends first.
    pub fn ask(&self, cause: Cause, ask: Ask) -> oneshot::Receiver<Reload> {
        let (answer, answered) = oneshot::channel();
        // (an error: the process is on its way out)
        let _ = self.mailbox.send(Message::Ask(cause, ask, answer));
        answered
    }

    /// The configuration in force.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.load_full()
    }

    /// One that nobody attends to.
    #[cfg(test)]
    pub(crate) fn unattended(facts: Facts) -> Self {
        Self { mailbox: channel().0, facts: Arc::new(ArcSwap::from_pointee(facts)) }
    }

    /// Has the first plan run, and watches for changes from then on.
    pub fn start(
        sources: Sources,
        plan: Arc<Plan>,
        clients: Arc<Clients>,
        board: Arc<StatusBoard>,
        supervision: Supervision,
    ) -> Self {
        let facts = Arc::new(plan.facts());
        let in_force = Arc::new(ArcSwap::new(Arc::clone(&facts)));
        let nothing = Facts { hash: String::new(), process: facts.process.clone(), routes: Default::default() };
        let changes = Changes::between(&nothing, &facts);
        let generation =
            board.applied(&plan.hash, Told { changes: Some(changes.clone()), ..Told::from(changes.to_string()) });
        supervision.want(Wanted { plan: Arc::clone(&plan), clients: Arc::clone(&clients), generation });

        let (own, mailbox) = channel();
        let watch = plan.settings.watch.clone();
        let mut reloading = Reloading {
            sources,
            board,
            supervision,
            in_force: Arc::clone(&in_force),
            running: Running { plan, facts, clients },
            named: BTreeSet::new(),
            taken: Look::default(),
            moving: None,
            changed_at: Instant::now(),
            look_at: None,
            last_look: Instant::now(),
            retry_at: None,
            refused: None,
            candidate: None,
            accepted: Ask::default(),
            watcher: None,
            own: own.clone(),
            mailbox,
        };
        reloading.watch(&watch);
        let thread = std::thread::Builder::new().name("reload".into());
        thread.spawn(move || reloading.run()).expect("the process can start a thread");
        Self { mailbox: own, facts: in_force }
    }
}

struct Running {
    plan: Arc<Plan>,
    facts: Arc<Facts>,
    clients: Arc<Clients>,
}

struct Reloading {
    sources: Sources,
    board: Arc<StatusBoard>,
    supervision: Supervision,
    in_force: Arc<ArcSwap<Facts>>,
    running: Running,
    /// Files beside the YAML that the configuration names, as it was last read.
    named: BTreeSet<PathBuf>,
    /// The files as they were when they were last read.
    taken: Look,
    /// They have changed since.
    moving: Option<Moving>,
    /// When they last changed.
    changed_at: Instant,
    look_at: Option<Instant>,
    last_look: Instant,
    retry_at: Option<Instant>,
    /// Why the files, as they were last read, are not in force.
    refused: Option<String>,
    /// What was built for them, so that it is not compiled again when they are tried again.
    candidate: Option<Arc<Plan>>,
    /// What was accepted for them; it holds when they are tried again.
    accepted: Ask,
    watcher: Option<Watcher>,
    own: Sender<Message>,
    mailbox: Receiver<Message>,
}

/// Files that are changing.
struct Moving {
    look: Look,
    /// Since when they look like this.
    since: Instant,
    first: Instant,
}

/// What came of reading a configuration.
enum Outcome {
    Applied(Box<Next>),
    Unchanged,
    Refused(Refusal),
}

/// A configuration that can be taken up.
struct Next {
    running: Running,
    changes: Changes,
    hazards: Vec<Hazard>,
    loaded: Loaded,
}

impl Next {
    /// Half a YAML file can be a configuration, too: one with fewer routes.
    fn removes_routes(&self) -> bool {
        self.changes.routes(Action::Removed).next().is_some()
    }
}

/// Why a configuration is not taken up.
#[derive(Default)]
struct Refusal {
    message: String,
    problems: Problems,
    hazards: Vec<Hazard>,
    /// It may pass without a change of the files.
    passes: bool,
    /// Plugin files among the reasons that may still be written.
    unfinished: BTreeSet<PathBuf>,
}

impl Refusal {
    fn invalid(problems: Problems, unfinished: BTreeSet<PathBuf>) -> Self {
        let errors = || problems.iter().filter(|problem| !problem.is_warning());
        let more = match errors().count() {
            0 | 1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        let message = errors().next().map_or_else(String::new, |first| format!("{first}{more}"));
        Self { message, problems, unfinished, ..Self::default() }
    }

    fn hazardous(hazards: Vec<Hazard>) -> Self {
        let refusing: Vec<_> = hazards.iter().filter(|hazard| hazard.refused).collect();
        let message: Vec<String> = refusing.iter().map(ToString::to_string).collect();
        let passes = refusing.iter().all(|hazard| hazard.code != HazardCode::NewGroup);
        Self { message: message.join("; "), hazards, passes, ..Self::default() }
    }

    fn failed(message: String) -> Self {
        Self { message, passes: false, ..Self::default() }
    }
}

impl Reloading {
    fn run(mut self) {
        loop {
            let due = self.look_at.into_iter().chain(self.retry_at).min();
            let wait = due.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
            match self.mailbox.recv_timeout(wait) {
                Ok(Message::Heard) => self.hear(),
                Ok(Message::Ask(cause, ask, answer)) => self.answer(cause, ask, answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.look_at.is_some_and(|at| at <= Instant::now()) {
                self.look();
            }
            if self.retry_at.is_some_and(|at| at <= Instant::now()) {
                self.attempt(Cause::Retry, self.accepted);
            }
        }
    }

    // ---- files ------------------------------------------------------------------------

    /// Takes up how files are to be watched.
    fn watch(&mut self, watch: &Watch) {
        let listens = matches!(watch.method, WatchMethod::Auto | WatchMethod::Events);
        if !listens {
            self.watcher = None;
        } else if self.watcher.is_none() {
            let own = self.own.clone();
            self.watcher = Some(Watcher::new(move || drop(own.send(Message::Heard))));
        }
        if let Some(watcher) = &mut self.watcher {
            watcher.follow(self.taken.folders(&self.sources.path));
        }
        // What happened before it listened is found by a look.
        self.look_at = (watch.method != WatchMethod::Off).then(Instant::now);
    }

    fn hear(&mut self) {
        if self.watcher.as_ref().is_some_and(Watcher::heard) && self.moving.is_none() {
            self.look_at = Some(self.last_look + LOOK_SOONEST);
        }
    }

    /// Looks whether the files have changed, and takes them up once they keep still.
    fn look(&mut self) {
        let watch = &self.running.plan.settings.watch;
        let now = Instant::now();
        self.last_look = now;
        self.look_at = match watch.method {
            // Events may be missing even where there are some: on a network file system, behind a link.
            WatchMethod::Auto | WatchMethod::Poll => Some(now + watch.interval),
            WatchMethod::Events | WatchMethod::Off => None,
        };
        let look = Look::at(&self.sources.path, &self.named);
        if look == self.taken {
            self.moving = None;
            return;
        }
        let moving = match self.moving.take() {
            Some(moving) if moving.look == look => moving,
            moved => Moving { look, since: now, first: moved.map_or(now, |moved| moved.first) },
        };
        let quiet_at = moving.since + watch.debounce;
        let restless_at = moving.first + RESTLESS.max(watch.debounce * 20);
        if now >= quiet_at.min(restless_at) {
            self.moving = Some(moving);
            self.attempt(Cause::Files, Ask::default());
        } else {
            self.look_at = Some(quiet_at.min(restless_at));
            self.moving = Some(moving);
        }
    }

    // ---- attempts ---------------------------------------------------------------------

    /// Answers everybody who asks now with one attempt.
    fn answer(&mut self, cause: Cause, ask: Ask, answer: oneshot::Sender<Reload>) {
        let mut answers = vec![answer];
        let mut accept_new_group = ask.accept_new_group;
        while let Ok(message) = self.mailbox.try_recv() {
            match message {
                Message::Heard => self.hear(),
                Message::Ask(_, ask, answer) => {
                    accept_new_group |= ask.accept_new_group;
                    answers.push(answer);
                }
            }
        }
        self.attempt(cause, Ask { accept_new_group });
        let Some(reload) = self.board.snapshot().last_reload else { return };
        for answer in answers {
            // (an error: who asked is gone)
            let _ = answer.send(reload.clone());
        }
    }

    /// Reads everything, and has it run if it can.
    fn attempt(&mut self, cause: Cause, ask: Ask) {
        let began = Instant::now();
        if let Some(moving) = self.moving.take() {
            self.changed_at = moving.since;
        }
        self.retry_at = None;
        self.accepted = ask;
        // A panic is a bug of ours or of the compiler; it costs this attempt, and nothing that runs.
        let outcome = catch_unwind(AssertUnwindSafe(|| match self.read() {
            Ok(loaded) => self.build(loaded, ask),
            Err(problems) => Outcome::Refused(Refusal::invalid(problems, BTreeSet::new())),
        }));
        let bug =
            |_| Outcome::Refused(Refusal::failed("a bug in millrace, please report it (the log has more)".into()));
        let outcome = outcome.unwrap_or_else(bug);
        if !matches!(outcome, Outcome::Refused(_)) {
            self.candidate = None;
        }
        match outcome {
            Outcome::Applied(next) if next.removes_routes() && self.may_be_unfinished(cause) => {
                tracing::debug!("not taken up yet: routes are gone from a file that may still be written");
            }
            Outcome::Applied(next) => self.apply(*next, cause, began),
            Outcome::Unchanged => self.tell_unchanged(cause, began),
            Outcome::Refused(refusal) => self.refuse(refusal, cause, began),
        }
        if let Some(watcher) = &mut self.watcher {
            watcher.follow(self.taken.folders(&self.sources.path));
        }
        if self.running.plan.settings.watch.method != WatchMethod::Off {
            // Something may have happened since they were read, or while the watcher was told where to listen.
            self.look_at = Some(Instant::now());
        }
    }

    /// Whether the files may not be whole yet, since they have changed a short while ago. They are read again then.
    fn may_be_unfinished(&mut self, cause: Cause) -> bool {
        let whole_at = self.changed_at + WHOLE_WITHIN;
        let unfinished = !cause.is_asked() && Instant::now() < whole_at;
        if unfinished {
            self.retry_at = Some(whole_at);
        }
        unfinished
    }

    /// Reads the configuration, and remembers how its files looked before.
    fn read(&mut self) -> Result<Loaded, Problems> {
        let mut tries = 0;
        loop {
            let mut look = Look::at(&self.sources.path, &self.named);
            let reading = config::read(&self.sources.path, &*self.sources.env);
            // Files that it did not name before were not looked at before they were read: once more.
            let is_looked_at = reading.named.is_subset(&self.named);
            self.named = reading.named;
            tries += 1;
            if is_looked_at || tries == READS_MOST {
                look.forget_all_but(&self.named);
                self.taken = look;
                return reading.result;
            }
        }
    }

    /// Builds everything anew that has changed. Nothing that runs is touched.
    fn build(&mut self, loaded: Loaded, ask: Ask) -> Outcome {
        let running = &self.running;
        let plan = match Plan::build(&loaded, &self.sources.engine, Some(&running.plan)) {
            Ok(plan) => Arc::new(plan),
            Err(Refused { mut problems, unfinished }) => {
                problems.extend(loaded.warnings);
                problems.sort();
                return Outcome::Refused(Refusal::invalid(problems, unfinished));
            }
        };
        self.candidate = Some(Arc::clone(&plan));
        let facts = plan.facts();
        if facts == *running.facts && plan.fingerprint == running.plan.fingerprint {
            return Outcome::Unchanged;
        }
        let changes = Changes::between(&running.facts, &facts);
        let clients = match changes.restarts_all() {
            false => Ok(Arc::clone(&running.clients)),
            true => Clients::connect(&plan.settings, &self.sources.word),
        };
        let clients = match clients {
            Ok(clients) => clients,
            Err(why) => return Outcome::Refused(Refusal::failed(format!("the Kafka client cannot be made: {why}"))),
        };
        let (topics, trouble) = ask_for_topics(&plan, &changes, &clients);
        let mut found = hazards(&running.facts, &plan, &changes, topics.as_deref(), ask.accept_new_group);
        found.extend(trouble);
        if found.iter().any(|hazard| hazard.refused) {
            return Outcome::Refused(Refusal::hazardous(found));
        }
        let next = Running { plan, facts: Arc::new(facts), clients };
        Outcome::Applied(Box::new(Next { running: next, changes, hazards: found, loaded }))
    }

    fn apply(&mut self, next: Next, cause: Cause, began: Instant) {
        let Next { running, changes, hazards, loaded } = next;
        if let Err(Obstacle { message, passes }) = self.sources.surroundings.take_up(&loaded) {
            return self.refuse(Refusal { hazards, passes, ..Refusal::failed(message) }, cause, began);
        }
        for warning in loaded.warnings.iter() {
            tracing::warn!("{warning}");
        }
        for hazard in &hazards {
            tracing::warn!("{hazard}");
        }
        let took = began.elapsed();
        let told = Told {
            cause,
            took_ms: took.as_millis() as u64,
            changes: Some(changes.clone()),
            hazards,
            problems: loaded.warnings,
            ..Told::from(changes.to_string())
        };
        let generation = self.board.applied(&running.plan.hash, told);
        let Running { plan, facts, clients } = &running;
        self.in_force.store(Arc::clone(facts));
        self.supervision.want(Wanted { plan: Arc::clone(plan), clients: Arc::clone(clients), generation });
        tracing::info!(generation, cause = cause.as_str(), ?took, "configuration applied: {changes}");
        let watch = plan.settings.watch.clone();
        let watches_else = watch != self.running.plan.settings.watch;
        self.running = running;
        self.refused = None;
        if watches_else {
            self.watch(&watch);
        }
    }

    fn tell_unchanged(&mut self, cause: Cause, began: Instant) {
        let was_refused = self.refused.take().is_some();
        if !was_refused && !cause.is_asked() {
            return tracing::debug!("files were touched, and say what they said before");
        }
        let message = "the configuration is the one in force";
        let took_ms = began.elapsed().as_millis() as u64;
        self.board.unchanged(Told { cause, took_ms, ..Told::from(message) });
        tracing::info!(cause = cause.as_str(), "{message}");
    }

    fn refuse(&mut self, refusal: Refusal, cause: Cause, began: Instant) {
        let Refusal { message, problems, hazards, passes, unfinished } = refusal;
        if !unfinished.is_empty() && self.may_be_unfinished(cause) {
            return tracing::debug!(?unfinished, "not taken up yet: a plugin's file may still be written");
        }
        self.retry_at = passes.then(|| Instant::now() + RETRY_EVERY);
        if self.refused.as_ref() == Some(&message) && !cause.is_asked() {
            return;
        }
        let errors: Vec<&Problem> = problems.iter().filter(|problem| !problem.is_warning()).collect();
        // (one alone is in the line below)
        for problem in errors.iter().take(PROBLEMS_LOGGED).filter(|_| errors.len() > 1) {
            tracing::error!(code = problem.kind(), "{problem}");
        }
        let generation = self.board.snapshot().generation;
        let again = if passes { "; it is tried again by itself" } else { "" };
        tracing::error!(
            generation,
            cause = cause.as_str(),
            "configuration refused, what runs goes on as it is{again}: {message}"
        );
        let took_ms = began.elapsed().as_millis() as u64;
        self.board.rejected(Told { cause, took_ms, hazards, problems, ..Told::from(message.clone()) });
        self.refused = Some(message);
    }
}

/// The topics of the cluster, where the change has to do with them; or why it cannot be asked.
fn ask_for_topics(plan: &Plan, changes: &Changes, clients: &Clients) -> (Option<Arc<Topics>>, Option<Hazard>) {
    let touched = || plan.routes.iter().filter(|(name, _)| changes.action(name) != Action::Unchanged).map(|(_, to)| to);
    if touched().next().is_none() {
        return (None, None);
    }
    let unreachable = |refused: bool, why: &str| {
        let message = format!("the cluster cannot be asked for its topics: {why}");
        Hazard { code: HazardCode::ClusterUnreachable, route: None, message, refused }
    };
    let known = match clients.cluster.topics() {
        Ok(topics) => topics,
        // What has never worked is not harmed; other clients than those that work are.
        Err(trouble) => return (None, Some(unreachable(changes.restarts_all(), &trouble.message))),
    };
    if touched().all(|route| route.topic_trouble(&known).is_none()) {
        return (Some(known), None);
    }
    match clients.cluster.refresh_now(ASK_WITHIN) {
        Ok(topics) => (Some(topics), None),
        Err(trouble) => (None, Some(unreachable(true, &trouble.message))),
    }
}
