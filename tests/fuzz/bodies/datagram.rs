//! A device that has a session with one peer and awaits another's answer takes what the data says: datagrams as they are,
//! with a right mac1, or sealed by the peer, and jumps of time.
//!
//! The data is a list of steps: `mode (1) | length (2, little-endian) | bytes`, and for time `mode | milliseconds (2)`. The
//! bits above a mode are the ECN field of its datagram.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use underpass::keys::PrivateKey;
use underpass::packet::ip::IpPacket;
use underpass::packet::message::{MAC_LEN, TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::{Ecn, TrafficClass};
use underpass::proto::cookie::MacKeys;
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::event::Event;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Exposure, Policy};
use underpass::proto::randomness::Entropy;
use underpass::proto::staged::StagedPacket;

const RAW: u8 = 0;
const WITH_MAC1: u8 = 1;

const LATER: u8 = 3;
/// Modes are read modulo this.
const MODES: u8 = 4;
/// Of a run, so that none takes long: time brings handshakes.
const MAX_STEPS: usize = 32;

pub(crate) struct World {
    now: Instant,
    device: Device,
    peer: Device,
}

fn key(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes([byte; 32]).expect("not all zeros")
}

fn device(now: Instant, byte: u8) -> Device {
    let config = DeviceConfig {
        private_key: key(byte),
        previous_private_key: None,
        suite: Suite::Aes256Gcm,
        send_lanes: 1,
        lane_paths: false,
        mtu: None,
    };
    Device::new(now, Duration::from_secs(1_700_000_000), config, Entropy::seeded([byte; 32]))
}

fn endpoint(byte: u8) -> Endpoint {
    Endpoint::new((IpAddr::from([192, 0, 2, byte]), 51900).into())
}

fn peer(byte: u8) -> PeerConfig {
    PeerConfig {
        endpoints: vec![endpoint(byte)],
        allowed_ips: vec![IpAddr::from([10, 77, 0, byte]).into()],
        policy: Policy::exposing(Exposure::everything()).into(),
        ..PeerConfig::new(key(byte).public_key())
    }
}

/// An IPv4 packet without a payload.
fn packet(source: u8, destination: u8) -> StagedPacket {
    let mut bytes = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0];
    bytes.extend([10, 77, 0, source, 10, 77, 0, destination]);
    StagedPacket { bytes, checksum_partial: false }
}

impl World {
    pub(crate) fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
        let now = Instant::now();
        let (mut device, mut other) = (device(now, 1), device(now, 2));
        device.upsert_peer(now, peer(2));
        device.upsert_peer(now, peer(3));
        other.upsert_peer(now, peer(1));
        other.handle_packet(now, packet(2, 1)).expect("the endpoint is known");
        let mut quiet = false;
        while !quiet {
            quiet = true;
            while let Some(mut transmit) = other.poll_transmit() {
                device.handle_datagram(now, endpoint(2), Ecn::NotEct, &mut transmit.payload).expect("a good datagram");
                quiet = false;
            }
            while let Some(mut transmit) = device.poll_transmit() {
                other.handle_datagram(now, endpoint(1), Ecn::NotEct, &mut transmit.payload).expect("a good datagram");
                quiet = false;
            }
        }
        device.handle_packet(now, packet(1, 3)).expect("the endpoint is known");
        let mut world = Self { now, device, peer: other };
        world.drain();
        world
    }

    pub(crate) fn do_steps(&mut self, mut rest: &[u8]) {
        for _ in 0..MAX_STEPS {
            let Some((&[mode, low, high], tail)) = rest.split_first_chunk() else { break };
            let number = u16::from_le_bytes([low, high]);
            if mode % MODES == LATER {
                self.wait(Duration::from_millis(number.into()));
                rest = tail;
                continue;
            }
            let (bytes, tail) = tail.split_at(usize::from(number).min(tail.len()));
            rest = tail;
            let ecn = TrafficClass::from_byte(mode / MODES).ecn();
            match mode % MODES {
                RAW => self.receive(ecn, bytes.to_vec()),
                WITH_MAC1 => self.receive_with_mac1(ecn, bytes.to_vec()),
                // What is left is sealed by the peer.
                _ => self.receive_sealed(ecn, bytes),
            }
        }
    }

    fn receive(&mut self, ecn: Ecn, mut datagram: Vec<u8>) {
        let length = datagram.len();
        let refused = self.device.handle_datagram(self.now, endpoint(2), ecn, &mut datagram).is_err();
        let answer = self.drain();
        assert!(!refused || answer <= length, "{answer} bytes answer {length} that were refused");
    }

    fn receive_with_mac1(&mut self, ecn: Ecn, mut datagram: Vec<u8>) {
        if datagram.len() >= 2 * MAC_LEN {
            MacKeys::new(&self.device.public_key()).write(&mut datagram, None);
        }
        self.receive(ecn, datagram);
    }

    /// Takes `plaintext` as the peer's frames: authentic, and still not to be trusted.
    fn receive_sealed(&mut self, ecn: Ecn, plaintext: &[u8]) {
        let router = self.peer.router();
        let Ok(route) = router.route(self.now, [10, 77, 0, 1].into()) else { return };
        let mut datagram = vec![0; TRANSPORT_HEADER_LEN];
        datagram.extend_from_slice(plaintext);
        datagram.extend_from_slice(&[0; TAG_LEN]);
        if route.seal(self.now, 0, &mut datagram, &mut Vec::new()).is_ok() {
            self.receive(ecn, datagram);
        }
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.device.handle_timeout(self.now);
        assert!(self.device.poll_timeout().is_none_or(|(deadline, _)| deadline > self.now), "a deadline stands still");
        self.drain();
    }

    /// Takes all outputs; returns how many bytes are to be sent.
    fn drain(&mut self) -> usize {
        while let Some(event) = self.device.poll_event() {
            let Event::Packet { bytes, .. } = event else { continue };
            let packet = IpPacket::parse(&bytes).expect("only whole packets come out");
            assert_eq!(packet.source(), IpAddr::from([10, 77, 0, 2]), "only the peer's address comes out");
        }
        let sent = std::iter::from_fn(|| self.device.poll_transmit()).map(|transmit| transmit.payload.len()).sum();
        drop(self.device.poll_router());
        sent
    }
}
