//! How a device finds out what the paths to its peers carry, and keeps an eye on it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::keys::PublicKey;
use crate::packet::frame::Control;
use crate::packet::message::TRANSPORT_OVERHEAD;
use crate::proto::constants::{
    LIVENESS_DEAD_INTERVAL, PATH_CONFIRM_INTERVAL, PATH_IDLE_INTERVAL, PATH_PROBES_PER_SECOND,
};
use crate::proto::event::Event;
use crate::proto::path_mtu::{Link, PathMtu, Probe};
use crate::proto::peer_table::PeerId;
use crate::proto::timers::Timer;
use crate::proto::transmit::Way;

use super::{Device, SLOW_PATH_LANE};

impl Device {
    /// Takes the length of the longest datagrams that this machine sends to `remote`, where the peer is or may be. Without it,
    /// nothing longer is tried than what every interface begins with. Returns whether there is such a peer.
    pub fn set_path_ceiling(&mut self, now: Instant, key: &PublicKey, remote: IpAddr, length: u16) -> bool {
        let Some(id) = self.peers.by_key(key) else { return false };
        self.change_path(now, id, |path| path.set_ceiling(now, remote, length));
        self.tend_path(now, id);
        self.settle(now, id);
        true
    }

    /// Has workers and the interface follow what `change` has done to what is known of a path.
    pub(super) fn change_path<T>(
        &mut self,
        now: Instant,
        id: PeerId,
        change: impl FnOnce(&mut PathMtu) -> T,
    ) -> Option<T> {
        let peer = self.peers.get_mut(id)?;
        let (limit, proven) = (peer.path_limit(), peer.path_mtu.proven());
        let changed = change(&mut peer.path_mtu);
        if peer.path_limit() != limit {
            self.stale.route(id);
        }
        if peer.path_mtu.proven() != proven || self.mtu.is_due(now) {
            self.weigh_mtu(now);
        }
        Some(changed)
    }

    /// Has the interface's MTU follow what the paths carry.
    pub(super) fn weigh_mtu(&mut self, now: Instant) {
        let proven = self.peers.iter().filter_map(|(_, peer)| peer.path_mtu.proven()).max();
        let Some(mtu) = self.mtu.weigh(now, proven) else { return };
        for id in self.peers.iter().map(|(id, _)| id).collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.path_mtu.set_current(mtu);
                self.stale.route(id);
            }
        }
        self.events.push_back(Event::MtuChanged { mtu });
    }

    /// Looks after the path to a peer: it has a session, or data passes again, or it is time.
    pub(super) fn tend_path(&mut self, now: Instant, id: PeerId) {
        let confirm_interval = self.confirm_interval();
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_busy = peer.traffic.is_busy();
        let is_asked = is_busy || peer.config.watched || peer.path_mtu.seeks();
        let Some(endpoint) = peer.endpoint.filter(|_| is_asked && peer.usable_session(now).is_some()) else {
            return peer.timers.stop(Timer::PathMtu);
        };
        if peer.liveness.is_dead() {
            return peer.timers.set(Timer::PathMtu, now + LIVENESS_DEAD_INTERVAL);
        }
        let link = Link {
            patience: peer.liveness.patience(),
            confirm_interval: if is_busy { confirm_interval } else { PATH_IDLE_INTERVAL.max(confirm_interval) },
        };
        let probe = self.change_path(now, id, |path| path.tend(now, endpoint.remote.ip(), link)).flatten();
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Some(Probe { length, is_paired }) = probe {
            let token = self.randomness.u64();
            let pair = is_paired.then(|| self.randomness.u64());
            peer.path_mtu.on_probe_sent(now, token, pair);
            let way = Way::main(endpoint);
            self.send_padded(now, id, (SLOW_PATH_LANE, way), Control::Probe(token), usize::from(length));
            if let Some(token) = pair {
                self.send_control_by(now, id, SLOW_PATH_LANE, way, Control::Probe(token));
            }
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        match peer.path_mtu.next_at(now, link) {
            Some(next) => peer.timers.set(Timer::PathMtu, next.max(now + Duration::from_millis(1))),
            None => peer.timers.stop(Timer::PathMtu),
        }
    }

    /// A pong came that answers nothing else. Returns whether it answers a probe of this file.
    pub(super) fn on_path_pong(&mut self, now: Instant, id: PeerId, token: u64) -> bool {
        let is_ours = self.change_path(now, id, |path| path.on_pong(now, token)).unwrap_or(false);
        if is_ours {
            self.tend_path(now, id);
        }
        is_ours
    }

    /// A control frame alone in a datagram of `length` bytes, on a lane by a way.
    pub(super) fn send_padded(
        &mut self,
        now: Instant,
        id: PeerId,
        (lane, way): (u8, Way),
        control: Control,
        length: usize,
    ) {
        let mut frames = Vec::new();
        control.encode(&mut frames);
        frames.resize(frames.len().max(length - TRANSPORT_OVERHEAD), 0);
        self.send_frames_by(now, id, lane, way, &[&frames]);
    }

    /// Many paths are confirmed at a pace that leaves the slow path time for other things.
    fn confirm_interval(&self) -> Duration {
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        PATH_CONFIRM_INTERVAL.max(Duration::from_secs(1) / PATH_PROBES_PER_SECOND * peers)
    }
}
