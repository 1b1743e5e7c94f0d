use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use underpass::keys::PrivateKey;
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::endpoint::Endpoint;
use underpass::proto::event::Event;
use underpass::proto::peer::PeerConfig;
use underpass::proto::stats::EndpointSource;

use crate::pair::{InFlight, LATENCY, Pair, Side, peer_config, seconds};

fn move_to(pair: &mut Pair, side: Side, address: &str) -> SocketAddr {
    let address = address.parse().unwrap();
    pair.addresses[side as usize] = address;
    address
}

#[test]
fn any_authentic_packet_moves_the_endpoint() {
    for address in ["198.51.100.7:4000", "[2001:db8::7]:4000"] {
        let mut pair = Pair::new();
        pair.connect(Side::One);
        let address = move_to(&mut pair, Side::One, address);
        pair.send(Side::One, b"I moved");
        pair.settle();
        assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, address);
        assert!(pair.events.iter().any(|(_, event)| matches!(event, Event::EndpointChanged { .. })));
        pair.send(Side::Two, b"found you");
        pair.settle();
        assert_eq!(pair.payloads(Side::One), [b"found you"]);
    }
}

#[test]
fn whether_a_peer_is_at_an_address_is_known_of_whole_addresses() {
    let mut pair = Pair::new();
    let router = pair.one.router();
    assert!(router.has_endpoint(Side::Two.address()));
    for stranger in ["192.0.2.2:51901", "192.0.2.3:51900"] {
        assert!(!router.has_endpoint(stranger.parse().unwrap()), "{stranger}");
    }
}

#[test]
fn a_peer_without_an_endpoint_is_found_when_it_calls() {
    let mut pair = Pair::with(|_| (), |one| one.endpoints = Vec::new());
    pair.send(Side::Two, b"where are you");
    assert!(pair.sent.is_empty());
    pair.connect(Side::One);
    pair.send(Side::Two, b"there you are");
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"there you are"]);
}

#[test]
fn a_restarted_side_without_an_endpoint_calls_where_the_peer_was_and_is_up_in_a_round_trip() {
    let mut pair = Pair::with(|_| (), |one| one.endpoints = Vec::new());
    pair.connect(Side::One);
    pair.restart(Side::Two, Duration::from_secs(1_800_000_000));
    let now = pair.now;
    pair.two.upsert_peer(now, PeerConfig { endpoints: Vec::new(), ..peer_config(Side::One) });
    pair.two.connect(now, &Side::One.public_key(), Endpoint::new(Side::One.address()));
    pair.advance(2 * LATENCY);
    assert!(pair.is_up(Side::Two));
    assert_eq!(pair.status(Side::Two).endpoint_source, Some(EndpointSource::Remembered));
    pair.send(Side::Two, b"back");
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"back"]);
}

#[test]
fn an_endpoint_is_told_by_how_it_came_to_be_known() {
    let source = |configured: Vec<Endpoint>| {
        let mut pair = Pair::with(|_| (), move |one| one.endpoints = configured);
        pair.connect(Side::One);
        pair.status(Side::Two).endpoint_source
    };
    assert_eq!(source(vec![Endpoint::new(Side::One.address())]), Some(EndpointSource::Configured));
    assert_eq!(source(vec![Endpoint::new("203.0.113.66:66".parse().unwrap())]), Some(EndpointSource::Roamed));
    assert_eq!(source(vec![]), Some(EndpointSource::Learned));
}

#[test]
fn a_remembered_endpoint_counts_among_the_configured_and_not_against_them() {
    let (first, second) = (Side::Two.address(), "198.51.100.7:4000".parse().unwrap());
    let elsewhere = "203.0.113.66:66".parse().unwrap();
    for (remembered, expected) in [(second, second), (elsewhere, first)] {
        let endpoints = vec![Endpoint::new(first), Endpoint::new(second)];
        let mut pair = Pair::with(|two| two.endpoints = endpoints, |_| ());
        let now = pair.now;
        pair.one.connect(now, &Side::Two.public_key(), Endpoint::new(remembered));
        assert_eq!(pair.one.poll_transmit().unwrap().endpoint.remote, expected);
    }
}

#[test]
fn a_replayed_packet_from_elsewhere_moves_nothing() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send(Side::One, b"x");
    let genuine = pair.wire[0].clone();
    pair.settle();
    pair.deliver(InFlight { from: "203.0.113.66:66".parse().unwrap(), ..genuine });
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, Side::One.address());
}

#[test]
fn a_peer_that_only_seemed_to_roam_is_found_again_where_it_is_configured() {
    for changing_key in [false, true] {
        let next_public_key = changing_key.then(|| PrivateKey::from_bytes([9; 32]).unwrap().public_key());
        let mut pair = Pair::with(|two| two.next_public_key = next_public_key, |_| ());
        pair.connect(Side::One);
        // Somebody forwards one genuine packet from elsewhere, and no more; one's NAT lets nobody else in.
        pair.send(Side::Two, b"forwarded");
        let forwarded = pair.wire.pop_front().unwrap();
        pair.deliver(InFlight { from: "203.0.113.66:66".parse().unwrap(), ..forwarded });
        assert_ne!(pair.status(Side::One).endpoint.unwrap().remote, Side::Two.address());
        pair.restart(Side::Two, seconds(1_700_000_100));
        for _ in 0..30 {
            pair.send(Side::One, b"anybody there?");
            pair.advance(seconds(1));
        }
        assert_eq!(pair.status(Side::One).endpoint.unwrap().remote, Side::Two.address(), "{changing_key}");
        assert!(pair.is_up(Side::One) && pair.is_up(Side::Two));
    }
}

