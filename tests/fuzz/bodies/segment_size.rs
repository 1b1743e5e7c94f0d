//! Packets of a peer whose path is narrow: a SYN asks for shorter segments afterwards, and nothing else is another.
//!
//! The data is `longest (2) | partial (1)`, and the packet.

use underpass::packet::segment_size::clamp;

use crate::twin::packet::{is_whole, sum};

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
    assert!(is_whole(packet));
    assert!(changed <= if partial { 2 } else { 4 }, "more than the segment size and the checksum");
    // Headers take up an even number of bytes, so that the packet's words are those of its TCP segment.
    assert!(partial || sum(packet) % 0xffff == sum(&clamped) % 0xffff, "the checksum is as right as it was");
    assert_eq!(self::clamped(&clamped, longest, partial), clamped);
    true
}

fn clamped(packet: &[u8], longest: u16, partial: bool) -> Vec<u8> {
    let mut clamped = packet.to_vec();
    clamp(&mut clamped, longest, partial);
    clamped
}
