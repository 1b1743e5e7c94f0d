//! The maximum segment size that a TCP SYN announces (RFC 9293 §3.7.1): how long the segments may be that the other side
//! answers it with. Lowered where their path is narrow.

use super::checksum;
use super::ip::{
    DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, PROTOCOL_TCP, ROUTING,
};
use super::tcp::{TCP_HEADER_LEN, TCP_OPTION_END, TCP_OPTION_NONE, TCP_SYN};

/// Has a SYN ask for segments that fit packets of `longest` bytes; anything else is left as it is, as is a SYN that asks for
/// no more. The checksum stays right, or wrong, or `partial`.
pub fn clamp(packet: &mut [u8], longest: u16, partial: bool) {
    let Some(tcp_start) = IpPacket::parse(packet).ok().and_then(|packet| tcp_start(&packet)) else { return };
    let headers = if packet[0] >> 4 == 4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN } + TCP_HEADER_LEN;
    let Some(limit) = usize::from(longest).checked_sub(headers).and_then(|limit| u16::try_from(limit).ok()) else {
        return;
    };
    let Some(tcp) = packet.get_mut(tcp_start..) else { return };
    let Some(at) = announced_at(tcp) else { return };
    let announced = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    if announced <= limit {
        return;
    }
    tcp[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    if !partial {
        // At an odd offset the value lies across two words, and counts with its bytes swapped.
        let [old, new] = [announced, limit].map(|size| if at % 2 == 0 { size } else { size.swap_bytes() });
        let before = u16::from_be_bytes([tcp[CHECKSUM_AT], tcp[CHECKSUM_AT + 1]]);
        tcp[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&checksum::updated(before, old, new).to_be_bytes());
    }
}

/// Where the TCP header begins, behind whatever extension headers: behind the packet's end, if those say so. `None` where
/// there is none, or not its beginning.
fn tcp_start(packet: &IpPacket<'_>) -> Option<usize> {
    let bytes = packet.bytes();
    let mut at = packet.header_len();
    let mut protocol = packet.protocol();
    if packet.source().is_ipv4() {
        let offset = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff;
        return (protocol == PROTOCOL_TCP && offset == 0).then_some(at);
    }
    while protocol != PROTOCOL_TCP {
        let &[next, length, offset_high, offset_low] = bytes.get(at..)?.first_chunk()?;
        at += match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(length) + 1) * 8,
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            FRAGMENT if u16::from_be_bytes([offset_high, offset_low]) & 0xfff8 == 0 => 8,
            _ => return None,
        };
        protocol = next;
    }
    Some(at)
}

/// Where the option's value lies in a TCP header with SYN.
fn announced_at(tcp: &[u8]) -> Option<usize> {
    let header_len = usize::from(tcp.get(12)? >> 4) * 4;
    let header = tcp.get(..header_len).filter(|header| header.len() >= TCP_HEADER_LEN)?;
    if header[13] & TCP_SYN == 0 {
        return None;
    }
    let mut at = TCP_HEADER_LEN;
    loop {
        match header.get(at..)? {
            [TCP_OPTION_NONE, ..] => at += 1,
            [OPTION_SEGMENT_SIZE, 4, _, _, ..] => return Some(at + 2),
            [kind, length, ..] if *kind != TCP_OPTION_END && *length >= 2 => at += usize::from(*length),
            _ => return None,
        }
    }
}

const CHECKSUM_AT: usize = 16;
const OPTION_SEGMENT_SIZE: u8 = 2;

