//! For tests and benchmarks: packets and superpackets as the kernel hands them out, and devices with sessions.
#![expect(clippy::unwrap_used, reason = "compiled for tests only, which may panic")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::keys::PrivateKey;
use crate::packet::checksum;
use crate::packet::ip::{IpPacket, TransportProtocol};
use crate::packet::traffic_class::Ecn;
use crate::packet::tunnel::TunnelKind;
use crate::proto::device::{Device, DeviceConfig};
use crate::proto::endpoint::Endpoint;
use crate::proto::noise::Suite;
use crate::proto::peer::PeerConfig;
use crate::proto::policy::{Exposure, Policy};
use crate::proto::randomness::Entropy;

use super::virtio::{Segmentation, TunnelHeader, VirtioHeader};

/// What a superpacket or packet looks like. It goes from 10.77.0.1 to 10.77.0.2, or from fd00::1 to fd00::2.
#[derive(Debug, Clone)]
pub struct Sample {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// TCP or UDP.
    pub protocol: TransportProtocol,
    /// Bytes of IPv4 options, a multiple of four up to 40.
    pub ip_options: usize,
    /// Bytes of TCP options, a multiple of four up to 40.
    pub tcp_options: usize,
    /// The flags of a TCP header.
    pub tcp_flags: u8,
    /// What the headers carry.
    pub payload: Vec<u8>,
    /// Payload per segment; 0 for a packet that is none.
    pub segment_size: usize,
}

impl Sample {
    /// A TCP superpacket over IPv4 with timestamps, ACK and PSH, payload bytes counting up.
    pub fn tcp_v4(payload_len: usize, segment_size: usize) -> Self {
        Self {
            v6: false,
            protocol: TransportProtocol::Tcp,
            ip_options: 0,
            tcp_options: 12,
            tcp_flags: 0x18,
            payload: (0..payload_len).map(|i| (i * 7 % 253) as u8).collect(),
            segment_size,
        }
    }

    /// A UDP superpacket over IPv6.
    pub fn udp_v6(payload_len: usize, segment_size: usize) -> Self {
        Self { v6: true, protocol: TransportProtocol::Udp, ..Self::tcp_v4(payload_len, segment_size) }
    }

    pub(super) fn transport_start(&self) -> usize {
        if self.v6 { 40 } else { 20 + self.ip_options }
    }

    pub(super) fn headers_len(&self) -> usize {
        self.transport_start()
            + match self.protocol {
                TransportProtocol::Tcp => 20 + self.tcp_options,
                TransportProtocol::Udp => 8,
            }
    }

    /// What one read of a TUN with offload gives: the virtio header and the packet.
    pub fn read(&self) -> Vec<u8> {
        [&self.virtio().encode()[..], &self.packet()].concat()
    }

