//! What a worker refused, counted where it happens and read by the slow path for a status.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::error::DropReason;
use crate::proto::stats::DropCounters;

/// One thread's counters: written by it, read by the slow path. On cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Counters([AtomicU64; DropReason::COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    /// Counts one drop.
    pub(super) fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `number` drops.
    pub(super) fn add(&self, reason: DropReason, number: u64) {
        tracing::trace!(reason = reason.as_str(), number, "dropped");
        self.0[reason as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// Adds all to `total`.
    pub(super) fn add_to(&self, total: &mut DropCounters) {
        for reason in DropReason::ALL {
            total.add(reason, self.0[reason as usize].load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_added_up_by_reason() {
        let [one, two] = [Counters::default(), Counters::default()];
        one.count(DropReason::TooLarge);
        two.add(DropReason::TooLarge, 2);
        two.count(DropReason::QueueFull);
        let mut total = DropCounters::default();
        total.count(DropReason::TooLarge);
        one.add_to(&mut total);
        two.add_to(&mut total);
        assert_eq!(total.of(DropReason::TooLarge), 4);
        assert_eq!(total.of(DropReason::QueueFull), 1);
        assert_eq!(total.iter().map(|(_, number)| number).sum::<u64>(), 5);
    }
}
