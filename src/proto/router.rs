//! The fast path: an immutable snapshot of who may send what where, and with which session.
//!
//! Everything per packet goes through `&Router`; the slow path replaces the snapshot when a session, an endpoint or a
//! peer changes. What the slow path must hear of a packet goes into `notices`.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::packet::frame::{self, Control, FLAG_CHECKSUM_PARTIAL, Frame, Frames, PING_FRAME_LEN, PacketFrame};
use crate::packet::ip::{IPV4_HEADER_LEN, IpPacket};
use crate::packet::message::{Message, TRANSPORT_OVERHEAD};
use crate::packet::segment_size;
use crate::packet::traffic_class::{self, Ecn, TrafficClass};

use super::allowed_ips::AllowedIps;
use super::constants::{MAX_CONTROL_FRAMES, MAX_WASTED_FRAMES};
use super::endpoint::Endpoint;
use super::error::{DropReason, Miss};
use super::lane_paths::LaneRoutes;
use super::path_mtu::PathLimit;
use super::peer::LeftPlace;
use super::peer_table::PeerId;
use super::policy::Policy;
use super::session::Session;
use super::share::{Budget, Share};
use super::transmit::{Dscp, Way};

/// A snapshot for the fast path.
#[derive(Debug)]
pub struct Router {
    pub(super) allowed_ips: Arc<AllowedIps>,
    /// By [`PeerId`]. Those that have not changed are shared with the snapshot before.
    pub(super) peers: Box<[Arc<PeerRoute>]>,
    /// Every session that may still receive, sorted by its local index. Shared with the snapshot before unless one has changed.
    pub(super) sessions: Arc<[ReceivingSession]>,
}

/// A session to open datagrams with.
#[derive(Debug, Clone)]
pub(super) struct ReceivingSession {
    pub(super) session: Arc<Session>,
    pub(super) peer: PeerId,
    /// We are its responder and the peer has not yet proven that it has the keys.
    pub(super) awaits_confirmation: bool,
    /// Once it is confirmed, this is the session to seal with.
    pub(super) takes_over: bool,
    /// Destination of our response: whoever confirms the session has received it there.
    pub(super) answered: Option<SocketAddr>,
}

/// A session that has just been confirmed.
#[derive(Debug)]
pub(super) struct Confirmed {
    session: Arc<Session>,
    /// The peer's endpoint, if it has proven that. An answer is on its way before the slow path has heard of it, and
    /// nobody may be left at the old endpoint to receive it.
    endpoint: Option<Endpoint>,
}

/// How to reach one peer.
#[derive(Debug)]
pub(super) struct PeerRoute {
    pub(super) endpoint: Option<Endpoint>,
    /// Where the peer may be by its configuration, if that is more than one place. Probes decide between them.
    pub(super) configured: Arc<[SocketAddr]>,
    /// Where it was before we were told that it is at `endpoint`.
    pub(super) left: Option<LeftPlace>,
    /// The link is known to be down: packets are refused at once.
    pub(super) refuses: bool,
    /// The session to seal with: confirmed, not expired when the snapshot was made.
    pub(super) session: Option<Arc<Session>>,
    /// What each lane's way has of its own.
    pub(super) lanes: LaneRoutes,
    /// How long datagrams to its endpoint may be.
    pub(super) path: PathLimit,
    /// What the DSCP of datagrams to it says.
    pub(super) dscp: Dscp,
    /// What the peer has confirmed since the snapshot was made. If it has restarted, it can't open the old session's answers.
    pub(super) confirmed: OnceLock<Confirmed>,
    pub(super) policy: Arc<Policy>,
    /// Shared with all its other snapshots.
    pub(super) share: Arc<Share>,
}

impl PeerRoute {
    /// That of nobody.
    pub(super) fn none(share: Arc<Share>) -> Self {
        Self {
            endpoint: None,
            configured: Arc::default(),
            left: None,
            refuses: false,
            session: None,
            lanes: LaneRoutes::default(),
            path: PathLimit::default(),
            dscp: Dscp::default(),
            confirmed: OnceLock::new(),
            policy: Arc::default(),
            share,
        }
    }

    /// Where datagrams go.
    fn endpoint(&self) -> Option<Endpoint> {
        self.confirmed.get().and_then(|confirmed| confirmed.endpoint).or(self.endpoint)
    }

