//! Lanes with paths of their own: the port of a lane follows on the one that its side listens on.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use underpass::packet::frame::{Control, Frame, Frames, packet_header};
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::{Ecn, TrafficClass};
use underpass::proto::constants::{
    LANE_PATH_LIFETIME, LANE_PING_INTERVAL, LANE_PINGS_UNANSWERED, LANE_PROBE_MAX_INTERVAL, PING_AFTER_DATA,
};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::event::Event;
use underpass::proto::transmit::{SourcePort, Transmit, Way};

use crate::pair::{InFlight, LATENCY, PING_DATAGRAM_LEN, Pair, Side, inner_packet, seconds};

/// A path that gives no answer is lost after so long at most, from whenever it fell silent, with a round trip to spare.
const NOTICED_AFTER: Duration = LANE_PING_INTERVAL.saturating_mul(LANE_PINGS_UNANSWERED as u32 + 2);

fn pair(lanes: [u8; 2]) -> Pair {
    Pair::with_devices(|side, config| config.send_lanes = lanes[side as usize])
}

/// With a session that side one has called for, and paths that were tried.
fn connected(lanes: [u8; 2]) -> Pair {
    let mut pair = pair(lanes);
    pair.connect(Side::One);
    pair
}

/// From where to where datagrams of a side's lane go.
fn way(pair: &mut Pair, side: Side, lane: u8) -> (SocketAddr, SocketAddr) {
    let now = pair.now;
    let router = pair.device(side).router();
    let way = router.route(now, IpAddr::from(side.other().inner())).unwrap().way(lane);
    let number = if let SourcePort::Lane(lane) = way.port { lane } else { 0 };
    (port(pair, side, number), way.endpoint.remote)
}

/// A lane's own port, or that which is listened on for lane 0.
fn port(pair: &Pair, side: Side, lane: u8) -> SocketAddr {
    let address = pair.addresses[side as usize];
    SocketAddr::new(address.ip(), address.port() + u16::from(lane))
}

/// A datagram of a side's lane, as the lane's worker seals it.
fn sealed(pair: &mut Pair, side: Side, lane: u8, frames: &[u8]) -> Vec<u8> {
    let now = pair.now;
    let mut payload = [&[0; TRANSPORT_HEADER_LEN], frames, &[0; TAG_LEN]].concat();
    let mut notices = Vec::new();
    let router = pair.device(side).router();
    router.route(now, side.other().inner().into()).unwrap().seal(now, lane, &mut payload, &mut notices).unwrap();
    for notice in notices {
        pair.device(side).handle_notice(now, notice);
    }
    payload
}

/// Sends a packet as a lane's worker does.
pub(crate) fn send_on(pair: &mut Pair, side: Side, lane: u8) {
    let packet = inner_packet(side.inner(), side.other().inner(), &[lane]);
    let now = pair.now;
    let way = pair.device(side).router().route(now, side.other().inner().into()).unwrap().way(lane);
    let payload = sealed(pair, side, lane, &[&packet_header(0, packet.len() as u16)[..], &packet].concat());
    let Way { endpoint, port, traffic_class } = way;
    pair.put_on_the_wire(side, Transmit { endpoint, port, traffic_class, payload, may_fragment: false });
}

/// Data on these lanes of each side, for so long.
fn talk(pair: &mut Pair, lanes: [&[u8]; 2], duration: Duration) {
    let end = pair.now + duration;
    while pair.now < end {
        for side in [Side::One, Side::Two] {
            for lane in lanes[side as usize] {
                send_on(pair, side, *lane);
            }
        }
        pair.advance(Duration::from_millis(50));
    }
}

/// Loses what passes between lane 1's port of side one and side two, in one direction or both.
fn black_hole(pair: &mut Pair, towards: &'static [Side]) {
    let own = port(pair, Side::One, 1);
    pair.lose_between =
        Box::new(move |from, to| towards.iter().any(|side| if *side == Side::Two { from == own } else { to == own }));
}

#[test]
fn each_lane_gets_a_path_of_its_own_within_a_round_trip_of_the_session() {
    let mut pair = connected([3, 3]);
    let listening = port(&pair, Side::Two, 0);
    for lane in 0..3 {
        let own = port(&pair, Side::One, lane);
        assert_eq!(way(&mut pair, Side::One, lane), (own, listening), "lane {lane}");
        assert_eq!(way(&mut pair, Side::Two, lane), (listening, own), "lane {lane}");
    }
}

#[test]
fn lanes_of_a_side_that_has_more_of_them_share_the_paths() {
    let mut pair = connected([2, 4]);
    let listening = port(&pair, Side::Two, 0);
    for lane in 0..4 {
        let own = port(&pair, Side::One, lane % 2);
        assert_eq!(way(&mut pair, Side::Two, lane), (listening, own), "lane {lane}");
    }
    let mut pair = connected([4, 2]);
    for lane in 0..2 {
        let own = port(&pair, Side::One, lane);
        assert_eq!(way(&mut pair, Side::Two, lane), (listening, own), "lane {lane}");
    }
}

