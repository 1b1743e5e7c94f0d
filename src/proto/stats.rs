//! Counters and the state of a device as its operator sees it. The core counts; only others know metrics formats.

use std::net::SocketAddr;
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

/// What a peer's link is doing, as a load balancer may act upon it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// It carries traffic.
    Up,
    /// It carries traffic, badly.
    Degraded,
    /// The link carries traffic and is to get no new connections: the wish of the operator of either side.
    Draining,
    /// It carries nothing.
    Down,
    /// It has carried nothing for so long that nobody knows, and nobody asks: only of links that are not watched.
    Idle,
}

/// Why a link is in its state. None of them for one that is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkReason {
    /// Degraded: so many pings are lost.
    Loss,
    /// Degraded: the path does not carry packets as long as the interface's MTU.
    Mtu,
    /// Draining: by command.
    Drained,
    /// Draining: the peer says that it wants no new connections.
    DrainedByPeer,
    /// Down: no handshake was answered, so far or since the last session ended.
    NoHandshake,
    /// Down: the peer answered with keys that are not its own, or has another preshared key.
    KeyRefused,
    /// Down: pings are not answered.
    Unanswered,
    /// Down: the peer said that it is going away.
    Goodbye,
    /// Down or degraded: packets for the peer, or for some of its prefixes, do not reach the tunnel interface.
    Route,
    /// Idle: no session, and nothing to send.
    NoTraffic,
}

/// Source of a peer's endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndpointSource {
    /// The configuration names it.
    Configured,
    /// The peer's own datagrams came from there, and the configuration names others.
    Roamed,
    /// The peer's own datagrams came from there, and the configuration names none.
    Learned,
    /// The peer was there before this device began, and the configuration names none.
    Remembered,
}

/// The part of a peer's traffic that this machine's routes keep from the tunnel interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteFault {
    /// Some of its further prefixes, or parts of them: its link is degraded.
    Part,
    /// Its addresses: its link is down.
    Addresses,
}

/// One peer, as [`Device::status`](super::device::Device::status) tells it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its configured key.
    pub public_key: PublicKey,
    /// What its link is doing.
    pub state: LinkState,
    /// Why; none for one that is up.
    pub reason: Option<LinkReason>,
    /// Since when, as time since the Unix epoch.
    pub state_since: Duration,
    /// Set while an initiation of ours waits for its answer, be a session still there or not.
    pub awaits_answer: bool,
    /// Where datagrams go.
    pub endpoint: Option<Endpoint>,
    /// Source of the endpoint.
    pub endpoint_source: Option<EndpointSource>,
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
    /// Smoothed round-trip time of pings (RFC 6298 §2).
    pub round_trip: Option<Duration>,
    /// How much it varies, by the same source.
    pub round_trip_variation: Option<Duration>,
    /// Share of recent pings that were lost, 0 to 1.
    pub loss: f64,
    /// Longest packet in bytes that its path carries in one datagram, as far as is known; none without an endpoint, or where
    /// paths are not tried.
    pub path_mtu: Option<u16>,
    /// Sessions that were agreed.
    pub handshakes: u64,
    /// Pings that were sent to watch the link, and those of them that were lost.
    pub pings: u64,
    /// The lost ones.
    pub pings_lost: u64,
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
    /// Initiations that were refused, by key and reason, the newest first: at most 32.
    pub refused: Vec<RefusedInitiation>,
}

/// Initiations of one key that were refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedInitiation {
    /// The static key that they came from, which need not be a peer's; none if they did not get that far.
    pub key: Option<PublicKey>,
    /// The reason for the refusal.
    pub reason: DropReason,
    /// Apparent source of the newest: an address that anyone can write.
    pub from: SocketAddr,
    /// Their number.
    pub count: u64,
    /// When the newest came, as time since the Unix epoch.
    pub latest: Duration,
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

impl LinkState {
    /// As operators read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Idle => "idle",
        }
    }
}

impl LinkReason {
    /// As operators read it, in words of a protocol: `no-handshake`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Mtu => "mtu",
            Self::Drained => "drained",
            Self::DrainedByPeer => "drained-by-peer",
            Self::NoHandshake => "no-handshake",
            Self::KeyRefused => "key-refused",
            Self::Unanswered => "unanswered",
            Self::Goodbye => "goodbye",
            Self::Route => "route",
            Self::NoTraffic => "no-traffic",
        }
    }
}