    /// What was under way by another of the peer's ways when the one in use was chosen would change it back.
    fn is_late(&self, from: Endpoint, session: &Session) -> bool {
        let Some(endpoint) = self.endpoint.filter(|endpoint| endpoint.remote != from.remote) else { return false };
        let is_left = |left: &LeftPlace| left.remote == from.remote && session.created_at <= left.at;
        let is_configured = |endpoint: Endpoint| self.configured.contains(&endpoint.remote);
        self.left.as_ref().is_some_and(is_left) || (is_configured(from) && is_configured(endpoint))
    }

    /// Paths are of no use in a session that the peer has made.
    fn lanes(&self) -> &LaneRoutes {
        if self.confirmed.get().is_some() { self.lanes.without_opened() } else { &self.lanes }
    }

    /// Whether a session's datagrams tell where the peer is: those of the newest that is confirmed. What was held back of an
    /// older one tells of the past.
    fn is_newest(&self, receiving: &ReceivingSession) -> bool {
        let is_current = |session: &Arc<Session>| Arc::ptr_eq(session, &receiving.session);
        receiving.takes_over || (self.confirmed.get().is_none() && self.session.as_ref().is_some_and(is_current))
    }

    /// Whether the newest datagram of a lane, which has no path of its own, shows the peer elsewhere. It does so until a new
    /// snapshot shows that it was heard, so that it is not lost for good in a full queue.
    fn is_elsewhere(&self, from: Endpoint, receiving: &ReceivingSession) -> bool {
        self.endpoint != Some(from) && self.is_newest(receiving) && !self.is_late(from, &receiving.session)
    }

    /// The same of a lane that may have one.
    fn has_lane_moved(&self, from: Endpoint, lane: u8, receiving: &ReceivingSession) -> bool {
        self.lanes.followed(lane).or(self.endpoint) != Some(from) && self.is_newest(receiving)
    }
}

/// Something that the fast path saw of a peer and the slow path must act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// The peer.
    pub peer: PeerId,
    /// The local index of the session in which it was seen.
    pub session: u32,
    /// The event that was seen.
    pub seen: Seen,
}

/// An event on the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The first datagram of a session that the peer initiated: it has the keys. Where it came from, if that is where the
    /// response went.
    Confirmed(Option<Endpoint>),
    /// The newest datagram of a lane came from elsewhere than the peer's endpoint.
    Roamed(Sighting),
    /// The newest datagram of a lane came from elsewhere than the lane's before.
    LaneMoved(u8, Sighting),
    /// Data passes, after a silence. This repeats until the slow path has heard it.
    Resumed,
    /// The session is old: make its successor.
    RekeyDue,
    /// A control frame.
    Control(Control, Origin),
}

/// A datagram from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Its source.
    pub endpoint: Endpoint,
    /// Set if it is as long as a question whether the peer is there, and is answered by nothing else that is sent
    /// there.
    pub may_ask: bool,
}

/// The origin of a control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The lane of its datagram.
    pub lane: u8,
    /// Source of that datagram.
    pub endpoint: Endpoint,
    /// Length of that datagram.
    pub length: usize,
    /// No frame was before it.
    pub is_first: bool,
}

/// Where a packet goes, and with what it is sealed.
#[derive(Debug, Clone, Copy)]
pub struct Route<'r> {
    peer: PeerId,
    endpoint: Endpoint,
    session: &'r Session,
    lanes: &'r LaneRoutes,
    path: PathLimit,
    dscp: Dscp,
}

