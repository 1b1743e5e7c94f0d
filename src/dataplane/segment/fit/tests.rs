use proptest::prelude::*;

use super::super::super::samples::{Sample, assert_checksums, assert_valid_alone};
use super::super::super::virtio::VirtioHeader;
use super::super::length_field;
use super::super::tests::samples;
use super::*;
use crate::packet::frame::{FLAG_CHECKSUM_PARTIAL, FLAG_CONTINUES};
use crate::packet::ip::complete_checksum;

const NARROW: u16 = 1220;
const REFUSED: Miss = Miss::Drop(DropReason::PathTooNarrow);

fn path() -> PathLimit {
    PathLimit::of_packets(NARROW, true)
}

fn fitted(header: &VirtioHeader, bytes: &[u8], path: PathLimit) -> Result<Vec<(u8, Vec<u8>)>, Miss> {
    let mut bytes = bytes.to_vec();
    let mut segments = Segments::new(header, &mut bytes).unwrap();
    segments.fit(path)?;
    Ok(packets(&segments))
}

fn packets(segments: &Segments<'_>) -> Vec<(u8, Vec<u8>)> {
    let packet = |index| {
        let mut packet = vec![0xaa; segments.length(index)];
        segments.write(index, &mut packet);
        (segments.flags(index), packet)
    };
    (0..segments.count()).map(packet).collect()
}

fn fitted_sample(sample: &Sample, path: PathLimit) -> Result<Vec<(u8, Vec<u8>)>, Miss> {
    fitted(&sample.virtio(), &sample.packet(), path)
}

/// A packet that is none of several.
fn single(sample: Sample) -> Sample {
    Sample { segment_size: 0, ..sample }
}

