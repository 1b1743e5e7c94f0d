//! How a device watches its links: when it pings, what follows from silence, and which of a peer's endpoints it uses.

use std::time::{Duration, Instant};

use crate::keys::PublicKey;
use crate::packet::frame::Control;
use crate::proto::constants::{
    ALTERNATIVE_AFTER_PINGS, CANDIDATE_INTERVAL, CANDIDATES_PER_SECOND, CONNECTED_INTERVAL, LIVENESS_INTERVAL,
    LIVENESS_PINGS_PER_SECOND, LIVENESS_RETRY_INTERVAL, PING_AFTER_DATA, PONGS_TO_UNDRAIN, PREFERRED_PONGS,
    PREFERRED_PROBE_INTERVAL,
};
use crate::proto::endpoint::Endpoint;
use crate::proto::error::DropReason;
use crate::proto::event::Event;
use crate::proto::liveness::Finding;
use crate::proto::peer::{Peer, ReturnPath};
use crate::proto::peer_table::PeerId;
use crate::proto::stats::RouteFault;
use crate::proto::timers::Timer;
use crate::proto::transmit::Way;

use super::{Device, SLOW_PATH_LANE};

impl Device {
    /// Takes what was found out about this machine's routes to a peer: `None` where all that is for it reaches the tunnel.
    /// Nothing but its link's state changes; the session goes on. Returns whether there is such a peer.
    pub fn set_route_fault(&mut self, now: Instant, key: &PublicKey, fault: Option<RouteFault>) -> bool {
        let Some(id) = self.peers.by_key(key) else { return false };
        if let Some(peer) = self.peers.get_mut(id) {
            peer.route_fault = fault;
        }
        self.settle(now, id);
        true
    }

    /// Looks after a peer's link: it has a session, or data passes again, or it is time.
    pub(super) fn tend_link(&mut self, now: Instant, id: PeerId) {
        let interval = self.ping_interval();
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.usable_session(now).is_none() {
            peer.timers.stop(Timer::Liveness);
            peer.traffic.set_busy(false);
            if peer.is_kept() {
                self.initiate(now, id);
            }
            return;
        }
        let is_busy = passes_data(now, peer);
        peer.traffic.set_busy(is_busy);
        if !is_busy && !peer.is_kept() {
            return peer.timers.stop(Timer::Liveness);
        }
        if peer.endpoint.is_none() {
            // It has a session, and has yet to prove where it is: there is nowhere to ping.
            return peer.timers.set(Timer::Liveness, now + LIVENESS_RETRY_INTERVAL);
        }
        if let Some(until) = rests_until(now, peer).filter(|_| !is_busy) {
            peer.timers.set(Timer::Liveness, until);
            return self.probe_preferred(now, id);
        }
        match peer.liveness.tend(now, peer.traffic.last_received(), interval) {
            Some(Finding::Ping { unanswered }) => {
                self.ping(now, id);
                if self.peers.get(id).is_some_and(|peer| peer.liveness.is_dead()) {
                    self.initiate(now, id);
                }
                if unanswered >= ALTERNATIVE_AFTER_PINGS {
                    self.probe_next_candidate(now, id);
                }
            }
            Some(Finding::Died) => {
                self.on_died(now, id);
            }
            None => {}
        }
        self.probe_preferred(now, id);
        if let Some(peer) = self.peers.get_mut(id) {
            // Both could be due at once only after a death, which has its own pace.
            let next = peer.liveness.next_at(now, interval);
            peer.timers.set(Timer::Liveness, next.max(now + Duration::from_millis(1)));
        }
    }

    /// Pings the peer within the current session.
    pub(super) fn ping(&mut self, now: Instant, id: PeerId) {
        let token = self.randomness.u64();
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Some(endpoint) = peer.endpoint {
            peer.liveness.on_ping_sent(now, token, endpoint);
            self.send_control(now, id, Control::Ping(token));
        }
    }

    /// A pong came. Returns whether it answers a ping or a probe of this file.
    pub(super) fn on_pong(&mut self, now: Instant, id: PeerId, token: u64) -> bool {
        let interval = self.ping_interval();
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let was_dead = peer.liveness.is_dead();
        let doubtful = peer.liveness.is_doubtful();
        let Some(answered) = peer.liveness.on_pong(now, token) else { return false };
        if answered.is_ping {
            peer.wants_drain = peer.wants_drain.map(|pongs| pongs + 1).filter(|pongs| *pongs <= PONGS_TO_UNDRAIN);
            self.events.push_back(Event::RoundTrip { peer: peer.name(), round_trip: answered.round_trip });
        } else if !peer.is_configured(answered.endpoint.remote) {
            self.on_proven(now, id, answered.endpoint);
        } else if was_dead || doubtful {
            self.move_to(now, id, answered.endpoint);
        } else {
            self.on_preferred_pong(now, id, answered.endpoint);
        }
        if let Some(peer) = self.peers.get_mut(id)
            && peer.timers.get(Timer::Liveness).is_some()
        {
            peer.timers.set(Timer::Liveness, peer.liveness.next_at(now, interval).max(now + Duration::from_millis(1)));
        }
        true
    }

