//! The virtio network header that the kernel puts in front of each packet of an offload TUN (virtio 1.2 §5.1.6,
//! `linux/virtio_net.h`), in the machine's byte order. It says which checksum is left open and how a superpacket is cut.
//!
//! Bytes only: whether the header fits its packet is for [`segment`](super::segment) to check.

/// Length in bytes of the header.
pub(super) const VIRTIO_HEADER_LEN: usize = 10;
/// Length in bytes of the header of a TUN that takes superpackets in UDP tunnels: the same ten bytes, the number of buffers
/// and the flow's hash, which a TUN has no use for, and where the tunnel's headers lie
/// (`struct virtio_net_hdr_v1_hash_tunnel`).
pub(super) const TUNNEL_HEADER_LEN: usize = 24;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
/// The UDP header of a tunnel has a checksum.
const FLAG_TUNNEL_CHECKSUM: u8 = 8;
const SEGMENTATION_TCP_V4: u8 = 1;
const SEGMENTATION_TCP_V6: u8 = 4;
const SEGMENTATION_UDP: u8 = 5;
/// Set beside a TCP type when the first segment carries CWR.
const SEGMENTATION_ECN: u8 = 0x80;
/// Set beside a type when what it says is of a packet in a UDP tunnel over IPv4.
const SEGMENTATION_TUNNEL_V4: u8 = 0x20;
/// The same over IPv6.
const SEGMENTATION_TUNNEL_V6: u8 = 0x40;
const OUTER_TRANSPORT_AT: usize = 20;
const INNER_NETWORK_AT: usize = 22;

/// How a superpacket is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segmentation {
    /// Not at all: one packet.
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either (USO); not UFO, which makes IP fragments and which no kernel hands out any more.
    Udp,
}

/// A decoded header. All offsets count from the packet's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VirtioHeader {
    /// The checksum over everything from `checksum_start` is to be computed; its field holds the pseudo-header's sum.
    pub(super) needs_checksum: bool,
    /// How to cut.
    pub(super) segmentation: Segmentation,
    /// The first segment carries CWR (RFC 3168 §6.1.2).
    pub(super) ecn: bool,
    /// Length of the headers that every segment repeats: a hint only.
    pub(super) header_len: u16,
    /// Payload bytes per segment.
    pub(super) segment_size: u16,
    /// Where the checksum starts.
    pub(super) checksum_start: u16,
    /// Where its field is, from `checksum_start`.
    pub(super) checksum_offset: u16,
    /// Set if the superpacket is in a UDP tunnel: then all of the above is about the packet inside.
    pub(super) tunnel: Option<TunnelHeader>,
}

/// What a header says of the UDP tunnel that a superpacket is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TunnelHeader {
    /// The tunnel is over IPv6.
    pub(super) is_v6: bool,
    /// Its UDP header has a checksum, whose field holds the pseudo-header's sum.
    pub(super) has_checksum: bool,
    /// Where its UDP header starts.
    pub(super) udp_start: u16,
    /// Where the IP header of the packet inside starts.
    pub(super) inner_start: u16,
}

/// A segmentation type that was not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown segmentation type")]
pub(super) struct UnknownSegmentation;

impl VirtioHeader {
    /// In front of one packet that is complete as it is.
    pub(super) const PLAIN: Self = Self {
        needs_checksum: false,
        segmentation: Segmentation::None,
        ecn: false,
        header_len: 0,
        segment_size: 0,
        checksum_start: 0,
        checksum_offset: 0,
        tunnel: None,
    };

    /// Reads the header of a TUN without tunnels.
    pub(super) fn decode(bytes: &[u8; VIRTIO_HEADER_LEN]) -> Result<Self, UnknownSegmentation> {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let segmentation = match bytes[1] & !SEGMENTATION_ECN {
            0 => Segmentation::None,
            SEGMENTATION_TCP_V4 => Segmentation::TcpV4,
            SEGMENTATION_TCP_V6 => Segmentation::TcpV6,
            SEGMENTATION_UDP => Segmentation::Udp,
            _ => return Err(UnknownSegmentation),
        };
        Ok(Self {
            needs_checksum: bytes[0] & FLAG_NEEDS_CHECKSUM != 0,
            segmentation,
            ecn: bytes[1] & SEGMENTATION_ECN != 0,
            header_len: field(2),
            segment_size: field(4),
            checksum_start: field(6),
            checksum_offset: field(8),
            tunnel: None,
        })
    }

