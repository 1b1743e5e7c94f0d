//! Packets to and from two peers with policies of their own: whatever a peer makes of a packet, it passes only if it is for
//! something exposed, or answers.
//!
//! The data is what is exposed to each peer, and a list of steps.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use underpass::dataplane::testing::{config, device};
use underpass::packet::ip::IpPacket;
use underpass::proto::device::Device;
use underpass::proto::peer::PeerConfig;
use underpass::proto::peer_table::PeerId;
use underpass::proto::policy::{Policy, PortRange, Service};

use crate::choices::Choices;
use crate::policy_twin::{self as twin, Exposed};
use crate::twin::packet::{addresses, is_whole, set_field};

/// A packet of ours to a peer: `peer (1)`, packet.
pub(crate) const SEND: u8 = 0;
/// A packet of a peer's: `peer (1)`, packet.
pub(crate) const RECEIVE: u8 = 1;
/// The same, and then changed: `peer (1)`, packet, `changes (1), offset (1), difference (1), …`.
pub(crate) const SPOILT: u8 = 2;
/// Bytes that are taken for a packet of a peer's, if they are one: `peer (1), length (1), bytes`.
pub(crate) const RAW: u8 = 3;
/// Time passes: `seconds (1)`.
pub(crate) const WAIT: u8 = 4;
/// What is exposed to a peer changes: `peer (1)`, services.
pub(crate) const EXPOSE: u8 = 5;
const STEPS: u8 = 6;

/// The last byte of our address and of the peers', in each IP version.
const US: u8 = 9;
const OWN: [&str; 2] = ["10.77.0.9", "fd77::9"];
/// Networks behind us, by the number that stands for them, from 1 on: one, one that it lies in, an address of ours, everything.
const NETWORKS: [[&str; 2]; 5] = [
    ["10.77.0.12/30", "fd77::c/126"],
    ["10.77.0.8/29", "fd77::8/125"],
    ["10.77.0.9/32", "fd77::9/128"],
    ["10.77.0.12/32", "fd77::c/128"],
    ["0.0.0.0/0", "::/0"],
];
const PEERS: [&[&str]; 2] = [&["10.77.0.1/32", "fd77::1/128"], &["10.77.0.2/31", "fd77::2/127"]];
const PROTOCOLS: [u8; 8] = [6, 17, 1, 58, 6, 17, 47, 0];

/// What a run came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub passed: u64,
    pub refused: u64,
}

/// A device for many runs, each so long after the one before that all of it is forgotten.
struct World {
    device: Device,
    origin: Instant,
    runs: u32,
}

struct Run<'w, 'd> {
    choices: Choices<'d>,
    device: &'w mut Device,
    start: Instant,
    elapsed: Duration,
    peers: [(PeerId, twin::Policy); 2],
    outcome: Outcome,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

pub(crate) fn run(data: &[u8]) -> Outcome {
    WORLD.with_borrow_mut(|world| {
        // Long before its clock has counted as far as it can.
        let world = match world {
            Some(world) if world.runs < 1 << 16 => world,
            _ => world.insert(World::new()),
        };
        world.runs += 1;
        do_run(&mut world.device, world.origin + world.runs * APART, data)
    })
}

impl World {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
        let origin = Instant::now();
        Self { device: device(origin, US), origin, runs: 0 }
    }
}

fn do_run(device: &mut Device, start: Instant, data: &[u8]) -> Outcome {
    let mut choices = Choices::new(data);
    let peers = [0, 1].map(|peer| expose(device, start, peer, &mut choices));
    let mut run = Run { choices, device, start, elapsed: Duration::ZERO, peers, outcome: Outcome::default() };
    for _ in 0..MAX_STEPS {
        if run.choices.is_empty() {
            break;
        }
        run.step();
    }
    run.outcome
}

/// So that the exchanges of a run never fill a place where they are remembered, and none takes long.
const MAX_STEPS: usize = 64;
/// Between two runs: longer than a run, and than anything is remembered after it.
const APART: Duration = Duration::from_secs(MAX_STEPS as u64 * 255 + 1000);

