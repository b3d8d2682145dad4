//! What a session promises as a member of its group: partitions that come and go, static members and their twins, and its end.

use super::*;

/// So many sessions are closed, each so much longer after it was opened than the one before.
const CLOSES: u32 = 12;
const CLOSED_AFTER: Duration = Duration::from_millis(40);

#[test]
fn a_wait_for_records_ends_when_partitions_are_assigned() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let mut session = bench.start();
    let (began, mut events) = (Instant::now(), Vec::new());
    // (there are no records: without an end the first wait is all of it)
    while !events.iter().any(|event| matches!(event, Event::Assigned(_))) {
        assert!(began.elapsed() < PATIENCE, "{}", names(&events));
        session.poll(PATIENCE * 2, 1, &mut events);
    }
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    session.close(false, PATIENCE);
}

#[test]
fn a_client_ends_whenever_its_session_is_closed_though_orders_ring_all_the_while_and_partitions_are_being_assigned() {
    let bench = Bench::new(2, Delivery::ExactlyOnce);
    resolve_start(&bench.cluster, &bench.route, &[topic(&bench.source)]).expect("a start");
    for round in 0..CLOSES {
        let instance = match round % 2 {
            0 => Instance::Random(unique("process")),
            _ => Instance::Named(unique("process")),
        };
        let mut session = bench.open(&instance);
        let (life, wake) = (session.life(), session.waker());
        let rings = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let rings = &rings;
            scope.spawn(move || {
                while rings.load(SeqCst) {
                    wake();
                    std::thread::yield_now();
                }
            });
            // (from a member that has not joined yet to one that has its partitions)
            let (began, mut events) = (Instant::now(), Vec::new());
            while began.elapsed() < CLOSED_AFTER * round {
                session.poll(CLOSED_AFTER, 1, &mut events);
            }
            session.close(true, PATIENCE);
            drop(session);
            rings.store(false, SeqCst);
        });
        wait_until(PATIENCE, &format!("the client of round {round} has ended"), || !life());
    }
}

#[test]
fn a_rebalance_waits_for_the_end_of_the_transaction_that_is_under_way() {
    let bench = Bench::new(2, Delivery::ExactlyOnce);
    shared().produce(&bench.source, &numbers(0..5));
    let mut first = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut first, "both partitions and five records", |seen| {
        seen.assigned.len() == 2 && seen.values().len() == 5
    });
    let slot = first.topic(&topic(&bench.destination)).unwrap().slot;
    let work = Open::new(List::of(slot, seen.values()), bench.offset(0, 5));
    let (joined, until) = (AtomicBool::new(false), Instant::now() + PATIENCE);
    let (mut events, mut ended_before) = (Vec::new(), false);
    let flown = std::thread::scope(|scope| {
        let second = scope.spawn(|| bench.join_for_a_share(&joined));
        // The one that has to give something away is asked to while its transaction is under way: that is sealed only when
        // the client waits for it, or it would end before.
        let sealer = scope.spawn(|| {
            pace(Duration::from_secs(4));
            work.seal();
        });
        let flown = first.transact_while(&work, &mut |session| {
            while events.is_empty() {
                assert!(Instant::now() < until, "nobody joined");
                session.fetch(Duration::from_millis(100), 1000, &mut events);
            }
            ended_before = session.has_ended();
        });
        sealer.join().unwrap();
        let mut seen = Seen::default();
        seen.poll(&mut first, "the second has its share", |_| joined.load(SeqCst));
        second.join().unwrap();
        flown
    });
    assert_eq!(flown, Flown::of(committed()));
    assert!(matches!(&events[..], [Event::Revoked(_), ..]), "{}", names(&events));
    assert!(ended_before, "the rebalance was served while a transaction was open");
    assert_eq!(bench.committed(0), Some(5));
}

