//! A route's lag, put together from what its workers see, and its alarm. Knows neither Kafka nor the log.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use super::status::{LagStatus, PartitionLagStatus};
use crate::config::settings::LagAlert;
use crate::model::TopicPartition;
use crate::pipeline::report::PartitionLag;

/// How long lag has to be above `lag_alert` before that is told: a burst that is worked off is no alarm.
const ABOVE_FOR: Duration = Duration::from_secs(30);

/// The lag of one route, as its workers last looked at it.
#[derive(Debug, Default)]
pub(super) struct RouteLag {
    workers: BTreeMap<u16, Vec<PartitionLag>>,
    alarm: Alarm,
}

/// Lag has crossed `lag_alert`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// It is above, and has been for a while.
    Above(String),
    /// It is below the half again.
    Below(String),
}

impl RouteLag {
    /// What a worker owns now, all of it.
    pub(super) fn owned(&mut self, worker: u16, partitions: &[TopicPartition]) {
        if let Some(lags) = self.workers.get_mut(&worker) {
            lags.retain(|lag| partitions.contains(&lag.partition));
        }
    }

    /// There are so many workers now.
    pub(super) fn workers(&mut self, count: u16) {
        self.workers.retain(|worker, _| *worker < count);
    }

    /// What a worker has seen; whether that sets the alarm off, or ends it.
    pub(super) fn looked(
        &mut self,
        worker: u16,
        lags: &[PartitionLag],
        alert: Option<&LagAlert>,
        now: Instant,
        wall: SystemTime,
    ) -> Option<Turned> {
        self.workers.insert(worker, lags.to_vec());
        let Some(alert) = alert else {
            self.alarm = Alarm::default();
            return None;
        };
        let all = || self.workers.values().flatten();
        let by = |lag: &PartitionLag| match alert {
            LagAlert::Records(limit) => lag.records as f64 / *limit as f64,
            LagAlert::Time(limit) => age(lag.oldest, wall).as_secs_f64() / limit.as_secs_f64(),
        };
        let worst = all().max_by(|a, b| by(a).total_cmp(&by(b)));
        let said = || worst.map_or_else(|| "no partition is owned here".to_owned(), |lag| Shown(lag, wall).to_string());
        match self.alarm.look(worst.map_or(0.0, by), now)? {
            true => Some(Turned::Above(said())),
            false => Some(Turned::Below(said())),
        }
    }

    /// Whether the alarm is on.
    pub(super) fn is_above(&self) -> bool {
        self.alarm.on
    }

    /// For people and programs.
    pub(super) fn status(&self, has_alert: bool, now: SystemTime) -> LagStatus {
        let mut partitions: Vec<_> = self.workers.values().flatten().map(|lag| shown(lag, now)).collect();
        partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        LagStatus {
            records: partitions.iter().map(|lag| lag.records).sum(),
            seconds: partitions.iter().map(|lag| lag.seconds).fold(0.0, f64::max),
            alert: has_alert.then_some(self.alarm.on),
            partitions,
        }
    }
}

/// Fires once it was above for a while; goes out below the half. In between it stays as it is, so that it does not flutter.
#[derive(Debug, Default)]
struct Alarm {
    above_since: Option<Instant>,
    on: bool,
}

impl Alarm {
    /// `level`: 1 is what it is set to. Whether it turns on or off, if it does.
    fn look(&mut self, level: f64, now: Instant) -> Option<bool> {
        let above_since = (level > 1.0).then(|| self.above_since.unwrap_or(now));
        self.above_since = above_since;
        let was = self.on;
        self.on = match above_since {
            Some(since) => was || now.duration_since(since) >= ABOVE_FOR,
            None => was && level >= 0.5,
        };
        (self.on != was).then_some(self.on)
    }
}

fn age(since: Option<SystemTime>, now: SystemTime) -> Duration {
    since.and_then(|since| now.duration_since(since).ok()).unwrap_or_default()
}

