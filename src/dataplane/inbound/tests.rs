use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Instant;

use super::super::clock;
use super::super::samples::{Sample, config, device, handshake};
use super::super::segment::Segments;
use super::super::tun::Offload;
use super::super::virtio::VIRTIO_HEADER_LEN;
use super::*;
use crate::packet::checksum;
use crate::packet::frame::packet_header;
use crate::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use crate::packet::traffic_class::{Ecn, set_ecn};
use crate::proto::endpoint::Endpoint;
use crate::proto::peer::PeerConfig;
use crate::proto::policy::{Exposure, Policy, Service};
use crate::proto::stats::DropCounters;

/// A peer that may seal what it likes, and us with a session to it.
struct Link {
    now: Instant,
    peer: Arc<Router>,
    us: Arc<Router>,
    from: Endpoint,
    tun: TunQueue,
    kernel: UnixDatagram,
    counters: Counters,
}

/// What a peer puts into one datagram: packets with their flags.
type Frames = Vec<(u8, Vec<u8>)>;

impl Link {
    /// The peer may send anything from 10.77.0.1 and fd00::1.
    fn new() -> Self {
        Self::with_policy(Policy::exposing(Exposure::everything()))
    }

    fn exposing(service: Service) -> Self {
        Self::with_policy(Policy::exposing([service]))
    }

    /// We have the addresses that samples go to.
    fn with_policy(policy: Policy) -> Self {
        let now = clock::now();
        let [at, peer_at] = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let (mut us, mut peer) = (device(now, 1), device(now, 2));
        let policy = policy.with_own_addresses(["10.77.0.2", "fd00::2"].map(|address| address.parse().unwrap())).into();
        let config_of_peer = config(2, Some(peer_at), &["10.77.0.1/32", "fd00::1/128"]);
        us.upsert_peer(now, PeerConfig { policy, ..config_of_peer }).unwrap();
        us.upsert_peer(now, config(3, None, &["10.77.0.0/24"])).unwrap();
        peer.upsert_peer(now, config(1, Some(at), &["0.0.0.0/0", "::/0"])).unwrap();
        handshake(now, &mut peer, at, &mut us, peer_at);
        let (queue, kernel) = UnixDatagram::pair().unwrap();
        kernel.set_nonblocking(true).unwrap();
        Self {
            now,
            peer: peer.poll_router().unwrap(),
            us: us.poll_router().unwrap(),
            from: Endpoint { local: Some("127.0.0.1".parse().unwrap()), ..Endpoint::new(peer_at) },
            tun: TunQueue::of_socket(queue, Offload::TcpAndUdp),
            kernel,
            counters: Counters::default(),
        }
    }

    fn seal(&self, lane: u8, frames: &Frames) -> Vec<u8> {
        let mut datagram = vec![0; TRANSPORT_HEADER_LEN];
        for (flags, packet) in frames {
            datagram.extend(packet_header(*flags, u16::try_from(packet.len()).unwrap()));
            datagram.extend(packet);
        }
        self.seal_plaintext(lane, datagram)
    }

    fn seal_plaintext(&self, lane: u8, mut datagram: Vec<u8>) -> Vec<u8> {
        datagram.extend([0; TAG_LEN]);
        let route = self.peer.route(self.now, "10.77.0.2".parse().unwrap()).unwrap();
        route.seal(self.now, lane, &mut datagram, &mut Vec::new()).unwrap();
        datagram
    }

    /// Takes the datagrams as one receive; returns the lengths of what was written to the TUN.
    fn receive(&self, datagrams: Vec<Vec<u8>>) -> Vec<usize> {
        self.receive_from(false, datagrams).iter().map(Vec::len).collect()
    }

    /// The same, from a queue that may stand; returns what was written.
    fn receive_from(&self, standing: bool, datagrams: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        self.receive_marked(standing, datagrams.into_iter().map(|datagram| (Ecn::NotEct, datagram)).collect())
    }

