//! One peer of a device: its keys, endpoint, handshake under way, sessions, waiting packets and timers.
//!
//! Holds state and answers questions about it; what follows from an input is decided in [`device`](super::device).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::keys::{PresharedKey, PublicKey};

use super::candidates::Candidates;
use super::cookie::{CookieJar, MacKeys};
use super::endpoint::Endpoint;
use super::interface_mtu::MtuRange;
use super::lane_paths::LanePaths;
use super::liveness::Liveness;
use super::noise::{PendingInitiation, Suite};
use super::path_mtu::{PathLimit, PathMtu};
use super::policy::Policy;
use super::router::Sighting;
use super::session::Session;
use super::session_slots::SessionSlots;
use super::share::Share;
use super::staged::StagedQueue;
use super::stats::{EndpointSource, LinkReason, LinkState, RouteFault};
use super::tai64n::Tai64N;
use super::timers::{Timer, TimerTable};
use super::traffic::Traffic;
use super::transmit::Dscp;

/// What is configured of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its static key, and its name in events and status.
    pub public_key: PublicKey,
    /// The key that will replace it: accepted as well, while the peer changes over.
    pub next_public_key: Option<PublicKey>,
    /// Mixed into every handshake with it.
    pub preshared_key: Option<PresharedKey>,
    /// Where to find it, in the order of preference; without one it has to call us. It may roam from there, and is looked
    /// for there too when it does not answer where it went.
    pub endpoints: Vec<Endpoint>,
    /// Somebody wants to know the state of its link at any time: keep a session, and ping.
    pub watched: bool,
    /// Keep a session from our side, whoever else does. It is pinged only when nothing is heard from it.
    pub connects: bool,
    /// Prefixes it may use.
    pub allowed_ips: Vec<IpNet>,
    /// Send something at least this often, and keep a session. Zero is none.
    pub persistent_keepalive: Option<Duration>,
    /// What to propose to it, if not the device's suite.
    pub suite: Option<Suite>,
    /// What the DSCP of datagrams to it says.
    pub dscp: Dscp,
    /// What it may send, from its prefixes.
    pub policy: Arc<Policy>,
}

impl PeerConfig {
    /// A peer that is not connected to, has no prefixes and may send nothing but answers.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            next_public_key: None,
            preshared_key: None,
            endpoints: Vec::new(),
            watched: false,
            connects: false,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
            suite: None,
            dscp: Dscp::default(),
            policy: Arc::default(),
        }
    }
}

pub(super) struct Peer {
    pub(super) config: PeerConfig,
    /// One key, or two while the peer changes over.
    pub(super) remotes: Vec<RemoteKey>,
    /// The one of `remotes` that initiations are made for: the last that proved itself.
    pub(super) active_remote: usize,
    pub(super) endpoint: Option<Endpoint>,
    /// The endpoint that it had before this device began.
    pub(super) remembered: Option<SocketAddr>,
    pub(super) candidates: Candidates,
    /// Where it was when we were told that it is elsewhere, and when that was.
    pub(super) left: Option<LeftPlace>,
    pub(super) roaming: Roaming,
    /// Set while we want a session and nobody has answered yet.
    pub(super) attempt: Option<Attempt>,
    pub(super) last_initiation_at: Option<Instant>,
    pub(super) last_accepted_at: Option<Instant>,
    /// When it was last initiated to because of its own initiation's timestamp.
    pub(super) called_back_at: Option<Instant>,
    /// When the owner was last told of an initiation of its that was refused.
    pub(super) refusal_told_at: Option<Instant>,
    pub(super) sessions: SessionSlots,
    /// Of the current session.
    pub(super) lane_paths: LanePaths,
    pub(super) cookies: CookieJar,
    pub(super) staged: StagedQueue,
    pub(super) traffic: Arc<Traffic>,
    pub(super) timers: TimerTable,
    pub(super) liveness: Liveness,
    pub(super) path_mtu: PathMtu,
    /// Its share of what all peers use.
    pub(super) share: Arc<Share>,
    /// What was told of the link last, and since when it has been so.
    pub(super) told_link: (LinkState, Option<LinkReason>),
    pub(super) link_since: Instant,
    /// Whether the router was told to refuse packets.
    pub(super) told_refusal: bool,
    pub(super) return_path: ReturnPath,
    pub(super) latest_session: Option<(Instant, Suite)>,
    /// Set by a goodbye, cleared by a session.
    pub(super) is_gone: bool,
    /// A response did not come from the peer's keys; cleared by a session.
    pub(super) is_key_refused: bool,
    /// By command.
    pub(super) is_draining: bool,
    /// The fault of this machine's routes to it, if one was found.
    pub(super) route_fault: Option<RouteFault>,
    /// The number of further pongs that say whether it is draining.
    pub(super) draining_pongs: u32,
    /// By the peer's word, with the pongs since it was said last.
    pub(super) wants_drain: Option<u32>,
    /// Sessions that were agreed.
    pub(super) handshakes: u64,
    /// Bytes of handshakes and of sessions that are no more.
    pub(super) past_sent_bytes: u64,
    pub(super) past_received_bytes: u64,
}

