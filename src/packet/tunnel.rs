//! TCP and UDP packets in UDP tunnels that carry Ethernet frames: VXLAN (RFC 7348) and Geneve (RFC 8926).
//!
//! Nothing here guesses that a packet is a tunnel's: whoever asks knows the port. Every length is compared with the bytes.

use super::checksum;
use super::ip::{IpPacket, Transport, TransportProtocol};

/// The header between UDP and the Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelKind {
    /// RFC 7348, with or without the bits of group policies.
    Vxlan,
    /// RFC 8926, with any options.
    Geneve,
}

/// Where a packet in a tunnel lies. Made by [`find`](Self::find), so within the packet; all offsets are in bytes from the
/// outer packet's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnelled {
    /// The tunnel.
    pub kind: TunnelKind,
    /// The tunnel's UDP header.
    pub udp_start: usize,
    /// The IP header of the packet inside.
    pub ip_start: usize,
    /// The TCP or UDP header directly behind it.
    pub transport: Transport,
}

impl Tunnelled {
    /// The packet inside `packet`, which went to a port that such a tunnel has. `None` for all that is not one whole TCP or
    /// UDP packet in an untagged frame, and for fragments.
    pub fn find(packet: &IpPacket<'_>, kind: TunnelKind) -> Option<Self> {
        let outer = packet.transport().filter(|outer| outer.protocol == TransportProtocol::Udp)?;
        let bytes = packet.bytes();
        let udp = &bytes[outer.start..outer.payload_start];
        if usize::from(u16::from_be_bytes([udp[4], udp[5]])) != bytes.len() - outer.start {
            return None;
        }
        let payload = &bytes[outer.payload_start..];
        let frame_start = outer.payload_start + kind.header_len(payload.first_chunk()?)?;
        let ip_start = frame_start + ETHERNET_LEN;
        let kind_of_frame = bytes.get(ip_start - 2..ip_start)?;
        let inner = IpPacket::parse(&bytes[ip_start..]).ok()?;
        let expected = if inner.source().is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let transport = inner.transport()?;
        (kind_of_frame == expected).then_some(Self {
            kind,
            udp_start: outer.start,
            ip_start,
            transport: Transport {
                start: ip_start + transport.start,
                payload_start: ip_start + transport.payload_start,
                ..transport
            },
        })
    }

    /// Whether all checksums of `packet`, outside and inside, are right, but that of the tunnel's UDP header where it is
    /// `partial`, and none is missing that the packet inside should have.
    pub fn is_intact(&self, packet: &IpPacket<'_>, partial: bool) -> bool {
        let bytes = packet.bytes();
        let headers = &bytes[self.udp_start..self.transport.start];
        let Ok(inner) = IpPacket::parse(&bytes[self.ip_start..]) else { return false };
        let field = self.transport.checksum_at();
        let is_without = self.transport.protocol == TransportProtocol::Udp && bytes[field..field + 2] == [0, 0];
        let inner_sum = inner.pseudo_header_sum();
        has_intact_header(packet)
            && has_intact_header(&inner)
            && !is_without
            && (partial || self.is_without_checksum(packet) || {
                // From the inner transport header on, a message with a right checksum sums to the complement of its
                // pseudo-header's sum: so the outer checksum costs no second look at the payload (RFC 1071 §2).
                let message = u32::from(!checksum::fold(inner_sum));
                checksum::finish(packet.pseudo_header_sum() + message, headers) == 0
            })
            && checksum::finish(inner_sum, &bytes[self.transport.start..]) == 0
    }

    /// Whether the tunnel's UDP header says that it has no checksum (RFC 768, RFC 6935).
    pub fn is_without_checksum(&self, packet: &IpPacket<'_>) -> bool {
        packet.bytes()[self.udp_start + 6..self.udp_start + 8] == [0, 0]
    }
}

impl TunnelKind {
    /// Length in bytes of the header that begins with `header`; `None` if what follows is no Ethernet frame, or not for the
    /// traffic of hosts.
    fn header_len(self, header: &[u8; BASE_LEN]) -> Option<usize> {
        match self {
            Self::Vxlan => (header[0] & (VXLAN_VNI | VXLAN_OTHER_PROTOCOL) == VXLAN_VNI).then_some(BASE_LEN),
            Self::Geneve => {
                let is_frame = header[0] & GENEVE_VERSION == 0
                    && header[1] & GENEVE_CONTROL == 0
                    && header[2..4] == ETHERTYPE_ETHERNET;
                is_frame.then(|| BASE_LEN + usize::from(header[0]) * 4)
            }
        }
    }
}

fn has_intact_header(packet: &IpPacket<'_>) -> bool {
    packet.source().is_ipv6() || checksum::finish(0, &packet.bytes()[..packet.header_len()]) == 0
}

/// Of both headers, without Geneve's options.
const BASE_LEN: usize = 8;
const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Geneve's name of an Ethernet frame.
const ETHERTYPE_ETHERNET: [u8; 2] = [0x65, 0x58];
/// The network identifier counts.
const VXLAN_VNI: u8 = 0x08;
/// VXLAN-GPE: another protocol than Ethernet may follow.
const VXLAN_OTHER_PROTOCOL: u8 = 0x04;
/// Above the length of the options.
const GENEVE_VERSION: u8 = 0xc0;
/// For the tunnel's end itself.
const GENEVE_CONTROL: u8 = 0x80;
