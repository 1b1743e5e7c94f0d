//! TCP's acknowledgements in one drain of the TUN, of which those are left out that a later packet of the drain repeats.
//!
//! A receiver of bulk data acknowledges every superpacket, and one that answers acknowledges twice: at once, and with the
//! answer. A worker that was busy meanwhile finds several together, each of which costs a write and a pass through TCP at the
//! other side. An acknowledgement is cumulative, so the last says all (RFC 9293 §3.8.6; RFC 3449 §5.2.3 calls this filtering).
//!
//! Nothing waits beyond the end of its drain. Packets that say anything else are never left out: payload, flags, options but
//! time stamps (so SACK). Nor is what may be a duplicate acknowledgement, which TCP counts (RFC 5681 §3.2).

use crate::packet::ip::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, TransportProtocol};
use crate::packet::tcp::{
    TCP_ACK, TCP_ACKNOWLEDGEMENT, TCP_AE, TCP_CWR, TCP_DATA_OFFSET, TCP_ECE, TCP_FIN, TCP_FLAGS, TCP_HEADER_LEN,
    TCP_OPTION_NONE, TCP_OPTION_TIMESTAMPS, TCP_PSH, TCP_RST, TCP_SYN, TCP_URG,
};
use crate::packet::traffic_class::Ecn;

use super::virtio::{Segmentation, VirtioHeader};

/// Flows whose acknowledgement may be held at one time; those of more are not.
const MAX_HELD: usize = 64;
/// The longest that is held: an IPv6 and a TCP header with time stamps.
const MAX_LEN: usize = 72;
/// Flows whose last acknowledgement number is remembered: a power of two. Those that share an entry are left alone.
const REMEMBERED: usize = 1024;
/// The options of a header with nothing but time stamps (RFC 7323 appendix A): two fillers, the kind, the length.
const TIMESTAMPS: [u8; 4] = [TCP_OPTION_NONE, TCP_OPTION_NONE, TCP_OPTION_TIMESTAMPS, 10];
const TIMESTAMPS_LEN: usize = 12;

/// The acknowledgements of one lane's drains.
#[derive(Debug)]
pub(super) struct Acknowledgements {
    /// Of the drain under way, in the order in which they were read.
    held: Vec<Held>,
    remembered: Box<[Remembered]>,
}

/// An acknowledgement that leaves at the end of the drain, if nothing repeats it before.
#[derive(Debug, Clone, Copy)]
struct Held {
    segment: Segment,
    header: VirtioHeader,
    bytes: [u8; MAX_LEN],
    len: usize,
}

/// A packet of TCP, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    flow: Flow,
    /// None in the first packet of a connection.
    acknowledgement: Option<u32>,
    /// The bits in which TCP tells of congestion (RFC 3168, RFC 9768).
    marks: (u8, u8),
    /// Nothing but the acknowledgement is said.
    is_pure: bool,
    /// Neither opens nor breaks a connection.
    is_plain: bool,
}

/// A direction of a TCP connection: addresses, of which those of IPv4 fill a part, and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow([u8; 36]);

/// The last acknowledgement of a flow.
#[derive(Debug, Clone, Copy, Default)]
struct Remembered {
    /// [`Flow::digest`]; 0 stands for none.
    flow: u64,
    acknowledgement: Option<u32>,
}

impl Acknowledgements {
    /// Allocates all that it will ever need.
    pub(super) fn new() -> Self {
        Self { held: Vec::with_capacity(MAX_HELD), remembered: vec![Remembered::default(); REMEMBERED].into() }
    }

    /// Takes up a packet, whose checksum may be left partial, and calls `forward` with what is to leave now, in this order.
    pub(super) fn take(
        &mut self,
        header: &VirtioHeader,
        bytes: &mut [u8],
        mut forward: impl FnMut(&VirtioHeader, &mut [u8]),
    ) {
        let Some(segment) = Segment::read(header, bytes) else { return forward(header, bytes) };
        let is_news = self.remember(&segment);
        if let Some(index) = self.held.iter().position(|held| held.segment.flow == segment.flow) {
            let mut held = self.held.swap_remove(index);
            if !segment.repeats(&held.segment) {
                forward(&held.header, &mut held.bytes[..held.len]);
            }
        }
        match Held::new(segment, header, bytes) {
            Some(held) if is_news && self.held.len() < MAX_HELD => self.held.push(held),
            _ => forward(header, bytes),
        }
    }