/// Where a peer was until we were told otherwise. What it sent from there in sessions of before was under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeftPlace {
    pub(super) remote: SocketAddr,
    pub(super) at: Instant,
}

/// Facts about a peer that seems to have moved.
#[derive(Debug, Default)]
pub(super) struct Roaming {
    /// Destination of the response that the peer has confirmed last: it has received it there.
    pub(super) proven: Option<SocketAddr>,
    /// The session that waits for its confirmation, and where its response went.
    pub(super) answered: Option<(u32, SocketAddr)>,
    /// The newest sighting of the peer, until it is looked into.
    pub(super) seen: Option<Sighting>,
    /// The endpoint at which the peer was asked whether it is there.
    pub(super) asked: Option<SocketAddr>,
}

/// The way back to a peer's preferred endpoint, while a lesser one is in use.
#[derive(Debug, Default)]
pub(super) struct ReturnPath {
    /// When it is probed next.
    pub(super) probe_at: Option<Instant>,
    /// Whether the last probe was answered, and how many in a row.
    pub(super) is_answered: bool,
    pub(super) pongs: u32,
}

/// One static key of a peer.
pub(super) struct RemoteKey {
    pub(super) key: PublicKey,
    pub(super) mac_keys: MacKeys,
    /// Of the newest initiation that came from it.
    pub(super) last_timestamp: Option<Tai64N>,
}

/// A series of initiations towards one session.
pub(super) struct Attempt {
    pub(super) started_at: Instant,
    /// Set if it is one initiation only, to where a refused one seems to have come from.
    pub(super) call_back_to: Option<Endpoint>,
    /// How many initiations it took so far.
    pub(super) initiations: usize,
    /// The latest initiation and its session index; none before the first was sent.
    pub(super) pending: Option<(PendingInitiation, u32)>,
    /// Its bytes, to be sent again and to the peer's other endpoints.
    pub(super) message: Vec<u8>,
}

impl Attempt {
    pub(super) fn new(now: Instant, call_back_to: Option<Endpoint>) -> Self {
        Self { started_at: now, call_back_to, initiations: 0, pending: None, message: Vec::new() }
    }
}

impl RemoteKey {
    fn new(key: PublicKey) -> Self {
        Self { key, mac_keys: MacKeys::new(&key), last_timestamp: None }
    }
}