/// What was sent on other lanes than the first.
fn datagrams_of_lanes(pair: &Pair) -> Vec<u8> {
    let lanes = pair.sent.iter().map(|(_, _, payload)| payload[1]);
    lanes.filter(|lane| *lane > 0).collect()
}

#[test]
fn the_endpoint_of_a_peer_is_that_of_its_lane_0() {
    let mut pair = connected([3, 3]);
    talk(&mut pair, [&[1, 2], &[1, 2]], seconds(3));
    let address = port(&pair, Side::One, 0);
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, address);
    pair.events.retain(|(_, event)| !matches!(event, Event::RoundTrip { .. }));
    assert!(pair.events.is_empty(), "{:?}", pair.events);
}

#[test]
fn one_lane_has_no_path_of_its_own_and_sends_no_probe() {
    let mut pair = connected([1, 3]);
    talk(&mut pair, [&[0], &[0, 1, 2]], seconds(5));
    let [one, two] = pair.addresses;
    for lane in 0..3 {
        assert_eq!(way(&mut pair, Side::Two, lane), (two, one));
    }
    assert!(datagrams_of_lanes(&pair).is_empty(), "nothing but data and what watches the link");
}

#[test]
fn a_side_that_does_not_know_paths_of_lanes_sees_none() {
    for unaware in [Side::One, Side::Two] {
        let mut pair = Pair::with_devices(|side, config| {
            config.send_lanes = 2;
            config.lane_paths = side != unaware;
        });
        pair.connect(Side::One);
        talk(&mut pair, [&[0, 1], &[0, 1]], seconds(5));
        let [one, two] = pair.addresses;
        assert_eq!((way(&mut pair, Side::One, 1), way(&mut pair, Side::Two, 1)), ((one, two), (two, one)));
        assert!(datagrams_of_lanes(&pair).is_empty(), "nothing but data and what watches the link");
    }
}

#[test]
fn a_lane_whose_path_falls_silent_takes_that_of_lane_0_and_returns_when_it_is_back() {
    let directions: [&[Side]; 3] = [&[Side::One], &[Side::Two], &[Side::One, Side::Two]];
    for towards in directions {
        for lanes in [[&[1][..], &[1]], [&[1], &[]], [&[], &[1]]] {
            let mut pair = connected([2, 2]);
            let [one, two] = pair.addresses;
            talk(&mut pair, lanes, seconds(2));
            black_hole(&mut pair, towards);
            talk(&mut pair, lanes, NOTICED_AFTER);
            let context = format!("{towards:?} {lanes:?}");
            assert_eq!(way(&mut pair, Side::One, 1), (one, two), "{context}");
            assert_eq!(way(&mut pair, Side::Two, 1), (two, one), "{context}");
            pair.delivered.clear();
            talk(&mut pair, lanes, seconds(1));
            let arrived = |side| pair.payloads(side).iter().filter(|payload| ***payload == [1]).count();
            let expected = |lanes: &[u8]| if lanes.is_empty() { 0 } else { 18 };
            assert!(arrived(Side::Two) >= expected(lanes[0]), "{context}");
            assert!(arrived(Side::One) >= expected(lanes[1]), "{context}");

            pair.lose_between = Box::new(|_, _| false);
            talk(&mut pair, lanes, LANE_PROBE_MAX_INTERVAL + seconds(1));
            let own = port(&pair, Side::One, 1);
            assert_eq!(way(&mut pair, Side::One, 1), (own, two), "{context}");
            assert_eq!(way(&mut pair, Side::Two, 1), (two, own), "{context}");
        }
    }
}

#[test]
fn a_path_that_is_closed_from_the_start_is_probed_ever_more_rarely() {
    let mut pair = pair([2, 2]);
    black_hole(&mut pair, &[Side::Two]);
    pair.connect(Side::One);
    let mut probes = Vec::new();
    let end = pair.now + seconds(40);
    while pair.now < end {
        let before = pair.sent.len();
        talk(&mut pair, [&[0], &[]], Duration::from_millis(50));
        // Beside probes only the keepalive of lane 0 is sent, and pongs.
        let probed = pair.sent[before..].iter().any(|(_, side, payload)| *side == Side::One && payload[1] == 1);
        probes.extend(probed.then_some(pair.now));
    }
    let waits: Vec<Duration> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits.windows(2).all(|pair| pair[1] + LANE_PING_INTERVAL >= pair[0]), "{waits:?}");
    assert!((5..12).contains(&probes.len()), "{waits:?}");
    assert!(waits[0] <= LANE_PING_INTERVAL * 2, "{waits:?}");
    let [one, two] = pair.addresses;
    assert_eq!(way(&mut pair, Side::One, 1), (one, two));
}