impl Route<'_> {
    /// The peer.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Its endpoint.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The way of what is sealed on `lane`.
    pub fn way(&self, lane: u8) -> Way {
        let main = Way::main(self.endpoint);
        match self.lanes {
            LaneRoutes::Shared => main,
            LaneRoutes::Opened(proven) if proven.get(usize::from(lane)) == Some(&true) => Way::own(self.endpoint, lane),
            LaneRoutes::Opened(_) => main,
            LaneRoutes::Followed(endpoints) => {
                let endpoint = endpoints[usize::from(lane) % endpoints.len()];
                Way::main(endpoint.unwrap_or(self.endpoint))
            }
        }
    }

    /// How long datagrams may be.
    pub fn path(&self) -> PathLimit {
        self.path
    }

    /// That of a datagram with packets of the class `inner`.
    pub fn traffic_class(&self, inner: TrafficClass) -> TrafficClass {
        self.session.traffic_class(self.dscp, inner)
    }

    /// What seals.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// Seals `header room (12) | packet frames | tag room (16)` in place with the lane's next counter.
    pub fn seal(
        &self,
        now: Instant,
        lane: u8,
        datagram: &mut [u8],
        notices: &mut Vec<Notice>,
    ) -> Result<(), DropReason> {
        let notice = |seen| Notice { peer: self.peer, session: self.session.local_index, seen };
        if !self.session.is_busy() {
            notices.push(notice(Seen::Resumed));
        }
        if self.session.seal(now, lane, datagram)? {
            notices.push(notice(Seen::RekeyDue));
        }
        Ok(())
    }
}

/// An authentic datagram's plaintext.
#[derive(Debug)]
pub struct Opened<'b, 'r> {
    /// Who sealed it.
    pub peer: PeerId,
    /// On which lane.
    pub lane: u8,
    /// With which counter.
    pub counter: u64,
    /// Its frames.
    pub plaintext: &'b [u8],
    opened_at: Instant,
    session: u32,
    from: Endpoint,
    ecn: Ecn,
    share: &'r Share,
}

/// Budget of one datagram's control frames.
#[derive(Debug, Default)]
struct Heeded {
    frames: u32,
    /// One answer is all that a datagram may cost.
    has_asked: bool,
}

impl Heeded {
    /// Whether another frame is heeded.
    fn take(&mut self, control: Control, origin: Origin) -> bool {
        let is_heeded = match control {
            Control::Unknown(_) => false,
            // Behind another frame, what it came with may have been answered where it came from.
            Control::Probe(_) if !origin.is_first => false,
            Control::Ping(_) | Control::Probe(_) => !std::mem::replace(&mut self.has_asked, true),
            Control::Pong(_) | Control::Goodbye | Control::Draining(_) => true,
        };
        self.frames += u32::from(is_heeded);
        is_heeded && self.frames <= MAX_CONTROL_FRAMES
    }
}

impl<'b, 'r> Opened<'b, 'r> {
    /// The packet frames in order, or why one is refused. Control frames become notices on the way.
    pub fn packets<'n>(&self, notices: &'n mut Vec<Notice>) -> Packets<'b, 'n, 'r> {
        Packets {
            frames: Frames::new(self.plaintext),
            notices,
            controls: &self.share.controls,
            now: self.opened_at,
            peer: self.peer,
            session: self.session,
            origin: Origin {
                lane: self.lane,
                endpoint: self.from,
                length: self.plaintext.len() + TRANSPORT_OVERHEAD,
                is_first: frame::starts_with_control(self.plaintext),
            },
            // Whatever understands marks was marked when the datagram was opened.
            is_marked: self.ecn == Ecn::Ce,
            heeded: Heeded::default(),
            wasted: 0,
        }
    }
}

/// Packet frames of an authentic datagram.
#[derive(Debug)]
pub struct Packets<'b, 'n, 'r> {
    frames: Frames<'b>,
    notices: &'n mut Vec<Notice>,
    controls: &'r Budget,
    now: Instant,
    peer: PeerId,
    session: u32,
    /// That of the next control frame.
    origin: Origin,
    is_marked: bool,
    heeded: Heeded,
    /// Frames that brought no packet.
    wasted: u32,
}

impl<'b> Iterator for Packets<'b, '_, '_> {
    type Item = Result<PacketFrame<'b>, DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.wasted <= MAX_WASTED_FRAMES {
            let frame = self.frames.next()?;
            if let Ok(Frame::Packet(packet)) = frame
                && packet.bytes.len() >= IPV4_HEADER_LEN
            {
                self.origin.is_first = false;
                return Some(self.judge(packet));
            }
            self.wasted += 1;
            if self.wasted > MAX_WASTED_FRAMES {
                return Some(Err(DropReason::ControlLimit));
            }
            let origin = Origin { is_first: std::mem::take(&mut self.origin.is_first), ..self.origin };
            match frame {
                Ok(Frame::Packet(packet)) => return Some(self.judge(packet)),
                Ok(Frame::Control(control)) if !self.heeded.take(control, origin) => {}
                Ok(Frame::Control(_)) if !self.controls.take(self.now) => return Some(Err(DropReason::ControlLimit)),
                Ok(Frame::Control(control)) => {
                    let seen = Seen::Control(control, origin);
                    self.notices.push(Notice { peer: self.peer, session: self.session, seen });
                }
                Err(_) => return Some(Err(DropReason::MalformedFrame)),
            }
        }
        None
    }
}