#[test]
fn a_packet_that_was_overtaken_moves_nothing() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send(Side::One, b"held back");
    let old = pair.wire.pop_front().unwrap();
    pair.send(Side::One, b"newest");
    pair.settle();
    pair.deliver(InFlight { from: "203.0.113.66:66".parse().unwrap(), ..old });
    assert_eq!(pair.payloads(Side::Two), [b"newest".to_vec(), b"held back".to_vec()]);
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, Side::One.address());
}

#[test]
fn a_changed_or_unknown_packet_from_elsewhere_moves_nothing() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send(Side::One, b"x");
    let mut forged = pair.wire.pop_front().unwrap();
    forged.from = "203.0.113.66:66".parse().unwrap();
    forged.payload[20] ^= 1;
    pair.deliver(forged);
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, Side::One.address());
}

#[test]
fn an_initiation_from_elsewhere_moves_nothing_until_data_follows() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(seconds(2));
    pair.restart(Side::One, seconds(1_700_000_100));
    pair.send(Side::One, b"x");
    let initiation = pair.wire.pop_front().unwrap();
    pair.deliver(InFlight { from: "203.0.113.66:66".parse().unwrap(), ..initiation });
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, Side::One.address());
}

#[test]
fn the_local_address_that_was_contacted_is_the_one_that_answers() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.addresses[Side::Two as usize] = "198.51.100.2:51900".parse().unwrap();
    pair.send(Side::Two, b"from my other address");
    pair.settle();
    pair.send(Side::One, b"x");
    pair.settle();
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().local, Some("198.51.100.2".parse().unwrap()));
}

/// What the fast path of `side` would answer to `datagram`, before the slow path has heard of anything that it showed: a
/// keepalive, and where it would go.
fn answer_at_once(pair: &mut Pair, side: Side, mut datagram: InFlight) -> (SocketAddr, Vec<u8>) {
    let now = pair.now;
    let router = pair.device(side).router();
    let mut notices = Vec::new();
    let from = Endpoint { local: Some(datagram.to.address().ip()), ..Endpoint::new(datagram.from) };
    router.open(now, from, datagram.traffic_class.ecn(), &mut datagram.payload, &mut notices).unwrap();
    assert!(!notices.is_empty(), "nothing to hear of, so nothing to be tested");
    let route = router.route(now, IpAddr::from(side.other().inner())).unwrap();
    let mut answer = vec![0; TRANSPORT_HEADER_LEN + TAG_LEN];
    route.seal(now, 0, &mut answer, &mut notices).unwrap();
    (route.endpoint().remote, answer)
}

#[test]
fn an_answer_follows_a_peer_that_moved_before_the_slow_path_has_heard_of_it() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let address = move_to(&mut pair, Side::One, "198.51.100.7:4000");
    pair.send(Side::One, b"I moved");
    let datagram = pair.wire.pop_front().unwrap();
    let (endpoint, _) = answer_at_once(&mut pair, Side::Two, datagram);
    assert_eq!(endpoint, address);
}

#[test]
fn a_peer_that_only_seemed_to_move_is_answered_where_it_is_before_the_slow_path_has_heard_of_it() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let [forwarded, direct, again] = [b"1", b"2", b"3"].map(|payload| {
        pair.send(Side::One, payload);
        pair.wire.pop_front().unwrap()
    });
    let elsewhere = "203.0.113.66:66".parse().unwrap();
    let (endpoint, _) = answer_at_once(&mut pair, Side::Two, InFlight { from: elsewhere, ..forwarded });
    assert_eq!(endpoint, elsewhere);
    let (endpoint, _) = answer_at_once(&mut pair, Side::Two, direct);
    assert_eq!(endpoint, Side::One.address());
    let (endpoint, _) = answer_at_once(&mut pair, Side::Two, InFlight { from: elsewhere, ..again });
    assert_eq!(endpoint, elsewhere);
}

#[test]
fn an_answer_to_a_peer_that_restarted_is_one_that_it_can_open() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(seconds(20));
    pair.restart(Side::One, seconds(1_700_000_100));
    pair.send(Side::One, b"hello again");
    // Initiation and response; what follows is the first datagram of the new session.
    pair.advance(LATENCY * 2);
    let datagram = pair.wire.pop_front().unwrap();
    assert_eq!(datagram.to, Side::Two);
    let (_, payload) = answer_at_once(&mut pair, Side::Two, datagram);
    pair.deliver(InFlight {
        arrives_at: pair.now,
        to: Side::One,
        from: Side::Two.address(),
        to_second: false,
        traffic_class: TrafficClass::default(),
        payload,
    });
    assert_eq!(pair.refused, []);
}

#[test]
fn a_local_address_that_gets_no_answer_is_left() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    assert!(pair.status(Side::One).endpoint.unwrap().local.is_some());
    pair.lose = Box::new(|_, _| true);
    pair.send(Side::One, b"anyone there?");
    pair.advance(Duration::from_secs(2));
    assert_eq!(pair.status(Side::One).endpoint.unwrap().local, None);
}
