//! A checked view of an IP packet and of the TCP or UDP header in it. It never trusts a length it has not compared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::checksum;
use super::tcp::TCP_HEADER_LEN;
use super::traffic_class::TrafficClass;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// IPv6 extension header (RFC 8200 §4): options for every router.
pub const HOP_BY_HOP: u8 = 0;
/// IPv6 extension header: over which nodes.
pub const ROUTING: u8 = 43;
/// IPv6 extension header: a part of a packet.
pub const FRAGMENT: u8 = 44;
/// IPv6 extension header: options for the destination.
pub const DESTINATION_OPTIONS: u8 = 60;

/// Length in bytes of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;
/// Length in bytes of an IPv6 header without extensions.
pub const IPV6_HEADER_LEN: usize = 40;

/// Whether `address` can be that of one machine among others.
pub fn is_unicast(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast)
}

/// The bytes are not one whole IP packet: short, a wrong version, or a length field that disagrees with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a whole IP packet")]
pub struct Malformed;

/// One whole IPv4 or IPv6 packet: the header's length fields agree with the bytes.
#[derive(Debug, Clone, Copy)]
pub struct IpPacket<'a> {
    bytes: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    header_len: usize,
    is_fragment: bool,
}

impl<'a> IpPacket<'a> {
    /// Reads the header of `bytes`, which must be exactly one packet (RFC 791 §3.1, RFC 8200 §3; no jumbograms).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.first().ok_or(Malformed)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(Malformed),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header: &[u8; IPV4_HEADER_LEN] = bytes.first_chunk().ok_or(Malformed)?;
        let header_len = usize::from(header[0] & 0xf) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < IPV4_HEADER_LEN || total_len < header_len || total_len != bytes.len() {
            return Err(Malformed);
        }
        let more_fragments_or_offset = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        Ok(Self {
            bytes,
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            header_len,
            is_fragment: more_fragments_or_offset != 0,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header: &[u8; IPV6_HEADER_LEN] = bytes.first_chunk().ok_or(Malformed)?;
        if IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]])) != bytes.len() {
            return Err(Malformed);
        }
        let address = |range: Range<usize>| {
            let octets: [u8; 16] = header[range].try_into().expect("16 bytes of a 40-byte header");
            IpAddr::from(Ipv6Addr::from(octets))
        };
        Ok(Self {
            bytes,
            source: address(8..24),
            destination: address(24..40),
            protocol: header[6],
            header_len: IPV6_HEADER_LEN,
            // A fragment header is an extension header, so `transport` never looks behind it.
            is_fragment: false,
        })
    }

    /// The whole packet.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The source address.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The destination address.
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// The protocol behind the header: for IPv6 the first next-header value, so maybe an extension's.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Length in bytes of the IPv4 header with options, or of the IPv6 header without extensions.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Whether it is not and can't become a fragment, so that its IPv4 identification means nothing (RFC 6864 §4).
    pub fn is_atomic(&self) -> bool {
        !self.is_fragment && (self.source.is_ipv6() || self.bytes[6] & IPV4_DONT_FRAGMENT != 0)
    }

    /// Its traffic class.
    pub fn traffic_class(&self) -> TrafficClass {
        TrafficClass::of(self.bytes)
    }

    /// The TCP or UDP header directly behind the IP header; `None` for anything else, for fragments, behind IPv6
    /// extension headers, and where the header is cut short or contradicts the packet's length.
    pub fn transport(&self) -> Option<Transport> {
        if self.is_fragment {
            return None;
        }
        let segment = &self.bytes[self.header_len..];
        let (protocol, transport_header_len) = match self.protocol {
            PROTOCOL_TCP => (TransportProtocol::Tcp, usize::from(segment.get(12)? >> 4) * 4),
            PROTOCOL_UDP => (TransportProtocol::Udp, UDP_HEADER_LEN),
            _ => return None,
        };
        let shortest = match protocol {
            TransportProtocol::Tcp => TCP_HEADER_LEN,
            TransportProtocol::Udp => UDP_HEADER_LEN,
        };
        if transport_header_len < shortest || segment.len() < transport_header_len {
            return None;
        }
        Some(Transport { protocol, start: self.header_len, payload_start: self.header_len + transport_header_len })
    }

    /// The sum over the pseudo-header for the upper-layer message as long as this packet says.
    pub fn pseudo_header_sum(&self) -> u32 {
        let length = u32::try_from(self.bytes.len() - self.header_len).expect("an IP packet is shorter than 64 KiB");
        checksum::pseudo_header(self.source, self.destination, self.protocol, length)
    }
}

