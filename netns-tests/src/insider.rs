//! A peer that was broken into: it has a key and a session, and seals what no honest one would, as much as a core can.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use underpass::keys::{PrivateKey, PublicKey};
use underpass::packet::frame::Control;
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::Ecn;
use underpass::proto::constants::MAX_LANES;
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Exposure, Policy};
use underpass::proto::randomness::Entropy;
use underpass::proto::router::Router;

use crate::crafted::Between;
use crate::flood::{Flood, Volley};
use crate::host::Host;
use crate::random::Random;
use crate::wait;

/// Harm that an insider does: the kind of datagrams it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malice {
    /// Honest packets: what any peer may do with a core, to compare with.
    None,
    /// Each datagram from another address.
    Roaming,
    /// As many pings as a datagram has room for.
    Pings,
    /// A probe in each datagram, from another address.
    Probes,
    /// As many empty frames as a datagram has room for.
    TinyFrames,
    /// Pings on 63 lanes, each from another address.
    Lanes,
    /// As many control frames of all kinds but pings as a datagram has room for.
    Controls,
}

impl Malice {
    /// All that is not honest.
    pub const ALL: [Malice; 6] =
        [Malice::Roaming, Malice::Pings, Malice::Probes, Malice::TinyFrames, Malice::Lanes, Malice::Controls];
}

/// Bytes of frames in a datagram that fits any cable.
const ROOM: usize = 1400;
/// Datagrams made at a time.
const VOLLEY: usize = 64;

/// Its configuration: keys and addresses of both ends.
#[derive(Clone, Debug)]
pub struct Insider {
    /// Its own key.
    pub private: PrivateKey,
    /// Public key of the side that it harms.
    pub victim: PublicKey,
    /// The UDP endpoint of that side.
    pub endpoint: SocketAddrV4,
    /// Their addresses in the tunnel.
    pub inner: Between,
}

impl Insider {
    /// A device that has begun to call. Another `seed` makes another.
    pub fn calling(&self, lanes: u8, seed: [u8; 32]) -> Device {
        let now = wait::now();
        let config = DeviceConfig {
            private_key: self.private.clone(),
            previous_private_key: None,
            suite: Suite::Aes256Gcm,
            send_lanes: lanes,
            lane_paths: lanes > 1,
            mtu: None,
        };
        let mut device = Device::new(now, wait::unix_time(), config, Entropy::seeded(seed));
        let endpoint = Endpoint::new(self.endpoint.into());
        device.upsert_peer(
            now,
            PeerConfig {
                endpoints: vec![endpoint],
                allowed_ips: vec![self.inner.destination.into()],
                policy: Arc::new(Policy::exposing(Exposure::everything())),
                ..PeerConfig::new(self.victim)
            },
        );
        device.connect(now, &self.victim, endpoint);
        device
    }

    /// Makes a session from a machine. Returns it with the address of the machine.
    #[track_caller]
    fn session(&self, host: &Host, lanes: u8) -> (Arc<Router>, SocketAddrV4) {
        let socket = host.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a free UDP port");
        socket.connect(self.endpoint).expect("there is a route");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("any socket may have one");
        let mut device = self.calling(lanes, [lanes; 32]);
        let mut buffer = [0; 2048];
        let router = wait::value("the insider has a session", || {
            while let Some(transmit) = device.poll_transmit() {
                let _ = socket.send(&transmit.payload);
            }
            if let Ok(length) = socket.recv(&mut buffer) {
                let from = Endpoint::new(self.endpoint.into());
                let _ = device.handle_datagram(wait::now(), from, Ecn::NotEct, &mut buffer[..length]);
            }
            device.handle_timeout(wait::now());
            let router = device.router();
            router.route(wait::now(), self.inner.destination).is_ok().then_some(router)
        });
        // What confirms it.
        while let Some(transmit) = device.poll_transmit() {
            socket.send(&transmit.payload).expect("there is a route");
        }
        match socket.local_addr() {
            Ok(SocketAddr::V4(address)) => (router, address),
            other => panic!("{other:?} is no address of a socket of IPv4"),
        }
    }

    /// Does harm from a machine, as much as its core can.
    #[track_caller]
    pub fn attack(&self, host: &Host, malice: Malice) -> Flood {
        let lanes = if malice == Malice::Lanes { MAX_LANES } else { 1 };
        let (router, home) = self.session(host, lanes);
        let (endpoint, destination) = (self.endpoint, self.inner.destination);
        let (mut random, mut number) = (Random::new(1), 0_usize);
        let frames = self.frames(malice);
        let mut next = move || {
            number += 1;
            let lane = if malice == Malice::Lanes { 1 + (number % usize::from(MAX_LANES - 1)) as u8 } else { 0 };
            let payload = sealed(&router, destination, lane, &frames)?;
            let spoofs = matches!(malice, Malice::Roaming | Malice::Probes | Malice::Lanes);
            let source = if spoofs { anywhere(&mut random) } else { home };
            let between = Between { source: IpAddr::V4(*source.ip()), destination: IpAddr::V4(*endpoint.ip()) };
            Some(between.udp(source.port(), endpoint.port(), &payload))
        };
        let volleys = std::iter::from_fn(move || {
            let volley: Vec<Vec<u8>> = std::iter::from_fn(&mut next).take(VOLLEY).collect();
            (!volley.is_empty()).then(|| Volley::from(volley))
        });
        Flood::start(host, endpoint, volleys)
    }

    /// Frames of each of its datagrams.
    fn frames(&self, malice: Malice) -> Vec<u8> {
        let encoded = |controls: &[Control]| {
            let mut frames = Vec::new();
            controls.iter().for_each(|control| control.encode(&mut frames));
            frames
        };
        let filled = |controls: &[Control]| {
            let frames = encoded(controls);
            frames.repeat(ROOM / frames.len())
        };
        match malice {
            Malice::None => {
                let packet = self.inner.udp(9, 9, &[0; ROOM - 32]);
                let [low, high] = (packet.len() as u16).to_le_bytes();
                [&[1, 0, low, high], &packet[..]].concat()
            }
            Malice::Roaming => vec![0; 13],
            Malice::Pings => filled(&[Control::Ping(7)]),
            Malice::Probes => encoded(&[Control::Probe(7)]),
            Malice::TinyFrames => [1, 0, 0, 0].repeat(ROOM / 4),
            Malice::Lanes => encoded(&[Control::Ping(7)]),
            Malice::Controls => {
                filled(&[Control::Pong(7), Control::Draining(true), Control::Unknown(77), Control::Draining(false)])
            }
        }
    }
}

/// `None` once the session is over.
fn sealed(router: &Router, destination: IpAddr, lane: u8, frames: &[u8]) -> Option<Vec<u8>> {
    let now = wait::now();
    let mut payload = [&[0; TRANSPORT_HEADER_LEN], frames, &[0; TAG_LEN]].concat();
    router.route(now, destination).ok()?.seal(now, lane, &mut payload, &mut Vec::new()).ok()?;
    Some(payload)
}

/// An address and a port that nobody has chosen: RFC 2544's, for such measurements.
pub(crate) fn anywhere(random: &mut Random) -> SocketAddrV4 {
    let number = random.bits().to_le_bytes();
    let source = Ipv4Addr::new(198, 18 + number[2] % 2, number[3], number[4]);
    SocketAddrV4::new(source, 1024 + u16::from_le_bytes([number[5], number[6]]) % 60_000)
}
