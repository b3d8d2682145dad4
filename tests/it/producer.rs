//! What a worker's producer asks of the client library, call by call, on a client that a test writes down: what no broker
//! can be brought to do at will.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::config::settings::Delivery;
use millrace::config::times::Times;
use millrace::kafka::seam::{
    Apart, Committer, CommitterOptions, Error, Failure, Failures, GroupClient, Hold, Known, MakeClient, ProducerClient,
    TopicIds,
};
use millrace::model::{GroupId, Offset, OffsetMap, TopicName, TopicPartition, clock::SimulatedClock};
use millrace::pipeline::ports::{Flight, Flown, Headers, Outcome, Output, Outputs};

/// A client, and the calls that it has had.
#[derive(Clone, Default)]
struct Scripted {
    calls: Arc<Mutex<Vec<String>>>,
    /// Stands before its calls.
    name: &'static str,
    clock: SimulatedClock,
    /// Its brokers take nothing in any more once it is ready.
    stuck: bool,
    /// They refuse all outputs of the first flush.
    refuses: bool,
    /// They have done so when offsets are to be added: which fails for that.
    refuses_early: bool,
    /// What a commit is answered with.
    commits: Arc<Mutex<Option<Error>>>,
    /// There is no permission for the second one.
    has_no_second: bool,
    failures: Arc<Mutex<Failures>>,
}

impl Scripted {
    fn call(&self, name: &'static str) {
        let (mut calls, name) = (self.calls.lock().unwrap(), format!("{}{name}", self.name));
        if calls.last() != Some(&name) {
            calls.push(name);
        }
    }
    fn refuse(&self) {
        let code = Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE.into();
        self.failures.lock().unwrap().count += 1;
        self.failures.lock().unwrap().first.push(Failure { index: 0, topic: None, code });
    }
    fn take(&self, wait: Duration) {
        self.clock.advance_to(self.clock.elapsed() + wait);
    }
}

impl ProducerClient for Scripted {
    type Topic = ();
    type Member = ();
    fn topic(&self, _: &TopicName) -> Result<(), Error> {
        Ok(())
    }
    fn look_up(&self, (): &(), _: Duration) -> Result<(), Error> {
        Ok(())
    }
    fn produce(&self, (): &(), _: &Output<'_>, _: usize) -> Result<(), Error> {
        self.call("produce");
        Ok(())
    }
    fn flush(&self, wait: Duration) -> bool {
        self.call("flush");
        if self.stuck {
            self.take(wait);
        }
        if self.refuses {
            self.refuse();
        }
        !self.stuck
    }
    fn init_transactions(&self, _: Duration) -> Result<(), Error> {
        self.call("init");
        if self.has_no_second && !self.name.is_empty() {
            return Err(Error {
                fatal: true,
                ..Error::of(Known::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED.into())
            });
        }
        Ok(())
    }
    fn begin_transaction(&self) -> Result<(), Error> {
        self.call("begin");
        Ok(())
    }
    fn send_offsets(&self, _: &OffsetMap, _: &TopicIds, (): &(), _: Duration) -> Result<(), Error> {
        self.call("offsets");
        if self.refuses_early {
            self.refuse();
            return Err(Error { must_abort: true, ..Error::of(Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE.into()) });
        }
        Ok(())
    }
    fn commit_transaction(&self, _: Duration) -> Result<(), Error> {
        self.call("commit");
        self.commits.lock().unwrap().clone().map_or(Ok(()), Err)
    }
    fn abort_transaction(&self, wait: Duration) -> Result<(), Error> {
        self.call("abort");
        self.take(wait);
        Ok(())
    }
    fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Apart<T> {
        Apart::when_asked(work)
    }
    fn serve(&self, wait: Duration) {
        self.take(wait);
    }
    fn fatal_error(&self) -> Option<Error> {
        None
    }
    fn take_errors(&self) -> Vec<Error> {
        Vec::new()
    }
    fn take_failures(&self) -> Failures {
        std::mem::take(&mut self.failures.lock().unwrap())
    }
}

struct Member(Scripted);

impl GroupClient for Member {
    type Member = ();
    fn member(&self) -> Option<()> {
        Some(())
    }
    fn commit_offsets(&self, _: &OffsetMap, _: &TopicIds, _: Duration) -> Result<(), Error> {
        self.0.call("group offsets");
        Ok(())
    }
    fn committed(&self, _: &OffsetMap, _: Duration) -> Result<Vec<(TopicPartition, Offset)>, Error> {
        Ok(Vec::new())
    }
}

/// Outputs of which each comes when those before are on their way.
struct OneByOne {
    left: AtomicUsize,
}

impl OneByOne {
    fn new(count: usize) -> Self {
        Self { left: AtomicUsize::new(count) }
    }
}

