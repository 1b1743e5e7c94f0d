//! Rebuilds superpackets: a run of opened packets that the sender cut from one superpacket becomes one TUN write, whose
//! payloads are gathered from where they were opened, without a copy and without reading them.
//!
//! The bytes are the peer's, the peer may be hostile: a packet joins a train only if its header says that it could have
//! been cut from it, and every length written is computed here. What does not fit is delivered alone.
//!
//! Packets in a tunnel that ends on this machine are joined as a network card's GRO would join them, whether they are
//! flagged or not: here the payload is read, since the kernel takes a superpacket for intact, and the sender's flags say
//! nothing of what is inside.

use std::io::{self, IoSlice};

use crate::packet::checksum;
use crate::packet::ip::{IpPacket, Transport, TransportProtocol};
use crate::packet::tcp::{TCP_ACK, TCP_CWR, TCP_ECE, TCP_FIN, TCP_PSH};
use crate::packet::traffic_class::{Ecn, set_ecn};
use crate::packet::tunnel::Tunnelled;

use super::segment::{length_field, set_ip_length};
use super::tun::Offload;
use super::virtio::{Segmentation, TunnelHeader, VirtioHeader};

/// Packets of the longest train: UDP_GRO gives at most 64 datagrams at once (`UDP_GRO_CNT_MAX` in the kernel).
const MAX_PACKETS: usize = 64;
/// The longest headers of a packet that begins a train: IPv4 and TCP with all options have 120 bytes; in a tunnel IPv6, UDP,
/// Geneve with 64 bytes of options, Ethernet, IPv6 and TCP with all options have 234.
const MAX_HEADERS_LEN: usize = 256;
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
    form: Form,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// Whole as it is.
    Whole,
    /// With a partial checksum in this header.
    Partial(Transport),
    /// Of a tunnel, and intact; the checksum in the tunnel's UDP header is partial if so set.
    Tunnelled(Tunnelled, bool),
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
        let partial = if checksum_partial { packet.transport() } else { None };
        self.begin(packet, partial.map_or(Form::Whole, Form::Partial));
        if let Some(transport) = partial {
            self.begin_payload(&packet, transport);
            self.complete |= segmentation(self.offload, packet.source().is_ipv4(), transport.protocol).is_none();
        }
    }

    /// The same with a packet of a tunnel, whose own packet is `tunnelled`.
    pub(super) fn start_tunnelled(&mut self, packet: IpPacket<'b>, tunnelled: Tunnelled, checksum_partial: bool) {
        if tunnelled.transport.payload_start > MAX_HEADERS_LEN || !tunnelled.is_intact(&packet, checksum_partial) {
            return self.start(packet, checksum_partial);
        }
        self.begin(packet, Form::Tunnelled(tunnelled, checksum_partial));
        self.begin_payload(&packet, tunnelled.transport);
    }

    fn begin(&mut self, packet: IpPacket<'b>, form: Form) {
        debug_assert_eq!(self.packets, 0);
        self.packets = 1;
        self.complete = true;
        self.congestion_experienced = false;
        self.first = Some(First { packet, form });
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
        self.complete = !extendable || payload.is_empty();
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
        let Some(First { packet: first, form: Form::Partial(transport) }) = self.first else { return false };
        if self.complete || self.packets == MAX_PACKETS || packet.transport() != Some(transport) {
            return false;
        }
        let headers = &packet.bytes()[..transport.payload_start];
        let first_headers = &first.bytes()[..transport.payload_start];
        if !self.has_room(packet, transport)
            || !is_cut_from(first_headers, headers, transport, self.payload_len, packet.bytes().len())
        {
            return false;
        }
        self.push(packet, transport);
        true
    }

    /// Takes `packet`, flagged or not, if it came by the same tunnel as the first, is intact, and the kernel would cut it
    /// again from a superpacket with those before it. Otherwise the caller writes the train and starts the next with it.
    pub(super) fn append_tunnelled(&mut self, packet: &IpPacket<'b>, checksum_partial: bool) -> bool {
        let Some(First { packet: first, form: Form::Tunnelled(tunnelled, partial) }) = self.first else { return false };
        let Tunnelled { kind, transport, .. } = tunnelled;
        if self.complete
            || self.packets == MAX_PACKETS
            || checksum_partial != partial
            || Tunnelled::find(packet, kind) != Some(tunnelled)
        {
            return false;
        }
        let headers = &packet.bytes()[..transport.payload_start];
        let first_headers = &first.bytes()[..transport.payload_start];
        if !self.has_room(packet, transport)
            || !is_next_in_tunnel(first_headers, headers, tunnelled, self.packets, packet.bytes().len())
            || !is_next_inside(first_headers, headers, tunnelled, self.packets, self.payload_len, packet.bytes().len())
            || !tunnelled.is_intact(packet, partial)
        {
            return false;
        }
        self.push(packet, transport);
        true
    }

    fn has_room(&self, packet: &IpPacket<'_>, transport: Transport) -> bool {
        let payload_len = packet.bytes().len() - transport.payload_start;
        let total = transport.payload_start + self.payload_len + payload_len;
        payload_len > 0 && payload_len <= self.payloads[0].len() && total <= MAX_SUPERPACKET_LEN
    }

    fn push(&mut self, packet: &IpPacket<'b>, transport: Transport) {
        let (headers, payload) = packet.bytes().split_at(transport.payload_start);
        self.payloads[self.packets] = IoSlice::new(payload);
        self.packets += 1;
        self.payload_len += payload.len();
        if transport.protocol == TransportProtocol::Tcp {
            self.last_flags = headers[transport.start + 13] & (TCP_FIN | TCP_PSH);
        }
        self.complete = payload.len() < self.payloads[0].len() || self.last_flags != 0;
    }

    /// Hands the waiting packets, if any, to `write` as the parts of one TUN write, and is empty again.
    pub(super) fn deliver(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<()>) -> io::Result<()> {
        let Some(First { packet, form }) = self.first.take() else { return Ok(()) };
        let packets = std::mem::take(&mut self.packets);
        match form {
            Form::Partial(transport) if packets > 1 => self.write_superpacket(&packet, transport, None, packets, write),
            Form::Tunnelled(tunnelled, _) if packets > 1 => {
                self.write_superpacket(&packet, tunnelled.transport, Some(tunnelled), packets, write)
            }
            Form::Partial(transport) => write_partial(self.offload, &packet, transport, write),
            Form::Tunnelled(_, partial) => match packet.transport().filter(|_| partial) {
                Some(transport) => write_partial(self.offload, &packet, transport, write),
                None => write_whole(self.offload, packet.bytes(), write),
            },
            Form::Whole => write_whole(self.offload, packet.bytes(), write),
        }
    }

    fn write_superpacket(
        &self,
        packet: &IpPacket<'_>,
        transport: Transport,
        tunnelled: Option<Tunnelled>,
        packets: usize,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut headers = [0; MAX_HEADERS_LEN];
        let headers = &mut headers[..transport.payload_start];
        headers.copy_from_slice(&packet.bytes()[..transport.payload_start]);
        self.merge_headers(packet, transport, tunnelled, headers);
        let ip_start = tunnelled.map_or(0, |tunnelled| tunnelled.ip_start);
        let is_tcp = transport.protocol == TransportProtocol::Tcp;
        let virtio = VirtioHeader {
            segmentation: segmentation(self.offload, headers[ip_start] >> 4 == 4, transport.protocol)
                .expect("checked when the train began"),
            ecn: is_tcp && headers[transport.start + 13] & TCP_CWR != 0,
            header_len: field(transport.payload_start),
            segment_size: field(self.payloads[0].len()),
            tunnel: tunnelled.map(|tunnelled| tunnel_header(self.offload, packet, tunnelled)),
            ..partial_header(transport)
        };
        let virtio = virtio.encode_with_tunnel();
        let mut parts = [IoSlice::new(&[]); MAX_PACKETS + 2];
        parts[0] = IoSlice::new(&virtio[..self.offload.header_len()]);
        parts[1] = IoSlice::new(headers);
        parts[2..2 + packets].copy_from_slice(&self.payloads[..packets]);
        write(&parts[..2 + packets])
    }

    /// Turns the first packet's headers into the superpacket's.
    fn merge_headers(
        &self,
        packet: &IpPacket<'_>,
        transport: Transport,
        tunnelled: Option<Tunnelled>,
        headers: &mut [u8],
    ) {
        if self.congestion_experienced {
            set_ecn(headers, Ecn::Ce);
        }
        let len = transport.payload_start + self.payload_len;
        let Some(Tunnelled { udp_start, ip_start, .. }) = tunnelled else {
            return self.merge_packet_headers(packet, 0, transport, len, headers);
        };
        let inner = IpPacket::parse(&packet.bytes()[ip_start..]).expect("it was found in the packet");
        self.merge_packet_headers(&inner, ip_start, transport, len, headers);
        set_ip_length(&mut headers[..udp_start], len);
        let udp = &mut headers[udp_start..];
        udp[4..6].copy_from_slice(&length_field(len - udp_start));
        if udp[6..8] != [0, 0] {
            let sum = superpacket_sum(packet, len - udp_start);
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Merges the headers of `packet`, whose IP header starts at `ip_start`.
    fn merge_packet_headers(
        &self,
        packet: &IpPacket<'_>,
        ip_start: usize,
        transport: Transport,
        len: usize,
        headers: &mut [u8],
    ) {
        let transport_len = len - transport.start;
        let (ip, header) = headers[ip_start..].split_at_mut(transport.start - ip_start);
        set_ip_length(ip, len - ip_start);
        match transport.protocol {
            TransportProtocol::Tcp => header[13] |= self.last_flags,
            TransportProtocol::Udp => header[4..6].copy_from_slice(&length_field(transport_len)),
        }
        let at = transport.protocol.checksum_offset();
        header[at..at + 2].copy_from_slice(&superpacket_sum(packet, transport_len).to_be_bytes());
    }
}

/// The checksum field of a superpacket whose message is `transport_len` bytes long, and which begins with `packet`.
fn superpacket_sum(packet: &IpPacket<'_>, transport_len: usize) -> u16 {
    let length = u32::from(u16::from_be_bytes(length_field(transport_len)));
    checksum::fold(checksum::pseudo_header(packet.source(), packet.destination(), packet.protocol(), length))
}

/// The tunnel header for the kernel, of a superpacket that begins with `packet`.
fn tunnel_header(offload: Offload, packet: &IpPacket<'_>, tunnelled: Tunnelled) -> TunnelHeader {
    let Offload::Tunnels { shift } = offload else { unreachable!("only such a TUN has trains in tunnels") };
    TunnelHeader {
        is_v6: packet.source().is_ipv6(),
        has_checksum: !tunnelled.is_without_checksum(packet),
        udp_start: field(tunnelled.udp_start) + shift,
        inner_start: field(tunnelled.ip_start),
    }
}

/// How the kernel would cut a superpacket of such packets; `None` if the TUN does not take it.
fn segmentation(offload: Offload, is_v4: bool, protocol: TransportProtocol) -> Option<Segmentation> {
    match (offload, protocol) {
        (Offload::None, _) | (Offload::Tcp, TransportProtocol::Udp) => None,
        (_, TransportProtocol::Tcp) if is_v4 => Some(Segmentation::TcpV4),
        (_, TransportProtocol::Tcp) => Some(Segmentation::TcpV6),
        (_, TransportProtocol::Udp) => Some(Segmentation::Udp),
    }
}

/// Whether the headers of the tunnel, of the packet at `index` of a train, are the first's but for what cutting changes.
fn is_next_in_tunnel(first: &[u8], headers: &[u8], tunnelled: Tunnelled, index: usize, packet_len: usize) -> bool {
    let Tunnelled { udp_start, ip_start, .. } = tunnelled;
    let (first_ip, ip) = (&first[..udp_start], &headers[..udp_start]);
    let (first_udp, udp) = (&first[udp_start..], &headers[udp_start..]);
    let is_without_checksum = |udp: &[u8]| udp[6..8] == [0, 0];
    is_same_ip_header(first_ip, ip)
        && is_next_identification(first_ip, ip, index)
        && first_udp[..4] == udp[..4]
        && udp[4..6] == length_field(packet_len - udp_start)
        && is_without_checksum(first_udp) == is_without_checksum(udp)
        && first[udp_start + UDP_HEADER_LEN..ip_start] == headers[udp_start + UDP_HEADER_LEN..ip_start]
}

/// The same of the headers of the packet inside; `offset` is how much payload lies between the two.
fn is_next_inside(
    first: &[u8],
    headers: &[u8],
    tunnelled: Tunnelled,
    index: usize,
    offset: usize,
    packet_len: usize,
) -> bool {
    let Tunnelled { ip_start, transport, .. } = tunnelled;
    let (first, headers) = (&first[ip_start..], &headers[ip_start..]);
    let transport = Transport { start: transport.start - ip_start, ..transport };
    is_next_identification(first, headers, index)
        && is_cut_from(first, headers, transport, offset, packet_len - ip_start)
}

/// Whether an IPv4 packet, if it may be fragmented, has the identification that the kernel would give it at `index` of a
/// superpacket (RFC 6864 §4).
fn is_next_identification(first_ip: &[u8], ip: &[u8], index: usize) -> bool {
    let identification = |ip: &[u8]| u16::from_be_bytes([ip[4], ip[5]]);
    let index = u16::try_from(index).expect("a train is short");
    ip[0] >> 4 != 4
        || ip[6] & IPV4_DONT_FRAGMENT != 0
        || identification(ip) == identification(first_ip).wrapping_add(index)
}

/// Whether `headers` differ from the first packet's only in what cutting changes; `offset` is how much payload lies
/// between the two, `packet_len` the length of the packet behind `headers`.
fn is_cut_from(first: &[u8], headers: &[u8], transport: Transport, offset: usize, packet_len: usize) -> bool {
    let (first_ip, first_transport) = first.split_at(transport.start);
    let (ip, header) = headers.split_at(transport.start);
    is_same_ip_header(first_ip, ip)
        && match transport.protocol {
            TransportProtocol::Tcp => is_next_tcp_header(first_transport, header, offset),
            TransportProtocol::Udp => {
                first_transport[..4] == header[..4] && header[4..6] == length_field(packet_len - transport.start)
            }
        }
}

fn is_same_ip_header(first: &[u8], ip: &[u8]) -> bool {
    match ip[0] >> 4 {
        // All but the total length, the identification and the header checksum.
        4 => first[..2] == ip[..2] && first[6..10] == ip[6..10] && first[12..] == ip[12..],
        // All but the payload length.
        _ => first[..4] == ip[..4] && first[6..] == ip[6..],
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
    let virtio = partial_header(transport).encode_with_tunnel();
    let sum = checksum::fold(sum).to_be_bytes();
    write(&[
        IoSlice::new(&virtio[..offload.header_len()]),
        IoSlice::new(before),
        IoSlice::new(&sum),
        IoSlice::new(after),
    ])
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
    let virtio = VirtioHeader::PLAIN.encode_with_tunnel();
    write(&[IoSlice::new(&virtio[..offload.header_len()]), IoSlice::new(bytes)])
}

const UDP_HEADER_LEN: usize = 8;
const IPV4_DONT_FRAGMENT: u8 = 0x40;

#[cfg(test)]
mod tests;
