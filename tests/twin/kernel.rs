//! A kernel behind a TUN with offload: what it hands out, what it refuses, and which packets a host would see of what it
//! takes (virtio 1.2 §5.1.6; `virtio_net_hdr_to_skb` and the protocols' `gso_segment` in Linux).

use super::packet::{
    TCP, UDP, add, checksum, field, ip_header_len, is_v4, is_whole, pseudo_header_sum, set_field, sum, transport,
};

/// Length of the virtio header.
pub(crate) const HEADER_LEN: usize = 10;
/// Packets of one UDP superpacket, in kernels before 6.9.
const MAX_UDP_SEGMENTS: usize = 64;

const NEEDS_CHECKSUM: u8 = 1;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// What a kernel hands out for a TCP or UDP packet whose checksum it leaves open, or for a superpacket if there is a
/// segment size.
pub(crate) fn read(mut packet: Vec<u8>, segment_size: usize) -> Vec<u8> {
    let transport = transport(&packet).expect("a TCP or UDP packet");
    let kind = match (transport.protocol, is_v4(&packet)) {
        _ if segment_size == 0 => 0,
        (TCP, true) => TCP_V4,
        (TCP, false) => TCP_V6,
        _ => UDP_L4,
    };
    let has_cwr = transport.protocol == TCP && packet[transport.start + 13] & CWR != 0;
    let ecn = if kind != 0 && has_cwr { ECN } else { 0 };
    let sum = pseudo_header_sum(&packet, transport);
    set_field(&mut packet, transport.start + transport.checksum_offset(), sum);
    let fields = [transport.payload_start, segment_size, transport.start, transport.checksum_offset()];
    let mut read = vec![NEEDS_CHECKSUM, kind | ecn];
    read.extend(fields.into_iter().flat_map(|field| (field as u16).to_ne_bytes()));
    read.extend(packet);
    read
}

/// What a kernel hands out for a packet that is complete.
pub(crate) fn read_complete(packet: &[u8]) -> Vec<u8> {
    [&[0; HEADER_LEN][..], packet].concat()
}

/// A virtio header's fields.
struct Header {
    needs_checksum: bool,
    kind: u8,
    ecn: bool,
    header_len: usize,
    segment_size: usize,
    checksum_start: usize,
    checksum_offset: usize,
}

impl Header {
    fn new(bytes: &[u8]) -> Self {
        let field = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            kind: bytes[1] & !ECN,
            ecn: bytes[1] & ECN != 0,
            header_len: field(2),
            segment_size: field(4),
            checksum_start: field(6),
            checksum_offset: field(8),
        }
    }
}

/// The packets of one TUN write, or read, each with its checksum complete, or why no kernel would take it.
pub(crate) fn take(write: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let (header, packet) = write.split_at_checked(HEADER_LEN).ok_or("no virtio header")?;
    let header = Header::new(header);
    if !is_whole(packet) {
        return Err("not one whole packet");
    }
    if header.kind != 0 {
        return take_superpacket(&header, packet);
    }
    if header.segment_size != 0 || header.ecn {
        return Err("fields of a superpacket on what is none");
    }
    if !header.needs_checksum {
        return Ok(vec![packet.to_vec()]);
    }
    let at = header.checksum_start + header.checksum_offset;
    if header.checksum_start < ip_header_len(packet) || at + 2 > packet.len() {
        return Err("no place for a checksum");
    }
    let mut packet = packet.to_vec();
    let checksum = checksum(sum(&packet[header.checksum_start..]));
    set_field(&mut packet, at, checksum);
    Ok(vec![packet])
}

fn take_superpacket(header: &Header, packet: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let transport = transport(packet).ok_or("a superpacket of neither TCP nor UDP")?;
    let kinds = match (transport.protocol, is_v4(packet)) {
        (TCP, true) => TCP_V4,
        (TCP, false) => TCP_V6,
        _ => UDP_L4,
    };
    if header.kind != kinds {
        return Err("a kind that is not the packet's");
    }
    if header.ecn && (transport.protocol == UDP || packet[transport.start + 13] & CWR == 0) {
        return Err("ECN without CWR");
    }
    let checksum_is_there = header.needs_checksum
        && (header.checksum_start, header.checksum_offset) == (transport.start, transport.checksum_offset());
    if !checksum_is_there {
        return Err("a superpacket whose checksum is elsewhere");
    }
    if header.header_len != transport.payload_start {
        return Err("a length of headers that is wrong");
    }
    if header.segment_size == 0 {
        return Err("no segment size");
    }
    let payload = &packet[transport.payload_start..];
    let count = payload.len().div_ceil(header.segment_size).max(1);
    if transport.protocol == UDP && count > MAX_UDP_SEGMENTS {
        return Err("too many datagrams");
    }
    if packet.len() > 0xffff {
        return Err("longer than 65,535 bytes");
    }
    Ok((0..count).map(|index| segment(packet, index, count, header.segment_size)).collect())
}

/// One packet of a superpacket.
fn segment(superpacket: &[u8], index: usize, count: usize, segment_size: usize) -> Vec<u8> {
    let transport = transport(superpacket).expect("just found");
    let (headers, payload) = superpacket.split_at(transport.payload_start);
    let offset = index * segment_size;
    let end = payload.len().min(offset + segment_size);
    let mut packet = [headers, &payload[offset..end]].concat();
    let length = packet.len();
    if is_v4(&packet) {
        let identification = field(&packet, 4) + index;
        set_field(&mut packet, 2, length);
        set_field(&mut packet, 4, identification);
        set_field(&mut packet, 10, 0);
        let header_sum = sum(&packet[..ip_header_len(superpacket)]);
        set_field(&mut packet, 10, 0xffff - header_sum);
    } else {
        set_field(&mut packet, 4, length - 40);
    }
    let header = &mut packet[transport.start..];
    if transport.protocol == UDP {
        set_field(header, 4, length - transport.start);
    } else {
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]).wrapping_add(offset as u32);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        header[13] &= if index > 0 { !CWR } else { 0xff };
        header[13] &= if index + 1 < count { !FIN_AND_PSH } else { 0xff };
    }
    // The field holds the pseudo-header's sum with the superpacket's length: what differs is taken from it.
    let at = transport.start + transport.checksum_offset();
    let shorter = superpacket.len() - length;
    let pseudo_header = add(field(superpacket, at), 0xffff - shorter);
    set_field(&mut packet, at, 0);
    let sum = add(pseudo_header, sum(&packet[transport.start..]));
    set_field(&mut packet, at, checksum(sum));
    packet
}
