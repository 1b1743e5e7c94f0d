use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use underpass::keys::PresharedKey;
use underpass::packet::message::{MAC_LEN, TRANSPORT_OVERHEAD};
use underpass::proto::constants::{
    ALTERNATIVE_DELAY, DEGRADED_ABOVE_LOSS, LIVENESS_INTERVAL, LIVENESS_PINGS_PER_SECOND, MIN_INITIATION_INTERVAL,
    PING_AFTER_DATA, PREFERRED_PONGS, PREFERRED_PROBE_INTERVAL, REPEAT_FOR, REPEAT_INTERVAL, RETRY_JITTER,
};
use underpass::proto::device::Device;
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::{DropReason, Miss};
use underpass::proto::event::Event;
use underpass::proto::peer::PeerConfig;
use underpass::proto::randomness::Entropy;
use underpass::proto::router::{Notice, Seen};
use underpass::proto::stats::{LinkReason, LinkState, RouteFault};

use crate::pair::{InFlight, LATENCY, PING_DATAGRAM_LEN, Pair, Side, UNIX_TIME, device_config, peer_config, seconds};

/// What a load balancer may wait for at most.
const SOON: Duration = Duration::from_millis(750);

/// Side one is a proxy that watches its link to side two.
fn watched() -> Pair {
    watched_with(|_| ())
}

fn watched_with(change: impl FnOnce(&mut PeerConfig)) -> Pair {
    let mut pair = Pair::with(
        |two| {
            two.watched = true;
            change(two);
        },
        |one| one.endpoints = Vec::new(),
    );
    pair.advance(seconds(1));
    assert!(pair.is_up(Side::One), "{:?}", pair.status(Side::One));
    pair.events.clear();
    pair.sent.clear();
    pair
}

/// A watched link of which side one's datagrams are lost, but for those that `pass` says of, by their number.
fn calling(pass: fn(usize) -> bool) -> Pair {
    let mut pair = Pair::with(|two| two.watched = true, |one| one.endpoints = Vec::new());
    let mut number = 0;
    pair.lose = Box::new(move |side, _| {
        number += usize::from(side == Side::One);
        side == Side::One && !pass(number)
    });
    pair
}

#[test]
fn an_initiation_for_a_watched_link_is_repeated_for_three_seconds() {
    let mut pair = calling(|_| false);
    pair.advance(seconds(10));
    let sent = pair.initiations(Side::One);
    let waits: Vec<Duration> = sent.windows(2).map(|sent| sent[1] - sent[0]).collect();
    let (hasty, patient): (Vec<_>, Vec<_>) =
        waits.iter().zip(&sent).partition(|(_, at)| **at < pair.start + REPEAT_FOR);
    let is_hasty = |wait: &Duration| (REPEAT_INTERVAL..REPEAT_INTERVAL * 4 / 3).contains(wait);
    let regular = hasty.iter().filter(|(wait, _)| is_hasty(wait)).count();
    // But for retries, which come between them.
    assert!(hasty.iter().all(|(wait, _)| **wait < REPEAT_INTERVAL * 4 / 3) && regular + 6 > hasty.len(), "{hasty:?}");
    assert!(hasty.len() > 22, "only {} within {REPEAT_FOR:?}", hasty.len());
    assert!(patient.iter().skip(1).all(|(wait, _)| **wait >= seconds(1)), "{patient:?}");
    assert!(bodies(&pair).len() < 13, "{} are new in everything", bodies(&pair).len());
}

/// What was sent, without MACs, each once.
fn bodies(pair: &Pair) -> BTreeSet<&[u8]> {
    pair.sent.iter().map(|(_, _, payload)| &payload[..payload.len() - 2 * MAC_LEN]).collect()
}

#[test]
fn a_repeated_initiation_is_answered_and_repeated_no_more() {
    let mut pair = calling(|number| number >= 2);
    pair.advance(seconds(2));
    assert!(pair.is_up(Side::One), "{:?}", pair.status(Side::One));
    let sent = pair.initiations(Side::One);
    assert_eq!(sent.len(), 2);
    assert!((REPEAT_INTERVAL..REPEAT_INTERVAL * 4 / 3).contains(&(sent[1] - sent[0])));
    assert_eq!(pair.refused, []);
}