#[test]
fn a_short_silence_costs_no_path() {
    let mut pair = connected([2, 2]);
    talk(&mut pair, [&[1], &[1]], seconds(1));
    let (own, [_, two]) = (port(&pair, Side::One, 1), pair.addresses);
    pair.advance((PING_AFTER_DATA + LANE_PATH_LIFETIME) / 2);
    assert_eq!((way(&mut pair, Side::One, 1), way(&mut pair, Side::Two, 1)), ((own, two), (two, own)));
}

#[test]
fn each_of_many_lanes_keeps_its_path() {
    let lanes = [0, 1, 2, 3, 4, 5];
    let mut pair = connected([6, 6]);
    let listening = port(&pair, Side::Two, 0);
    for _ in 0..100 {
        talk(&mut pair, [&lanes, &lanes], Duration::from_millis(50));
        for lane in lanes {
            let own = port(&pair, Side::One, lane);
            assert_eq!(way(&mut pair, Side::One, lane), (own, listening), "lane {lane}");
        }
    }
}

#[test]
fn an_idle_link_is_not_pinged_and_its_paths_are_proven_anew_when_data_comes() {
    let mut pair = connected([2, 2]);
    talk(&mut pair, [&[1], &[1]], seconds(1));
    pair.advance(PING_AFTER_DATA + LANE_PATH_LIFETIME + seconds(1));
    let [one, two] = pair.addresses;
    assert_eq!((way(&mut pair, Side::One, 1), way(&mut pair, Side::Two, 1)), ((one, two), (two, one)));
    pair.sent.clear();
    pair.advance(seconds(60));
    let sent = pair.sent.iter().filter(|(_, _, payload)| payload[1] != 0).count();
    assert_eq!(sent, 0, "only what timers of the session send");
    talk(&mut pair, [&[], &[1]], seconds(2));
    let own = port(&pair, Side::One, 1);
    assert_eq!((way(&mut pair, Side::One, 1), way(&mut pair, Side::Two, 1)), ((own, two), (two, own)));
}

#[test]
fn all_lanes_follow_a_peer_that_roams_whichever_carry_data() {
    for lanes in [[&[1][..], &[1]], [&[1], &[]], [&[0], &[0]]] {
        let mut pair = connected([2, 2]);
        talk(&mut pair, lanes, seconds(1));
        pair.addresses[Side::One as usize] = "198.51.100.7:4000".parse().unwrap();
        talk(&mut pair, lanes, seconds(1));
        let [one, two] = pair.addresses;
        let own = port(&pair, Side::One, 1);
        assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, one);
        assert_eq!((way(&mut pair, Side::Two, 0), way(&mut pair, Side::Two, 1)), ((two, one), (two, own)), "{lanes:?}");
    }
}

#[test]
fn paths_to_a_peer_that_roams_are_proven_anew() {
    let mut pair = connected([2, 2]);
    talk(&mut pair, [&[1], &[1]], seconds(1));
    pair.addresses[Side::Two as usize] = "198.51.100.7:4000".parse().unwrap();
    send_on(&mut pair, Side::Two, 1);
    pair.advance(3 * LATENCY);
    let [one, two] = pair.addresses;
    assert_eq!(way(&mut pair, Side::One, 1), (one, two), "not proven to the new endpoint");
    talk(&mut pair, [&[1], &[1]], seconds(2));
    let own = port(&pair, Side::One, 1);
    assert_eq!((way(&mut pair, Side::One, 1), way(&mut pair, Side::Two, 1)), ((own, two), (two, own)));
}

#[test]
fn a_lane_whose_translation_changes_is_followed() {
    let mut pair = connected([2, 2]);
    talk(&mut pair, [&[1], &[1]], seconds(1));
    send_on(&mut pair, Side::One, 1);
    let moved: SocketAddr = "192.0.2.1:51963".parse().unwrap();
    let datagram = pair.wire.pop_back().unwrap();
    pair.deliver(InFlight { from: moved, ..datagram });
    pair.advance(2 * LATENCY);
    assert_eq!(way(&mut pair, Side::Two, 1).1, moved);
    let one = pair.addresses[0];
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, one);
}

#[test]
fn whoever_passes_a_lanes_datagrams_on_draws_nothing() {
    let stranger: SocketAddr = "203.0.113.66:66".parse().unwrap();
    let mut pair = connected([2, 2]);
    talk(&mut pair, [&[1], &[1]], seconds(1));
    let own = port(&pair, Side::One, 1);
    for _ in 0..20 {
        send_on(&mut pair, Side::One, 1);
        let datagram = pair.wire.pop_back().unwrap();
        pair.deliver(InFlight { from: stranger, ..datagram.clone() });
        assert_eq!(way(&mut pair, Side::Two, 1).1, own);
        pair.deliver(datagram);
        pair.advance(Duration::from_millis(10));
    }
    assert_eq!(pair.astray, [(stranger, PING_DATAGRAM_LEN); 2], "a question in each interval");
}