    /// Ends the drain: calls `forward` with what is still held.
    pub(super) fn finish(&mut self, mut forward: impl FnMut(&VirtioHeader, &mut [u8])) {
        for mut held in self.held.drain(..) {
            forward(&held.header, &mut held.bytes[..held.len]);
        }
    }

    /// Remembers what the flow acknowledges, and tells whether it is known to be more than before.
    fn remember(&mut self, segment: &Segment) -> bool {
        let digest = segment.flow.digest();
        let entry = &mut self.remembered[digest as usize % REMEMBERED];
        let is_known = entry.flow == digest;
        let is_after_last = |new| entry.acknowledgement.is_none_or(|old| is_after(new, old));
        let is_news = is_known && segment.acknowledgement.is_some_and(is_after_last);
        // What was overtaken on its way here is not the last. A connection that begins has another way to count.
        if is_news || !is_known || !segment.is_plain {
            *entry = Remembered { flow: digest, acknowledgement: segment.acknowledgement };
        }
        is_news
    }
}

impl Held {
    /// `None` if it says more than what can be left out.
    fn new(segment: Segment, header: &VirtioHeader, packet: &[u8]) -> Option<Self> {
        let len = packet.len();
        let mut bytes = [0; MAX_LEN];
        bytes.get_mut(..len).filter(|_| segment.is_pure)?.copy_from_slice(packet);
        Some(Self { segment, header: *header, bytes, len })
    }
}

impl Segment {
    /// `None` of what is not TCP, or not whole.
    fn read(header: &VirtioHeader, bytes: &[u8]) -> Option<Self> {
        let packet = IpPacket::parse(bytes).ok()?;
        let transport = packet.transport().filter(|transport| transport.protocol == TransportProtocol::Tcp)?;
        let (tcp, payload) = bytes[transport.start..].split_at(transport.payload_start - transport.start);
        let flags = tcp[TCP_FLAGS];
        let number = tcp[TCP_ACKNOWLEDGEMENT..].first_chunk().map(|number| u32::from_be_bytes(*number));
        let has_only_timestamps =
            tcp.len() == TCP_HEADER_LEN + TIMESTAMPS_LEN && tcp[TCP_HEADER_LEN..].starts_with(&TIMESTAMPS);
        let is_single = header.segmentation == Segmentation::None;
        Some(Self {
            flow: Flow::of(&packet, tcp),
            acknowledgement: number.filter(|_| flags & TCP_ACK != 0),
            marks: (flags & (TCP_ECE | TCP_CWR), tcp[TCP_DATA_OFFSET] & TCP_AE),
            is_pure: is_single
                && payload.is_empty()
                && flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_PSH | TCP_ACK | TCP_URG) == TCP_ACK
                && (tcp.len() == TCP_HEADER_LEN || has_only_timestamps)
                && packet.traffic_class().ecn() != Ecn::Ce,
            is_plain: flags & (TCP_SYN | TCP_RST) == 0,
        })
    }

    /// Whether it says all that `earlier` does, a pure acknowledgement of the same flow. A pure one with the same number says
    /// something else: a duplicate, or another window.
    fn repeats(&self, earlier: &Segment) -> bool {
        let (Some(new), Some(old)) = (self.acknowledgement, earlier.acknowledgement) else { return false };
        self.is_plain && self.marks == earlier.marks && (is_after(new, old) || new == old && !self.is_pure)
    }
}

impl Flow {
    fn of(packet: &IpPacket<'_>, tcp: &[u8]) -> Self {
        // Both addresses end the header that every packet of the family has.
        let addresses = if packet.source().is_ipv4() { 12..IPV4_HEADER_LEN } else { 8..IPV6_HEADER_LEN };
        let mut flow = [0; 36];
        let (ports, rest) = flow.split_at_mut(4);
        ports.copy_from_slice(&tcp[..4]);
        rest[..addresses.len()].copy_from_slice(&packet.bytes()[addresses]);
        Self(flow)
    }

    /// A number that few flows share. Nothing is wrong where two do: less is left out.
    fn digest(&self) -> u64 {
        let words = self.0.chunks_exact(4).map(|word| u64::from(u32::from_ne_bytes(word.try_into().expect("4 bytes"))));
        words.fold(0, |digest, word| (digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31))
    }
}

/// Whether one sequence number is after another (RFC 9293 §3.4).
fn is_after(new: u32, old: u32) -> bool {
    new != old && new.wrapping_sub(old) < 1 << 31
}

#[cfg(test)]
mod tests;
