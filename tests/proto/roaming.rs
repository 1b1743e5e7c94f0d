use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use underpass::keys::PrivateKey;
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::peer::PeerConfig;
use underpass::proto::stats::EndpointSource;

use crate::lane_paths::send_on;
use crate::pair::{InFlight, LATENCY, PING_DATAGRAM_LEN, Pair, Side, peer_config, seconds};

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
fn a_genuine_datagram_that_somebody_passes_on_moves_nothing() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let elsewhere: SocketAddr = "203.0.113.66:66".parse().unwrap();
    for _ in 0..20 {
        pair.send(Side::Two, b"passed on");
        let genuine = pair.wire.pop_front().unwrap();
        pair.deliver(InFlight { from: elsewhere, ..genuine });
        pair.send(Side::One, &[0; 1000]);
        pair.advance(Duration::from_millis(10));
    }
    pair.settle();
    assert_eq!(pair.status(Side::One).endpoint.unwrap().remote, Side::Two.address());
    // A few questions, as long as their answers.
    assert!(pair.astray.len() <= 5, "{:?}", pair.astray);
    assert!(pair.astray.iter().all(|astray| *astray == (elsewhere, PING_DATAGRAM_LEN)), "{:?}", pair.astray);
}

#[test]
fn a_peer_that_has_left_the_place_where_it_roamed_is_found_again_where_it_is_configured() {
    for changing_key in [false, true] {
        let next_public_key = changing_key.then(|| PrivateKey::from_bytes([9; 32]).unwrap().public_key());
        let mut pair = Pair::with(|two| two.next_public_key = next_public_key, |_| ());
        pair.connect(Side::One);
        let elsewhere = move_to(&mut pair, Side::Two, "203.0.113.66:66");
        pair.send(Side::Two, b"I moved");
        pair.settle();
        assert_eq!(pair.status(Side::One).endpoint.unwrap().remote, elsewhere);
        pair.addresses[Side::Two as usize] = Side::Two.address();
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
fn a_peer_whose_translator_gives_it_another_port_is_found_in_a_round_trip() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let address = move_to(&mut pair, Side::One, "192.0.2.1:40000");
    pair.send(Side::One, b"from another port");
    pair.advance(3 * LATENCY);
    pair.send(Side::Two, b"found you");
    pair.settle();
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, address);
    assert_eq!(pair.payloads(Side::One), [b"found you"]);
}

#[test]
fn a_keepalive_is_enough_to_be_found_by() {
    let mut pair = Pair::with(|two| two.persistent_keepalive = Some(seconds(10)), |_| ());
    pair.advance(seconds(1));
    let address = move_to(&mut pair, Side::One, "198.51.100.7:4000");
    pair.advance(seconds(11));
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, address);
}

#[test]
fn where_a_peer_flaps_to_is_looked_into_ten_times_a_second() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let end = pair.now + seconds(1);
    let mut flaps = 0;
    while pair.now < end {
        pair.send(Side::One, b"flap");
        let datagram = pair.wire.pop_back().unwrap();
        flaps += 1;
        pair.deliver(InFlight { from: SocketAddr::from(([203, 0, 113, 66], 1000 + flaps)), ..datagram });
        pair.advance(Duration::from_millis(1));
    }
    assert!((9..=14).contains(&pair.astray.len()), "{} of {flaps}", pair.astray.len());
    let (newest, _) = *pair.astray.last().unwrap();
    assert!(newest.port() > 1000 + flaps - 150, "the newest is what counts");
}

