//! What a device does when a deadline passes. Afterwards every deadline lies in the future.

use std::time::Instant;

use crate::proto::constants::{GIVE_UP_AFTER, KEEPALIVE_TIMEOUT, UNANSWERED_TIMEOUT};
use crate::proto::error::DropReason;
use crate::proto::event::Event;
use crate::proto::peer_table::PeerId;
use crate::proto::timers::Timer;

use super::Device;

impl Device {
    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(id) = self.timers.due(now) {
            for timer in Timer::ALL {
                if self.peers.get_mut(id).is_some_and(|peer| peer.timers.take_due(timer, now)) {
                    self.on_timer(now, id, timer);
                }
            }
            self.update_timers(id);
        }
    }

    fn on_timer(&mut self, now: Instant, id: PeerId, timer: Timer) {
        match timer {
            Timer::Retry => self.on_retry(now, id),
            Timer::PassiveKeepalive => self.on_passive_keepalive(now, id),
            Timer::Unanswered => self.on_unanswered(now, id),
            Timer::PersistentKeepalive => self.on_persistent_keepalive(now, id),
            Timer::Rekey => self.initiate(now, id),
            Timer::Expiry => self.on_expiry(now, id),
            Timer::LanePaths => self.on_lane_paths(now, id),
        }
    }

    fn on_retry(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(attempt) = &peer.attempt else { return };
        let exhausted = now.saturating_duration_since(attempt.started_at) >= GIVE_UP_AFTER;
        if exhausted && peer.config.persistent_keepalive.is_none() {
            self.give_up(id);
        } else {
            // The first of an attempt may still be going to be sent: it was waiting for its interval.
            if attempt.initiations > 0 {
                peer.forget_local_address();
                self.router_is_stale = true;
            }
            self.send_initiation(now, id);
        }
    }

    fn on_passive_keepalive(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.usable_session(now).is_none() {
            return;
        }
        // Data that comes after this look is owed an answer later than the next look.
        let due = peer.traffic.owed_since().map_or(now, |since| since) + KEEPALIVE_TIMEOUT;
        let owes = due <= now;
        peer.timers.set(Timer::PassiveKeepalive, if owes { now + KEEPALIVE_TIMEOUT } else { due });
        if owes {
            self.send_keepalive(now, id);
        }
    }

    fn on_unanswered(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.usable_session(now).is_none() {
            return;
        }
        let due = peer.traffic.unanswered_since().map_or(now, |since| since) + UNANSWERED_TIMEOUT;
        let unanswered = due <= now;
        peer.timers.set(Timer::Unanswered, if unanswered { now + UNANSWERED_TIMEOUT } else { due });
        if unanswered {
            peer.traffic.forget_unanswered();
            peer.forget_local_address();
            self.router_is_stale = true;
            self.initiate(now, id);
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
            peer.timers.stop(Timer::PassiveKeepalive);
            peer.timers.stop(Timer::Unanswered);
            peer.ping = None;
            // Nobody is being called, so nobody will take them.
            let dropped = if peer.attempt.is_none() { peer.staged.clear() } else { 0 };
            self.drops.add(DropReason::HandshakeGivenUp, dropped);
            self.events.push_back(Event::SessionEnded { peer: peer.name() });
        }
    }
}
