use proptest::prelude::*;

use super::super::samples::{Sample, TunnelSample, assert_checksums};
use super::super::segment::Segments;
use super::super::segment::tests::tunnel_samples;
use super::super::tunnel_ports::TunnelPorts;
use super::super::virtio::{TUNNEL_HEADER_LEN, VIRTIO_HEADER_LEN};
use super::*;
use crate::packet::ip::complete_checksum;
use crate::packet::traffic_class::TrafficClass;
use crate::packet::tunnel::TunnelKind;

/// Cuts, then rebuilds; what a TUN would be written, one item per write.
fn rebuild(offload: Offload, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    let mut train = Train::new(offload);
    for bytes in packets {
        let packet = IpPacket::parse(bytes).unwrap();
        if train.packets() == 0 || !train.append(&packet) {
            train.deliver(collect(&mut written)).unwrap();
            train.start(packet, true);
        }
    }
    train.deliver(collect(&mut written)).unwrap();
    written
}

fn collect(written: &mut Vec<Vec<u8>>) -> impl FnOnce(&[IoSlice<'_>]) -> io::Result<()> {
    |parts| {
        written.push(parts.iter().flat_map(|part| part.iter().copied()).collect());
        Ok(())
    }
}

fn cut(sample: &Sample) -> Vec<Vec<u8>> {
    let mut bytes = sample.packet();
    let segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
    let packet = |index| {
        let mut out = vec![0; segments.length(index)];
        segments.write(index, &mut out);
        out
    };
    (0..segments.count()).map(packet).collect()
}

fn virtio(written: &[u8]) -> VirtioHeader {
    VirtioHeader::decode(written.first_chunk().unwrap()).unwrap()
}

#[test]
fn a_superpacket_comes_out_as_it_went_in() {
    for sample in [
        Sample::tcp_v4(30_000, 1368),
        Sample { tcp_flags: 0x91, v6: true, ..Sample::tcp_v4(30_000, 1348) },
        Sample::udp_v6(30_000, 1200),
        Sample { v6: false, ..Sample::udp_v6(30_000, 1200) },
    ] {
        let written = rebuild(Offload::TcpAndUdp, &cut(&sample));
        assert_eq!(written.len(), 1, "{sample:?}");
        assert_eq!(virtio(&written[0]), sample.virtio());
        assert_eq!(written[0][VIRTIO_HEADER_LEN..], sample.packet());
    }
}

#[test]
fn a_lost_segment_splits_the_train_and_costs_nothing_else() {
    let sample = Sample::tcp_v4(10_000, 1000);
    let mut packets = cut(&sample);
    packets.remove(4);
    let written = rebuild(Offload::TcpAndUdp, &packets);
    let lengths: Vec<_> = written.iter().map(|packet| packet.len() - VIRTIO_HEADER_LEN - 52).collect();
    assert_eq!(lengths, [4000, 5000]);
}

#[test]
fn a_plain_device_gets_every_packet_alone_and_complete() {
    let written = rebuild(Offload::None, &cut(&Sample::tcp_v4(10_000, 1000)));
    assert_eq!(written.len(), 10);
    written.iter().for_each(|packet| assert_checksums(packet));
}

#[test]
fn without_udp_offload_udp_is_written_alone() {
    assert_eq!(rebuild(Offload::Tcp, &cut(&Sample::udp_v6(10_000, 1000))).len(), 10);
    assert_eq!(rebuild(Offload::Tcp, &cut(&Sample::tcp_v4(10_000, 1000))).len(), 1);
}

#[test]
fn a_wrong_partial_sum_is_replaced() {
    let sample = Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) };
    let mut packet = sample.packet();
    packet[36..38].fill(0x55);
    let written = rebuild(Offload::TcpAndUdp, &[packet]);
    assert_eq!(virtio(&written[0]), VirtioHeader { header_len: 0, ..sample.virtio() });
    assert_eq!(written[0][VIRTIO_HEADER_LEN..], sample.packet());
}

