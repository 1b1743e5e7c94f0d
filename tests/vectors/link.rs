//! A real device and the second implementation with a wire between them, on one virtual clock.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass::keys::{PresharedKey, PrivateKey, PublicKey};
use underpass::packet::message::{TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD};
use underpass::packet::traffic_class::Ecn;
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Exposure, Policy};
use underpass::proto::randomness::Entropy;
use underpass::proto::staged::StagedPacket;
use underpass::proto::stats::{LinkState, PeerStatus};
use underpass::proto::transmit::SourcePort;

use crate::python::{Conversation, bytes, hex};

/// The device's address inside.
pub(crate) const OURS: [u8; 4] = [10, 77, 0, 1];
/// The second implementation's.
pub(crate) const THEIRS: [u8; 4] = [10, 77, 0, 2];
/// How much time passes at once.
pub(crate) const TICK: Duration = Duration::from_millis(100);

const OUR_ENDPOINT: &str = "192.0.2.1:51900";

/// The port of a lane follows on the one that is listened on.
fn source(port: SourcePort) -> String {
    match port {
        SourcePort::Listen => OUR_ENDPOINT.to_owned(),
        SourcePort::Lane(lane) => format!("192.0.2.1:{}", 51900 + u16::from(lane)),
    }
}

const UNIX_TIME: u64 = 1_700_000_000;

/// What differs between conversations.
#[derive(Clone)]
pub(crate) struct Setup {
    pub suite: Suite,
    pub preshared_key: Option<PresharedKey>,
    /// Which of the two has the greater public key decides simultaneous initiations.
    pub seeds: [u8; 2],
}

impl Default for Setup {
    fn default() -> Self {
        Self { suite: Suite::Aes256Gcm, preshared_key: None, seeds: [1, 2] }
    }
}

/// What the second implementation says, since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Theirs {
    /// Packets with how many they were on the wire.
    pub packets: Vec<(Vec<u8>, u64)>,
    pub refused: Vec<String>,
    pub events: Vec<String>,
    pub has_session: bool,
    pub endpoint: String,
    /// Where each datagram went.
    pub destinations: Vec<String>,
}

/// Decides whether a datagram is lost.
type Loss = dyn FnMut(bool, &[u8]) -> bool;

pub(crate) struct Link {
    pub setup: Setup,
    pub start: Instant,
    pub now: Instant,
    pub device: Device,
    /// What the device delivered, with whether its checksum is to be computed.
    pub delivered: Vec<(Vec<u8>, bool)>,
    pub events: Vec<Event>,
    pub refused: Vec<DropReason>,
    pub theirs: Theirs,
    /// Where the second implementation sends from.
    pub their_endpoint: SocketAddr,
    /// Datagrams to be lost: from the device or not, and its bytes.
    pub lose: Box<Loss>,
    /// Each datagram that was sent: by the device or not.
    pub sent: Vec<(bool, Vec<u8>)>,
    other: Conversation,
}

impl Setup {
    fn private_keys(&self) -> [PrivateKey; 2] {
        self.seeds.map(|seed| PrivateKey::from_bytes([seed; 32]).unwrap())
    }

    pub(crate) fn public_keys(&self) -> [PublicKey; 2] {
        self.private_keys().map(|key| key.public_key())
    }

    fn device(&self, now: Instant, unix_time: u64) -> Device {
        let [ours, theirs] = self.private_keys();
        let config = DeviceConfig {
            private_key: ours,
            previous_private_key: None,
            suite: self.suite,
            send_lanes: 2,
            lane_paths: true,
            mtu: None,
        };
        let mut device =
            Device::new(now, Duration::from_secs(unix_time), config, Entropy::seeded([unix_time as u8; 32]));
        device.upsert_peer(
            now,
            PeerConfig {
                preshared_key: self.preshared_key.clone(),
                endpoints: vec![Endpoint::new("192.0.2.2:51900".parse().unwrap())],
                allowed_ips: vec!["10.77.0.2/32".parse().unwrap(), "fd77::1/128".parse().unwrap()],
                policy: Policy::exposing(Exposure::everything()).into(),
                ..PeerConfig::new(theirs.public_key())
            },
        );
        device
    }

    fn other(&self) -> Conversation {
        let [ours, theirs] = self.private_keys();
        let mut other = Conversation::start("talk.py");
        let answer = other.say(&json!({
            "private_key": hex(theirs.as_bytes()),
            "public_key": hex(ours.public_key().as_bytes()),
            "preshared_key": self.preshared_key.as_ref().map(|key| hex(key.as_bytes())),
            "suite": self.suite.to_byte(),
            "lanes": 3,
            "endpoint": OUR_ENDPOINT,
            "unix_time": UNIX_TIME,
            "remote_sources": [hex(&OURS)],
            "seed": 7,
        }));
        assert_eq!(bytes(&answer["public_key"]), theirs.public_key().as_bytes());
        other
    }
}