/// Side one is a backend with an endpoint, side two a proxy, which watches the link and may have one too.
fn backend_connects(proxy_has_endpoint: bool) -> Pair {
    let connecting = |two: &mut PeerConfig| two.connects = true;
    let proxy = |one: &mut PeerConfig| {
        one.watched = true;
        one.connects = proxy_has_endpoint;
        one.endpoints.truncate(usize::from(proxy_has_endpoint));
    };
    let mut pair = Pair::with(connecting, proxy);
    pair.advance(seconds(2));
    pair
}

#[test]
fn whoever_has_an_endpoint_connects_and_both_sides_that_have_one_come_to_one_session() {
    for proxy_has_endpoint in [false, true] {
        let mut pair = backend_connects(proxy_has_endpoint);
        assert!(pair.is_up(Side::One) && pair.is_up(Side::Two));
        assert_eq!(
            [Side::One, Side::Two].map(|side| pair.initiations(side).len()),
            [1, usize::from(proxy_has_endpoint)]
        );
        pair.sent.clear();
        pair.events.clear();
        pair.advance(seconds(100));
        let pings = |side| {
            pair.sent.iter().filter(|(_, from, payload)| *from == side && payload.len() == PING_DATAGRAM_LEN).count()
        };
        // The proxy's pings and the backend's pongs, at the pace of one side that watches.
        let expected = 100_000 / LIVENESS_INTERVAL.as_millis() as usize;
        for side in [Side::One, Side::Two] {
            assert!((expected - 10..expected + 10).contains(&pings(side)), "{side:?}: {}", pings(side));
        }
        pair.advance(seconds(900));
        assert!(pair.is_up(Side::One) && pair.is_up(Side::Two));
        let changes = pair.events.iter().filter(|(_, event)| matches!(event, Event::LinkChanged { .. })).count();
        assert_eq!(changes, 0, "the session is renewed in time: {:?}", pair.events);
    }
}

#[test]
fn a_backend_that_connects_finds_a_proxy_that_has_restarted_without_a_word_and_does_not_know_where_it_is() {
    let mut pair = backend_connects(false);
    let now = pair.now;
    let entropy = Entropy::seeded([99; 32]);
    pair.two = Device::new(now, UNIX_TIME + seconds(100), device_config(Side::Two), entropy);
    pair.two.upsert_peer(now, PeerConfig { watched: true, endpoints: Vec::new(), ..peer_config(Side::One) });
    let took = until(&mut pair, "up again", |pair| pair.status(Side::Two).state == LinkState::Up);
    assert!(took < seconds(4), "{took:?}");
}

fn link(pair: &mut Pair) -> (LinkState, Option<LinkReason>) {
    let status = pair.status(Side::One);
    (status.state, status.reason)
}

/// The changes of the link that side one has told of.
fn told(pair: &Pair) -> Vec<(LinkState, Option<LinkReason>)> {
    let changes = pair.events.iter().filter_map(|(side, event)| match event {
        Event::LinkChanged { state, reason, .. } if *side == Side::One => Some((*state, *reason)),
        _ => None,
    });
    changes.collect()
}

/// Advances until `done`, and returns how long it took.
fn until(pair: &mut Pair, what: &str, done: impl Fn(&mut Pair) -> bool) -> Duration {
    let start = pair.now;
    while !done(pair) {
        assert!(pair.now - start < seconds(60), "{what}: {:?}", pair.status(Side::One));
        pair.advance(Duration::from_millis(1));
    }
    pair.now - start
}

/// Repeatable, and the same for every run.
fn lose_share(pair: &mut Pair, percent: u64, seed: u64) {
    let mut state = seed;
    pair.lose = Box::new(move |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 100 < percent
    });
}

#[test]
fn a_watched_link_comes_up_without_traffic_and_stays_up() {
    let mut pair = watched();
    pair.advance(seconds(1_000));
    assert_eq!(link(&mut pair), (LinkState::Up, None));
    assert_eq!(told(&pair), []);
    let status = pair.status(Side::One);
    assert!(status.handshakes > 5, "its sessions are renewed");
    assert_eq!((status.round_trip, status.pings_lost), (Some(LATENCY * 2), 0));
}

