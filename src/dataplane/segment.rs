//! Cuts what one TUN read gave, a packet or a superpacket, into the packets that travel: each with its own IP and TCP or
//! UDP header, so that each can be delivered alone, and with its checksum left partial where the receiver can finish it.
//!
//! Where the path to the peer is narrow, they are made [`fit`] for it.
//!
//! A superpacket in a UDP tunnel is cut into packets of the tunnel. What is left for the receiver is then the checksum of the
//! tunnel's UDP header, if it has one; that of the packet inside is computed here.
//!
//! It neither routes nor encrypts. The kernel is trusted, but every offset it states is compared with the bytes.

use crate::packet::checksum;
use crate::packet::frame::{FLAG_CHECKSUM_PARTIAL, FLAG_CONTINUES};
use crate::packet::ip::{IPV6_HEADER_LEN, IpPacket, Malformed, Transport, TransportProtocol};
use crate::packet::tcp::{TCP_CWR, TCP_FIN, TCP_HEADER_LEN, TCP_PSH};
use crate::packet::traffic_class::{Ecn, TrafficClass, set_ecn};

use self::fragments::Fragments;
use super::virtio::{Segmentation, TunnelHeader, VirtioHeader};

pub(super) mod fit;
mod fragments;

/// The packets of one TUN read.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    /// The packet, or the superpacket whose header all segments repeat.
    packet: IpPacket<'a>,
    /// Whether the checksum fields are left for the receiver.
    partial: bool,
    shape: Shape,
    /// How many of the packets are left out, at the front.
    skipped: usize,
    congestion_experienced: bool,
}

#[derive(Debug)]
enum Shape {
    /// One packet that travels as it is.
    Whole,
    /// TCP or UDP segments.
    Segments(Cut),
    /// IPv4 fragments.
    Fragments(Fragments),
}

#[derive(Debug)]
struct Cut {
    protocol: TransportProtocol,
    /// Where the IP header starts that stands in front of the transport header; 0 but in a tunnel.
    ip_start: usize,
    transport_start: usize,
    headers_len: usize,
    segment_size: usize,
    /// Sum over the pseudo-header, without the length, which differs per segment.
    pseudo_header_sum: u32,
    /// [`fixed_header_sum`] of the IP header.
    ip_header_sum: u32,
    tunnel: Option<TunnelCut>,
}

/// The headers in front of a packet in a tunnel.
#[derive(Debug)]
struct TunnelCut {
    udp_start: usize,
    /// As [`Cut::pseudo_header_sum`]; `None` if the UDP header has no checksum.
    pseudo_header_sum: Option<u32>,
    /// [`fixed_header_sum`] of the tunnel's IP header.
    ip_header_sum: u32,
}

impl<'a> Segments<'a> {
    /// Checks `header` against `bytes`, the packet behind it. A single packet whose checksum can't travel partial gets
    /// it computed in place.
    pub(super) fn new(header: &VirtioHeader, bytes: &'a mut [u8]) -> Result<Self, Malformed> {
        if header.segmentation != Segmentation::None {
            return Self::superpacket(header, bytes);
        }
        let travels_partial = IpPacket::parse(bytes)?.transport().is_some_and(|transport| {
            (usize::from(header.checksum_start), usize::from(header.checksum_offset))
                == (transport.start, transport.protocol.checksum_offset())
        });
        if header.needs_checksum && !travels_partial {
            complete_checksum(bytes, header)?;
        }
        let partial = header.needs_checksum && travels_partial;
        Ok(Self::of(IpPacket::parse(bytes)?, partial, Shape::Whole))
    }

    fn superpacket(header: &VirtioHeader, bytes: &'a [u8]) -> Result<Self, Malformed> {
        let packet = IpPacket::parse(bytes)?;
        if let Some(tunnel) = header.tunnel {
            let cut = Cut::in_tunnel(header, tunnel, &packet)?;
            let partial = tunnel.has_checksum;
            return Ok(Self::of(packet, partial, Shape::Segments(cut)));
        }
        let (cut, partial) = match packet.transport() {
            Some(transport) => (Cut::new(&packet, transport, usize::from(header.segment_size)), true),
            None => (Cut::behind_extension_headers(header, &packet)?, false),
        };
        let is_v4 = packet.source().is_ipv4();
        let fits = match header.segmentation {
            Segmentation::TcpV4 => is_v4 && cut.protocol == TransportProtocol::Tcp,
            Segmentation::TcpV6 => !is_v4 && cut.protocol == TransportProtocol::Tcp,
            Segmentation::Udp => cut.protocol == TransportProtocol::Udp,
            Segmentation::None => false,
        };
        if !fits || cut.segment_size == 0 {
            return Err(Malformed);
        }
        Ok(Self::of(packet, partial, Shape::Segments(cut)))
    }

