//! Initiation, response, cookie reply: how a device makes them and what it does with them.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::keys::PublicKey;
use crate::packet::message::{CookieReply, Initiation, Response};
use crate::proto::constants::{
    ALTERNATIVE_DELAY, CALL_BACK_INTERVAL, EAGER_RETRY_FOR, MIN_ACCEPTED_INITIATION_INTERVAL, MIN_INITIATION_INTERVAL,
    REFUSAL_TOLD_INTERVAL, REPEAT_FOR, REPEAT_INTERVAL, RETRY_INTERVALS, RETRY_JITTER,
};
use crate::proto::endpoint::Endpoint;
use crate::proto::error::DropReason;
use crate::proto::event::Event;
use crate::proto::handshake::{
    InitiationFields, consume_initiation, consume_response, create_initiation, create_response,
};
use crate::proto::noise::{FEATURE_ECN, FEATURE_LANE_PATHS, Parameters, ReceivedInitiation, Suite};
use crate::proto::peer::{Attempt, Peer};
use crate::proto::peer_table::PeerId;
use crate::proto::rate_limiter::Verdict;
use crate::proto::refused::Entry;
use crate::proto::session::{Session, SessionParameters};
use crate::proto::session_slots::Precedence;
use crate::proto::tai64n::Tai64N;
use crate::proto::timers::Timer;
use crate::proto::transmit::{Dscp, Transmit};

use super::Device;

impl Device {
    /// Starts an attempt to make a session, unless one is under way or nobody knows where the peer is.
    pub(super) fn initiate(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.attempt.is_some() || peer.endpoint.is_none() {
            return;
        }
        peer.attempt = Some(Attempt::new(now, None));
        match peer.last_initiation_at.map(|last| last + MIN_INITIATION_INTERVAL) {
            Some(earliest) if earliest > now => peer.timers.set(Timer::Retry, earliest),
            _ => self.send_initiation(now, id),
        }
    }

    /// Sends the next initiation of the attempt under way, and waits for the answer.
    pub(super) fn send_initiation(&mut self, now: Instant, id: PeerId) {
        let timestamp = self.next_timestamp(now);
        self.refresh_randomness();
        self.release_pending(id);
        let index = self.peers.allocate_index(id, &mut self.randomness);
        let (parameters, candidate_interval) = (self.parameters(), self.candidate_interval());
        let peer = self.peers.get_mut(id).expect("the caller has found it");
        let is_eager = peer.is_kept();
        let Some(attempt) = peer.attempt.as_mut() else { return self.peers.release_index(index) };
        let Some(endpoint) = attempt.call_back_to.or(peer.endpoint) else { return self.peers.release_index(index) };
        if attempt.initiations > 0 {
            // Nobody answered to this key: while a peer changes over, it may already have only the other.
            peer.active_remote = (peer.active_remote + 1) % peer.remotes.len();
        }
        let remote = &peer.remotes[peer.active_remote];
        let fields = InitiationFields {
            suite: peer.config.suite.unwrap_or(self.suite),
            sender_index: index,
            timestamp,
            parameters,
        };
        let created = create_initiation(&fields, &self.local_keys[0].private, &remote.key, &mut self.randomness);
        let is_eager = is_eager && now < attempt.started_at + EAGER_RETRY_FOR;
        let last_step = if is_eager { 1 } else { RETRY_INTERVALS.len() - 1 };
        let interval = RETRY_INTERVALS[attempt.initiations.min(last_step)];
        let jitter = self.randomness.duration_below(RETRY_JITTER.min(interval / 3));
        peer.timers.set(Timer::Retry, now + interval + jitter);
        peer.last_initiation_at = Some(now);
        attempt.initiations += 1;
        let Ok((pending, message)) = created else {
            self.peers.release_index(index);
            return self.drops.count(DropReason::HandshakeFailed);
        };
        attempt.pending = Some((pending, index));
        attempt.message = message;
        let is_retry = attempt.initiations > 1;
        // Nobody answers at this address, or has answered there lately: whoever forwards a datagram of a peer makes it
        // seem to have roamed there.
        let is_lost = is_retry || peer.liveness.is_dead();
        if attempt.call_back_to.is_none() && peer.candidates.start_round(&peer.config.endpoints, endpoint.remote) {
            let wanted = if is_lost { now } else { now + ALTERNATIVE_DELAY };
            peer.timers.set(Timer::Alternatives, wanted.max(peer.candidates.next_at(now, candidate_interval)));
        }
        self.send_newest_initiation(now, id);
    }