#[test]
fn a_peer_that_falls_silent_is_down_soon_and_up_again_soon() {
    for phase in 0..20 {
        let mut pair = watched();
        pair.advance(Duration::from_millis(phase * 10));
        pair.lose = Box::new(|side, _| side == Side::Two);
        let took = until(&mut pair, "down", |pair| link(pair) == (LinkState::Down, Some(LinkReason::Unanswered)));
        assert!(took < SOON, "{took:?}");
        pair.advance(seconds(20));
        pair.lose = Box::new(|_, _| false);
        let took = until(&mut pair, "up", |pair| link(pair) == (LinkState::Up, None));
        assert!(took < MIN_INITIATION_INTERVAL + RETRY_JITTER + LATENCY * 4, "{took:?}");
        assert_eq!(told(&pair), [(LinkState::Down, Some(LinkReason::Unanswered)), (LinkState::Up, None)]);
    }
}

#[test]
fn a_peer_that_restarted_is_met_again_within_a_second_whichever_side_notices() {
    for by_data in [false, true] {
        let mut pair = watched();
        pair.restart(Side::Two, seconds(1_700_000_100));
        if by_data {
            pair.send(Side::Two, b"I am back");
        }
        let took = until(&mut pair, "a new session", |pair| pair.is_up(Side::Two));
        assert!(took < seconds(1), "{took:?}");
    }
}

#[test]
fn a_peer_that_calls_is_up_with_its_first_data() {
    let mut pair = watched();
    pair.lose = Box::new(|_, _| true);
    let end = pair.now + seconds(5);
    while pair.now < end {
        pair.send(Side::Two, b"is anybody there?");
        pair.advance(Duration::from_millis(50));
    }
    assert_eq!(pair.status(Side::Two).reason, Some(LinkReason::Unanswered));
    pair.lose = Box::new(|_, _| false);
    pair.wire.clear();
    pair.restart(Side::One, UNIX_TIME + seconds(100));
    pair.send(Side::One, b"back");
    pair.advance(LATENCY * 3);
    assert!(pair.is_up(Side::Two), "{:?}", pair.status(Side::Two));
}

#[test]
fn random_loss_of_5_percent_is_no_reason_for_a_change_in_an_hour() {
    let mut pair = watched();
    lose_share(&mut pair, 5, 7);
    pair.advance(seconds(3_600));
    assert_eq!(told(&pair), []);
    let loss = pair.status(Side::One).loss;
    assert!(loss > 0.02 && loss < 0.25, "{loss}");
}

#[test]
fn a_link_that_loses_much_is_degraded_until_it_does_no_more() {
    let mut pair = watched();
    lose_share(&mut pair, 22, 7);
    pair.advance(seconds(60));
    assert_eq!(link(&mut pair), (LinkState::Degraded, Some(LinkReason::Loss)));
    assert!(pair.status(Side::One).loss > DEGRADED_ABOVE_LOSS / 2.0);
    assert_eq!(told(&pair), [(LinkState::Degraded, Some(LinkReason::Loss))], "it is told once");
    pair.lose = Box::new(|_, _| false);
    pair.advance(seconds(60));
    assert_eq!(link(&mut pair), (LinkState::Up, None));
}

#[test]
fn many_links_are_pinged_more_rarely() {
    let mut pair = watched();
    for (strangers, interval) in [(0, LIVENESS_INTERVAL), (999, seconds(1_000) / LIVENESS_PINGS_PER_SECOND)] {
        pair.add_strangers(strangers);
        pair.sent.clear();
        pair.advance(interval * 50);
        let pings = pair.sent.iter().filter(|(_, side, _)| *side == Side::One).count();
        assert!((49..=51).contains(&pings), "{pings} among {strangers}");
    }
}

