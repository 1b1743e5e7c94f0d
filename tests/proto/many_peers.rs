//! A proxy side with a thousand backend sides that all started in one instant.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use underpass::keys::PrivateKey;
use underpass::packet::message::Message;
use underpass::proto::constants::{REJECT_AFTER_TIME, REKEY_JITTER};
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Exposure, Policy};
use underpass::proto::randomness::Entropy;
use underpass::proto::staged::StagedPacket;
use underpass::proto::stats::LinkState;

use crate::pair::{inner_packet, seconds, start};

const PEERS: usize = 1000;
/// The proxy side's number.
const PROXY: usize = PEERS;
const TICK: Duration = Duration::from_millis(10);

/// All devices, on a network without delay.
struct Site {
    start: Instant,
    now: Instant,
    /// The backend sides, and then the proxy side.
    devices: Vec<Device>,
    /// When anybody sent an initiation.
    initiations: Vec<Instant>,
}

/// Which side calls the other and keeps calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Proxy,
    Backends,
}

/// The traffic that all pairs have, in step.
#[derive(Debug, Clone, Copy)]
enum TrafficInStep {
    /// The caller's persistent keepalives, 25 s after whatever passed last.
    Keepalives,
    /// A packet of the proxy side to each backend side, as of a load balancer's health checks.
    Checks(Duration),
}

fn key(number: usize) -> PrivateKey {
    let mut bytes = [1; 32];
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    PrivateKey::from_bytes(bytes).unwrap()
}

fn inner(number: usize) -> [u8; 4] {
    let [low, high, ..] = number.to_le_bytes();
    [10, 77, high, low]
}

fn address(number: usize) -> SocketAddr {
    let [_, _, high, low] = inner(number);
    SocketAddr::from(([198, 18, high, low], 51900))
}

fn number_at(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { panic!("{address} is nobody's") };
    let [.., high, low] = address.ip().octets();
    usize::from(u16::from_be_bytes([high, low]))
}

fn peer(number: usize, is_called: bool) -> PeerConfig {
    PeerConfig {
        endpoints: Vec::from_iter(is_called.then(|| Endpoint::new(address(number)))),
        allowed_ips: vec![std::net::IpAddr::from(inner(number)).into()],
        persistent_keepalive: is_called.then(|| seconds(25)),
        policy: Policy::exposing(Exposure::everything()).into(),
        ..PeerConfig::new(key(number).public_key())
    }
}

impl Site {
    fn new(caller: Caller) -> Self {
        let now = start();
        let device = |number: usize| {
            let config = DeviceConfig {
                private_key: key(number),
                previous_private_key: None,
                suite: Suite::Aes256Gcm,
                send_lanes: 1,
                lane_paths: true,
                mtu: None,
            };
            let mut seed = [5; 32];
            seed[..8].copy_from_slice(&number.to_le_bytes());
            Device::new(now, seconds(1_700_000_000), config, Entropy::seeded(seed))
        };
        let mut devices: Vec<Device> = (0..=PROXY).map(device).collect();
        for number in 0..PEERS {
            devices[number].upsert_peer(now, peer(PROXY, caller == Caller::Backends));
            devices[PROXY].upsert_peer(now, peer(number, caller == Caller::Proxy));
        }
        Self { start: now, now, devices, initiations: Vec::new() }
    }

    /// Lets time pass up to `until` after the start.
    fn advance(&mut self, until: Duration, traffic: TrafficInStep) {
        while self.now < self.start + until {
            self.now += TICK;
            if let TrafficInStep::Checks(interval) = traffic
                && (self.now - self.start).as_millis().is_multiple_of(interval.as_millis())
            {
                self.check_all();
            }
            for number in 0..=PROXY {
                let device = &mut self.devices[number];
                if device.poll_timeout().is_some_and(|(deadline, _)| deadline <= self.now) {
                    device.handle_timeout(self.now);
                    self.settle(number);
                }
            }
        }
    }

    fn check_all(&mut self) {
        for number in 0..PEERS {
            let bytes = inner_packet(inner(PROXY), inner(number), b"health?");
            let packet = StagedPacket { bytes, checksum_partial: false };
            // A backend side that has not called yet can't be checked.
            let _ = self.devices[PROXY].handle_packet(self.now, packet);
            self.settle(PROXY);
        }
    }

    /// Delivers what a device sends, and what follows from it, until all is quiet.
    fn settle(&mut self, number: usize) {
        while let Some(mut transmit) = self.devices[number].poll_transmit() {
            if let Ok(Message::Initiation(_)) = Message::parse(&transmit.payload) {
                self.initiations.push(self.now);
            }
            let receiver = number_at(transmit.endpoint.remote);
            let from = Endpoint::new(address(number));
            // Under load a handshake message is answered with a cookie.
            let _ = self.devices[receiver].handle_datagram(
                self.now,
                from,
                transmit.traffic_class.ecn(),
                &mut transmit.payload,
            );
            self.settle(receiver);
        }
        while self.devices[number].poll_event().is_some() {}
    }

    fn links_up(&self) -> usize {
        let peers = self.devices[PROXY].status(self.now).peers;
        peers.iter().filter(|peer| peer.state == LinkState::Up).count()
    }

    /// The greatest number of initiations within any 100 ms.
    fn greatest_burst(&self) -> usize {
        let times = &self.initiations;
        let window = Duration::from_millis(100);
        let within = |first: &Instant| times.iter().filter(|at| (*first..*first + window).contains(at)).count();
        times.iter().map(within).max().unwrap_or_default()
    }
}

#[test]
fn a_thousand_peers_that_started_together_do_not_rekey_together() {
    let every = |interval| TrafficInStep::Checks(seconds(interval));
    for (caller, traffic) in [
        (Caller::Proxy, TrafficInStep::Keepalives),
        (Caller::Proxy, every(1)),
        (Caller::Proxy, every(30)),
        (Caller::Backends, TrafficInStep::Keepalives),
    ] {
        let mut site = Site::new(caller);
        site.advance(seconds(60), traffic);
        assert_eq!(site.links_up(), PEERS, "{caller:?}, {traffic:?}: after a minute");
        site.initiations.clear();
        site.advance(REJECT_AFTER_TIME, traffic);
        assert_eq!(site.links_up(), PEERS, "{caller:?}, {traffic:?}: after the sessions' end");
        let (rekeys, burst) = (site.initiations.len(), site.greatest_burst());
        println!("{caller:?}, {traffic:?}: {rekeys} rekeys, at most {burst} in 100 ms");
        assert_eq!(rekeys, PEERS, "{caller:?}, {traffic:?}");
        // Ten are the mean if they are spread evenly.
        let mean = PEERS * 100 / REKEY_JITTER.as_millis() as usize;
        assert!(burst <= 4 * mean, "{caller:?}, {traffic:?}: {burst} in 100 ms");
    }
}
