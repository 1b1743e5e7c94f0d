//! What someone on the path does who has recorded everything and knows every public key.

use std::net::SocketAddr;

use underpass::keys::PrivateKey;
use underpass::packet::message::{
    COOKIE_REPLY_LEN, INITIATION_LEN, MAC_LEN, Message, PROTOCOL_VERSION, RESPONSE_LEN, TRANSPORT_OVERHEAD,
};
use underpass::packet::traffic_class::Ecn;
use underpass::proto::cookie::MacKeys;
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::randomness::Entropy;
use underpass::proto::staged::StagedPacket;

use crate::checks::Untouched;
use crate::inner_packet::{Burst, Flow};
use crate::network::{ATTACKER, Datagram, Origin, Recorded};
use crate::node::inner_addresses;
use crate::reference::{Checked, ensure};
use crate::simulation::Simulation;
use crate::transition::TamperKind;
use crate::twin::kernel::HEADER_LEN;
use crate::worker::Arrived;

impl Simulation {
    /// Sends a recorded datagram again.
    pub(crate) fn replay(&mut self, pick: usize, copies: usize, from_elsewhere: bool) -> Checked {
        let Some(Recorded { receiver, mut datagram, .. }) = self.recorded(pick) else { return Ok(()) };
        datagram.origin = Origin::Copy;
        if from_elsewhere {
            datagram.from = attacker();
        }
        (0..copies).try_for_each(|_| self.deliver(receiver, datagram.clone()))
    }

    /// Sends a recorded datagram altered.
    pub(crate) fn tamper(&mut self, pick: usize, kind: TamperKind) -> Checked {
        let Some(Recorded { receiver, mut datagram, .. }) = self.recorded(pick) else { return Ok(()) };
        datagram.origin = Origin::Altered;
        datagram.payload = match kind {
            TamperKind::FlipBit => self.network.altered(datagram.payload),
            TamperKind::FlipBitAndSign => {
                let recorded = datagram.payload.clone();
                let altered = self.network.altered(datagram.payload);
                let altered = self.signed(receiver, altered);
                let before_mac2 = recorded.len() - MAC_LEN;
                if altered[..before_mac2] == recorded[..before_mac2] {
                    // Only mac1 was altered, and it is right again.
                    return Ok(());
                }
                altered
            }
            TamperKind::Truncate => {
                let length = self.random.below(datagram.payload.len());
                datagram.payload[..length].to_vec()
            }
            TamperKind::Extend => {
                let more = 1 + self.random.below(40);
                [datagram.payload, vec![0; more]].concat()
            }
        };
        self.deliver(receiver, datagram)
    }

    /// Sends a recorded datagram back to its sender.
    pub(crate) fn reflect(&mut self, pick: usize) -> Checked {
        let Some(Recorded { sender, datagram, .. }) = self.recorded(pick) else { return Ok(()) };
        self.deliver(sender, Datagram { from: datagram.to, to: datagram.from, origin: Origin::Altered, ..datagram })
    }

    /// Sends random bytes under a plausible header.
    pub(crate) fn forge(&mut self, to: usize, kind: usize, mac1: bool, pick: usize) -> Checked {
        let receiver = to % self.nodes.len();
        let index = self.index_seen(pick);
        let length =
            [INITIATION_LEN, RESPONSE_LEN, COOKIE_REPLY_LEN, TRANSPORT_OVERHEAD, 4][kind] + self.random.below(2);
        let mut payload: Vec<u8> = std::iter::repeat_with(|| self.random.seed()).flatten().take(length).collect();
        payload[0] = kind as u8 + 1;
        match kind {
            0..=2 => {
                payload[1] = PROTOCOL_VERSION;
                payload[2] = 1 + (pick % 3) as u8;
                let at = if kind == 1 { 8 } else { 4 };
                payload[at..at + 4].copy_from_slice(&index.to_le_bytes());
            }
            3 => {
                payload[1] = 0;
                payload[2..6].copy_from_slice(&index.to_le_bytes());
                payload[9..12].fill(0);
            }
            _ => {}
        }
        if mac1 {
            payload = self.signed(receiver, payload);
        }
        let from = if pick.is_multiple_of(2) { attacker() } else { self.network.public_address((receiver + 1) % 2) };
        let (to, ecn, origin) = (attacker(), Ecn::default(), Origin::Altered);
        self.deliver(receiver, Datagram { from, to, ecn, payload, origin, sent: None })
    }