#[test]
fn a_goodbye_is_told_at_once_and_the_peer_sought_until_it_is_back() {
    let mut pair = watched();
    let now = pair.now;
    pair.two.shutdown(now);
    pair.settle();
    assert_eq!(link(&mut pair), (LinkState::Down, Some(LinkReason::Goodbye)));
    pair.lose = Box::new(|_, _| true);
    pair.advance(seconds(30));
    assert_eq!(link(&mut pair), (LinkState::Down, Some(LinkReason::Goodbye)));
    pair.lose = Box::new(|_, _| false);
    pair.restart(Side::Two, seconds(1_700_000_100));
    let took = until(&mut pair, "up", |pair| pair.is_up(Side::One));
    assert!(took < MIN_INITIATION_INTERVAL + RETRY_JITTER + LATENCY * 4, "{took:?}");
}

#[test]
fn packets_for_a_link_that_is_down_are_refused_at_once() {
    let mut pair = watched();
    let route = |pair: &mut Pair| {
        let now = pair.now;
        pair.one.router().route(now, Side::Two.inner().into()).map(drop)
    };
    assert_eq!(route(&mut pair), Ok(()));
    pair.lose = Box::new(|_, _| true);
    until(&mut pair, "down", |pair| link(pair).0 == LinkState::Down);
    assert_eq!(route(&mut pair), Err(Miss::Drop(DropReason::LinkDown)));
    pair.advance(seconds(300));
    assert_eq!(link(&mut pair), (LinkState::Down, Some(LinkReason::NoHandshake)), "its session has ended");
    assert_eq!(route(&mut pair), Err(Miss::Drop(DropReason::LinkDown)));
    pair.lose = Box::new(|_, _| false);
    pair.advance(seconds(6));
    assert_eq!(route(&mut pair), Ok(()));
}

#[test]
fn what_waits_for_a_peer_that_turns_out_to_be_away_is_dropped_as_soon_as_more_would_be_refused() {
    let mut pair = calling(|_| false);
    pair.send(Side::One, b"waits");
    let refuses = |pair: &mut Pair| {
        let now = pair.now;
        let route = pair.one.router().route(now, Side::Two.inner().into()).map(drop);
        route == Err(Miss::Drop(DropReason::LinkDown))
    };
    let dropped = |pair: &mut Pair| pair.one.status(pair.now).drops.of(DropReason::LinkDown);
    assert_eq!((refuses(&mut pair), dropped(&mut pair)), (false, 0));
    until(&mut pair, "dropped", |pair| dropped(pair) > 0 || refuses(pair));
    assert_eq!((refuses(&mut pair), dropped(&mut pair)), (true, 1));
    assert_eq!(bodies(&pair).len(), 3, "two were not answered");
}

#[test]
fn a_drained_link_carries_on_and_is_called_draining_until_undrained() {
    let mut pair = watched();
    let (now, key) = (pair.now, Side::Two.public_key());
    assert!(pair.one.set_draining(now, &key, true));
    assert_eq!(link(&mut pair), (LinkState::Draining, Some(LinkReason::Drained)));
    pair.send(Side::One, b"still carried");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"still carried"]);
    pair.lose = Box::new(|_, _| true);
    pair.advance(seconds(1));
    assert_eq!(link(&mut pair).0, LinkState::Down);
    pair.lose = Box::new(|_, _| false);
    pair.advance(seconds(2));
    assert_eq!(link(&mut pair).0, LinkState::Draining, "the wish outlives an outage");
    let now = pair.now;
    assert!(pair.one.set_draining(now, &key, false));
    assert_eq!(link(&mut pair), (LinkState::Up, None));
    assert!(!pair.one.set_draining(now, &Side::One.public_key(), true), "nobody by that key");
}

