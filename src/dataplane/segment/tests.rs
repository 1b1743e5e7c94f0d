use proptest::prelude::*;

use super::super::samples::{Sample, TunnelSample, assert_checksums, assert_valid_alone};
use super::*;
use crate::packet::ip::complete_checksum;
use crate::packet::tunnel::TunnelKind;

fn cut(sample: &Sample) -> Vec<(u8, Vec<u8>)> {
    let mut bytes = sample.packet();
    packets(&Segments::new(&sample.virtio(), &mut bytes).unwrap())
}

fn packets(segments: &Segments<'_>) -> Vec<(u8, Vec<u8>)> {
    let packet = |index| {
        let mut out = vec![0xaa; segments.length(index)];
        segments.write(index, &mut out);
        (segments.flags(index), out)
    };
    (0..segments.count()).map(packet).collect()
}

#[test]
fn a_packet_with_a_partial_checksum_travels_as_it_is() {
    let sample = Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) };
    assert_eq!(cut(&sample), [(FLAG_CHECKSUM_PARTIAL, sample.packet())]);
}

#[test]
fn a_complete_packet_travels_as_it_is() {
    let mut bytes = Sample::tcp_v4(100, 0).packet();
    let expected = bytes.clone();
    assert_eq!(packets(&Segments::new(&VirtioHeader::PLAIN, &mut bytes).unwrap()), [(0, expected)]);
}

#[test]
fn cuts_a_tcp_superpacket_as_if_its_segments_had_been_sent_one_by_one() {
    let packets = cut(&Sample { tcp_flags: 0x99, ..Sample::tcp_v4(2500, 1000) });
    let lengths: Vec<_> = packets.iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(lengths, [1052, 1052, 552]);
    let identifications: Vec<_> = packets.iter().map(|(_, packet)| [packet[4], packet[5]]).collect();
    assert_eq!(identifications, [[0xff, 0xfe], [0xff, 0xff], [0, 0]]);
    let sequences: Vec<_> = packets.iter().map(|(_, packet)| packet[24..28].to_vec()).collect();
    assert_eq!(sequences, [[0xff, 0xff, 0xff, 0x00], [0x00, 0x00, 0x02, 0xe8], [0x00, 0x00, 0x06, 0xd0]]);
    let flags: Vec<_> = packets.iter().map(|(_, packet)| packet[33]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19], "CWR first only; PSH and FIN last only");
    let frame_flags: Vec<_> = packets.iter().map(|(flags, _)| *flags).collect();
    let continues = FLAG_CHECKSUM_PARTIAL | FLAG_CONTINUES;
    assert_eq!(frame_flags, [FLAG_CHECKSUM_PARTIAL, continues, continues]);
}

#[test]
fn a_mark_of_congestion_is_on_every_segment_of_a_flow_that_understands_it() {
    let mut bytes = Sample::tcp_v4(2500, 1000).packet();
    let mut segments = Segments::new(&Sample::tcp_v4(2500, 1000).virtio(), &mut bytes).unwrap();
    assert!(segments.mark_congestion());
    for (_, packet) in packets(&segments) {
        assert_eq!(packet[1], 0x03);
        assert_valid_alone(&packet);
    }
}

#[test]
fn without_its_first_segment_a_superpacket_begins_with_the_second() {
    let sample = Sample { v6: true, ..Sample::tcp_v4(2500, 1000) };
    let whole = cut(&sample);
    let mut bytes = sample.packet();
    let mut segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
    assert!(!segments.mark_congestion());
    segments.drop_first();
    let expected = vec![(FLAG_CHECKSUM_PARTIAL, whole[1].1.clone()), whole[2].clone()];
    assert_eq!(packets(&segments), expected);
}

#[test]
fn a_superpacket_that_is_no_longer_than_a_segment_is_one_packet() {
    assert_eq!(cut(&Sample::tcp_v4(1000, 1000)).len(), 1);
    assert_eq!(cut(&Sample::tcp_v4(0, 1000)).len(), 1);
}

