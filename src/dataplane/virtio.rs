//! The virtio network header that the kernel puts in front of each packet of an offload TUN (virtio 1.2 §5.1.6,
//! `linux/virtio_net.h`), in the machine's byte order. It says which checksum is left open and how a superpacket is cut.
//!
//! Bytes only: whether the header fits its packet is for [`segment`](super::segment) to check.

/// Length in bytes of the header.
pub(super) const VIRTIO_HEADER_LEN: usize = 10;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const SEGMENTATION_TCP_V4: u8 = 1;
const SEGMENTATION_TCP_V6: u8 = 4;
const SEGMENTATION_UDP: u8 = 5;
/// Set beside a TCP type when the first segment carries CWR.
const SEGMENTATION_ECN: u8 = 0x80;

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
    };

    /// Reads a header.
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
        })
    }

    /// The header's bytes.
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
            };
            assert_eq!(VirtioHeader::decode(&header.encode()), Ok(header));
        }
        assert_eq!(VirtioHeader::PLAIN.encode(), [0; VIRTIO_HEADER_LEN]);
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