#[test]
fn a_link_whose_traffic_the_routes_keep_from_the_tunnel_is_down_and_carries_on() {
    let mut pair = watched();
    let key = Side::Two.public_key();
    let set = |pair: &mut Pair, fault| {
        let now = pair.now;
        assert!(pair.one.set_route_fault(now, &key, fault));
        link(pair)
    };
    let (down, degraded) = ((LinkState::Down, Some(LinkReason::Route)), (LinkState::Degraded, Some(LinkReason::Route)));
    assert_eq!(set(&mut pair, Some(RouteFault::Part)), degraded);
    assert_eq!(set(&mut pair, Some(RouteFault::Addresses)), down);
    pair.send(Side::One, b"still carried");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"still carried"]);
    let now = pair.now;
    assert!(pair.one.set_draining(now, &key, true));
    assert_eq!(link(&mut pair), down, "no new connection arrives there, drained or not");
    assert_eq!(set(&mut pair, Some(RouteFault::Part)).0, LinkState::Draining);
    let now = pair.now;
    assert!(pair.one.set_draining(now, &key, false));
    assert_eq!(set(&mut pair, None), (LinkState::Up, None));
    assert_eq!(told(&pair).first(), Some(&degraded));
    assert!(!pair.one.set_route_fault(now, &Side::One.public_key(), None), "nobody by that key");
}

#[test]
fn an_idle_link_whose_traffic_the_routes_keep_from_the_tunnel_is_down() {
    let mut pair = Pair::new();
    let (now, key) = (pair.now, Side::Two.public_key());
    assert!(pair.one.set_route_fault(now, &key, Some(RouteFault::Part)));
    assert_eq!(link(&mut pair), (LinkState::Idle, Some(LinkReason::NoTraffic)));
    assert!(pair.one.set_route_fault(now, &key, Some(RouteFault::Addresses)));
    assert_eq!(link(&mut pair), (LinkState::Down, Some(LinkReason::Route)));
}

#[test]
fn an_answer_with_other_keys_is_told() {
    let mut pair = Pair::with(
        |two| {
            two.watched = true;
            two.preshared_key = PresharedKey::from_bytes([9; 32]).ok();
        },
        |_| (),
    );
    pair.advance(seconds(3));
    assert_eq!(link(&mut pair), (LinkState::Down, Some(LinkReason::KeyRefused)));
}

#[test]
fn an_unwatched_link_is_pinged_while_data_passes_only() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(PING_AFTER_DATA + seconds(1));
    pair.sent.clear();
    pair.send(Side::One, b"x");
    pair.advance(PING_AFTER_DATA + seconds(1));
    let pings =
        pair.sent.iter().filter(|(_, side, bytes)| *side == Side::One && bytes.len() == PING_DATAGRAM_LEN).count();
    let expected = PING_AFTER_DATA.as_millis() / LIVENESS_INTERVAL.as_millis();
    // Pings and pongs of one side.
    assert!((pings as u128).abs_diff(expected * 2) <= 4, "{pings}");
    pair.sent.clear();
    pair.advance(seconds(60));
    assert!(pair.sent.is_empty());
}

#[test]
fn who_carries_data_tells_of_it_until_it_is_known_and_again_after_a_silence() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let notices = |pair: &mut Pair| {
        let (now, mut notices) = (pair.now, Vec::new());
        let router = pair.one.router();
        let route = router.route(now, Side::Two.inner().into()).unwrap();
        route.seal(now, 0, &mut [0; TRANSPORT_OVERHEAD], &mut notices).unwrap();
        notices
    };
    assert_eq!(notices(&mut pair), []);
    pair.advance(seconds(60));
    let told = notices(&mut pair);
    assert!(matches!(told[..], [Notice { seen: Seen::Resumed, .. }]), "{told:?}");
}

#[test]
fn a_machine_that_stood_still_does_not_take_that_for_silence() {
    let mut pair = watched();
    // Nothing is handled for ten seconds; then the timer comes before what the network has kept.
    pair.now += seconds(10);
    let now = pair.now;
    pair.one.handle_timeout(now);
    assert_eq!(link(&mut pair), (LinkState::Up, None));
    pair.advance(seconds(1));
    assert_eq!(told(&pair), []);
}

/// A second address of side two.
const SECOND: &str = "192.0.2.12:51900";

/// Side two has two endpoints; the first is preferred.
fn with_two_endpoints() -> Pair {
    let mut pair = watched_with(|two| two.endpoints.push(Endpoint::new(SECOND.parse().unwrap())));
    pair.second = Some(SECOND.parse().unwrap());
    pair
}

