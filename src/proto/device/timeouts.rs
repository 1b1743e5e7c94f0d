//! What a device does when a deadline passes. Afterwards every deadline lies in the future.

use std::time::Instant;

use crate::proto::constants::GIVE_UP_AFTER;
use crate::proto::error::DropReason;
use crate::proto::event::Event;
use crate::proto::peer_table::PeerId;
use crate::proto::timers::Timer;

use super::Device;

/// After so many initiations without an answer, somebody is told.
const UNANSWERED_INITIATIONS: usize = 4;

impl Device {
    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(id) = self.timers.due(now) {
            for timer in Timer::ALL {
                if self.peers.get_mut(id).is_some_and(|peer| peer.timers.take_due(timer, now)) {
                    self.on_timer(now, id, timer);
                }
            }
            self.settle(now, id);
        }
    }

    fn on_timer(&mut self, now: Instant, id: PeerId, timer: Timer) {
        match timer {
            Timer::Retry => self.on_retry(now, id),
            Timer::Repeat => self.repeat_initiation(now, id),
            Timer::PersistentKeepalive => self.on_persistent_keepalive(now, id),
            Timer::Rekey => self.initiate(now, id),
            Timer::Expiry => self.on_expiry(now, id),
            Timer::Liveness => self.tend_link(now, id),
            Timer::Alternatives => self.send_to_next_candidate(now, id),
            Timer::LanePaths => self.on_lane_paths(now, id),
            Timer::PathMtu => self.tend_path(now, id),
            Timer::Roam => self.look_into_roaming(now, id),
        }
    }

    fn on_retry(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(attempt) = &peer.attempt else { return };
        if attempt.call_back_to.is_some() {
            // Its timestamp was a replay's, or the answer was lost: what comes next from there is judged anew.
            let wants_session = !peer.staged.is_empty() || peer.is_always_wanted();
            self.end_attempt(id);
            if wants_session {
                self.initiate(now, id);
            }
            return;
        }
        let exhausted = now.saturating_duration_since(attempt.started_at) >= GIVE_UP_AFTER;
        if exhausted && !peer.is_always_wanted() {
            self.give_up(id);
        } else {
            if attempt.initiations == UNANSWERED_INITIATIONS {
                self.events.push_back(Event::HandshakeUnanswered { peer: peer.name() });
            }
            // The first of an attempt may still be going to be sent: it was waiting for its interval.
            if attempt.initiations > 0 {
                peer.forget_local_address();
                self.stale.route(id);
            }
            self.send_initiation(now, id);
        }
    }

    fn on_persistent_keepalive(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(interval) = peer.config.persistent_keepalive else { return };
        let has_session = peer.usable_session(now).is_some();
        let due = peer.traffic.last_active().filter(|_| has_session).map_or(now, |active| active + interval);
        peer.timers.set(Timer::PersistentKeepalive, if due <= now { now + interval } else { due });
        if due > now {
            return;
        }
        if has_session {
            self.send_keepalive(now, id);
        } else {
            self.initiate(now, id);
        }
    }

    fn on_expiry(&mut self, now: Instant, id: PeerId) {
        self.end_sessions(id, |peer| peer.sessions.expire(now));
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.sessions.is_empty() {
            // Nobody is being called, so nobody will take them.
            let dropped = if peer.attempt.is_none() { peer.staged.clear() } else { 0 };
            self.drops.add(DropReason::HandshakeGivenUp, dropped);
            self.events.push_back(Event::SessionEnded { peer: peer.name() });
            self.tend_link(now, id);
        }
    }
}