    /// Sends the newest initiation once more where it went.
    pub(super) fn repeat_initiation(&mut self, now: Instant, id: PeerId) {
        self.send_newest_initiation(now, id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(endpoint) = peer.endpoint.filter(|_| peer.timers.get(Timer::Alternatives).is_none()) else { return };
        if peer.candidates.start_round(&peer.config.endpoints, endpoint.remote) {
            self.send_to_next_candidate(now, id);
        }
    }

    /// To the endpoint, with a cookie if one has come; again later if the link is watched.
    fn send_newest_initiation(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_kept = peer.is_kept();
        let Some(attempt) = &mut peer.attempt else { return };
        let Some(endpoint) = attempt.call_back_to.or(peer.endpoint) else { return };
        peer.cookies.write_macs(now, &peer.remotes[peer.active_remote].mac_keys, &mut attempt.message);
        peer.past_sent_bytes += attempt.message.len() as u64;
        peer.traffic.on_sent(now, false);
        self.transmits.push_back(Transmit::handshake(endpoint, peer.config.dscp, attempt.message.clone()));
        let repeat_for = if peer.cookies.is_demanded(now) { EAGER_RETRY_FOR } else { REPEAT_FOR };
        if is_kept && attempt.call_back_to.is_none() && now < attempt.started_at + repeat_for {
            let jitter = self.randomness.duration_below(REPEAT_INTERVAL / 3);
            peer.timers.set(Timer::Repeat, now + REPEAT_INTERVAL + jitter);
        }
    }

    /// Sends the newest initiation to the next of the peer's other endpoints, and has the rest of the round follow at their
    /// pace: the first that answers is used.
    pub(super) fn send_to_next_candidate(&mut self, now: Instant, id: PeerId) {
        let interval = self.candidate_interval();
        let Some(peer) = self.peers.get_mut(id) else { return };
        let (Some(attempt), Some(endpoint)) = (&peer.attempt, peer.endpoint) else { return };
        if let Some(candidate) = peer.candidates.take(now, interval, &peer.config.endpoints, endpoint.remote) {
            peer.past_sent_bytes += attempt.message.len() as u64;
            peer.traffic.on_sent(now, false);
            let payload = attempt.message.clone();
            self.transmits.push_back(Transmit::handshake(candidate, peer.config.dscp, payload));
        }
        if peer.candidates.has_more() {
            let next = peer.candidates.next_at(now, interval);
            peer.timers.set(Timer::Alternatives, next.max(now + Duration::from_millis(1)));
        }
    }

    /// Forgets the attempt under way, with its ephemeral keys.
    pub(super) fn end_attempt(&mut self, id: PeerId) {
        self.release_pending(id);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.end_attempt();
        }
    }

    fn release_pending(&mut self, id: PeerId) {
        let pending = self.peers.get_mut(id).and_then(|peer| peer.attempt.as_mut()?.pending.take());
        if let Some((_, index)) = pending {
            self.peers.release_index(index);
        }
    }

    pub(super) fn handle_initiation(
        &mut self,
        now: Instant,
        from: Endpoint,
        initiation: Initiation<'_>,
    ) -> Result<(), DropReason> {
        let received = self
            .read_initiation(now, from, initiation)
            .inspect_err(|reason| self.tell_refusal(now, None, from, *reason))?;
        let remote = received.remote;
        self.answer_initiation(now, from, initiation, received)
            .inspect_err(|reason| self.tell_refusal(now, Some(remote), from, *reason))
    }

