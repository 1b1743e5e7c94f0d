//! Inner packets for the transcripts and the conversations.

use underpass::packet::checksum;
use underpass::packet::ip::complete_checksum;

const IPV4_HEADER_LEN: usize = 20;
const TCP_HEADER_LEN: usize = 20;

pub(crate) const INITIATOR_V4: [u8; 4] = [10, 77, 0, 1];
pub(crate) const RESPONDER_V4: [u8; 4] = [10, 77, 0, 2];

/// A UDP packet over IPv4 with all checksums.
pub(crate) fn udp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = ipv4_header(source, destination, 17, 8 + payload.len(), 0);
    packet.extend([0x10, 0x00, 0x20, 0x00]);
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    complete_checksum(&mut packet).unwrap();
    packet
}

/// The same over IPv6, between fd77::1 and fd77::2.
pub(crate) fn udp_v6(payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], 17, 64];
    for last in [1, 2] {
        packet.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend([0x10, 0x00, 0x20, 0x00, length[0], length[1], 0, 0]);
    packet.extend(payload);
    complete_checksum(&mut packet).unwrap();
    packet
}

/// A packet as it looks before its checksum is computed.
pub(crate) fn without_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let is_v4 = packet[0] >> 4 == 4;
    let (start, protocol) = if is_v4 { (IPV4_HEADER_LEN, packet[9]) } else { (40, packet[6]) };
    let at = start + if protocol == 6 { 16 } else { 6 };
    // What a receiver finds here must not matter to it.
    packet[at..at + 2].copy_from_slice(&[0xde, 0xad]);
    packet
}

/// A TCP superpacket over IPv4 with all checksums, ACK, PSH and CWR, and its payload.
pub(crate) fn tcp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    tcp_segment(source, destination, payload, 0, 0x98)
}

/// The packets that a superpacket of [`tcp`] is cut into, with partial checksums.
pub(crate) fn cut_tcp(source: [u8; 4], destination: [u8; 4], payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let last = payload.len().div_ceil(size) - 1;
    let segment = |(index, part): (usize, &[u8])| {
        let flags = 0x10 | if index == 0 { 0x80 } else { 0 } | if index == last { 0x08 } else { 0 };
        without_checksum(tcp_segment(source, destination, part, index * size, flags))
    };
    payload.chunks(size).enumerate().map(segment).collect()
}

fn tcp_segment(source: [u8; 4], destination: [u8; 4], payload: &[u8], offset: usize, flags: u8) -> Vec<u8> {
    let mut packet = ipv4_header(source, destination, 6, TCP_HEADER_LEN + payload.len(), offset as u16 / 100);
    packet.extend([0x1f, 0x90, 0xc3, 0x50]);
    // Near the end of the number space, so that a train wraps.
    packet.extend(0xffff_ff00u32.wrapping_add(offset as u32).to_be_bytes());
    packet.extend([0, 0, 0, 7, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    packet.extend(payload);
    complete_checksum(&mut packet).unwrap();
    packet
}

fn ipv4_header(source: [u8; 4], destination: [u8; 4], protocol: u8, length: usize, identification: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((IPV4_HEADER_LEN as u16 + length as u16).to_be_bytes());
    header.extend(identification.to_be_bytes());
    header.extend([0x40, 0, 64, protocol, 0, 0]);
    header.extend(source);
    header.extend(destination);
    let sum = checksum::finish(0, &header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}