#[test]
fn a_younger_session_with_the_same_instance_keeps_the_work() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    shared().produce(&bench.source, &numbers(0..5));
    let instance = Instance::Named(unique("instance"));
    resolve_start(&bench.cluster, &bench.route, &[topic(&bench.source)]).unwrap();
    let mut older = bench.open(&instance);
    let mut seen = Seen::default();
    seen.poll(&mut older, "5 records", |seen| seen.values().len() >= 5);
    let slot = older.topic(&topic(&bench.destination)).unwrap().slot;
    let mut younger = bench.open(&instance);
    match older.transact(&List::of(slot, seen.values()), &bench.offset(0, 5)) {
        Outcome::Broken(trouble) => assert_eq!(trouble.kind, TroubleKind::Duplicate, "{trouble:?}"),
        other => panic!("{other:?}"),
    }
    let mut seen = Seen::default();
    seen.poll(&mut younger, "5 records", |seen| seen.values().len() >= 5);
    let slot = younger.topic(&topic(&bench.destination)).unwrap().slot;
    assert_eq!(younger.transact(&List::of(slot, seen.values()), &bench.offset(0, 5)), committed());
    assert_eq!(bench.values(Isolation::ReadCommitted), ["0", "1", "2", "3", "4"]);
    older.close(false, PATIENCE);
    younger.close(true, PATIENCE);
}

#[test]
fn a_member_that_the_group_has_given_up_commits_nothing() {
    let mut bench = Bench::new(1, Delivery::ExactlyOnce);
    let short = |name: &str| (name.to_owned(), PropertyValue::plain("6000"));
    bench.route.source.consumer = [short("max.poll.interval.ms"), short("session.timeout.ms")].into();
    shared().produce(&bench.source, &numbers(0..5));
    let mut slow = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut slow, "5 records", |seen| seen.values().len() >= 5);
    let slot = slow.topic(&topic(&bench.destination)).unwrap().slot;
    // The first does not poll any more, so that the group gives its partition to the second.
    let mut quick = bench.open(&Instance::Random(unique("process")));
    let mut seen_quick = Seen::default();
    seen_quick.poll(&mut quick, "5 records", |seen| seen.values().len() >= 5);
    match slow.transact(&List::of(slot, seen.values()), &bench.offset(0, 5)) {
        Outcome::Aborted(trouble) => assert_eq!(trouble.kind, TroubleKind::Moved, "{trouble:?}"),
        other => panic!("{other:?}"),
    }
    assert!(bench.values(Isolation::ReadCommitted).is_empty());
    assert_eq!(bench.committed(0), Some(0));
    let slot = quick.topic(&topic(&bench.destination)).unwrap().slot;
    assert_eq!(quick.transact(&List::of(slot, seen_quick.values()), &bench.offset(0, 5)), committed());
    seen.poll(&mut slow, "the loss", |seen| seen.events.iter().any(|event| matches!(event, Event::Revoked(_))));
    quick.close(false, PATIENCE);
    slow.close(false, PATIENCE);
    assert!(matches!(slow.transact(&List::default(), &bench.offset(0, 5)), Outcome::Broken(_)));
}

#[test]
fn partitions_move_to_a_second_member_and_back_without_loss_or_repeat() {
    let bench = Bench::new(2, Delivery::ExactlyOnce);
    let records: Vec<_> = (0..20).map(|n| Record::new("k", n.to_string()).to(n % 2)).collect();
    shared().produce(&bench.source, &records);
    let mut first = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut first, "20 records", |seen| seen.values().len() >= 20);
    let slot = first.topic(&topic(&bench.destination)).unwrap().slot;
    let both: OffsetMap = [(bench.at(0), 10), (bench.at(1), 10)].into();
    assert_eq!(first.transact(&List::of(slot, seen.values()), &both), committed());

    let mut second = bench.open(&Instance::Random(unique("process")));
    let mut seen_second = Seen::default();
    let until = Instant::now() + PATIENCE;
    while seen_second.assigned.is_empty() {
        assert!(Instant::now() < until, "the second member gets nothing");
        seen.poll(&mut first, "a poll", |_| true);
        let mut events = Vec::new();
        first.poll(Duration::from_millis(20), 100, &mut events);
        for event in events {
            if let Event::Revoked(partitions) = event {
                seen.assigned.retain(|partition| !partitions.contains(partition));
            }
        }
        second.poll(Duration::from_millis(20), 100, &mut seen_second.events);
        for event in seen_second.events.drain(..) {
            if let Event::Assigned(partitions) = event {
                seen_second.assigned.extend(partitions);
            }
        }
    }
    assert_eq!((seen.assigned.len(), seen_second.assigned.len()), (1, 1));
    assert!(seen.assigned.is_disjoint(&seen_second.assigned));
    let moved = seen_second.assigned.first().unwrap().clone();
    shared().produce(&bench.source, &[Record::new("k", "after").to(moved.partition)]);
    seen_second.poll(&mut second, "the record after the move", |seen| !seen.batches.is_empty());
    assert_eq!(seen_second.offsets(&moved), [10], "it goes on where the group left it");

    second.close(false, PATIENCE);
    let mut seen = Seen { assigned: seen.assigned, ..Seen::default() };
    seen.poll(&mut first, "both partitions again", |seen| seen.assigned.len() == 2 && !seen.batches.is_empty());
    assert_eq!(seen.offsets(&moved), [10], "what the second did not commit comes again");
    first.close(false, PATIENCE);
}

