//! Ethernet frames and what is in them, as far as a sniffer and an attacker care.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// A hardware address.
pub type Mac = [u8; 6];

/// The hardware address that everybody listens to.
pub const BROADCAST: Mac = [0xff; 6];

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Address resolution for IPv4.
    Arp,
    /// Neighbour discovery, its router and group messages: address resolution for IPv6.
    NeighbourDiscovery,
    /// A UDP datagram.
    Udp(Datagram),
    /// Some other IP packet, with its protocol number.
    Ip(u8),
    /// Something else, with its EtherType.
    Other(u16),
}

/// A UDP datagram in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it, so it says.
    pub source: SocketAddr,
    /// Whom it is for.
    pub destination: SocketAddr,
    /// Where its payload lies in the frame.
    pub payload: Range<usize>,
}

/// An IP packet's addresses and where its upper layer lies in the frame.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    upper: Range<usize>,
    fragment: bool,
}

const ETHERNET_HEADER: usize = 14;
const UDP_HEADER: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;

/// What an Ethernet frame carries. A frame that is cut short is [`Content::Other`].
pub fn content(frame: &[u8]) -> Content {
    let Some(ether_type) = number(frame, 12) else { return Content::Other(0) };
    match (ether_type, ip(frame)) {
        (0x0806, _) => Content::Arp,
        (_, None) => Content::Other(ether_type),
        (_, Some(ip)) => ip_content(frame, &ip),
    }
}

/// The UDP datagram in a frame, if there is one.
pub fn datagram(frame: &[u8]) -> Option<Datagram> {
    match content(frame) {
        Content::Udp(datagram) => Some(datagram),
        _ => None,
    }
}

/// Writes the right UDP or TCP checksum into a frame: after a change, and because a frame that a machine sends to another on
/// the same host carries only part of one.
pub fn fix_checksum(frame: &mut [u8]) {
    let Some(ip) = ip(frame) else { return };
    let offset = match ip.protocol {
        UDP => 6,
        TCP => 16,
        _ => return,
    };
    let field = ip.upper.start + offset..ip.upper.start + offset + 2;
    if ip.fragment || field.end > ip.upper.end {
        return;
    }
    frame[field.clone()].fill(0);
    let sum = match checksum(&ip, &frame[ip.upper.clone()]) {
        // A UDP checksum of 0 would say "none was computed".
        0 if ip.protocol == UDP => 0xffff,
        sum => sum,
    };
    frame[field].copy_from_slice(&sum.to_be_bytes());
}

/// The same frame with only the first `length` bytes of its datagram's payload, and with headers that say so.
pub fn truncated(frame: &[u8], datagram: &Datagram, length: usize) -> Vec<u8> {
    let mut frame = frame[..datagram.payload.start + length].to_vec();
    let header = ETHERNET_HEADER..datagram.payload.start - UDP_HEADER;
    let is_v4 = frame[header.start] >> 4 == 4;
    let udp = u16::try_from(UDP_HEADER + length).expect("it was longer before");
    frame[header.end + 4..header.end + 6].copy_from_slice(&udp.to_be_bytes());
    // IPv6 does not count its first header.
    let (at, counted) = if is_v4 { (2, header.len()) } else { (4, header.len() - 40) };
    let ip = udp + u16::try_from(counted).expect("headers are short");
    frame[header.start + at..header.start + at + 2].copy_from_slice(&ip.to_be_bytes());
    if is_v4 {
        let field = header.start + 10..header.start + 12;
        frame[field.clone()].fill(0);
        let sum = checksum_of(&frame[header]);
        frame[field].copy_from_slice(&sum.to_be_bytes());
    }
    fix_checksum(&mut frame);
    frame
}

/// Whether `needle` occurs in `haystack`.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn ip_content(frame: &[u8], ip: &Ip) -> Content {
    match ip.protocol {
        UDP if !ip.fragment => udp(frame, ip).map_or(Content::Ip(UDP), Content::Udp),
        // RFC 4861 and RFC 3810: listener reports 131, 132, 143 and queries 130, neighbour discovery 133 to 137.
        ICMP_V6 if matches!(frame.get(ip.upper.start), Some(130..=137 | 143)) => Content::NeighbourDiscovery,
        protocol => Content::Ip(protocol),
    }
}

fn udp(frame: &[u8], ip: &Ip) -> Option<Datagram> {
    let start = ip.upper.start;
    let source = SocketAddr::new(ip.source, number(frame, start)?);
    let destination = SocketAddr::new(ip.destination, number(frame, start + 2)?);
    let length = usize::from(number(frame, start + 4)?);
    let payload = start + UDP_HEADER..start + length;
    (payload.start <= payload.end && payload.end <= ip.upper.end).then_some(Datagram { source, destination, payload })
}