impl Outputs for OneByOne {
    fn len(&self) -> usize {
        self.left.load(SeqCst)
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        let (topic, partition, key, timestamp) = (0, 0, None, -1);
        self.left.fetch_sub(1, SeqCst);
        let _ = produce(Output {
            topic,
            partition,
            key,
            value: Some(b"one"),
            timestamp,
            headers: Headers::List(&[]),
            keeper: None,
        });
    }
    fn takes_more(&self) -> bool {
        self.left.load(SeqCst) > 0
    }
    fn close(&self) -> bool {
        self.left.load(SeqCst) > 0
    }
}

fn times() -> Times {
    Times::of(Duration::from_secs(15))
}

fn committer(client: &Scripted, delivery: Delivery) -> Committer<Scripted> {
    let options = CommitterOptions {
        delivery,
        group: GroupId::new("group").unwrap(),
        transactional_id: "id".into(),
        is_static: false,
        times: times(),
    };
    let make = |id: &str| -> MakeClient<Scripted> {
        let name = if id == "id" { "" } else { "second " };
        let made = Scripted { name, ..client.clone() };
        Arc::new(move || Ok(made.clone()))
    };
    let mut committer = Committer::open(options, make).unwrap();
    committer.add_topic(&TopicName::new("out").unwrap(), Duration::ZERO).unwrap();
    committer
}

fn transact(client: &Scripted, delivery: Delivery, outputs: &OneByOne) -> Outcome {
    let at = TopicPartition { topic: TopicName::new("in").unwrap(), partition: 0 };
    committer(client, delivery).transact(
        &Member(client.clone()),
        outputs,
        &OffsetMap::from([(at, 1)]),
        &TopicIds::new(),
    )
}

#[test]
fn a_producer_whose_outputs_nobody_takes_is_replaced_without_an_abort_that_nobody_would_answer() {
    let stuck = Scripted { stuck: true, ..Scripted::default() };
    stuck.clock.rule_this_thread();
    let outcome = transact(&stuck, Delivery::ExactlyOnce, &OneByOne::new(1));
    assert!(matches!(&outcome, Outcome::Aborted(trouble) if trouble.code == "_MSG_TIMED_OUT"), "{outcome:?}");
    // The next one's epoch ends what is open.
    assert_eq!(*stuck.calls.lock().unwrap(), ["init", "begin", "produce", "offsets", "flush", "init"]);
    // `shutdown_timeout` is checked against the longest work on a transaction.
    assert!(stuck.clock.elapsed() <= times().transaction + times().ready, "{:?}", stuck.clock.elapsed());
}

#[test]
fn outputs_that_come_while_others_are_on_their_way_are_acknowledged_before_anything_is_committed() {
    let sent = ["produce", "flush", "produce", "flush", "produce"];
    for (delivery, before, after) in [
        // (nothing comes after the last ones, so that offsets go with them into the transaction)
        (Delivery::ExactlyOnce, &["init", "begin"][..], &["offsets", "flush", "commit"][..]),
        (Delivery::AtLeastOnce, &[], &["flush", "group offsets"]),
    ] {
        let client = Scripted::default();
        let outputs = OneByOne::new(3);
        assert_eq!(transact(&client, delivery, &outputs), Outcome::Committed { lost: 0 });
        assert_eq!(*client.calls.lock().unwrap(), [before, &sent, after].concat());
    }
}

#[test]
fn an_output_that_is_refused_before_the_offsets_are_added_is_found_and_not_the_group_blamed() {
    let client = Scripted { refuses_early: true, ..Scripted::default() };
    let outcome = transact(&client, Delivery::ExactlyOnce, &OneByOne::new(1));
    assert!(matches!(outcome, Outcome::Rejected { output: Some(0), .. }), "{outcome:?}");
    assert_eq!(*client.calls.lock().unwrap(), ["init", "begin", "produce", "offsets", "abort", "init"]);
}

#[test]
fn where_the_first_outputs_are_refused_those_that_come_later_are_not_sent() {
    for (delivery, calls) in [
        (Delivery::ExactlyOnce, &["init", "begin", "produce", "flush", "abort", "init"][..]),
        (Delivery::AtLeastOnce, &["produce", "flush"]),
    ] {
        let client = Scripted { refuses: true, ..Scripted::default() };
        let outcome = transact(&client, delivery, &OneByOne::new(2));
        assert!(matches!(outcome, Outcome::Rejected { output: Some(0), .. }), "{outcome:?}");
        assert_eq!(*client.calls.lock().unwrap(), calls);
    }
}

/// A transaction of one output, to which nothing more is added, in a flow that goes on.
struct InThickFlow(OneByOne, Offset);

impl Flight for InThickFlow {
    fn outputs(&self) -> &dyn Outputs {
        &self.0
    }
    fn offsets(&self) -> OffsetMap {
        OffsetMap::from([(TopicPartition { topic: TopicName::new("in").unwrap(), partition: 0 }, self.1)])
    }
    fn seal(&self) {}
    fn flies_on(&self) -> bool {
        true
    }
}

/// A committer in a thick flow.
struct Train {
    client: Scripted,
    committer: Committer<Scripted>,
    next: Offset,
}