fn cut(pair: &mut Pair, endpoint: SocketAddr) {
    pair.lose_between = Box::new(move |from, to| from == endpoint || to == endpoint);
}

/// Where side one sends, and the answers of side two from where they were asked for: it listens at both.
fn endpoint(pair: &mut Pair) -> SocketAddr {
    pair.status(Side::One).endpoint.unwrap().remote
}

#[test]
fn traffic_moves_to_the_second_endpoint_within_a_second_without_a_new_session_and_back_when_the_first_is_steady() {
    let mut pair = with_two_endpoints();
    let (first, second): (SocketAddr, SocketAddr) = (Side::Two.address(), SECOND.parse().unwrap());
    assert_eq!(endpoint(&mut pair), first);
    cut(&mut pair, first);
    let took = until(&mut pair, "failover", |pair| endpoint(pair) == second);
    assert!(took < SOON, "{took:?}");
    pair.advance(seconds(60));
    assert_eq!((endpoint(&mut pair), link(&mut pair)), (second, (LinkState::Up, None)));
    assert!(told(&pair).is_empty(), "it was never down: {:?}", told(&pair));
    assert!(pair.initiations(Side::One).is_empty(), "its session goes on");
    pair.send(Side::One, b"by the second");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"by the second"]);

    let back: Instant = pair.now;
    pair.lose_between = Box::new(|_, _| false);
    until(&mut pair, "return", |pair| endpoint(pair) == first);
    let took = pair.now - back;
    assert!(took >= PREFERRED_PROBE_INTERVAL * (PREFERRED_PONGS - 2), "with hysteresis: {took:?}");
    pair.advance(seconds(60));
    assert_eq!(endpoint(&mut pair), first);
    assert!(told(&pair).is_empty());
}

/// What the second side sends arrives at the first from `from`.
fn send_from(pair: &mut Pair, from: SocketAddr) {
    pair.send(Side::Two, b"data");
    let sent: Vec<_> = pair.wire.drain(..).filter(|datagram| datagram.to == Side::One).collect();
    sent.into_iter().for_each(|datagram| pair.deliver(InFlight { from, ..datagram }));
}

/// Tells the first side that the second is at [`SECOND`] and nowhere else, as a new configuration or a resolved name does.
fn told_of_second(by_name: bool) -> Pair {
    let mut pair = Pair::new();
    pair.second = Some(SECOND.parse().unwrap());
    pair.connect(Side::One);
    let (now, endpoints) = (pair.now, vec![Endpoint::new(SECOND.parse().unwrap())]);
    if by_name {
        pair.one.set_endpoints(now, &Side::Two.public_key(), endpoints);
    } else {
        pair.one.upsert_peer(now, PeerConfig { endpoints, ..peer_config(Side::Two) });
    }
    pair
}

#[test]
fn what_was_under_way_from_where_a_peer_was_does_not_undo_what_was_told_of_it() {
    let second: SocketAddr = SECOND.parse().unwrap();
    for by_name in [false, true] {
        let mut pair = told_of_second(by_name);
        for from in [Side::Two.address(), second, Side::Two.address()] {
            send_from(&mut pair, from);
            assert_eq!(endpoint(&mut pair), second, "{by_name}");
        }
        assert_eq!(pair.payloads(Side::One).len(), 3, "it is taken nevertheless");
    }
}

#[test]
fn a_peer_that_is_not_where_was_told_is_found_where_it_was() {
    for by_name in [false, true] {
        let mut pair = told_of_second(by_name);
        cut(&mut pair, SECOND.parse().unwrap());
        pair.send(Side::One, b"anybody there?");
        let took = until(&mut pair, "it is found", |pair| {
            pair.send(Side::Two, b"here");
            endpoint(pair) == Side::Two.address()
        });
        assert!(took < 2 * SOON, "{took:?}");
    }
}

