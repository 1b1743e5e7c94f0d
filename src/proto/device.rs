//! The slow path's surface: a device with its peers, everything rare, one owner.
//!
//! The module [`proto`](super) states the contract. This file has the commands and what a session brings; `handshakes`
//! has the three handshake messages, `liveness` what is known of a peer's life, `lanes` the paths of lanes,
//! `path_mtu` how much they carry, `timeouts` what happens when nothing does.

mod handshakes;
mod lanes;
mod liveness;
mod path_mtu;
mod timeouts;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::keys::{PrivateKey, PublicKey};
use crate::packet::frame::{self, Control, FLAG_CHECKSUM_PARTIAL, FRAME_HEADER_LEN, PING_FRAME_LEN, packet_header};
use crate::packet::ip::IpPacket;
use crate::packet::message::{Message, TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD};
use crate::packet::traffic_class::{Ecn, TrafficClass};

use super::allowed_ips::AllowedIps;
use super::constants::{
    CLOCK_STEP, DRAINING_PONGS, MAX_LANES, MIN_INITIATION_INTERVAL, REKEY_AFTER_TIME_RECEIVING, REKEY_JITTER,
    ROAM_INTERVAL,
};
use super::cookie::{CookieChecker, MacKeys};
use super::endpoint::Endpoint;
use super::error::{DropReason, Miss};
use super::event::{Event, Interruption};
use super::interface_mtu::{InterfaceMtu, MtuRange};
use super::lane_paths::LanePaths;
use super::noise::Suite;
use super::path_mtu::PathLimit;
use super::peer::{Peer, PeerConfig};
use super::peer_table::{PeerId, PeerTable};
use super::randomness::{Entropy, Randomness};
use super::rate_limiter::RateLimiter;
use super::refused::{self, RefusedInitiations};
use super::router::{Notice, Origin, PeerRoute, ReceivingSession, Router, Seen, Sighting};
use super::session::Session;
use super::share::Share;
use super::staged::StagedPacket;
use super::stats::{DeviceStatus, DropCounters, Footprint, PeerStatus, RefusedInitiation};
use super::timers::{Timer, TimerQueue};
use super::transmit::{Transmit, Way};

/// The lane on which the slow path seals. It shares the first worker's: a lane's counter is atomic.
const SLOW_PATH_LANE: u8 = 0;

/// Padding, so that a keepalive is as long as the question whether the peer is there, which it may be answered with.
const KEEPALIVE: [u8; 16] = [0; 16];
const _: () = assert!(KEEPALIVE.len() >= PING_FRAME_LEN);

/// What is configured of a device.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// Who we are.
    pub private_key: PrivateKey,
    /// Who we were: initiations for it are accepted as well, while peers change over.
    pub previous_private_key: Option<PrivateKey>,
    /// What we propose in initiations.
    pub suite: Suite,
    /// How many lanes we send on: 1 to [`MAX_LANES`].
    pub send_lanes: u8,
    /// Lanes may have paths of their own: who owns the device sends each datagram from the port that it names.
    pub lane_paths: bool,
    /// How long packets may be: paths are tried for datagrams that carry them. Without, none is tried.
    pub mtu: Option<MtuRange>,
}

/// The protocol state of one tunnel interface.
pub struct Device {
    /// Ours, and maybe the one before it.
    local_keys: Vec<LocalKey>,
    suite: Suite,
    /// Suites that initiations of others may name.
    accepted_suites: Vec<Suite>,
    send_lanes: u8,
    lane_paths: bool,
    mtu: InterfaceMtu,
    peers: PeerTable,
    allowed_ips: Arc<AllowedIps>,
    /// Of the tables of flows.
    flow_key: Zeroizing<[u8; 32]>,
    timers: TimerQueue,
    rate_limiter: RateLimiter,
    handshakes_worked_on: u64,
    cookie_checker: CookieChecker,
    entropy: Entropy,
    randomness: Randomness,
    /// When the owner was last told of an initiation that was refused and is no peer's.
    refusal_told_at: Option<Instant>,
    refused: RefusedInitiations,
    /// An instant, and what the wall clock said then, as time since the Unix epoch. Another pair once the clock was set.
    origin: (Instant, Duration),
    /// Time of the newest initiation, since a clock that stands still or is set back must not make them refusable.
    last_timestamp: Duration,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    drops: DropCounters,
    router: Arc<Router>,
    /// In the place of peers that are no more.
    nobody: Arc<PeerRoute>,
    /// Parts that `router` no longer shows as they are.
    stale: Stale,
    /// Set when a new `router` was made and not yet polled.
    router_is_news: bool,
}

