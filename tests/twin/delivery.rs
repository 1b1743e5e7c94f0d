//! What is to come of opened datagrams: which of their packets are admitted, and whether TUN writes bring a host exactly
//! those (`docs/protocol.md` §8).

use std::collections::BTreeMap;
use std::net::IpAddr;

use underpass::packet::ip::TransportProtocol;
use underpass::packet::traffic_class::Ecn;
use underpass::proto::error::DropReason;
use underpass::proto::peer_table::PeerId;
use underpass::proto::router::Opened;
use underpass::proto::stats::DropCounters;

use super::kernel;
use super::packet::{
    addresses, completed, decapsulated, direct_transport, ecn, is_atomic, is_of_one, is_v4, is_whole, mark_congestion,
    set_field,
};

pub(crate) const PARTIAL: u8 = 1;
pub(crate) const CONTINUES: u8 = 2;

/// Where a datagram stands: its peer, lane and counter.
pub(crate) type Position = (PeerId, u8, u64);

pub(crate) fn position(opened: &Opened<'_, '_>) -> Position {
    (opened.peer, opened.lane, opened.counter)
}

/// A number for each reason, without those that never were.
pub(crate) type Drops = BTreeMap<DropReason, u64>;

/// What was counted between two looks.
pub(crate) fn counted(before: &DropCounters, after: &DropCounters) -> Drops {
    let grown = after.iter().map(|(reason, number)| (reason, number - before.of(reason)));
    grown.filter(|(_, number)| *number > 0).collect()
}

/// A packet frame that a receiver must not refuse.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub peer: PeerId,
    pub flags: u8,
    pub bytes: Vec<u8>,
    /// Which admitted packet is the packet before it, as its sender counts.
    pub before: Option<usize>,
}

impl Admitted {
    fn is_partial(&self) -> bool {
        self.flags & PARTIAL != 0
    }

    /// As a host is to see it.
    pub(crate) fn completed(&self) -> Vec<u8> {
        if self.is_partial() { completed(&self.bytes) } else { self.bytes.clone() }
    }
}

/// What is to come of the datagrams of one receive.
#[derive(Debug, Default)]
pub(crate) struct Expectation {
    /// In order.
    pub admitted: Vec<Admitted>,
    pub refused: Drops,
    /// Where the datagram before stands, and which admitted packet its last packet frame is.
    last: Option<(Position, Option<usize>)>,
}

impl Expectation {
    /// Adds the next datagram, which arrived with `ecn` in its IP header; its plaintext as it was sealed or as it was opened.
    /// `is_allowed` says whether its peer may use a source. Everything is exposed to it that can be.
    pub(crate) fn add(&mut self, position: Position, ecn: Ecn, plaintext: &[u8], is_allowed: impl Fn(IpAddr) -> bool) {
        let judge =
            |packet: &[u8]| is_of_one(addresses(packet)[1]).then_some(()).ok_or(DropReason::DestinationNotExposed);
        self.add_judged(position, ecn, plaintext, is_allowed, judge);
    }

    /// The same; `policy` says whether the peer may send a whole packet from an allowed source.
    pub(crate) fn add_judged(
        &mut self,
        position: Position,
        ecn: Ecn,
        plaintext: &[u8],
        is_allowed: impl Fn(IpAddr) -> bool,
        mut policy: impl FnMut(&[u8]) -> Result<(), DropReason>,
    ) {
        let (peer, lane, counter) = position;
        let follows = |((last_peer, last_lane, last_counter), _): &(_, _)| {
            (*last_peer, *last_lane, *last_counter + 1) == (peer, lane, counter)
        };
        let mut before = self.last.filter(follows).and_then(|(_, packet)| packet);
        let mut has_packets = false;
        for frame in frames(plaintext) {
            let judged = judge(frame, ecn as u8, &is_allowed);
            match judged.and_then(|(flags, bytes)| policy(&bytes).map(|()| (flags, bytes))) {
                Ok((flags, bytes)) => {
                    self.admitted.push(Admitted { peer, flags, bytes, before });
                    before = Some(self.admitted.len() - 1);
                }
                Err(reason) => {
                    *self.refused.entry(reason).or_default() += 1;
                    before = None;
                }
            }
            has_packets = true;
        }
        self.last = Some(((peer, lane, counter), before.filter(|_| has_packets)));
    }

    /// Checks that TUN writes bring a host what was admitted, once each, in order and unchanged, and returns it with who
    /// sent it. `superpackets` is what the TUN takes. From a queue that stands, one packet may have been `lost` for that,
    /// and others be marked.
    pub(crate) fn check(
        &self,
        writes: &[Vec<u8>],
        superpackets: &[TransportProtocol],
        standing: bool,
        mut lost: u64,
    ) -> Result<Vec<(PeerId, Vec<u8>)>, String> {
        let (mut next, mut delivered) = (0, Vec::new());
        for write in writes {
            let packets = take(write, superpackets).map_err(|reason| format!("{reason}: {}", shown(write)))?;
            let mut joined_to = None;
            for packet in &packets {
                let of = Joint { joined: packets.len() > 1, to: joined_to, standing };
                while lost > 0 && !self.is_delivered(next, &of, packet) {
                    (next, lost) = (next + 1, lost - 1);
                }
                if !self.is_delivered(next, &of, packet) {
                    let expected = self.admitted.get(next).map(|admitted| (admitted.flags, shown(&admitted.bytes)));
                    return Err(format!("{of:?} {} is not {expected:?}", shown(packet)));
                }
                delivered.push((self.admitted[next].peer, packet.clone()));
                joined_to = Some(next);
                next += 1;
            }
        }
        let missing = self.admitted.len() - next;
        if missing as u64 == lost { Ok(delivered) } else { Err(format!("{missing} packets are missing")) }
    }

