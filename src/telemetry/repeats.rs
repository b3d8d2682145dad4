//! Keeps a log readable while the same thing goes wrong again and again: one line a key and interval, with the number of
//! those left out.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Most keys remembered at once; beyond that the oldest make room, so that a hostile set of keys cannot fill the memory.
const KEYS_MAX: usize = 1_024;

/// Remembers what was logged lately. A worker has its own: no lock.
#[derive(Debug)]
pub struct Repeats<K> {
    interval: Duration,
    keys: HashMap<K, Seen>,
}

#[derive(Debug)]
struct Seen {
    logged: Instant,
    left_out: u64,
}

/// It is time for a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeated {
    /// How often the same was left out since the last line.
    pub left_out: u64,
}

impl<K: Hash + Eq + Clone> Repeats<K> {
    /// One line a key and `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, keys: HashMap::new() }
    }

    /// `key` has happened: says whether to log it.
    pub fn happened(&mut self, key: &K) -> Option<Repeated> {
        let now = Instant::now();
        match self.keys.get_mut(key) {
            Some(seen) if now < seen.logged + self.interval => {
                seen.left_out += 1;
                None
            }
            Some(seen) => {
                let left_out = std::mem::take(&mut seen.left_out);
                seen.logged = now;
                Some(Repeated { left_out })
            }
            None => {
                self.make_room();
                self.keys.insert(key.clone(), Seen { logged: now, left_out: 0 });
                Some(Repeated { left_out: 0 })
            }
        }
    }

    /// The keys that were left out since their last line and have been quiet for an interval: their numbers would
    /// otherwise never be told.
    pub fn settled(&mut self) -> Vec<(K, Repeated)> {
        let now = Instant::now();
        let quiet = self.keys.extract_if(|_, seen| seen.logged + self.interval <= now);
        quiet
            .filter(|(_, seen)| seen.left_out > 0)
            .map(|(key, Seen { left_out, .. })| (key, Repeated { left_out }))
            .collect()
    }

    fn make_room(&mut self) {
        if self.keys.len() >= KEYS_MAX
            && let Some(oldest) = self.keys.iter().min_by_key(|(_, seen)| seen.logged).map(|(key, _)| key.clone())
        {
            self.keys.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn a_repeated_fault_is_logged_once_an_interval_with_the_number_left_out() {
        let mut repeats = Repeats::new(INTERVAL);
        assert_eq!(repeats.happened(&("r", "trapped")), Some(Repeated { left_out: 0 }));
        assert_eq!(repeats.happened(&("r", "trapped")), None);
        assert_eq!(repeats.happened(&("r", "trapped")), None);
        assert_eq!(repeats.happened(&("r", "refused")), Some(Repeated { left_out: 0 }));
        advance(&mut repeats, INTERVAL);
        assert_eq!(repeats.happened(&("r", "trapped")), Some(Repeated { left_out: 2 }));
        assert_eq!(repeats.happened(&("r", "trapped")), None);
        advance(&mut repeats, INTERVAL);
        assert_eq!(repeats.settled(), [(("r", "trapped"), Repeated { left_out: 1 })]);
        assert_eq!(repeats.settled(), []);
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut repeats = Repeats::new(INTERVAL);
        for key in 0..10 * KEYS_MAX {
            repeats.happened(&key);
        }
        assert_eq!(repeats.keys.len(), KEYS_MAX);
    }

    /// Lets time pass for what was seen, instead of sleeping.
    fn advance<K>(repeats: &mut Repeats<K>, by: Duration) {
        repeats.keys.values_mut().for_each(|seen| seen.logged -= by);
    }
}