    /// The same, of datagrams that the network may have marked.
    fn receive_marked(&self, standing: bool, mut datagrams: Vec<(Ecn, Vec<u8>)>) -> Vec<Vec<u8>> {
        let mut notices = Vec::new();
        let mut inbound = Inbound::new(&self.us, &self.tun, &self.counters);
        if standing {
            inbound.signal_congestion();
        }
        for (ecn, datagram) in &mut datagrams {
            let opened = self.us.open(self.now, self.from, *ecn, datagram, &mut notices).unwrap();
            inbound.take(&opened, &mut notices).unwrap();
        }
        inbound.deliver().unwrap();
        let mut buffer = [0; 70_000];
        let mut read = || self.kernel.recv(&mut buffer).ok().map(|length| buffer[VIRTIO_HEADER_LEN..length].to_vec());
        std::iter::from_fn(&mut read).collect()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        let mut total = DropCounters::default();
        self.counters.add_to(&mut total);
        total.of(reason)
    }
}

/// The packets that `sample` is cut into, with their flags.
fn cut(sample: &Sample) -> Frames {
    let mut bytes = sample.packet();
    let segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
    let packet = |index| {
        let mut out = vec![0; segments.length(index)];
        segments.write(index, &mut out);
        (segments.flags(index), out)
    };
    (0..segments.count()).map(packet).collect()
}

/// Seals each packet of a TCP superpacket of five segments of 1000 bytes in a datagram of its own.
fn train(link: &Link) -> Vec<Vec<u8>> {
    cut(&Sample::tcp_v4(5000, 1000)).into_iter().map(|packet| link.seal(0, &vec![packet])).collect()
}

#[test]
fn a_run_of_datagrams_becomes_one_write() {
    let link = Link::new();
    assert_eq!(link.receive(train(&link)), [5052]);
}

#[test]
fn a_run_within_one_datagram_becomes_one_write() {
    let link = Link::new();
    let datagram = link.seal(0, &cut(&Sample::tcp_v4(5000, 1000)));
    assert_eq!(link.receive(vec![datagram]), [5052]);
}

#[test]
fn a_gap_in_the_counters_splits_the_run() {
    let link = Link::new();
    let mut datagrams = train(&link);
    datagrams.remove(2);
    assert_eq!(link.receive(datagrams), [2052, 2052]);
}

#[test]
fn datagrams_out_of_order_are_each_delivered() {
    let link = Link::new();
    let mut datagrams = train(&link);
    datagrams.swap(1, 2);
    assert_eq!(link.receive(datagrams), [1052, 1052, 1052, 2052]);
}

#[test]
fn a_run_does_not_go_on_on_another_lane() {
    let link = Link::new();
    let packets = cut(&Sample::tcp_v4(2000, 1000));
    // So that the counters would follow one another.
    link.seal(1, &Vec::new());
    let datagrams = vec![link.seal(0, &packets[..1].to_vec()), link.seal(1, &packets[1..].to_vec())];
    assert_eq!(link.receive(datagrams), [1052, 1052]);
}

#[test]
fn a_keepalive_between_ends_the_run() {
    let link = Link::new();
    let packets = cut(&Sample::tcp_v4(2000, 1000));
    let datagrams =
        [&packets[..1], &[], &packets[1..]].into_iter().map(|packets| link.seal(0, &packets.to_vec())).collect();
    assert_eq!(link.receive(datagrams), [1052, 1052]);
}

#[test]
fn a_packet_that_claims_to_continue_nothing_is_delivered_alone() {
    let link = Link::new();
    let packets = cut(&Sample::tcp_v4(2000, 1000));
    assert_eq!(link.receive(vec![link.seal(0, &packets[1..].to_vec())]), [1052]);
}

/// Datagrams of one UDP flow that were never one superpacket.
fn single_datagrams(dont_fragment: bool) -> Frames {
    let datagram = |_| {
        let mut bytes = Sample { v6: false, segment_size: 0, ..Sample::udp_v6(100, 0) }.packet();
        bytes[6] = if dont_fragment { 0x40 } else { 0 };
        (FLAG_CHECKSUM_PARTIAL, bytes)
    };
    (0..5).map(datagram).collect()
}