#[test]
fn a_whole_packet_is_written_unchanged() {
    let packet = Sample::tcp_v4(100, 0).packet();
    for (offload, header) in [(Offload::Tcp, VIRTIO_HEADER_LEN), (Offload::None, 0)] {
        let mut written = Vec::new();
        let mut train = Train::new(offload);
        train.start(IpPacket::parse(&packet).unwrap(), false);
        assert!(!train.append(&IpPacket::parse(&packet).unwrap()), "a train is of partial packets only");
        train.deliver(collect(&mut written)).unwrap();
        assert_eq!(written, [[vec![0; header], packet.clone()].concat()]);
    }
}

#[test]
fn nothing_follows_the_last_of_a_superpacket() {
    let mut packets = cut(&Sample::tcp_v4(2500, 1000));
    packets.push(packets[1].clone());
    assert_eq!(rebuild(Offload::TcpAndUdp, &packets).len(), 2, "shorter");
    let mut packets = cut(&Sample::tcp_v4(3000, 1000));
    packets[1][33] |= TCP_FIN;
    assert_eq!(rebuild(Offload::TcpAndUdp, &packets).len(), 2, "with FIN");
}

#[test]
fn a_packet_longer_than_the_first_does_not_join() {
    let first = Sample { payload: vec![1; 500], ..Sample::tcp_v4(0, 0) }.packet();
    let mut second = Sample { payload: vec![2; 501], ..Sample::tcp_v4(0, 0) }.packet();
    second[24..28].copy_from_slice(&0xffff_ff00u32.wrapping_add(500).to_be_bytes());
    assert_eq!(rebuild(Offload::TcpAndUdp, &[first, second]).len(), 2);
}

#[test]
fn a_train_ends_at_the_longest_superpacket() {
    // 64 packets of 1460 bytes would make 91 KiB.
    let packets: Vec<_> = (0..64u32)
        .map(|index| {
            let mut packet = Sample { tcp_flags: 0x10, ..Sample::tcp_v4(1408, 0) }.packet();
            packet[24..28].copy_from_slice(&0xffff_ff00u32.wrapping_add(index * 1408).to_be_bytes());
            packet
        })
        .collect();
    let written = rebuild(Offload::TcpAndUdp, &packets);
    let payloads: Vec<_> = written.iter().map(|packet| (packet.len() - VIRTIO_HEADER_LEN - 52) / 1408).collect();
    assert_eq!(payloads, [46, 18]);
}

#[test]
fn small_packets_beyond_the_gather_list_start_another_train() {
    let packets = cut(&Sample::tcp_v4(70 * 8, 8));
    let written = rebuild(Offload::TcpAndUdp, &packets);
    assert_eq!(written.len(), 2);
    assert_eq!(written[0].len(), VIRTIO_HEADER_LEN + 52 + MAX_PACKETS * 8);
}

const TUNNELS: Offload = Offload::Tunnels { shift: 14 };

/// Packets with the flag of a partial checksum.
type Flagged = Vec<(bool, Vec<u8>)>;

fn cut_tunnelled(sample: &TunnelSample) -> Flagged {
    let mut bytes = sample.packet();
    let segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
    let packet = |index| {
        let mut out = vec![0; segments.length(index)];
        segments.write(index, &mut out);
        (segments.flags(index) != 0, out)
    };
    (0..segments.count()).map(packet).collect()
}

/// As [`rebuild`], on a machine on which tunnels of both kinds end.
fn rebuild_tunnelled(packets: &Flagged) -> Vec<Vec<u8>> {
    let ports = TunnelPorts::default();
    ports.set([(4789, TunnelKind::Vxlan), (6081, TunnelKind::Geneve)]);
    let mut written = Vec::new();
    let mut train = Train::new(TUNNELS);
    for (partial, bytes) in packets {
        let packet = IpPacket::parse(bytes).unwrap();
        if train.append_tunnelled(&packet, *partial) {
            continue;
        }
        train.deliver(collect(&mut written)).unwrap();
        match ports.find(&packet) {
            Some(tunnelled) => train.start_tunnelled(packet, tunnelled, *partial),
            None => train.start(packet, *partial),
        }
    }
    train.deliver(collect(&mut written)).unwrap();
    written
}

