//! A contender, watched from outside: how far its group has committed, and the CPU time of its process.

use std::process::Child;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::pace;
use crate::records::Kafka;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
const WITHIN: Duration = Duration::from_secs(300);

/// From the first commit that was seen to the last: the start is left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Records a second.
    pub(crate) rate: f64,
    /// CPU seconds of its process for a million records.
    pub(crate) cpu: f64,
}

pub(crate) fn watch(kafka: &Kafka, child: &mut Child, source: &str, group: &str, count: usize) -> Measured {
    let (asking, partitions) = (kafka.asking(group, "read_uncommitted"), kafka.partitions(source));
    let ends: i64 = kafka.ends(source).iter().sum();
    assert_eq!(usize::try_from(ends), Ok(count), "{source} holds what was written, and no marks");
    let committed = || -> i64 {
        let Ok(found) = asking.committed_offsets(partitions.clone(), Duration::from_secs(5)) else { return 0 };
        let offsets = found.elements().into_iter().map(|element| match element.offset() {
            Offset::Offset(offset) => offset,
            _ => 0,
        });
        offsets.sum()
    };
    let began = Instant::now();
    let mut first: Option<(i64, Instant, f64)> = None;
    loop {
        let (done, now, cpu) = (committed(), Instant::now(), cpu(child.id()));
        match first {
            None if done > 0 => first = Some((done, now, cpu)),
            Some((before, since, used)) if done >= ends => {
                let records = (done - before) as f64;
                return Measured { rate: records / (now - since).as_secs_f64(), cpu: (cpu - used) / records * 1e6 };
            }
            _ => {}
        }
        if let Some(status) = child.try_wait().expect("it is our child") {
            panic!("a contender ended before its work: {status}");
        }
        assert!(began.elapsed() < WITHIN, "a contender is at {done} of {ends} after {WITHIN:?}");
        pace(LOOK);
    }
}

/// CPU seconds that a process has used, by its kernel's count of ticks (10 ms).
fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after = stat.rfind(')').map_or("", |end| &stat[end + 2..]);
    let ticks = after.split(' ').skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    ticks.sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
}

/// Ends it in good order.
pub(crate) fn end(mut child: Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("it has one");
    let _ = kill_process(pid, Signal::TERM);
    child.wait().expect("it is our child");
}