fn shown(lag: &PartitionLag, now: SystemTime) -> PartitionLagStatus {
    let seconds = |since| (age(since, now).as_secs_f64() * 10.0).round() / 10.0;
    PartitionLagStatus {
        topic: lag.partition.topic.clone(),
        partition: lag.partition.partition,
        records: lag.records,
        seconds: seconds(lag.oldest),
        blocked_records: lag.blocked,
        blocked_seconds: seconds(lag.blocked_since),
    }
}

struct Shown<'a>(&'a PartitionLag, SystemTime);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(lag, now) = self;
        let seconds = age(lag.oldest, *now).as_secs();
        write!(f, "{} is {} records and {seconds} s behind", lag.partition, lag.records)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::model::TopicName;

    const NOON: Duration = Duration::from_secs(12 * 3600);

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: TopicName::new("t").unwrap(), partition }
    }

    /// So many records behind, the oldest of them so many seconds before noon.
    fn lag(partition: i32, records: u64, seconds: u64) -> PartitionLag {
        let oldest = (records > 0).then(|| UNIX_EPOCH + NOON - Duration::from_secs(seconds));
        PartitionLag { partition: at(partition), records, oldest, blocked: 0, blocked_since: None }
    }

    #[test]
    fn an_alarm_fires_after_30_s_above_and_goes_out_below_the_half() {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        let looks = [
            (0, 1.5, None),
            (20, 1.5, None),
            (25, 1.0, None), // not above: it begins anew
            (30, 1.5, None),
            (59, 9.0, None),
            (60, 1.1, Some(true)),
            (65, 0.7, None),
            (70, 2.0, None),
            (75, 0.5, None),
            (80, 0.4, Some(false)),
            (85, 0.0, None),
            (90, 2.0, None),
            (120, 2.0, Some(true)),
        ];
        for (seconds, level, expected) in looks {
            assert_eq!(alarm.look(level, start + Duration::from_secs(seconds)), expected, "after {seconds} s");
        }
    }

    #[test]
    fn the_worst_partition_of_all_workers_counts_by_records_or_by_age() {
        let wall = UNIX_EPOCH + NOON;
        let start = Instant::now();
        for (alert, expected) in [
            (LagAlert::Records(100), "t/1 is 500 records and 1 s behind"),
            (LagAlert::Time(Duration::from_secs(60)), "t/0 is 5 records and 90 s behind"),
        ] {
            let mut route = RouteLag::default();
            let later = start + ABOVE_FOR;
            assert_eq!(route.looked(0, &[lag(0, 5, 90)], Some(&alert), start, wall), None);
            assert_eq!(route.looked(1, &[lag(1, 500, 1)], Some(&alert), start, wall), None);
            let turned = route.looked(1, &[lag(1, 500, 1)], Some(&alert), later, wall);
            assert_eq!(turned, Some(Turned::Above(expected.into())), "{alert:?}");
            assert!(route.is_above());
            route.owned(0, &[]);
            let turned = route.looked(1, &[lag(1, 0, 0)], Some(&alert), later, wall);
            assert_eq!(turned, Some(Turned::Below("t/1 is 0 records and 0 s behind".into())), "{alert:?}");
        }
    }

    #[test]
    fn the_status_has_the_partitions_in_order_and_forgets_those_that_went() {
        let wall = UNIX_EPOCH + NOON;
        let mut route = RouteLag::default();
        route.looked(0, &[lag(2, 3, 4), lag(0, 0, 0)], None, Instant::now(), wall);
        route.looked(1, &[lag(1, 5, 9)], None, Instant::now(), wall);
        let status = route.status(true, wall);
        assert_eq!((status.records, status.seconds, status.alert), (8, 9.0, Some(false)));
        assert_eq!(status.partitions.iter().map(|lag| lag.partition).collect::<Vec<_>>(), [0, 1, 2]);
        route.owned(0, &[at(0)]);
        route.workers(1);
        let status = route.status(false, wall);
        assert_eq!((status.records, status.alert, status.partitions.len()), (0, None, 1));
    }
}
