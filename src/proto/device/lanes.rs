//! How a device proves the paths of its lanes, keeps an eye on them, and answers a peer that does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::packet::frame::{Control, PING_FRAME_LEN};
use crate::packet::message::TRANSPORT_OVERHEAD;
use crate::proto::constants::{LANE_PATH_LIFETIME, LANE_PING_INTERVAL, PING_AFTER_DATA};
use crate::proto::lane_paths::{Heard, LaneAction, LanePaths, Silence};
use crate::proto::peer::Peer;
use crate::proto::peer_table::PeerId;
use crate::proto::router::{Origin, Sighting};
use crate::proto::session::Session;
use crate::proto::timers::Timer;
use crate::proto::transmit::Way;

use super::{Device, SLOW_PATH_LANE};

/// A probe and a pong.
const PROBE_AND_PONG_LEN: usize = TRANSPORT_OVERHEAD + 2 * PING_FRAME_LEN;
/// Pings and probes of lanes are padded to that, so that they can be answered with a question.
const LANE_PING_LEN: usize = PROBE_AND_PONG_LEN;
/// How often an idle link's traffic is looked at, should the notice of its resumption be lost.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

impl Device {
    /// Called after the current session may have changed.
    pub(super) fn renew_lane_paths(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(session) = peer.sessions.current() else {
            peer.lane_paths = LanePaths::Shared;
            return peer.timers.stop(Timer::LanePaths);
        };
        if !peer.lane_paths.fits(session) {
            peer.lane_paths = LanePaths::new(now, session);
            self.stale.route(id);
        }
        if matches!(peer.lane_paths, LanePaths::Opened(_)) {
            self.leave_unproven(now, id);
            self.tend_lane_paths(now, id);
        }
    }

    /// What an earlier process of ours sent may have led the peer to ports that are ours no more.
    fn leave_unproven(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(endpoint) = peer.endpoint else { return };
        if !peer.lane_paths.is_split() {
            let lanes: Vec<u8> = peer.lane_paths.opened().map(|(lane, _)| lane).collect();
            for lane in lanes {
                self.send_frames_by(now, id, lane, Way::main(endpoint), &[]);
            }
        }
    }

    pub(super) fn on_lane_paths(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.usable_session(now).is_none() {
            return;
        }
        if peer.lane_paths.forget_silent(now) {
            self.stale.route(id);
        }
        match &peer.lane_paths {
            LanePaths::Shared => {}
            LanePaths::Followed(_) => self.watch_followed(id),
            LanePaths::Opened(_) => self.tend_lane_paths(now, id),
        }
    }

    pub(super) fn on_resumed(&mut self, now: Instant, id: PeerId) {
        self.tend_link(now, id);
        self.tend_path(now, id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        if matches!(peer.lane_paths, LanePaths::Opened(_)) {
            self.tend_lane_paths(now, id);
        }
    }

    /// Pings, probes and leaves paths as is due, and sets the time of the next look.
    fn tend_lane_paths(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(endpoint) = peer.endpoint else { return };
        let silence = silence(now, peer);
        let mut actions = Vec::new();
        for (lane, path) in peer.lane_paths.opened() {
            let was_proven = path.is_proven();
            let action = path.tend(now, endpoint, silence);
            if was_proven != path.is_proven() {
                self.stale.route(id);
            }
            let Some(action) = action else { continue };
            let token = self.randomness.u64();
            path.expect_pong(now, token, endpoint);
            actions.push((lane, action, token));
        }
        let is_busy = silence == Silence::None || peer.lane_paths.is_split();
        let interval = LANE_PING_INTERVAL.max(peer.liveness.round_trip().unwrap_or_default());
        peer.timers.set(Timer::LanePaths, now + if is_busy { interval } else { IDLE_INTERVAL.max(interval) });
        for (lane, action, token) in actions {
            let listen = Way::main(endpoint);
            let own = Way::own(endpoint, lane);
            let control = match action {
                LaneAction::Ping => Control::Ping(token),
                LaneAction::Probe => Control::Probe(token),
                LaneAction::Leave => {
                    self.send_frames_by(now, id, lane, listen, &[]);
                    Control::Probe(token)
                }
            };
            self.send_padded(now, id, (lane, own), control, LANE_PING_LEN);
        }
    }

    /// A pong came that is none to the ping that measures the round trip.
    pub(super) fn on_lane_pong(&mut self, now: Instant, id: PeerId, token: u64) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(endpoint) = peer.endpoint else { return };
        let Some(lane) = peer.lane_paths.on_pong(token, endpoint) else { return };
        self.stale.route(id);
        // Has the peer answer there, before there is data to show it the path.
        let token = self.randomness.u64();
        for (_, path) in peer.lane_paths.opened().filter(|(opened, _)| *opened == lane) {
            path.expect_pong(now, token, endpoint);
        }
        peer.timers.set(Timer::LanePaths, now + LANE_PING_INTERVAL.max(peer.liveness.round_trip().unwrap_or_default()));
        self.send_padded(now, id, (lane, Way::own(endpoint, lane)), Control::Ping(token), LANE_PING_LEN);
    }

