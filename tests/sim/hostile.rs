//! What a node does that has been broken into: it has a session, and seals what no honest one would.

use std::net::IpAddr;

use underpass::dataplane::testing;
use underpass::packet::traffic_class::Ecn;
use underpass::proto::error::DropReason;
use underpass::proto::stats::DropCounters;

use crate::inner_packet::{Burst, Flow, number_of};
use crate::network::Datagram;
use crate::node::inner_addresses;
use crate::reference::{Checked, SentPacket, Violation, ensure};
use crate::simulation::{Simulation, hash};
use crate::twin::delivery::{CONTINUES, Expectation, PARTIAL, counted};
use crate::twin::packet::{completed, field, is_v4, set_field};

/// How an honest train is spoilt, at one of its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostileKind {
    /// Any byte of its headers is another.
    Header,
    /// Its source is a third node's, or nobody's.
    Source,
    /// Bytes are missing at its end.
    CutShort,
    /// Bytes are added to its payload, and its headers say so.
    Longer,
    /// Its frame has flags that are not defined.
    UnknownFlags,
    /// Its checksum is said to be complete, and it to continue.
    NotPartial,
    /// Every packet is said to continue the one before, the first too.
    AllContinue,
    /// It and another are in each other's place.
    Exchanged,
    /// Its frame is longer than what is left.
    FrameTooLong,
    /// Frames of other kinds are before it, among them malformed ones.
    OtherFrames,
    /// What follows it is called padding.
    Padding,
}

impl HostileKind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Header,
        Self::Source,
        Self::CutShort,
        Self::Longer,
        Self::UnknownFlags,
        Self::NotPartial,
        Self::AllContinue,
        Self::Exchanged,
        Self::FrameTooLong,
        Self::OtherFrames,
        Self::Padding,
    ];
}

/// Packets of a train before it is spoilt.
const SEGMENTS: usize = 8;
const SEGMENT_LEN: usize = 100;

/// A ping without its whole token, a control frame without a type, an unknown type and an unknown kind.
const OTHER_FRAMES: [u8; 20] = [2, 0, 2, 0, 1, 7, 2, 0, 0, 0, 2, 0, 1, 0, 200, 77, 5, 1, 0, 9];

/// A packet frame on its way into a datagram.
#[derive(Clone)]
struct Frame {
    flags: u8,
    /// What stands before it.
    before: Vec<u8>,
    /// What its header adds to its length.
    overstated: usize,
    packet: Vec<u8>,
}

/// A node before it takes what a hostile peer sealed.
pub(crate) struct Before {
    ecn: Ecn,
    plaintext: Vec<u8>,
    peer: usize,
    drops: DropCounters,
    deliveries: u64,
    others: Vec<String>,
}

impl Simulation {
    /// Has `from` seal a train for `to` that is spoilt.
    pub(crate) fn send_hostile(&mut self, from: usize, to: usize, kind: HostileKind) -> Checked {
        let is_tcp = self.random.chance(50);
        let flow = self.flow(from, to, is_tcp);
        let first = self.ledger.next_number();
        let mut frames = honest_train(&flow, first);
        self.spoil(kind, from, &mut frames);
        let leads_to = self.nodes[from].leads_to(flow.destination);
        for number in first..first + SEGMENTS as u64 {
            let of_number = |frame: &&Frame| number_of(&frame.packet) == Some(number);
            let bytes = frames.iter().find(of_number).map(|frame| match frame.flags & PARTIAL {
                0 => frame.packet.clone(),
                _ => completed(&frame.packet),
            });
            let bytes = bytes.unwrap_or_default();
            let leads_to = leads_to.clone();
            self.ledger.record(SentPacket { from, leads_to, flow: None, bytes, delivered_at: None });
        }
        let lane = self.random.below(4) as u8;
        let per_datagram = 1 + self.random.below(SEGMENTS);
        for frames in frames.chunks(per_datagram) {
            let plaintext: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            if let Some(datagram) = self.nodes[from].seal(self.now, lane, flow.destination, &plaintext) {
                self.hostile.insert(hash(&datagram), (from, plaintext));
            }
        }
        self.trace(|| format!("node {from} seals a train with {kind:?} for node {to}"));
        self.collect(from)
    }

