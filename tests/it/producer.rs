//! What a worker's producer asks of the client library, call by call, on a client that a test writes down: what no broker
//! can be brought to do at will.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::config::settings::Delivery;
use millrace::config::times::Times;
use millrace::kafka::seam::{Committer, CommitterOptions, Error, Failures, GroupClient, ProducerClient, TopicIds};
use millrace::model::{GroupId, Offset, OffsetMap, TopicName, TopicPartition, clock::SimulatedClock};
use millrace::pipeline::ports::{Headers, Outcome, Output, Outputs};

/// A client whose brokers take nothing in any more once it is ready, and the calls that it has had.
#[derive(Clone)]
struct Stuck {
    calls: Arc<Mutex<Vec<&'static str>>>,
    clock: SimulatedClock,
}

impl Stuck {
    fn call(&self, name: &'static str) {
        let mut calls = self.calls.lock().unwrap();
        if calls.last() != Some(&name) {
            calls.push(name);
        }
    }
    fn take(&self, wait: Duration) {
        self.clock.advance_to(self.clock.elapsed() + wait);
    }
}

impl ProducerClient for Stuck {
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
        self.take(wait);
        false
    }
    fn init_transactions(&self, _: Duration) -> Result<(), Error> {
        self.call("init");
        Ok(())
    }
    fn begin_transaction(&self) -> Result<(), Error> {
        self.call("begin");
        Ok(())
    }
    fn send_offsets(&self, _: &OffsetMap, _: &TopicIds, (): &(), _: Duration) -> Result<(), Error> {
        self.call("offsets");
        Ok(())
    }
    fn commit_transaction(&self, _: Duration) -> Result<(), Error> {
        self.call("commit");
        Ok(())
    }
    fn abort_transaction(&self, wait: Duration) -> Result<(), Error> {
        self.call("abort");
        self.take(wait);
        Ok(())
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
        Failures::default()
    }
}

struct Member;

impl GroupClient for Member {
    type Member = ();
    fn member(&self) -> Option<()> {
        Some(())
    }
    fn commit_offsets(&self, _: &OffsetMap, _: &TopicIds, _: Duration) -> Result<(), Error> {
        Ok(())
    }
    fn committed(&self, _: &OffsetMap, _: Duration) -> Result<Vec<(TopicPartition, Offset)>, Error> {
        Ok(Vec::new())
    }
}

struct One;

impl Outputs for One {
    fn len(&self) -> usize {
        1
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> std::ops::ControlFlow<()>) {
        let (topic, partition, key, timestamp) = (0, 0, None, -1);
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
}

#[test]
fn a_producer_whose_outputs_nobody_takes_is_replaced_without_an_abort_that_nobody_would_answer() {
    let stuck = Stuck { calls: Arc::default(), clock: SimulatedClock::default() };
    stuck.clock.rule_this_thread();
    let times = Times::of(Duration::from_secs(15));
    let options = CommitterOptions {
        delivery: Delivery::ExactlyOnce,
        group: GroupId::new("group").unwrap(),
        transactional_id: "id".into(),
        is_static: false,
        times,
    };
    let made = stuck.clone();
    let mut committer = Committer::open(options, Box::new(move || Ok(made.clone()))).unwrap();
    committer.add_topic(&TopicName::new("out").unwrap(), Duration::ZERO).unwrap();
    let at = TopicPartition { topic: TopicName::new("in").unwrap(), partition: 0 };
    let outcome = committer.transact(&Member, &One, &OffsetMap::from([(at, 1)]), &TopicIds::new());
    assert!(matches!(&outcome, Outcome::Aborted(trouble) if trouble.code == "_MSG_TIMED_OUT"), "{outcome:?}");
    // The next one's epoch ends what is open.
    assert_eq!(*stuck.calls.lock().unwrap(), ["init", "begin", "produce", "flush", "init"]);
    // `shutdown_timeout` is checked against the longest work on a transaction.
    assert!(stuck.clock.elapsed() <= times.transaction + times.ready, "{:?}", stuck.clock.elapsed());
}
