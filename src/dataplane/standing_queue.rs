//! Tells a queue that only absorbs bursts from one that stands: the latter delays everything behind it and serves
//! nothing. Its bulk flows are told to slow down, as CoDel would (RFC 8289), by a mark where they speak ECN (RFC 3168),
//! else by the loss of one packet.
//!
//! Neither the TUN nor a socket tells how long a packet has waited, but a worker sees when there is nothing to read: no
//! packet has waited for longer than that is ago.

use std::time::{Duration, Instant};

/// A queue that has not been empty for so long stands: longer than a scheduler's time slice, in which one that is well
/// fills up (measured, `docs/performance.md`).
const LIMIT: Duration = Duration::from_millis(5);
/// Time for one signal to have its effect before the second; further ones come sooner. CoDel's is twice as long, for the
/// paths of the internet (RFC 8289 §4.2).
const INTERVAL: Duration = Duration::from_millis(50);

/// What is known of one queue that a worker reads.
#[derive(Debug)]
pub(super) struct StandingQueue {
    /// Since when there was always something to read; `None` while there is nothing.
    since: Option<Instant>,
    next_signal_at: Instant,
    /// In a row, which ends when the queue was well for a while.
    signals: u32,
}

impl StandingQueue {
    /// A queue that is empty.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: None, next_signal_at: now, signals: 0 }
    }

    /// There is something to read.
    pub(super) fn on_ready(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// There is nothing to read, any more.
    pub(super) fn on_empty(&mut self, now: Instant) {
        self.since = None;
        if now > self.next_signal_at + INTERVAL {
            self.signals = 0;
        }
    }

    /// Whether the next packet of a bulk flow is to carry a signal; if so, that is settled with it.
    pub(super) fn take_signal(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now < since + LIMIT) || now < self.next_signal_at {
            return false;
        }
        self.signals += 1;
        // CoDel's control law: TCP's throughput goes with the inverse root of the rate of signals.
        self.next_signal_at = now + INTERVAL.div_f64(f64::from(self.signals).sqrt());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Signals of a queue that is read every millisecond, whereupon it is empty if `is_empty` says so, by their milliseconds.
    fn signals(milliseconds: u32, is_empty: impl Fn(u32) -> bool) -> Vec<u32> {
        let start = clock::now();
        let mut queue = StandingQueue::new(start);
        let mut read = |ms: &u32| {
            let now = start + MS * *ms;
            queue.on_ready(now);
            let signal = queue.take_signal(now);
            if is_empty(*ms) {
                queue.on_empty(now);
            }
            signal
        };
        (0..milliseconds).filter(|ms| read(ms)).collect()
    }

    #[test]
    fn a_burst_is_no_standing_queue() {
        assert!(signals(1000, |ms| ms % 5 == 0).is_empty());
    }

    #[test]
    fn a_standing_queue_is_signalled_ever_more_often() {
        assert_eq!(signals(200, |_| false), [5, 55, 91, 120, 145, 168, 189]);
    }

    #[test]
    fn a_queue_that_was_left_alone_for_long_does_not_stand() {
        let start = clock::now();
        let mut queue = StandingQueue::new(start);
        for second in 0..10 {
            let now = start + MS * 1000 * second;
            queue.on_ready(now);
            assert!(!queue.take_signal(now));
            queue.on_empty(now);
        }
    }

    #[test]
    fn a_queue_that_was_well_for_a_while_starts_anew() {
        assert_eq!(signals(500, |ms| (60..300).contains(&ms)), [5, 55, 305, 355, 391, 420, 445, 468, 489]);
    }
}