    fn of(packet: IpPacket<'a>, partial: bool, shape: Shape) -> Self {
        Self { packet, partial, shape, skipped: 0, congestion_experienced: false }
    }

    /// The packet as the kernel gave it, for its addresses: of a superpacket the lengths are not any segment's.
    pub(super) fn packet(&self) -> &IpPacket<'a> {
        &self.packet
    }

    /// That of every segment.
    pub(super) fn traffic_class(&self) -> TrafficClass {
        let class = self.packet.traffic_class();
        if self.congestion_experienced { class.with_ecn(Ecn::Ce) } else { class }
    }

    /// How many packets there are; at least one.
    pub(super) fn count(&self) -> usize {
        self.total() - self.skipped
    }

    /// Has every segment say that it met congestion (RFC 3168 §5); `false` if its flow would not understand.
    pub(super) fn mark_congestion(&mut self) -> bool {
        self.congestion_experienced = self.packet.traffic_class().ecn() != Ecn::NotEct;
        self.congestion_experienced
    }

    /// Leaves out the first of several segments: its flow learns of that from those behind it.
    pub(super) fn drop_first(&mut self) {
        debug_assert!(self.count() > 1);
        self.skipped += 1;
    }

    fn total(&self) -> usize {
        match &self.shape {
            Shape::Whole => 1,
            Shape::Segments(cut) => self.payload_len(cut).div_ceil(cut.segment_size).max(1),
            Shape::Fragments(fragments) => fragments.count(&self.packet),
        }
    }

    /// Length in bytes of the packet at `index`, which is below [`count`](Self::count). The first is the longest.
    pub(super) fn length(&self, index: usize) -> usize {
        let index = self.skipped + index;
        match &self.shape {
            Shape::Whole => self.packet.bytes().len(),
            Shape::Segments(cut) => {
                let rest = self.payload_len(cut).saturating_sub(index * cut.segment_size);
                cut.headers_len + rest.min(cut.segment_size)
            }
            Shape::Fragments(fragments) => fragments.length(&self.packet, index),
        }
    }

    /// The flags of the packet frame at `index`.
    pub(super) fn flags(&self, index: usize) -> u8 {
        match (self.partial, index) {
            (false, _) => 0,
            _ if matches!(self.shape, Shape::Fragments(_)) => 0,
            (true, 0) => FLAG_CHECKSUM_PARTIAL,
            (true, _) => FLAG_CHECKSUM_PARTIAL | FLAG_CONTINUES,
        }
    }

    /// Writes the packet at `index` into `out`, which is [`length`](Self::length) bytes long.
    pub(super) fn write(&self, index: usize, out: &mut [u8]) {
        let index = self.skipped + index;
        match &self.shape {
            Shape::Whole => out.copy_from_slice(self.packet.bytes()),
            Shape::Segments(cut) => self.write_segment(cut, index, out),
            Shape::Fragments(fragments) => fragments.write(&self.packet, index, self.partial, out),
        }
    }

    fn write_segment(&self, cut: &Cut, index: usize, out: &mut [u8]) {
        let bytes = self.packet.bytes();
        let packet_len = out.len();
        let payload_start = cut.headers_len + index * cut.segment_size;
        let (headers, payload) = out.split_at_mut(cut.headers_len);
        headers.copy_from_slice(&bytes[..cut.headers_len]);
        payload.copy_from_slice(&bytes[payload_start..payload_start + payload.len()]);
        if self.congestion_experienced {
            set_ecn(headers, Ecn::Ce);
        }

        let (ip, transport) = headers[cut.ip_start..].split_at_mut(cut.transport_start - cut.ip_start);
        let fixed_sum = if cut.tunnel.is_none() { self.header_sum(ip, cut.ip_header_sum) } else { cut.ip_header_sum };
        cut_ip_header(ip, packet_len - cut.ip_start, index, fixed_sum);
        let transport_len = packet_len - cut.transport_start;
        match cut.protocol {
            TransportProtocol::Tcp => self.cut_tcp_header(cut, index, transport),
            TransportProtocol::Udp => transport[4..6].copy_from_slice(&length_field(transport_len)),
        }
        let sum = checksum::fold(cut.pseudo_header_sum + u32::from(u16::from_be_bytes(length_field(transport_len))));
        let at = cut.transport_start + cut.protocol.checksum_offset();
        out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        if !self.partial || cut.tunnel.is_some() {
            let checksum = finish_checksum(&out[cut.transport_start..]).to_be_bytes();
            out[at..at + 2].copy_from_slice(&checksum);
        }
        if let Some(tunnel) = &cut.tunnel {
            self.cut_tunnel_headers(tunnel, index, out);
        }
    }

    fn cut_tunnel_headers(&self, tunnel: &TunnelCut, index: usize, out: &mut [u8]) {
        let packet_len = out.len();
        let (ip, udp) = out.split_at_mut(tunnel.udp_start);
        let fixed_sum = self.header_sum(ip, tunnel.ip_header_sum);
        cut_ip_header(ip, packet_len, index, fixed_sum);
        let length = length_field(udp.len());
        udp[4..6].copy_from_slice(&length);
        if let Some(sum) = tunnel.pseudo_header_sum {
            let sum = checksum::fold(sum + u32::from(u16::from_be_bytes(length)));
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// [`fixed_header_sum`] of the packet's own IP header, which is `unmarked` as the kernel gave it. A mark is rare, so its
    /// header is summed each time.
    fn header_sum(&self, ip: &[u8], unmarked: u32) -> u32 {
        if self.congestion_experienced { fixed_header_sum(ip) } else { unmarked }
    }

    /// Sequence number and flags as they would be if the segments had been sent one by one: CWR answers one congestion
    /// mark (RFC 3168 §6.1.2), PSH and FIN belong to the last byte.
    fn cut_tcp_header(&self, cut: &Cut, index: usize, tcp: &mut [u8]) {
        let advance = u32::try_from(index * cut.segment_size).expect("a superpacket is shorter than 64 KiB");
        let sequence = u32::from_be_bytes(tcp[4..8].try_into().expect("four bytes")).wrapping_add(advance);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index > 0 {
            tcp[13] &= !TCP_CWR;
        }
        if index + 1 < self.total() {
            tcp[13] &= !(TCP_FIN | TCP_PSH);
        }
    }

    fn payload_len(&self, cut: &Cut) -> usize {
        self.packet.bytes().len() - cut.headers_len
    }
}

impl Cut {
    /// With the transport header directly behind the IP header.
    fn new(packet: &IpPacket<'_>, transport: Transport, segment_size: usize) -> Self {
        Self {
            protocol: transport.protocol,
            ip_start: 0,
            transport_start: transport.start,
            headers_len: transport.payload_start,
            segment_size,
            pseudo_header_sum: checksum::pseudo_header(packet.source(), packet.destination(), packet.protocol(), 0),
            ip_header_sum: fixed_header_sum(&packet.bytes()[..transport.start]),
            tunnel: None,
        }
    }

    /// Of a superpacket in a tunnel: the kernel says where its headers lie.
    fn in_tunnel(header: &VirtioHeader, tunnel: TunnelHeader, packet: &IpPacket<'_>) -> Result<Self, Malformed> {
        let outer = packet.transport().filter(|outer| outer.protocol == TransportProtocol::Udp).ok_or(Malformed)?;
        let (ip_start, start) = (usize::from(tunnel.inner_start), usize::from(header.checksum_start));
        if usize::from(tunnel.udp_start) != outer.start || ip_start < outer.payload_start || !header.needs_checksum {
            return Err(Malformed);
        }
        let bytes = packet.bytes();
        let ip = bytes.get(ip_start..start).ok_or(Malformed)?;
        let (version, shortest) = match ip.first().ok_or(Malformed)? >> 4 {
            4 => (4, usize::from(ip[0] & 0xf).max(5) * 4),
            6 => (6, IPV6_HEADER_LEN),
            _ => return Err(Malformed),
        };
        let fits = match header.segmentation {
            Segmentation::TcpV4 => version == 4,
            Segmentation::TcpV6 => version == 6,
            Segmentation::Udp => true,
            Segmentation::None => false,
        };
        if !fits || ip.len() < shortest || version == 4 && ip.len() != shortest || header.segment_size == 0 {
            return Err(Malformed);
        }
        let udp = &bytes[outer.start..outer.payload_start];
        let has_checksum = udp[6..8] != [0, 0];
        if has_checksum != tunnel.has_checksum {
            return Err(Malformed);
        }
        let outer_sum = checksum::pseudo_header(packet.source(), packet.destination(), packet.protocol(), 0);
        Ok(Self {
            ip_start,
            ip_header_sum: fixed_header_sum(ip),
            tunnel: Some(TunnelCut {
                udp_start: outer.start,
                pseudo_header_sum: has_checksum.then_some(outer_sum),
                ip_header_sum: fixed_header_sum(&bytes[..outer.start]),
            }),
            ..Self::at_checksum_start(header, bytes)?
        })
    }

    /// The transport header of an IPv6 superpacket with extension headers, which only the kernel knows how to pass
    /// over: it lies where the checksum starts.
    fn behind_extension_headers(header: &VirtioHeader, packet: &IpPacket<'_>) -> Result<Self, Malformed> {
        let start = usize::from(header.checksum_start);
        if !header.needs_checksum || packet.source().is_ipv4() || start <= packet.header_len() {
            return Err(Malformed);
        }
        Self::at_checksum_start(header, packet.bytes())
    }

    /// With the transport header where the checksum starts, and a pseudo-header that only the kernel knows.
    fn at_checksum_start(header: &VirtioHeader, bytes: &[u8]) -> Result<Self, Malformed> {
        let start = usize::from(header.checksum_start);
        let transport = bytes.get(start..).ok_or(Malformed)?;
        let (protocol, transport_header_len) = match header.segmentation {
            Segmentation::Udp => (TransportProtocol::Udp, UDP_HEADER_LEN),
            _ => (TransportProtocol::Tcp, usize::from(transport.get(12).ok_or(Malformed)? >> 4) * 4),
        };
        let shortest = match protocol {
            TransportProtocol::Tcp => TCP_HEADER_LEN,
            TransportProtocol::Udp => UDP_HEADER_LEN,
        };
        if transport_header_len < shortest || transport.len() < transport_header_len {
            return Err(Malformed);
        }
        // A routing header changes the destination in the pseudo-header (RFC 8200 §8.1). The kernel's sum knows: take
        // it, and take the superpacket's length out of it.
        let field = protocol.checksum_offset();
        let sum = u16::from_be_bytes([transport[field], transport[field + 1]]);
        let length = u16::from_be_bytes(length_field(transport.len()));
        Ok(Self {
            protocol,
            ip_start: 0,
            transport_start: start,
            headers_len: start + transport_header_len,
            segment_size: usize::from(header.segment_size),
            pseudo_header_sum: u32::from(sum) + u32::from(!length),
            ip_header_sum: 0,
            tunnel: None,
        })
    }
}

const UDP_HEADER_LEN: usize = 8;

/// Sets the length of an IP header in front of a packet of `packet_len` bytes, and for IPv4 its checksum.
pub(super) fn set_ip_length(ip: &mut [u8], packet_len: usize) {
    cut_ip_header(ip, packet_len, 0, fixed_header_sum(ip));
}

/// The same for the packet at `index` of those that are cut from one. `fixed_sum` is [`fixed_header_sum`] of the header,
/// computed once for all of them.
fn cut_ip_header(ip: &mut [u8], packet_len: usize, index: usize, fixed_sum: u32) {
    if ip[0] >> 4 == 6 {
        return ip[4..6].copy_from_slice(&length_field(packet_len - IPV6_HEADER_LEN));
    }
    let length = length_field(packet_len);
    let index = u16::try_from(index).expect("a superpacket has fewer segments than bytes");
    let identification = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index);
    ip[2..4].copy_from_slice(&length);
    ip[4..6].copy_from_slice(&identification.to_be_bytes());
    let sum = fixed_sum + u32::from(u16::from_be_bytes(length)) + u32::from(identification);
    ip[10..12].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
}

/// The sum over what cutting leaves as it is of an IPv4 header: all but the total length, the identification and the
/// checksum. An IPv6 header has no checksum.
fn fixed_header_sum(ip: &[u8]) -> u32 {
    if ip[0] >> 4 == 6 {
        return 0;
    }
    checksum::add(checksum::add(checksum::add(0, &ip[..2]), &ip[6..10]), &ip[12..])
}

/// A length that is known to be an IP packet's, as its header field.
pub(super) fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("an IP packet is shorter than 64 KiB").to_be_bytes()
}

/// Computes the checksum that the kernel left open, wherever it said that it is.
fn complete_checksum(bytes: &mut [u8], header: &VirtioHeader) -> Result<(), Malformed> {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if at + 2 > bytes.len() {
        return Err(Malformed);
    }
    let checksum = finish_checksum(&bytes[start..]).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&checksum);
    Ok(())
}

/// The checksum over `transport`, whose own field holds the pseudo-header's sum.
fn finish_checksum(transport: &[u8]) -> u16 {
    // Zero means "none" for UDP; all ones is the same number and means it for both (RFC 768).
    match checksum::finish(0, transport) {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[cfg(test)]
pub(super) mod tests;
