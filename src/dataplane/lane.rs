//! One lane's way through this machine, for both directions: one TUN queue, for each listen address a share of its port
//! and a socket of the lane's own, and the state and buffers that go with them.
//!
//! ```text
//! poll ─▶ UDP: up to 64 receives ─▶ open, admit ─▶ trains ─▶ TUN
//!      └▶ TUN: up to 64 reads ─▶ route ─▶ pack, seal ─▶ UDP
//! ```
//!
//! A lane is a value: the worker that owns it is the only one that can read its queue and sockets, and may give it to another
//! between two turns. Run to completion: nothing is handed to another thread but what only the slow path can do, through a
//! bounded queue. No packet costs an allocation or a lock. The lane knows no threads, timers, handshakes or peers'
//! configuration.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags};

use crate::packet::frame::FLAG_CHECKSUM_PARTIAL;
use crate::packet::ip::IpPacket;
use crate::packet::message::Message;
use crate::proto::constants::{ANSWERS_AT_ONCE, ANSWERS_PER_SECOND};
use crate::proto::error::{DropReason, Miss};
use crate::proto::peer_table::PeerId;
use crate::proto::router::{Notice, Route, Router};
use crate::proto::share::Budget;
use crate::proto::staged::StagedPacket;

use super::acknowledgements::Acknowledgements;
use super::batch::{Drain, Outbound};
use super::clock;
use super::counters::Counters;
use super::failure::Failure;
use super::inbound::Inbound;
use super::network_errors::NetworkErrors;
use super::refusal::refusal;
use super::routing_loop::own_datagram_destination;
use super::segment::Segments;
use super::sender::Sender;
use super::slow_path::{Input, SlowPathQueue};
use super::sockets::Sockets;
use super::standing_queue::StandingQueue;
use super::train::write_whole;
use super::tun::{TUN_BUFFER_LEN, TunQueue, TunRead};
use super::udp::{RECEIVE_BUFFER_LEN, Received, UdpSocket};
use super::unreachable::{MAX_ANSWER_LEN, Problem, answer};
use super::virtio::{UnknownSegmentation, VirtioHeader};

/// Receives per socket before the TUN gets its turn (measured, `docs/performance.md`).
const MAX_RECEIVES: usize = 64;
/// Bytes that are enough to be opened together: less than one receive gives where the wire or the kernel merges.
const GATHER_LEN: usize = 60 << 10;
/// TUN reads before the sockets get their turn (measured, `docs/performance.md`).
const MAX_READS: usize = 64;
/// Bytes of either before the other gets its turn: what waits there should not wait for a whole queue of superpackets.
const MAX_TURN_BYTES: usize = 128 << 10;

/// Parts of a lane that are made elsewhere.
#[derive(Debug, Clone)]
pub(super) struct LaneParts {
    /// The lane's number.
    pub(super) lane: u8,
    /// Packets longer than this are not sent: the most that the interface may take.
    pub(super) mtu: u16,
    pub(super) tun: Arc<TunQueue>,
    pub(super) sockets: Sockets,
    /// Every port that any lane sends from.
    pub(super) ports: Arc<[u16]>,
    /// The newest snapshot; replaced by the slow path.
    pub(super) router: Arc<ArcSwap<Router>>,
    pub(super) slow_path: SlowPathQueue,
    pub(super) counters: Arc<Counters>,
    /// Errors that the network reports about endpoints.
    pub(super) network_errors: Arc<NetworkErrors>,
}

/// One lane, whole: whoever owns it carries its packets.
#[derive(Debug)]
pub(super) struct Lane {
    parts: LaneParts,
    outbound: Outbound,
    acknowledgements: Acknowledgements,
    notices: Vec<Notice>,
    /// Answers to packets that are nobody's.
    answers: Budget,
    tun_queue: StandingQueue,
    socket_queues: Box<[StandingQueue]>,
    receive_buffer: Box<[u8]>,
    /// The receives that lie in the receive buffer, end to end.
    received: Vec<Received>,
    read_buffer: Box<[u8]>,
}

