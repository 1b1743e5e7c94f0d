//! A limit on how often something may be done: a few times at once, and then at a pace.

use std::time::{Duration, Instant};

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    capacity: u32,
    interval: Duration,
    tokens: u32,
    /// When the tokens were counted last.
    counted_at: Instant,
}

impl Bucket {
    /// Full, with one more token each `interval`.
    pub(super) fn new(now: Instant, capacity: u32, interval: Duration) -> Self {
        Self { capacity, interval, tokens: capacity, counted_at: now }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        while self.tokens < self.capacity && now.saturating_duration_since(self.counted_at) >= self.interval {
            self.tokens += 1;
            self.counted_at += self.interval;
        }
        if self.tokens == self.capacity {
            self.counted_at = now;
        }
        let is_taken = self.tokens > 0;
        self.tokens -= u32::from(is_taken);
        is_taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::clock;

    #[test]
    fn a_few_at_once_and_then_one_each_interval() {
        let start = clock::now();
        let second = Duration::from_secs(1);
        let mut bucket = Bucket::new(start, 3, second);
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(taken(&mut bucket, start + second / 2), 0);
        assert_eq!(taken(&mut bucket, start + second), 1);
        assert_eq!(taken(&mut bucket, start + second * 3), 2);
        assert_eq!(taken(&mut bucket, start + second * 1000), 3, "no more than at the beginning");
    }
}