#[test]
fn what_was_under_way_by_another_endpoint_does_not_change_the_one_in_use_back() {
    let mut pair = with_two_endpoints();
    let first = Side::Two.address();
    for from in [SECOND.parse().unwrap(), first] {
        send_from(&mut pair, from);
        assert_eq!(endpoint(&mut pair), first);
    }
    assert_eq!(pair.payloads(Side::One).len(), 2, "it is taken nevertheless");
    assert!(!pair.events.iter().any(|(_, event)| matches!(event, Event::EndpointChanged { .. })));
    // Where it was never said to be, it can only have moved to.
    let elsewhere = "198.51.100.7:51900".parse().unwrap();
    pair.addresses[Side::Two as usize] = elsewhere;
    send_from(&mut pair, elsewhere);
    pair.advance(2 * LATENCY);
    assert_eq!(endpoint(&mut pair), elsewhere);
    // From there it may return.
    pair.addresses[Side::Two as usize] = first;
    send_from(&mut pair, first);
    assert_eq!(endpoint(&mut pair), first);
}

#[test]
fn a_peer_that_has_roamed_is_not_sought_where_it_was_configured() {
    let mut pair = with_two_endpoints();
    let elsewhere = "198.51.100.7:51900".parse().unwrap();
    pair.addresses[Side::Two as usize] = elsewhere;
    // It would answer at the preferred endpoint too.
    pair.second = Some(Side::Two.address());
    send_from(&mut pair, elsewhere);
    pair.advance(2 * LATENCY);
    assert_eq!(endpoint(&mut pair), elsewhere);
    pair.advance(seconds(60));
    assert_eq!((endpoint(&mut pair), link(&mut pair)), (elsewhere, (LinkState::Up, None)));
}

#[test]
fn an_initiation_goes_to_other_endpoints_after_a_delay_and_to_all_at_once_when_it_was_not_answered() {
    let mut pair = Pair::with(|two| two.endpoints.push(Endpoint::new(SECOND.parse().unwrap())), |_| ());
    pair.lose = Box::new(|_, _| true);
    pair.send(Side::One, b"anybody there?");
    pair.advance(seconds(10));
    let sent = pair.initiations(Side::One);
    assert!(sent.len() > 4, "{sent:?}");
    for (number, sent) in sent.chunks_exact(2).enumerate() {
        let delay = if number == 0 { ALTERNATIVE_DELAY } else { Duration::ZERO };
        assert_eq!(sent[1] - sent[0], delay, "{number}");
    }
    let bytes: usize = pair.sent.iter().map(|(.., payload)| payload.len()).sum();
    assert_eq!(pair.status(Side::One).sent_bytes, bytes as u64);
    assert_eq!(pair.one.footprint().session_indices, 1, "that of the newest");
}

#[test]
fn a_first_endpoint_that_is_dead_from_the_start_costs_a_fraction_of_a_second() {
    let mut pair = Pair::with(
        |two| {
            two.watched = true;
            two.endpoints.push(Endpoint::new(SECOND.parse().unwrap()));
        },
        |one| one.endpoints = Vec::new(),
    );
    pair.second = Some(SECOND.parse().unwrap());
    cut(&mut pair, Side::Two.address());
    let took = until(&mut pair, "up", |pair| pair.is_up(Side::One));
    assert!(took < Duration::from_millis(350), "{took:?}");
}

#[test]
fn eight_endpoints_that_do_not_answer_are_all_tried_and_get_less_than_20_datagrams_a_second() {
    let addresses: Vec<SocketAddr> = (1..=8).map(|number| SocketAddr::from(([203, 0, 113, number], 51900))).collect();
    let endpoints: Vec<Endpoint> = addresses.iter().copied().map(Endpoint::new).collect();
    let mut pair = Pair::with(
        |two| {
            two.watched = true;
            two.endpoints = endpoints;
        },
        |_| (),
    );
    pair.advance(seconds(1));
    let tried: BTreeSet<SocketAddr> = pair.destinations.iter().map(|(_, to)| *to).collect();
    assert_eq!(tried, addresses.into_iter().collect());
    pair.advance(seconds(120));
    let sent: Vec<Instant> = pair.destinations.iter().map(|(at, _)| *at).collect();
    let within_a_second = |first: &Instant| sent.iter().filter(|at| (*first..*first + seconds(1)).contains(at)).count();
    let most = sent.iter().map(within_a_second).max();
    assert!(most <= Some(20), "{most:?}");
}