/// `number (1)`, and for each service `kind and destination (1), first (1), last (1)`.
fn expose(device: &mut Device, now: Instant, peer: usize, choices: &mut Choices<'_>) -> (PeerId, twin::Policy) {
    let mut here = Exposed::default();
    let mut networks: Vec<(twin::Network, Exposed)> = Vec::new();
    let mut exposures = Vec::new();
    for _ in 0..choices.byte() % 4 {
        let [kind, first, last] = [(); 3].map(|()| choices.byte());
        let service = |exposed: &mut Exposed| add_service(exposed, kind % 8, first, last);
        match NETWORKS.get(usize::from(kind >> 3).wrapping_sub(1)) {
            Some(of_each_version) => {
                for network in of_each_version {
                    let (address, bits) = network.split_once('/').expect("with its length");
                    let known = (address.parse().expect("an address"), bits.parse().expect("a number"));
                    networks.push((known, Exposed::default()));
                    let service = service(&mut networks.last_mut().expect("one was added").1);
                    exposures.push(service.within(network.parse().expect("a network")));
                }
            }
            None => exposures.push(service(&mut here).into()),
        }
    }
    let number = peer as u8 + 1;
    let own = OWN.map(|address| address.parse().expect("an address"));
    let config = PeerConfig {
        policy: Policy::exposing(exposures).with_own_addresses(own).into(),
        ..config(number, Some(SocketAddr::from(([192, 0, 2, number], 51900))), PEERS[peer])
    };
    (device.upsert_peer(now, config).expect("another's key"), twin::Policy::new(&OWN, here, networks))
}

/// Both for the twin and for the policy.
fn add_service(exposed: &mut Exposed, kind: u8, first: u8, last: u8) -> Service {
    let range = PortRange { first: first.min(last).into(), last: first.max(last).into() };
    match kind {
        0..=2 => {
            exposed.tcp.push(range.first..=range.last);
            Service::Tcp(range)
        }
        3..=5 => {
            exposed.udp.push(range.first..=range.last);
            Service::Udp(range)
        }
        6 if first == 255 => {
            exposed.any = true;
            Service::Any
        }
        6 => {
            exposed.echo = true;
            Service::Echo
        }
        _ => {
            exposed.protocols.push(last);
            Service::Protocol(last)
        }
    }
}

/// Whether an address is one of a peer's.
fn owns(peer: usize, address: IpAddr) -> bool {
    let (tunnel, last) = match address {
        IpAddr::V4(address) => (address.octets()[..3] == [10, 77, 0], address.octets()[3]),
        IpAddr::V6(address) => {
            let octets = address.octets();
            (octets[..2] == [0xfd, 0x77] && octets[2..15] == [0; 13], octets[15])
        }
    };
    tunnel && if peer == 0 { last == 1 } else { matches!(last, 2 | 3) }
}

impl Run<'_, '_> {
    fn step(&mut self) {
        match self.choices.byte() % STEPS {
            SEND => {
                let (peer, packet) = self.packet(true);
                let Ok(parsed) = IpPacket::parse(&packet) else { return };
                if !owns(peer, parsed.destination()) {
                    return;
                }
                self.device.router().on_sent(self.start + self.elapsed, self.peers[peer].0, &parsed);
                self.peers[peer].1.on_sent(self.elapsed, &packet);
            }
            RECEIVE => {
                let (peer, packet) = self.packet(false);
                self.receive(peer, &packet);
            }
            SPOILT => {
                let (peer, mut packet) = self.packet(false);
                for _ in 0..self.choices.byte() % 4 {
                    let (offset, difference) = (usize::from(self.choices.byte()), self.choices.byte());
                    if let Some(byte) = packet.get_mut(offset) {
                        *byte ^= difference;
                    }
                }
                self.receive(peer, &packet);
            }
            RAW => {
                let (peer, length) = (usize::from(self.choices.byte() & 1), usize::from(self.choices.byte()));
                let packet = self.choices.bytes(length);
                self.receive(peer, packet);
            }
            WAIT => self.elapsed += Duration::from_secs(self.choices.byte().into()),
            _ => {
                let peer = usize::from(self.choices.byte() & 1);
                let now = self.start + self.elapsed;
                let (id, fresh) = expose(self.device, now, peer, &mut self.choices);
                let known = &mut self.peers[peer];
                (known.0, known.1) = (id, std::mem::take(&mut known.1).exposing_as(fresh));
            }
        }
    }