impl<'b> Packets<'b, '_, '_> {
    /// A mark that its packet does not understand is a loss.
    fn judge(&self, packet: PacketFrame<'b>) -> Result<PacketFrame<'b>, DropReason> {
        let is_lost = self.is_marked && TrafficClass::of(packet.bytes).ecn() != Ecn::Ce;
        if is_lost { Err(DropReason::CongestionExperienced) } else { Ok(packet) }
    }
}

impl Router {
    /// The way to `destination`.
    pub fn route(&self, now: Instant, destination: IpAddr) -> Result<Route<'_>, Miss> {
        let peer = self.allowed_ips.lookup(destination).ok_or(DropReason::NoPeerForDestination)?;
        let route = &self.peers[peer.index()];
        if route.refuses && route.confirmed.get().is_none() {
            return Err(DropReason::LinkDown.into());
        }
        // Without a session, packets are waiting in the slow path: a later one must not overtake them.
        let confirmed = || route.confirmed.get().map(|confirmed| &confirmed.session);
        let session = route.session.as_ref().map(|session| confirmed().unwrap_or(session));
        match (session, route.endpoint()) {
            (Some(session), Some(endpoint)) if !session.is_expired(now) => {
                Ok(Route { peer, endpoint, session, lanes: route.lanes(), path: route.path, dscp: route.dscp })
            }
            _ => Err(Miss::NoSession(peer)),
        }
    }

    /// Called for every packet that is sealed for `peer`, before it leaves: the answer may pass.
    pub fn on_sent(&self, now: Instant, peer: PeerId, packet: &IpPacket<'_>) {
        let route = &self.peers[peer.index()];
        route.policy.on_sent(now, &route.share.flows, packet);
    }

    /// Every session that may still receive, with its peer: for tests, which check that none outlives its limits.
    pub fn sessions(&self) -> impl Iterator<Item = (PeerId, &Arc<Session>)> {
        self.sessions.iter().map(|entry| (entry.peer, &entry.session))
    }

    /// Opens a datagram in place, which arrived from there with `ecn` in its IP header.
    pub fn open<'b, 'r>(
        &'r self,
        now: Instant,
        from: Endpoint,
        ecn: Ecn,
        datagram: &'b mut [u8],
        notices: &mut Vec<Notice>,
    ) -> Result<Opened<'b, 'r>, Miss> {
        // Nobody can be answered there, so nobody honest sends from there.
        if from.remote.port() == 0 {
            return Err(DropReason::Malformed.into());
        }
        let header = match Message::parse(datagram) {
            Ok(Message::Transport(header)) => header,
            Ok(_) => return Err(Miss::SlowPath),
            Err(_) => return Err(DropReason::Malformed.into()),
        };
        let found = self.sessions.binary_search_by_key(&header.receiver_index, |entry| entry.session.local_index);
        let receiving = &self.sessions[found.map_err(|_| DropReason::UnknownSession)?];
        let (session, peer) = (receiving.session.local_index, receiving.peer);
        let authentic = receiving.session.open(now, header, datagram)?;
        let notice = |seen| Notice { peer, session, seen };
        if !receiving.session.is_busy() && frame::starts_with_packet(authentic.plaintext) {
            notices.push(notice(Seen::Resumed));
        }
        let route = &self.peers[peer.index()];
        if route.path.is_narrow() {
            // What answers a SYN takes our path to the peer: who knows it is who lowers what the SYN asks for.
            let longest = route.path.packet();
            frame::for_each_packet_mut(authentic.plaintext, |flags, packet| {
                segment_size::clamp(packet, longest, flags & FLAG_CHECKSUM_PARTIAL != 0);
            });
        }
        if ecn.changes_packets() {
            frame::for_each_packet_mut(authentic.plaintext, |_, packet| traffic_class::decapsulate(packet, ecn));
        }
        // These repeat until a new snapshot shows that they were heard, so that none is lost for good in a full queue.
        let tells_where = authentic.is_newest && !frame::starts_with_probe_or_pong(authentic.plaintext);
        let is_answered = tells_where && receiving.takes_over && receiving.answered == Some(from.remote);
        let endpoint = Some(from).filter(|_| is_answered);
        if receiving.awaits_confirmation {
            notices.push(notice(Seen::Confirmed(endpoint)));
        }
        if receiving.takes_over {
            route.confirmed.get_or_init(|| Confirmed { session: receiving.session.clone(), endpoint });
        }
        let is_as_long = authentic.plaintext.len() >= PING_FRAME_LEN;
        if tells_where && receiving.session.follows_path_of(header.lane) {
            // A ping is answered there.
            let may_ask = is_as_long && frame::starts_with_packet(authentic.plaintext);
            if route.has_lane_moved(from, header.lane, receiving) && route.share.sightings.take(now) {
                notices.push(notice(Seen::LaneMoved(header.lane, Sighting { endpoint: from, may_ask })));
            }
        } else if tells_where && route.is_elsewhere(from, receiving) && route.share.sightings.take(now) {
            notices.push(notice(Seen::Roamed(Sighting { endpoint: from, may_ask: is_as_long })));
        }
        if authentic.rekey_due {
            notices.push(notice(Seen::RekeyDue));
        }
        Ok(Opened {
            peer,
            lane: header.lane,
            counter: header.counter,
            plaintext: authentic.plaintext,
            opened_at: now,
            session,
            from,
            ecn,
            share: &route.share,
        })
    }