#[test]
fn every_group_protocol_carries_records_and_offsets() {
    for (property, value) in [
        ("partition.assignment.strategy", "range"),
        ("partition.assignment.strategy", "roundrobin"),
        ("group.protocol", "consumer"),
    ] {
        let mut bench = Bench::new(2, Delivery::ExactlyOnce);
        bench.route.source.consumer = [(property.to_owned(), PropertyValue::plain(value))].into();
        shared().produce(&bench.source, &numbers(0..5));
        let mut session = bench.start();
        let mut seen = Seen::default();
        seen.poll(&mut session, value, |seen| seen.values().len() >= 5 && seen.assigned.len() == 2);
        let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
        session.pause(&[bench.at(0)]);
        assert_eq!(session.transact(&List::of(slot, seen.values()), &bench.offset(0, 5)), committed(), "{value}");
        session.close(false, PATIENCE);
        let mut next = bench.open(&Instance::Random(unique("process")));
        shared().produce(&bench.source, &numbers(5..6));
        let mut seen = Seen::default();
        seen.poll(&mut next, value, |seen| !seen.batches.is_empty());
        assert_eq!(seen.values(), ["5"], "{value}: it goes on where the group left it");
        next.close(false, PATIENCE);
    }
}

#[test]
fn a_static_member_stays_in_its_group_when_closed_and_leaves_when_told_to() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let members = || {
        let args = ["--describe", "--members", "--group", bench.group()];
        shared().tool("consumer.group.ConsumerGroupCommand", &args)
    };
    let instance = Instance::Named(unique("instance"));
    for leave in [false, true] {
        let mut session = bench.open(&instance);
        let mut seen = Seen::default();
        seen.poll(&mut session, "the partition", |seen| !seen.assigned.is_empty());
        session.close(leave, PATIENCE);
        let found = members();
        assert_eq!(found.contains(instance.as_str()), !leave, "leave: {leave}\n{found}");
    }
}

#[test]
fn partitions_that_a_static_member_was_to_give_up_when_it_died_are_owned_again() {
    let mut bench = Bench::new(4, Delivery::ExactlyOnce);
    bench.route.source.consumer = [("session.timeout.ms".to_owned(), PropertyValue::plain("6000"))].into();
    let [dies, stays] = ["dies", "stays"].map(|name| Instance::Named(unique(name)));
    let mut elder = bench.open(&dies);
    let mut seen = Seen::default();
    seen.poll(&mut elder, "all partitions", |seen| seen.assigned.len() == 4);
    // The second is given none until the elder has given some up, and that polls no more: as a process that is killed.
    let mut other = bench.open(&stays);
    let mut seen_other = Seen::default();
    let has_joined = |seen: &Seen| seen.events.iter().any(|event| matches!(event, Event::Assigned(_)));
    seen_other.poll(&mut other, "an assignment", has_joined);
    assert_eq!(seen_other.assigned.len(), 0);
    // To the group its successor is the same member, and gets what that was left with.
    let mut successor = bench.open(&dies);
    let mut seen = Seen::default();
    let until = Instant::now() + PATIENCE;
    while seen.assigned.len() + seen_other.assigned.len() < 4 {
        assert!(
            Instant::now() < until,
            "owned: {:?} and {:?}; {}",
            seen.assigned,
            seen_other.assigned,
            names(&seen.events)
        );
        seen.take(&mut successor);
        seen_other.take(&mut other);
    }
    // (whichever of the two has noticed first)
    let said = names(&seen.events) + &names(&seen_other.events);
    assert!(said.contains("UNOWNED") && said.contains("leaves and joins again"), "{said}");
    assert!(seen.assigned.is_disjoint(&seen_other.assigned));
}
