//! An IPv4 packet that a path does not carry whole, as the fragments that a router would make of it (RFC 791 §2.3).

use crate::packet::checksum;
use crate::packet::ip::{IPV4_HEADER_LEN, IpPacket};

use super::{finish_checksum, length_field};

/// How a packet is fragmented.
#[derive(Debug)]
pub(super) struct Fragments {
    header_len: usize,
    /// Payload bytes of each but the last: a multiple of eight.
    size: usize,
}

impl Fragments {
    /// Of at most `longest` bytes; `None` where the packet must not be fragmented.
    pub(super) fn new(packet: &IpPacket<'_>, longest: usize) -> Option<Self> {
        let may = packet.source().is_ipv4() && packet.bytes()[6] & DONT_FRAGMENT == 0;
        let header_len = packet.header_len();
        let size = longest.checked_sub(header_len)? & !(UNIT - 1);
        (may && size > 0).then_some(Self { header_len, size })
    }

    pub(super) fn count(&self, packet: &IpPacket<'_>) -> usize {
        self.payload_len(packet).div_ceil(self.size).max(1)
    }

    pub(super) fn length(&self, packet: &IpPacket<'_>, index: usize) -> usize {
        self.header_len + self.payload_len(packet).saturating_sub(index * self.size).min(self.size)
    }

    /// Writes the fragment at `index` into `out`. Only the first has the transport header, with the checksum over all of
    /// them, which is computed here if it was left `partial`.
    pub(super) fn write(&self, packet: &IpPacket<'_>, index: usize, partial: bool, out: &mut [u8]) {
        let bytes = packet.bytes();
        let (start, length) = (index * self.size, out.len());
        let (ip, payload) = out.split_at_mut(self.header_len);
        ip.copy_from_slice(&bytes[..self.header_len]);
        payload.copy_from_slice(&bytes[self.header_len + start..self.header_len + start + payload.len()]);
        if let Some(transport) = packet.transport().filter(|_| partial && index == 0) {
            let field = finish_checksum(&bytes[transport.start..]).to_be_bytes();
            let at = transport.checksum_at() - self.header_len;
            payload[at..at + 2].copy_from_slice(&field);
        }
        if index > 0 {
            blank_first_only_options(&mut ip[IPV4_HEADER_LEN..]);
        }
        let before = u16::from_be_bytes([ip[6], ip[7]]);
        let units = u16::try_from(start / UNIT).expect("a packet is shorter than 64 KiB");
        let is_last = index + 1 == self.count(packet);
        let more = if is_last { before & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let offset = (before & OFFSET).wrapping_add(units) & OFFSET;
        ip[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        ip[2..4].copy_from_slice(&length_field(length));
        ip[10..12].fill(0);
        let sum = checksum::finish(0, ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    fn payload_len(&self, packet: &IpPacket<'_>) -> usize {
        packet.bytes().len() - self.header_len
    }
}

/// Options without the "copied" bit belong into the first fragment only (RFC 791 §3.1).
fn blank_first_only_options(mut options: &mut [u8]) {
    while let Some(&kind) = options.first() {
        let length = match kind {
            END_OF_OPTIONS => return,
            NO_OPERATION => 1,
            _ => options.get(1).map_or(1, |length| usize::from(*length).max(1)).min(options.len()),
        };
        let (option, rest) = options.split_at_mut(length);
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}

const UNIT: usize = 8;
const DONT_FRAGMENT: u8 = 0x40;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const COPIED: u8 = 0x80;
