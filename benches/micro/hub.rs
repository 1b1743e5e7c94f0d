//! One device with many peers that have sessions with it, as beside a load balancer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use underpass::dataplane::testing::handshake;
use underpass::keys::PrivateKey;
use underpass::packet::frame::packet_header;
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Policy, PortRange, Service};
use underpass::proto::randomness::Entropy;
use underpass::proto::randomness::Randomness;
use underpass::proto::router::Router;

/// How many peers are configured, and how many of them have sessions.
pub(crate) const HUBS: [(usize, usize); 3] = [(1, 1), (1_000, 1_000), (10_000, 1_000)];
/// The device in the middle has this number, its peers those from zero.
const HUB: usize = usize::MAX >> 1;
/// The time between two handshakes: slow enough for the limits on them, and fast enough for all sessions to be young.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);

/// A device with many peers, all on the instant `now`.
pub(crate) struct Hub {
    pub now: Instant,
    pub device: Device,
    pub router: Arc<Router>,
    /// Those that have sessions, by their numbers.
    active: Vec<(usize, Arc<Router>)>,
}

impl Hub {
    /// With so many peers, of which `active` have sessions.
    pub(crate) fn new(suite: Suite, peers: usize, active: usize) -> Self {
        let (mut now, mut device) = (now(), idle(suite, peers));
        let call = |number| {
            now += INTERVAL;
            (number, call(now, suite, number, &mut device))
        };
        let active = (0..peers).step_by(peers / active).map(call).collect();
        Self { now, router: device.poll_router().unwrap(), device, active }
    }

    /// One of [`HUBS`], made once, with AES-256-GCM.
    pub(crate) fn of((peers, active): (usize, usize)) -> &'static Self {
        static MADE: [OnceLock<Hub>; HUBS.len()] = [const { OnceLock::new() }; HUBS.len()];
        let position = HUBS.iter().position(|hub| *hub == (peers, active)).unwrap();
        MADE[position].get_or_init(|| Self::new(Suite::Aes256Gcm, peers, active))
    }

    /// Draws the number of a peer that has a session.
    pub(crate) fn draws(&self) -> impl FnMut() -> usize {
        let mut randomness = Randomness::new([9; 32]);
        move || self.active[randomness.u32() as usize % self.active.len()].0
    }

    /// A peer's datagram with one packet of `length` bytes.
    pub(crate) fn datagram_of(&self, number: usize, length: usize) -> Vec<u8> {
        let mut datagram = datagram(number, HUB, length);
        let position = self.active.binary_search_by_key(&number, |(number, _)| *number).unwrap();
        let route = self.active[position].1.route(self.now, inner_address(HUB)).unwrap();
        route.seal(self.now, 0, &mut datagram, &mut Vec::new()).unwrap();
        datagram
    }
}

/// The device in the middle, whose peers have not called yet.
pub(crate) fn idle(suite: Suite, peers: usize) -> Device {
    let now = now();
    let mut hub = device(now, HUB, suite);
    for number in 0..peers {
        hub.upsert_peer(now, peer(number, None)).unwrap();
    }
    hub
}

/// Has peer `number` make a session with the device in the middle; returns what it seals with.
pub(crate) fn call(now: Instant, suite: Suite, number: usize, hub: &mut Device) -> Arc<Router> {
    let mut caller = device(now, number, suite);
    caller.upsert_peer(now, peer(HUB, Some(address(HUB)))).unwrap();
    handshake(now, &mut caller, address(HUB), hub, address(number));
    caller.poll_router().unwrap()
}

/// A datagram with one packet of `length` bytes, yet to be sealed.
pub(crate) fn datagram(from: usize, to: usize, length: usize) -> Vec<u8> {
    let total = u16::try_from(length).unwrap();
    let mut packet = vec![0; length];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    for (at, number) in [(12, from), (16, to)] {
        let IpAddr::V4(address) = inner_address(number) else { unreachable!("inner addresses are of IPv4") };
        packet[at..at + 4].copy_from_slice(&address.octets());
    }
    [&[0; TRANSPORT_HEADER_LEN][..], &packet_header(0, total), &packet, &[0; TAG_LEN]].concat()
}

/// The address of device `number` inside the tunnel.
pub(crate) fn inner_address(number: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | number as u32 & 0xff_ffff).into()
}

/// Where device `number` is.
pub(crate) fn endpoint(number: usize) -> Endpoint {
    Endpoint { local: Some("127.0.0.1".parse().unwrap()), ..Endpoint::new(address(number)) }
}

fn address(number: usize) -> SocketAddr {
    (Ipv4Addr::from_bits(0xac00_0000 | number as u32 & 0xff_ffff), 51900).into()
}

pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
    Instant::now()
}

/// Device `number` without peers.
pub(crate) fn device(now: Instant, number: usize, suite: Suite) -> Device {
    let config = DeviceConfig {
        private_key: key(number),
        previous_private_key: None,
        suite,
        send_lanes: 1,
        lane_paths: false,
        mtu: None,
    };
    Device::new(now, Duration::from_secs(1_700_000_000), config, Entropy::seeded([7; 32]))
}

/// How device `number` is configured elsewhere.
pub(crate) fn peer(number: usize, endpoint: Option<SocketAddr>) -> PeerConfig {
    PeerConfig {
        endpoints: Vec::from_iter(endpoint.map(Endpoint::new)),
        allowed_ips: vec![inner_address(number).into()],
        // So that it wants a session without a packet.
        persistent_keepalive: endpoint.map(|_| Duration::from_secs(25)),
        policy: Policy::exposing([Service::Tcp(PortRange::ALL), Service::Udp(PortRange::ALL)])
            .with_own_addresses([inner_address(HUB)])
            .into(),
        ..PeerConfig::new(key(number).public_key())
    }
}

fn key(number: usize) -> PrivateKey {
    let mut bytes = [1; 32];
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    PrivateKey::from_bytes(bytes).unwrap()
}
