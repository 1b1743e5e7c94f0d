//! What a packet says of itself beyond its IP header: the upper-layer protocol and message, behind IPv6 extension headers,
//! in a fragment, or quoted in an ICMP error.
//!
//! It reads, and judges nothing. Every length is compared with the bytes; what it does not know to skip, it does not guess.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip::{
    DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, ROUTING,
};

/// A packet's addresses, protocol and upper-layer message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers<'a> {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The upper-layer protocol. Of a fragment that is not the first, the protocol that the fragment itself names.
    pub protocol: u8,
    /// Set if this is a part of a packet.
    pub fragment: Option<Fragment>,
    /// The upper-layer message from its header on, as far as it lies in these bytes.
    pub message: &'a [u8],
}

/// Which part of which packet a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The packet, among those of the same addresses, and in IPv4 of the same protocol (RFC 791 §3.2, RFC 8200 §4.5).
    pub identification: u32,
    /// Where this part begins, in bytes from the beginning of the fragmentable part. 0 in the first, which has the
    /// upper-layer header.
    pub offset: usize,
}

/// IP options, or an extension header that is not followed: unknown, too many, cut short, or one that lets a packet travel
/// to others than its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

impl<'a> Headers<'a> {
    /// Of a whole packet.
    pub fn of(packet: &IpPacket<'a>) -> Result<Self, Unreadable> {
        match (packet.source(), packet.destination()) {
            (source @ IpAddr::V4(_), destination) => Self::of_v4(source, destination, packet.bytes()),
            (source, destination) => Self::of_v6(source, destination, packet.bytes()),
        }
    }

    /// Of the beginning of a packet, as an ICMP error quotes it: length fields may promise more than there is.
    pub fn quoted(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        match bytes.first().ok_or(Unreadable)? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER_LEN] = bytes.first_chunk().ok_or(Unreadable)?;
                let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
                Self::of_v4(address(12).into(), address(16).into(), bytes)
            }
            6 => {
                let header: &[u8; IPV6_HEADER_LEN] = bytes.first_chunk().ok_or(Unreadable)?;
                let address = |at: usize| {
                    let octets: [u8; 16] = header[at..at + 16].try_into().expect("16 bytes of a 40-byte header");
                    IpAddr::from(Ipv6Addr::from(octets))
                };
                Self::of_v6(address(8), address(24), bytes)
            }
            _ => Err(Unreadable),
        }
    }

    /// `bytes` has a whole IPv4 header without options.
    fn of_v4(source: IpAddr, destination: IpAddr, bytes: &'a [u8]) -> Result<Self, Unreadable> {
        // Options serve source routes and nothing that passes here (RFC 7126 §4).
        if usize::from(bytes[0] & 0xf) * 4 != IPV4_HEADER_LEN {
            return Err(Unreadable);
        }
        let flags_and_offset = u16::from_be_bytes([bytes[6], bytes[7]]);
        let is_fragment = flags_and_offset & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET) != 0;
        let fragment = Fragment {
            identification: u16::from_be_bytes([bytes[4], bytes[5]]).into(),
            offset: usize::from(flags_and_offset & IPV4_OFFSET) * 8,
        };
        Ok(Self {
            source,
            destination,
            protocol: bytes[9],
            fragment: is_fragment.then_some(fragment),
            message: &bytes[IPV4_HEADER_LEN..],
        })
    }

    /// `bytes` has a whole IPv6 header.
    fn of_v6(source: IpAddr, destination: IpAddr, bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (mut protocol, mut message) = (bytes[6], &bytes[IPV6_HEADER_LEN..]);
        let mut fragment = None;
        let mut passed = 0;
        loop {
            match protocol {
                // It may lead elsewhere than to the destination.
                ROUTING => return Err(Unreadable),
                // Where the upper-layer header begins in a fragment has to be certain: what overlaps it is told by that.
                HOP_BY_HOP | DESTINATION_OPTIONS | FRAGMENT
                    if fragment.is_some() || passed == MAX_EXTENSION_HEADERS =>
                {
                    return Err(Unreadable);
                }
                HOP_BY_HOP | DESTINATION_OPTIONS | FRAGMENT => {}
                _ => return Ok(Self { source, destination, protocol, fragment, message }),
            }
            let header: &[u8; 8] = message.first_chunk().ok_or(Unreadable)?;
            let mut header_len = header.len();
            match protocol {
                FRAGMENT => {
                    let offset = usize::from(u16::from_be_bytes([header[2], header[3]]) & IPV6_OFFSET);
                    let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    fragment = Some(Fragment { identification, offset });
                    if offset > 0 {
                        // What follows is the middle of something.
                        return Ok(Self { source, destination, protocol: FRAGMENT, fragment, message: &message[8..] });
                    }
                }
                _ => header_len += usize::from(header[1]) * 8,
            }
            protocol = header[0];
            message = message.get(header_len..).ok_or(Unreadable)?;
            passed += 1;
        }
    }

    /// Those of a packet the other way.
    pub fn reversed(&self) -> Self {
        Self { source: self.destination, destination: self.source, ..*self }
    }

    /// Whether it has no upper-layer header: that is in the first fragment.
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset > 0)
    }

    /// Whether it is ICMP of its own IP version.
    pub fn is_icmp(&self) -> bool {
        self.protocol == if self.source.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 }
    }
}

const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_OFFSET: u16 = 0x1fff;
/// In units of eight bytes, which are the field's lower bits: so the offset in bytes.
const IPV6_OFFSET: u16 = 0xfff8;

