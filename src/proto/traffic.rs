//! Coarse stamps of a peer's traffic, shared by its sessions and read by the timers.
//!
//! Workers only store here, in whole milliseconds, and mostly find that nothing changes; no timer is touched per packet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Stamps are milliseconds since `origin`, plus one; zero is "none".
#[derive(Debug)]
pub struct Traffic {
    origin: Instant,
    /// The last authentic datagram in either direction.
    last_active: AtomicU64,
    /// The last data in either direction.
    last_data: AtomicU64,
    /// The last authentic datagram received.
    last_received: AtomicU64,
    /// Set while the slow path knows that data passes, and looks after the link.
    is_busy: AtomicBool,
}

impl Traffic {
    /// Without any traffic yet.
    pub fn new(now: Instant) -> Self {
        Self {
            origin: now,
            last_active: AtomicU64::new(0),
            last_data: AtomicU64::new(0),
            last_received: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
        }
    }

    /// Called after any authentic datagram is sent: data, keepalive, control or handshake.
    pub fn on_sent(&self, now: Instant, carries_data: bool) {
        self.on_any(self.stamp(now), carries_data);
    }

    /// Called after any authentic datagram is received: data, keepalive, control or handshake.
    pub fn on_received(&self, now: Instant, carries_data: bool) {
        let stamp = self.stamp(now);
        store(&self.last_received, stamp);
        self.on_any(stamp, carries_data);
    }

    fn on_any(&self, stamp: u64, carries_data: bool) {
        store(&self.last_active, stamp);
        if carries_data {
            store(&self.last_data, stamp);
        }
    }

    /// When the last authentic datagram passed.
    pub fn last_active(&self) -> Option<Instant> {
        self.instant(&self.last_active)
    }

    /// When the last data passed.
    pub fn last_data(&self) -> Option<Instant> {
        self.instant(&self.last_data)
    }

    /// When the last authentic datagram was received.
    pub fn last_received(&self) -> Option<Instant> {
        self.instant(&self.last_received)
    }

    /// Whether the slow path knows that data passes. Until it does, whoever carries data tells it.
    pub fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// Notes whether it does.
    pub fn set_busy(&self, is_busy: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
    }

    fn stamp(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn instant(&self, stamp: &AtomicU64) -> Option<Instant> {
        let millis = stamp.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.origin + Duration::from_millis(millis))
    }
}

/// Stores only what changes: an unchanged cache line stays with all who read it.
fn store(stamp: &AtomicU64, value: u64) {
    if stamp.load(Ordering::Relaxed) != value {
        stamp.store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::start;
    use super::*;

    #[test]
    fn each_stamp_is_that_of_the_last_of_its_kind() {
        let now = start();
        let at = |seconds| now + Duration::from_secs(seconds);
        let traffic = Traffic::new(now);
        let stamps = || [traffic.last_active(), traffic.last_data(), traffic.last_received()];
        assert_eq!(stamps(), [None; 3]);
        traffic.on_sent(at(1), true);
        assert_eq!(stamps(), [Some(at(1)), Some(at(1)), None]);
        traffic.on_received(at(2), false);
        assert_eq!(stamps(), [Some(at(2)), Some(at(1)), Some(at(2))]);
        traffic.on_received(at(3), true);
        traffic.on_sent(at(4), false);
        assert_eq!(stamps(), [Some(at(4)), Some(at(3)), Some(at(3))]);
    }
}
