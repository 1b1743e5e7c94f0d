//! Rebuilds superpackets: a run of opened packets that the sender cut from one superpacket becomes one TUN write, whose
//! payloads are gathered from where they were opened, without a copy and without reading them.
//!
//! The bytes are the peer's, the peer may be hostile: a packet joins a train only if its header says that it could have
//! been cut from it, and every length written is computed here. What does not fit is delivered alone.

use std::io::{self, IoSlice};

use crate::packet::checksum;
use crate::packet::ip::{IpPacket, Transport, TransportProtocol};
use crate::packet::tcp::{TCP_ACK, TCP_CWR, TCP_ECE, TCP_FIN, TCP_PSH};
use crate::packet::traffic_class::{Ecn, set_ecn};

use super::segment::{length_field, set_ip_length};
use super::tun::Offload;
use super::virtio::{Segmentation, VirtioHeader};

/// Packets of the longest train: UDP_GRO gives at most 64 datagrams at once (`UDP_GRO_CNT_MAX` in the kernel).
const MAX_PACKETS: usize = 64;
/// The longest IP and TCP header together: IPv4 with options.
const MAX_HEADERS_LEN: usize = 120;
/// The longest superpacket: what an IPv4 length field holds.
const MAX_SUPERPACKET_LEN: usize = 65_535;

/// Packets that are waiting to be written to the TUN together.
#[derive(Debug)]
pub(super) struct Train<'b> {
    offload: Offload,
    first: Option<First<'b>>,
    /// The payloads, the first packet's too; used up to `packets`.
    payloads: [IoSlice<'b>; MAX_PACKETS],
    packets: usize,
    payload_len: usize,
    /// FIN and PSH of the last packet.
    last_flags: u8,
    /// Set once a packet was the last of its superpacket: shorter than the others, or with FIN or PSH.
    complete: bool,
    congestion_experienced: bool,
}

#[derive(Debug, Clone, Copy)]
struct First<'b> {
    packet: IpPacket<'b>,
    /// The header of a packet with a partial checksum; `None` for one that is whole as it is.
    partial: Option<Transport>,
}

impl<'b> Train<'b> {
    /// Without any packet. `offload` says what the TUN takes.
    pub(super) fn new(offload: Offload) -> Self {
        Self {
            offload,
            first: None,
            payloads: [IoSlice::new(&[]); MAX_PACKETS],
            packets: 0,
            payload_len: 0,
            last_flags: 0,
            complete: true,
            congestion_experienced: false,
        }
    }

    /// How many packets are waiting.
    pub(super) fn packets(&self) -> usize {
        self.packets
    }

    /// Begins with `packet`; the train must be empty. A partial checksum without a TCP or UDP header to compute it for
    /// is taken as whole.
    pub(super) fn start(&mut self, packet: IpPacket<'b>, checksum_partial: bool) {
        debug_assert_eq!(self.packets, 0);
        let partial = if checksum_partial { packet.transport() } else { None };
        self.packets = 1;
        self.complete = true;
        self.congestion_experienced = false;
        if let Some(transport) = partial {
            self.begin_payload(&packet, transport);
        }
        self.first = Some(First { packet, partial });
    }

    fn begin_payload(&mut self, packet: &IpPacket<'b>, transport: Transport) {
        let (headers, payload) = packet.bytes().split_at(transport.payload_start);
        self.payloads[0] = IoSlice::new(payload);
        self.payload_len = payload.len();
        let header = &headers[transport.start..];
        let extendable = match transport.protocol {
            TransportProtocol::Tcp => header[13] & !(TCP_ACK | TCP_CWR | TCP_ECE) == 0,
            TransportProtocol::Udp => header[4..6] == length_field(packet.bytes().len() - transport.start),
        };
        self.last_flags = 0;
        self.complete = !extendable || payload.is_empty() || segmentation(self.offload, packet, transport).is_none();
    }

    /// Has the superpacket say that it met congestion; `false` if its flow would not understand.
    pub(super) fn mark_congestion(&mut self) -> bool {
        let is_capable = |first: First<'_>| first.packet.traffic_class().ecn() != Ecn::NotEct;
        self.congestion_experienced = self.first.is_some_and(is_capable);
        self.congestion_experienced
    }

