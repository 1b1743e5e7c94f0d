//! What hostile peers put into authentic datagrams, on its way through the receiving data plane: a host behind the TUN
//! gets every packet that may pass once, unchanged and in order, no other, and nothing that a kernel would refuse.
//! Everything else is counted.
//!
//! The data is `TUN and policy (1)` and a list of steps: packets are made, spoilt, sealed and received.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use underpass::dataplane::testing::{self, Receiver};
use underpass::packet::ip::TransportProtocol;
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::Ecn;
use underpass::proto::error::DropReason;
use underpass::proto::policy::{PortRange, Service};

use crate::choices::Choices;
use crate::links::{Links, OWN, endpoint, owner};
use crate::policy_twin::{Exposed, Policy, is_fragment};
use crate::twin::delivery::{Drops, Expectation, counted, position};
use crate::twin::packet::{is_v4, set_field};

/// The packets of a TUN read, as an honest sender cuts them: [`Choices::read`].
pub(crate) const PACKETS: u8 = 0;
/// A frame that is none of a packet, or not such as its header says: `kind, flags, length (2), bytes to come (1), bytes`.
pub(crate) const FRAME: u8 = 1;
/// Changes a byte of a packet: `frame (1), offset (1), difference (1)`.
pub(crate) const FLIP: u8 = 2;
/// Changes a packet's length: `frame (1), length (2), whether the headers say so (1)`.
pub(crate) const RESIZE: u8 = 3;
/// Changes the flags of a frame: `frame (1), difference (1)`.
pub(crate) const FLAGS: u8 = 4;
/// Puts a frame in another's place, and that one behind all others: `frame (1), frame (1)`.
pub(crate) const EXCHANGE: u8 = 5;
/// Repeats a frame behind all others: `frame (1)`.
pub(crate) const REPEAT: u8 = 6;
/// Leaves a frame out: `frame (1)`.
pub(crate) const OMIT: u8 = 7;
/// Seals what there is, so many frames to a datagram: `frames (1), peer and lane (1)`.
pub(crate) const SEAL: u8 = 8;
/// Exchanges datagrams under way: `datagram (1), datagram (1)`.
pub(crate) const REORDER: u8 = 9;
/// Loses a datagram: `datagram (1)`.
pub(crate) const LOSE: u8 = 10;
/// Receives what is under way: `whether the queue stands (1)`.
pub(crate) const RECEIVE: u8 = 11;
/// Changes the ECN field of a datagram under way: `datagram (1), field (1)`.
pub(crate) const MARK: u8 = 12;
/// Steps are read modulo this.
const STEPS: u8 = 13;

/// Frames of a datagram, and datagrams of a receive: as many as UDP_GRO gives, and as a socket in a kernel's place holds.
const MAX_FRAMES: usize = 64;
/// Bytes of a datagram.
const MAX_DATAGRAM: usize = 65_507;
/// Bytes of packets in a run, so that none takes long.
const MAX_BYTES: usize = 200_000;

/// What a run came to, for those who want to know that it came to something.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub delivered: usize,
    pub writes: usize,
    pub refused: u64,
}

pub(crate) fn run(data: &[u8]) -> Outcome {
    WORLD.with_borrow_mut(|world| {
        // Long before the sessions have sealed all that they may.
        let world = match world {
            Some(world) if world.runs < 1 << 20 => world,
            _ => world.insert(World::new()),
        };
        world.runs += 1;
        Run::new(world, data).finish()
    })
}

/// A UDP port, that of all packets that are not spoilt.
const EXPOSED: u16 = 50_000;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Links on which the peers seal what they like.
struct World {
    /// To whom everything is exposed, and to whom [`EXPOSED`] is alone.
    links: [Links; 2],
    /// Behind a TUN without offload, with that of TCP, and with all.
    receivers: [(Receiver, Vec<TransportProtocol>); 3],
    runs: u32,
}

impl World {
    fn new() -> Self {
        let receivers = [vec![], vec![TransportProtocol::Tcp], vec![TransportProtocol::Tcp, TransportProtocol::Udp]];
        let receivers = receivers.map(|superpackets| (Receiver::new(&superpackets), superpackets));
        let range = PortRange { first: EXPOSED, last: EXPOSED };
        let links = [Links::new(), Links::exposing(Service::Udp(range))];
        Self { links, receivers, runs: 0 }
    }
}

