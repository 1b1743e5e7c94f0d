//! What a peer waits for, and the device's queue of those waits.

use std::collections::BTreeSet;
use std::time::Instant;

use super::peer_table::PeerId;

/// Why a device wants to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// An initiation was not answered: send another, or give up.
    Retry,
    /// The peer's persistent keepalive may be due.
    PersistentKeepalive,
    /// Traffic has found the session to be old: ask for its successor.
    Rekey,
    /// A session reaches its end.
    Expiry,
    /// The paths of lanes are to be looked after.
    LanePaths,
    /// The link is to be looked after.
    Liveness,
    /// An initiation was not answered yet: send it again.
    Repeat,
    /// An initiation is to go to the peer's other endpoints too.
    Alternatives,
    /// The path's MTU is to be looked after.
    PathMtu,
    /// The peer was seen elsewhere, too soon after the last time.
    Roam,
}

impl Timer {
    const COUNT: usize = 10;
    /// All timers, in the order in which they are handled.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Expiry,
        Self::Rekey,
        Self::Retry,
        Self::Repeat,
        Self::Alternatives,
        Self::Roam,
        Self::Liveness,
        Self::PathMtu,
        Self::LanePaths,
        Self::PersistentKeepalive,
    ];
}

/// The deadlines of one peer.
#[derive(Debug, Default)]
pub(super) struct TimerTable([Option<Instant>; Timer::COUNT]);

impl TimerTable {
    pub(super) fn set(&mut self, timer: Timer, deadline: Instant) {
        self.0[timer as usize] = Some(deadline);
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn get(&self, timer: Timer) -> Option<Instant> {
        self.0[timer as usize]
    }

    /// Stops `timer` and tells whether it was due.
    pub(super) fn take_due(&mut self, timer: Timer, now: Instant) -> bool {
        let due = self.get(timer).is_some_and(|deadline| deadline <= now);
        if due {
            self.stop(timer);
        }
        due
    }

    pub(super) fn next(&self) -> Option<(Instant, Timer)> {
        Timer::ALL.into_iter().filter_map(|timer| Some((self.get(timer)?, timer))).min()
    }
}

/// The next deadline of every peer, soonest first.
#[derive(Debug, Default)]
pub(super) struct TimerQueue {
    deadlines: BTreeSet<(Instant, PeerId, Timer)>,
    of_peer: Vec<Option<(Instant, Timer)>>,
}

impl TimerQueue {
    /// Notes a peer's next deadline in place of its last.
    pub(super) fn update(&mut self, peer: PeerId, next: Option<(Instant, Timer)>) {
        if self.of_peer.len() <= peer.index() {
            self.of_peer.resize(peer.index() + 1, None);
        }
        let noted = &mut self.of_peer[peer.index()];
        if *noted != next {
            if let Some((deadline, timer)) = noted.take() {
                self.deadlines.remove(&(deadline, peer, timer));
            }
            if let Some((deadline, timer)) = next {
                self.deadlines.insert((deadline, peer, timer));
            }
            *noted = next;
        }
    }

    /// The peer whose deadline is at or before `now`.
    pub(super) fn due(&self, now: Instant) -> Option<PeerId> {
        self.deadlines.first().filter(|(deadline, ..)| *deadline <= now).map(|(_, peer, _)| *peer)
    }

    pub(super) fn next(&self) -> Option<(Instant, Timer)> {
        self.deadlines.first().map(|(deadline, _, timer)| (*deadline, *timer))
    }
}