#[test]
fn datagrams_of_one_flow_become_one_write_across_packed_and_lone_ones() {
    let link = Link::new();
    let packets = single_datagrams(true);
    let datagrams = [&packets[..2], &[], &packets[2..]].map(|packets| link.seal(0, &packets.to_vec()));
    assert_eq!(link.receive(datagrams.into()), [528]);
}

#[test]
fn datagrams_whose_identification_matters_are_each_delivered() {
    let link = Link::new();
    let datagram = link.seal(0, &single_datagrams(false));
    assert_eq!(link.receive(vec![datagram]), [128; 5]);
}

#[test]
fn datagrams_of_two_flows_are_not_joined() {
    let link = Link::new();
    let mut packets = single_datagrams(true);
    // The source port's lower byte.
    packets[2].1[21] ^= 1;
    assert_eq!(link.receive(vec![link.seal(0, &packets)]), [228, 128, 228]);
}

#[test]
fn whole_datagrams_are_each_delivered() {
    let link = Link::new();
    let packets = single_datagrams(true).into_iter().map(|(_, bytes)| (0, bytes)).collect();
    assert_eq!(link.receive(vec![link.seal(0, &packets)]), [128; 5]);
}

#[test]
fn a_standing_queue_marks_a_train_of_a_flow_that_understands_it() {
    let link = Link::new();
    let written = link.receive_from(true, train(&link));
    assert_eq!(written.iter().map(|packet| (packet.len(), packet[1])).collect::<Vec<_>>(), [(5052, 0x03)]);
    assert_eq!(checksum::finish(0, &written[0][..20]), 0, "IPv4 header checksum");
    assert_eq!(link.drops(DropReason::StandingQueue), 0);
}

#[test]
fn a_standing_queue_costs_any_other_train_one_packet() {
    let link = Link::new();
    let mut packets = cut(&Sample::tcp_v4(5000, 1000));
    packets.iter_mut().for_each(|(_, bytes)| bytes[1] = 0);
    let written = link.receive_from(true, vec![link.seal(0, &packets)]);
    assert_eq!(written.iter().map(Vec::len).collect::<Vec<_>>(), [1052, 3052]);
    assert_eq!(link.drops(DropReason::StandingQueue), 1);
}

#[test]
fn a_standing_queue_spares_packets_that_came_alone() {
    let link = Link::new();
    let packets = single_datagrams(true);
    assert_eq!(link.receive_from(true, vec![link.seal(0, &packets)]).len(), 1);
    assert_eq!(link.drops(DropReason::StandingQueue), 0);
}