/// A frame before it is sealed.
#[derive(Clone)]
struct Frame {
    kind: u8,
    flags: u8,
    /// What the header says, unless it is the body's length.
    length: Option<usize>,
    body: Vec<u8>,
}

/// A datagram under way.
struct Sealed {
    peer: usize,
    plaintext: Vec<u8>,
    ecn: Ecn,
    bytes: Vec<u8>,
}

/// One run of the target.
struct Run<'w, 'd> {
    world: &'w mut World,
    choices: Choices<'d>,
    tun: usize,
    /// Which links.
    policed: usize,
    frames: Vec<Frame>,
    datagrams: Vec<Sealed>,
    /// Of the next TCP superpacket.
    sequence: usize,
    /// Bytes of packets so far.
    bytes: usize,
    outcome: Outcome,
}

impl<'w, 'd> Run<'w, 'd> {
    fn new(world: &'w mut World, data: &'d [u8]) -> Self {
        let mut choices = Choices::new(data);
        let setting = choices.byte();
        let (tun, policed) = (2 - usize::from(setting % 3), usize::from(setting / 3 % 2));
        let outcome = Outcome::default();
        Self { world, choices, tun, policed, frames: Vec::new(), datagrams: Vec::new(), sequence: 0, bytes: 0, outcome }
    }

    fn finish(mut self) -> Outcome {
        while !self.choices.is_empty() && self.bytes < MAX_BYTES {
            match self.choices.byte() % STEPS {
                PACKETS => self.add_packets(),
                FRAME => self.add_frame(),
                SEAL => self.seal(),
                REORDER => {
                    if let (Some(one), Some(two)) = self.two_datagrams() {
                        self.datagrams.swap(one, two);
                    }
                }
                LOSE => {
                    if let Some(index) = self.choices.index(&self.datagrams) {
                        self.datagrams.remove(index);
                    }
                }
                MARK => {
                    if let Some(index) = self.choices.index(&self.datagrams) {
                        self.datagrams[index].ecn = self.choices.ecn();
                    }
                }
                RECEIVE => {
                    let standing = self.choices.byte() & 1 != 0;
                    self.receive(standing);
                }
                step => self.spoil(step),
            }
        }
        self.seal();
        self.receive(false);
        self.outcome
    }

    fn two_datagrams(&mut self) -> (Option<usize>, Option<usize>) {
        (self.choices.index(&self.datagrams), self.choices.index(&self.datagrams))
    }

    fn add_packets(&mut self) {
        let (mut read, payload_len) = self.choices.read(self.sequence);
        self.sequence += payload_len;
        let (frames, bytes) = (&mut self.frames, &mut self.bytes);
        let mut packet = vec![0; read.len()];
        testing::cut(&mut read, &mut packet, |flags, packet| {
            *bytes += packet.len();
            frames.push(Frame { kind: 1, flags, length: None, body: packet.to_vec() });
        })
        .expect("a good read");
    }

    fn add_frame(&mut self) {
        let (kind, flags, length) = (self.choices.byte(), self.choices.byte(), self.choices.short());
        let bytes = usize::from(self.choices.byte());
        let body = self.choices.bytes(bytes).to_vec();
        self.frames.push(Frame { kind, flags, length: Some(length), body });
    }

    /// Steps that change frames.
    fn spoil(&mut self, step: u8) {
        let Some(index) = self.choices.index(&self.frames) else { return };
        match step {
            FLIP => {
                let (offset, difference) = (usize::from(self.choices.byte()), self.choices.byte());
                if let Some(byte) = self.frames[index].body.get_mut(offset) {
                    *byte ^= difference;
                }
            }
            RESIZE => {
                let (length, says_so) = (self.choices.short(), self.choices.byte() & 1 != 0);
                self.bytes += length;
                let body = &mut self.frames[index].body;
                body.resize(length, 0x5a);
                match body.first() {
                    Some(_) if says_so && is_v4(body) && length >= 4 => set_field(body, 2, length),
                    Some(_) if says_so && length >= 40 => set_field(body, 4, length - 40),
                    _ => {}
                }
            }
            FLAGS => self.frames[index].flags ^= self.choices.byte(),
            EXCHANGE => {
                let other = self.choices.index(&self.frames).expect("there is one");
                self.frames.swap(index, other);
            }
            REPEAT => {
                let frame = self.frames[index].clone();
                self.bytes += frame.body.len();
                self.frames.push(frame);
            }
            OMIT => drop(self.frames.remove(index)),
            _ => unreachable!("the other steps change no frame"),
        }
    }