/// IPv6 extension header (RFC 4302 §2).
const AUTHENTICATION: u8 = 51;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ip::complete_checksum;
    use super::*;

    const MSS_1460: [u8; 4] = [2, 4, 0x05, 0xb4];

    /// A TCP header of these flags and options, whose length is a multiple of four.
    fn tcp(flags: u8, options: &[u8]) -> Vec<u8> {
        let words = 5 + options.len() as u8 / 4;
        let mut header = vec![0x1f, 0x90, 0xc3, 0x50, 0, 0, 0, 1, 0, 0, 0, 2, words << 4, flags, 1, 2, 0, 0, 0, 0];
        header.extend(options);
        header
    }

    fn v4(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        packet.extend(payload);
        complete_checksum(&mut packet).unwrap();
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend([[0xfd; 16], [0xfc; 16]].concat());
        packet.extend(payload);
        complete_checksum(&mut packet).unwrap();
        packet
    }

    fn clamped(packet: &[u8], longest: u16) -> Vec<u8> {
        let mut clamped = packet.to_vec();
        clamp(&mut clamped, longest, false);
        clamped
    }

    fn assert_checksum(packet: &[u8]) {
        let view = IpPacket::parse(packet).unwrap();
        assert_eq!(checksum::finish(view.pseudo_header_sum(), &packet[view.header_len()..]), 0);
    }

    #[test]
    fn a_syn_and_its_answer_ask_for_what_fits() {
        for flags in [0x02, 0x12, 0xc2] {
            let packet = v4(&tcp(flags, &MSS_1460));
            let changed = clamped(&packet, 1220);
            assert_eq!(changed[42..44], 1180u16.to_be_bytes());
            assert_checksum(&changed);
            let packet = v6(6, &tcp(flags, &MSS_1460));
            let changed = clamped(&packet, 1220);
            assert_eq!(changed[62..64], 1160u16.to_be_bytes());
            assert_checksum(&changed);
        }
    }

    #[test]
    fn the_option_is_found_behind_others_at_any_offset() {
        for before in [&[1][..], &[1, 1], &[4, 2, 1], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1], &[3, 3, 7]] {
            let mut options = [before, &MSS_1460].concat();
            options.resize(options.len().next_multiple_of(4), 0);
            let changed = clamped(&v4(&tcp(0x02, &options)), 1220);
            let at = 40 + before.len() + 2;
            assert_eq!(changed[at..at + 2], 1180u16.to_be_bytes(), "{before:?}");
            assert_checksum(&changed);
        }
    }

    #[test]
    fn a_partial_checksum_is_left_alone() {
        let packet = v4(&tcp(0x02, &MSS_1460));
        let mut changed = packet.clone();
        clamp(&mut changed, 1220, true);
        assert_eq!(changed[36..38], packet[36..38]);
        assert_eq!(changed[42..44], 1180u16.to_be_bytes());
    }

    #[test]
    fn a_syn_behind_extension_headers_is_found() {
        let syn = tcp(0x02, &MSS_1460);
        let extension = |next: u8| vec![next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for chain in [
            (0, extension(6)),
            (0, [extension(60), extension(6)].concat()),
            (43, [extension(51), vec![6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()),
            (44, vec![6, 0, 0, 1, 0, 0, 0, 9]),
        ] {
            let packet = v6(chain.0, &[chain.1.clone(), syn.clone()].concat());
            let changed = clamped(&packet, 1300);
            let at = packet.len() - 2;
            assert_eq!(changed[at..], 1240u16.to_be_bytes(), "{chain:?}");
        }
        let later_fragment = v6(44, &[vec![6, 0, 0, 8, 0, 0, 0, 9], syn].concat());
        assert_eq!(clamped(&later_fragment, 1300), later_fragment);
    }

    #[test]
    fn nothing_else_is_changed() {
        let mut later_fragment = v4(&tcp(0x02, &MSS_1460));
        later_fragment[7] = 1;
        let mut udp = v4(&tcp(0x02, &MSS_1460));
        udp[9] = 17;
        for packet in [
            v4(&tcp(0x10, &MSS_1460)),
            v4(&tcp(0x02, &[2, 4, 4, 0])),
            v4(&tcp(0x02, &[])),
            v4(&tcp(0x02, &[0, 2, 4, 5])),
            v4(&tcp(0x02, &[8, 0, 2, 4])),
            v4(&tcp(0x02, &[1, 1, 2, 4])),
            v6(59, &tcp(0x02, &MSS_1460)),
            v6(0, &[6]),
            v6(0, &[6, 100, 0, 0, 0, 0, 0, 0]),
            v6(0, &[6, 0, 1, 4, 0, 0, 0, 0]),
            later_fragment,
            udp,
        ] {
            assert_eq!(clamped(&packet, 1220), packet);
        }
    }

    /// Bytes that often say which header comes next.
    fn byte() -> impl Strategy<Value = u8> {
        let headers = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS, PROTOCOL_TCP];
        prop_oneof![any::<u8>(), prop::sample::select(headers.to_vec())]
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(byte(), 0..200), next in byte(), longest: u16) {
            for packet in [bytes.clone(), v4(&bytes), v6(next, &bytes)] {
                prop_assert_eq!(clamped(&packet, longest).len(), packet.len());
            }
        }
    }
}