    /// Takes `packet`, partial and flagged as continuing the one before it, if it can have been cut from the same
    /// superpacket. Otherwise the caller writes the train and starts the next with it.
    pub(super) fn append(&mut self, packet: &IpPacket<'b>) -> bool {
        let Some(First { packet: first, partial: Some(transport) }) = self.first else { return false };
        if self.complete || self.packets == MAX_PACKETS || packet.transport() != Some(transport) {
            return false;
        }
        let (headers, payload) = packet.bytes().split_at(transport.payload_start);
        let total = transport.payload_start + self.payload_len + payload.len();
        let fits = !payload.is_empty() && payload.len() <= self.payloads[0].len() && total <= MAX_SUPERPACKET_LEN;
        let first_headers = &first.bytes()[..transport.payload_start];
        if !fits || !is_cut_from(first_headers, headers, transport, self.payload_len, packet.bytes().len()) {
            return false;
        }
        self.payloads[self.packets] = IoSlice::new(payload);
        self.packets += 1;
        self.payload_len += payload.len();
        if transport.protocol == TransportProtocol::Tcp {
            self.last_flags = headers[transport.start + 13] & (TCP_FIN | TCP_PSH);
        }
        self.complete = payload.len() < self.payloads[0].len() || self.last_flags != 0;
        true
    }

    /// Hands the waiting packets, if any, to `write` as the parts of one TUN write, and is empty again.
    pub(super) fn deliver(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<()>) -> io::Result<()> {
        let Some(First { packet, partial }) = self.first.take() else { return Ok(()) };
        let packets = std::mem::take(&mut self.packets);
        match partial {
            Some(transport) if packets > 1 => self.write_superpacket(&packet, transport, packets, write),
            Some(transport) => write_partial(self.offload, &packet, transport, write),
            None => write_whole(self.offload, packet.bytes(), write),
        }
    }

    fn write_superpacket(
        &self,
        packet: &IpPacket<'_>,
        transport: Transport,
        packets: usize,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut headers = [0; MAX_HEADERS_LEN];
        let headers = &mut headers[..transport.payload_start];
        headers.copy_from_slice(&packet.bytes()[..transport.payload_start]);
        self.merge_headers(packet, transport, headers);
        let is_tcp = transport.protocol == TransportProtocol::Tcp;
        let virtio = VirtioHeader {
            segmentation: segmentation(self.offload, packet, transport).expect("checked when the train began"),
            ecn: is_tcp && headers[transport.start + 13] & TCP_CWR != 0,
            header_len: field(transport.payload_start),
            segment_size: field(self.payloads[0].len()),
            ..partial_header(transport)
        };
        let virtio = virtio.encode();
        let mut parts = [IoSlice::new(&[]); MAX_PACKETS + 2];
        parts[0] = IoSlice::new(&virtio);
        parts[1] = IoSlice::new(headers);
        parts[2..2 + packets].copy_from_slice(&self.payloads[..packets]);
        write(&parts[..2 + packets])
    }

    /// Turns the first packet's headers into the superpacket's.
    fn merge_headers(&self, packet: &IpPacket<'_>, transport: Transport, headers: &mut [u8]) {
        let transport_len = transport.payload_start - transport.start + self.payload_len;
        let (ip, header) = headers.split_at_mut(transport.start);
        if self.congestion_experienced {
            set_ecn(ip, Ecn::Ce);
        }
        set_ip_length(ip, transport.start + transport_len);
        match transport.protocol {
            TransportProtocol::Tcp => header[13] |= self.last_flags,
            TransportProtocol::Udp => header[4..6].copy_from_slice(&length_field(transport_len)),
        }
        let length = u32::from(u16::from_be_bytes(length_field(transport_len)));
        let sum = checksum::pseudo_header(packet.source(), packet.destination(), packet.protocol(), length);
        let at = transport.protocol.checksum_offset();
        header[at..at + 2].copy_from_slice(&checksum::fold(sum).to_be_bytes());
    }
}