#[test]
fn a_checksum_that_cannot_travel_partial_is_completed() {
    // A UDP packet behind a destination-options header of eight bytes.
    let sample = Sample { segment_size: 0, ..Sample::udp_v6(101, 0) };
    let (mut bytes, mut header) = (sample.packet(), sample.virtio());
    insert_extension_header(&mut bytes);
    header.checksum_start += 8;
    let [(0, packet)] = &packets(&Segments::new(&header, &mut bytes).unwrap())[..] else { panic!("one, not partial") };
    assert_checksums(&without_extension_header(packet));
}

#[test]
fn a_superpacket_behind_extension_headers_is_cut_with_complete_checksums() {
    for sample in [Sample::udp_v6(2500, 1000), Sample { v6: true, ..Sample::tcp_v4(2501, 1000) }] {
        let (mut bytes, mut header) = (sample.packet(), sample.virtio());
        insert_extension_header(&mut bytes);
        header.checksum_start += 8;
        let packets = packets(&Segments::new(&header, &mut bytes).unwrap());
        assert_eq!(packets.len(), 3);
        for (flags, packet) in packets {
            assert_eq!(flags, 0);
            assert_checksums(&without_extension_header(&packet));
        }
    }
}

fn insert_extension_header(bytes: &mut Vec<u8>) {
    let protocol = std::mem::replace(&mut bytes[6], 60);
    bytes.splice(40..40, [protocol, 0, 1, 4, 0, 0, 0, 0]);
    let length = length_field(bytes.len() - 40);
    bytes[4..6].copy_from_slice(&length);
}

fn without_extension_header(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    bytes[6] = bytes[40];
    bytes.drain(40..48);
    let length = length_field(bytes.len() - 40);
    bytes[4..6].copy_from_slice(&length);
    bytes
}

#[test]
fn a_header_that_contradicts_its_packet_is_refused() {
    let sample = Sample::tcp_v4(2500, 1000);
    let good = sample.virtio();
    for header in [
        VirtioHeader { segment_size: 0, ..good },
        VirtioHeader { segmentation: Segmentation::TcpV6, ..good },
        VirtioHeader { segmentation: Segmentation::Udp, ..good },
    ] {
        assert!(Segments::new(&header, &mut sample.packet()).is_err(), "{header:?}");
    }
    let single = VirtioHeader { segmentation: Segmentation::None, ..good };
    for (checksum_start, checksum_offset) in [(2552, 0), (2540, 11), (65_535, 65_535)] {
        let header = VirtioHeader { checksum_start, checksum_offset, ..single };
        assert!(Segments::new(&header, &mut sample.packet()).is_err(), "{header:?}");
    }
    assert!(Segments::new(&good, &mut sample.packet()[1..]).is_err());
    assert!(Segments::new(&good, &mut []).is_err());
}

fn cut_tunnelled(sample: &TunnelSample) -> Vec<(u8, Vec<u8>)> {
    let mut bytes = sample.packet();
    packets(&Segments::new(&sample.virtio(), &mut bytes).unwrap())
}

/// What the packets of a tunnel carry, each as it would be alone, once it was looked at from outside in.
fn carried(sample: &TunnelSample, packets: &[(u8, Vec<u8>)]) -> Vec<Vec<u8>> {
    let superpacket = sample.packet();
    let inner_of = |(index, (flags, packet)): (usize, &(u8, Vec<u8>))| {
        let mut packet = packet.clone();
        let udp = sample.udp_start();
        assert_eq!(
            packet[udp + 8..sample.inner_start()],
            superpacket[udp + 8..sample.inner_start()],
            "the tunnel's header"
        );
        let continues = if index > 0 { FLAG_CONTINUES } else { 0 };
        if sample.has_checksum {
            assert_eq!(*flags, FLAG_CHECKSUM_PARTIAL | continues);
            complete_checksum(&mut packet).unwrap();
            assert_checksums(&packet);
        } else {
            assert_eq!((*flags, &packet[udp + 6..udp + 8]), (0, &[0, 0][..]), "zero stays zero");
            let mut with_checksum = packet.clone();
            complete_checksum(&mut with_checksum).unwrap();
            assert_checksums(&with_checksum);
        }
        if !sample.v6 {
            let identification = u16::from_be_bytes([packet[4], packet[5]]);
            assert_eq!(usize::from(identification.wrapping_sub(0xfffe)), index);
        }
        packet[sample.inner_start()..].to_vec()
    };
    packets.iter().enumerate().map(inner_of).collect()
}

