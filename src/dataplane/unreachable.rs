//! ICMP errors for packets that no peer takes, or whose peer is known to be out of reach, so that an application fails at
//! once instead of waiting; and for those that are too long for the path to their peer, so that it makes shorter ones.
//!
//! The answer comes from the address that could not be reached: it is routed through the TUN, so a reverse-path filter
//! lets it in, and it is not one of the host's own, which would be a martian there.

use std::net::IpAddr;

use crate::packet::checksum;
use crate::packet::ip::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, is_unicast,
};

use crate::proto::error::DropReason;
use crate::proto::path_mtu::PathLimit;

use super::segment::fit::minimum_mtu;
use super::segment::{length_field, set_ip_length};

/// The longest answer: IPv6 hosts must not send more than the smallest MTU (RFC 4443 §2.4 (c)).
pub(super) const MAX_ANSWER_LEN: usize = 1280;
/// The same for IPv4 (RFC 1812 §4.3.2.3).
const MAX_ANSWER_LEN_V4: usize = 576;
const ICMP_HEADER_LEN: usize = 8;

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// Nobody takes it.
    Unreachable,
    /// Its sender may not reach that port.
    Refused,
    /// It is longer than this number of bytes, which the path carries.
    TooLong(u16),
}

impl Problem {
    /// What is told of a packet that was dropped on its way to a peer; `None` for nothing.
    pub(super) fn of(reason: DropReason, path: Option<PathLimit>, packet: &IpPacket<'_>) -> Option<Self> {
        match reason {
            DropReason::NoPeerForDestination | DropReason::LinkDown => Some(Self::Unreachable),
            // Hosts heed nothing lower than what every path carries.
            DropReason::PathTooNarrow => Some(Self::TooLong(path?.packet().max(minimum_mtu(packet)))),
            _ => None,
        }
    }

    /// The ICMP header, with a zero checksum.
    fn header_v4(self) -> [u8; ICMP_HEADER_LEN] {
        match self {
            // Host unreachable (RFC 792).
            Self::Unreachable => [3, 1, 0, 0, 0, 0, 0, 0],
            // Port unreachable (RFC 792).
            Self::Refused => [3, 3, 0, 0, 0, 0, 0, 0],
            // Fragmentation needed (RFC 1191 §4).
            Self::TooLong(mtu) => {
                let [high, low] = mtu.to_be_bytes();
                [3, 4, 0, 0, 0, 0, high, low]
            }
        }
    }

    /// The same for ICMPv6.
    fn header_v6(self) -> [u8; ICMP_HEADER_LEN] {
        match self {
            // Address unreachable (RFC 4443 §3.1).
            Self::Unreachable => [1, 3, 0, 0, 0, 0, 0, 0],
            // Port unreachable (RFC 4443 §3.1).
            Self::Refused => [1, 4, 0, 0, 0, 0, 0, 0],
            // Packet too big (RFC 4443 §3.2).
            Self::TooLong(mtu) => {
                let [high, low] = mtu.to_be_bytes();
                [2, 0, 0, 0, 0, 0, high, low]
            }
        }
    }
}

/// Writes the answer to `packet` into `out`; returns its length, or `None` where no answer may be given.
pub(super) fn answer(packet: &IpPacket<'_>, problem: Problem, out: &mut [u8; MAX_ANSWER_LEN]) -> Option<usize> {
    let asks = is_unicast(packet.source()) && is_unicast(packet.destination()) && !is_beyond_answer(packet);
    asks.then(|| match (packet.source(), packet.destination()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; IPV4_HEADER_LEN];
            // Precedence "internetwork control" (RFC 1812 §4.3.2.5), don't fragment, 64 hops.
            header[..2].copy_from_slice(&[0x45, 0xc0]);
            header[6..10].copy_from_slice(&[0x40, 0, 64, PROTOCOL_ICMP]);
            header[12..16].copy_from_slice(&destination.octets());
            header[16..20].copy_from_slice(&source.octets());
            let length = quote(packet, &header, problem.header_v4(), MAX_ANSWER_LEN_V4, out);
            let checksum = checksum::finish(0, &out[IPV4_HEADER_LEN..length]);
            out[IPV4_HEADER_LEN + 2..IPV4_HEADER_LEN + 4].copy_from_slice(&checksum.to_be_bytes());
            set_ip_length(&mut out[..IPV4_HEADER_LEN], length);
            length
        }
        (source, destination) => {
            let mut header = [0; IPV6_HEADER_LEN];
            header[0] = 0x60;
            header[6..8].copy_from_slice(&[PROTOCOL_ICMPV6, 64]);
            header[8..24].copy_from_slice(&packet.bytes()[24..40]);
            header[24..40].copy_from_slice(&packet.bytes()[8..24]);
            let length = quote(packet, &header, problem.header_v6(), MAX_ANSWER_LEN, out);
            let message_len = u32::from(u16::from_be_bytes(length_field(length - IPV6_HEADER_LEN)));
            let sum = checksum::pseudo_header(destination, source, PROTOCOL_ICMPV6, message_len);
            let checksum = checksum::finish(sum, &out[IPV6_HEADER_LEN..length]);
            out[IPV6_HEADER_LEN + 2..IPV6_HEADER_LEN + 4].copy_from_slice(&checksum.to_be_bytes());
            set_ip_length(&mut out[..IPV6_HEADER_LEN], length);
            length
        }
    })
}

