//! Packets inside the tunnel, as a host's TUN hands them out: TCP or UDP over IPv4 or IPv6, alone or as a superpacket.
//! Each ends with a number that names it in the ledger.

use std::net::IpAddr;

use underpass::packet::frame::FRAME_HEADER_LEN;
use underpass::packet::message::TRANSPORT_OVERHEAD;
use underpass::proto::constants::PATH_BASE_LEN;

use crate::twin::kernel;
use crate::twin::packet::{TCP, UDP, completed, set_field, sum};

/// The interface's MTU at every node.
pub(crate) const MTU: u16 = 1420;
/// What fits behind the longest headers.
pub(crate) const LONGEST_PAYLOAD: usize = MTU as usize - 60;

/// The same where paths are tried: TCP segments of this length need not be cut on any of them.
pub(crate) const LONGEST_WHOLE: usize = PATH_BASE_LEN as usize - TRANSPORT_OVERHEAD - FRAME_HEADER_LEN - 60;

/// Who talks to whom about what; the port also says what the ECN field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub is_tcp: bool,
    pub port: u16,
}

/// What a host sends at once: how many packets, with how much payload each but the last, which may have less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Burst {
    pub segments: usize,
    pub length: usize,
    pub last: usize,
    /// Whether checksums are left open; those of a superpacket always are.
    pub is_partial: bool,
}

impl Burst {
    /// One packet.
    pub(crate) fn single(length: usize, is_partial: bool) -> Self {
        Self { segments: 1, length, last: length, is_partial }
    }
}

/// Bytes of a packet's number.
const NUMBER_LEN: usize = 8;

impl Flow {
    /// A TUN read whose packets have the numbers from `first`.
    pub(crate) fn read(&self, first: u64, burst: Burst) -> Vec<u8> {
        let length = burst.length.max(NUMBER_LEN);
        let lengths = (1..burst.segments).map(|_| length).chain([burst.last.clamp(NUMBER_LEN, length)]);
        let payload = (first..).zip(lengths).flat_map(|(number, length)| payload(number, length));
        let packet = self.packet(first, length, &payload.collect::<Vec<u8>>());
        match burst.segments {
            1 if burst.is_partial => kernel::read(packet, 0),
            1 => kernel::read_complete(&completed(&packet)),
            _ => kernel::read(packet, length),
        }
    }

    /// The packet that begins with the packet `first`, whose neighbours have `length` bytes of payload.
    fn packet(&self, first: u64, length: usize, payload: &[u8]) -> Vec<u8> {
        let transport = if self.is_tcp { self.tcp_header(first, length) } else { self.udp_header(payload.len()) };
        let (protocol, behind_ip) = (if self.is_tcp { TCP } else { UDP }, transport.len() + payload.len());
        let ip = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                // Most hosts forbid to fragment.
                let flags = if first % 16 < 4 { 0 } else { 0x40 };
                let mut header = vec![0x45, self.ecn(), 0, 0, 0, 0, flags, 0, 64, protocol, 0, 0];
                header.extend([source.octets(), destination.octets()].concat());
                set_field(&mut header, 2, 20 + behind_ip);
                set_field(&mut header, 4, first as usize);
                let checksum = 0xffff - sum(&header);
                set_field(&mut header, 10, checksum);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, self.ecn() << 4, 0, 0, 0, 0, protocol, 64];
                header.extend([source.octets(), destination.octets()].concat());
                set_field(&mut header, 4, behind_ip);
                header
            }
            (source, destination) => panic!("{source} and {destination} are of different families"),
        };
        [&ip[..], &transport, payload].concat()
    }

    fn ecn(&self) -> u8 {
        self.port as u8 & 3
    }

    /// Sequence numbers go on from burst to burst of one length.
    fn tcp_header(&self, first: u64, length: usize) -> Vec<u8> {
        let sequence = (first as u32).wrapping_mul(length as u32).to_be_bytes();
        let flags = if first.is_multiple_of(3) { 0x18 } else { 0x10 };
        [&self.ports()[..], &sequence, &[0, 0, 0, 9, 0x50, flags, 1, 0, 0, 0, 0, 0]].concat()
    }

    fn udp_header(&self, payload_len: usize) -> Vec<u8> {
        let length = (8 + payload_len) as u16;
        [&self.ports()[..], &length.to_be_bytes(), &[0, 0]].concat()
    }

    fn ports(&self) -> [u8; 4] {
        let [high, low] = self.port.to_be_bytes();
        [high, low, 0x20, 0]
    }
}

/// A filling that follows from the number, and the number.
fn payload(number: u64, length: usize) -> Vec<u8> {
    let mut payload = vec![(number % 251) as u8; length - NUMBER_LEN];
    payload.extend(number.to_le_bytes());
    payload
}

/// The number of a packet.
pub(crate) fn number_of(packet: &[u8]) -> Option<u64> {
    packet.last_chunk().map(|number| u64::from_le_bytes(*number))
}
