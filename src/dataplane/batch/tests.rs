use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::super::clock;
use super::super::samples::{Sample, config, device, handshake};
use super::super::sender::Sender;
use super::super::sockets::Sockets;
use super::super::udp::{BindOptions, RECEIVE_BUFFER_LEN, UdpSocket};
use super::super::virtio::VirtioHeader;
use super::*;
use crate::packet::frame::PacketFrame;
use crate::packet::traffic_class::{Ecn, set_ecn};
use crate::proto::device::Device;
use crate::proto::endpoint::Endpoint;
use crate::proto::router::{Router, Seen};

const MTU: u16 = 1420;
/// Where [`Sample`] packets go, by family.
const DESTINATIONS: [&str; 2] = ["10.77.0.2/32", "fd00::2/128"];

/// Us, with sessions to as many peers as were asked for, each behind a socket of its own.
struct Links {
    now: Instant,
    router: Arc<Router>,
    outbound: Outbound,
    counters: Arc<Counters>,
    peers: Vec<(UdpSocket, Arc<Router>)>,
}

/// A peer that knows us, and what we send from.
fn device_for(now: Instant, number: u8, us: SocketAddr) -> Device {
    let mut peer = device(now, number);
    let source = if number == 0 { "10.77.0.1/32" } else { "10.77.0.0/16" };
    peer.upsert_peer(now, config(200, Some(us), &[source, "fd00::1/128"])).unwrap();
    peer
}

/// One datagram as a peer received it: its length on the wire and the packets in it.
type Datagram = (usize, Vec<(u8, Vec<u8>)>);

impl Links {
    /// The first peer has [`DESTINATIONS`], the others one address each, `10.77.1.` and their number.
    fn new(peers: u8) -> Self {
        let mut now = clock::now();
        let bind = || {
            let options = BindOptions { shared: false, handshakes: false, fwmark: None, privileges: None };
            UdpSocket::bind("127.0.0.1:0".parse().unwrap(), options).unwrap()
        };
        let us = bind();
        let mut device = device(now, 200);
        let mut remotes = Vec::new();
        for number in 0..peers {
            // Slower than the limit on handshakes of one source.
            now += Duration::from_secs(1);
            let socket = bind();
            let mut peer = device_for(now, number, us.local());
            let other = format!("10.77.1.{number}/32");
            let allowed = if number == 0 { &DESTINATIONS[..] } else { &[other.as_str()] };
            device.upsert_peer(now, config(number, Some(socket.local()), allowed)).unwrap();
            handshake(now, &mut peer, us.local(), &mut device, socket.local());
            remotes.push((socket, peer.poll_router().unwrap()));
        }
        let counters = Arc::new(Counters::default());
        let sender = Sender::new(Sockets::shared([us]));
        let router = device.poll_router().unwrap();
        Self { now, router, outbound: Outbound::new(0, MTU, sender, counters.clone()), counters, peers: remotes }
    }

    /// Sends the packets of one drain.
    fn send(&mut self, samples: &[Sample]) {
        let mut notices = Vec::new();
        let mut drain = self.outbound.drain(self.now, &mut notices);
        for sample in samples {
            let mut bytes = sample.packet();
            let segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
            drain.push(self.router.route(self.now, segments.packet().destination()).unwrap(), &segments);
        }
        drain.finish();
        notices.retain(|notice| notice.seen != Seen::Resumed);
        assert_eq!(notices, []);
    }

    /// What `peer` received, in order; one item per receive.
    fn receive(&self, peer: usize) -> Vec<Vec<Datagram>> {
        let (socket, router) = &self.peers[peer];
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        let mut receives = Vec::new();
        while let Some(received) = socket.receive(&mut buffer).unwrap() {
            let datagrams = buffer[..received.length].chunks_mut(received.stride);
            receives.push(datagrams.map(|datagram| open(self.now, router, received.endpoint, datagram)).collect());
        }
        receives
    }

    fn drops(&self, reason: DropReason) -> u64 {
        let mut total = crate::proto::stats::DropCounters::default();
        self.counters.add_to(&mut total);
        total.of(reason)
    }
}

fn open(now: Instant, router: &Router, from: Endpoint, datagram: &mut [u8]) -> Datagram {
    let length = datagram.len();
    let mut notices = Vec::new();
    let opened = router.open(now, from, Ecn::NotEct, datagram, &mut notices).unwrap();
    let packets = opened.packets(&mut notices).map(|frame| frame.unwrap());
    (length, packets.map(|PacketFrame { flags, bytes }| (flags, bytes.to_vec())).collect())
}

fn small(length: usize) -> Sample {
    Sample { segment_size: 0, ..Sample::tcp_v4(length, 0) }
}