    /// Whether `packet` is what has to become of the admitted packet `index`.
    fn is_delivered(&self, index: usize, of: &Joint, packet: &[u8]) -> bool {
        let Some(admitted) = self.admitted.get(index) else { return false };
        let mut expected = admitted.completed();
        if !of.joined {
            return expected == packet;
        }
        let may_join = of.to.is_none_or(|to| {
            let continues = admitted.flags & CONTINUES != 0 && admitted.before == Some(to);
            self.admitted[to].is_partial() && (continues || is_atomic(&admitted.bytes))
        });
        let mut packet = packet.to_vec();
        if of.standing && ecn(&expected) != 0 && ecn(&packet) == 3 {
            mark_congestion(&mut expected);
        }
        if is_v4(&packet) {
            for header in [&mut expected, &mut packet] {
                // What a kernel computes anew.
                set_field(header, 10, 0);
                if of.to.is_some() {
                    set_field(header, 4, 0);
                }
            }
        }
        admitted.is_partial() && may_join && expected == packet
    }
}

/// How a packet stands in its write.
#[derive(Debug)]
struct Joint {
    /// There are others.
    joined: bool,
    /// Which admitted packet is in front of it.
    to: Option<usize>,
    /// Its queue stands.
    standing: bool,
}

/// The packets of a write to a TUN that takes these superpackets; a plain TUN takes packets without a virtio header.
fn take(write: &[u8], superpackets: &[TransportProtocol]) -> Result<Vec<Vec<u8>>, &'static str> {
    if superpackets.is_empty() {
        return Ok(vec![write.to_vec()]);
    }
    let packets = kernel::take(write)?;
    let packet = &write[kernel::HEADER_LEN..];
    let has_header = |byte: &u8| *byte != 0;
    if write[..kernel::HEADER_LEN].iter().any(has_header) {
        let protocol = direct_transport(packet).ok_or("an open checksum without a transport header")?;
        let field = |at: usize| usize::from(u16::from_ne_bytes([write[at], write[at + 1]]));
        if (field(6), field(8)) != (protocol.start, protocol.checksum_offset()) {
            return Err("an open checksum at the wrong place");
        }
    }
    let is_superpacket = write[1] != 0;
    let is_tcp = matches!(write[1] & 0x7f, 1 | 4);
    let protocol = if is_tcp { TransportProtocol::Tcp } else { TransportProtocol::Udp };
    if is_superpacket && !superpackets.contains(&protocol) {
        return Err("a superpacket that the TUN does not take");
    }
    if is_superpacket != (packets.len() > 1) {
        return Err("a superpacket of one packet");
    }
    Ok(packets)
}

/// The headers, and some payload.
fn shown(bytes: &[u8]) -> String {
    format!("{} bytes {:02x?}", bytes.len(), &bytes[..bytes.len().min(100)])
}

/// A packet frame, or what is in the place of a frame.
enum Frame<'a> {
    Packet(u8, &'a [u8]),
    Malformed,
    /// The remainder, which is not read any more.
    Rest,
}

/// The frames of a plaintext, without those that bring no packet.
fn frames(plaintext: &[u8]) -> Vec<Frame<'_>> {
    let (mut frames, mut rest, mut wasted) = (Vec::new(), plaintext, 0);
    while rest.len() >= 4 && rest[0] != 0 {
        let (kind, flags, length) = (rest[0], rest[1], usize::from(u16::from_le_bytes([rest[2], rest[3]])));
        let Some(body) = rest[4..].get(..length) else {
            frames.push(Frame::Malformed);
            break;
        };
        wasted += usize::from(kind == 2 || kind == 1 && (length < 20 || flags > PARTIAL | CONTINUES));
        if wasted > 16 {
            frames.push(Frame::Rest);
            break;
        }
        match kind {
            1 if flags <= PARTIAL | CONTINUES => frames.push(Frame::Packet(flags, body)),
            1 => frames.push(Frame::Malformed),
            2 if body.is_empty() || (matches!(body[0], 1 | 2 | 4) && body.len() < 9) => frames.push(Frame::Malformed),
            _ => {}
        }
        rest = &rest[4 + length..];
    }
    frames
}

fn judge(frame: Frame<'_>, ecn: u8, is_allowed: &impl Fn(IpAddr) -> bool) -> Result<(u8, Vec<u8>), DropReason> {
    let (flags, bytes) = match frame {
        Frame::Packet(flags, bytes) => (flags, bytes),
        Frame::Malformed => return Err(DropReason::MalformedFrame),
        Frame::Rest => return Err(DropReason::ControlLimit),
    };
    let bytes = decapsulated(bytes, ecn).ok_or(DropReason::CongestionExperienced)?;
    if !is_whole(&bytes) {
        return Err(DropReason::MalformedPacket);
    }
    if !is_allowed(addresses(&bytes)[0]) {
        return Err(DropReason::SourceNotAllowed);
    }
    if flags & PARTIAL != 0 && direct_transport(&bytes).is_none() {
        return Err(DropReason::MalformedPacket);
    }
    Ok((flags, bytes))
}
