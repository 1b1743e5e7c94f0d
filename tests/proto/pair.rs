//! `Pair`: two devices and the wire between them, on one virtual clock.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use underpass::keys::{PrivateKey, PublicKey};
use underpass::packet::frame::FRAME_HEADER_LEN;
use underpass::packet::message::{Message, TRANSPORT_OVERHEAD};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::constants::MAX_LANES;
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Exposure, Policy};
use underpass::proto::randomness::Entropy;
use underpass::proto::staged::StagedPacket;
use underpass::proto::stats::{LinkState, PeerStatus};
use underpass::proto::transmit::{SourcePort, Transmit};

/// A ping, pong or probe alone: a frame header, a type and a token.
pub(crate) const PING_DATAGRAM_LEN: usize = TRANSPORT_OVERHEAD + FRAME_HEADER_LEN + 9;

/// One-way delay of the wire.
pub(crate) const LATENCY: Duration = Duration::from_millis(10);

/// What the clock says at the start.
pub(crate) const UNIX_TIME: Duration = Duration::from_secs(1_700_000_000);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    One,
    Two,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two => Self::One,
        }
    }

    pub(crate) fn private_key(self) -> PrivateKey {
        PrivateKey::from_bytes([self as u8 + 1; 32]).unwrap()
    }

    pub(crate) fn public_key(self) -> PublicKey {
        self.private_key().public_key()
    }

    /// The only address inside that belongs to this side.
    pub(crate) fn inner(self) -> [u8; 4] {
        [10, 77, 0, self as u8 + 1]
    }

    pub(crate) fn address(self) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, self as u8 + 1], 51900))
    }
}

/// A datagram that was sent, and when it arrives.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    pub arrives_at: Instant,
    pub to: Side,
    pub from: SocketAddr,
    /// It goes to the receiver's second address.
    pub to_second: bool,
    pub traffic_class: TrafficClass,
    pub payload: Vec<u8>,
}

/// Decides whether a datagram of a side is lost.
type Loss = dyn FnMut(Side, &[u8]) -> bool;

/// Decides whether a datagram from the first to the second address is lost.
type PathLoss = dyn FnMut(SocketAddr, SocketAddr) -> bool;

pub(crate) struct Pair {
    pub start: Instant,
    pub now: Instant,
    pub one: Device,
    pub two: Device,
    pub addresses: [SocketAddr; 2],
    pub wire: VecDeque<InFlight>,
    /// Every datagram sent, with its sender.
    pub sent: Vec<(Instant, Side, Vec<u8>)>,
    /// Destination of each datagram of side one.
    pub destinations: Vec<(Instant, SocketAddr)>,
    /// Every packet delivered, with its receiver.
    pub delivered: Vec<(Instant, Side, Vec<u8>)>,
    pub events: Vec<(Side, Event)>,
    pub refused: Vec<(Side, DropReason)>,
    /// Datagrams to be lost.
    pub lose: Box<Loss>,
    /// Datagrams to be lost on their way.
    pub lose_between: Box<PathLoss>,
    /// One-way delay from here on.
    pub latency: Duration,
    /// Longest datagram in bytes that passes whole, by sender.
    pub longest: [usize; 2],
    /// Datagrams to addresses that nobody has: where to, and how long.
    pub astray: Vec<(SocketAddr, usize)>,
    /// Another address of side two, from which it answers what was sent there.
    pub second: Option<SocketAddr>,
}

pub(crate) fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
    Instant::now()
}

pub(crate) fn device_config(side: Side) -> DeviceConfig {
    DeviceConfig {
        private_key: side.private_key(),
        previous_private_key: None,
        suite: Suite::Aes256Gcm,
        send_lanes: 1,
        lane_paths: true,
        mtu: None,
    }
}

/// How `side` is configured at the other.
pub(crate) fn peer_config(side: Side) -> PeerConfig {
    PeerConfig {
        endpoints: vec![Endpoint::new(side.address())],
        allowed_ips: vec![format!("10.77.0.{}/32", side as u8 + 1).parse().unwrap()],
        policy: Policy::exposing(Exposure::everything()).into(),
        ..PeerConfig::new(side.public_key())
    }
}

