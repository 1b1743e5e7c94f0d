//! Packets inside the tunnel: UDP over IPv4 or IPv6, each with a number that names it in the ledger.

use std::net::IpAddr;

/// A UDP packet whose payload is `number` and a filling that follows from it, `length` bytes but at least eight.
pub(crate) fn inner_packet(source: IpAddr, destination: IpAddr, number: u64, length: usize) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(length.max(payload.len()), (number % 251) as u8);
    let datagram_len = (8 + payload.len()) as u16;
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total_len = (20 + datagram_len).to_be_bytes();
            let header = [0x45, 0, total_len[0], total_len[1], 0, 0, 0, 0, 64, 17, 0, 0];
            [&header[..], &source.octets(), &destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let payload_len = datagram_len.to_be_bytes();
            let header = [0x60, 0, 0, 0, payload_len[0], payload_len[1], 17, 64];
            [&header[..], &source.octets(), &destination.octets()].concat()
        }
        _ => panic!("{source} and {destination} are of different families"),
    };
    packet.extend([0x10, 0, 0x20, 0]);
    packet.extend(datagram_len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// The number of a packet made by [`inner_packet`].
pub(crate) fn number_of(packet: &[u8]) -> Option<u64> {
    let header_len = if packet.first()? >> 4 == 4 { 28 } else { 48 };
    packet.get(header_len..)?.first_chunk().map(|number| u64::from_le_bytes(*number))
}