fn ip(frame: &[u8]) -> Option<Ip> {
    match number(frame, 12)? {
        0x0800 => ipv4(frame),
        0x86dd => ipv6(frame),
        _ => None,
    }
}

fn ipv4(frame: &[u8]) -> Option<Ip> {
    let packet = frame.get(ETHERNET_HEADER..)?;
    let header = packet.get(..20)?;
    let upper = usize::from(header[0] & 0xf) * 4..usize::from(number(header, 2)?);
    Some(Ip {
        source: Ipv4Addr::from(bytes(header, 12)?).into(),
        destination: Ipv4Addr::from(bytes(header, 16)?).into(),
        protocol: header[9],
        // More fragments follow, or this is not the first.
        fragment: number(header, 6)? & 0x3fff != 0,
        upper: within_frame(upper, packet)?,
    })
}

fn ipv6(frame: &[u8]) -> Option<Ip> {
    const FRAGMENT: u8 = 44;
    const HOP_BY_HOP: u8 = 0;
    let packet = frame.get(ETHERNET_HEADER..)?;
    let header = packet.get(..40)?;
    let end = 40 + usize::from(number(header, 4)?);
    let (mut protocol, mut start) = (header[6], 40);
    if protocol == HOP_BY_HOP {
        // Group reports carry a router alert here.
        protocol = *packet.get(start)?;
        start += 8 * (1 + usize::from(*packet.get(start + 1)?));
    }
    Some(Ip {
        source: Ipv6Addr::from(bytes(header, 8)?).into(),
        destination: Ipv6Addr::from(bytes(header, 24)?).into(),
        protocol,
        fragment: protocol == FRAGMENT,
        upper: within_frame(start..end, packet)?,
    })
}

fn within_frame(range: Range<usize>, packet: &[u8]) -> Option<Range<usize>> {
    let fits = range.start <= range.end && range.end <= packet.len();
    fits.then_some(range.start + ETHERNET_HEADER..range.end + ETHERNET_HEADER)
}

fn checksum(ip: &Ip, upper: &[u8]) -> u16 {
    let addresses = match (ip.source, ip.destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
        (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
        _ => unreachable!("both addresses come from one header"),
    };
    let length = u32::try_from(upper.len()).expect("a packet is shorter than 4 GiB");
    folded(sum_words(&addresses) + sum_words(&length.to_be_bytes()) + u64::from(ip.protocol) + sum_words(upper))
}

/// RFC 1071's.
pub(crate) fn checksum_of(bytes: &[u8]) -> u16 {
    folded(sum_words(bytes))
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

fn sum_words(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    sum + rest.first().map_or(0, |&last| u64::from(last) << 8)
}

fn number(data: &[u8], offset: usize) -> Option<u16> {
    bytes(data, offset).map(u16::from_be_bytes)
}

fn bytes<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    data.get(offset..offset + N)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DNS-like datagram of 4 bytes, 192.0.2.1:1000 to 192.0.2.2:2000.
    fn ipv4_frame() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend([0x03, 0xe8, 0x07, 0xd0, 0, 12, 0, 0, b'a', b'b', b'c', b'd']);
        frame
    }

    #[test]
    fn finds_a_datagram_and_its_payload() {
        let frame = ipv4_frame();
        let datagram = datagram(&frame).unwrap();
        assert_eq!(datagram.source, "192.0.2.1:1000".parse().unwrap());
        assert_eq!(datagram.destination, "192.0.2.2:2000".parse().unwrap());
        assert_eq!(&frame[datagram.payload], b"abcd");
    }

    #[test]
    fn a_fixed_checksum_makes_the_words_sum_to_all_ones() {
        let mut frame = ipv4_frame();
        fix_checksum(&mut frame);
        let ip = ip(&frame).unwrap();
        assert_ne!(frame[40..42], [0, 0]);
        assert_eq!(checksum(&ip, &frame[ip.upper.clone()]), 0);
    }

    #[test]
    fn a_truncated_frame_has_a_datagram_that_is_shorter() {
        let frame = ipv4_frame();
        let shorter = truncated(&frame, &datagram(&frame).unwrap(), 3);
        assert_eq!(&shorter[datagram(&shorter).unwrap().payload], b"abc");
        assert_eq!(checksum_of(&shorter[14..34]), 0, "the IPv4 header's checksum");
        let ip = ip(&shorter).unwrap();
        assert_eq!(checksum(&ip, &shorter[ip.upper.clone()]), 0);
    }

    #[test]
    fn a_frame_cut_anywhere_is_never_a_datagram() {
        let frame = ipv4_frame();
        for length in 0..frame.len() {
            assert_eq!(datagram(&frame[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_group_report_behind_a_router_alert_is_neighbour_discovery() {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 0, 1]);
        frame.extend([0; 32]);
        frame.extend([ICMP_V6, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0]);
        assert_eq!(content(&frame), Content::NeighbourDiscovery);
    }
}