    /// Everything up to the sender's static key, which it has then proven to hold.
    fn read_initiation(
        &mut self,
        now: Instant,
        from: Endpoint,
        initiation: Initiation<'_>,
    ) -> Result<ReceivedInitiation, DropReason> {
        let local = self
            .local_keys
            .iter()
            .position(|local| local.mac_keys.verify_mac1(initiation.bytes))
            .ok_or(DropReason::InvalidMac1)?;
        self.limit(now, from, local, initiation.sender_index(), initiation.bytes)?;
        let suite = Suite::from_byte(initiation.suite()).ok_or(DropReason::UnknownSuite)?;
        if !self.accepted_suites.contains(&suite) {
            return Err(DropReason::SuiteNotAccepted);
        }
        self.refresh_randomness();
        let private = &self.local_keys[local].private;
        consume_initiation(suite, initiation, private, &mut self.randomness).map_err(|_| DropReason::HandshakeFailed)
    }

    /// Responds to an initiation that decrypted, if it is a peer's and newer than the last.
    fn answer_initiation(
        &mut self,
        now: Instant,
        from: Endpoint,
        initiation: Initiation<'_>,
        received: ReceivedInitiation,
    ) -> Result<(), DropReason> {
        let (remote, theirs, timestamp, suite) =
            (received.remote, received.parameters, received.timestamp, received.suite());
        let id = self.peers.by_key(&remote).ok_or(DropReason::UnknownPeer)?;
        let peer = self.peers.get(id).expect("found by its key");
        let position = peer.remotes.iter().position(|known| known.key == remote).ok_or(DropReason::UnknownPeer)?;
        if let Err(reason) = check_timestamp(now, peer, position, timestamp) {
            if reason == DropReason::StaleInitiation {
                self.call_back(now, id, position, from);
            }
            return Err(reason);
        }

        let index = self.peers.allocate_index(id, &mut self.randomness);
        let ours = self.parameters();
        let peer = self.peers.get_mut(id).expect("found by its key");
        let created = create_response(
            received,
            (index, initiation.sender_index()),
            peer.config.preshared_key.as_ref(),
            ours,
            &mut self.randomness,
        );
        let Ok((keys, mut message)) = created else {
            self.peers.release_index(index);
            return Err(DropReason::HandshakeFailed);
        };
        peer.remotes[position].last_timestamp = Some(timestamp);
        peer.last_accepted_at = Some(now);
        peer.active_remote = position;
        peer.cookies.write_macs(now, &peer.remotes[position].mac_keys, &mut message);
        peer.past_received_bytes += initiation.bytes.len() as u64;
        peer.past_sent_bytes += message.len() as u64;
        peer.traffic.on_received(now, false);
        peer.traffic.on_sent(now, false);
        let parameters = SessionParameters {
            local_index: index,
            remote_index: initiation.sender_index(),
            is_initiator: false,
            suite,
            send_lanes: self.send_lanes,
            receive_lanes: theirs.lanes,
            lane_paths: both_know_lane_paths(ours, theirs),
            peer_reads_ecn: theirs.features & FEATURE_ECN != 0,
            peer_mtu: theirs.mtu,
        };
        let session = Arc::new(Session::new(now, &keys, &parameters, peer.traffic.clone()));
        let dscp = peer.config.dscp;
        peer.roaming.answered = Some((index, from.remote));
        self.end_sessions(id, |peer| peer.sessions.add_responded(session));
        // The endpoint does not move yet: after a restart this may be a replay. The first transport data moves it.
        self.transmits.push_back(Transmit::handshake(from, dscp, message));
        self.settle(now, id);
        Ok(())
    }

