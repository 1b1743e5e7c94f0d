//! Packets of a peer whose path is narrow: a SYN asks for shorter segments afterwards, and nothing else is another.
//!
//! The data is `longest (2) | partial (1)`, and the packet.

use underpass::packet::ip::IpPacket;
use underpass::packet::segment_size::clamp;

/// Whether anything was changed.
pub(crate) fn run(data: &[u8]) -> bool {
    let Some((&[high, low, partial], packet)) = data.split_first_chunk() else { return false };
    let (longest, partial) = (u16::from_be_bytes([high, low]), partial & 1 == 1);
    let clamped = clamped(packet, longest, partial);
    assert_eq!(clamped.len(), packet.len());
    let changed = packet.iter().zip(&clamped).filter(|(before, after)| before != after).count();
    if changed == 0 {
        return false;
    }
    assert!(IpPacket::parse(packet).is_ok());
    assert!(changed <= if partial { 2 } else { 4 }, "more than the segment size and the checksum");
    assert!(partial || sum(packet) == sum(&clamped), "the checksum is as right as it was");
    assert_eq!(self::clamped(&clamped, longest, partial), clamped);
    true
}

fn clamped(packet: &[u8], longest: u16, partial: bool) -> Vec<u8> {
    let mut clamped = packet.to_vec();
    clamp(&mut clamped, longest, partial);
    clamped
}

/// Of all words, as checksums count them: headers take up an even number of bytes.
fn sum(packet: &[u8]) -> u32 {
    let word = |bytes: &[u8]| u32::from(bytes[0]) << 8 | bytes.get(1).copied().map_or(0, u32::from);
    packet.chunks(2).map(word).sum::<u32>() % 0xffff
}