    /// A datagram tells of a lane at another place.
    pub(super) fn on_lane_moved(&mut self, now: Instant, id: PeerId, session: u32, lane: u8, sighting: Sighting) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_current = |current: &&Arc<Session>| current.local_index == session;
        if peer.sessions.current().filter(is_current).is_none() {
            return;
        }
        let Sighting { endpoint, may_ask } = sighting;
        match peer.lane_paths.on_heard(now, lane, endpoint, peer.endpoint) {
            Heard::Known => {}
            Heard::AtEndpoint => {
                self.stale.route(id);
                self.watch_followed(id);
            }
            Heard::Elsewhere if may_ask && peer.lane_paths.is_to_be_asked(now, lane) => self.probe(now, id, endpoint),
            Heard::Elsewhere => {}
        }
    }

    /// A probe came: it asks whether it can be answered where it came from.
    pub(super) fn answer_probe(&mut self, now: Instant, id: PeerId, origin: Origin, token: u64) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.lane_paths.on_ping(now, origin.lane, origin.endpoint);
        self.send_control_by(now, id, SLOW_PATH_LANE, Way::main(origin.endpoint), Control::Pong(token));
    }

    /// A ping came: it is answered, on a lane with a path of its own to where it came from. An address that has not proven
    /// itself gets no more than came from there: one datagram, which asks for the proof if it is long enough for both.
    pub(super) fn answer_ping(&mut self, now: Instant, id: PeerId, origin: Origin, token: u64) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Origin { lane, endpoint: from, length, is_first } = origin;
        peer.lane_paths.on_ping(now, lane, from);
        let follows = lane > 0 && matches!(peer.lane_paths, LanePaths::Followed(_));
        let mut answer = vec![Control::Pong(token)];
        if follows && (is_first || peer.lane_paths.is_at(lane, from)) {
            if length >= PROBE_AND_PONG_LEN && peer.lane_paths.is_to_be_asked(now, lane) {
                let token = self.randomness.u64();
                peer.liveness.on_probe_sent(now, token, from);
                // Only in front is it answered.
                answer.insert(0, Control::Probe(token));
            }
            return self.send_controls(now, id, Way::main(from), &answer);
        }
        let Some(endpoint) = peer.endpoint else { return };
        if peer.is_draining || peer.draining_pongs > 0 {
            peer.draining_pongs = peer.draining_pongs.saturating_sub(1);
            answer.push(Control::Draining(peer.is_draining));
        }
        self.send_controls(now, id, Way::main(endpoint), &answer);
    }

    fn send_controls(&mut self, now: Instant, id: PeerId, way: Way, controls: &[Control]) {
        let mut frames = Vec::new();
        controls.iter().for_each(|control| control.encode(&mut frames));
        self.send_frames_by(now, id, SLOW_PATH_LANE, way, &[&frames]);
    }

    pub(super) fn watch_followed(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        match peer.lane_paths.next_silence() {
            Some(deadline) => peer.timers.set(Timer::LanePaths, deadline),
            None => peer.timers.stop(Timer::LanePaths),
        }
    }
}

/// How long no data has passed, a session's beginning taken for data.
fn silence(now: Instant, peer: &Peer) -> Silence {
    let begin = peer.latest_session.map(|(at, _)| at);
    let last = peer.traffic.last_data().max(begin);
    match last.map_or(Duration::MAX, |last| now.saturating_duration_since(last)) {
        silence if silence < PING_AFTER_DATA => Silence::None,
        silence if silence < LANE_PATH_LIFETIME => Silence::Short,
        _ => Silence::Long,
    }
}
