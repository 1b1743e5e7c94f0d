//! Counts of one lane: what was refused, and how much was carried. Counted where it happens, read by the slow path.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::error::DropReason;
use crate::proto::stats::DropCounters;

/// One lane's counters: written by its worker, read by the slow path. On cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Counters {
    drops: [AtomicU64; DropReason::COUNT],
    /// Bytes read from the TUN and received, carried or not.
    carried: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { drops: std::array::from_fn(|_| AtomicU64::new(0)), carried: AtomicU64::new(0) }
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
        self.drops[reason as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// Counts the bytes of one turn.
    pub(super) fn count_carried(&self, bytes: usize) {
        // One writer: no other addition is lost.
        self.carried.store(self.carried().wrapping_add(bytes as u64), Ordering::Relaxed);
    }

    /// Bytes carried so far.
    pub(super) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Adds all drops to `total`.
    pub(super) fn add_to(&self, total: &mut DropCounters) {
        for reason in DropReason::ALL {
            total.add(reason, self.drops[reason as usize].load(Ordering::Relaxed));
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
