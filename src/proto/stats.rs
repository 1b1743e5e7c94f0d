//! Counters and the state of a device as its operator sees it. The core counts; only others know metrics formats.

use std::time::Duration;

use ipnet::IpNet;

use crate::keys::PublicKey;

use super::endpoint::Endpoint;
use super::error::DropReason;
use super::noise::Suite;

/// How often each [`DropReason`] happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::COUNT]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([0; DropReason::COUNT])
    }
}

impl DropCounters {
    /// Counts one drop.
    pub fn count(&mut self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `number` drops.
    pub fn add(&mut self, reason: DropReason, number: u64) {
        self.0[reason as usize] += number;
    }

    /// How often `reason` happened.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its number.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.of(reason)))
    }
}

/// What a peer's link is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// A confirmed session is there.
    Up,
    /// A handshake is under way.
    Connecting,
    /// Neither: nothing was sent yet, the last session ran out, or nobody answered.
    Idle,
    /// The peer said goodbye, and has not come back.
    Down,
}

/// One peer, as [`Device::status`](super::device::Device::status) tells it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its configured key.
    pub public_key: PublicKey,
    /// What its link is doing.
    pub state: PeerState,
    /// Set while an initiation of ours waits for its answer, be a session still there or not.
    pub awaits_answer: bool,
    /// Where datagrams go.
    pub endpoint: Option<Endpoint>,
    /// Prefixes it may use.
    pub allowed_ips: Vec<IpNet>,
    /// When the newest session was agreed, as time since the Unix epoch.
    pub latest_handshake: Option<Duration>,
    /// UDP payload bytes received from it and authenticated, handshakes included.
    pub received_bytes: u64,
    /// UDP payload bytes sent to it, handshakes included.
    pub sent_bytes: u64,
    /// The newest session's cipher.
    pub suite: Option<Suite>,
    /// Round-trip time through the session, measured at its last handshake.
    pub round_trip: Option<Duration>,
}

/// A device's state at one moment.
#[derive(Debug, Clone)]
pub struct DeviceStatus {
    /// Our public key.
    pub public_key: PublicKey,
    /// All peers, ordered by key.
    pub peers: Vec<PeerStatus>,
    /// What the slow path refused.
    pub drops: DropCounters,
}

/// What a device keeps in memory beyond its configuration, all peers together: for tests, which check that it is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Sessions that may still receive.
    pub sessions: usize,
    /// Session indices given out: of sessions, and of initiations that wait for their response.
    pub session_indices: usize,
    /// Packets that wait for a session.
    pub staged_packets: usize,
    /// Bytes of these packets.
    pub staged_bytes: usize,
    /// Source addresses that the rate limiter remembers.
    pub limited_sources: usize,
}
