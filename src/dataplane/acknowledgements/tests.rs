use proptest::prelude::*;

use crate::packet::traffic_class::set_ecn;

use super::*;

/// A packet of flow `flow`, over IPv6 if that is odd, with `payload` bytes behind its header.
#[derive(Debug, Clone)]
struct Packet {
    flow: u8,
    acknowledgement: u32,
    flags: u8,
    options: &'static [u8],
    payload: usize,
    ecn: Ecn,
}

const PURE: Packet = Packet { flow: 0, acknowledgement: 0, flags: TCP_ACK, options: &[], payload: 0, ecn: Ecn::NotEct };
const STAMPED: &[u8] = &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
const SELECTIVE: &[u8] = &[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];

fn pure(acknowledgement: u32) -> Packet {
    Packet { acknowledgement, ..PURE }
}

fn data(acknowledgement: u32) -> Packet {
    Packet { payload: 100, flags: TCP_ACK | TCP_PSH, ..pure(acknowledgement) }
}

impl Packet {
    fn of(self, flow: u8) -> Self {
        Self { flow, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let tcp_len = TCP_HEADER_LEN + self.options.len();
        let mut tcp = vec![0; tcp_len];
        tcp[..2].copy_from_slice(&[0x1f, self.flow]);
        tcp[TCP_ACKNOWLEDGEMENT..][..4].copy_from_slice(&self.acknowledgement.to_be_bytes());
        tcp[TCP_DATA_OFFSET] = (tcp_len * 4) as u8;
        tcp[TCP_FLAGS] = self.flags;
        tcp[TCP_HEADER_LEN..].copy_from_slice(self.options);
        tcp.resize(tcp_len + self.payload, 7);
        let mut packet = if self.flow.is_multiple_of(2) {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            header[2..4].copy_from_slice(&((20 + tcp.len()) as u16).to_be_bytes());
            header
        } else {
            let mut header = vec![0; 40];
            (header[0], header[6], header[23], header[39]) = (0x60, 6, 1, 2);
            header[4..6].copy_from_slice(&(tcp.len() as u16).to_be_bytes());
            header
        };
        packet.append(&mut tcp);
        set_ecn(&mut packet, self.ecn);
        packet
    }
}

/// Where the lowest byte of the sequence number stands.
fn sequence_at(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 + 7 } else { 40 + 7 }
}

/// The packets of one drain that leave, by their indices.
fn drained(acknowledgements: &mut Acknowledgements, packets: &[Packet]) -> Vec<usize> {
    let numbered = |(index, packet): (usize, &Packet)| {
        let mut bytes = packet.bytes();
        let at = sequence_at(&bytes);
        bytes[at] = index as u8;
        bytes
    };
    let originals: Vec<_> = packets.iter().enumerate().map(numbered).collect();
    let mut left = Vec::new();
    let mut forward = |header: &VirtioHeader, bytes: &mut [u8]| {
        let index = usize::from(bytes[sequence_at(bytes)]);
        assert_eq!(bytes, originals[index], "what leaves is as it was read");
        assert!(header.needs_checksum);
        left.push(index);
    };
    let header = VirtioHeader { needs_checksum: true, ..VirtioHeader::PLAIN };
    for original in &originals {
        acknowledgements.take(&header, &mut original.clone(), &mut forward);
    }
    acknowledgements.finish(forward);
    left
}

/// The same, of a flow that had acknowledged 1000 before.
fn left(packets: &[Packet]) -> Vec<usize> {
    let mut acknowledgements = Acknowledgements::new();
    drained(&mut acknowledgements, &[data(1000), data(1000).of(1)]);
    drained(&mut acknowledgements, packets)
}

#[test]
fn of_acknowledgements_in_a_row_the_last_leaves() {
    assert_eq!(left(&[pure(1001), pure(1002), pure(5000)]), [2]);
    let v6 = [pure(1001).of(1), pure(1002).of(1)];
    assert_eq!(left(&v6), [1]);
    let stamped = |packet| Packet { options: STAMPED, ..packet };
    assert_eq!(left(&[stamped(pure(1001)), stamped(pure(1002))]), [1]);
    let wrapped = [pure(0x7000_0000), pure(0xe000_0000), pure(0x1000_0000)];
    assert_eq!(left(&wrapped), [2], "sequence numbers begin anew");
}

#[test]
fn an_acknowledgement_that_the_answer_repeats_is_left_out() {
    assert_eq!(left(&[pure(1001), data(1001)]), [1]);
    assert_eq!(left(&[pure(1001), data(1002)]), [1]);
    assert_eq!(left(&[pure(1001), Packet { flags: TCP_ACK | TCP_FIN, ..pure(1001) }]), [1]);
    assert_eq!(left(&[pure(1001), data(1000).of(1), data(1001)]), [1, 2], "another flow's packet in between");
}