impl Peer {
    pub(super) fn new(now: Instant, config: PeerConfig, mtu: Option<MtuRange>, share: Arc<Share>) -> Self {
        Self {
            remotes: Vec::new(),
            active_remote: 0,
            endpoint: config.endpoints.first().copied(),
            remembered: None,
            candidates: Candidates::default(),
            left: None,
            roaming: Roaming::default(),
            attempt: None,
            last_initiation_at: None,
            last_accepted_at: None,
            called_back_at: None,
            refusal_told_at: None,
            sessions: SessionSlots::default(),
            lane_paths: LanePaths::Shared,
            cookies: CookieJar::default(),
            staged: StagedQueue::default(),
            traffic: Arc::new(Traffic::new(now)),
            timers: TimerTable::default(),
            liveness: Liveness::default(),
            path_mtu: PathMtu::new(mtu),
            share,
            told_link: (LinkState::Idle, Some(LinkReason::NoTraffic)),
            link_since: now,
            told_refusal: false,
            return_path: ReturnPath::default(),
            latest_session: None,
            is_gone: false,
            is_key_refused: false,
            is_draining: false,
            route_fault: None,
            draining_pongs: 0,
            wants_drain: None,
            handshakes: 0,
            past_sent_bytes: 0,
            past_received_bytes: 0,
            config,
        }
    }

    /// Nothing more is sent for it, and its ephemeral keys are gone.
    pub(super) fn end_attempt(&mut self) {
        self.attempt = None;
        for timer in [Timer::Retry, Timer::Repeat, Timer::Alternatives] {
            self.timers.stop(timer);
        }
    }

    /// Takes a new configuration. The endpoint follows only if the configured one changed, since the peer may have roamed.
    pub(super) fn configure(&mut self, now: Instant, config: PeerConfig) {
        let mut known = std::mem::take(&mut self.remotes);
        let active = known.get(self.active_remote).map(|remote| remote.key);
        self.remotes = std::iter::once(config.public_key)
            .chain(config.next_public_key)
            .map(|key| match known.iter().position(|remote| remote.key == key) {
                Some(position) => known.swap_remove(position),
                None => RemoteKey::new(key),
            })
            .collect();
        self.active_remote = self.remotes.iter().position(|remote| Some(remote.key) == active).unwrap_or(0);
        if config.endpoints != self.config.endpoints
            && let Some(preferred) = config.endpoints.first()
        {
            self.send_to(now, *preferred);
        }
        let persistent_keepalive = config.persistent_keepalive.filter(|interval| !interval.is_zero());
        self.config = PeerConfig { persistent_keepalive, ..config };
    }

    /// Uses `endpoint` from here on, since we were told that the peer is there.
    pub(super) fn send_to(&mut self, now: Instant, endpoint: Endpoint) {
        if let Some(before) = self.endpoint.replace(endpoint).filter(|before| before.remote != endpoint.remote) {
            self.left = Some(LeftPlace { remote: before.remote, at: now });
        }
        self.return_path = ReturnPath::default();
    }

    /// Whether the peer is known to receive there, or the operator says so. Only such an address becomes its endpoint, or a
    /// peer could have any other machine sent what it asks for.
    pub(super) fn is_proven(&self, remote: SocketAddr) -> bool {
        self.roaming.proven == Some(remote)
            || self.endpoint.is_some_and(|endpoint| endpoint.remote == remote)
            || self.is_configured(remote)
    }

    pub(super) fn is_configured(&self, remote: SocketAddr) -> bool {
        self.config.endpoints.iter().any(|endpoint| endpoint.remote == remote)
    }