fn to_peer(number: u8, length: usize) -> (Vec<u8>, Sample) {
    let sample = small(length);
    let mut bytes = sample.packet();
    bytes[16..20].copy_from_slice(&[10, 77, 1, number]);
    (bytes, sample)
}

#[test]
fn small_packets_of_one_drain_travel_in_one_datagram() {
    let mut links = Links::new(1);
    let samples: Vec<_> = (0..5).map(|number| small(100 + number)).collect();
    links.send(&samples);
    let receives = links.receive(0);
    let [datagrams] = &receives[..] else { panic!("one receive") };
    let [(_, packets)] = &datagrams[..] else { panic!("one datagram") };
    let expected: Vec<_> = samples.iter().map(|sample| (1, sample.packet())).collect();
    assert_eq!(*packets, expected);
}

#[test]
fn a_superpacket_is_one_send_of_equal_datagrams() {
    let mut links = Links::new(1);
    // As many full segments as one send takes at this MTU.
    links.send(&[Sample::tcp_v4(45 * 1368, 1368)]);
    let receives = links.receive(0);
    assert_eq!(receives.len(), 1);
    let lengths: Vec<_> = receives[0].iter().map(|(length, packets)| (*length, packets.len())).collect();
    assert_eq!(lengths, vec![(usize::from(MTU) + 32, 1); 45]);
    assert!(receives[0][0].1[0].0 & 2 == 0 && receives[0][1..].iter().all(|(_, packets)| packets[0].0 & 2 == 2));
}

#[test]
fn equal_packets_are_neither_padded_nor_sent_one_by_one() {
    let mut links = Links::new(1);
    links.send(&vec![small(1100); 20]);
    let receives = links.receive(0);
    assert_eq!(receives.len(), 1);
    assert!(receives[0].iter().all(|(length, _)| *length == 1152 + 4 + 28));
}

#[test]
fn a_mixed_drain_is_padded_into_one_send() {
    let mut links = Links::new(1);
    let samples: Vec<_> = [600, 500, 20, 620, 580, 10, 700, 450, 90].map(small).to_vec();
    links.send(&samples);
    let receives = links.receive(0);
    assert_eq!(receives.len(), 1, "{receives:?}");
    let lengths: Vec<_> = receives[0].iter().map(|(length, _)| *length).collect();
    assert_eq!(lengths[..2], [usize::from(MTU) + 32; 2]);
    assert!(lengths[2] < lengths[1], "the last is not padded");
}

#[test]
fn padding_that_costs_much_is_not_done() {
    let mut links = Links::new(1);
    links.send(&[small(100), small(1360), small(1360)]);
    let datagrams: Vec<_> = links.receive(0).into_iter().flatten().collect();
    let lengths: Vec<_> = datagrams.iter().map(|(length, _)| *length).collect();
    assert_eq!(lengths, [152 + 32, 1412 + 32, 1412 + 32]);
}

#[test]
fn a_packet_beyond_the_mtu_is_counted_and_the_others_go() {
    let mut links = Links::new(1);
    links.send(&[small(10), small(1369), small(20)]);
    let packets: Vec<_> = links.receive(0).into_iter().flatten().flat_map(|(_, packets)| packets).collect();
    assert_eq!(packets.len(), 2);
    assert_eq!(links.drops(DropReason::TooLarge), 1);
}

#[test]
fn a_segment_does_not_continue_one_that_is_too_large() {
    let mut links = Links::new(1);
    links.send(&[small(10), Sample::tcp_v4(2 * 1369 + 100, 1369)]);
    let packets: Vec<_> = links.receive(0).into_iter().flatten().flat_map(|(_, packets)| packets).collect();
    assert_eq!(packets.iter().map(|(flags, packet)| (*flags, packet.len())).collect::<Vec<_>>(), [(1, 62), (1, 152)]);
    assert_eq!(links.drops(DropReason::TooLarge), 2);
}

/// A packet whose ECN field says this.
fn saying(ecn: Ecn, length: usize) -> (Vec<u8>, Sample) {
    let sample = small(length);
    let mut bytes = sample.packet();
    set_ecn(&mut bytes, ecn);
    (bytes, sample)
}

#[test]
fn packets_of_two_ecn_fields_do_not_share_a_datagram_and_keep_their_order() {
    let mut links = Links::new(1);
    let fields = [Ecn::NotEct, Ecn::NotEct, Ecn::Ect0, Ecn::Ect0, Ecn::Ect0, Ecn::Ce, Ecn::NotEct, Ecn::Ect1];
    send_to(&mut links, (0..).zip(fields).map(|(index, ecn)| saying(ecn, 100 + index)));
    let datagrams: Vec<_> = links.receive(0).into_iter().flatten().collect();
    assert_eq!(datagrams.iter().map(|(_, packets)| packets.len()).collect::<Vec<_>>(), [2, 3, 1, 1, 1]);
    let packets: Vec<_> = datagrams.into_iter().flat_map(|(_, packets)| packets).collect();
    let of = |(_, packet): &(u8, Vec<u8>)| (TrafficClass::of(packet).ecn(), packet.len() - 152);
    assert_eq!(packets.iter().map(of).collect::<Vec<_>>(), fields.into_iter().zip(0..).collect::<Vec<_>>());
}

