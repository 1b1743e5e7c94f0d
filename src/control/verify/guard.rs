//! Whether tunnel addresses are refused outside of the tunnel: tried with real packets from another interface, which exists for
//! that moment only.
//!
//! ```text
//!   203.0.113.254 ──▶ probe interface (203.0.113.253) ──▶ own tunnel address : a socket of ours    must not arrive
//!   a peer's      ──▶ probe interface                 ──▶ 203.0.113.253      : a socket of ours    must not arrive
//!   203.0.113.254 ──▶ probe interface                 ──▶ 203.0.113.253      : a socket of ours    must arrive
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::sleep;
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{Check, Finding, Outcome};
use crate::config::Config;
use crate::control::netlink::Netlink;
use crate::control::nftables::{MachineAddress, PROBE_INTERFACE};
use crate::control::translate;
use crate::packet::ip::{PROTOCOL_TCP, PROTOCOL_UDP, complete_checksum};
use crate::packet::tcp::TCP_SYN;

/// Findings of what was tried, in a person's words.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    match Probe::open(config).await {
        Ok(probe) => probe.run().await.unwrap_or_else(|error| vec![skipped(&error)]),
        Err(error) => vec![skipped(&error)],
    }
}

fn skipped(error: &io::Error) -> Finding {
    let what =
        format!("whether tunnel addresses are refused outside of the tunnel was not tried: {error}; run as root");
    Finding::new(Check::Guard, Outcome::Skipped, what)
}

struct Probe {
    device: SyncDevice,
    versions: Vec<Version>,
    is_wanted: bool,
}

/// One version of IP: who sends, and the sockets that must get nothing, and the one that must.
struct Version {
    stranger: IpAddr,
    peer: Option<IpAddr>,
    inside: Vec<Inside>,
    outside: UdpSocket,
    outcome: Came,
}

/// Listening sockets at one tunnel address.
struct Inside {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Packets that have come, of those that must not and those that must.
#[derive(Default)]
struct Came {
    refused: Vec<String>,
    control: bool,
}

impl Probe {
    async fn open(config: &Config) -> io::Result<Self> {
        let netlink = Netlink::open().map_err(io::Error::other)?;
        let peers = refused_peers(config);
        let device =
            DeviceBuilder::new().name(PROBE_INTERFACE).packet_information(false).inherit_enable_state().build_sync()?;
        device.set_nonblocking(true)?;
        let own: Vec<IpAddr> = config.interface.addresses.iter().map(IpNet::addr).collect();
        let mut versions = Vec::new();
        for (network, stranger) in OUTSIDE {
            let network: IpNet = network.parse().expect("an address with its length");
            let stranger: IpAddr = stranger.parse().expect("an address");
            let own: Vec<IpAddr> = own.iter().copied().filter(|own| own.is_ipv4() == stranger.is_ipv4()).collect();
            if own.is_empty() {
                continue;
            }
            netlink.set_up_probe(PROBE_INTERFACE, network).await.map_err(io::Error::other)?;
            versions.push(Version {
                stranger,
                peer: peers.iter().copied().find(|peer| peer.is_ipv4() == stranger.is_ipv4()),
                inside: own.into_iter().map(Inside::open).collect::<io::Result<_>>()?,
                outside: udp(network.addr())?,
                outcome: Came::default(),
            });
        }
        Ok(Self { device, versions, is_wanted: config.interface.fail_closed })
    }

    async fn run(mut self) -> io::Result<Vec<Finding>> {
        for _ in 0..ROUNDS {
            for version in self.versions.iter().filter(|version| !version.outcome.control) {
                // What was sent while the interface was being set up is lost.
                version.packets().iter().for_each(|packet| drop(self.device.send(packet)));
            }
            sleep(PAUSE).await;
            self.listen();
            if self.versions.iter().all(|version| version.outcome.control) {
                break;
            }
        }
        Ok(self.versions.iter().map(|version| self.finding(version)).collect())
    }

    /// Takes note of what sockets were given, and of what the kernel has answered.
    fn listen(&mut self) {
        let mut answered = Vec::new();
        let mut packet = [0; 2048];
        while let Ok(length) = self.device.recv(&mut packet) {
            answered.extend(source(&packet[..length]));
        }
        self.versions.iter_mut().for_each(|version| version.listen(&answered));
    }