impl Lane {
    /// Allocates all that it will ever need.
    pub(super) fn new(parts: LaneParts) -> Self {
        let sender = Sender::new(parts.sockets.clone());
        Self {
            outbound: Outbound::new(parts.lane, parts.mtu, sender, parts.counters.clone()),
            acknowledgements: Acknowledgements::new(),
            notices: Vec::new(),
            answers: Budget::new(clock::now(), ANSWERS_PER_SECOND, ANSWERS_AT_ONCE),
            tun_queue: StandingQueue::new(clock::now()),
            socket_queues: parts.receiving().map(|_| StandingQueue::new(clock::now())).collect(),
            receive_buffer: vec![0; GATHER_LEN + RECEIVE_BUFFER_LEN].into(),
            received: Vec::with_capacity(MAX_RECEIVES),
            read_buffer: vec![0; TUN_BUFFER_LEN].into(),
            parts,
        }
    }

    /// The lane's number.
    pub(super) fn number(&self) -> u8 {
        self.parts.lane
    }

    /// The parts by which the lane's descriptors are polled while it takes its turns.
    pub(super) fn parts(&self) -> LaneParts {
        self.parts.clone()
    }

    /// Sends from `sockets` and receives on them from here on.
    pub(super) fn use_sockets(&mut self, sockets: Sockets) {
        self.parts.ports = sockets.ports();
        self.outbound.send_by(Sender::new(sockets.clone()));
        self.parts.sockets = sockets;
        self.socket_queues = self.parts.receiving().map(|_| StandingQueue::new(clock::now())).collect();
    }