    /// Reads the header of a TUN with tunnels.
    pub(super) fn decode_with_tunnel(bytes: &[u8; TUNNEL_HEADER_LEN]) -> Result<Self, UnknownSegmentation> {
        const TUNNELS: u8 = SEGMENTATION_TUNNEL_V4 | SEGMENTATION_TUNNEL_V6;
        let mut plain = *bytes.first_chunk().expect("24 bytes have a first ten");
        plain[1] &= !TUNNELS;
        let header = Self::decode(&plain)?;
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let tunnel = match bytes[1] & TUNNELS {
            0 => None,
            TUNNELS => return Err(UnknownSegmentation),
            _ if header.segmentation == Segmentation::None => return Err(UnknownSegmentation),
            kind => Some(TunnelHeader {
                is_v6: kind == SEGMENTATION_TUNNEL_V6,
                has_checksum: bytes[0] & FLAG_TUNNEL_CHECKSUM != 0,
                udp_start: field(OUTER_TRANSPORT_AT),
                inner_start: field(INNER_NETWORK_AT),
            }),
        };
        Ok(Self { tunnel, ..header })
    }

    /// The bytes of the header of a TUN with tunnels: the first ten are those of a TUN without, if there is none.
    pub(super) fn encode_with_tunnel(self) -> [u8; TUNNEL_HEADER_LEN] {
        let mut bytes = [0; TUNNEL_HEADER_LEN];
        bytes[..VIRTIO_HEADER_LEN].copy_from_slice(&self.encode());
        if let Some(tunnel) = self.tunnel {
            bytes[0] |= if tunnel.has_checksum { FLAG_TUNNEL_CHECKSUM } else { 0 };
            bytes[1] |= if tunnel.is_v6 { SEGMENTATION_TUNNEL_V6 } else { SEGMENTATION_TUNNEL_V4 };
            bytes[OUTER_TRANSPORT_AT..][..2].copy_from_slice(&tunnel.udp_start.to_le_bytes());
            bytes[INNER_NETWORK_AT..][..2].copy_from_slice(&tunnel.inner_start.to_le_bytes());
        }
        bytes
    }

    /// The bytes of the header of a TUN without tunnels.
    pub(super) fn encode(self) -> [u8; VIRTIO_HEADER_LEN] {
        let segmentation = match self.segmentation {
            Segmentation::None => 0,
            Segmentation::TcpV4 => SEGMENTATION_TCP_V4,
            Segmentation::TcpV6 => SEGMENTATION_TCP_V6,
            Segmentation::Udp => SEGMENTATION_UDP,
        };
        let mut bytes = [0; VIRTIO_HEADER_LEN];
        bytes[0] = if self.needs_checksum { FLAG_NEEDS_CHECKSUM } else { 0 };
        bytes[1] = segmentation | if self.ecn { SEGMENTATION_ECN } else { 0 };
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_there_and_back() {
        for segmentation in [Segmentation::None, Segmentation::TcpV4, Segmentation::TcpV6, Segmentation::Udp] {
            let header = VirtioHeader {
                needs_checksum: true,
                segmentation,
                ecn: true,
                header_len: 52,
                segment_size: 1368,
                checksum_start: 20,
                checksum_offset: 16,
                tunnel: None,
            };
            assert_eq!(VirtioHeader::decode(&header.encode()), Ok(header));
            assert_eq!(VirtioHeader::decode_with_tunnel(&header.encode_with_tunnel()), Ok(header));
        }
        assert_eq!(VirtioHeader::PLAIN.encode(), [0; VIRTIO_HEADER_LEN]);
    }

    #[test]
    fn a_tunnel_goes_there_and_back() {
        for (is_v6, has_checksum) in [(false, false), (false, true), (true, false), (true, true)] {
            let tunnel = TunnelHeader { is_v6, has_checksum, udp_start: 20, inner_start: 50 };
            let header =
                VirtioHeader { segmentation: Segmentation::TcpV6, tunnel: Some(tunnel), ..VirtioHeader::PLAIN };
            assert_eq!(VirtioHeader::decode_with_tunnel(&header.encode_with_tunnel()), Ok(header));
        }
    }

    #[test]
    fn refuses_a_tunnel_of_both_families_and_one_without_a_superpacket() {
        for segmentation in [0x61, 0x20, 0x40] {
            let mut bytes = VirtioHeader::PLAIN.encode_with_tunnel();
            bytes[1] = segmentation;
            assert_eq!(VirtioHeader::decode_with_tunnel(&bytes), Err(UnknownSegmentation));
        }
    }

    #[test]
    fn refuses_ufo_and_unknown_types() {
        for segmentation in [2, 3, 6, 0x7f] {
            let mut bytes = VirtioHeader::PLAIN.encode();
            bytes[1] = segmentation;
            assert_eq!(VirtioHeader::decode(&bytes), Err(UnknownSegmentation));
        }
    }
}