    fn receive(&mut self, peer: usize, packet: &[u8]) {
        let parsed = IpPacket::parse(packet);
        assert_eq!(parsed.is_ok(), is_whole(packet));
        let Ok(parsed) = parsed else { return };
        if !owns(peer, addresses(packet)[0]) {
            return;
        }
        let (id, twin) = &mut self.peers[peer];
        let judged = self.device.router().judge(self.start + self.elapsed, *id, &parsed);
        let expected = twin.judge(self.elapsed, packet, |address| owns(peer, address));
        assert_eq!(judged, expected, "{packet:02x?}");
        match judged {
            Ok(()) => self.outcome.passed += 1,
            Err(_) => self.outcome.refused += 1,
        }
    }

    /// `peer (1)`, and a packet between it and us.
    fn packet(&mut self, outward: bool) -> (usize, Vec<u8>) {
        let peer = usize::from(self.choices.byte() & 1);
        (peer, self.packet_between(outward, 2))
    }

    /// `shape (1) | addresses (1) | protocol (1) | two ports, or type and identifier (2) | flags (1)`, and then as the shape
    /// says: `fragment (1)`, extension `headers (1)`, a quoted packet.
    fn packet_between(&mut self, outward: bool, depth: usize) -> Vec<u8> {
        let [shape, hosts, protocol, one, two, flags] = [(); 6].map(|()| self.choices.byte());
        let protocol = PROTOCOLS.get(usize::from(protocol)).copied().unwrap_or(protocol);
        let mut message = match protocol {
            6 => [&[0, one, 0, two, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags][..], &[0; 6]].concat(),
            17 => vec![0, one, 0, two, 0, 12, 0, 0, 1, 2, 3, 4],
            _ => vec![one, 0, 0, 0, 0, two, 0, flags],
        };
        if shape & QUOTES != 0 && depth > 0 {
            let mut quoted = self.packet_between(!outward, depth - 1);
            let kept = usize::from(self.choices.byte());
            quoted.truncate(kept);
            message.extend(quoted);
        } else if shape & LONG != 0 {
            message.resize(100, 0);
        } else if shape & SHORT != 0 {
            message.truncate(usize::from(flags & 31));
        }
        let (far, near) = (hosts & 3, if hosts & 0x80 == 0 { US } else { hosts >> 2 & 15 });
        let [source, destination] = if outward { [near, far] } else { [far, near] };
        let fragment = if shape & FRAGMENT != 0 { self.choices.byte() } else { 0 };
        // Three bits of identification, "more follow", and an offset in units of eight.
        let (identification, more, offset) = (fragment & 7, fragment >> 3 & 1, fragment >> 4);
        if shape & V6 == 0 {
            let mut packet = vec![0x45, 0, 0, 0, 0, identification, 0, offset, 64, protocol, 0, 0, 10, 77, 0, source];
            packet[6] |= more << 5;
            packet.extend([10, 77, 0, destination]);
            packet.extend(message);
            let length = packet.len();
            set_field(&mut packet, 2, length);
            return packet;
        }
        let mut protocol = protocol;
        if shape & FRAGMENT != 0 {
            message.splice(..0, [protocol, 0, 0, offset << 3 | more, 0, 0, 0, identification]);
            protocol = 44;
        }
        if shape & EXTENDED != 0 {
            let headers = self.choices.byte();
            for index in 0..headers & 7 {
                message.splice(..0, [protocol, 0, 1, 4, 0, 0, 0, 0]);
                protocol = if headers >> 3 & 1 << index != 0 { 60 } else { [0, 43, 44, 60][usize::from(headers >> 6)] };
            }
        }
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        for last in [source, destination] {
            packet.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet.extend(message);
        let length = packet.len() - 40;
        set_field(&mut packet, 4, length);
        packet
    }
}

/// Bits of a packet's shape.
pub(crate) const V6: u8 = 1;
pub(crate) const FRAGMENT: u8 = 2;
pub(crate) const EXTENDED: u8 = 4;
pub(crate) const QUOTES: u8 = 8;
pub(crate) const LONG: u8 = 16;
pub(crate) const SHORT: u8 = 32;