/// A datagram of side one with nothing but `control`.
fn sealed_control(pair: &mut Pair, lane: u8, control: Control) -> Vec<u8> {
    let mut frame = Vec::new();
    control.encode(&mut frame);
    sealed(pair, Side::One, lane, &frame)
}

#[test]
fn a_ping_that_was_overtaken_and_comes_from_elsewhere_is_answered_where_the_peer_is() {
    let elsewhere = Endpoint::new("203.0.113.66:66".parse().unwrap());
    for (lane, lane_paths) in [(0, true), (1, false)] {
        let mut pair = Pair::with_devices(|_, config| (config.send_lanes, config.lane_paths) = (2, lane_paths));
        pair.connect(Side::One);
        let mut ping = sealed_control(&mut pair, lane, Control::Ping(7));
        send_on(&mut pair, Side::One, lane);
        pair.advance(LATENCY);
        let (now, [one, _]) = (pair.now, pair.addresses);
        let two = pair.device(Side::Two);
        two.handle_datagram(now, elsewhere, Ecn::NotEct, &mut ping).unwrap();
        let remotes: Vec<_> = std::iter::from_fn(|| two.poll_transmit()).map(|pong| pong.endpoint.remote).collect();
        assert_eq!(remotes, [one], "lane {lane}");
    }
}

#[test]
fn a_probe_from_elsewhere_moves_nothing() {
    let mut pair = connected([2, 2]);
    let now = pair.now;
    let payload = sealed_control(&mut pair, 1, Control::Probe(7));
    let before = way(&mut pair, Side::Two, 1);
    let elsewhere: SocketAddr = "192.0.2.1:51960".parse().unwrap();
    pair.deliver(InFlight {
        arrives_at: now,
        to: Side::Two,
        from: elsewhere,
        to_second: false,
        traffic_class: TrafficClass::default(),
        payload,
    });
    assert_eq!(way(&mut pair, Side::Two, 1), before);
    let mut pong = pair.wire.pop_back().unwrap();
    let mut notices = Vec::new();
    let router = pair.device(Side::One).router();
    let opened = router.open(now, Endpoint::new(pong.from), Ecn::NotEct, &mut pong.payload, &mut notices).unwrap();
    let frames: Vec<_> = Frames::new(opened.plaintext).collect();
    assert_eq!(frames, [Ok(Frame::Control(Control::Pong(7)))]);
}

#[test]
fn a_peer_that_restarts_is_not_sought_at_the_ports_of_its_former_life() {
    let mut pair = connected([2, 2]);
    talk(&mut pair, [&[1], &[1]], seconds(1));
    // Two watches the link no more, and would not find out by itself; the path is not yet forgotten.
    pair.advance(PING_AFTER_DATA + LANE_PING_INTERVAL);
    pair.restart_as(Side::One, seconds(1_700_000_100), |config| config.send_lanes = 2);
    // Its ports are closed to what comes in, so nothing of the new life can be proven.
    black_hole(&mut pair, &[Side::One]);
    pair.advance(seconds(1));
    pair.send(Side::One, b"back again");
    pair.settle();
    let [one, two] = pair.addresses;
    assert_eq!(way(&mut pair, Side::Two, 1), (two, one));
}

#[test]
fn a_rekey_keeps_the_paths_and_one_by_the_other_side_opens_its_own() {
    let mut pair = connected([2, 2]);
    talk(&mut pair, [&[1], &[1]], seconds(1));
    let [one, two] = pair.addresses;
    let own = port(&pair, Side::One, 1);
    let end = pair.now + seconds(140);
    while pair.now < end {
        talk(&mut pair, [&[1], &[1]], Duration::from_millis(50));
        assert_eq!((way(&mut pair, Side::One, 1), way(&mut pair, Side::Two, 1)), ((own, two), (two, own)));
    }
    assert!(!pair.initiations(Side::One).is_empty(), "no rekey");

    pair.restart_as(Side::Two, seconds(1_700_000_200), |config| config.send_lanes = 2);
    pair.connect(Side::Two);
    let own = port(&pair, Side::Two, 1);
    assert_eq!((way(&mut pair, Side::Two, 1), way(&mut pair, Side::One, 1)), ((own, one), (one, own)));
    talk(&mut pair, [&[1], &[1]], seconds(3));
    assert_eq!((way(&mut pair, Side::Two, 1), way(&mut pair, Side::One, 1)), ((own, one), (one, own)));
    assert_eq!(pair.status(Side::One).endpoint.unwrap().remote, two);
}
