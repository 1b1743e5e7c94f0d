//! A limit on how often something may be done: some at once, then one in each interval.
//!
//! Knows no clock and does nothing by itself.

use std::time::{Duration, Instant};

/// A token bucket of one thing. New, it is full.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// When all tokens are back.
    full_at: Option<Instant>,
}

impl Pace {
    /// Takes a token if there is one: `burst` of them at once, and one more after each `interval`.
    pub fn take(&mut self, now: Instant, interval: Duration, burst: u32) -> bool {
        let is_due = self.next_at(now, interval, burst) <= now;
        if is_due {
            self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + interval);
        }
        is_due
    }

    /// When there is a token: `now`, or later.
    pub fn next_at(&self, now: Instant, interval: Duration, burst: u32) -> Instant {
        let next = self.full_at.and_then(|full_at| full_at.checked_sub(interval * burst.saturating_sub(1)));
        next.map_or(now, |next| next.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    const INTERVAL: Duration = Duration::from_millis(100);

    #[test]
    fn some_at_once_then_one_in_each_interval() {
        let (mut pace, start) = (Pace::default(), start());
        let take = |at: u64| pace.take(start + Duration::from_millis(at), INTERVAL, 3);
        let times = [0, 0, 1, 1, 99, 100, 101, 199, 200, 5_000, 5_000, 5_000, 5_000, 5_099, 5_100];
        let allowed = times.map(take);
        let expected = [true, true, true, false, false, true, false, false, true, true, true, true, false, false, true];
        assert_eq!(allowed, expected);
    }

    #[test]
    fn the_next_is_when_it_may_be_taken() {
        let (mut pace, start) = (Pace::default(), start());
        assert_eq!(pace.next_at(start, INTERVAL, 2), start);
        assert!(pace.take(start, INTERVAL, 2) && pace.take(start, INTERVAL, 2));
        assert_eq!(pace.next_at(start, INTERVAL, 2), start + INTERVAL);
        assert!(pace.take(start + INTERVAL, INTERVAL, 2));
    }
}
