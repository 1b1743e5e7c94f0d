//! One peer's share of what all peers use: whoever spends theirs spends nobody else's.
//!
//! The share outlives the snapshots that lead to it. Workers take from it without a lock; nothing here sends or drops.

use std::time::{Duration, Instant};

use super::constants::{
    ANSWERS_AT_ONCE, ANSWERS_PER_SECOND, NOTICES_AT_ONCE, NOTICES_PER_SECOND, ROAMS_AT_ONCE, ROAMS_PER_SECOND,
};
use super::policy::Flows;
use super::sync::{AtomicU64, Ordering};

/// A peer's share.
#[derive(Debug)]
pub(super) struct Share {
    /// Control frames that the slow path hears of.
    pub(super) controls: Budget,
    /// Datagrams from elsewhere that the slow path hears of.
    pub(super) sightings: Budget,
    /// Looks at where it seems to have moved.
    pub(super) looks: Budget,
    /// Answers to packets that are refused.
    pub(super) answers: Budget,
    /// Flows that may be answered, and packets that arrive in parts.
    pub(super) flows: Flows,
}

impl Share {
    /// Nothing is spent. `key` must be nobody else's to know.
    pub(super) fn new(now: Instant, key: &[u8; 32]) -> Self {
        Self {
            controls: Budget::new(now, NOTICES_PER_SECOND, NOTICES_AT_ONCE),
            sightings: Budget::new(now, NOTICES_PER_SECOND, NOTICES_AT_ONCE),
            looks: Budget::new(now, ROAMS_PER_SECOND, ROAMS_AT_ONCE),
            answers: Budget::new(now, ANSWERS_PER_SECOND, ANSWERS_AT_ONCE),
            flows: Flows::new(now, key),
        }
    }
}

/// A token bucket that several threads may take from.
#[derive(Debug)]
pub struct Budget {
    origin: Instant,
    /// Nanoseconds in which one token comes back.
    interval: u64,
    /// Nanoseconds in which all of them do.
    window: u64,
    /// When it is full again, in nanoseconds since `origin`.
    full_at: AtomicU64,
}

impl Budget {
    /// Full, with `at_once` tokens.
    pub fn new(now: Instant, per_second: u32, at_once: u32) -> Self {
        let interval = nanos(Duration::from_secs(1) / per_second);
        Self { origin: now, interval, window: interval * u64::from(at_once), full_at: AtomicU64::new(0) }
    }

    /// Takes one token, if one is left.
    pub fn take(&self, now: Instant) -> bool {
        let now = nanos(now.saturating_duration_since(self.origin));
        let taken = |full_at: u64| Some(full_at.max(now) + self.interval).filter(|then| then - now <= self.window);
        self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("584 years fit")
}

#[cfg(all(test, underpass_loom))]
mod interleavings {
    use std::sync::Arc;

    use loom::thread;

    use super::super::tests::start;
    use super::*;

    #[test]
    fn loom_two_threads_do_not_take_the_same_token() {
        loom::model(|| {
            let now = start();
            let budget = Arc::new(Budget::new(now, 1, 1));
            let other = Arc::clone(&budget);
            let thread = thread::spawn(move || other.take(now));
            let taken = budget.take(now);
            assert!(taken ^ thread.join().unwrap());
        });
    }
}

#[cfg(all(test, not(underpass_loom)))]
mod tests {
    use super::super::tests::start;
    use super::*;

    #[test]
    fn tokens_are_limited_and_come_back_with_time() {
        let now = start();
        let budget = Budget::new(now, 100, 50);
        let taken = |now| (0..1000).filter(|_| budget.take(now)).count();
        assert_eq!(taken(now), 50);
        assert_eq!(taken(now + Duration::from_millis(9)), 0);
        assert_eq!(taken(now + Duration::from_millis(100)), 10);
        assert_eq!(taken(now + Duration::from_secs(3600)), 50);
    }

    #[test]
    fn a_clock_that_another_thread_has_read_later_takes_nothing_back() {
        let now = start();
        let budget = Budget::new(now, 100, 1);
        assert!(budget.take(now + Duration::from_millis(5)));
        assert!(!budget.take(now), "the clocks of threads differ by a little");
        assert!(budget.take(now + Duration::from_millis(15)));
    }
}