/// Lays out header, ICMP header, and as much of the packet as fits.
fn quote(
    packet: &IpPacket<'_>,
    header: &[u8],
    icmp: [u8; ICMP_HEADER_LEN],
    limit: usize,
    out: &mut [u8; MAX_ANSWER_LEN],
) -> usize {
    let quote_at = header.len() + ICMP_HEADER_LEN;
    let quoted = &packet.bytes()[..packet.bytes().len().min(limit - quote_at)];
    out[..header.len()].copy_from_slice(header);
    out[header.len()..quote_at].copy_from_slice(&icmp);
    out[quote_at..quote_at + quoted.len()].copy_from_slice(quoted);
    quote_at + quoted.len()
}

/// Whether `packet` must not be answered, or cannot be known not to be an ICMP error (RFC 1122 §3.2.2, RFC 4443
/// §2.4 (e)): errors would answer errors for ever.
fn is_beyond_answer(packet: &IpPacket<'_>) -> bool {
    let bytes = packet.bytes();
    let message_type = bytes.get(packet.header_len()).copied();
    if packet.source().is_ipv4() {
        let is_later_fragment = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff != 0;
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        let is_error =
            packet.protocol() == PROTOCOL_ICMP && message_type.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12));
        return is_later_fragment || is_error;
    }
    match packet.protocol() {
        PROTOCOL_TCP | PROTOCOL_UDP => false,
        PROTOCOL_ICMPV6 => message_type.is_none_or(|kind| kind < 128),
        // Behind an extension header there may be an error, but not in a packet that is longer than any.
        _ => bytes.len() <= MAX_ANSWER_LEN,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    fn answer_to(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0; MAX_ANSWER_LEN];
        answer(&IpPacket::parse(bytes).unwrap(), Problem::Unreachable, &mut out).map(|length| out[..length].to_vec())
    }

    #[test]
    fn a_packet_for_nobody_is_answered_from_its_destination() {
        for sample in [Sample::tcp_v4(5000, 0), Sample::udp_v6(5000, 0), Sample::tcp_v4(10, 0)] {
            let bytes = sample.packet();
            let packet = IpPacket::parse(&bytes).unwrap();
            let answered = answer_to(&bytes).unwrap();
            let answer = IpPacket::parse(&answered).unwrap();
            assert_eq!((answer.source(), answer.destination()), (packet.destination(), packet.source()));
            let (start, icmp, limit) = if sample.v6 { (40, PROTOCOL_ICMPV6, 1280) } else { (20, PROTOCOL_ICMP, 576) };
            assert_eq!(answer.protocol(), icmp);
            let sum = if sample.v6 { answer.pseudo_header_sum() } else { 0 };
            assert_eq!(checksum::finish(sum, &answered[start..]), 0, "ICMP checksum");
            if !sample.v6 {
                assert_eq!(checksum::finish(0, &answered[..20]), 0, "header checksum");
            }
            assert_eq!(answered.len(), limit.min(bytes.len() + start + 8));
            assert_eq!(answered[start + 8..], bytes[..answered.len() - start - 8]);
        }
    }

    #[test]
    fn a_packet_that_is_too_long_is_answered_with_what_the_path_carries() {
        for (sample, expected) in
            [(Sample::tcp_v4(1400, 0), [3, 4, 0, 0, 5, 0x14]), (Sample::udp_v6(1400, 0), [2, 0, 0, 0, 5, 0x14])]
        {
            let bytes = sample.packet();
            let mut out = [0; MAX_ANSWER_LEN];
            let length = answer(&IpPacket::parse(&bytes).unwrap(), Problem::TooLong(1300), &mut out).unwrap();
            let answer = IpPacket::parse(&out[..length]).unwrap();
            let icmp = &answer.bytes()[answer.header_len()..];
            let [kind, code, _, _, mtu @ ..] = icmp.first_chunk::<8>().unwrap();
            assert_eq!([*kind, *code, mtu[0], mtu[1], mtu[2], mtu[3]], expected);
            let sum = if sample.v6 { answer.pseudo_header_sum() } else { 0 };
            assert_eq!(checksum::finish(sum, icmp), 0);
        }
    }

    #[test]
    fn errors_fragments_and_groups_are_not_answered() {
        let mut error = Sample::tcp_v4(100, 0).packet();
        error[9] = PROTOCOL_ICMP;
        error[20] = 8;
        assert!(answer_to(&error).is_some(), "an echo request is");
        for kind in [3, 4, 5, 11, 12] {
            error[20] = kind;
            assert_eq!(answer_to(&error), None);
        }
        let mut error = Sample::udp_v6(100, 0).packet();
        error[6] = PROTOCOL_ICMPV6;
        error[40] = 128;
        assert!(answer_to(&error).is_some(), "an echo request is");
        error[40] = 1;
        assert_eq!(answer_to(&error), None);
        error[6] = 0;
        assert_eq!(answer_to(&error), None, "behind extension headers there may be an error");

        let mut fragment = Sample::tcp_v4(100, 0).packet();
        fragment[6..8].copy_from_slice(&[0x20, 0]);
        assert!(answer_to(&fragment).is_some(), "the first fragment is");
        fragment[7] = 1;
        assert_eq!(answer_to(&fragment), None);

        for (at, address) in [(16, [224, 0, 0, 1]), (16, [255; 4]), (12, [0; 4]), (12, [127, 0, 0, 1])] {
            let mut packet = Sample::tcp_v4(100, 0).packet();
            packet[at..at + 4].copy_from_slice(&address);
            assert_eq!(answer_to(&packet), None, "{address:?}");
        }
        let mut multicast = Sample::udp_v6(100, 0).packet();
        multicast[24..26].copy_from_slice(&[0xff, 2]);
        assert_eq!(answer_to(&multicast), None);
    }
}
