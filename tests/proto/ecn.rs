//! What the IP headers of datagrams say, and what becomes of what they say.

use underpass::packet::message::Message;
use underpass::packet::traffic_class::{Ecn, TrafficClass, set_ecn};
use underpass::proto::error::DropReason;
use underpass::proto::transmit::Dscp;

use crate::pair::{InFlight, LATENCY, Pair, Side, inner_packet};

const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];
const EF: u8 = 46;

fn packet(ecn: Ecn) -> Vec<u8> {
    let mut packet = inner_packet(Side::One.inner(), Side::Two.inner(), b"data");
    packet[1] = EF << 2;
    set_ecn(&mut packet, ecn);
    packet
}

/// Sends a packet, and takes its datagram from the wire.
fn datagram_of(pair: &mut Pair, packet: Vec<u8>) -> InFlight {
    pair.settle();
    pair.send_packet(Side::One, packet).unwrap();
    pair.wire.pop_front().unwrap()
}

#[test]
fn a_datagram_says_of_congestion_what_its_packet_says_and_a_packet_what_both_say() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    for inner in ALL {
        for outer in ALL {
            let mut datagram = datagram_of(&mut pair, packet(inner));
            assert_eq!(datagram.traffic_class, TrafficClass::default().with_ecn(inner));
            let (now, router) = (pair.now, pair.one.router());
            let route = router.route(now, Side::Two.inner().into()).unwrap();
            assert_eq!(
                route.traffic_class(TrafficClass::of(&packet(inner))),
                datagram.traffic_class,
                "by the fast path"
            );
            datagram.traffic_class = datagram.traffic_class.with_ecn(outer);
            pair.deliver(datagram);
            let delivered = pair.delivered.pop().map(|(_, _, bytes)| bytes);
            assert_eq!(delivered, inner.decapsulated(outer).map(packet), "{inner:?} in {outer:?}");
        }
    }
    assert_eq!(pair.two.status(pair.now).drops.of(DropReason::CongestionExperienced), 1);
}

#[test]
fn a_packet_that_has_waited_for_a_session_keeps_its_field() {
    let mut pair = Pair::new();
    pair.send_packet(Side::One, packet(Ecn::Ect0)).unwrap();
    let mut sent = Vec::new();
    // The initiation, its response, and what the session brings.
    for _ in 0..3 {
        sent.extend(pair.wire.iter().map(|datagram| (is_data(&datagram.payload), datagram.traffic_class.ecn())));
        pair.advance(LATENCY);
    }
    assert_eq!(pair.delivered.pop().unwrap().2, packet(Ecn::Ect0));
    let capable: Vec<_> = sent.into_iter().filter(|(_, ecn)| *ecn != Ecn::NotEct).collect();
    assert_eq!(capable, [(true, Ecn::Ect0)]);
}

fn is_data(datagram: &[u8]) -> bool {
    matches!(Message::parse(datagram), Ok(Message::Transport(_)))
}

#[test]
fn control_frames_survive_a_mark() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let now = pair.now;
    pair.send(Side::One, b"data");
    let before = pair.status(Side::One).round_trip;
    while let Some(mut datagram) = pair.wire.pop_front() {
        datagram.traffic_class = datagram.traffic_class.with_ecn(Ecn::Ce);
        pair.now = pair.now.max(datagram.arrives_at);
        pair.deliver(datagram);
    }
    assert!(pair.now > now && before.is_some());
    assert_eq!(pair.refused, []);
}

#[test]
fn the_class_of_service_is_what_was_configured_for_everything_that_leaves() {
    for (dscp, of_data, of_others) in
        [(Dscp::default(), 0, 0), (Dscp::Copy, EF, 0), (Dscp::Value(EF + 1), EF + 1, EF + 1)]
    {
        let mut pair = Pair::with(|peer| peer.dscp = dscp, |_| ());
        pair.send(Side::One, b"hello");
        let handshake = pair.wire.front().unwrap().traffic_class;
        assert_eq!((handshake.dscp(), handshake.ecn()), (of_others, Ecn::NotEct));
        pair.settle();
        let ping = pair.wire.front().map(|datagram| datagram.traffic_class.dscp());
        assert!(ping.is_none_or(|dscp| dscp == of_others));
        let data = datagram_of(&mut pair, packet(Ecn::Ect0));
        assert_eq!((data.traffic_class.dscp(), data.traffic_class.ecn()), (of_data, Ecn::Ect0));
        pair.deliver(data);
        assert_eq!(pair.delivered.pop().unwrap().2, packet(Ecn::Ect0), "the packet keeps its own");
    }
}