/// Parts of a snapshot that have to be made anew; all others are shared with the next.
#[derive(Debug, Default)]
struct Stale {
    routes: Vec<PeerId>,
    sessions: bool,
}

impl Stale {
    /// Something of a peer has changed that its route shows.
    fn route(&mut self, id: PeerId) {
        if self.routes.last() != Some(&id) {
            self.routes.push(id);
        }
    }

    /// The same, or one of its sessions.
    fn sessions(&mut self, id: PeerId) {
        self.route(id);
        self.sessions = true;
    }

    fn is_empty(&self) -> bool {
        self.routes.is_empty() && !self.sessions
    }
}

struct LocalKey {
    private: PrivateKey,
    public: PublicKey,
    mac_keys: MacKeys,
}

impl LocalKey {
    fn new(private: PrivateKey) -> Self {
        let public = private.public_key();
        Self { mac_keys: MacKeys::new(&public), private, public }
    }
}

impl Device {
    /// Starts without peers. `unix_time` is what the wall clock says at `now`; `entropy` is asked once here, and once before
    /// each handshake.
    pub fn new(now: Instant, unix_time: Duration, config: DeviceConfig, mut entropy: Entropy) -> Self {
        let mut randomness = Randomness::new(*entropy.draw());
        let flow_key = randomness.array();
        let nobody = PeerRoute::none(Arc::new(Share::new(now, &flow_key)));
        let router = Router { allowed_ips: Arc::default(), peers: [].into(), sessions: [].into() };
        Self {
            local_keys: local_keys(config.private_key, config.previous_private_key),
            suite: config.suite,
            accepted_suites: Suite::ALL.to_vec(),
            send_lanes: config.send_lanes.clamp(1, MAX_LANES),
            lane_paths: config.lane_paths,
            mtu: InterfaceMtu::new(now, config.mtu),
            peers: PeerTable::default(),
            allowed_ips: Arc::default(),
            flow_key,
            timers: TimerQueue::default(),
            rate_limiter: RateLimiter::new(now),
            handshakes_worked_on: 0,
            cookie_checker: CookieChecker::default(),
            entropy,
            randomness,
            refusal_told_at: None,
            refused: RefusedInitiations::default(),
            origin: (now, unix_time),
            last_timestamp: Duration::ZERO,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            drops: DropCounters::default(),
            router: Arc::new(router),
            nobody: Arc::new(nobody),
            stale: Stale::default(),
            router_is_news: true,
        }
    }

    /// Our public key.
    pub fn public_key(&self) -> PublicKey {
        self.local_keys[0].public
    }

    // Commands.