/// What the kernel is to be told of a whole sample.
fn rebuilt_header(sample: &TunnelSample) -> VirtioHeader {
    let header = sample.virtio();
    let tunnel = header.tunnel.map(|tunnel| TunnelHeader { udp_start: tunnel.udp_start + 14, ..tunnel });
    VirtioHeader { tunnel, ..header }
}

fn assert_rebuilt(sample: &TunnelSample, written: &[Vec<u8>]) {
    let [written] = written else { panic!("{} writes", written.len()) };
    let header = VirtioHeader::decode_with_tunnel(written.first_chunk().unwrap());
    assert_eq!(header, Ok(rebuilt_header(sample)));
    assert_eq!(written[TUNNEL_HEADER_LEN..], sample.packet());
}

#[test]
fn a_superpacket_in_a_tunnel_comes_out_as_it_went_in() {
    for (v6, has_checksum) in [(false, false), (false, true), (true, false), (true, true)] {
        let sample = TunnelSample { v6, has_checksum, ..TunnelSample::vxlan(Sample::tcp_v4(30_000, 1298)) };
        assert_rebuilt(&sample, &rebuild_tunnelled(&cut_tunnelled(&sample)));
    }
}

/// Those of a sender that knows no tunnels, whose kernel has cut them.
#[test]
fn packets_of_a_tunnel_with_complete_checksums_are_joined_too() {
    let sample = TunnelSample { has_checksum: true, ..TunnelSample::vxlan(Sample::tcp_v4(30_000, 1298)) };
    let mut packets = cut_tunnelled(&sample);
    for (partial, packet) in &mut packets {
        *partial = false;
        complete_checksum(packet).unwrap();
    }
    assert_rebuilt(&sample, &rebuild_tunnelled(&packets));
}

#[test]
fn a_packet_of_a_tunnel_alone_is_written_as_it_came() {
    let sample = TunnelSample { has_checksum: true, ..TunnelSample::vxlan(Sample::tcp_v4(100, 1298)) };
    let packets = cut_tunnelled(&sample);
    let [written] = &rebuild_tunnelled(&packets)[..] else { panic!("one write") };
    let header = VirtioHeader::decode_with_tunnel(written.first_chunk().unwrap()).unwrap();
    assert_eq!((header.segmentation, header.checksum_start, header.tunnel), (Segmentation::None, 20, None));
    assert_eq!(written[TUNNEL_HEADER_LEN..], packets[0].1);
}

#[test]
fn a_lost_packet_of_a_tunnel_splits_the_train() {
    let sample = TunnelSample::vxlan(Sample::tcp_v4(10_000, 1000));
    let mut packets = cut_tunnelled(&sample);
    packets.remove(4);
    let written = rebuild_tunnelled(&packets);
    let lengths: Vec<_> = written.iter().map(|write| write.len() - TUNNEL_HEADER_LEN - 102).collect();
    assert_eq!(lengths, [4000, 5000]);
}

#[test]
fn a_mark_of_congestion_is_on_the_train_s_tunnel_only() {
    let sample = TunnelSample::vxlan(Sample::tcp_v4(3000, 1000));
    let packets = cut_tunnelled(&sample);
    let mut train = Train::new(TUNNELS);
    let [first, second] = [0, 1].map(|index: usize| IpPacket::parse(&packets[index].1).unwrap());
    train.start_tunnelled(first, Tunnelled::find(&first, TunnelKind::Vxlan).unwrap(), false);
    assert!(train.append_tunnelled(&second, false));
    assert!(!train.append(&second), "a tunnel's train takes nothing unread");
    assert!(train.mark_congestion());
    let mut written = Vec::new();
    train.deliver(collect(&mut written)).unwrap();
    let packet = &written[0][TUNNEL_HEADER_LEN..];
    assert_eq!((TrafficClass::of(packet).ecn(), packet[sample.inner_start() + 1] & 3), (Ecn::Ce, 2));
}

