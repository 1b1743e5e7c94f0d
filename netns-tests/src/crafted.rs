//! IP packets as who has root makes them: whole, in fragments, behind extension headers, of any source.

use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};

use crate::frame;
use crate::host::Host;

/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// Of TCP.
pub const TCP: u8 = 6;
/// Of UDP.
pub const UDP: u8 = 17;
/// Of ICMPv6.
pub const ICMP_V6: u8 = 58;

/// TCP's flags.
pub const SYN: u8 = 0x02;
/// Its field of acknowledgement counts.
pub const ACK: u8 = 0x10;

/// Raw sockets, which send what they are given, whatever it says of itself.
pub struct RawSockets {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl RawSockets {
    /// On a machine, which routes what is sent by its destination.
    #[track_caller]
    pub fn open(host: &Host) -> RawSockets {
        let open = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        let opened = host.run(|| Ok::<_, nix::Error>([open(AddressFamily::Inet)?, open(AddressFamily::Inet6)?]));
        let [v4, v6] = opened.unwrap_or_else(|e| panic!("raw sockets on {}: {e}", host.name()));
        RawSockets { v4, v6 }
    }

    /// Sends a packet.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        let flags = MsgFlags::empty();
        let sent = match addresses(packet).expect("an IP packet").destination {
            IpAddr::V4(to) => sendto(self.v4.as_raw_fd(), packet, &SockaddrIn::from(SocketAddrV4::new(to, 0)), flags),
            IpAddr::V6(to) => {
                sendto(self.v6.as_raw_fd(), packet, &SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0)), flags)
            }
        };
        sent.unwrap_or_else(|e| panic!("{packet:02x?}: {e}"));
    }
}

/// Who sends, and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    /// The source address.
    pub source: IpAddr,
    /// The destination address, of the same IP version.
    pub destination: IpAddr,
}

impl Between {
    /// Two addresses of one IP version.
    #[track_caller]
    pub fn new(source: &str, destination: &str) -> Between {
        let parse = |text: &str| text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        Between { source: parse(source), destination: parse(destination) }
    }

    /// The other way.
    pub fn reversed(self) -> Between {
        Between { source: self.destination, destination: self.source }
    }

    /// A packet of any protocol.
    pub fn packet(self, protocol: u8, message: &[u8]) -> Vec<u8> {
        let length = u16::try_from(message.len()).expect("a message is shorter than 64 KiB");
        let mut packet = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0, 0, 0, 0xbe, 0xef, 0, 0, 64, protocol, 0, 0];
                header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
                header.extend([source.octets(), destination.octets()].concat());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
                header[4..6].copy_from_slice(&length.to_be_bytes());
                header.extend([source.octets(), destination.octets()].concat());
                header
            }
            _ => panic!("{self:?} are of two IP versions"),
        };
        packet.extend(message);
        packet
    }

    /// A TCP header with these flags and nothing behind it.
    pub fn tcp(self, source: u16, destination: u16, flags: u8) -> Vec<u8> {
        let mut segment = ports(source, destination);
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.with_checksum(TCP, segment, 16)
    }

    /// A UDP datagram.
    pub fn udp(self, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).expect("a datagram is shorter than 64 KiB");
        let datagram = [&ports(source, destination), &length.to_be_bytes()[..], &[0, 0], payload].concat();
        self.with_checksum(UDP, datagram, 6)
    }

    /// An ICMP message of this type in ICMP and in ICMPv6, code 0; `rest` begins behind the checksum.
    pub fn icmp(self, types: [u8; 2], rest: &[u8]) -> Vec<u8> {
        let message = |kind: u8| [&[kind, 0, 0, 0], rest].concat();
        if self.source.is_ipv6() {
            return self.with_checksum(ICMP_V6, message(types[1]), 2);
        }
        let mut message = message(types[0]);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
        self.packet(ICMP, &message)
    }

    /// A ping.
    pub fn echo_request(self, identifier: u16) -> Vec<u8> {
        self.icmp([8, 128], &[&identifier.to_be_bytes()[..], &[0, 1]].concat())
    }

    /// The answer to one.
    pub fn echo_reply(self, identifier: u16) -> Vec<u8> {
        self.icmp([0, 129], &[&identifier.to_be_bytes()[..], &[0, 1]].concat())
    }

    /// "Host unreachable", about a packet.
    pub fn unreachable(self, quoted: &[u8]) -> Vec<u8> {
        self.icmp([3, 1], &[&[0; 4], quoted].concat())
    }

    fn with_checksum(self, protocol: u8, mut message: Vec<u8>, at: usize) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("a message is shorter than 64 KiB");
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            _ => panic!("{self:?} are of two IP versions"),
        };
        let pseudo = [&addresses[..], &length.to_be_bytes(), &[0, 0, 0, protocol], &message].concat();
        let sum = checksum(&pseudo);
        message[at..at + 2].copy_from_slice(&sum);
        self.packet(protocol, &message)
    }
}

/// A packet in fragments of so many bytes, a multiple of eight.
pub fn fragments(packet: &[u8], length: usize) -> Vec<Vec<u8>> {
    let is_v4 = packet[0] >> 4 == 4;
    let (header, message) = packet.split_at(if is_v4 { 20 } else { 40 });
    let parts: Vec<&[u8]> = message.chunks(length).collect();
    let fragment = |(index, part): (usize, &&[u8])| {
        let offset = u16::try_from(index * length / 8).expect("a packet is shorter than 64 KiB");
        let more = u16::from(index + 1 < parts.len());
        let mut header = header.to_vec();
        if is_v4 {
            header[2..4].copy_from_slice(&u16::try_from(20 + part.len()).expect("as above").to_be_bytes());
            header[6..8].copy_from_slice(&(more << 13 | offset).to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            return [&header[..], part].concat();
        }
        let extension = [&[header[6], 0][..], &(offset << 3 | more).to_be_bytes(), &[0, 0, 0xbe, 0xef]].concat();
        header[4..6].copy_from_slice(&u16::try_from(8 + part.len()).expect("as above").to_be_bytes());
        header[6] = 44;
        [&header[..], &extension, part].concat()
    };
    parts.iter().enumerate().map(fragment).collect()
}

/// An IPv6 packet with eight bytes of another header in front of its message, of this kind; IPv4 has options for the like.
pub fn behind_header(packet: &[u8], kind: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        // A loose source route, which names no further hop.
        packet.splice(20..20, [0x83, 7, 8, 0, 0, 0, 0, 0]);
        packet[0] = 0x47;
        let length = u16::try_from(packet.len()).expect("a packet is shorter than 64 KiB");
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&packet[..28]);
        packet[10..12].copy_from_slice(&sum);
        return packet;
    }
    let next = std::mem::replace(&mut packet[6], kind);
    // Options: four bytes of padding. A routing header of an unknown type with no hop left.
    let header = if kind == 43 { [next, 0, 253, 0, 0, 0, 0, 0] } else { [next, 0, 1, 4, 0, 0, 0, 0] };
    packet.splice(40..40, header);
    let length = u16::try_from(packet.len() - 40).expect("a packet is shorter than 64 KiB");
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

/// Source and destination of an IP packet.
pub fn addresses(packet: &[u8]) -> Option<Between> {
    let address = |at: usize, length: usize| {
        let bytes = packet.get(at..at + length)?;
        Some(match length {
            4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        })
    };
    match packet.first()? >> 4 {
        4 => Some(Between { source: address(12, 4)?, destination: address(16, 4)? }),
        6 => Some(Between { source: address(8, 16)?, destination: address(24, 16)? }),
        _ => None,
    }
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    frame::checksum_of(bytes).to_be_bytes()
}