    /// Seals all frames.
    fn seal(&mut self) {
        let per_datagram = usize::from(self.choices.byte()).clamp(1, MAX_FRAMES);
        let way = self.choices.byte();
        let (peer, lane) = (usize::from(way & 1), way >> 1 & 1);
        let mut plaintext = Vec::new();
        let mut frames = 0;
        for frame in std::mem::take(&mut self.frames) {
            let length = 4 + frame.body.len();
            if frames == per_datagram || plaintext.len() + length + TRANSPORT_HEADER_LEN + TAG_LEN > MAX_DATAGRAM {
                self.seal_datagram(peer, lane, std::mem::take(&mut plaintext));
                frames = 0;
            }
            let stated = frame.length.unwrap_or(frame.body.len()) as u16;
            plaintext.extend([frame.kind, frame.flags]);
            plaintext.extend(stated.to_le_bytes());
            plaintext.extend(frame.body);
            frames += 1;
        }
        self.seal_datagram(peer, lane, plaintext);
    }

    fn seal_datagram(&mut self, peer: usize, lane: u8, plaintext: Vec<u8>) {
        let mut bytes = [&[0; TRANSPORT_HEADER_LEN], &plaintext[..], &[0; TAG_LEN]].concat();
        let Links { now, peers, .. } = &self.world.links[self.policed];
        let route = peers[peer].route(*now, [10, 77, 0, 200].into()).expect("a session");
        route.seal(*now, lane, &mut bytes, &mut Vec::new()).expect("a session that is not used up");
        self.datagrams.push(Sealed { peer, plaintext, ecn: Ecn::default(), bytes });
    }

    /// Receives what is under way, as many datagrams at once as one receive gives.
    fn receive(&mut self, standing: bool) {
        let mut datagrams = std::mem::take(&mut self.datagrams);
        for receive in datagrams.chunks_mut(MAX_FRAMES) {
            self.receive_together(standing, receive);
        }
    }

    fn receive_together(&mut self, standing: bool, datagrams: &mut [Sealed]) {
        let World { links, receivers, .. } = &mut *self.world;
        let Links { now, us, .. } = &links[self.policed];
        let any = self.policed == 0;
        let mut twins = [(); 2].map(|()| {
            let port = Exposed { udp: vec![EXPOSED..=EXPOSED], ..Exposed::default() };
            let everywhere = |network| ((network, 0), Exposed { any: true, ..Exposed::default() });
            let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            let networks = if any { all.map(everywhere).into() } else { vec![] };
            Policy::new(&OWN, if any { Exposed::default() } else { port }, networks)
        });
        // What is remembered of them outlasts a run: they are the target `policy`'s.
        let mut has_fragments = false;
        let mut notices = Vec::new();
        let mut expectation = Expectation::default();
        let mut opened = Vec::new();
        for Sealed { peer, plaintext, ecn, bytes } in datagrams {
            let datagram = us.open(*now, endpoint(*peer), *ecn, bytes, &mut notices).expect("a good datagram, once");
            let owns = |address| owner(address) == Some(*peer);
            expectation.add_judged(position(&datagram), *ecn, plaintext, owns, |packet| {
                has_fragments |= !any && is_fragment(packet);
                twins[*peer].judge(Duration::ZERO, packet, owns)
            });
            opened.push(datagram);
        }
        let (receiver, superpackets) = &mut receivers[self.tun];
        let before = receiver.drops();
        let writes = receiver.receive(us, &opened, standing, &mut notices);
        if has_fragments {
            return;
        }
        let mut drops = counted(&before, &receiver.drops());
        let lost = drops.remove(&DropReason::StandingQueue).unwrap_or_default();
        assert!(lost <= u64::from(standing), "{lost} packets lost for a queue that stands: {standing}");
        let refused = |drops: &Drops| drops.values().sum::<u64>();
        // What is lost is not looked at: maybe it would have been refused.
        let unseen = refused(&expectation.refused) - refused(&drops);
        assert!(unseen <= lost && (unseen == 1 || drops == expectation.refused), "{drops:?}");
        match expectation.check(&writes, superpackets, standing, lost - unseen) {
            Ok(delivered) => self.outcome.delivered += delivered.len(),
            Err(wrong) => panic!("{wrong}"),
        }
        self.outcome.writes += writes.len();
        self.outcome.refused += refused(&expectation.refused);
    }
}
