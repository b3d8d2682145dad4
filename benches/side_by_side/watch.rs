//! A contender, watched from outside: how far its group has committed, and what the kernel counts of its process.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;

use crate::pace;
use crate::records::{Kafka, Source};
use crate::running::Running;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
const WITHIN: Duration = Duration::from_secs(300);
/// Of the machine, from where on a run is told to be disturbed.
const DISTURBED: f64 = 0.08;

/// From a commit that was seen to the last: the start is left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Records a second.
    pub(crate) rate: f64,
    /// CPU seconds of its process for a million records.
    pub(crate) cpu: f64,
    /// Of the machine's CPU time, what anything else took: should be about nothing.
    pub(crate) others: f64,
}

/// Watches from the first commit that is seen with more than `after` records.
pub(crate) fn watch(kafka: &Kafka, running: &mut Running, source: &Source, group: &str, after: usize) -> Measured {
    let (asking, partitions) = (kafka.asking(group, "read_uncommitted"), kafka.partitions(&source.topic));
    let committed = || -> usize {
        let Ok(found) = asking.committed_offsets(partitions.clone(), Duration::from_secs(5)) else { return 0 };
        let offsets = found.elements().into_iter().map(|element| match element.offset() {
            Offset::Offset(offset) => usize::try_from(offset).unwrap_or(0),
            _ => 0,
        });
        offsets.sum()
    };
    let began = Instant::now();
    let mut first: Option<(usize, Instant, Used)> = None;
    loop {
        let (done, now, used) = (committed(), Instant::now(), Used::look(kafka, running));
        match first {
            None if done >= source.count => {
                running.failed(&format!("commits {} records before it is looked at twice: give it more", source.count));
            }
            None if done > after => first = Some((done, now, used)),
            Some((before, since, first)) if done >= source.count => {
                let (records, time) = ((done - before) as f64, (now - since).as_secs_f64());
                let cpu = (used.contender - first.contender) / records * 1e6;
                let measured = Measured { rate: records / time, cpu, others: used.others_since(&first, time) };
                if measured.others > DISTURBED {
                    eprintln!("  disturbed: something else took {:.0} % of the machine", measured.others * 100.0);
                }
                return measured;
            }
            _ => {}
        }
        running.must_live();
        if began.elapsed() > WITHIN {
            running.failed(&format!("is at {done} of {} after {WITHIN:?}", source.count));
        }
        pace(LOOK);
    }
}

/// CPU seconds.
#[derive(Clone, Copy)]
struct Used {
    contender: f64,
    /// Of the broker, and of this.
    known: f64,
    machine: f64,
}

impl Used {
    fn look(kafka: &Kafka, running: &Running) -> Self {
        let known = cpu(kafka.broker) + cpu(std::process::id());
        Self { contender: cpu(running.id()), known, machine: machine() }
    }

    fn others_since(&self, first: &Self, time: f64) -> f64 {
        let known = self.contender - first.contender + self.known - first.known;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (self.machine - first.machine - known) / time / cores as f64
    }
}

/// CPU seconds that a process has used, by its kernel's count of ticks (10 ms).
pub(crate) fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after = stat.rfind(')').map_or("", |end| &stat[end + 2..]);
    ticks(after.split(' ').skip(11).take(2))
}

/// CPU seconds that the machine was busy for.
fn machine() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // user nice system idle iowait irq softirq
    let words: Vec<&str> = stat.split_whitespace().skip(1).take(7).collect();
    ticks(words.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, word)| *word))
}

fn ticks<'a>(words: impl Iterator<Item = &'a str>) -> f64 {
    words.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
}

/// A number of a process's status: `VmRSS` in KiB, `Threads`.
pub(crate) fn status(process: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}
