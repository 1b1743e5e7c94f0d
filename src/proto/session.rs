//! One session: a pair of transport keys, the lanes that seal with one and the replay windows that guard the other.
//!
//! The one type that workers share by reference. A send lane is one atomic counter, so that no nonce can be used twice
//! whoever seals; a receive lane is a replay window behind its own lock, which only that lane's traffic takes.
//! A session does not know who its peer is nor where: that is the [`Router`](super::router::Router)'s.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::packet::frame;
use crate::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN, TransportHeader};
use crate::packet::traffic_class::{Ecn, TrafficClass};

use super::aead::AeadKey;
use super::constants::{
    REJECT_AFTER_BYTES, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_BYTES, REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME, REKEY_AFTER_TIME_RECEIVING, REKEY_JITTER, REKEY_REQUEST_INTERVAL,
};
use super::error::DropReason;
use super::noise::{SessionKeys, Suite};
use super::replay::ReplayWindow;
use super::sync::{AtomicU64, Mutex, Ordering};
use super::traffic::Traffic;
use super::transmit::Dscp;

/// Keys, counters and windows of one session.
pub struct Session {
    /// The index that the peer puts into datagrams for us.
    pub local_index: u32,
    /// The index that we put into datagrams for the peer.
    pub remote_index: u32,
    /// Whether our initiation made it.
    pub is_initiator: bool,
    /// Both sides know paths of lanes, and the initiator has lanes to open some for.
    pub has_lane_paths: bool,
    /// The cipher.
    pub suite: Suite,
    /// When its handshake was completed on this side.
    pub created_at: Instant,
    /// The peer passes on what the ECN fields of datagrams say.
    peer_reads_ecn: bool,
    /// Longest packet that the peer has announced a use for; 0 if it has said nothing.
    pub peer_mtu: u16,
    seal_key: AeadKey,
    open_key: AeadKey,
    send_lanes: Box<[SendLane]>,
    receive_lanes: Box<[Mutex<ReceiveLane>]>,
    /// When a successor was last asked for, in whole seconds of the session's age plus one; zero is "never".
    rekey_requested: AtomicU64,
    traffic: Arc<Traffic>,
}

/// What both handshake roles know when a session begins.
pub struct SessionParameters {
    /// Ours, from the handshake.
    pub local_index: u32,
    /// The peer's, from the handshake.
    pub remote_index: u32,
    /// Whether our initiation made it.
    pub is_initiator: bool,
    /// The cipher.
    pub suite: Suite,
    /// How many lanes we send on.
    pub send_lanes: u8,
    /// How many lanes the peer sends on.
    pub receive_lanes: u8,
    /// Whether both sides announced paths of lanes.
    pub lane_paths: bool,
    /// Whether the peer announced that it passes on what ECN fields say.
    pub peer_reads_ecn: bool,
    /// Longest packet that the peer has announced a use for; 0 if it has said nothing.
    pub peer_mtu: u16,
}

/// A send counter on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct SendLane {
    next_counter: AtomicU64,
    sent_bytes: AtomicU64,
}

#[derive(Default)]
struct ReceiveLane {
    window: ReplayWindow,
    received_bytes: u64,
}

/// What [`Session::open`] found beside the plaintext.
pub(super) struct Authentic<'b> {
    pub(super) plaintext: &'b mut [u8],
    /// The counter is the newest of its lane: the datagram may move the endpoint.
    pub(super) is_newest: bool,
    /// The session is so old that a successor is to be asked for.
    pub(super) rekey_due: bool,
}

impl Session {
    /// Starts with fresh keys.
    pub fn new(now: Instant, keys: &SessionKeys, parameters: &SessionParameters, traffic: Arc<Traffic>) -> Self {
        let initiator_lanes = if parameters.is_initiator { parameters.send_lanes } else { parameters.receive_lanes };
        Self {
            local_index: parameters.local_index,
            remote_index: parameters.remote_index,
            is_initiator: parameters.is_initiator,
            has_lane_paths: parameters.lane_paths && initiator_lanes > 1,
            suite: parameters.suite,
            created_at: now,
            peer_reads_ecn: parameters.peer_reads_ecn,
            peer_mtu: parameters.peer_mtu,
            seal_key: AeadKey::new(parameters.suite, &keys.send),
            open_key: AeadKey::new(parameters.suite, &keys.receive),
            send_lanes: (0..parameters.send_lanes).map(|_| SendLane::default()).collect(),
            receive_lanes: (0..parameters.receive_lanes).map(|_| Mutex::default()).collect(),
            rekey_requested: AtomicU64::new(0),
            traffic,
        }
    }

    /// Seals `header room (12) | frames | tag room (16)` in place with the lane's next counter. Returns whether
    /// a successor is to be asked for.
    pub fn seal(&self, now: Instant, lane: u8, datagram: &mut [u8]) -> Result<bool, DropReason> {
        if self.is_expired(now) {
            return Err(DropReason::SessionExpired);
        }
        let send_lane = self.send_lanes.get(usize::from(lane)).ok_or(DropReason::UnknownLane)?;
        let counter = send_lane.next_counter.fetch_add(1, Ordering::Relaxed);
        let sent_bytes = send_lane.sent_bytes.load(Ordering::Relaxed);
        if counter >= self.per_lane(REJECT_AFTER_MESSAGES) || sent_bytes >= self.per_lane(REJECT_AFTER_BYTES) {
            // Not one nonce is used beyond the limit, and 2^48 refusals are never reached.
            return Err(DropReason::SessionExpired);
        }
        let carries_data = frame::starts_with_packet(&datagram[TRANSPORT_HEADER_LEN..]);
        self.seal_with_counter(lane, counter, datagram);
        send_lane.sent_bytes.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        self.traffic.on_sent(now, carries_data);
        let used = counter >= self.per_lane(REKEY_AFTER_MESSAGES) || sent_bytes >= self.per_lane(REKEY_AFTER_BYTES);
        let old = self.is_initiator && now >= self.created_at + (REKEY_AFTER_TIME - REKEY_JITTER);
        Ok((used || old) && self.request_rekey(now))
    }