/// More than any sender has a use for (RFC 8200 §4.1 names each once, destination options twice).
const MAX_EXTENSION_HEADERS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::ip::PROTOCOL_UDP;

    fn v4(protocol: u8, fragment: u16, message: &[u8]) -> Vec<u8> {
        let length = (IPV4_HEADER_LEN + message.len()) as u8;
        let mut packet = vec![0x45, 0, 0, length, 0xab, 0xcd, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend(message);
        packet
    }

    /// A packet of these extension headers, each its kind and its bytes behind the first, before `protocol`.
    fn v6(extensions: &[(u8, &[u8])], protocol: u8, message: &[u8]) -> Vec<u8> {
        let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([protocol]).collect();
        let mut payload = Vec::new();
        for ((_, rest), next) in extensions.iter().zip(&kinds[1..]) {
            payload.push(*next);
            payload.extend(*rest);
        }
        payload.extend(message);
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, kinds[0], 64];
        packet.extend([&[0xfd; 16][..], &[0xfe; 16]].concat());
        packet.extend(payload);
        packet
    }

    fn read(bytes: &[u8]) -> Result<Headers<'_>, Unreadable> {
        Headers::of(&IpPacket::parse(bytes).unwrap())
    }

    const OPTIONS: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    const LONG_OPTIONS: &[u8] = &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn finds_the_message_behind_the_extension_headers_that_it_knows() {
        let plain = read(&v4(PROTOCOL_UDP, 0x4000, b"message")).map(|headers| (headers.protocol, headers.fragment));
        assert_eq!(plain, Ok((PROTOCOL_UDP, None)));
        for extensions in [
            &[][..],
            &[(HOP_BY_HOP, OPTIONS)],
            &[(HOP_BY_HOP, OPTIONS), (DESTINATION_OPTIONS, LONG_OPTIONS)],
            &[(DESTINATION_OPTIONS, LONG_OPTIONS)],
        ] {
            let bytes = v6(extensions, PROTOCOL_UDP, b"message");
            let headers = read(&bytes).unwrap();
            assert_eq!((headers.protocol, headers.message, headers.fragment), (PROTOCOL_UDP, &b"message"[..], None));
        }
    }

    #[test]
    fn reads_which_part_of_which_packet_a_fragment_is() {
        let first = v4(PROTOCOL_UDP, 0x2000, b"message");
        let fragment = |offset| Some(Fragment { identification: 0xabcd, offset });
        assert_eq!(read(&first).unwrap().fragment, fragment(0));
        assert_eq!(read(&v4(PROTOCOL_UDP, 0x2002, b"message")).unwrap().fragment, fragment(16));
        assert_eq!(read(&v4(PROTOCOL_UDP, 0x0001, b"message")).unwrap().fragment, fragment(8));

        let first = v6(&[(FRAGMENT, &[0, 0, 1, 0, 0, 0xab, 0xcd])], PROTOCOL_UDP, b"message");
        let headers = read(&first).unwrap();
        assert_eq!((headers.protocol, headers.fragment), (PROTOCOL_UDP, fragment(0)));
        let later = v6(&[(FRAGMENT, &[0, 0, 0x11, 0, 0, 0xab, 0xcd])], HOP_BY_HOP, b"message");
        let headers = read(&later).unwrap();
        assert_eq!((headers.protocol, headers.fragment, headers.message), (FRAGMENT, fragment(16), &b"message"[..]));
    }

    #[test]
    fn does_not_read_what_it_would_have_to_guess() {
        let mut options = v4(PROTOCOL_UDP, 0, b"mess");
        options[0] = 0x46;
        assert_eq!(read(&options), Err(Unreadable));
        let fragment: (u8, &[u8]) = (FRAGMENT, &[0, 0, 1, 0, 0, 0, 1]);
        for (why, bytes) in [
            ("a routing header", v6(&[(ROUTING, OPTIONS)], PROTOCOL_UDP, b"message")),
            ("too many", v6(&[(DESTINATION_OPTIONS, OPTIONS); 5], PROTOCOL_UDP, b"message")),
            ("two fragment headers", v6(&[fragment, fragment], PROTOCOL_UDP, b"message")),
            ("options in a fragment", v6(&[fragment, (DESTINATION_OPTIONS, OPTIONS)], PROTOCOL_UDP, b"message")),
            ("shorter than any", v6(&[(HOP_BY_HOP, &[0, 1])], PROTOCOL_UDP, b"")),
            ("longer than the packet", v6(&[(HOP_BY_HOP, &[2, 1, 4, 0, 0, 0, 0])], PROTOCOL_UDP, b"message")),
        ] {
            assert_eq!(read(&bytes), Err(Unreadable), "{why}");
        }
    }

    #[test]
    fn a_quotation_may_be_cut_short_behind_its_ip_header() {
        for bytes in [v4(PROTOCOL_UDP, 0, b"message"), v6(&[], PROTOCOL_UDP, b"message")] {
            let header_len = bytes.len() - b"message".len();
            for length in 0..header_len {
                assert_eq!(Headers::quoted(&bytes[..length]), Err(Unreadable), "{length}");
            }
            for length in header_len..bytes.len() {
                let cut = Headers::quoted(&bytes[..length]).unwrap();
                assert_eq!(Headers { message: b"", ..cut }, Headers { message: b"", ..read(&bytes).unwrap() });
            }
        }
        assert_eq!(Headers::quoted(&[0x50; 60]), Err(Unreadable));
    }

    #[test]
    fn icmp_is_that_of_the_packets_ip_version() {
        for (bytes, is_icmp) in [
            (v4(PROTOCOL_ICMP, 0, &[8]), true),
            (v4(PROTOCOL_ICMPV6, 0, &[128]), false),
            (v6(&[], PROTOCOL_ICMPV6, &[128]), true),
            (v6(&[], PROTOCOL_ICMP, &[8]), false),
        ] {
            assert_eq!(read(&bytes).unwrap().is_icmp(), is_icmp);
        }
    }
}