#[test]
fn a_foreign_source_does_not_slip_in_with_a_train() {
    let link = Link::new();
    let mut packets = cut(&Sample::tcp_v4(5000, 1000));
    // 10.77.0.9 is another peer's.
    packets[2].1[15] = 9;
    assert_eq!(link.receive(vec![link.seal(0, &packets)]), [2052, 2052]);
    assert_eq!(link.drops(DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_foreign_source_does_not_slip_in_behind_an_admitted_packet() {
    let link = Link::new();
    let mut packets = cut(&Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) });
    packets.push(packets[0].clone());
    packets[1].1[15] = 9;
    assert_eq!(link.receive(vec![link.seal(0, &packets)]), [152]);
    assert_eq!(link.drops(DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_connection_is_not_opened_from_within_a_train() {
    let link = Link::exposing(Service::Echo);
    let mut packets = cut(&Sample::tcp_v4(5000, 1000));
    // SYN without ACK.
    packets[2].1[20 + 13] = 0x02;
    assert_eq!(link.receive(vec![link.seal(0, &packets)]), [2052, 2052]);
    assert_eq!(link.drops(DropReason::NotExposed), 1);
}

#[test]
fn a_datagram_for_another_port_does_not_slip_in_with_a_train() {
    let mut packets = cut(&Sample::udp_v6(5000, 1000));
    let port = u16::from_be_bytes([packets[0].1[42], packets[0].1[43]]);
    let link = Link::exposing(Service::Udp(port.into()));
    packets[2].1[43] ^= 1;
    assert_eq!(link.receive(vec![link.seal(0, &packets)]), [2048, 2048]);
    assert_eq!(link.drops(DropReason::NotExposed), 1);
}

#[test]
fn garbage_in_a_train_is_dropped_and_counted() {
    let link = Link::new();
    let mut packets = cut(&Sample::tcp_v4(5000, 1000));
    packets[2].1.truncate(500);
    assert_eq!(link.receive(vec![link.seal(0, &packets)]), [2052, 2052]);
    assert_eq!(link.drops(DropReason::MalformedPacket), 1);
}

#[test]
fn what_stands_before_a_malformed_frame_is_delivered() {
    let link = Link::new();
    let mut datagram = vec![0; TRANSPORT_HEADER_LEN];
    let packet = Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) }.packet();
    datagram.extend(packet_header(FLAG_CHECKSUM_PARTIAL, 152));
    datagram.extend(&packet);
    datagram.extend(packet_header(0, 5000));
    assert_eq!(link.receive(vec![link.seal_plaintext(0, datagram)]), [152]);
    assert_eq!(link.drops(DropReason::MalformedFrame), 1);
}

#[test]
fn a_write_that_the_kernel_refuses_is_counted_by_packet() {
    let link = Link::new();
    let (queue, kernel) = UnixDatagram::pair().unwrap();
    drop(kernel);
    let link = Link { tun: TunQueue::of_socket(queue, Offload::TcpAndUdp), ..link };
    assert!(link.receive(train(&link)).is_empty());
    assert_eq!(link.drops(DropReason::TunWriteFailed), 5);
}

/// The traffic classes of what was written, and its lengths.
fn classes(written: &[Vec<u8>]) -> Vec<(u8, usize)> {
    written.iter().map(|packet| (packet[1], packet.len())).collect()
}

#[test]
fn a_mark_on_datagrams_marks_the_packets_in_them_and_no_others() {
    let link = Link::new();
    let marks = [Ecn::Ect0, Ecn::Ect0, Ecn::Ce, Ecn::Ce, Ecn::Ect0];
    let written = link.receive_marked(false, marks.into_iter().zip(train(&link)).collect());
    assert_eq!(classes(&written), [(0x02, 2052), (0x03, 2052), (0x02, 1052)]);
    written.iter().for_each(|packet| assert_eq!(checksum::finish(0, &packet[..20]), 0, "IPv4 header checksum"));
}

#[test]
fn a_mark_on_a_whole_train_marks_the_superpacket() {
    let link = Link::new();
    let written = link.receive_marked(false, train(&link).into_iter().map(|datagram| (Ecn::Ce, datagram)).collect());
    assert_eq!(classes(&written), [(0x03, 5052)]);
    assert_eq!(link.drops(DropReason::CongestionExperienced), 0);
}

#[test]
fn a_packet_that_does_not_understand_marks_is_lost_to_one_also_within_a_train() {
    let link = Link::new();
    let mut packets = cut(&Sample::tcp_v4(5000, 1000));
    packets.iter_mut().for_each(|(_, bytes)| set_ecn(bytes, Ecn::NotEct));
    let marks = [Ecn::NotEct, Ecn::NotEct, Ecn::Ce, Ecn::NotEct, Ecn::Ce];
    let datagrams = packets.into_iter().map(|packet| link.seal(0, &vec![packet]));
    let written = link.receive_marked(false, marks.into_iter().zip(datagrams.collect::<Vec<_>>()).collect());
    assert_eq!(classes(&written), [(0x00, 2052), (0x00, 1052)]);
    assert_eq!(link.drops(DropReason::CongestionExperienced), 2);
}

#[test]
fn each_packet_of_a_marked_datagram_is_judged_by_itself() {
    let link = Link::new();
    let mut packets = cut(&Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) });
    packets.extend([packets[0].clone(), packets[0].clone()]);
    set_ecn(&mut packets[1].1, Ecn::NotEct);
    set_ecn(&mut packets[2].1, Ecn::Ect1);
    let written = link.receive_marked(false, vec![(Ecn::Ce, link.seal(0, &packets))]);
    assert_eq!(classes(&written), [(0x03, 152), (0x03, 152)]);
    assert_eq!(link.drops(DropReason::CongestionExperienced), 1);
}
