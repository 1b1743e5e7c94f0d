//! Just enough of Ethernet, IPv4, UDP and TCP to read a captured frame and to change one without being noticed.
//!
//! This is the attacker's view: it knows no key. underpass itself never parses frames.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;

const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The transport protocol of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where things lie in a frame that carries TCP or UDP over IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// TCP or UDP.
    pub(super) transport: Transport,
    /// Who sent it.
    pub(super) source: SocketAddrV4,
    /// Whom it is for.
    pub(super) destination: SocketAddrV4,
    /// The TCP or UDP header and the payload.
    segment: Range<usize>,
    /// What the transport carries.
    pub(super) payload: Range<usize>,
}

/// Is this an address look-up (ARP), which every Ethernet needs?
pub(super) fn is_address_lookup(frame: &[u8]) -> bool {
    frame.get(12..ETHERNET_HEADER) == Some(&ETHERTYPE_ARP)
}

/// Finds TCP or UDP in a frame. `None` for everything else and for whatever is cut short.
pub(super) fn parse(frame: &[u8]) -> Option<Layout> {
    if frame.get(12..ETHERNET_HEADER)? != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = frame.get(ETHERNET_HEADER..)?;
    let header_length = usize::from(ip.first()? & 15) * 4;
    let total_length = usize::from(u16_at(ip, 2)?);
    let transport = match *ip.get(9)? {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    let segment = ip.get(header_length..total_length)?;
    let transport_header = match transport {
        Transport::Tcp => usize::from(segment.get(12)? >> 4) * 4,
        Transport::Udp => 8,
    };
    segment.get(transport_header..)?;
    let start = ETHERNET_HEADER + header_length;
    Some(Layout {
        transport,
        source: SocketAddrV4::new(address_at(ip, 12)?, u16_at(segment, 0)?),
        destination: SocketAddrV4::new(address_at(ip, 16)?, u16_at(segment, 2)?),
        segment: start..start + segment.len(),
        payload: start + transport_header..start + segment.len(),
    })
}

/// A few words about a frame that nobody expected.
pub(super) fn describe(frame: &[u8]) -> String {
    match parse(frame) {
        Some(layout) => format!("{:?} {} to {}", layout.transport, layout.source, layout.destination),
        None => format!("{} bytes of type {:02x?}", frame.len(), frame.get(12..ETHERNET_HEADER).unwrap_or_default()),
    }
}

/// Computes the transport's checksum again, as an attacker does after a change. Senders on a virtual cable leave it to a
/// network card that is not there, so a relay must do it for unchanged frames too.
pub(super) fn refresh_checksum(frame: &mut [u8], layout: &Layout) {
    let (protocol, offset) = match layout.transport {
        Transport::Tcp => (TCP, 16),
        Transport::Udp => (UDP, 6),
    };
    let segment = &mut frame[layout.segment.clone()];
    segment[offset..offset + 2].fill(0);
    let mut pseudo_header = Vec::with_capacity(12);
    pseudo_header.extend(layout.source.ip().octets());
    pseudo_header.extend(layout.destination.ip().octets());
    pseudo_header.extend([0, protocol]);
    pseudo_header.extend(u16::try_from(segment.len()).expect("an IPv4 length fits 16 bits").to_be_bytes());
    // RFC 768: a computed checksum of zero is sent as all ones; TCP receivers take either.
    let checksum = match !(fold(sum(&pseudo_header) + sum(segment))) {
        0 => 0xffff,
        checksum => checksum,
    };
    segment[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded to 16 bits")
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn address_at(bytes: &[u8], offset: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(offset..offset + 4)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP datagram "hi" from 192.0.2.1:4660 to 192.0.2.11:51900, its checksum left at zero.
    fn datagram() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 11]);
        frame.extend([0x12, 0x34, 0xca, 0xbc, 0, 10, 0, 0, b'h', b'i']);
        frame
    }

    #[test]
    fn finds_the_payload_and_leaves_out_ethernet_padding() {
        let mut frame = datagram();
        frame.extend([0; 16]);
        let layout = parse(&frame).unwrap();
        assert_eq!(&frame[layout.payload], b"hi");
        assert_eq!(layout.source.to_string(), "192.0.2.1:4660");
        assert_eq!(layout.destination.to_string(), "192.0.2.11:51900");
    }

    #[test]
    fn a_frame_cut_short_anywhere_is_nothing() {
        let frame = datagram();
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_refreshed_checksum_sums_to_all_ones() {
        let mut frame = datagram();
        let layout = parse(&frame).unwrap();
        refresh_checksum(&mut frame, &layout);
        let pseudo_header = [192, 0, 2, 1, 192, 0, 2, 11, 0, 17, 0, 10];
        assert_eq!(fold(sum(&pseudo_header) + sum(&frame[layout.segment])), 0xffff);
    }
}