    /// Changes who we are. Sessions go on; handshakes under way begin again with the new key. A peer that has one of the
    /// keys is removed: it would be ourselves.
    pub fn set_private_key(&mut self, now: Instant, private_key: PrivateKey, previous: Option<PrivateKey>) {
        self.local_keys = local_keys(private_key, previous);
        let ours: Vec<PublicKey> = self.local_keys.iter().map(|local| local.public).collect();
        ours.iter().for_each(|key| self.remove_peer(key));
        let attempting: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| peer.attempt.is_some()).map(|(id, _)| id).collect();
        for id in attempting {
            self.end_attempt(id);
            self.initiate(now, id);
            self.settle(now, id);
        }
    }

    /// Takes what the wall clock says at `now`: initiations are labelled with it. What differs by less than
    /// [`CLOCK_STEP`] is no news.
    pub fn set_unix_time(&mut self, now: Instant, unix_time: Duration) {
        if self.unix_time(now).abs_diff(unix_time) >= CLOCK_STEP {
            self.origin = (now, unix_time);
        }
    }

    /// Accepts these suites and no others when a peer calls; at first it is all. Sessions go on.
    pub fn set_accepted_suites(&mut self, suites: Vec<Suite>) {
        self.accepted_suites = suites;
    }

    /// Adds a peer, or changes the one with this key while its session goes on. A peer with our own key is not added. A key
    /// that another peer had is this one's from here on; a peer without any other is removed.
    pub fn upsert_peer(&mut self, now: Instant, config: PeerConfig) -> Option<PeerId> {
        let keys: Vec<PublicKey> = std::iter::once(config.public_key).chain(config.next_public_key).collect();
        if keys.iter().any(|key| self.local_keys.iter().any(|local| local.public == *key)) {
            return None;
        }
        let known = self.known_peer(&config);
        let id = known.unwrap_or_else(|| {
            let share = Arc::new(Share::new(now, &self.flow_key));
            self.peers.insert(Peer::new(now, config.clone(), self.mtu.range(), share))
        });
        keys.iter().for_each(|key| self.take_key_from_others(now, id, key));
        let allowed_ips = Arc::make_mut(&mut self.allowed_ips);
        if known.is_some() {
            allowed_ips.remove_peer(id);
        }
        config.allowed_ips.iter().for_each(|prefix| allowed_ips.insert(*prefix, id));

        let peer = self.peers.get_mut(id).expect("a peer that is known or was just added");
        let old_keys: Vec<PublicKey> = peer.remotes.iter().map(|remote| remote.key).collect();
        peer.configure(now, config);
        match peer.config.persistent_keepalive {
            // At once: such a peer is to be connected before there is anything to say.
            Some(_) => peer.timers.set(Timer::PersistentKeepalive, now),
            None => peer.timers.stop(Timer::PersistentKeepalive),
        }
        if peer.is_kept() {
            peer.timers.set(Timer::Liveness, now);
        }
        old_keys.iter().for_each(|key| self.peers.release_key(key));
        keys.iter().for_each(|key| self.peers.add_key(*key, id));
        self.stale.sessions(id);
        self.settle(now, id);
        Some(id)
    }

    /// The peer that `config` is meant for: it has that key, or had only the one that it is to have next.
    fn known_peer(&self, config: &PeerConfig) -> Option<PeerId> {
        let is_called = |id: &PeerId, key| self.peers.get(*id).is_some_and(|peer| peer.name() == key);
        let by_next_key =
            || config.next_public_key.and_then(|key| self.peers.by_key(&key).filter(|id| is_called(id, key)));
        self.peers.by_key(&config.public_key).or_else(by_next_key)
    }

    /// A key leads to one peer.
    fn take_key_from_others(&mut self, now: Instant, id: PeerId, key: &PublicKey) {
        let Some(other) = self.peers.by_key(key).filter(|other| *other != id) else { return };
        let peer = self.peers.get_mut(other).expect("keys lead to peers that exist");
        let left = std::iter::once(peer.config.public_key).chain(peer.config.next_public_key).find(|left| left != key);
        let Some(public_key) = left else { return self.remove_peer(key) };
        peer.configure(now, PeerConfig { public_key, next_public_key: None, ..peer.config.clone() });
        self.peers.release_key(key);
        self.stale.sessions(other);
        self.end_attempt(other);
        self.settle(now, other);
    }

    /// Removes a peer with its sessions, without a word to it.
    pub fn remove_peer(&mut self, key: &PublicKey) {
        let Some(id) = self.peers.by_key(key) else { return };
        self.end_attempt(id);
        self.end_sessions(id, |peer| peer.sessions.end_all());
        let peer = self.peers.get_mut(id).expect("found by its key");
        let keys: Vec<PublicKey> = peer.remotes.iter().map(|remote| remote.key).collect();
        keys.iter().for_each(|key| self.peers.release_key(key));
        Arc::make_mut(&mut self.allowed_ips).remove_peer(id);
        self.timers.update(id, None);
        self.peers.remove(id);
        self.stale.sessions(id);
        self.mtu.look_again();
    }

    /// Tells where a peer is, in the order of preference, as names were resolved. The one in use stays if it is among them.
    pub fn set_endpoints(&mut self, now: Instant, key: &PublicKey, endpoints: Vec<Endpoint>) {
        let Some(id) = self.peers.by_key(key) else { return };
        let peer = self.peers.get_mut(id).expect("found by its key");
        let preferred = endpoints.first().copied();
        let is_known = |endpoint: Endpoint| endpoints.iter().any(|known| known.remote == endpoint.remote);
        let stays = peer.endpoint.is_some_and(is_known);
        peer.config.endpoints = endpoints;
        let (Some(preferred), false) = (preferred, stays) else { return };
        let had_none = peer.endpoint.is_none();
        peer.send_to(now, preferred);
        let wants_session = !peer.staged.is_empty() || peer.is_always_wanted();
        self.stale.route(id);
        if had_none && wants_session && self.peers.get(id).is_some_and(|peer| peer.usable_session(now).is_none()) {
            self.initiate(now, id);
        }
        self.settle(now, id);
    }

    /// Calls a peer at once, unless there is a session: after a restart, one that had a session with us before it. `endpoint`
    /// is where it was then; it counts if it is one of the configured, or none is.
    pub fn connect(&mut self, now: Instant, key: &PublicKey, endpoint: Endpoint) {
        let Some(id) = self.peers.by_key(key) else { return };
        let peer = self.peers.get_mut(id).expect("found by its key");
        peer.remembered = Some(endpoint.remote);
        if peer.usable_session(now).is_some() {
            return;
        }
        if peer.endpoint.is_none() || peer.config.endpoints.iter().any(|known| known.remote == endpoint.remote) {
            peer.endpoint = Some(endpoint);
            self.stale.route(id);
        }
        self.initiate(now, id);
        self.settle(now, id);
    }

    /// Has a peer's link called draining, or no longer, here and at the peer. Nothing else changes: whoever reads its state
    /// sends new connections elsewhere. Returns whether there is such a peer.
    pub fn set_draining(&mut self, now: Instant, key: &PublicKey, draining: bool) -> bool {
        let Some(id) = self.peers.by_key(key) else { return false };
        let Some(peer) = self.peers.get_mut(id) else { return false };
        if std::mem::replace(&mut peer.is_draining, draining) != draining {
            peer.draining_pongs = DRAINING_PONGS;
            self.send_control(now, id, Control::Draining(draining));
        }
        self.settle(now, id);
        true
    }

    /// Says goodbye to every peer that has a session, and forgets all sessions.
    pub fn shutdown(&mut self, now: Instant) {
        let ids: Vec<PeerId> = self.peers.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.send_control(now, id, Control::Goodbye);
            self.end_attempt(id);
            self.end_sessions(id, |peer| peer.sessions.end_all());
            self.settle(now, id);
        }
    }

    /// Ends all sessions and makes them anew. Without a word to the peers: even a goodbye would be sealed with keys that may
    /// be elsewhere, too.
    pub fn renew_sessions(&mut self, now: Instant, cause: Interruption) {
        self.refresh_randomness();
        self.cookie_checker = CookieChecker::default();
        let ids: Vec<PeerId> = self.peers.iter().map(|(id, _)| id).collect();
        for id in ids {
            let is_wanted = self.peers.get(id).is_some_and(|peer| !peer.sessions.is_empty() || peer.is_always_wanted());
            self.end_attempt(id);
            self.end_sessions(id, |peer| peer.sessions.end_all());
            self.tend_link(now, id);
            if is_wanted {
                self.initiate(now, id);
            }
            self.settle(now, id);
        }
        self.events.push_back(Event::SessionsRenewed { cause });
    }

    // Inputs.

    /// Takes a datagram, which arrived with `ecn` in its IP header. What it carries for the TUN comes out as events.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: Endpoint,
        ecn: Ecn,
        datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        let result = match Message::parse(datagram) {
            // Nobody can be answered there.
            _ if from.remote.port() == 0 => Err(DropReason::Malformed),
            Ok(Message::Initiation(_) | Message::Response(_)) if self.rate_limiter.has_spent(now, from.remote) => {
                Err(DropReason::RateLimited)
            }
            Ok(Message::Initiation(initiation)) => self.handle_initiation(now, from, initiation),
            Ok(Message::Response(response)) => self.handle_response(now, from, response),
            Ok(Message::CookieReply(reply)) => self.handle_cookie_reply(now, &reply),
            Ok(Message::Transport(_)) => self.handle_transport(now, from, ecn, datagram),
            Err(_) => Err(DropReason::Malformed),
        };
        result.inspect_err(|reason| self.drops.count(*reason))
    }

    /// Takes an IP packet on its way to a peer: sent at once if there is a session, else staged.
    pub fn handle_packet(&mut self, now: Instant, packet: StagedPacket) -> Result<(), DropReason> {
        self.stage_or_send(now, packet).inspect_err(|reason| self.drops.count(*reason))
    }

    /// Takes what the fast path saw.
    pub fn handle_notice(&mut self, now: Instant, notice: Notice) {
        let Notice { session, seen, .. } = notice;
        // Sessions end while notices wait in a queue.
        let Some(id) = self.peers.by_index(session) else { return };
        match seen {
            Seen::Confirmed(endpoint) => self.on_confirmed(now, id, session, endpoint),
            Seen::Roamed(sighting) => self.on_seen(now, id, sighting),
            Seen::Resumed => self.on_resumed(now, id),
            Seen::LaneMoved(lane, sighting) => self.on_lane_moved(now, id, session, lane, sighting),
            Seen::RekeyDue => self.on_rekey_due(now, id, session),
            Seen::Control(control, origin) => self.on_control(now, id, session, origin, control),
        }
        self.settle(now, id);
    }

    // Outputs.

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next packet or change to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A new snapshot for the fast path, if anything it shows has changed.
    pub fn poll_router(&mut self) -> Option<Arc<Router>> {
        self.refresh_router();
        std::mem::take(&mut self.router_is_news).then(|| self.router.clone())
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.timers.next()
    }

    /// The number of handshake messages that were worked on.
    pub fn handshakes_worked_on(&self) -> u64 {
        self.handshakes_worked_on
    }

    /// Learns how long one was worked on, by its owner's clock.
    pub fn learn_handshake_time(&mut self, took: Duration) {
        self.rate_limiter.learn_time(took);
    }

    /// Counts a drop that the owner made in the slow path's name.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.drops.count(reason);
    }

    /// The state of all peers.
    pub fn status(&self, now: Instant) -> DeviceStatus {
        let mut peers: Vec<PeerStatus> = self.peers.iter().map(|(_, peer)| self.peer_status(now, peer)).collect();
        peers.sort_by_key(|peer| peer.public_key);
        let refused = self.refused.newest_first().into_iter().map(|entry| self.refused_status(&entry)).collect();
        DeviceStatus { public_key: self.public_key(), peers, drops: self.drops.clone(), refused }
    }

    /// What is kept in memory.
    pub fn footprint(&self) -> Footprint {
        let total = |of: fn(&Peer) -> usize| self.peers.iter().map(|(_, peer)| of(peer)).sum();
        Footprint {
            sessions: total(|peer| peer.sessions.iter().count()),
            session_indices: self.peers.indices(),
            staged_packets: total(|peer| peer.staged.packets()),
            staged_bytes: total(|peer| peer.staged.bytes()),
            limited_sources: self.rate_limiter.sources(),
        }
    }

    fn peer_status(&self, now: Instant, peer: &Peer) -> PeerStatus {
        let (state, reason) = peer.link(now);
        let (pings, pings_lost) = peer.liveness.counts();
        PeerStatus {
            public_key: peer.name(),
            state,
            reason,
            state_since: self.unix_time(if (state, reason) == peer.told_link { peer.link_since } else { now }),
            awaits_answer: peer.attempt.is_some(),
            endpoint: peer.endpoint,
            endpoint_source: peer.endpoint_source(),
            allowed_ips: peer.config.allowed_ips.clone(),
            latest_handshake: peer.latest_session.map(|(at, _)| self.unix_time(at)),
            received_bytes: peer.received_bytes(),
            sent_bytes: peer.sent_bytes(),
            suite: peer.latest_session.map(|(_, suite)| suite),
            round_trip: peer.liveness.round_trip(),
            round_trip_variation: peer.liveness.round_trip_variation(),
            loss: peer.liveness.loss(),
            path_mtu: Some(peer.path_limit()).filter(|limit| *limit != PathLimit::NONE).map(PathLimit::packet),
            handshakes: peer.handshakes,
            pings,
            pings_lost,
        }
    }

    /// By what the wall clock said last.
    fn refused_status(&self, entry: &refused::Entry) -> RefusedInitiation {
        let refused::Entry { key, reason, from, count, latest, .. } = *entry;
        RefusedInitiation { key, reason, from, count, latest: self.unix_time(latest) }
    }

    fn unix_time(&self, at: Instant) -> Duration {
        let (origin, unix_time) = self.origin;
        match at.checked_duration_since(origin) {
            Some(since) => unix_time + since,
            None => unix_time.saturating_sub(origin.saturating_duration_since(at)),
        }
    }

    // What a session brings.

    fn handle_transport(
        &mut self,
        now: Instant,
        from: Endpoint,
        ecn: Ecn,
        datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        self.refresh_router();
        let router = self.router.clone();
        let mut notices = Vec::new();
        let opened = router.open(now, from, ecn, datagram, &mut notices).map_err(|miss| match miss {
            Miss::Drop(reason) => reason,
            Miss::NoSession(_) | Miss::SlowPath => DropReason::Malformed,
        })?;
        let peer = self.peers.get(opened.peer).expect("the snapshot was just refreshed").name();
        for frame in opened.packets(&mut notices) {
            let admitted = frame.and_then(|frame| Ok((frame.flags, router.admit(&opened, frame, &mut None)?.bytes())));
            match admitted {
                Ok((flags, bytes)) => self.events.push_back(Event::Packet {
                    peer,
                    bytes: bytes.to_vec(),
                    checksum_partial: flags & FLAG_CHECKSUM_PARTIAL != 0,
                }),
                Err(reason) => self.drops.count(reason),
            }
        }
        for notice in notices {
            self.handle_notice(now, notice);
        }
        Ok(())
    }

    fn on_confirmed(&mut self, now: Instant, id: PeerId, session: u32, endpoint: Option<Endpoint>) {
        let precedence = self.precedence(id);
        let mut was_next = false;
        self.end_sessions(id, |peer| {
            let (confirmed, ended) = peer.sessions.confirm(session, precedence);
            was_next = confirmed;
            ended
        });
        if was_next {
            if let Some(peer) = self.peers.get_mut(id)
                && let Some((_, remote)) = peer.roaming.answered.take_if(|(answered, _)| *answered == session)
            {
                peer.roaming.proven = Some(remote);
            }
            if let Some(endpoint) = endpoint {
                self.set_endpoint(now, id, endpoint);
            }
            // Whatever we were attempting, there is a session.
            self.end_attempt(id);
            self.on_session_established(now, id, session);
        }
    }

    fn on_session_established(&mut self, now: Instant, id: PeerId, session: u32) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(session) = peer.sessions.get(session).cloned() else { return };
        if !session.is_initiator {
            peer.liveness.on_session();
        }
        peer.is_gone = false;
        peer.is_key_refused = false;
        peer.handshakes += 1;
        peer.latest_session = Some((session.created_at, session.suite));
        peer.watch_expiry();
        peer.timers.stop(Timer::Rekey);
        self.stale.sessions(id);
        let is_draining = peer.is_draining;
        self.events.push_back(Event::SessionEstablished {
            peer: peer.name(),
            initiator: session.is_initiator,
            suite: session.suite,
        });
        self.send_staged(now, id);
        self.renew_lane_paths(now, id);
        self.tend_link(now, id);
        self.change_path(now, id, |path| path.set_announced(now, session.peer_mtu));
        self.tend_path(now, id);
        if is_draining {
            self.send_control(now, id, Control::Draining(true));
        }
    }

    /// Traffic has found a session to be old. Its successor is asked for within the jitter, not at once: many peers'
    /// traffic may come in step.
    fn on_rekey_due(&mut self, now: Instant, id: PeerId, session: u32) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_current = |current: &&Arc<Session>| current.local_index == session;
        let Some(current) = peer.sessions.current().filter(is_current) else { return };
        if peer.timers.get(Timer::Rekey).is_none() {
            let latest = current.created_at + REKEY_AFTER_TIME_RECEIVING;
            let room = latest.saturating_duration_since(now).min(REKEY_JITTER);
            peer.timers.set(Timer::Rekey, now + self.randomness.duration_below(room));
        }
    }

    /// A datagram tells of the peer at another place.
    fn on_seen(&mut self, now: Instant, id: PeerId, sighting: Sighting) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.roaming.seen = Some(sighting);
        if peer.timers.get(Timer::Roam).is_none() {
            self.look_into_roaming(now, id);
        }
    }

    /// Moves the endpoint to where the peer was seen last, or asks whether it is there.
    fn look_into_roaming(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(Sighting { endpoint, may_ask }) = peer.roaming.seen else { return };
        if peer.endpoint != Some(endpoint) && !peer.share.looks.take(now) {
            return peer.timers.set(Timer::Roam, now + ROAM_INTERVAL);
        }
        peer.roaming.seen = None;
        if peer.endpoint == Some(endpoint) {
            return;
        }
        if peer.is_proven(endpoint.remote) {
            self.set_endpoint(now, id, endpoint);
        } else if may_ask {
            peer.roaming.asked = Some(endpoint.remote);
            self.probe(now, id, endpoint);
        }
    }

    /// A response came from there, which a peer may have sent in the name of any other machine.
    fn on_answered_from(&mut self, now: Instant, id: PeerId, endpoint: Endpoint) {
        if self.peers.get(id).is_some_and(|peer| peer.is_proven(endpoint.remote)) {
            self.set_endpoint(now, id, endpoint);
        } else {
            self.on_seen(now, id, Sighting { endpoint, may_ask: true });
        }
    }

    fn set_endpoint(&mut self, now: Instant, id: PeerId, endpoint: Endpoint) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.endpoint != Some(endpoint) {
            peer.endpoint = Some(endpoint);
            self.stale.route(id);
            self.events.push_back(Event::EndpointChanged { peer: peer.name(), endpoint });
            if peer.usable_session(now).is_some() {
                self.send_staged(now, id);
            }
        }
    }

    fn on_control(&mut self, now: Instant, id: PeerId, session: u32, origin: Origin, control: Control) {
        match control {
            Control::Ping(token) => self.answer_ping(now, id, origin, token),
            Control::Probe(token) => self.answer_probe(now, id, origin, token),
            Control::Pong(token) => {
                if !self.on_pong(now, id, token) && !self.on_path_pong(now, id, token) {
                    self.on_lane_pong(now, id, token);
                }
            }
            Control::Goodbye => self.on_goodbye(now, id, session),
            Control::Draining(is_draining) => self.on_draining(id, is_draining),
            Control::Unknown(_) => {}
        }
    }

    fn on_draining(&mut self, id: PeerId, is_draining: bool) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.wants_drain = is_draining.then_some(0);
    }

    fn on_goodbye(&mut self, now: Instant, id: PeerId, session: u32) {
        self.end_sessions(id, |peer| peer.sessions.end_up_to(session));
        let Some(peer) = self.peers.get_mut(id) else { return };
        // A session that waits for the peer's first data says nothing: it may have been agreed before the peer went.
        if peer.sessions.current().is_some() {
            return;
        }
        peer.is_gone = true;
        self.events.push_back(Event::Goodbye { peer: peer.name() });
        // It was called for the successor of a session that nobody needs any more.
        if peer.is_kept() {
            // Not at once: who says goodbye might still answer.
            peer.timers.set(Timer::Liveness, now + MIN_INITIATION_INTERVAL);
        } else if peer.config.persistent_keepalive.is_none() {
            self.end_attempt(id);
        }
    }

    // Sending.

    fn stage_or_send(&mut self, now: Instant, packet: StagedPacket) -> Result<(), DropReason> {
        let parsed = IpPacket::parse(&packet.bytes).map_err(|_| DropReason::MalformedPacket)?;
        let id = self.allowed_ips.lookup(parsed.destination()).ok_or(DropReason::NoPeerForDestination)?;
        let peer = self.peers.get_mut(id).expect("allowed IPs lead to peers that exist");
        if peer.refuses_packets(now) {
            return Err(DropReason::LinkDown);
        }
        peer.config.policy.on_sent(now, &peer.share.flows, &parsed);
        if peer.usable_session(now).is_some() && peer.endpoint.is_some() {
            self.send_packet(now, id, &packet);
            self.settle(now, id);
            return Ok(());
        }
        // A peer that has called is about to be found: its first data may already be on its way between threads.
        if peer.endpoint.is_none() && peer.sessions.next().is_none() {
            return Err(DropReason::NoEndpoint);
        }
        let dropped = peer.staged.push(packet);
        self.drops.add(DropReason::StagedOverflow, dropped);
        self.initiate(now, id);
        self.settle(now, id);
        Ok(())
    }

    fn send_staged(&mut self, now: Instant, id: PeerId) {
        // Without an endpoint they wait for it.
        let next = |peer: &mut Peer| peer.endpoint.and_then(|_| peer.staged.pop());
        while let Some(packet) = self.peers.get_mut(id).and_then(next) {
            self.send_packet(now, id, &packet);
        }
    }

    fn send_packet(&mut self, now: Instant, id: PeerId, packet: &StagedPacket) {
        let Ok(length) = u16::try_from(packet.bytes.len()) else {
            return self.drops.count(DropReason::TooLarge);
        };
        let flags = if packet.checksum_partial { FLAG_CHECKSUM_PARTIAL } else { 0 };
        let session = self.peers.get(id).and_then(|peer| peer.usable_session(now));
        let resumes = session.is_some_and(|session| !session.is_busy());
        self.send_frames(now, id, &[&packet_header(flags, length), &packet.bytes]);
        if resumes {
            self.on_resumed(now, id);
        }
    }

    fn send_control(&mut self, now: Instant, id: PeerId, control: Control) {
        let mut frame = Vec::new();
        control.encode(&mut frame);
        self.send_frames(now, id, &[&frame]);
    }

    fn send_control_by(&mut self, now: Instant, id: PeerId, lane: u8, way: Way, control: Control) {
        let mut frame = Vec::new();
        control.encode(&mut frame);
        self.send_frames_by(now, id, lane, way, &[&frame]);
    }

    fn send_keepalive(&mut self, now: Instant, id: PeerId) {
        self.send_frames(now, id, &[&KEEPALIVE]);
    }

    /// Seals one datagram with the current session, if there is one, and asks for its successor if it is due.
    fn send_frames(&mut self, now: Instant, id: PeerId, frames: &[&[u8]]) {
        let Some(endpoint) = self.peers.get(id).and_then(|peer| peer.endpoint) else { return };
        self.send_frames_by(now, id, SLOW_PATH_LANE, Way::main(endpoint), frames);
    }

    /// The same on any lane, by any way.
    fn send_frames_by(&mut self, now: Instant, id: PeerId, lane: u8, way: Way, frames: &[&[u8]]) {
        let Some(peer) = self.peers.get(id) else { return };
        let Some(session) = peer.usable_session(now) else { return };
        let length = frames.iter().map(|frame| frame.len()).sum::<usize>();
        let mut payload = Vec::with_capacity(length + TRANSPORT_OVERHEAD);
        payload.extend_from_slice(&[0; TRANSPORT_HEADER_LEN]);
        frames.iter().for_each(|frame| payload.extend_from_slice(frame));
        payload.extend_from_slice(&[0; TAG_LEN]);
        let plaintext = &payload[TRANSPORT_HEADER_LEN..];
        let packet = frame::starts_with_packet(plaintext).then(|| &plaintext[FRAME_HEADER_LEN..]);
        let may_fragment = packet.is_some() && payload.len() > usize::from(peer.path_limit().datagram);
        let inner = packet.map(TrafficClass::of).unwrap_or_default();
        let traffic_class = session.traffic_class(peer.config.dscp, inner);
        match session.seal(now, lane, &mut payload) {
            Ok(rekey_due) => {
                let Way { endpoint, port, .. } = way;
                self.transmits.push_back(Transmit { endpoint, port, traffic_class, payload, may_fragment });
                if rekey_due {
                    self.on_rekey_due(now, id, session.local_index);
                }
            }
            Err(reason) => self.drops.count(reason),
        }
    }

    // Upkeep.

    /// Ends what `end` takes from the peer's sessions: indices are released, bytes stay counted.
    fn end_sessions(&mut self, id: PeerId, end: impl FnOnce(&mut Peer) -> Vec<Arc<Session>>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let ended = end(peer);
        peer.past_sent_bytes += ended.iter().map(|session| session.sent_bytes()).sum::<u64>();
        peer.past_received_bytes += ended.iter().map(|session| session.received_bytes()).sum::<u64>();
        peer.watch_expiry();
        if peer.sessions.current().is_none() {
            peer.timers.stop(Timer::Rekey);
            peer.timers.stop(Timer::LanePaths);
            peer.lane_paths = LanePaths::Shared;
        }
        for session in &ended {
            self.peers.release_index(session.local_index);
        }
        self.stale.sessions(id);
    }

    /// Called last, whatever has happened to a peer.
    fn settle(&mut self, now: Instant, id: PeerId) {
        self.tell_link(now, id);
        self.timers.update(id, self.peers.get(id).and_then(|peer| peer.timers.next()));
    }

    /// Makes a new snapshot if need be, of which all that has not changed is shared with the last: what workers note in a
    /// peer's route stays there while others change.
    fn refresh_router(&mut self) {
        if self.stale.is_empty() {
            return;
        }
        let stale = std::mem::take(&mut self.stale);
        let sessions = if stale.sessions { self.receiving_sessions() } else { self.router.sessions.clone() };
        let mut peers = self.router.peers.to_vec();
        peers.resize(self.peers.slots().len(), self.nobody.clone());
        for id in stale.routes {
            let route = self.peers.get(id).map(|peer| Arc::new(route(peer)));
            peers[id.index()] = route.unwrap_or_else(|| self.nobody.clone());
        }
        self.router = Arc::new(Router { allowed_ips: self.allowed_ips.clone(), peers: peers.into(), sessions });
        self.router_is_news = true;
    }

    fn receiving_sessions(&self) -> Arc<[ReceivingSession]> {
        let of_peer = |(peer, state): (PeerId, &Peer)| -> Vec<ReceivingSession> {
            let precedence = self.precedence(peer);
            let answered = state.roaming.answered;
            let receiving = |session: &Arc<Session>| {
                let is_next = state.sessions.next().is_some_and(|next| Arc::ptr_eq(next, session));
                ReceivingSession {
                    session: session.clone(),
                    peer,
                    awaits_confirmation: is_next,
                    takes_over: is_next && state.sessions.next_takes_over(precedence),
                    answered: answered.filter(|(index, _)| *index == session.local_index).map(|(_, remote)| remote),
                }
            };
            state.sessions.iter().map(receiving).collect()
        };
        let mut sessions: Vec<ReceivingSession> = self.peers.iter().flat_map(of_peer).collect();
        sessions.sort_unstable_by_key(|entry| entry.session.local_index);
        sessions.into()
    }

    /// The snapshot as it is, for who begins with it.
    pub fn router(&mut self) -> Arc<Router> {
        self.refresh_router();
        self.router.clone()
    }
}

fn route(peer: &Peer) -> PeerRoute {
    PeerRoute {
        refuses: peer.told_refusal,
        endpoint: peer.endpoint,
        configured: peer.configured_places(),
        left: peer.left,
        session: peer.sessions.current().cloned(),
        lanes: peer.lane_paths.routes(peer.endpoint),
        policy: peer.config.policy.clone(),
        path: peer.path_limit(),
        dscp: peer.config.dscp,
        ..PeerRoute::none(peer.share.clone())
    }
}

fn local_keys(private_key: PrivateKey, previous: Option<PrivateKey>) -> Vec<LocalKey> {
    std::iter::once(private_key).chain(previous).map(LocalKey::new).collect()
}
