//! IP packets byte by byte: headers, checksums (RFC 791, RFC 8200, RFC 768, RFC 9293, RFC 1071).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Extension headers that can be passed over by their length: hop-by-hop, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

pub(crate) fn field(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

pub(crate) fn set_field(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at] = (value >> 8) as u8;
    bytes[at + 1] = value as u8;
}

pub(crate) fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// Whether the bytes are exactly one packet, by its header.
pub(crate) fn is_whole(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            let header_len = ip_header_len(packet);
            (20..=packet.len()).contains(&header_len) && field(packet, 2) == packet.len()
        }
        Some(6) if packet.len() >= 40 => field(packet, 4) + 40 == packet.len(),
        _ => false,
    }
}

/// Length of the IP header, without IPv6 extensions.
pub(crate) fn ip_header_len(packet: &[u8]) -> usize {
    if is_v4(packet) { usize::from(packet[0] & 15) * 4 } else { 40 }
}

/// Source and destination.
pub(crate) fn addresses(packet: &[u8]) -> [IpAddr; 2] {
    if is_v4(packet) { [12, 16].map(|at| v4(&packet[at..at + 4])) } else { [8, 24].map(|at| v6(&packet[at..at + 16])) }
}

/// Whether one machine can have it, and be asked for by it.
pub(crate) fn is_of_one(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            first != 127 && !(224..=239).contains(&first) && !matches!(u32::from(address), 0 | u32::MAX)
        }
        IpAddr::V6(address) => address.octets()[0] != 0xff && u128::from(address) > 1,
    }
}

fn v4(octets: &[u8]) -> IpAddr {
    Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
}

fn v6(octets: &[u8]) -> IpAddr {
    let octets: [u8; 16] = octets.try_into().expect("sixteen bytes");
    Ipv6Addr::from(octets).into()
}

/// Whether nobody has cut it, and nobody may.
pub(crate) fn is_atomic(packet: &[u8]) -> bool {
    !is_v4(packet) || field(packet, 6) & 0x7fff == 0x4000
}

/// What a packet says of congestion: nothing (0), nothing yet (1, 2), that it met some (3).
pub(crate) fn ecn(packet: &[u8]) -> u8 {
    if is_v4(packet) { packet[1] & 3 } else { packet[1] >> 4 & 3 }
}

/// Has a packet say that it met congestion; its header checksum is left as it is.
pub(crate) fn mark_congestion(packet: &mut [u8]) {
    packet[1] |= if is_v4(packet) { 3 } else { 0x30 };
}

/// What becomes of a packet in a datagram whose ECN field says `outer` when it arrives, or `None` if that can only be told
/// by a loss (RFC 6040 §4.2). A header checksum stays as right as it was (RFC 1624 §3).
pub(crate) fn decapsulated(packet: &[u8], outer: u8) -> Option<Vec<u8>> {
    let version = packet.first().map_or(0, |byte| byte >> 4);
    let inner = if matches!(version, 4 | 6) && packet.len() > 1 { ecn(packet) } else { 0 };
    let new = match (inner, outer) {
        (0, 3) => return None,
        (1 | 2, 3) => 3,
        (2, 1) => 1,
        _ => inner,
    };
    let mut packet = packet.to_vec();
    if new == inner {
        return Some(packet);
    }
    if version == 6 {
        packet[1] = packet[1] & 0xcf | new << 4;
        return Some(packet);
    }
    if packet.len() < 12 {
        // Without a place for a checksum, it is left as it is.
        return (new != 3).then_some(packet);
    }
    let before = field(&packet, 0);
    packet[1] = packet[1] & 0xfc | new;
    let complement = |word: usize| 0xffff - word;
    let changed = add(complement(field(&packet, 10)), add(complement(before), field(&packet, 0)));
    set_field(&mut packet, 10, complement(changed));
    Some(packet)
}

/// A whole TCP or UDP header: which, where, and where the payload begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transport {
    pub protocol: u8,
    pub start: usize,
    pub payload_start: usize,
}

impl Transport {
    pub(crate) fn checksum_offset(self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }
}

/// The transport header of a whole packet that is no fragment, maybe behind IPv6 extension headers.
pub(crate) fn transport(packet: &[u8]) -> Option<Transport> {
    let mut start = ip_header_len(packet);
    let mut protocol = if is_v4(packet) { packet[9] } else { packet[6] };
    if is_v4(packet) && field(packet, 6) & 0x3fff != 0 {
        return None;
    }
    while !is_v4(packet) && EXTENSIONS.contains(&protocol) {
        let header = packet.get(start..start + 2)?;
        protocol = header[0];
        start += 8 + usize::from(header[1]) * 8;
    }
    let header_len = match protocol {
        TCP => usize::from(packet.get(start + 12)? >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let shortest = if protocol == TCP { 20 } else { 8 };
    let is_there = header_len >= shortest && start + header_len <= packet.len();
    is_there.then_some(Transport { protocol, start, payload_start: start + header_len })
}

/// The same, only directly behind the IP header.
pub(crate) fn direct_transport(packet: &[u8]) -> Option<Transport> {
    transport(packet).filter(|transport| transport.start == ip_header_len(packet))
}

/// The one's-complement sum of all words.
pub(crate) fn sum(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks();
    let odd = rest.first().map_or(0, |byte| usize::from(*byte) << 8);
    fold(words.iter().map(|word| usize::from(u16::from_be_bytes(*word))).sum::<usize>() + odd)
}

pub(crate) fn add(one: usize, two: usize) -> usize {
    fold(one + two)
}

fn fold(mut sum: usize) -> usize {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The sum over addresses, protocol and length of what is behind the IP header.
pub(crate) fn pseudo_header_sum(packet: &[u8], transport: Transport) -> usize {
    let addresses = if is_v4(packet) { 12..20 } else { 8..40 };
    add(sum(&packet[addresses]), add(usize::from(transport.protocol), packet.len() - transport.start))
}

/// What a field says whose whole range sums up to `sum` without it. Zero would mean "none" in UDP.
pub(crate) fn checksum(sum: usize) -> usize {
    if sum == 0xffff { 0xffff } else { 0xffff - sum }
}

/// The packet with its TCP or UDP checksum computed, whatever the field said.
pub(crate) fn completed(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let Some(transport) = direct_transport(&packet) else { return packet };
    let at = transport.start + transport.checksum_offset();
    set_field(&mut packet, at, 0);
    let sum = add(pseudo_header_sum(&packet, transport), sum(&packet[transport.start..]));
    set_field(&mut packet, at, checksum(sum));
    packet
}