/// A UDP packet between inner addresses that carries `payload`.
pub(crate) fn inner_packet(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (28 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(source);
    packet.extend(destination);
    packet.extend([0x10, 0, 0x20, 0]);
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

impl Pair {
    /// Carries small packets both ways, which keep the link busy.
    pub(crate) fn carry(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            for side in [Side::One, Side::Two] {
                self.send(side, b"data");
            }
            self.advance(Duration::from_millis(50));
        }
    }

    /// The longest packet in bytes that a side knows the path to carry.
    pub(crate) fn path_mtu(&mut self, side: Side) -> u16 {
        self.status(side).path_mtu.unwrap()
    }

    /// Each side knows the other and where it is.
    pub(crate) fn new() -> Self {
        Self::with(|_| (), |_| ())
    }

    /// Each side knows the other, as changed by `one` (how it knows two) and `two` (how it knows one).
    pub(crate) fn with(one: impl FnOnce(&mut PeerConfig), two: impl FnOnce(&mut PeerConfig)) -> Self {
        let now = start();
        let mut pair = Self::without_peers(now);
        let (mut peer_two, mut peer_one) = (peer_config(Side::Two), peer_config(Side::One));
        one(&mut peer_two);
        two(&mut peer_one);
        pair.one.upsert_peer(now, peer_two);
        pair.two.upsert_peer(now, peer_one);
        pair
    }

    /// Each side knows the other, and their devices are as changed by `change`.
    pub(crate) fn with_devices(change: impl Fn(Side, &mut DeviceConfig)) -> Self {
        let mut pair = Self::with_configs(start(), change);
        for side in [Side::One, Side::Two] {
            let now = pair.now;
            pair.device(side).upsert_peer(now, peer_config(side.other()));
        }
        pair
    }

    pub(crate) fn without_peers(now: Instant) -> Self {
        Self::with_configs(now, |_, _| ())
    }

    fn with_configs(now: Instant, change: impl Fn(Side, &mut DeviceConfig)) -> Self {
        let device = |side: Side| {
            let mut config = device_config(side);
            change(side, &mut config);
            Device::new(now, UNIX_TIME, config, Entropy::seeded([side as u8 + 50; 32]))
        };
        Self {
            start: now,
            now,
            one: device(Side::One),
            two: device(Side::Two),
            addresses: [Side::One.address(), Side::Two.address()],
            wire: VecDeque::new(),
            sent: Vec::new(),
            destinations: Vec::new(),
            delivered: Vec::new(),
            events: Vec::new(),
            refused: Vec::new(),
            lose: Box::new(|_, _| false),
            lose_between: Box::new(|_, _| false),
            latency: LATENCY,
            longest: [usize::MAX; 2],
            astray: Vec::new(),
            second: None,
        }
    }

    pub(crate) fn device(&mut self, side: Side) -> &mut Device {
        match side {
            Side::One => &mut self.one,
            Side::Two => &mut self.two,
        }
    }

    /// Starts a side anew, as after a crash: same key, no sessions.
    pub(crate) fn restart(&mut self, side: Side, unix_time: Duration) {
        self.restart_as(side, unix_time, |_| ());
    }

    /// The same, with a device that is as changed by `change`.
    pub(crate) fn restart_as(&mut self, side: Side, unix_time: Duration, change: impl Fn(&mut DeviceConfig)) {
        let mut config = device_config(side);
        change(&mut config);
        let mut device = Device::new(self.now, unix_time, config, Entropy::seeded([side as u8 + 90; 32]));
        device.upsert_peer(self.now, peer_config(side.other()));
        *self.device(side) = device;
    }

    /// Sends a packet from one side's address to the other's.
    pub(crate) fn send(&mut self, from: Side, payload: &[u8]) {
        let packet = inner_packet(from.inner(), from.other().inner(), payload);
        let _ = self.send_packet(from, packet);
    }

    pub(crate) fn send_packet(&mut self, from: Side, bytes: Vec<u8>) -> Result<(), DropReason> {
        let now = self.now;
        let result = self.device(from).handle_packet(now, StagedPacket { bytes, checksum_partial: false });
        self.collect();
        result
    }

    /// Lets the wire and the timers go on for `duration`.
    pub(crate) fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.collect();
        while let Some(at) = self.next_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step();
        }
        self.now = end;
    }

    /// Lets the wire go on until nothing is on it.
    pub(crate) fn settle(&mut self) {
        self.collect();
        while let Some(arrives_at) = self.wire.iter().map(|datagram| datagram.arrives_at).min() {
            self.advance(arrives_at - self.now);
        }
    }

    /// Makes a session by sending a packet, and forgets that.
    pub(crate) fn connect(&mut self, from: Side) {
        self.send(from, b"hello");
        self.settle();
        assert!(self.is_up(from) && self.is_up(from.other()), "no session");
        self.delivered.clear();
        self.sent.clear();
        self.events.clear();
    }

    fn next_at(&self) -> Option<Instant> {
        let timeouts = [&self.one, &self.two].into_iter().filter_map(|device| Some(device.poll_timeout()?.0));
        timeouts.chain(self.wire.iter().map(|datagram| datagram.arrives_at)).min()
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(position) = self.wire.iter().position(|datagram| datagram.arrives_at <= now) {
            let datagram = self.wire.remove(position).unwrap();
            self.deliver(datagram);
        }
        for side in [Side::One, Side::Two] {
            let device = self.device(side);
            device.handle_timeout(now);
            assert!(device.poll_timeout().is_none_or(|(deadline, _)| deadline > now), "a deadline has not moved on");
        }
        self.collect();
    }

    pub(crate) fn deliver(&mut self, mut datagram: InFlight) {
        let (now, to) = (self.now, datagram.to);
        let second = self.second.filter(|_| datagram.to_second);
        let local = Some(second.unwrap_or(self.addresses[to as usize]).ip());
        let from = Endpoint { remote: datagram.from, local, interface: 0 };
        if let Err(reason) =
            self.device(to).handle_datagram(now, from, datagram.traffic_class.ecn(), &mut datagram.payload)
        {
            self.refused.push((to, reason));
        }
        self.collect();
    }

    /// Polls both sides until they are empty.
    pub(crate) fn collect(&mut self) {
        for side in [Side::One, Side::Two] {
            while let Some(transmit) = self.device(side).poll_transmit() {
                self.sent.push((self.now, side, transmit.payload.clone()));
                if side == Side::One {
                    self.destinations.push((self.now, transmit.endpoint.remote));
                }
                let is_too_long = !transmit.may_fragment && transmit.payload.len() > self.longest[side as usize];
                if is_too_long || (self.lose)(side, &transmit.payload) {
                    continue;
                }
                self.put_on_the_wire(side, transmit);
            }
            while let Some(event) = self.device(side).poll_event() {
                match event {
                    Event::Packet { bytes, .. } => self.delivered.push((self.now, side, bytes)),
                    event => self.events.push((side, event)),
                }
            }
        }
    }

    /// A lane's own port follows on the one that is listened on.
    pub(crate) fn put_on_the_wire(&mut self, side: Side, transmit: Transmit) {
        let lane = match transmit.port {
            SourcePort::Listen => 0,
            SourcePort::Lane(lane) => lane,
        };
        let is_second = |address: &SocketAddr| side == Side::Two && Some(address.ip()) == transmit.endpoint.local;
        let address = self.second.filter(is_second).unwrap_or(self.addresses[side as usize]);
        let from = SocketAddr::new(address.ip(), address.port() + u16::from(lane));
        let remote = transmit.endpoint.remote;
        let is_at = |address: &SocketAddr| {
            address.ip() == remote.ip()
                && (address.port()..address.port() + u16::from(MAX_LANES)).contains(&remote.port())
        };
        let to_second = self.second.as_ref().is_some_and(is_at);
        let to = if to_second { Some(Side::Two as usize) } else { self.addresses.iter().position(is_at) };
        let Some(to) = to else { return self.astray.push((remote, transmit.payload.len())) };
        if !(self.lose_between)(from, remote) {
            self.wire.push_back(InFlight {
                arrives_at: self.now + self.latency,
                to: [Side::One, Side::Two][to],
                from,
                to_second,
                traffic_class: transmit.traffic_class,
                payload: transmit.payload,
            });
        }
    }

    /// Has side one know so many more peers, of whom nothing is ever heard.
    pub(crate) fn add_strangers(&mut self, number: u32) {
        for index in 0..number {
            let mut key = [7; 32];
            key[8..12].copy_from_slice(&index.to_le_bytes());
            let public_key = PrivateKey::from_bytes(key).unwrap().public_key();
            let stranger = PeerConfig { public_key, endpoints: vec![], allowed_ips: vec![], ..peer_config(Side::Two) };
            self.one.upsert_peer(self.now, stranger).unwrap();
        }
    }

    pub(crate) fn status(&mut self, side: Side) -> PeerStatus {
        let now = self.now;
        self.device(side).status(now).peers.remove(0)
    }

    pub(crate) fn is_up(&mut self, side: Side) -> bool {
        self.status(side).state == LinkState::Up
    }

    /// The payloads delivered to `side`, in order.
    pub(crate) fn payloads(&self, side: Side) -> Vec<Vec<u8>> {
        self.delivered.iter().filter(|(_, to, _)| *to == side).map(|(_, _, packet)| packet[28..].to_vec()).collect()
    }

    /// When `side` sent initiations.
    pub(crate) fn initiations(&self, side: Side) -> Vec<Instant> {
        self.sent
            .iter()
            .filter(|(_, from, payload)| *from == side && matches!(Message::parse(payload), Ok(Message::Initiation(_))))
            .map(|(at, ..)| *at)
            .collect()
    }

    /// When `side` sent transport data: packets and keepalives, not what watches the link.
    pub(crate) fn transports(&self, side: Side) -> Vec<Instant> {
        let is_ping = |payload: &[u8]| payload.len() == PING_DATAGRAM_LEN;
        self.sent
            .iter()
            .filter(|(_, from, payload)| *from == side && matches!(Message::parse(payload), Ok(Message::Transport(_))))
            .filter(|(_, _, payload)| !is_ping(payload))
            .map(|(at, ..)| *at)
            .collect()
    }
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