    /// Whose `address` is.
    pub fn peer_of(&self, address: IpAddr) -> Option<PeerId> {
        self.allowed_ips.lookup(address)
    }

    /// Whether one more packet of a peer's, or to it, may be answered with an error.
    pub fn may_answer(&self, now: Instant, peer: PeerId) -> bool {
        self.peers[peer.index()].share.answers.take(now)
    }

    /// Whether `peer` is to be told that it may not reach a port.
    pub fn tells_of_refusal(&self, peer: PeerId) -> bool {
        self.peers[peer.index()].policy.tells_of_refusal()
    }

    /// Whether a peer is at `address`. Looks at every peer: for packets that are rare.
    pub fn has_endpoint(&self, address: SocketAddr) -> bool {
        self.peers
            .iter()
            .filter_map(|peer| peer.endpoint)
            .any(|endpoint| (endpoint.remote.ip(), endpoint.remote.port()) == (address.ip(), address.port()))
    }

    /// Checks one packet frame of an opened datagram: a whole IP packet, from a source that its peer may use, with a
    /// partial checksum only where there is one to complete, and one that its peer may send. `last` is the peer and the
    /// source of the packet that this router admitted before, which are mostly those of this one.
    pub fn admit<'b>(
        &self,
        opened: &Opened<'_, '_>,
        frame: PacketFrame<'b>,
        last: &mut Option<(PeerId, IpAddr)>,
    ) -> Result<IpPacket<'b>, DropReason> {
        let packet = IpPacket::parse(frame.bytes).map_err(|_| DropReason::MalformedPacket)?;
        let peer = opened.peer;
        let from = (peer, packet.source());
        if *last != Some(from) && !self.may_speak_for(peer, packet.source()) {
            return Err(DropReason::SourceNotAllowed);
        }
        *last = Some(from);
        if frame.flags & FLAG_CHECKSUM_PARTIAL != 0 && packet.transport().is_none() {
            return Err(DropReason::MalformedPacket);
        }
        self.judge(opened.opened_at, peer, &packet)?;
        Ok(packet)
    }

    /// Whether `address` is `peer`'s. A prefix of its may cover an address of ours, in whose name nobody else speaks.
    fn may_speak_for(&self, peer: PeerId, address: IpAddr) -> bool {
        self.allowed_ips.lookup(address) == Some(peer) && !self.peers[peer.index()].policy.is_own(address)
    }

    /// Whether `peer` may send `packet`, from an address that it may use, by its policy.
    pub fn judge(&self, now: Instant, peer: PeerId, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        let is_peers = |address| self.allowed_ips.lookup(address) == Some(peer);
        let route = &self.peers[peer.index()];
        route.policy.judge(now, &route.share.flows, packet, is_peers)
    }
}

#[cfg(test)]
mod tests;