    /// Carries what is ready, both ways, of neither more than the other can wait for. `descriptors` are the lane's own, as they
    /// were polled.
    pub(super) fn take_turn(&mut self, now: Instant, descriptors: &[PollFd<'_>]) -> Result<(), Failure> {
        let [tun, sockets @ ..] = descriptors else { unreachable!("a lane has a TUN queue") };
        for (index, socket) in sockets.iter().enumerate() {
            if is_ready(socket) {
                if has_errors(socket) {
                    self.parts.take_network_errors(index);
                }
                self.socket_queues[index].on_ready(now);
                self.receive(now, index)?;
            } else {
                self.socket_queues[index].on_empty(now);
            }
        }
        if is_ready(tun) {
            self.tun_queue.on_ready(now);
            self.transmit(now)?;
        } else {
            self.tun_queue.on_empty(now);
        }
        self.send_notices();
        Ok(())
    }

    /// From one socket to the TUN.
    fn receive(&mut self, now: Instant, index: usize) -> Result<(), Failure> {
        let (mut receives, mut bytes, mut is_empty) = (0, 0, false);
        while !is_empty && receives < MAX_RECEIVES && bytes < MAX_TURN_BYTES {
            (bytes, is_empty) = self.gather(bytes, index);
            receives += self.received.len();
            self.open(now, index)?;
        }
        if is_empty {
            self.socket_queues[index].on_empty(now);
        }
        self.parts.counters.count_carried(bytes);
        Ok(())
    }

    /// Receives until there is enough to open together, for packets of one superpacket that arrive datagram by datagram.
    /// Returns `bytes` with what was added, and whether nothing is left.
    fn gather(&mut self, mut bytes: usize, index: usize) -> (usize, bool) {
        let socket = self.parts.socket(index);
        self.received.clear();
        let mut end = 0;
        while end < GATHER_LEN && self.received.len() < MAX_RECEIVES {
            match socket.receive(&mut self.receive_buffer[end..end + RECEIVE_BUFFER_LEN]) {
                Ok(Some(received)) => {
                    end += received.length;
                    bytes += received.length;
                    self.received.push(received);
                }
                Ok(None) => return (bytes, true),
                Err(error) => {
                    tracing::debug!(%error, "receive failed");
                    return (bytes, true);
                }
            }
        }
        (bytes, false)
    }

    /// Opens the datagrams that were gathered.
    fn open(&mut self, now: Instant, index: usize) -> Result<(), Failure> {
        let parts = &self.parts;
        // Loaded after the receives: a session is published before the peer can use it, maybe since the last datagram.
        let router = parts.router.load();
        let mut on_refused = |peer, packet: &IpPacket<'_>| parts.answer_refused(now, &router, peer, packet);
        let mut inbound = Inbound::new(&router, &parts.tun, &parts.counters);
        inbound.answer_refused_by(&mut on_refused);
        if self.socket_queues[index].take_signal(now) {
            inbound.signal_congestion();
        }
        let mut rest = &mut self.receive_buffer[..];
        for received in &self.received {
            let (datagrams, behind) = rest.split_at_mut(received.length);
            rest = behind;
            if datagrams.is_empty() {
                parts.counters.count(DropReason::Malformed);
            }
            for datagram in datagrams.chunks_mut(received.stride) {
                if is_handshake(datagram) {
                    let Received { endpoint: from, ecn, .. } = *received;
                    parts.hand_over(Input::Datagram { from, ecn, bytes: datagram.to_vec() });
                    continue;
                }
                match router.open(now, received.endpoint, received.ecn, datagram, &mut self.notices) {
                    Ok(opened) => inbound.take(&opened, &mut self.notices)?,
                    Err(Miss::Drop(reason)) => parts.counters.count(reason),
                    Err(miss @ (Miss::SlowPath | Miss::NoSession(_))) => {
                        unreachable!("{miss:?}: only handshakes and outgoing packets are the slow path's")
                    }
                }
            }
        }
        inbound.deliver()
    }

    /// From the TUN to the peers.
    fn transmit(&mut self, now: Instant) -> Result<(), Failure> {
        let parts = &self.parts;
        let router = parts.router.load();
        let mut departure = Departure {
            now,
            parts,
            router: &router,
            answers: &mut self.answers,
            tun_queue: &mut self.tun_queue,
            drain: self.outbound.drain(now, &mut self.notices),
            last_route: None,
        };
        let mut turn_bytes = 0;
        for _ in 0..MAX_READS {
            if turn_bytes >= MAX_TURN_BYTES {
                break;
            }
            let TunRead { header, bytes } = match parts.tun.read(&mut self.read_buffer) {
                Ok(Some(read)) => read,
                Ok(None) => {
                    departure.tun_queue.on_empty(now);
                    break;
                }
                Err(error) => return Err(Failure::TunGone(error)),
            };
            turn_bytes += bytes.len();
            match header {
                Ok(header) => self.acknowledgements.take(&header, bytes, |header, bytes| departure.push(header, bytes)),
                Err(UnknownSegmentation) => parts.counters.count(DropReason::MalformedPacket),
            }
        }
        self.acknowledgements.finish(|header, bytes| departure.push(header, bytes));
        departure.drain.finish();
        parts.counters.count_carried(turn_bytes);
        Ok(())
    }

    /// Tells the slow path what the packets showed.
    fn send_notices(&mut self) {
        // One peer's roaming shows in every datagram of a drain.
        self.notices.dedup();
        for notice in self.notices.drain(..) {
            self.parts.hand_over(Input::Notice(notice));
        }
    }
}

/// One drain of the TUN: where its packets go.
struct Departure<'w, 'r> {
    now: Instant,
    parts: &'w LaneParts,
    router: &'r Router,
    answers: &'w mut Budget,
    tun_queue: &'w mut StandingQueue,
    drain: Drain<'w, 'r>,
    /// The destination and the route of the packet before, which are mostly those of the next.
    last_route: Option<(IpAddr, Route<'r>)>,
}

impl Departure<'_, '_> {
    /// Sends what one read gave, hands it to the slow path, or answers it.
    fn push(&mut self, header: &VirtioHeader, bytes: &mut [u8]) {
        let (now, parts, router) = (self.now, self.parts, self.router);
        let Ok(mut segments) = Segments::new(header, bytes) else {
            return parts.counters.count(DropReason::MalformedPacket);
        };
        let route = parts.route(now, router, segments.packet(), &mut self.last_route);
        match route.and_then(|route| segments.fit(route.path()).map(|()| route)) {
            Ok(route) => {
                router.on_sent(now, route.peer(), segments.packet());
                if segments.count() > 1 && self.tun_queue.take_signal(now) {
                    parts.signal_congestion(&mut segments);
                }
                self.drain.push(route, &segments);
            }
            Err(Miss::NoSession(peer)) => parts.stage(peer, &segments),
            Err(Miss::SlowPath) => {
                let (_, route) = self.last_route.expect("a packet is fitted to a route");
                parts.stage(route.peer(), &segments);
            }
            Err(Miss::Drop(reason)) => self.refuse(&segments, reason),
        }
    }