proptest! {
    #[test]
    fn cutting_and_rebuilding_in_a_tunnel_gives_the_same_superpacket(sample in tunnel_samples()) {
        let inner = Sample { tcp_flags: sample.inner.tcp_flags & 0xd9, ..sample.inner };
        let sample = TunnelSample { inner, ..sample };
        let packets = cut_tunnelled(&sample);
        let is_too_long = sample.headers_len() > MAX_HEADERS_LEN;
        prop_assume!(packets.len() > 1 && packets.len() <= MAX_PACKETS);
        let written = rebuild_tunnelled(&packets);
        if is_too_long {
            prop_assert_eq!(written.len(), packets.len());
        } else {
            assert_rebuilt(&sample, &written);
        }
    }

    /// The kernel takes a superpacket for intact: so nothing that is not may become a part of one.
    #[test]
    fn a_packet_of_a_tunnel_with_any_byte_changed_does_not_join(sample in tunnel_samples(), at: prop::sample::Index, flip in 1..=255u8) {
        let inner = Sample { tcp_flags: 0x10, ..sample.inner };
        let sample = TunnelSample { inner, options: sample.options.min(16), ..sample };
        let mut packets = cut_tunnelled(&sample);
        prop_assume!(packets.len() > 1);
        let at = at.index(packets[1].1.len());
        let checksum = sample.udp_start() + 6;
        prop_assume!(!(sample.has_checksum && (checksum..checksum + 2).contains(&at)), "which means nothing");
        packets[1].1[at] ^= flip;
        prop_assume!(IpPacket::parse(&packets[1].1).is_ok());
        let mut train = Train::new(TUNNELS);
        let [first, second] = [0, 1].map(|index: usize| IpPacket::parse(&packets[index].1).unwrap());
        train.start_tunnelled(first, Tunnelled::find(&first, sample.kind).unwrap(), sample.has_checksum);
        prop_assert!(!train.append_tunnelled(&second, sample.has_checksum));
    }

    #[test]
    fn cutting_and_rebuilding_gives_the_same_superpacket(sample in super::super::segment::tests::samples()) {
        // CWR with SYN, RST or URG, and payloads that are no train, are none of a superpacket's.
        let sample = Sample { tcp_flags: sample.tcp_flags & 0xd9, ..sample };
        let segments = cut(&sample);
        prop_assume!(segments.len() > 1 && segments.len() <= MAX_PACKETS);
        let written = rebuild(Offload::TcpAndUdp, &segments);
        prop_assert_eq!(written.len(), 1);
        prop_assert_eq!(virtio(&written[0]), sample.virtio());
        prop_assert_eq!(&written[0][VIRTIO_HEADER_LEN..], &sample.packet()[..]);
    }

    /// A header changed in any place but those that cutting sets does not join, and no change panics.
    #[test]
    fn a_packet_of_another_flow_does_not_join(sample in super::super::segment::tests::samples(), at: prop::sample::Index, flip in 1..=255u8) {
        let sample = Sample { tcp_flags: 0x10, ..sample };
        let mut segments = cut(&sample);
        prop_assume!(segments.len() > 1);
        let at = at.index(sample.headers_len());
        segments[1][at] ^= flip;
        prop_assume!(IpPacket::parse(&segments[1]).is_ok());
        let mut train = Train::new(Offload::TcpAndUdp);
        train.start(IpPacket::parse(&segments[0]).unwrap(), true);
        let start = sample.transport_start();
        let free = if sample.v6 { vec![] } else { vec![4, 5, 10, 11] };
        let free_transport = match sample.protocol {
            TransportProtocol::Tcp => vec![16, 17],
            TransportProtocol::Udp => vec![6, 7],
        };
        let may_join = free.contains(&at)
            || at.checked_sub(start).is_some_and(|at| free_transport.contains(&at))
            || (sample.protocol == TransportProtocol::Tcp && at == start + 13 && flip & !(TCP_FIN | TCP_PSH) == 0);
        prop_assert_eq!(train.append(&IpPacket::parse(&segments[1]).unwrap()), may_join);
    }
}