#[test]
fn the_one_that_opens_a_connection_is_left_out_when_the_request_follows() {
    let mut acknowledgements = Acknowledgements::new();
    drained(&mut acknowledgements, &[Packet { flags: TCP_SYN, ..PURE }]);
    assert_eq!(drained(&mut acknowledgements, &[pure(77), data(77)]), [1]);
}

#[test]
fn what_says_more_than_that_leaves() {
    let next = pure(2000);
    let of_pure = |change: fn(&mut Packet)| {
        let mut packet = pure(1001);
        change(&mut packet);
        packet
    };
    for (says_more, why) in [
        (of_pure(|p| p.options = SELECTIVE), "SACK"),
        (of_pure(|p| p.acknowledgement = 1000), "a duplicate"),
        (of_pure(|p| p.acknowledgement = 999), "an old one"),
        (of_pure(|p| p.flags |= TCP_FIN), "FIN"),
        (of_pure(|p| p.flags |= TCP_RST), "RST"),
        (of_pure(|p| p.flags |= TCP_URG), "URG"),
        (of_pure(|p| p.flags |= TCP_ECE), "ECE, which the next has not"),
        (of_pure(|p| p.payload = 1), "data"),
        (of_pure(|p| p.ecn = Ecn::Ce), "a mark of congestion"),
    ] {
        assert_eq!(left(&[says_more, next.clone()]), [0, 1], "{why}");
    }
}

#[test]
fn what_does_not_repeat_it_lets_it_leave_before() {
    assert_eq!(left(&[pure(1002), pure(1002)]), [0, 1], "the second is a duplicate, or tells of another window");
    assert_eq!(left(&[pure(1002), data(1001)]), [0, 1], "sent before, and overtaken");
    assert_eq!(left(&[pure(1002), data(1001), pure(1002), data(1002)]), [0, 1, 2, 3], "and then a duplicate");
    assert_eq!(left(&[pure(1002), Packet { flags: TCP_RST | TCP_ACK, ..pure(1003) }]), [0, 1]);
    assert_eq!(left(&[pure(1002), Packet { flags: TCP_SYN, ..PURE }]), [0, 1], "the ports are used again");
    let fragment = |packet: Packet| {
        let mut bytes = packet.bytes();
        bytes[6] = 0x20;
        bytes
    };
    assert_eq!(Segment::read(&VirtioHeader::PLAIN, &fragment(pure(1))), None);
}

#[test]
fn nothing_is_left_out_of_a_flow_that_is_not_known() {
    let mut acknowledgements = Acknowledgements::new();
    assert_eq!(drained(&mut acknowledgements, &[pure(5), data(5)]), [0, 1], "it may be the third duplicate");
    let crowd: Vec<_> = (0..MAX_HELD + 9).map(|_| pure(6)).collect();
    assert_eq!(drained(&mut acknowledgements, &crowd).len(), crowd.len());
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let flags =
        prop::sample::select(vec![TCP_ACK, TCP_ACK, TCP_ACK | TCP_PSH, TCP_ACK | TCP_FIN, TCP_ACK | TCP_ECE, TCP_SYN]);
    let options = prop::sample::select(vec![&[][..], STAMPED, SELECTIVE]);
    let payload = prop::sample::select(vec![0, 0, 0, 1, 90]);
    (0u8..4, 0u32..8, flags, options, payload).prop_map(|(flow, acknowledgement, flags, options, payload)| Packet {
        flow,
        acknowledgement,
        flags,
        options,
        payload,
        ecn: Ecn::NotEct,
    })
}

proptest! {
    #[test]
    fn every_flow_keeps_its_order_and_what_is_left_out_is_said_by_what_follows(
        drains in prop::collection::vec(prop::collection::vec(any_packet(), 0..40), 1..6)
    ) {
        let mut acknowledgements = Acknowledgements::new();
        for packets in drains {
            let left = drained(&mut acknowledgements, &packets);
            for (index, packet) in packets.iter().enumerate().filter(|(index, _)| !left.contains(index)) {
                let is_said_by = |later: &usize| {
                    let other = &packets[*later];
                    *later > index && other.flow == packet.flow && other.acknowledgement >= packet.acknowledgement
                };
                prop_assert!(left.iter().any(is_said_by), "{packet:?}");
                prop_assert!(packet.payload == 0 && packet.flags & !TCP_ECE == TCP_ACK && packet.options != SELECTIVE);
            }
            for flow in 0..4 {
                let of_flow: Vec<_> = left.iter().filter(|index| packets[**index].flow == flow).collect();
                prop_assert!(of_flow.is_sorted(), "{of_flow:?}");
            }
        }
    }
}