    /// Drops packets, and tells their sender where that is of use.
    fn refuse(&mut self, segments: &Segments<'_>, reason: DropReason) {
        let (now, parts, router) = (self.now, self.parts, self.router);
        parts.counters.add(reason, segments.count() as u64);
        let path = self.last_route.map(|(_, route)| route.path());
        if let Some(problem) = Problem::of(reason, path, segments.packet()) {
            let peer = router.peer_of(segments.packet().destination());
            if peer.map_or_else(|| self.answers.take(now), |peer| router.may_answer(now, peer)) {
                parts.answer(segments.packet(), problem);
            }
        }
    }
}

impl LaneParts {
    /// Descriptors to poll for the lane, the TUN queue's first.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.tun.as_fd()).chain(self.receiving().map(|socket| socket.as_fd()))
    }

    /// Sockets that the lane receives on. A lane that has just left the common port for its own is read there first: what it
    /// sent before is to be delivered before.
    fn receiving(&self) -> impl Iterator<Item = &UdpSocket> {
        self.sockets.listen.iter().chain(self.sockets.of_lane(self.lane))
    }

    fn socket(&self, index: usize) -> &UdpSocket {
        self.receiving().nth(index).expect("a lane's sockets change between two turns only")
    }

    fn take_network_errors(&self, index: usize) {
        self.network_errors.take(clock::unix_time(), self.socket(index), &self.router.load());
    }

    /// `last` is the destination and the route of the packet before, which is mostly that of this one.
    fn route<'r>(
        &self,
        now: Instant,
        router: &'r Router,
        packet: &IpPacket<'_>,
        last: &mut Option<(IpAddr, Route<'r>)>,
    ) -> Result<Route<'r>, Miss> {
        if own_datagram_destination(packet, &self.ports).is_some_and(|remote| router.has_endpoint(remote)) {
            return Err(DropReason::RoutingLoop.into());
        }
        let destination = packet.destination();
        match *last {
            Some((same, route)) if same == destination => Ok(route),
            _ => Ok(last.insert((destination, router.route(now, destination)?)).1),
        }
    }

    fn signal_congestion(&self, superpacket: &mut Segments<'_>) {
        if !superpacket.mark_congestion() {
            superpacket.drop_first();
            self.counters.count(DropReason::StandingQueue);
        }
    }

    /// Hands packets without a session to the slow path.
    fn stage(&self, peer: PeerId, segments: &Segments<'_>) {
        for index in 0..segments.count() {
            let length = segments.length(index);
            if length > usize::from(self.mtu) {
                self.counters.count(DropReason::TooLarge);
                continue;
            }
            let mut bytes = vec![0; length];
            segments.write(index, &mut bytes);
            let checksum_partial = segments.flags(index) & FLAG_CHECKSUM_PARTIAL != 0;
            self.hand_over(Input::Packet(peer, StagedPacket { bytes, checksum_partial }));
        }
    }

    fn hand_over(&self, input: Input) {
        if !self.slow_path.offer(input) {
            self.counters.count(DropReason::QueueFull);
        }
    }

    /// Answers a packet of a peer's by the way of its kind, which is the slow path's: this is rare, and not urgent.
    fn answer_refused(&self, now: Instant, router: &Router, peer: PeerId, packet: &IpPacket<'_>) {
        let mut buffer = [0; MAX_ANSWER_LEN];
        let Some(length) = refusal(packet, &mut buffer).filter(|_| router.may_answer(now, peer)) else { return };
        let answer = StagedPacket { bytes: buffer[..length].to_vec(), checksum_partial: false };
        self.hand_over(Input::Packet(peer, answer));
    }

    fn answer(&self, packet: &IpPacket<'_>, problem: Problem) {
        let mut buffer = [0; MAX_ANSWER_LEN];
        let Some(length) = answer(packet, problem, &mut buffer) else { return };
        // Lost answers are like late ones: the application waits.
        let _ = write_whole(self.tun.offload(), &buffer[..length], |parts| self.tun.write(parts));
    }
}

/// Whether there is something to do. An error is readiness too: the read or receive clears it, or tells what it means.
pub(super) fn is_ready(descriptor: &PollFd<'_>) -> bool {
    descriptor.any().unwrap_or(true)
}

/// Whether the kernel has errors of the network for a socket.
pub(super) fn has_errors(descriptor: &PollFd<'_>) -> bool {
    descriptor.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Whether the slow path has to see `datagram`.
fn is_handshake(datagram: &[u8]) -> bool {
    matches!(Message::parse(datagram), Ok(Message::Initiation(_) | Message::Response(_) | Message::CookieReply(_)))
}
