//! Answers to what peers send and may not, for who would rather have it fail at once than time out: a reset where a TCP
//! connection would be opened, ICMP "port unreachable" to UDP. Nothing else is answered, and not which packets are refused is
//! decided here.

use std::net::IpAddr;

use crate::packet::ip::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, PROTOCOL_TCP, Transport, TransportProtocol, complete_checksum,
    is_unicast,
};
use crate::packet::tcp::{TCP_ACK, TCP_FIN, TCP_HEADER_LEN, TCP_RST, TCP_SYN};

use super::segment::set_ip_length;
use super::unreachable::{MAX_ANSWER_LEN, Problem, answer};

/// Writes the answer to `packet`, which is refused, into `out`; returns its length, or `None` where there is none.
pub(super) fn refusal(packet: &IpPacket<'_>, out: &mut [u8; MAX_ANSWER_LEN]) -> Option<usize> {
    let transport = packet.transport()?;
    match transport.protocol {
        TransportProtocol::Tcp => reset(packet, transport, out),
        TransportProtocol::Udp => answer(packet, Problem::Refused, out),
    }
}

/// The reset to a segment that opens a connection (RFC 9293 §3.10.7.1).
fn reset(packet: &IpPacket<'_>, transport: Transport, out: &mut [u8; MAX_ANSWER_LEN]) -> Option<usize> {
    let bytes = packet.bytes();
    let header = &bytes[transport.start..transport.payload_start];
    let is_opening = header[13] & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN;
    if !is_opening || !is_unicast(packet.source()) || !is_unicast(packet.destination()) {
        return None;
    }
    let sequence = u32::from_be_bytes(header[4..8].try_into().expect("four bytes"));
    let flags = u32::from(header[13] & TCP_FIN != 0) + 1;
    let payload = u32::try_from(bytes.len() - transport.payload_start).expect("an IP packet is shorter than 64 KiB");
    let acknowledged = sequence.wrapping_add(payload).wrapping_add(flags);

    let start = match (packet.source(), packet.destination()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0]);
            out[12..16].copy_from_slice(&destination.octets());
            out[16..20].copy_from_slice(&source.octets());
            IPV4_HEADER_LEN
        }
        _ => {
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, PROTOCOL_TCP, 64]);
            out[8..24].copy_from_slice(&bytes[24..40]);
            out[24..40].copy_from_slice(&bytes[8..24]);
            IPV6_HEADER_LEN
        }
    };
    let length = start + TCP_HEADER_LEN;
    let (ip, tcp) = out[..length].split_at_mut(start);
    set_ip_length(ip, length);
    tcp.fill(0);
    tcp[..2].copy_from_slice(&header[2..4]);
    tcp[2..4].copy_from_slice(&header[..2]);
    tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    tcp[12..14].copy_from_slice(&[0x50, TCP_RST | TCP_ACK]);
    complete_checksum(&mut out[..length]).expect("a whole packet");
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Sample, assert_checksums};
    use super::*;
    use crate::packet::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6};

    fn refused(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xaa; MAX_ANSWER_LEN];
        refusal(&IpPacket::parse(bytes).unwrap(), &mut out).map(|length| out[..length].to_vec())
    }

    #[test]
    fn an_opening_is_answered_with_a_reset_that_acknowledges_it() {
        for v6 in [false, true] {
            let sample = Sample { v6, tcp_flags: TCP_SYN, ..Sample::tcp_v4(5, 0) };
            let bytes = sample.packet();
            let reset = refused(&bytes).unwrap();
            let [packet, parsed] = [&bytes, &reset].map(|bytes| IpPacket::parse(bytes).unwrap());
            assert_eq!((parsed.source(), parsed.destination()), (packet.destination(), packet.source()));
            assert_checksums(&reset);
            let [opening, tcp] = [(&packet, &bytes), (&parsed, &reset)]
                .map(|(packet, bytes)| bytes[packet.transport().unwrap().start..].to_vec());
            assert_eq!((&tcp[..2], &tcp[2..4]), (&opening[2..4], &opening[..2]));
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            assert_eq!((number(&tcp[4..8]), number(&tcp[8..12])), (0, number(&opening[4..8]).wrapping_add(6)));
            assert_eq!(tcp[12..16], [0x50, TCP_RST | TCP_ACK, 0, 0]);
        }
    }

    #[test]
    fn udp_is_answered_with_port_unreachable() {
        let bytes = Sample { segment_size: 0, ..Sample::udp_v6(100, 0) }.packet();
        let answer = refused(&bytes).unwrap();
        assert_eq!((answer[6], &answer[40..42], &answer[48..]), (PROTOCOL_ICMPV6, &[1, 4][..], &bytes[..]));
        let bytes = Sample { v6: false, ..Sample::udp_v6(100, 0) }.packet();
        let answer = refused(&bytes).unwrap();
        assert_eq!((answer[9], &answer[20..22], &answer[28..]), (PROTOCOL_ICMP, &[3, 3][..], &bytes[..]));
    }

    #[test]
    fn resets_other_protocols_and_what_comes_from_everybody_are_not_answered() {
        for flags in [TCP_SYN | TCP_RST, TCP_RST, TCP_ACK] {
            assert_eq!(refused(&Sample { tcp_flags: flags, ..Sample::tcp_v4(0, 0) }.packet()), None);
        }
        let mut opening = Sample { tcp_flags: TCP_SYN, ..Sample::tcp_v4(0, 0) }.packet();
        opening[9] = PROTOCOL_ICMP;
        assert_eq!(refused(&opening), None);
        opening[9] = PROTOCOL_TCP;
        opening[16..20].copy_from_slice(&[255; 4]);
        assert_eq!(refused(&opening), None);
    }
}
