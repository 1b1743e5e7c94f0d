//! What the IP headers of datagrams say, and what becomes of what they say.

use std::sync::Arc;

use underpass::packet::message::{Message, TRANSPORT_OVERHEAD};
use underpass::packet::traffic_class::{Ecn, TrafficClass, set_ecn};
use underpass::proto::cookie::MacKeys;
use underpass::proto::error::DropReason;
use underpass::proto::handshake::{
    InitiationFields, consume_initiation, consume_response, create_initiation, create_response,
};
use underpass::proto::noise::{FEATURE_ECN, FEATURE_LANE_PATHS, Parameters, Suite};
use underpass::proto::randomness::Randomness;
use underpass::proto::session::{Session, SessionParameters};
use underpass::proto::tai64n::Tai64N;
use underpass::proto::traffic::Traffic;
use underpass::proto::transmit::Dscp;

use crate::pair::{InFlight, LATENCY, Pair, Side, UNIX_TIME, inner_packet, start};

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

/// What side one marks for a peer that has answered and told of these features.
fn marks_for_a_responder(features: u8) -> Ecn {
    let mut pair = Pair::new();
    pair.send(Side::One, b"hello");
    let datagram = pair.wire.pop_front().unwrap();
    let Ok(Message::Initiation(initiation)) = Message::parse(&datagram.payload) else { panic!("no initiation") };
    let mut randomness = Randomness::new([7; 32]);
    let received = consume_initiation(Suite::Aes256Gcm, initiation, &Side::Two.private_key(), &mut randomness).unwrap();
    let (indices, parameters) = ((7, initiation.sender_index()), Parameters { lanes: 1, features, mtu: 0 });
    let (_, mut payload) = create_response(received, indices, None, parameters, &mut randomness).unwrap();
    MacKeys::new(&Side::One.public_key()).write(&mut payload, None);
    pair.deliver(InFlight { to: Side::One, from: Side::Two.address(), payload, ..datagram });
    marks(&mut pair, Side::One)
}

/// What side two marks for a peer that has called and told of these features.
fn marks_for_an_initiator(features: u8) -> Ecn {
    let mut pair = Pair::new();
    let mut randomness = Randomness::new([7; 32]);
    let fields = InitiationFields {
        suite: Suite::Aes256Gcm,
        sender_index: 7,
        timestamp: Tai64N::from_unix(UNIX_TIME),
        parameters: Parameters { lanes: 1, features, mtu: 0 },
    };
    let (private, public) = (Side::One.private_key(), Side::Two.public_key());
    let (mut pending, mut payload) = create_initiation(&fields, &private, &public, &mut randomness).unwrap();
    MacKeys::new(&public).write(&mut payload, None);
    let calling = |payload| InFlight {
        arrives_at: start(),
        to: Side::Two,
        from: Side::One.address(),
        to_second: false,
        traffic_class: TrafficClass::default(),
        payload,
    };
    pair.deliver(calling(payload));
    let answer = pair.wire.pop_front().unwrap().payload;
    let Ok(Message::Response(response)) = Message::parse(&answer) else { panic!("no response") };
    let (keys, _) = consume_response(&mut pending, response, None).unwrap();
    let parameters = SessionParameters {
        local_index: 7,
        remote_index: response.sender_index(),
        is_initiator: true,
        suite: Suite::Aes256Gcm,
        send_lanes: 1,
        receive_lanes: 1,
        lane_paths: false,
        peer_reads_ecn: true,
        peer_mtu: 0,
    };
    let mut keepalive = vec![0; TRANSPORT_OVERHEAD];
    let session = Session::new(pair.now, &keys, &parameters, Arc::new(Traffic::new(pair.now)));
    session.seal(pair.now, 0, &mut keepalive).unwrap();
    pair.deliver(calling(keepalive));
    marks(&mut pair, Side::Two)
}

/// What `side` says of a packet that may be marked, by the fast path.
fn marks(pair: &mut Pair, side: Side) -> Ecn {
    let now = pair.now;
    let router = pair.device(side).router();
    let route = router.route(now, side.other().inner().into()).unwrap();
    route.traffic_class(TrafficClass::default().with_ecn(Ecn::Ect0)).ecn()
}

#[test]
fn a_peer_that_does_not_pass_marks_on_gets_what_cannot_be_marked_whoever_called() {
    const UNKNOWN: u8 = 0xf0;
    for (features, ecn) in [
        (0, Ecn::NotEct),
        (FEATURE_LANE_PATHS | UNKNOWN, Ecn::NotEct),
        (FEATURE_ECN, Ecn::Ect0),
        (FEATURE_ECN | FEATURE_LANE_PATHS | UNKNOWN, Ecn::Ect0),
    ] {
        assert_eq!((marks_for_a_responder(features), marks_for_an_initiator(features)), (ecn, ecn), "{features:#x}");
    }
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
        let (now, router) = (pair.now, pair.one.router());
        let by_the_fast_path = router.route(now, Side::Two.inner().into()).unwrap();
        assert_eq!(by_the_fast_path.traffic_class(TrafficClass::of(&packet(Ecn::Ect0))), data.traffic_class);
        pair.deliver(data);
        assert_eq!(pair.delivered.pop().unwrap().2, packet(Ecn::Ect0), "the packet keeps its own");
    }
}