    /// A peer's initiation was refused for its timestamp: its clock was ahead before its last start, or is behind, and it
    /// would be refused until its clock has passed that moment. Ours it takes: of two sides, the one that has started last
    /// has no older timestamp of the other to compare with.
    ///
    /// The initiation may as well be a replay from an address that is not the peer's: so there is one initiation for
    /// it, no longer than what it answers, and none while the peer is heard.
    fn call_back(&mut self, now: Instant, id: PeerId, position: usize, from: Endpoint) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| now < at + CALL_BACK_INTERVAL);
        if [peer.traffic.last_received(), peer.called_back_at].into_iter().any(is_recent) {
            return;
        }
        if let Some(attempt) = &peer.attempt {
            if attempt.pending.is_some() {
                peer.called_back_at = Some(now);
                peer.past_sent_bytes += attempt.message.len() as u64;
                let copy = Transmit::handshake(from, peer.config.dscp, attempt.message.clone());
                self.transmits.push_back(copy);
            }
        } else if peer.last_initiation_at.is_none_or(|last| now >= last + MIN_INITIATION_INTERVAL) {
            peer.called_back_at = Some(now);
            peer.active_remote = position;
            peer.attempt = Some(Attempt::new(now, Some(from)));
            self.send_initiation(now, id);
            self.settle(now, id);
        }
    }

    /// Tells the owner of an initiation that was refused, now and then: a flood of them is not worth more.
    fn tell_refusal(&mut self, now: Instant, key: Option<PublicKey>, from: Endpoint, reason: DropReason) {
        // Whoever watches a link repeats an initiation whose response was lost.
        let is_too_many = matches!(
            reason,
            DropReason::CookieDemanded
                | DropReason::RateLimited
                | DropReason::ReplayedInitiation
                | DropReason::InitiationTooSoon
        );
        if is_too_many {
            return;
        }
        let is_peer = key.is_some_and(|key| self.peers.by_key(&key).is_some());
        self.refused.note(Entry { key, is_peer, reason, from: from.remote, count: 1, latest: now });
        let peer = key.and_then(|key| self.peers.by_key(&key)).and_then(|id| self.peers.get_mut(id));
        let told_at = peer.map_or(&mut self.refusal_told_at, |peer| &mut peer.refusal_told_at);
        if told_at.is_none_or(|last| now >= last + REFUSAL_TOLD_INTERVAL) {
            *told_at = Some(now);
            self.events.push_back(Event::InitiationRefused { peer: key, from: from.remote, reason });
        }
    }

    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        from: Endpoint,
        response: Response<'_>,
    ) -> Result<(), DropReason> {
        let index = response.receiver_index();
        let id = self.peers.by_index(index).ok_or(DropReason::UnexpectedAnswer)?;
        let expects = |peer: &Peer| pending_index(peer) == Some(index);
        if !self.peers.get(id).is_some_and(expects) {
            return Err(DropReason::UnexpectedAnswer);
        }
        if !self.local_keys[0].mac_keys.verify_mac1(response.bytes) {
            return Err(DropReason::InvalidMac1);
        }
        self.limit(now, from, 0, response.sender_index(), response.bytes)?;

        let ours = self.parameters();
        let peer = self.peers.get_mut(id).expect("it has the index");
        let preshared_key = peer.config.preshared_key.clone();
        let (pending, _) =
            peer.attempt.as_mut().and_then(|attempt| attempt.pending.as_mut()).expect("it has the index");
        let suite = pending.suite();
        if Suite::from_byte(response.suite()) != Some(suite) {
            return Err(DropReason::UnknownSuite);
        }
        let Ok((keys, theirs)) = consume_response(pending, response, preshared_key.as_ref()) else {
            peer.is_key_refused = true;
            self.settle(now, id);
            return Err(DropReason::HandshakeFailed);
        };

        peer.past_received_bytes += response.bytes.len() as u64;
        peer.traffic.on_received(now, false);
        let called_back =
            peer.attempt.as_ref().and_then(|attempt| attempt.call_back_to).map(|endpoint| endpoint.remote);
        if called_back == Some(from.remote) {
            // The initiation went nowhere else.
            peer.roaming.proven = called_back;
        }
        // The index goes on as the session's.
        peer.end_attempt();
        let parameters = SessionParameters {
            local_index: index,
            remote_index: response.sender_index(),
            is_initiator: true,
            suite,
            send_lanes: self.send_lanes,
            receive_lanes: theirs.lanes,
            lane_paths: both_know_lane_paths(ours, theirs),
            peer_reads_ecn: theirs.features & FEATURE_ECN != 0,
            peer_mtu: theirs.mtu,
        };
        let session = Arc::new(Session::new(now, &keys, &parameters, peer.traffic.clone()));
        let precedence = self.precedence(id);
        self.end_sessions(id, |peer| peer.sessions.add_initiated(session, precedence));
        self.on_answered_from(now, id, from);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.liveness.on_session();
        }
        // The first transport data confirms the session to the responder; as a ping it measures the round trip.
        self.ping(now, id);
        self.on_session_established(now, id, index);
        self.settle(now, id);
        Ok(())
    }

    pub(super) fn handle_cookie_reply(&mut self, now: Instant, reply: &CookieReply<'_>) -> Result<(), DropReason> {
        let index = reply.receiver_index();
        let id = self.peers.by_index(index).ok_or(DropReason::UnexpectedAnswer)?;
        let peer = self.peers.get_mut(id).expect("indices lead to peers that exist");
        let awaits = pending_index(peer) == Some(index)
            || peer.sessions.next().is_some_and(|session| session.local_index == index);
        if !awaits {
            return Err(DropReason::UnexpectedAnswer);
        }
        let mac_keys = &peer.remotes[peer.active_remote].mac_keys;
        peer.cookies.consume_reply(now, mac_keys, reply).ok_or(DropReason::InvalidCookieReply)
    }

    /// Judges a handshake message whose mac1 is right, before anything expensive; demands a cookie if need be.
    fn limit(
        &mut self,
        now: Instant,
        from: Endpoint,
        local: usize,
        sender_index: u32,
        message: &[u8],
    ) -> Result<(), DropReason> {
        if self.rate_limiter.admit(now, from.remote.ip()) == Verdict::Admit {
            self.handshakes_worked_on += 1;
            return Ok(());
        }
        if self.cookie_checker.verify_mac2(now, from.remote, message, &mut self.randomness) {
            if !self.rate_limiter.admit_with_cookie(now, from.remote) {
                return Err(DropReason::RateLimited);
            }
            self.handshakes_worked_on += 1;
            return Ok(());
        }
        let mac_keys = &self.local_keys[local].mac_keys;
        let payload =
            self.cookie_checker.reply(now, from.remote, mac_keys, sender_index, message, &mut self.randomness);
        self.transmits.push_back(Transmit::handshake(from, Dscp::default(), payload));
        Err(DropReason::CookieDemanded)
    }

    pub(super) fn give_up(&mut self, id: PeerId) {
        self.end_attempt(id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let dropped = peer.staged.clear();
        self.drops.add(DropReason::HandshakeGivenUp, dropped);
        self.events.push_back(Event::HandshakeGivenUp { peer: peer.name() });
    }

    /// When both sides initiate at once, the greater public key's session wins.
    pub(super) fn precedence(&self, id: PeerId) -> Precedence {
        let ours_is_greater = self.peers.get(id).is_some_and(|peer| self.public_key() > peer.remote().key);
        if ours_is_greater { Precedence::Ours } else { Precedence::Theirs }
    }

    fn parameters(&self) -> Parameters {
        let lane_paths = if self.lane_paths { FEATURE_LANE_PATHS } else { 0 };
        Parameters { lanes: self.send_lanes, features: FEATURE_ECN | lane_paths, mtu: self.mtu.announced() }
    }

    /// Called before each handshake's secrets are drawn, so that no copy of the memory from before it tells what they are.
    pub(super) fn refresh_randomness(&mut self) {
        self.randomness.refresh(&self.entropy.draw());
    }

    /// Newer than every timestamp before, also when the clock stands still or was set back.
    fn next_timestamp(&mut self, now: Instant) -> Tai64N {
        self.last_timestamp = self.unix_time(now).max(self.last_timestamp + Duration::from_nanos(1));
        Tai64N::from_unix(self.last_timestamp)
    }
}

/// Refuses a replayed initiation, and one that comes too soon after another.
fn check_timestamp(now: Instant, peer: &Peer, position: usize, timestamp: Tai64N) -> Result<(), DropReason> {
    match peer.remotes[position].last_timestamp.map(|last| timestamp.cmp(&last)) {
        Some(Ordering::Less) => return Err(DropReason::StaleInitiation),
        Some(Ordering::Equal) => return Err(DropReason::ReplayedInitiation),
        Some(Ordering::Greater) | None => {}
    }
    match peer.last_accepted_at {
        Some(last) if now < last + MIN_ACCEPTED_INITIATION_INTERVAL => Err(DropReason::InitiationTooSoon),
        _ => Ok(()),
    }
}

fn both_know_lane_paths(ours: Parameters, theirs: Parameters) -> bool {
    ours.features & theirs.features & FEATURE_LANE_PATHS != 0
}

fn pending_index(peer: &Peer) -> Option<u32> {
    peer.attempt.as_ref()?.pending.as_ref().map(|(_, index)| *index)
}