#[test]
fn a_superpacket_in_a_tunnel_is_cut_into_packets_of_the_tunnel() {
    let sample = TunnelSample::vxlan(Sample { tcp_flags: 0x99, ..Sample::tcp_v4(2500, 1000) });
    let packets = cut_tunnelled(&sample);
    let lengths: Vec<_> = packets.iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(lengths, [1102, 1102, 602]);
    let inside: Vec<_> = cut(&sample.inner)
        .into_iter()
        .map(|(_, mut packet)| {
            complete_checksum(&mut packet).unwrap();
            packet
        })
        .collect();
    assert_eq!(carried(&sample, &packets), inside);
}

#[test]
fn a_mark_of_congestion_is_on_the_tunnel_and_not_inside() {
    let sample = TunnelSample { has_checksum: true, ..TunnelSample::vxlan(Sample::tcp_v4(2500, 1000)) };
    let mut bytes = sample.packet();
    let mut segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
    assert!(segments.mark_congestion());
    for (_, packet) in packets(&segments) {
        assert_eq!((packet[1], packet[sample.inner_start() + 1]), (0x03, 0x02));
        assert_valid_alone(&packet);
        assert_checksums(&packet[sample.inner_start()..]);
    }
}

#[test]
fn a_superpacket_in_a_tunnel_is_cut_shorter_where_the_path_is_narrow() {
    let sample = TunnelSample::vxlan(Sample::tcp_v4(2500, 1000));
    let mut bytes = sample.packet();
    let mut segments = Segments::new(&sample.virtio(), &mut bytes).unwrap();
    assert!(segments.shorten(702));
    let lengths: Vec<_> = (0..segments.count()).map(|index| segments.length(index)).collect();
    assert_eq!(lengths, [702, 702, 702, 702, 202]);
    let inside = carried(&sample, &packets(&segments));
    inside.iter().for_each(|packet| assert_checksums(packet));
    assert_eq!(inside.iter().flat_map(|packet| packet[52..].to_vec()).collect::<Vec<_>>(), sample.inner.payload);
}

#[test]
fn a_tunnel_that_contradicts_its_packet_is_refused() {
    let sample = TunnelSample::vxlan(Sample::tcp_v4(2500, 1000));
    let good = sample.virtio();
    let tunnel = good.tunnel.unwrap();
    let with = |tunnel| VirtioHeader { tunnel: Some(tunnel), ..good };
    for header in [
        with(TunnelHeader { udp_start: 21, ..tunnel }),
        with(TunnelHeader { has_checksum: true, ..tunnel }),
        with(TunnelHeader { inner_start: 27, ..tunnel }),
        with(TunnelHeader { inner_start: 51, ..tunnel }),
        with(TunnelHeader { inner_start: 70, ..tunnel }),
        with(TunnelHeader { inner_start: 71, ..tunnel }),
        VirtioHeader { checksum_start: 69, ..good },
        VirtioHeader { checksum_start: 0xffff, ..good },
        VirtioHeader { needs_checksum: false, ..good },
        VirtioHeader { segment_size: 0, ..good },
        VirtioHeader { segmentation: Segmentation::TcpV6, ..good },
    ] {
        assert!(Segments::new(&header, &mut sample.packet()).is_err(), "{header:?}");
    }
}