    fn spoil(&mut self, kind: HostileKind, from: usize, frames: &mut [Frame]) {
        let random = &mut self.random;
        let other = random.below(SEGMENTS);
        let stranger = (from + 1 + random.below(self.nodes.len())) % (self.nodes.len() + 1);
        let at = random.below(SEGMENTS);
        let frame = &mut frames[at];
        let packet = &mut frame.packet;
        match kind {
            HostileKind::Header => {
                let headers_len = packet.len() - SEGMENT_LEN;
                packet[random.below(headers_len)] ^= 1 << random.below(8);
            }
            HostileKind::Source => {
                let [v4, v6] = inner_addresses(stranger);
                match (is_v4(packet), v4, v6) {
                    (true, IpAddr::V4(source), _) => packet[12..16].copy_from_slice(&source.octets()),
                    (false, _, IpAddr::V6(source)) => packet[8..24].copy_from_slice(&source.octets()),
                    _ => unreachable!("the first is of IPv4, the second of IPv6"),
                }
            }
            HostileKind::CutShort => packet.truncate(1 + random.below(packet.len() - 1)),
            HostileKind::Longer => {
                let behind = packet.len() - 8;
                // So that all still fit one datagram.
                let more = 1 + random.below(40);
                packet.splice(behind..behind, vec![0x5a; more]);
                let at = if is_v4(packet) { 2 } else { 4 };
                let length = field(packet, at) + more;
                set_field(packet, at, length);
            }
            HostileKind::UnknownFlags => frame.flags |= 4 << random.below(6),
            HostileKind::NotPartial => frame.flags = CONTINUES,
            HostileKind::AllContinue => frames.iter_mut().for_each(|frame| frame.flags |= CONTINUES),
            HostileKind::Exchanged => frames.swap(at, other),
            HostileKind::FrameTooLong => frame.overstated = 2000,
            HostileKind::OtherFrames => frame.before = OTHER_FRAMES.to_vec(),
            HostileKind::Padding => frame.before = vec![0; 1 + random.below(9)],
        }
    }

    /// A node without workers before it takes what a hostile peer sealed: those with workers check every datagram.
    pub(crate) fn before_hostile(&self, node: usize, datagram: &Datagram) -> Option<Before> {
        let receiver = &self.nodes[node];
        let (peer, plaintext) = self.hostile.get(&hash(&datagram.payload)).filter(|_| receiver.workers.is_empty())?;
        Some(Before {
            ecn: datagram.ecn,
            plaintext: plaintext.clone(),
            peer: *peer,
            drops: receiver.device.status(self.now).drops,
            deliveries: self.ledger.deliveries(),
            others: self.others(node, *peer),
        })
    }

    /// What is malformed is dropped and counted, what is not is delivered, and nothing else changes for anybody else.
    pub(crate) fn check_hostile(
        &self,
        node: usize,
        outcome: Result<(), DropReason>,
        before: Before,
    ) -> Result<(), Violation> {
        let receiver = &self.nodes[node];
        let mut expectation = Expectation::default();
        if let (Ok(()), Some(known)) = (outcome, receiver.peers.get(&before.peer)) {
            let owns = |source| receiver.allowed.lookup(source) == Some(before.peer);
            expectation.add((known.id, 0, 0), before.ecn, &before.plaintext, owns);
        }
        let mut drops = counted(&before.drops, &receiver.device.status(self.now).drops);
        if let Err(reason) = outcome {
            drops.remove(&reason);
        }
        ensure!(drops == expectation.refused, "{drops:?} were counted, not {:?}", expectation.refused);
        let delivered = self.ledger.deliveries() - before.deliveries;
        ensure!(
            delivered == expectation.admitted.len() as u64,
            "{delivered} packets were delivered, not {}",
            expectation.admitted.len()
        );
        let others = self.others(node, before.peer);
        ensure!(others == before.others, "a hostile peer changed {:?} to {others:?}", before.others);
        Ok(())
    }

    /// The state of all peers but one.
    fn others(&self, node: usize, peer: usize) -> Vec<String> {
        let key = self.nodes[node].peers.get(&peer).map(|known| known.config.public_key);
        let peers = self.nodes[node].device.status(self.now).peers;
        peers.iter().filter(|status| Some(status.public_key) != key).map(|status| format!("{status:?}")).collect()
    }
}

/// A superpacket as an honest node cuts it.
fn honest_train(flow: &Flow, first: u64) -> Vec<Frame> {
    let burst = Burst { segments: SEGMENTS, length: SEGMENT_LEN, last: SEGMENT_LEN, is_partial: true };
    let mut frames = Vec::new();
    testing::cut(&mut flow.read(first, burst), &mut [0; 200], |flags, packet| {
        frames.push(Frame { flags, before: Vec::new(), overstated: 0, packet: packet.to_vec() });
    })
    .expect("a kernel's own");
    frames
}

impl Frame {
    fn encode(&self) -> Vec<u8> {
        let length = (self.packet.len() + self.overstated) as u16;
        [&self.before[..], &[1, self.flags], &length.to_le_bytes(), &self.packet].concat()
    }
}