#[test]
fn each_datagram_leaves_with_the_ecn_field_of_its_packets() {
    let mut links = Links::new(1);
    send_to(&mut links, [Ecn::Ect0, Ecn::Ce, Ecn::NotEct].map(|ecn| saying(ecn, 100)).into_iter());
    let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
    let received: Vec<_> = std::iter::from_fn(|| links.peers[0].0.receive(&mut buffer).unwrap()).collect();
    assert_eq!(received.iter().map(|received| received.ecn).collect::<Vec<_>>(), [Ecn::Ect0, Ecn::Ce, Ecn::NotEct]);
}

#[test]
fn packets_of_two_classes_share_a_datagram_that_shows_neither() {
    let mut links = Links::new(1);
    let classes = [0xb8, 0x00, 0x28].map(|class| {
        let (mut bytes, sample) = saying(Ecn::NotEct, 100);
        bytes[1] = class;
        (bytes, sample)
    });
    send_to(&mut links, classes.into_iter());
    let received = links.receive(0);
    assert_eq!((received.len(), received[0].len(), received[0][0].1.len()), (1, 1, 3));
}

#[test]
fn interleaved_peers_each_get_one_datagram() {
    let mut links = Links::new(3);
    send_to(&mut links, (0..12).map(|index| to_peer(1 + index % 2, 100 + usize::from(index))));
    for peer in [1, 2] {
        let receives = links.receive(peer);
        assert_eq!((receives.len(), receives[0].len()), (1, 1));
        let lengths: Vec<_> = receives[0][0].1.iter().map(|(_, packet)| packet.len() - 152).collect();
        assert_eq!(lengths, (0..12).filter(|index| 1 + index % 2 == peer).collect::<Vec<_>>());
    }
}

#[test]
fn more_peers_than_batches_lose_nothing_and_keep_their_order() {
    let mut links = Links::new(MAX_BATCHES as u8 + 5);
    let peers = MAX_BATCHES as u8 + 4;
    send_to(&mut links, (0..100).map(|index| to_peer(1 + index % peers, 100 + usize::from(index))));
    for peer in 1..=usize::from(peers) {
        let packets: Vec<_> = links.receive(peer).into_iter().flatten().flat_map(|(_, packets)| packets).collect();
        let lengths: Vec<_> = packets.iter().map(|(_, packet)| packet.len() - 152).collect();
        assert_eq!(lengths, (0..100).filter(|index| 1 + index % usize::from(peers) == peer).collect::<Vec<_>>());
    }
}

fn send_to(links: &mut Links, packets: impl Iterator<Item = (Vec<u8>, Sample)>) {
    let mut notices = Vec::new();
    let mut drain = links.outbound.drain(links.now, &mut notices);
    for (mut bytes, _) in packets {
        let segments = Segments::new(&VirtioHeader::PLAIN, &mut bytes).unwrap();
        drain.push(links.router.route(links.now, segments.packet().destination()).unwrap(), &segments);
    }
    drain.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a drain holds, it arrives whole and in order, and no datagram is longer than a packet of the MTU makes.
    #[test]
    fn every_mix_arrives_whole_and_in_order(sizes in proptest::collection::vec((0..30_000usize, 40..1368usize, any::<bool>()), 1..12)) {
        let mut links = Links::new(1);
        let samples: Vec<_> = sizes
            .into_iter()
            .map(|(length, segment, v6)| if v6 { Sample::udp_v6(length, segment) } else { Sample::tcp_v4(length, segment) })
            .collect();
        links.send(&samples);
        let datagrams: Vec<_> = links.receive(0).into_iter().flatten().collect();
        prop_assert!(datagrams.iter().all(|(length, _)| *length <= usize::from(MTU) + 32));
        let mut expected = Vec::new();
        for sample in &samples {
            let mut bytes = sample.packet();
            let segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
            for index in 0..segments.count() {
                let mut packet = vec![0; segments.length(index)];
                segments.write(index, &mut packet);
                expected.push((segments.flags(index), packet));
            }
        }
        let received: Vec<_> = datagrams.into_iter().flat_map(|(_, packets)| packets).collect();
        prop_assert_eq!(received, expected);
    }
}