#[test]
fn what_was_held_back_of_an_older_session_moves_nothing() {
    let mut pair = Pair::with_devices(|_, config| (config.send_lanes, config.lane_paths) = (2, false));
    pair.connect(Side::One);
    // The newest of its lane in this session: all that follows is sent on another.
    send_on(&mut pair, Side::One, 1);
    let held_back = pair.wire.pop_back().unwrap();
    // Data both ways brings a successor.
    while pair.status(Side::Two).handshakes < 2 {
        pair.send(Side::One, b"there");
        pair.send(Side::Two, b"and back");
        pair.advance(seconds(1));
    }
    pair.settle();
    pair.events.clear();
    pair.delivered.clear();
    pair.deliver(InFlight { from: "203.0.113.66:66".parse().unwrap(), ..held_back });
    pair.advance(Duration::from_millis(200));
    assert_eq!(pair.payloads(Side::Two), [[1]], "it is still received");
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, Side::One.address());
    assert!(pair.astray.is_empty(), "{:?}", pair.astray);
}

#[test]
fn a_watched_peer_that_has_yet_to_prove_where_it_is_costs_few_looks_and_is_pinged_when_it_has() {
    let watch = |two: &mut PeerConfig| (two.watched, two.endpoints) = (true, Vec::new());
    let mut pair = Pair::with(watch, |_| ());
    pair.send(Side::Two, b"x");
    pair.advance(2 * LATENCY);
    let confirmation = pair.wire.pop_front().unwrap();
    pair.wire.clear();
    pair.lose = Box::new(|side, _| side == Side::Two);
    pair.deliver(InFlight { from: "203.0.113.66:66".parse().unwrap(), ..confirmation });
    assert!(pair.is_up(Side::One));
    assert_eq!(pair.status(Side::One).endpoint, None);
    let (mut looks, end) = (0, pair.now + seconds(1));
    while let Some((at, _)) = pair.one.poll_timeout().filter(|(at, _)| *at <= end) {
        pair.one.handle_timeout(at);
        (pair.now, looks) = (at, looks + 1);
    }
    assert!(looks <= 30, "{looks} in a second");
    pair.lose = Box::new(|_, _| false);
    pair.send(Side::Two, b"from where it is");
    pair.advance(seconds(1));
    assert_eq!(pair.status(Side::One).endpoint.unwrap().remote, Side::Two.address());
    assert!(pair.status(Side::One).pings > 0);
}

#[test]
fn nothing_is_taken_from_port_0() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let nowhere: SocketAddr = "203.0.113.66:0".parse().unwrap();
    pair.send(Side::One, b"x");
    let datagram = pair.wire.pop_front().unwrap();
    pair.deliver(InFlight { from: nowhere, ..datagram });
    pair.restart(Side::One, seconds(1_700_000_100));
    pair.send(Side::One, b"x");
    let initiation = pair.wire.pop_front().unwrap();
    pair.sent.clear();
    pair.deliver(InFlight { from: nowhere, ..initiation });
    assert_eq!(pair.refused, [(Side::Two, DropReason::Malformed); 2]);
    assert!(pair.sent.is_empty() && pair.astray.is_empty());
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
fn an_answer_goes_where_the_peer_was_until_it_has_answered_where_it_seems_to_be() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let address = move_to(&mut pair, Side::One, "198.51.100.7:4000");
    pair.send(Side::One, b"I moved");
    let datagram = pair.wire.pop_front().unwrap();
    let (endpoint, _) = answer_at_once(&mut pair, Side::Two, datagram);
    assert_eq!(endpoint, Side::One.address());
    pair.send(Side::One, b"I moved");
    pair.settle();
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, address);
}

#[test]
fn an_answer_to_a_peer_that_restarted_elsewhere_is_one_that_it_gets_and_can_open() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(seconds(20));
    let address = move_to(&mut pair, Side::One, "198.51.100.7:4000");
    pair.restart(Side::One, seconds(1_700_000_100));
    pair.send(Side::One, b"hello again");
    // Initiation and response; what follows is the first datagram of the new session.
    pair.advance(LATENCY * 2);
    let datagram = pair.wire.pop_front().unwrap();
    assert_eq!(datagram.to, Side::Two);
    let (endpoint, payload) = answer_at_once(&mut pair, Side::Two, datagram);
    assert_eq!(endpoint, address, "it has received our response there");
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
