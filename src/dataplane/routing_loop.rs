//! Recognises our own datagrams when a route sends them into the tunnel that they carry: sealed again, each would come
//! back longer, for ever.

use std::net::SocketAddr;

use crate::packet::ip::{FRAGMENT, IpPacket, PROTOCOL_UDP};

/// Where a UDP packet goes that left one of our ports; `None` for all others. A first fragment counts: without it the
/// others are never put together.
pub(super) fn own_datagram_destination(packet: &IpPacket<'_>, ports: &[u16]) -> Option<SocketAddr> {
    let bytes = packet.bytes();
    let transport = match (packet.source().is_ipv4(), packet.protocol()) {
        (true, PROTOCOL_UDP) if u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff == 0 => &bytes[packet.header_len()..],
        (false, PROTOCOL_UDP) => &bytes[packet.header_len()..],
        (false, FRAGMENT) => match bytes[packet.header_len()..] {
            [PROTOCOL_UDP, _, high, low, _, _, _, _, ref rest @ ..] if u16::from_be_bytes([high, low]) >> 3 == 0 => {
                rest
            }
            _ => return None,
        },
        _ => return None,
    };
    let &[source_high, source_low, high, low, ..] = transport else { return None };
    ports
        .contains(&u16::from_be_bytes([source_high, source_low]))
        .then(|| SocketAddr::new(packet.destination(), u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    /// What [`Sample`] writes.
    const SOURCE_PORT: u16 = 0x1f90;
    const DESTINATION_PORT: u16 = 0xc350;

    fn destination(bytes: &[u8], ports: &[u16]) -> Option<SocketAddr> {
        own_datagram_destination(&IpPacket::parse(bytes).unwrap(), ports)
    }

    #[test]
    fn udp_from_our_port_is_recognised_in_both_families() {
        let v6 = Sample::udp_v6(100, 0);
        let v4 = Sample { v6: false, ..v6.clone() };
        let expected = |address: &str| Some(SocketAddr::new(address.parse().unwrap(), DESTINATION_PORT));
        assert_eq!(destination(&v4.packet(), &[51_900, SOURCE_PORT]), expected("10.77.0.2"));
        assert_eq!(destination(&v6.packet(), &[SOURCE_PORT]), expected("fd00::2"));
        assert_eq!(destination(&v4.packet(), &[51_900]), None);
        assert_eq!(destination(&Sample::tcp_v4(100, 0).packet(), &[SOURCE_PORT]), None);
    }

    #[test]
    fn the_first_fragment_is_recognised_and_the_others_are_not() {
        let mut v4 = Sample { v6: false, ..Sample::udp_v6(100, 0) }.packet();
        v4[6] = 0x20;
        assert!(destination(&v4, &[SOURCE_PORT]).is_some());
        v4[7] = 1;
        assert_eq!(destination(&v4, &[SOURCE_PORT]), None);

        let mut v6 = Sample::udp_v6(100, 0).packet();
        v6[6] = FRAGMENT;
        v6.splice(40..40, [PROTOCOL_UDP, 0, 0, 1, 0, 0, 0, 7]);
        v6[5] += 8;
        assert!(destination(&v6, &[SOURCE_PORT]).is_some());
        v6[43] = 9;
        assert_eq!(destination(&v6, &[SOURCE_PORT]), None);
    }

    #[test]
    fn a_header_cut_short_is_nobodys() {
        for protocol in [PROTOCOL_UDP, FRAGMENT] {
            let mut v6 = Sample::udp_v6(0, 0).packet();
            v6.truncate(43);
            v6[4..7].copy_from_slice(&[0, 3, protocol]);
            assert_eq!(destination(&v6, &[SOURCE_PORT]), None);
        }
    }
}
