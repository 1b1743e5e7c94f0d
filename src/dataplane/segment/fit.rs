//! What becomes of packets that are longer than what the path to their peer carries.
//!
//! | | |
//! |---|---|
//! | TCP | cut into shorter segments, for it is a stream of bytes: its sender need not hear of it |
//! | IPv4 without "don't fragment" | fragmented, as a router would |
//! | other, no longer than what every path carries; IPv6 fragments beside them | for the slow path, which lets the datagram be fragmented |
//! | other, while longer datagrams may still be found to pass | sent whole |
//! | other | refused; the sender is told how long packets may be |

use crate::packet::checksum;
use crate::packet::ip::{FRAGMENT, IpPacket, TransportProtocol};
use crate::packet::tcp::{TCP_HEADER_LEN, TCP_OPTION_END, TCP_OPTION_NONE, TCP_RST, TCP_SYN, TCP_URG};
use crate::proto::error::{DropReason, Miss};
use crate::proto::path_mtu::PathLimit;

use super::fragments::Fragments;
use super::{Cut, Segments, Shape};

impl Segments<'_> {
    /// Has them fit the path, or says who else is to see to them.
    pub(in crate::dataplane) fn fit(&mut self, path: PathLimit) -> Result<(), Miss> {
        let longest = usize::from(path.packet());
        let minimum = usize::from(minimum_mtu(&self.packet));
        // The last part of a packet is short, and would overtake the first.
        let is_part = longest < minimum && self.packet.protocol() == FRAGMENT && self.packet.source().is_ipv6();
        if !is_part && (self.length(0) <= longest || self.shorten(longest)) {
            return Ok(());
        }
        if self.length(0) <= minimum {
            return Err(Miss::SlowPath);
        }
        if path.is_final() { Err(DropReason::PathTooNarrow.into()) } else { Ok(()) }
    }

    /// Cuts so that none is longer than `longest`; `false` where that may not be.
    pub(super) fn shorten(&mut self, longest: usize) -> bool {
        let shape = match &mut self.shape {
            Shape::Segments(cut) => return cut.shorten(longest),
            Shape::Fragments(_) => return true,
            Shape::Whole => self.as_tcp_segments(longest).or_else(|| self.as_fragments(longest)),
        };
        let is_shortened = shape.is_some();
        self.shape = shape.unwrap_or(Shape::Whole);
        is_shortened
    }

    /// Its segments get their checksums from the receiver, so one that is already there must be right.
    fn as_tcp_segments(&mut self, longest: usize) -> Option<Shape> {
        let packet = &self.packet;
        let transport = packet.transport().filter(|transport| transport.protocol == TransportProtocol::Tcp)?;
        let tcp = &packet.bytes()[transport.start..];
        let is_whole = self.partial || checksum::finish(packet.pseudo_header_sum(), tcp) == 0;
        let header = &tcp[..transport.payload_start - transport.start];
        let segment_size = longest.checked_sub(transport.payload_start).filter(|size| *size > 0)?;
        if !is_whole || !is_divisible(header) {
            return None;
        }
        self.partial = true;
        Some(Shape::Segments(Cut::new(packet, transport, segment_size)))
    }

    fn as_fragments(&self, longest: usize) -> Option<Shape> {
        Fragments::new(&self.packet, longest).map(Shape::Fragments)
    }
}

impl Cut {
    fn shorten(&mut self, longest: usize) -> bool {
        let fitting = longest.saturating_sub(self.headers_len);
        let may = self.protocol == TransportProtocol::Tcp && fitting > 0;
        if may {
            self.segment_size = self.segment_size.min(fitting);
        }
        may
    }
}

/// What every path of its family carries, so that no host need make shorter packets (RFC 791 §3.1, RFC 8200 §5).
pub(in crate::dataplane) fn minimum_mtu(packet: &IpPacket<'_>) -> u16 {
    if packet.source().is_ipv4() { 576 } else { 1280 }
}

/// Whether what follows a TCP header may be sent as several segments with the same: no signature is over all of it, and no
/// field is about one place in it.
fn is_divisible(header: &[u8]) -> bool {
    if header[13] & (TCP_SYN | TCP_RST | TCP_URG) != 0 {
        return false;
    }
    let mut options = &header[TCP_HEADER_LEN..];
    while let Some(&kind) = options.first() {
        let length = match kind {
            TCP_OPTION_END => return true,
            TCP_OPTION_NONE => 1,
            OPTION_MD5 | OPTION_AO => return false,
            _ => options.get(1).map_or(0, |length| usize::from(*length)),
        };
        match options.get(length..) {
            Some(rest) if length > 0 => options = rest,
            _ => return false,
        }
    }
    true
}

/// RFC 2385.
const OPTION_MD5: u8 = 19;
/// RFC 5925.
const OPTION_AO: u8 = 29;

#[cfg(test)]
mod tests;