    fn finding(&self, version: &Version) -> Finding {
        let came = &version.outcome;
        let tried: Vec<String> = version.inside.iter().map(|inside| inside.address().ip().to_string()).collect();
        let tried = tried.join(", ");
        if let [first, ..] = &came.refused[..] {
            let what = format!("{first}: whoever is on a network of this machine can do that, in the clear");
            if !self.is_wanted {
                return Finding::warning(Check::Guard, what, "interface.fail_closed = true refuses it");
            }
            let remedy =
                "have root run `underpass close --config FILE`; `underpass status` says why the daemon has not";
            return Finding::failed(Check::Guard, what, remedy);
        }
        if !came.control {
            let what = format!(
                "packets for {tried} from another interface do not arrive, but no others from there either: a firewall drops them"
            );
            return Finding::new(Check::Guard, Outcome::Skipped, what);
        }
        Finding::ok(
            Check::Guard,
            format!("{tried} is not reached from another interface, nor are peers' addresses believed there"),
        )
    }
}

/// Peers' tunnel addresses that are nowhere else.
fn refused_peers(config: &Config) -> Vec<IpAddr> {
    let others = MachineAddress::list_without(&config.interface.name).unwrap_or_default();
    let plan = translate::guard_subject(config).map(|subject| subject.plan(&others));
    let is_refused = |peer: &IpAddr| {
        plan.as_ref().is_none_or(|plan| plan.rules.networks.iter().any(|network| network.contains(peer)))
    };
    config.peers.iter().flat_map(|peer| peer.addresses.iter().copied()).filter(is_refused).collect()
}

impl Version {
    fn packets(&self) -> Vec<Vec<u8>> {
        let at = self.outside.local_addr().expect("a bound socket");
        let mut packets = Vec::new();
        for inside in &self.inside {
            packets.push(udp_packet(self.stranger, inside.address()));
            packets.push(syn(self.stranger, inside.tcp.local_addr().expect("a bound socket")));
        }
        packets.extend(self.peer.map(|peer| udp_packet(peer, at)));
        packets.push(udp_packet(self.stranger, at));
        packets
    }

    fn listen(&mut self, answered: &[IpAddr]) {
        for inside in &self.inside {
            let address = inside.address().ip();
            if inside.udp.recv_from(&mut [0; 16]).is_ok() {
                self.outcome.refused.push(format!("a UDP datagram to {address} arrived by another interface"));
            }
            if answered.contains(&address) {
                self.outcome.refused.push(format!("{address} answers TCP by another interface"));
            }
        }
        while let Ok((_, from)) = self.outside.recv_from(&mut [0; 16]) {
            if from.ip() == self.stranger {
                self.outcome.control = true;
            } else {
                self.outcome.refused.push(format!("a datagram from another interface arrived as one of {}", from.ip()));
            }
        }
    }
}

impl Inside {
    fn open(address: IpAddr) -> io::Result<Self> {
        let tcp = TcpListener::bind((address, 0))?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: udp(address)?, tcp })
    }

    fn address(&self) -> SocketAddr {
        self.udp.local_addr().expect("a bound socket")
    }
}

fn udp(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn udp_packet(source: IpAddr, to: SocketAddr) -> Vec<u8> {
    let [high, low] = to.port().to_be_bytes();
    packet(source, to.ip(), PROTOCOL_UDP, &[SOURCE_PORT[0], SOURCE_PORT[1], high, low, 0, 9, 0, 0, b'?'])
}

fn syn(source: IpAddr, to: SocketAddr) -> Vec<u8> {
    let [high, low] = to.port().to_be_bytes();
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[SOURCE_PORT[0], SOURCE_PORT[1], high, low]);
    header[12..16].copy_from_slice(&[0x50, TCP_SYN, 0xff, 0xff]);
    packet(source, to.ip(), PROTOCOL_TCP, &header)
}

/// Both addresses are of one version.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a probe is short");
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            header.extend(source.octets().into_iter().chain(destination.octets()));
            let sum = crate::packet::checksum::finish(0, &header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header.extend(source.octets().into_iter().chain(destination.octets()));
            header
        }
        _ => unreachable!("addresses of one version are put together"),
    };
    packet.extend(message);
    complete_checksum(&mut packet).expect("a whole packet");
    packet
}

fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(12..16).and_then(|source| <[u8; 4]>::try_from(source).ok()).map(IpAddr::from),
        6 => packet.get(8..24).and_then(|source| <[u8; 16]>::try_from(source).ok()).map(IpAddr::from),
        _ => None,
    }
}

/// The probe interface's address, and who sends there: for documentation (RFC 5737, RFC 3849), so nobody's.
const OUTSIDE: [(&str, &str); 2] =
    [("203.0.113.253/30", "203.0.113.254"), ("2001:db8:ffff:ffff::1/126", "2001:db8:ffff:ffff::2")];
const SOURCE_PORT: [u8; 2] = 40_000_u16.to_be_bytes();
/// A new interface takes packets after some milliseconds.
const ROUNDS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