    /// The packet with a partial checksum, as behind the virtio header.
    pub fn packet(&self) -> Vec<u8> {
        let length = self.headers_len() + self.payload.len();
        let mut bytes = self.ip_header(length);
        bytes.extend(self.transport_header(length));
        bytes.extend(&self.payload);
        if !self.v6 {
            let start = self.transport_start();
            let checksum = checksum::finish(0, &bytes[..start]);
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        let packet = IpPacket::parse(&bytes).unwrap();
        let (sum, at) = (checksum::fold(packet.pseudo_header_sum()), packet.transport().unwrap().checksum_at());
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn ip_header(&self, length: usize) -> Vec<u8> {
        let protocol = if self.protocol == TransportProtocol::Tcp { 6 } else { 17 };
        ip_header(self.v6, self.ip_options, protocol, length)
    }

    fn transport_header(&self, length: usize) -> Vec<u8> {
        let mut header = vec![0x1f, 0x90, 0xc3, 0x50];
        match self.protocol {
            TransportProtocol::Tcp => {
                let words = u8::try_from(5 + self.tcp_options / 4).unwrap();
                header.extend([0xff, 0xff, 0xff, 0x00, 0, 0, 0, 9, words << 4, self.tcp_flags, 1, 2, 0, 0, 0, 0]);
                header.extend(vec![1; self.tcp_options]);
            }
            TransportProtocol::Udp => {
                header.extend(u16::try_from(length - self.transport_start()).unwrap().to_be_bytes());
                header.extend([0, 0]);
            }
        }
        header
    }

    /// The virtio header in front of [`packet`](Self::packet).
    pub(super) fn virtio(&self) -> VirtioHeader {
        VirtioHeader {
            needs_checksum: true,
            segmentation: match (self.segment_size, self.protocol, self.v6) {
                (0, ..) => Segmentation::None,
                (_, TransportProtocol::Tcp, false) => Segmentation::TcpV4,
                (_, TransportProtocol::Tcp, true) => Segmentation::TcpV6,
                (_, TransportProtocol::Udp, _) => Segmentation::Udp,
            },
            ecn: self.protocol == TransportProtocol::Tcp && self.tcp_flags & 0x80 != 0,
            header_len: self.headers_len() as u16,
            segment_size: self.segment_size as u16,
            checksum_start: self.transport_start() as u16,
            checksum_offset: self.protocol.checksum_offset() as u16,
            tunnel: None,
        }
    }
}

/// Without its checksum.
fn ip_header(v6: bool, options: usize, protocol: u8, length: usize) -> Vec<u8> {
    if v6 {
        let mut header = vec![0x60, 2, 3, 4, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
        header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        return header;
    }
    let words = u8::try_from(5 + options / 4).unwrap();
    let mut header = vec![0x40 | words, 2, 0, 0, 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    header[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    header.extend(vec![1; options]);
    header
}

/// A superpacket in a tunnel between the same addresses, as an overlay network's.
#[derive(Debug, Clone)]
pub struct TunnelSample {
    /// The tunnel is over IPv6, not IPv4.
    pub v6: bool,
    /// VXLAN or Geneve.
    pub kind: TunnelKind,
    /// Bytes of Geneve's options, a multiple of four.
    pub options: usize,
    /// The tunnel's UDP header has a checksum.
    pub has_checksum: bool,
    /// The tunnel's packets may be fragmented, if they are IPv4, as those of most overlays.
    pub may_fragment: bool,
    /// The superpacket inside.
    pub inner: Sample,
}

impl TunnelSample {
    /// Of VXLAN over IPv4, as Kubernetes makes them.
    pub fn vxlan(inner: Sample) -> Self {
        Self { v6: false, kind: TunnelKind::Vxlan, options: 0, has_checksum: false, may_fragment: true, inner }
    }

    /// The port that it goes to.
    pub fn port(&self) -> u16 {
        if self.kind == TunnelKind::Vxlan { 4789 } else { 6081 }
    }

    pub(super) fn udp_start(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    pub(super) fn inner_start(&self) -> usize {
        let options = if self.kind == TunnelKind::Geneve { self.options } else { 0 };
        self.udp_start() + 8 + 8 + options + 14
    }

    pub(super) fn headers_len(&self) -> usize {
        self.inner_start() + self.inner.headers_len()
    }

    /// What one read of a TUN with tunnels gives: the virtio header and the packet.
    pub fn read(&self) -> Vec<u8> {
        [&self.virtio().encode_with_tunnel()[..], &self.packet()].concat()
    }

    /// The superpacket, as behind the virtio header.
    pub fn packet(&self) -> Vec<u8> {
        let length = self.headers_len() + self.inner.payload.len();
        let mut bytes = ip_header(self.v6, 0, 17, length);
        if !self.v6 {
            bytes[6] = if self.may_fragment { 0 } else { 0x40 };
            let checksum = checksum::finish(0, &bytes);
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes.extend([0xc1, 0x23]);
        bytes.extend(self.port().to_be_bytes());
        bytes.extend(u16::try_from(length - self.udp_start()).unwrap().to_be_bytes());
        bytes.extend([0, 0]);
        match self.kind {
            TunnelKind::Vxlan => bytes.extend([0x08, 0, 0, 0, 0, 0, 7, 0]),
            TunnelKind::Geneve => {
                bytes.extend([(self.options / 4) as u8, 0, 0x65, 0x58, 0, 0, 7, 0]);
                bytes.extend(vec![3; self.options]);
            }
        }
        bytes.extend([2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        bytes.extend(if self.inner.v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        bytes.extend(self.inner.packet());
        if self.has_checksum {
            let sum = checksum::fold(IpPacket::parse(&bytes).unwrap().pseudo_header_sum());
            bytes[self.udp_start() + 6..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The virtio header in front of [`packet`](Self::packet).
    pub(super) fn virtio(&self) -> VirtioHeader {
        let inner = self.inner.virtio();
        VirtioHeader {
            header_len: self.headers_len() as u16,
            checksum_start: self.inner_start() as u16 + inner.checksum_start,
            tunnel: Some(TunnelHeader {
                is_v6: self.v6,
                has_checksum: self.has_checksum,
                udp_start: self.udp_start() as u16,
                inner_start: self.inner_start() as u16,
            }),
            ..inner
        }
    }
}

/// Asserts that `bytes` are one packet whose checksums a host would accept once the partial one is computed.
#[cfg(test)]
pub(super) fn assert_valid_alone(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    crate::packet::ip::complete_checksum(&mut bytes).unwrap();
    assert_checksums(&bytes);
}

/// Asserts that all checksums of a packet with its transport header directly behind the IP header are right.
#[cfg(test)]
pub(super) fn assert_checksums(bytes: &[u8]) {
    let packet = IpPacket::parse(bytes).unwrap();
    if packet.source().is_ipv4() {
        assert_eq!(checksum::finish(0, &bytes[..packet.header_len()]), 0, "IPv4 header checksum");
    }
    let transport = packet.transport().unwrap();
    assert_eq!(checksum::finish(packet.pseudo_header_sum(), &bytes[transport.start..]), 0, "transport checksum");
    if transport.protocol == TransportProtocol::Udp {
        let length = u16::from_be_bytes([bytes[transport.start + 4], bytes[transport.start + 5]]);
        assert_eq!(usize::from(length), bytes.len() - transport.start, "UDP length");
    }
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number + 1; 32]).unwrap()
}

/// A device whose key is made from `number`.
pub fn device(now: Instant, number: u8) -> Device {
    let config = DeviceConfig {
        private_key: key(number),
        previous_private_key: None,
        suite: Suite::Aes256Gcm,
        send_lanes: 2,
        lane_paths: false,
        mtu: None,
    };
    Device::new(now, Duration::from_secs(1_700_000_000), config, Entropy::seeded([number; 32]))
}

/// The peer whose key is made from `number`.
pub fn config(number: u8, remote: Option<SocketAddr>, allowed_ips: &[&str]) -> PeerConfig {
    PeerConfig {
        endpoints: Vec::from_iter(remote.map(Endpoint::new)),
        allowed_ips: allowed_ips.iter().map(|net| net.parse().unwrap()).collect(),
        // So that it wants a session without a packet.
        persistent_keepalive: Some(Duration::from_secs(25)),
        policy: Policy::exposing(Exposure::everything()).into(),
        ..PeerConfig::new(key(number).public_key())
    }
}

/// `caller`, at `caller_at`, calls `device`, at `at`, until both are quiet.
pub fn handshake(now: Instant, caller: &mut Device, at: SocketAddr, device: &mut Device, caller_at: SocketAddr) {
    let endpoint = |remote| Endpoint { local: Some("127.0.0.1".parse().unwrap()), ..Endpoint::new(remote) };
    caller.handle_timeout(now);
    // What `device` itself wanted to send is to be answered by nobody: the caller's is enough.
    while device.poll_transmit().is_some() {}
    let mut quiet = false;
    while !quiet {
        quiet = true;
        while let Some(mut transmit) = caller.poll_transmit() {
            device.handle_datagram(now, endpoint(caller_at), Ecn::NotEct, &mut transmit.payload).unwrap();
            quiet = false;
        }
        while let Some(mut transmit) = device.poll_transmit() {
            caller.handle_datagram(now, endpoint(at), Ecn::NotEct, &mut transmit.payload).unwrap();
            quiet = false;
        }
    }
}