const IPV4_DONT_FRAGMENT: u8 = 0x40;
const UDP_HEADER_LEN: usize = 8;

/// The transport protocols whose checksums and segmentation can be offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportProtocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl TransportProtocol {
    /// Where the checksum lies, in bytes from the transport header's start.
    pub fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Where a packet's TCP or UDP header and payload lie. Made by [`IpPacket::transport`], so within the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// Which header it is.
    pub protocol: TransportProtocol,
    /// Offset in bytes of the transport header from the packet's start.
    pub start: usize,
    /// Offset in bytes of the payload from the packet's start.
    pub payload_start: usize,
}

impl Transport {
    /// Offset in bytes of the checksum field from the packet's start.
    pub fn checksum_at(&self) -> usize {
        self.start + self.protocol.checksum_offset()
    }
}

/// Computes the transport checksum of a whole TCP or UDP packet in place; other packets are left as they are.
/// A UDP checksum of zero is sent as all ones (RFC 768).
pub fn complete_checksum(bytes: &mut [u8]) -> Result<(), Malformed> {
    let packet = IpPacket::parse(bytes)?;
    let Some(transport) = packet.transport() else { return Ok(()) };
    let (sum, at) = (packet.pseudo_header_sum(), transport.checksum_at());
    bytes[at..at + 2].fill(0);
    let mut checksum = checksum::finish(sum, &bytes[transport.start..]);
    if checksum == 0 && transport.protocol == TransportProtocol::Udp {
        checksum = 0xffff;
    }
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp_packet() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x04, 0xd2, 0x16, 0x2e, 0, 12, 0, 0, 1, 2, 3, 4]);
        packet
    }

    #[test]
    fn reads_addresses_and_transport_of_an_ipv4_packet() {
        let bytes = udp_packet();
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!(packet.source(), "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(packet.destination(), "10.0.0.2".parse::<IpAddr>().unwrap());
        let transport = packet.transport().unwrap();
        assert_eq!((transport.start, transport.payload_start, transport.checksum_at()), (20, 28, 26));
    }

    #[test]
    fn refuses_every_truncation_and_any_trailing_byte() {
        let bytes = udp_packet();
        for length in 0..bytes.len() {
            assert!(IpPacket::parse(&bytes[..length]).is_err(), "{length}");
        }
        assert!(IpPacket::parse(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn only_a_packet_that_nobody_may_fragment_is_atomic() {
        let mut bytes = udp_packet();
        for (flags, is_atomic) in [(0x00, false), (0x40, true), (0x60, false), (0x20, false)] {
            bytes[6] = flags;
            assert_eq!(IpPacket::parse(&bytes).unwrap().is_atomic(), is_atomic, "{flags:#x}");
        }
    }

    #[test]
    fn a_fragment_has_no_transport_header() {
        let mut bytes = udp_packet();
        bytes[6] = 0x20;
        assert!(IpPacket::parse(&bytes).unwrap().transport().is_none());
        bytes[6..8].copy_from_slice(&[0x40, 0]);
        assert!(IpPacket::parse(&bytes).unwrap().transport().is_some(), "don't-fragment is not a fragment");
    }

    #[test]
    fn a_tcp_header_longer_than_the_packet_is_none() {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        bytes.extend([0; 20]);
        bytes[32] = 0x50;
        assert!(IpPacket::parse(&bytes).unwrap().transport().is_some());
        bytes[32] = 0x60;
        assert!(IpPacket::parse(&bytes).unwrap().transport().is_none());
        bytes[32] = 0x40;
        assert!(IpPacket::parse(&bytes).unwrap().transport().is_none());
    }

    #[test]
    fn a_completed_checksum_verifies() {
        let mut bytes = udp_packet();
        complete_checksum(&mut bytes).unwrap();
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!(checksum::finish(packet.pseudo_header_sum(), &bytes[20..]), 0);
    }
}