    /// Nobody answers: lets the kernel choose the local address, which may have lost its way to the peer.
    pub(super) fn forget_local_address(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.local = None;
        }
    }

    /// The source of its endpoint.
    pub(super) fn endpoint_source(&self) -> Option<EndpointSource> {
        let remote = self.endpoint?.remote;
        Some(match () {
            () if self.config.endpoints.iter().any(|known| known.remote == remote) => EndpointSource::Configured,
            () if !self.config.endpoints.is_empty() => EndpointSource::Roamed,
            () if self.remembered == Some(remote) => EndpointSource::Remembered,
            () => EndpointSource::Learned,
        })
    }

    /// The key that events and status name.
    pub(super) fn name(&self) -> PublicKey {
        self.config.public_key
    }

    pub(super) fn remote(&self) -> &RemoteKey {
        &self.remotes[self.active_remote]
    }

    /// The session to seal with now.
    pub(super) fn usable_session(&self, now: Instant) -> Option<&Arc<Session>> {
        self.sessions.current().filter(|session| !session.is_expired(now))
    }

    pub(super) fn link(&self, now: Instant) -> (LinkState, Option<LinkReason>) {
        let down = |reason| (LinkState::Down, Some(reason));
        if self.usable_session(now).is_some() {
            return match () {
                () if self.liveness.is_dead() => down(LinkReason::Unanswered),
                () if self.route_fault == Some(RouteFault::Addresses) => down(LinkReason::Route),
                () if self.is_draining => (LinkState::Draining, Some(LinkReason::Drained)),
                () if self.wants_drain.is_some() => (LinkState::Draining, Some(LinkReason::DrainedByPeer)),
                () if self.route_fault.is_some() => (LinkState::Degraded, Some(LinkReason::Route)),
                () if self.liveness.is_degraded() => (LinkState::Degraded, Some(LinkReason::Loss)),
                () if self.path_mtu.is_narrow() => (LinkState::Degraded, Some(LinkReason::Mtu)),
                () => (LinkState::Up, None),
            };
        }
        let is_wanted = self.attempt.as_ref().is_some_and(|attempt| attempt.call_back_to.is_none()) || self.is_kept();
        match () {
            () if self.is_gone => down(LinkReason::Goodbye),
            () if self.is_key_refused && is_wanted => down(LinkReason::KeyRefused),
            () if is_wanted || self.sessions.next().is_some_and(|session| !session.is_expired(now)) => {
                down(LinkReason::NoHandshake)
            }
            () if self.route_fault == Some(RouteFault::Addresses) => down(LinkReason::Route),
            () => (LinkState::Idle, Some(LinkReason::NoTraffic)),
        }
    }

    /// Whether packets are better refused at once than kept for a session.
    pub(super) fn refuses_packets(&self, now: Instant) -> bool {
        if self.usable_session(now).is_some() {
            // Nobody looks for a peer that was given up: the next packet is to begin that again.
            return self.liveness.is_dead() && self.attempt.is_some();
        }
        // The second follows the first closely.
        let is_unanswered = self.attempt.as_ref().is_some_and(|attempt| attempt.initiations > 2);
        self.is_kept() && (self.is_gone || is_unanswered)
    }

    /// Whether a session is kept at all times, and watched in some way.
    pub(super) fn is_kept(&self) -> bool {
        self.config.watched || self.config.connects
    }

    /// Whether an attempt goes on for ever.
    pub(super) fn is_always_wanted(&self) -> bool {
        self.is_kept() || self.config.persistent_keepalive.is_some()
    }

    /// Where it may be by its configuration; nothing where that leaves no choice.
    pub(super) fn configured_places(&self) -> Arc<[SocketAddr]> {
        match self.config.endpoints.as_slice() {
            [] | [_] => Arc::default(),
            several => several.iter().map(|endpoint| endpoint.remote).collect(),
        }
    }

    /// The preferred endpoint, while a lesser one is in use. Where a peer has roamed by itself is no lesser one.
    pub(super) fn missed_preferred(&self) -> Option<Endpoint> {
        let (preferred, lesser) = self.config.endpoints.split_first()?;
        let current = self.endpoint?.remote;
        let is_missed = preferred.remote != current && lesser.iter().any(|endpoint| endpoint.remote == current);
        is_missed.then_some(*preferred)
    }

    /// How long datagrams to its endpoint may be.
    pub(super) fn path_limit(&self) -> PathLimit {
        self.endpoint.map_or(PathLimit::NONE, |endpoint| self.path_mtu.limit(endpoint.remote.ip()))
    }

    pub(super) fn watch_expiry(&mut self) {
        match self.sessions.next_expiry() {
            Some(expiry) => self.timers.set(Timer::Expiry, expiry),
            None => self.timers.stop(Timer::Expiry),
        }
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.past_sent_bytes + self.sessions.iter().map(|session| session.sent_bytes()).sum::<u64>()
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.past_received_bytes + self.sessions.iter().map(|session| session.received_bytes()).sum::<u64>()
    }
}
