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
use super::files::Files;
use super::graph::Graph;
use super::hazards::{Hazard, HazardCode, hazards};
use super::plan::{Plan, Refused};
use super::route::Clients;
use super::status::{Cause, Reload, Told};
use super::supervisor::{Supervision, Wanted};
use crate::config::{Loaded, Problem, Problems};
use crate::kafka::Topics;
use crate::plugin::Engine;

/// How often a configuration is tried again that was refused for something outside of it: a topic, the cluster, an address.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// How long the cluster may take to say which topics there are.
const ASK_WITHIN: Duration = Duration::from_secs(5);
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
    graph: Arc<ArcSwap<Graph>>,
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

    /// What flows where in it.
    pub fn graph(&self) -> Arc<Graph> {
        self.graph.load_full()
    }

    /// One that nobody attends to.
    #[cfg(test)]
    pub(crate) fn unattended(facts: Facts) -> Self {
        Self { mailbox: channel().0, facts: Arc::new(ArcSwap::from_pointee(facts)), graph: Arc::default() }
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
        let graph = Arc::new(ArcSwap::from_pointee(Graph::of(&plan)));
        let nothing = Facts { hash: String::new(), process: facts.process.clone(), routes: Default::default() };
        let changes = Changes::between(&nothing, &facts);
        let generation =
            board.applied(&plan.hash, Told { changes: Some(changes.clone()), ..Told::from(changes.to_string()) });
        supervision.want(Wanted { plan: Arc::clone(&plan), clients: Arc::clone(&clients), generation });

        let (own, mailbox) = channel();
        let Sources { path, env, engine, word, surroundings } = sources;
        let heard = own.clone();
        let files = Files::new(path, env, plan.settings.watch.clone(), move || drop(heard.send(Message::Heard)));
        let reloading = Reloading {
            engine,
            word,
            surroundings,
            board,
            supervision,
            in_force: Arc::clone(&in_force),
            graph: Arc::clone(&graph),
            running: Running { plan, facts, clients },
            files,
            retry_at: None,
            refused: None,
            candidate: None,
            accepted: Ask::default(),
            mailbox,
        };
        let thread = std::thread::Builder::new().name("reload".into());
        thread.spawn(move || reloading.run()).expect("the process can start a thread");
        Self { mailbox: own, facts: in_force, graph }
    }
}

struct Running {
    plan: Arc<Plan>,
    facts: Arc<Facts>,
    clients: Arc<Clients>,
}

struct Reloading {
    engine: Engine,
    word: String,
    surroundings: Box<dyn Surroundings>,
    board: Arc<StatusBoard>,
    supervision: Supervision,
    in_force: Arc<ArcSwap<Facts>>,
    graph: Arc<ArcSwap<Graph>>,
    running: Running,
    files: Files,
    retry_at: Option<Instant>,
    /// Why the files, as they were last read, are not in force.
    refused: Option<String>,
    /// What was built for them, so that it is not compiled again when they are tried again.
    candidate: Option<Arc<Plan>>,
    /// What was accepted for them; it holds when they are tried again.
    accepted: Ask,
    mailbox: Receiver<Message>,
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
            let due = self.files.due().into_iter().chain(self.retry_at).min();
            let wait = due.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
            match self.mailbox.recv_timeout(wait) {
                Ok(Message::Heard) => self.files.hear(),
                Ok(Message::Ask(cause, ask, answer)) => self.answer(cause, ask, answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.files.due().is_some_and(|at| at <= Instant::now()) && self.files.have_changed(Instant::now()) {
                self.attempt(Cause::Files, Ask::default());
            }
            if self.retry_at.is_some_and(|at| at <= Instant::now()) {
                self.attempt(Cause::Retry, self.accepted);
            }
        }
    }

    /// Answers everybody who asks now with one attempt.
    fn answer(&mut self, cause: Cause, ask: Ask, answer: oneshot::Sender<Reload>) {
        let mut answers = vec![answer];
        let mut accept_new_group = ask.accept_new_group;
        while let Ok(message) = self.mailbox.try_recv() {
            match message {
                Message::Heard => self.files.hear(),
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
        self.retry_at = None;
        self.accepted = ask;
        // A panic is a bug of ours or of the compiler; it costs this attempt, and nothing that runs.
        let outcome = catch_unwind(AssertUnwindSafe(|| match self.files.read() {
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
    }

    /// Whether the files may not be whole yet, since they have changed a short while ago. They are read again then.
    fn may_be_unfinished(&mut self, cause: Cause) -> bool {
        let until = self.files.unfinished_until().filter(|_| !cause.is_asked());
        self.retry_at = until.or(self.retry_at);
        until.is_some()
    }

    /// Builds everything anew that has changed. Nothing that runs is touched.
    fn build(&mut self, loaded: Loaded, ask: Ask) -> Outcome {
        let running = &self.running;
        let plan = match Plan::build(&loaded, &self.engine, Some(&running.plan)) {
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
            true => Clients::connect(&plan.settings, &self.word),
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
        if let Err(Obstacle { message, passes }) = self.surroundings.take_up(&loaded) {
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
        self.board.named(plan.settings.instance.clone());
        self.in_force.store(Arc::clone(facts));
        self.graph.store(Arc::new(Graph::of(plan)));
        self.supervision.want(Wanted { plan: Arc::clone(plan), clients: Arc::clone(clients), generation });
        tracing::info!(generation, cause = cause.as_str(), ?took, "configuration applied: {changes}");
        if plan.settings.watch != self.running.plan.settings.watch {
            self.files.watch(plan.settings.watch.clone());
        }
        self.running = running;
        self.refused = None;
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
        if self.refused.as_ref() == Some(&message) && cause == Cause::Retry {
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