pub(in super::super) fn tunnel_samples() -> impl Strategy<Value = TunnelSample> {
    let kind = prop_oneof![Just(TunnelKind::Vxlan), Just(TunnelKind::Geneve)];
    (any::<[bool; 3]>(), kind, 0..=63usize, samples()).prop_map(
        |([v6, has_checksum, may_fragment], kind, words, inner)| TunnelSample {
            v6,
            kind,
            options: words * 4,
            has_checksum,
            may_fragment,
            inner,
        },
    )
}

pub(in super::super) fn samples() -> impl Strategy<Value = Sample> {
    (any::<bool>(), any::<bool>(), 0..=10usize, 0..=10usize, any::<u8>(), 0..20_000usize, 1..3000usize).prop_map(
        |(v6, tcp, ip_options, tcp_options, tcp_flags, payload_len, segment_size)| Sample {
            v6,
            protocol: if tcp { TransportProtocol::Tcp } else { TransportProtocol::Udp },
            ip_options: ip_options * 4,
            tcp_options: tcp_options * 4,
            tcp_flags,
            ..Sample::tcp_v4(payload_len, segment_size.max(payload_len / 200 + 1))
        },
    )
}

proptest! {
    #[test]
    fn each_segment_is_a_valid_packet_and_together_they_carry_the_payload(sample in samples()) {
        let mut payload = Vec::new();
        for (index, (_, packet)) in cut(&sample).into_iter().enumerate() {
            assert_valid_alone(&packet);
            prop_assert!(index == 0 || packet.len() > sample.headers_len());
            payload.extend_from_slice(&packet[sample.headers_len()..]);
        }
        prop_assert_eq!(payload, sample.payload);
    }

    /// The reference is the packet inside, cut by itself.
    #[test]
    fn in_a_tunnel_each_segment_carries_what_it_would_without(sample in tunnel_samples()) {
        let mut inside = carried(&sample, &cut_tunnelled(&sample));
        let mut expected: Vec<_> = cut(&sample.inner).into_iter().map(|(_, packet)| packet).collect();
        for packet in &mut expected {
            complete_checksum(packet).unwrap();
        }
        for packet in &mut inside {
            assert_checksums(packet);
            // All ones and zero are the same number: `complete_checksum` has it otherwise for TCP.
            complete_checksum(packet).unwrap();
        }
        prop_assert_eq!(inside, expected);
    }

    #[test]
    fn a_damaged_superpacket_in_a_tunnel_never_panics(sample in tunnel_samples(), at: prop::sample::Index, value: u8, virtio_at in 0..24usize, virtio_value: u8) {
        let (mut bytes, mut virtio) = (sample.packet(), sample.virtio().encode_with_tunnel());
        let at = at.index(bytes.len().min(300));
        bytes[at] = value;
        virtio[virtio_at] = virtio_value;
        if let Ok(header) = VirtioHeader::decode_with_tunnel(&virtio)
            && let Ok(segments) = Segments::new(&header, &mut bytes)
        {
            packets(&segments);
        }
    }

    #[test]
    fn arbitrary_bytes_with_a_tunnel_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), virtio: [u8; 24]) {
        if let Ok(header) = VirtioHeader::decode_with_tunnel(&virtio)
            && let Ok(segments) = Segments::new(&header, &mut bytes)
        {
            packets(&segments);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), virtio: [u8; 10]) {
        if let Ok(header) = VirtioHeader::decode(&virtio)
            && let Ok(segments) = Segments::new(&header, &mut bytes)
        {
            packets(&segments);
        }
    }

    #[test]
    fn a_damaged_superpacket_never_panics(sample in samples(), at: prop::sample::Index, value: u8, virtio_at in 0..10usize, virtio_value: u8) {
        let (mut bytes, mut virtio) = (sample.packet(), sample.virtio().encode());
        let at = at.index(bytes.len().min(130));
        bytes[at] = value;
        virtio[virtio_at] = virtio_value;
        if let Ok(header) = VirtioHeader::decode(&virtio)
            && let Ok(segments) = Segments::new(&header, &mut bytes)
        {
            packets(&segments);
        }
    }
}