    /// Sends a stranger's initiations from many addresses: complete ones, or such that even mac1 is wrong.
    pub(crate) fn flood(&mut self, to: usize, count: usize, mac1: bool) -> Checked {
        let receiver = to % self.nodes.len();
        let mut payload = self.strangers_initiation(receiver);
        if !mac1 {
            payload[INITIATION_LEN - 20] ^= 1;
        }
        let before = Untouched::new(self.now, &mut self.nodes[receiver]);
        let from = |i: usize| Endpoint::new(SocketAddr::from(([198, 18, (i >> 8) as u8, i as u8], 1000)));
        let mut answered = 0;
        for i in 0..count {
            let datagrams = &mut [Arrived { from: from(i), ecn: Ecn::default(), payload: payload.clone() }];
            let outcomes = self.nodes[receiver].receive(self.now, datagrams, &mut self.random)?;
            ensure!(outcomes[0].is_err(), "node {receiver} took a stranger's initiation");
            let outputs = self.nodes[receiver].poll(self.now, &mut self.random);
            answered += outputs.transmits.iter().map(|transmit| transmit.payload.len()).sum::<usize>();
        }
        ensure!(mac1 || answered == 0, "a stranger who does not know the public key was answered {answered} bytes");
        ensure!(answered <= count * payload.len(), "{answered} bytes answer {count} initiations");
        let after = Untouched::new(self.now, &mut self.nodes[receiver]);
        ensure!(before == after, "a flood changed node {receiver} from {before:?} to {after:?}");
        self.flooded_at[receiver] = Some(self.now);
        Ok(())
    }

    fn recorded(&self, pick: usize) -> Option<Recorded> {
        let recorded = self.network.recorded();
        // The latest are the most interesting.
        recorded.len().checked_sub(1 + (pick % recorded.len().max(1)) % 50).map(|at| recorded[at].clone())
    }

    /// A session index that went over the network lately, or any.
    fn index_seen(&mut self, pick: usize) -> u32 {
        let recorded = self.recorded(pick).map(|recorded| recorded.datagram.payload).unwrap_or_default();
        match Message::parse(&recorded) {
            Ok(Message::Initiation(message)) => message.sender_index(),
            Ok(Message::Response(message)) => message.sender_index(),
            Ok(Message::CookieReply(message)) => message.receiver_index(),
            Ok(Message::Transport(header)) => header.receiver_index,
            Err(_) => self.random.u64() as u32,
        }
    }

    /// Makes the mac1 of a handshake message right. Other bytes stay as they are.
    fn signed(&self, receiver: usize, mut payload: Vec<u8>) -> Vec<u8> {
        if payload.len() == INITIATION_LEN || payload.len() == RESPONSE_LEN {
            MacKeys::new(&self.nodes[receiver].private_key.public_key()).write(&mut payload, None);
        }
        payload
    }

    /// A whole initiation by somebody who knows the receiver's public key, and no more.
    pub(crate) fn strangers_initiation(&mut self, receiver: usize) -> Vec<u8> {
        let config = DeviceConfig {
            private_key: PrivateKey::from_bytes([99; 32]).expect("not all zeros"),
            previous_private_key: None,
            suite: Suite::Aes256Gcm,
            send_lanes: 1,
            lane_paths: false,
            mtu: None,
        };
        let mut stranger = Device::new(self.now, self.unix_time(receiver), config, Entropy::seeded(self.random.seed()));
        let endpoints = vec![Endpoint::new(self.network.public_address(receiver))];
        stranger.upsert_peer(self.now, PeerConfig { endpoints, ..self.peer_config(receiver) });
        let [source, destination] = [99, receiver].map(|node| inner_addresses(node)[0]);
        let read = Flow { source, destination, is_tcp: false, port: 1 }.read(0, Burst::single(8, false));
        let packet = StagedPacket { bytes: read[HEADER_LEN..].to_vec(), checksum_partial: false };
        stranger.handle_packet(self.now, packet).expect("the stranger knows the endpoint");
        stranger.poll_transmit().expect("a packet without a session starts a handshake").payload
    }
}

fn attacker() -> SocketAddr {
    ATTACKER.parse().expect("an address")
}
