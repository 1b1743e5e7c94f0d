//! What a target's data says: numbers, and packets that are well-formed until a later choice spoils them.

use std::sync::LazyLock;

use underpass::dataplane::testing::Sample;
use underpass::packet::ip::TransportProtocol;
use underpass::packet::traffic_class::{Ecn, TrafficClass};

use crate::twin::kernel;
use crate::twin::packet::{completed, is_v4, set_field, sum};

/// Data that is read from front to back. Behind its end, everything is zero.
pub(crate) struct Choices<'d>(&'d [u8]);

impl<'d> Choices<'d> {
    pub(crate) fn new(data: &'d [u8]) -> Self {
        Self(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// Little-endian.
    pub(crate) fn short(&mut self) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    pub(crate) fn bytes(&mut self, length: usize) -> &'d [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// What a datagram's ECN field says.
    pub(crate) fn ecn(&mut self) -> Ecn {
        TrafficClass::from_byte(self.byte()).ecn()
    }

    /// One of `items`; `None` if there is none.
    pub(crate) fn index<T>(&mut self, items: &[T]) -> Option<usize> {
        let choice = usize::from(self.byte());
        (!items.is_empty()).then(|| choice % items.len())
    }

    /// A TUN read: `shape (1) | TCP flags (1) | option words, IP low, TCP high (1) | port (1) | last bytes of source and
    /// destination (2) | bits of the payload's length (1) | payload length (2) | segment size (2)`. Returns it with the
    /// length of its payload; the TCP sequence number is `sequence`.
    pub(crate) fn read(&mut self, sequence: usize) -> (Vec<u8>, usize) {
        let [shape, tcp_flags, options, port, source, destination] = [(); 6].map(|()| self.byte());
        let has = |bit: u8| shape & bit != 0;
        let bits = self.byte() % 17;
        let payload_len = (self.short() % (1 << bits)).min(LONGEST_PAYLOAD);
        let mut sample = Sample {
            v6: has(V6),
            protocol: if has(UDP) { TransportProtocol::Udp } else { TransportProtocol::Tcp },
            ip_options: usize::from(options & 15).min(10) * 4,
            tcp_options: usize::from(options >> 4).min(10) * 4,
            tcp_flags,
            payload: PAYLOAD[..payload_len].to_vec(),
            segment_size: 0,
        };
        // Beyond what a train holds, but not so many that a run takes long.
        sample.segment_size = match self.short() {
            0 => 0,
            size => size.max(payload_len / 130 + 1),
        };
        let mut packet = sample.packet();
        let end_of_addresses = if sample.v6 { 40 } else { 20 };
        let start = if sample.v6 { 40 } else { 20 + sample.ip_options };
        packet[start + 1] = port;
        packet[end_of_addresses - if sample.v6 { 17 } else { 5 }] = source;
        packet[end_of_addresses - 1] = destination;
        if !has(UDP) {
            packet[start + 4..start + 8].copy_from_slice(&(sequence as u32).to_be_bytes());
        }
        if has(WITHOUT_ECN) {
            packet[1] = 0;
        }
        let other_ecn = shape / OTHER_ECN;
        packet[1] ^= if sample.v6 { other_ecn << 4 } else { other_ecn };
        if has(MAY_FRAGMENT) && is_v4(&packet) {
            packet[6] = 0;
        }
        if has(EXTENDED) && !is_v4(&packet) {
            let protocol = std::mem::replace(&mut packet[6], DESTINATION_OPTIONS);
            packet.splice(40..40, [protocol, 0, 1, 4, 0, 0, 0, 0]);
            let length = packet.len() - 40;
            set_field(&mut packet, 4, length);
        }
        if is_v4(&packet) {
            set_field(&mut packet, 10, 0);
            let checksum = 0xffff - sum(&packet[..start]);
            set_field(&mut packet, 10, checksum);
        }
        let read = match sample.segment_size {
            0 if has(COMPLETE) => kernel::read_complete(&completed(&packet)),
            segment_size => kernel::read(packet, segment_size),
        };
        (read, payload_len)
    }
}

pub(crate) const V6: u8 = 0x01;
pub(crate) const UDP: u8 = 0x02;
pub(crate) const MAY_FRAGMENT: u8 = 0x04;
pub(crate) const WITHOUT_ECN: u8 = 0x08;
/// The checksum is not left open; not for superpackets.
pub(crate) const COMPLETE: u8 = 0x10;
/// The transport header stands behind an IPv6 extension header.
pub(crate) const EXTENDED: u8 = 0x20;
/// Times what the ECN field differs by.
pub(crate) const OTHER_ECN: u8 = 0x40;

/// What fits behind the longest headers.
const LONGEST_PAYLOAD: usize = 65_535 - 120 - 8;
const DESTINATION_OPTIONS: u8 = 60;

static PAYLOAD: LazyLock<Vec<u8>> = LazyLock::new(|| Sample::tcp_v4(LONGEST_PAYLOAD, 0).payload);