impl Link {
    pub(crate) fn new(setup: Setup) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
        let now = Instant::now();
        Self {
            start: now,
            now,
            device: setup.device(now, UNIX_TIME),
            delivered: Vec::new(),
            events: Vec::new(),
            refused: Vec::new(),
            theirs: Theirs::default(),
            their_endpoint: "192.0.2.2:51900".parse().unwrap(),
            lose: Box::new(|_, _| false),
            sent: Vec::new(),
            other: setup.other(),
            setup,
        }
    }

    /// Starts the device anew, as after a crash.
    pub(crate) fn restart_device(&mut self) {
        self.device = self.setup.device(self.now, UNIX_TIME + 10_000);
    }

    pub(crate) fn we_send(&mut self, bytes: Vec<u8>) {
        let now = self.now;
        let _ = self.device.handle_packet(now, StagedPacket { bytes, checksum_partial: false });
        self.settle();
    }

    /// Seals plaintexts as a worker does; the datagrams arrive together.
    pub(crate) fn we_send_frames(&mut self, lane: u8, plaintexts: &[&[u8]]) {
        let router = self.device.router();
        let route = router.route(self.now, THEIRS.into()).expect("there is a session");
        let mut datagrams = Vec::new();
        for plaintext in plaintexts {
            let mut datagram = vec![0; TRANSPORT_OVERHEAD + plaintext.len()];
            datagram[TRANSPORT_HEADER_LEN..][..plaintext.len()].copy_from_slice(plaintext);
            route.seal(self.now, lane, &mut datagram, &mut Vec::new()).unwrap();
            self.sent.push((true, datagram.clone()));
            if !(self.lose)(true, &datagram) {
                datagrams.push(datagram);
            }
        }
        self.give_them(&datagrams);
    }

    pub(crate) fn they_send(&mut self, packet: &[u8]) {
        self.tell(json!({ "do": "packet", "packet": hex(packet), "lane": 0, "flags": 0 }));
        self.settle();
    }

    pub(crate) fn they_send_frames(&mut self, lane: u8, frames: &[u8]) {
        self.tell(json!({ "do": "frames", "frames": hex(frames), "lane": lane }));
        self.settle();
    }

    /// Any other command.
    pub(crate) fn they(&mut self, command: Value) {
        self.tell(command);
        self.settle();
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now = (self.now + TICK).min(end);
            let now = self.now;
            self.device.handle_timeout(now);
            self.tell(json!({ "do": "nothing" }));
            self.settle();
        }
    }

    pub(crate) fn status(&self) -> PeerStatus {
        self.device.status(self.now).peers.remove(0)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.status().state == LinkState::Up && self.theirs.has_session
    }

    /// Forgets what both said.
    pub(crate) fn clear(&mut self) {
        self.delivered.clear();
        self.events.clear();
        self.refused.clear();
        self.sent.clear();
        self.theirs.packets.clear();
        self.theirs.refused.clear();
        self.theirs.events.clear();
        self.theirs.destinations.clear();
    }

    /// Datagrams from the second implementation arrive at the device.
    pub(crate) fn give_us(&mut self, from: SocketAddr, mut datagram: Vec<u8>) {
        let (now, from) = (self.now, Endpoint::new(from));
        if let Err(reason) = self.device.handle_datagram(now, from, Ecn::NotEct, &mut datagram) {
            self.refused.push(reason);
        }
    }

    /// Datagrams from the device arrive at the second implementation.
    pub(crate) fn give_them(&mut self, datagrams: &[Vec<u8>]) {
        let datagrams = datagrams.iter().map(|datagram| (OUR_ENDPOINT.to_owned(), datagram.clone()));
        self.tell_datagrams(&datagrams.collect::<Vec<_>>());
        self.settle();
    }

    /// Carries datagrams until there are no more.
    fn settle(&mut self) {
        loop {
            let mut ours = Vec::new();
            while let Some(transmit) = self.device.poll_transmit() {
                self.sent.push((true, transmit.payload.clone()));
                if transmit.endpoint.remote == self.their_endpoint && !(self.lose)(true, &transmit.payload) {
                    ours.push((source(transmit.port), transmit.payload));
                }
            }
            while let Some(event) = self.device.poll_event() {
                match event {
                    Event::Packet { bytes, checksum_partial, .. } => self.delivered.push((bytes, checksum_partial)),
                    event => self.events.push(event),
                }
            }
            if ours.is_empty() {
                return;
            }
            self.tell_datagrams(&ours);
        }
    }

    fn tell_datagrams(&mut self, datagrams: &[(String, Vec<u8>)]) {
        let datagrams: Vec<Value> = datagrams.iter().map(|(from, datagram)| json!([from, hex(datagram)])).collect();
        self.tell(json!({ "do": "datagrams", "datagrams": datagrams }));
    }

    /// Has them do something, and takes what they then send.
    fn tell(&mut self, mut command: Value) {
        command["now"] = json!((self.now - self.start).as_secs_f64());
        let answer = self.other.say(&command);
        let list = |name: &str| answer[name].as_array().unwrap().clone();
        let texts = |name: &str| list(name).iter().map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>();
        self.theirs
            .packets
            .extend(list("packets").iter().map(|packet| (bytes(&packet[0]), packet[1].as_u64().unwrap())));
        self.theirs.refused.extend(texts("refused"));
        self.theirs.events.extend(texts("events"));
        self.theirs.has_session = answer["has_session"].as_bool().unwrap();
        self.theirs.endpoint = answer["endpoint"].as_str().unwrap().to_owned();
        for datagram in list("datagrams") {
            self.theirs.destinations.push(datagram[0].as_str().unwrap().to_owned());
            let datagram = bytes(&datagram[1]);
            self.sent.push((false, datagram.clone()));
            if !(self.lose)(false, &datagram) {
                self.give_us(self.their_endpoint, datagram);
            }
        }
    }
}
