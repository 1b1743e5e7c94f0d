//! Coarse stamps of a peer's traffic, shared by its sessions and read by the timers.
//!
//! Workers only store here, in whole milliseconds, and mostly find that nothing changes; no timer is touched per packet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Stamps are milliseconds since `origin`, plus one; zero is "none".
#[derive(Debug)]
pub struct Traffic {
    origin: Instant,
    /// The first data sent since anything authentic was received: what the peer has left unanswered.
    unanswered_since: AtomicU64,
    /// The first data received since anything was sent: what we have left unanswered.
    owed_since: AtomicU64,
    /// The last authentic datagram in either direction.
    last_active: AtomicU64,
    /// The last data in either direction.
    last_data: AtomicU64,
}

impl Traffic {
    /// Without any traffic yet.
    pub fn new(now: Instant) -> Self {
        Self {
            origin: now,
            unanswered_since: AtomicU64::new(0),
            owed_since: AtomicU64::new(0),
            last_active: AtomicU64::new(0),
            last_data: AtomicU64::new(0),
        }
    }

    /// Called after any authentic datagram is sent: data, keepalive, control or handshake.
    pub fn on_sent(&self, now: Instant, carries_data: bool) {
        let stamp = self.stamp(now);
        store(&self.owed_since, 0);
        store(&self.last_active, stamp);
        if carries_data {
            store(&self.last_data, stamp);
            if self.unanswered_since.load(Ordering::Relaxed) == 0 {
                store(&self.unanswered_since, stamp);
            }
        }
    }

    /// Called after any authentic datagram is received: data, keepalive, control or handshake.
    pub fn on_received(&self, now: Instant, carries_data: bool) {
        let stamp = self.stamp(now);
        store(&self.unanswered_since, 0);
        store(&self.last_active, stamp);
        if carries_data {
            store(&self.last_data, stamp);
            if self.owed_since.load(Ordering::Relaxed) == 0 {
                store(&self.owed_since, stamp);
            }
        }
    }

    /// Since when the peer has not answered our data.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.instant(&self.unanswered_since)
    }

    /// Since when we have not answered the peer's data.
    pub fn owed_since(&self) -> Option<Instant> {
        self.instant(&self.owed_since)
    }

    /// When the last authentic datagram passed.
    pub fn last_active(&self) -> Option<Instant> {
        self.instant(&self.last_active)
    }

    /// When the last data passed.
    pub fn last_data(&self) -> Option<Instant> {
        self.instant(&self.last_data)
    }

    /// Begins a new count of unanswered data, when a handshake is already under way because of it.
    pub fn forget_unanswered(&self) {
        store(&self.unanswered_since, 0);
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
    use super::*;

    #[test]
    fn the_first_of_a_run_is_remembered_until_the_other_direction_answers() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let traffic = Traffic::new(now);
        assert_eq!((traffic.unanswered_since(), traffic.owed_since(), traffic.last_active()), (None, None, None));
        traffic.on_sent(at(1), true);
        traffic.on_sent(at(2), true);
        assert_eq!(traffic.unanswered_since(), Some(at(1)));
        traffic.on_received(at(3), false);
        assert_eq!(traffic.unanswered_since(), None);
        assert_eq!(traffic.owed_since(), None, "a keepalive asks for no answer");
        traffic.on_received(at(4), true);
        traffic.on_received(at(5), true);
        assert_eq!(traffic.owed_since(), Some(at(4)));
        traffic.on_sent(at(6), false);
        assert_eq!(traffic.owed_since(), None);
        assert_eq!(traffic.unanswered_since(), None, "a keepalive expects no answer");
        assert_eq!((traffic.last_active(), traffic.last_data()), (Some(at(6)), Some(at(5))));
    }
}
