use std::sync::Arc;

use underpass::packet::frame::{FLAG_CHECKSUM_PARTIAL, packet_header};
use underpass::packet::ip::IpPacket;
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::proto::error::DropReason;
use underpass::proto::policy::Policy;
use underpass::proto::transmit::{Transmit, Way};

use crate::pair::{Pair, Side, inner_packet};

#[test]
fn what_the_fast_path_sent_may_be_answered_also_by_the_slow_path() {
    let policy = Policy::default().with_own_addresses([Side::One.inner().into()]);
    let mut pair = Pair::with(|two| two.policy = Arc::new(policy), |_| ());
    pair.connect(Side::One);
    let [question, answer] = [(Side::One, [0x30, 0, 0x20, 0]), (Side::Two, [0x20, 0, 0x30, 0])].map(|(from, ports)| {
        let mut packet = inner_packet(from.inner(), from.other().inner(), b"x");
        packet[20..24].copy_from_slice(&ports);
        packet
    });
    pair.send_packet(Side::Two, answer.clone()).unwrap();
    pair.settle();
    assert!(pair.delivered.is_empty());
    assert_eq!(pair.one.status(pair.now).drops.of(DropReason::NotExposed), 1);

    let (now, router) = (pair.now, pair.one.router());
    let peer = router.route(now, Side::Two.inner().into()).unwrap().peer();
    router.on_sent(now, peer, &IpPacket::parse(&question).unwrap());
    pair.send_packet(Side::Two, answer).unwrap();
    pair.settle();
    assert_eq!(pair.delivered.len(), 1);
}

#[test]
fn a_peer_is_told_of_refusals_only_where_that_is_configured() {
    for tells in [false, true] {
        let policy = if tells { Policy::default().telling_of_refusal() } else { Policy::default() };
        let mut pair = Pair::with(|two| two.policy = Arc::new(policy), |_| ());
        pair.connect(Side::One);
        let (now, router) = (pair.now, pair.one.router());
        let peer = router.route(now, Side::Two.inner().into()).unwrap().peer();
        assert_eq!(router.tells_of_refusal(peer), tells);
    }
}

#[test]
fn a_partial_checksum_is_refused_where_there_is_none_to_complete() {
    const UDP: u8 = 17;
    const NO_NEXT_HEADER: u8 = 59;
    let mut pair = Pair::new();
    pair.connect(Side::One);
    for (flags, protocol, is_taken) in [
        (0, UDP, true),
        (FLAG_CHECKSUM_PARTIAL, UDP, true),
        (0, NO_NEXT_HEADER, true),
        (FLAG_CHECKSUM_PARTIAL, NO_NEXT_HEADER, false),
    ] {
        let mut packet = inner_packet(Side::One.inner(), Side::Two.inner(), b"x");
        packet[9] = protocol;
        send_frame(&mut pair, flags, &packet);
        assert_eq!(pair.delivered.pop().is_some(), is_taken, "{flags} {protocol}");
    }
    assert_eq!(pair.two.status(pair.now).drops.of(DropReason::MalformedPacket), 1);
}

/// Has side two take a frame of side one's.
fn send_frame(pair: &mut Pair, flags: u8, packet: &[u8]) {
    let (now, router) = (pair.now, pair.one.router());
    let route = router.route(now, Side::Two.inner().into()).unwrap();
    let header = packet_header(flags, packet.len() as u16);
    let mut payload = [&[0; TRANSPORT_HEADER_LEN], &header[..], packet, &[0; TAG_LEN]].concat();
    route.seal(now, 0, &mut payload, &mut Vec::new()).unwrap();
    let Way { endpoint, port, traffic_class } = route.way(0);
    pair.put_on_the_wire(Side::One, Transmit { endpoint, port, traffic_class, payload, may_fragment: false });
    pair.settle();
}