/// How the kernel would cut a superpacket that begins with this packet; `None` if the TUN does not take it.
fn segmentation(offload: Offload, packet: &IpPacket<'_>, transport: Transport) -> Option<Segmentation> {
    match (offload, transport.protocol) {
        (Offload::Tcp | Offload::TcpAndUdp, TransportProtocol::Tcp) if packet.source().is_ipv4() => {
            Some(Segmentation::TcpV4)
        }
        (Offload::Tcp | Offload::TcpAndUdp, TransportProtocol::Tcp) => Some(Segmentation::TcpV6),
        (Offload::TcpAndUdp, TransportProtocol::Udp) => Some(Segmentation::Udp),
        (Offload::None, _) | (Offload::Tcp, TransportProtocol::Udp) => None,
    }
}

/// Whether `headers` differ from the first packet's only in what cutting changes; `offset` is how much payload lies
/// between the two, `packet_len` the length of the packet behind `headers`.
fn is_cut_from(first: &[u8], headers: &[u8], transport: Transport, offset: usize, packet_len: usize) -> bool {
    let (first_ip, first_transport) = first.split_at(transport.start);
    let (ip, header) = headers.split_at(transport.start);
    let same_ip = match ip[0] >> 4 {
        // All but the total length, the identification and the header checksum.
        4 => first_ip[..2] == ip[..2] && first_ip[6..10] == ip[6..10] && first_ip[12..] == ip[12..],
        // All but the payload length.
        _ => first_ip[..4] == ip[..4] && first_ip[6..] == ip[6..],
    };
    same_ip
        && match transport.protocol {
            TransportProtocol::Tcp => is_next_tcp_header(first_transport, header, offset),
            TransportProtocol::Udp => {
                first_transport[..4] == header[..4] && header[4..6] == length_field(packet_len - transport.start)
            }
        }
}

fn is_next_tcp_header(first: &[u8], header: &[u8], offset: usize) -> bool {
    let sequence = |tcp: &[u8]| u32::from_be_bytes(tcp[4..8].try_into().expect("four bytes"));
    let offset = u32::try_from(offset).expect("a superpacket is shorter than 64 KiB");
    first[..4] == header[..4]
        && sequence(header) == sequence(first).wrapping_add(offset)
        && first[8..13] == header[8..13]
        && first[13] & !TCP_CWR == header[13] & !(TCP_FIN | TCP_PSH)
        && first[14..16] == header[14..16]
        && first[18..] == header[18..]
}

fn partial_header(transport: Transport) -> VirtioHeader {
    VirtioHeader {
        needs_checksum: true,
        checksum_start: field(transport.start),
        checksum_offset: field(transport.protocol.checksum_offset()),
        ..VirtioHeader::PLAIN
    }
}

fn field(value: usize) -> u16 {
    u16::try_from(value).expect("offsets and lengths within an IP packet fit 16 bits")
}

/// One packet whose checksum the kernel finishes, or we do if the TUN has no header to ask for it in.
fn write_partial(
    offload: Offload,
    packet: &IpPacket<'_>,
    transport: Transport,
    write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    // The sum in the packet is the sender's word; a wrong one would let the kernel pass on what it takes for verified.
    let sum = packet.pseudo_header_sum();
    let (before, rest) = packet.bytes().split_at(transport.checksum_at());
    let after = &rest[2..];
    if offload == Offload::None {
        let checksum = checksum::finish(checksum::add(sum, &before[transport.start..]), after);
        let checksum = if checksum == 0 { 0xffff } else { checksum }.to_be_bytes();
        return write(&[IoSlice::new(before), IoSlice::new(&checksum), IoSlice::new(after)]);
    }
    let virtio = partial_header(transport).encode();
    let sum = checksum::fold(sum).to_be_bytes();
    write(&[IoSlice::new(&virtio), IoSlice::new(before), IoSlice::new(&sum), IoSlice::new(after)])
}

/// One packet that is complete as it is.
pub(super) fn write_whole(
    offload: Offload,
    bytes: &[u8],
    write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    if offload == Offload::None {
        return write(&[IoSlice::new(bytes)]);
    }
    write(&[IoSlice::new(&VirtioHeader::PLAIN.encode()), IoSlice::new(bytes)])
}

#[cfg(test)]
mod tests;