    /// The peer answers at an address where it was seen.
    fn on_proven(&mut self, now: Instant, id: PeerId, endpoint: Endpoint) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.lane_paths.on_proven(now, endpoint) {
            self.stale.route(id);
            self.watch_followed(id);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.roaming.asked.take_if(|asked| *asked == endpoint.remote).is_some() {
            if peer.liveness.is_dead() { self.move_to(now, id, endpoint) } else { self.set_endpoint(now, id, endpoint) }
        }
    }

    /// A new handshake is the only way to a peer that has restarted; one that has only moved may be found by it too.
    fn on_died(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.forget_local_address();
        // It isn't where we were told, so that it may well be where it was.
        peer.left = None;
        self.stale.route(id);
        self.initiate(now, id);
    }

    /// Asks at the next of the peer's other endpoints whether it hears us there, unless their pace forbids it.
    fn probe_next_candidate(&mut self, now: Instant, id: PeerId) {
        let interval = self.candidate_interval();
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(endpoint) = peer.endpoint else { return };
        if let Some(candidate) = peer.candidates.take(now, interval, &peer.config.endpoints, endpoint.remote) {
            self.probe(now, id, candidate);
        }
    }

    /// Asks at the preferred endpoint, now and then, while another is in use.
    fn probe_preferred(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(preferred) = peer.missed_preferred() else { return };
        let return_path = &mut peer.return_path;
        if return_path.probe_at.is_some_and(|at| now < at) {
            return;
        }
        if !std::mem::take(&mut return_path.is_answered) {
            return_path.pongs = 0;
        }
        return_path.probe_at = Some(now + PREFERRED_PROBE_INTERVAL);
        self.probe(now, id, preferred);
    }

    /// The preferred endpoint has to answer for a while before it is used again.
    fn on_preferred_pong(&mut self, now: Instant, id: PeerId, endpoint: Endpoint) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.missed_preferred().is_none_or(|preferred| preferred.remote != endpoint.remote) {
            return;
        }
        if !std::mem::replace(&mut peer.return_path.is_answered, true) {
            peer.return_path.pongs += 1;
        }
        if peer.return_path.pongs >= PREFERRED_PONGS {
            self.move_to(now, id, endpoint);
        }
    }

    /// Uses another of the peer's endpoints from here on, which has just answered, and has the peer answer there.
    fn move_to(&mut self, now: Instant, id: PeerId, endpoint: Endpoint) {
        self.set_endpoint(now, id, endpoint);
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.liveness.on_moved();
        peer.return_path = ReturnPath::default();
        self.ping(now, id);
    }

    /// Asks whether the peer is there.
    pub(super) fn probe(&mut self, now: Instant, id: PeerId, endpoint: Endpoint) {
        let token = self.randomness.u64();
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.liveness.on_probe_sent(now, token, endpoint);
        self.send_control_by(now, id, SLOW_PATH_LANE, Way::main(endpoint), Control::Probe(token));
    }

    /// Called whenever something has happened to a peer: tells of a change of its link, once.
    pub(super) fn tell_link(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let link = peer.link(now);
        if link != peer.told_link {
            peer.told_link = link;
            peer.link_since = now;
            let (state, reason) = link;
            self.events.push_back(Event::LinkChanged { peer: peer.name(), state, reason });
        }
        let refuses = peer.refuses_packets(now);
        if refuses != std::mem::replace(&mut peer.told_refusal, refuses) {
            self.stale.route(id);
            if refuses {
                let dropped = peer.staged.clear();
                self.drops.add(DropReason::LinkDown, dropped);
            }
        }
    }

    /// Many links are watched at a pace that leaves the slow path time for other things.
    fn ping_interval(&self) -> Duration {
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        LIVENESS_INTERVAL.max(Duration::from_secs(1) / LIVENESS_PINGS_PER_SECOND * peers)
    }

    /// A name may lead anywhere: neither one peer's addresses nor those of many are a stream of datagrams.
    pub(super) fn candidate_interval(&self) -> Duration {
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        CANDIDATE_INTERVAL.max(Duration::from_secs(1) / CANDIDATES_PER_SECOND * peers)
    }
}

/// Until when a link that nobody asks about needs no ping: the peer was just heard, and watches it itself, or would be found
/// silent.
fn rests_until(now: Instant, peer: &Peer) -> Option<Instant> {
    let until = peer.traffic.last_received()? + CONNECTED_INTERVAL;
    (!peer.config.watched && !peer.liveness.is_dead() && until > now).then_some(until)
}

/// Whether data passes, which wants to know how the link is.
fn passes_data(now: Instant, peer: &Peer) -> bool {
    peer.traffic.last_data().is_some_and(|last| now.saturating_duration_since(last) < PING_AFTER_DATA)
}