    fn seal_with_counter(&self, lane: u8, counter: u64, datagram: &mut [u8]) {
        let (header, body) = datagram.split_at_mut(TRANSPORT_HEADER_LEN);
        let (plaintext, tag) = body.split_at_mut(body.len() - TAG_LEN);
        header.copy_from_slice(&TransportHeader { lane, receiver_index: self.remote_index, counter }.encode());
        tag.copy_from_slice(&self.seal_key.seal(nonce(lane, counter), header, plaintext));
    }

    /// Opens a datagram with this session's index in place: verifies it, then marks its counter as received.
    pub(super) fn open<'b>(
        &self,
        now: Instant,
        header: TransportHeader,
        datagram: &'b mut [u8],
    ) -> Result<Authentic<'b>, DropReason> {
        if self.is_expired(now) || header.counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::SessionExpired);
        }
        let lane = self.receive_lanes.get(usize::from(header.lane)).ok_or(DropReason::UnknownLane)?;
        let received_bytes = datagram.len() as u64;
        let (clear, ciphertext) = datagram.split_at_mut(TRANSPORT_HEADER_LEN);

        // Held over the opening, so that two workers cannot both accept one counter.
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        lane.window.check(header.counter)?;
        let plaintext = self
            .open_key
            .open(nonce(header.lane, header.counter), clear, ciphertext)
            .map_err(|_| DropReason::InvalidTag)?;
        let is_newest = lane.window.accept(header.counter);
        lane.received_bytes += received_bytes;
        drop(lane);

        self.traffic.on_received(now, frame::starts_with_packet(plaintext));
        let old = self.is_initiator && now.saturating_duration_since(self.created_at) >= REKEY_AFTER_TIME_RECEIVING;
        Ok(Authentic { plaintext, is_newest, rekey_due: old && self.request_rekey(now) })
    }

    /// That of a datagram with packets of the class `inner`; of one without packets for the default. A peer that does not pass
    /// marks on gets none to pass on: its networks drop instead (RFC 6040 §4.1, normal and compatibility mode).
    pub(super) fn traffic_class(&self, dscp: Dscp, inner: TrafficClass) -> TrafficClass {
        let outer = dscp.outer(inner);
        if self.peer_reads_ecn { outer } else { outer.with_ecn(Ecn::NotEct) }
    }

    /// How many lanes the initiator sends on.
    pub(super) fn initiator_lanes(&self) -> usize {
        if self.is_initiator { self.send_lanes.len() } else { self.receive_lanes.len() }
    }

    /// Whether the slow path knows that data passes.
    pub(super) fn is_busy(&self) -> bool {
        self.traffic.is_busy()
    }

    /// Whether datagrams of the peer's `lane` may come by a path that only they take.
    pub(super) fn follows_path_of(&self, lane: u8) -> bool {
        lane > 0 && self.has_lane_paths && !self.is_initiator
    }

    /// Whether the session is too old to seal or open anything.
    pub fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires_at()
    }

    /// When the session ends by age.
    pub fn expires_at(&self) -> Instant {
        self.created_at + REJECT_AFTER_TIME
    }

    /// UDP payload bytes sealed so far.
    pub fn sent_bytes(&self) -> u64 {
        self.send_lanes.iter().map(|lane| lane.sent_bytes.load(Ordering::Relaxed)).sum()
    }

    /// UDP payload bytes opened so far.
    pub fn received_bytes(&self) -> u64 {
        self.receive_lanes.iter().map(|lane| lane.lock().unwrap_or_else(PoisonError::into_inner).received_bytes).sum()
    }

    /// An equal share of a session's limit. All lanes together so never pass it.
    fn per_lane(&self, limit: u64) -> u64 {
        limit / self.send_lanes.len().max(1) as u64
    }

    /// Whether to ask now: at most once in [`REKEY_REQUEST_INTERVAL`], since a request may be lost on its way.
    fn request_rekey(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.created_at).as_secs() + 1;
        let last = self.rekey_requested.load(Ordering::Relaxed);
        let ask = last == 0 || age >= last + REKEY_REQUEST_INTERVAL.as_secs();
        if ask {
            self.rekey_requested.store(age, Ordering::Relaxed);
        }
        ask
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("is_initiator", &self.is_initiator)
            .field("suite", &self.suite)
            .finish_non_exhaustive()
    }
}

/// `lane (16 bits) ‖ counter (48 bits)`.
fn nonce(lane: u8, counter: u64) -> u64 {
    u64::from(lane) << 48 | counter
}

#[cfg(all(test, underpass_loom))]
mod interleavings;
#[cfg(test)]
pub(super) mod tests;
