//! What a session promises of transactions that overlap: in a thick flow one begins while the last is being committed.

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::*;

/// Work that is all there, in a flow that goes on.
struct Thick(List, OffsetMap);

impl Flight for Thick {
    fn outputs(&self) -> &dyn Outputs {
        &self.0
    }
    fn offsets(&self) -> OffsetMap {
        self.1.clone()
    }
    fn seal(&self) {}
    fn flies_on(&self) -> bool {
        true
    }
}

/// The same, which ends when it is sealed.
struct ThickOpen(Open);

impl Flight for ThickOpen {
    fn outputs(&self) -> &dyn Outputs {
        self.0.outputs()
    }
    fn offsets(&self) -> OffsetMap {
        self.0.offsets()
    }
    fn seal(&self) {
        self.0.seal();
    }
    fn flies_on(&self) -> bool {
        true
    }
}

/// A session that copies its first partition, whose transactions overlap.
struct Train {
    session: Session,
    slot: u16,
    values: Vec<String>,
    done: usize,
}

/// Records of one transaction.
const EACH: usize = 5;

impl Train {
    /// So many of its transactions have begun before the last was committed. The commit of its last one is under way.
    fn new(bench: &Bench, mut session: Session, overlaps: usize) -> Self {
        shared().produce(&bench.source, &numbers(0..3_000));
        let mut seen = Seen::default();
        seen.poll(&mut session, "all records", |seen| seen.values().len() == 3_000);
        let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
        let mut train = Self { session, slot, values: seen.values(), done: 0 };
        let mut count = 0;
        while count < overlaps {
            let (outputs, offsets) = train.next(bench);
            let Flown { before, this } = train.session.transact_while(&Thick(outputs, offsets), &mut |_| ());
            assert!(before.is_none() || before == Some(committed()), "{before:?}");
            assert!(this.is_none() || this == Some(committed()), "{this:?}");
            count += usize::from(before.is_some());
        }
        train
    }

    /// The next transaction's work.
    fn next(&mut self, bench: &Bench) -> (List, OffsetMap) {
        let values = self.values[self.done..][..EACH].iter().cloned();
        self.done += EACH;
        (List::of(self.slot, values), bench.offset(0, self.done as i64))
    }
}

#[test]
fn in_a_thick_flow_transactions_overlap_and_all_is_committed_once_and_in_order() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let mut train = Train::new(&bench, bench.start(), 30);
    assert_eq!(train.session.land(), Some(committed()));
    assert_eq!(bench.committed(0), Some(train.done as i64));
    assert_eq!(bench.values(Isolation::ReadCommitted), train.values[..train.done]);
    // And a thin one goes on behind them.
    let (outputs, offsets) = train.next(&bench);
    assert_eq!(train.session.transact(&outputs, &offsets), committed());
    assert_eq!(bench.values(Isolation::ReadCommitted), train.values[..train.done]);
    train.session.close(false, PATIENCE);
}

#[test]
fn a_rebalance_in_a_thick_flow_waits_for_the_commits_of_all_that_was_begun() {
    let bench = Bench::new(2, Delivery::ExactlyOnce);
    let mut train = Train::new(&bench, bench.start(), 3);
    let (outputs, offsets) = train.next(&bench);
    let (done, joined, until) = (train.done as i64, AtomicBool::new(false), Instant::now() + PATIENCE);
    let work = ThickOpen(Open::new(outputs, offsets));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| bench.join_for_a_share(&joined));
        // (the client waits for it by then)
        let sealer = scope.spawn(|| {
            pace(Duration::from_secs(4));
            work.seal();
        });
        let (mut events, mut found) = (Vec::new(), None);
        let flown = train.session.transact_while(&work, &mut |session| {
            while events.is_empty() {
                assert!(Instant::now() < until, "nobody joined");
                session.fetch(Duration::from_millis(100), 1000, &mut events);
            }
            found = Some(bench.committed(0));
        });
        assert!(matches!(&events[..], [Event::Revoked(_), ..]), "{}", names(&events));
        assert_eq!((flown, found), (Flown { before: Some(committed()), this: None }, Some(Some(done))));
        assert_eq!(train.session.land(), Some(committed()));
        sealer.join().unwrap();
        let mut seen = Seen::default();
        seen.poll(&mut train.session, "the second has its share", |_| joined.load(SeqCst));
        second.join().unwrap();
    });
    train.session.close(false, PATIENCE);
}

#[test]
fn what_the_second_producer_of_a_predecessor_left_open_is_ended_before_its_successor_reads_anything() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    resolve_start(&bench.cluster, &bench.route, &[topic(&bench.source)]).expect("a start");
    let (prefix, instance) = (&bench.cluster.kafka().prefix, unique("instance"));
    let left: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &shared().bootstrap)
        .set("transactional.id", format!("{prefix}.{}.{instance}.0.second", bench.group()))
        .set("transaction.timeout.ms", "60000")
        .create()
        .unwrap();
    left.init_transactions(PATIENCE).unwrap();
    left.begin_transaction().unwrap();
    left.send(BaseRecord::<(), str>::to(&bench.destination).partition(0).payload("left")).unwrap();
    left.flush(PATIENCE).unwrap();
    let ends = |isolation| shared().end_offsets(&bench.destination, isolation);
    let is_open = || ends(Isolation::ReadCommitted) != ends(Isolation::ReadUncommitted);
    assert!(is_open());
    let began = Instant::now();
    let mut session = bench.open(&Instance::Named(instance));
    wait_until(PATIENCE, "it is ended", || !is_open());
    assert!(began.elapsed() < PATIENCE, "by its timeout");
    session.close(true, PATIENCE);
}