impl Train {
    /// The second producer is ready.
    fn new(client: Scripted) -> Self {
        let committer = committer(&client, Delivery::ExactlyOnce);
        let mut train = Self { client, committer, next: 0 };
        let alone = ["init", "begin", "produce", "offsets", "flush", "commit"];
        assert_eq!(train.fly(), (Flown::of(Outcome::Committed { lost: 0 }), alone.map(String::from).to_vec()));
        train
    }

    /// One transaction more, and the calls that it made.
    fn fly(&mut self) -> (Flown, Vec<String>) {
        self.next += 1;
        let work = InThickFlow(OneByOne::new(1), self.next);
        let hold = || Box::new(()) as Hold;
        let flown = self.committer.transact_flight(&Member(self.client.clone()), &work, &TopicIds::new(), &hold);
        (flown, self.calls())
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.client.calls.lock().unwrap())
    }
}

const COMMITTED: Option<Outcome> = Some(Outcome::Committed { lost: 0 });

#[test]
fn in_a_thick_flow_a_transaction_begins_before_the_last_is_committed_and_its_offsets_follow_that_commit() {
    let mut train = Train::new(Scripted::default());
    let (flown, calls) = train.fly();
    assert_eq!(flown, Flown { before: None, this: None });
    // (everything of it is acknowledged when the next begins)
    assert_eq!(calls, ["second init", "begin", "produce", "flush"]);
    let (flown, calls) = train.fly();
    assert_eq!(flown, Flown { before: COMMITTED, this: None });
    assert_eq!(calls, ["second begin", "second produce", "second flush", "offsets", "commit"]);
    let (flown, calls) = train.fly();
    assert_eq!(flown, Flown { before: COMMITTED, this: None });
    assert_eq!(calls, ["begin", "produce", "flush", "second offsets", "second commit"]);
    assert_eq!((train.committer.land(), train.calls()), (COMMITTED, vec!["offsets".into(), "commit".into()]));
    assert_eq!(train.committer.land(), None);
}

#[test]
fn where_a_transaction_is_not_committed_the_one_begun_behind_it_is_given_up_without_its_offsets() {
    let mut train = Train::new(Scripted::default());
    train.fly();
    let refused = Error { must_abort: true, ..Error::of(Known::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID.into()) };
    *train.client.commits.lock().unwrap() = Some(refused);
    let (Flown { before, this }, calls) = train.fly();
    assert!(matches!(&before, Some(Outcome::Aborted(trouble)) if trouble.code == "UNKNOWN_MEMBER_ID"), "{before:?}");
    assert!(matches!(this, Some(Outcome::Aborted(_))), "{this:?}");
    let begun = ["second begin", "second produce", "second flush"].map(String::from).to_vec();
    assert_eq!(calls, [&begun[..], &["offsets", "commit", "abort", "init", "second abort"].map(String::from)].concat());
    // And where nobody knows what became of it, until that is settled.
    *train.client.commits.lock().unwrap() = None;
    train.fly();
    train.committer.land();
    assert_eq!(train.fly().0, Flown { before: None, this: None });
    train.calls();
    *train.client.commits.lock().unwrap() = Some(Error::of(Known::RD_KAFKA_RESP_ERR__TIMED_OUT.into()));
    let (Flown { before, this }, calls) = train.fly();
    assert!(matches!(before, Some(Outcome::Unknown(_))), "{before:?}");
    assert!(matches!(this, Some(Outcome::Aborted(_))), "{this:?}");
    assert_eq!(calls, [&begun[..], &["offsets", "commit", "second abort"].map(String::from)].concat());
    let (Flown { before, this }, calls) = train.fly();
    assert!(before.is_none() && matches!(this, Some(Outcome::Unknown(_))) && calls.is_empty(), "{this:?}, {calls:?}");
    train.committer.settle(&Member(train.client.clone()), &OffsetMap::new());
    assert_eq!(train.calls(), ["init"]);
}

#[test]
fn without_permission_for_a_second_producer_transactions_follow_each_other_as_in_a_thin_flow() {
    let client = Scripted { has_no_second: true, ..Scripted::default() };
    client.clock.rule_this_thread();
    let mut train = Train::new(client);
    let alone = ["begin", "produce", "offsets", "flush", "commit"].map(String::from);
    for _ in 0..2 {
        let (flown, mut calls) = train.fly();
        assert_eq!(flown, Flown::of(Outcome::Committed { lost: 0 }));
        calls.retain(|call| call != "second init");
        assert_eq!(calls, alone);
    }
    // (it is not asked all the time)
    assert_eq!(train.fly().1, alone);
    train.client.take(Duration::from_secs(60));
    train.fly();
    assert_eq!(train.fly().1[0], "second init");
}

#[test]
fn a_second_producer_that_was_made_and_is_not_needed_any_more_is_let_go_as_the_first_is() {
    let mut train = Train::new(Scripted::default());
    train.committer.rest(Duration::ZERO);
    assert_eq!(train.calls(), ["second init"]);
    let alone = ["init", "begin", "produce", "offsets", "flush", "commit"].map(String::from).to_vec();
    assert_eq!(train.fly(), (Flown::of(Outcome::Committed { lost: 0 }), alone));
}