fn complete_header_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum::finish(0, header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn without_dont_fragment(sample: &Sample) -> Vec<u8> {
    let mut bytes = sample.packet();
    bytes[6] = 0;
    complete_header_checksum(&mut bytes[..sample.transport_start()]);
    bytes
}

/// What the receiving host makes of fragments.
fn reassembled(fragments: &[(u8, Vec<u8>)], header_len: usize) -> Vec<u8> {
    let mut whole = fragments[0].1[..header_len].to_vec();
    for (index, (flags, fragment)) in fragments.iter().enumerate() {
        assert_eq!(*flags, 0);
        assert_eq!(checksum::finish(0, &fragment[..header_len]), 0);
        assert_eq!(usize::from(u16::from_be_bytes([fragment[2], fragment[3]])), fragment.len());
        let field = u16::from_be_bytes([fragment[6], fragment[7]]);
        assert_eq!(usize::from(field & 0x1fff) * 8, whole.len() - header_len);
        assert_eq!(field & 0x2000 != 0, index + 1 < fragments.len());
        whole.extend(&fragment[header_len..]);
    }
    let length = length_field(whole.len());
    whole[2..4].copy_from_slice(&length);
    whole[6..8].fill(0);
    complete_header_checksum(&mut whole[..header_len]);
    whole
}

#[test]
fn a_tcp_packet_is_cut_into_a_train_of_what_fits() {
    for v6 in [false, true] {
        let sample = Sample { v6, tcp_flags: 0x99, ..single(Sample::tcp_v4(1348, 0)) };
        let headers = sample.headers_len();
        let packets = fitted_sample(&sample, path()).unwrap();
        let lengths: Vec<_> = packets.iter().map(|(_, packet)| packet.len()).collect();
        assert_eq!(lengths, [usize::from(NARROW), 1348 - (usize::from(NARROW) - headers) + headers]);
        let flags: Vec<_> = packets.iter().map(|(flags, _)| *flags).collect();
        assert_eq!(flags, [FLAG_CHECKSUM_PARTIAL, FLAG_CHECKSUM_PARTIAL | FLAG_CONTINUES]);
        let payload: Vec<u8> = packets.iter().flat_map(|(_, packet)| packet[headers..].to_vec()).collect();
        assert_eq!(payload, sample.payload);
        packets.iter().for_each(|(_, packet)| assert_valid_alone(packet));
        let flags_at = sample.transport_start() + 13;
        assert_eq!([packets[0].1[flags_at], packets[1].1[flags_at]], [0x90, 0x19]);
    }
}

#[test]
fn a_complete_checksum_must_be_right_before_a_packet_is_cut() {
    let mut bytes = single(Sample::tcp_v4(1368, 0)).packet();
    complete_checksum(&mut bytes).unwrap();
    assert_eq!(fitted(&VirtioHeader::PLAIN, &bytes, path()).unwrap().len(), 2);
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(fitted(&VirtioHeader::PLAIN, &bytes, path()), Err(REFUSED));
}

#[test]
fn what_is_said_of_a_whole_tcp_packet_is_not_said_of_its_parts() {
    let with_options = |options: &[u8]| {
        let sample = Sample { tcp_options: 20, ..single(Sample::tcp_v4(1340, 0)) };
        let mut bytes = sample.packet();
        bytes[40..40 + options.len()].copy_from_slice(options);
        fitted(&sample.virtio(), &bytes, path()).is_ok()
    };
    // Timestamps and what follows the end of options say nothing of the whole.
    for options in [&[8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 0, 19][..], &[1, 1, 0, 29]] {
        assert!(with_options(options), "{options:?}");
    }
    for options in [&[1, 19, 18][..], &[29, 4], &[5, 0], &[5, 40]] {
        assert!(!with_options(options), "{options:?}");
    }
    for tcp_flags in [0x02, 0x12, 0x14, 0x38] {
        let sample = Sample { tcp_flags, ..single(Sample::tcp_v4(1368, 0)) };
        assert_eq!(fitted_sample(&sample, path()), Err(REFUSED), "{tcp_flags:#x}");
    }
}

#[test]
fn a_superpacket_of_segments_is_cut_otherwise_and_one_of_datagrams_is_not() {
    let sample = Sample::tcp_v4(5000, 1368);
    let packets = fitted_sample(&sample, path()).unwrap();
    assert_eq!(packets[0].1.len(), usize::from(NARROW));
    assert_eq!(packets.len(), 5000usize.div_ceil(usize::from(NARROW) - sample.headers_len()));
    assert_eq!(fitted_sample(&Sample::udp_v6(5000, 1372), path()), Err(REFUSED));
}

#[test]
fn whatever_cannot_be_cut_is_tried_while_the_path_is_not_known() {
    let sample = single(Sample::udp_v6(1372, 0));
    let unknown = PathLimit::of_packets(1168, false);
    assert_eq!(fitted_sample(&sample, unknown).unwrap(), [(FLAG_CHECKSUM_PARTIAL, sample.packet())]);
    assert_eq!(fitted_sample(&sample, path()), Err(REFUSED));
    let tcp = fitted_sample(&Sample::tcp_v4(5000, 1368), unknown).unwrap();
    assert!(tcp.iter().all(|(_, packet)| packet.len() <= 1168), "TCP need not try");
}

#[test]
fn packets_that_every_path_carries_are_the_slow_paths() {
    let v4 = Sample { v6: false, ..single(Sample::udp_v6(576 - 28, 0)) };
    for (sample, longest) in [(single(Sample::udp_v6(1280 - 48, 0)), 1220), (v4, 516)] {
        for is_final in [false, true] {
            assert_eq!(fitted_sample(&sample, PathLimit::of_packets(longest, is_final)), Err(Miss::SlowPath));
        }
        let longer = Sample { payload: vec![0; sample.payload.len() + 1], ..sample };
        assert_eq!(fitted_sample(&longer, PathLimit::of_packets(longest, true)), Err(REFUSED));
    }
}

#[test]
fn an_ipv4_packet_that_may_be_fragmented_is() {
    for ip_options in [0, 12] {
        let sample = Sample { v6: false, ip_options, ..single(Sample::udp_v6(1372, 0)) };
        let bytes = without_dont_fragment(&sample);
        let fragments = fitted(&sample.virtio(), &bytes, path()).unwrap();
        assert!(fragments.len() == 2 && fragments.iter().all(|(_, fragment)| fragment.len() <= NARROW.into()));
        let header_len = sample.transport_start();
        let whole = reassembled(&fragments, header_len);
        assert_checksums(&whole);
        assert_eq!(whole[sample.headers_len()..], sample.payload);
        // And these again, on a path that is narrower still.
        let narrower = PathLimit::of_packets(600, true);
        let refragmented = |(_, bytes): &(u8, Vec<u8>)| fitted(&VirtioHeader::PLAIN, bytes, narrower).unwrap();
        let again: Vec<_> = fragments.iter().flat_map(refragmented).collect();
        assert!(again.len() > 2 && again.iter().all(|(_, fragment)| fragment.len() <= 600));
        assert_eq!(reassembled(&again, header_len), whole);
    }
}

#[test]
fn no_part_of_an_ipv6_packet_overtakes_one_that_takes_the_slow_way() {
    let mut bytes = single(Sample::udp_v6(72, 0)).packet();
    bytes[6] = FRAGMENT;
    let wide = PathLimit::of_packets(1280, true);
    assert_eq!(fitted(&VirtioHeader::PLAIN, &bytes, wide).unwrap(), [(0, bytes.clone())]);
    assert_eq!(fitted(&VirtioHeader::PLAIN, &bytes, path()), Err(Miss::SlowPath));
    bytes[6] = 17;
    assert_eq!(fitted(&VirtioHeader::PLAIN, &bytes, path()).unwrap(), [(0, bytes.clone())]);
}

#[test]
fn options_that_are_not_to_be_copied_stay_with_the_first_fragment() {
    let sample = Sample { v6: false, ip_options: 12, ..single(Sample::udp_v6(1372, 0)) };
    let mut bytes = without_dont_fragment(&sample);
    bytes[20..32].copy_from_slice(&[7, 4, 4, 9, 0x94, 4, 0, 0, 1, 7, 2, 0]);
    let fragments = fitted(&VirtioHeader::PLAIN, &bytes, path()).unwrap();
    assert_eq!(fragments[0].1[20..32], bytes[20..32]);
    assert_eq!(fragments[1].1[20..32], [1, 1, 1, 1, 0x94, 4, 0, 0, 1, 1, 1, 0]);
}

proptest! {
    #[test]
    fn tcp_always_fits_and_loses_no_byte(mut sample in samples(), longest in 516..1500u16) {
        sample.protocol = TransportProtocol::Tcp;
        let fitting = fitted_sample(&sample, PathLimit::of_packets(longest, true)).unwrap();
        let headers = sample.headers_len();
        let payload: Vec<u8> = fitting.iter().flat_map(|(_, packet)| packet[headers..].to_vec()).collect();
        prop_assert_eq!(payload, sample.payload);
        for (_, packet) in fitting {
            prop_assert!(packet.len() <= usize::from(longest));
            assert_valid_alone(&packet);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..1500), virtio: [u8; 10], longest in 516..1500u16
    ) {
        if let Ok(header) = VirtioHeader::decode(&virtio)
            && let Ok(mut segments) = Segments::new(&header, &mut bytes)
            && segments.fit(PathLimit::of_packets(longest, true)).is_ok()
        {
            packets(&segments);
        }
    }

    #[test]
    fn a_damaged_packet_never_panics(
        sample in samples(), at: prop::sample::Index, value: u8, longest in 516..1500u16, may_fragment: bool
    ) {
        let mut bytes = sample.packet();
        let at = at.index(bytes.len().min(130));
        bytes[at] = value;
        if may_fragment && !sample.v6 {
            bytes[6] &= 0xbf;
        }
        for header in [sample.virtio(), VirtioHeader::PLAIN] {
            let mut bytes = bytes.clone();
            if let Ok(mut segments) = Segments::new(&header, &mut bytes)
                && segments.fit(PathLimit::of_packets(longest, true)).is_ok()
            {
                packets(&segments);
            }
        }
    }
}
