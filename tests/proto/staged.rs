use std::time::Duration;

use underpass::proto::constants::{MAX_STAGED_PACKETS, REJECT_AFTER_TIME};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::DropReason;

use crate::pair::{LATENCY, Pair, Side, inner_packet, peer_config, seconds};

#[test]
fn staged_packets_are_sent_in_order_and_the_oldest_gave_way() {
    let mut pair = Pair::new();
    let total = MAX_STAGED_PACKETS as u32 + 10;
    for number in 0..total {
        pair.send(Side::One, &number.to_be_bytes());
    }
    assert_eq!(pair.initiations(Side::One).len(), 1);
    pair.settle();
    let expected: Vec<Vec<u8>> = (10..total).map(|number| number.to_be_bytes().to_vec()).collect();
    assert_eq!(pair.payloads(Side::Two), expected);
    assert_eq!(pair.one.status(pair.now).drops.of(DropReason::StagedOverflow), 10);
}

#[test]
fn a_responders_staged_packets_wait_for_the_confirmation() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|side, _| side == Side::Two);
    pair.send(Side::Two, b"waiting");
    pair.advance(Duration::from_millis(100));
    pair.lose = Box::new(|_, _| false);
    pair.send(Side::One, b"calling");
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"waiting"]);
    assert_eq!(pair.payloads(Side::Two), [b"calling"]);
}

#[test]
fn without_an_endpoint_packets_are_refused_not_kept() {
    let mut pair = Pair::with(|two| two.endpoints = Vec::new(), |_| ());
    let packet = inner_packet(Side::One.inner(), Side::Two.inner(), b"x");
    assert_eq!(pair.send_packet(Side::One, packet), Err(DropReason::NoEndpoint));
}

#[test]
fn a_packet_for_a_peer_that_has_just_called_waits_for_its_first_data() {
    let mut pair = Pair::with(|_| (), |one| one.endpoints = Vec::new());
    pair.send(Side::One, b"calling");
    pair.advance(LATENCY);
    let packet = inner_packet(Side::Two.inner(), Side::One.inner(), b"answer");
    pair.send_packet(Side::Two, packet).unwrap();
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"answer"]);

    let mut pair = Pair::with(|_| (), |one| one.endpoints = Vec::new());
    pair.send(Side::One, b"calling");
    pair.advance(LATENCY);
    pair.lose = Box::new(|_, _| true);
    let packet = inner_packet(Side::Two.inner(), Side::One.inner(), b"too late");
    pair.send_packet(Side::Two, packet).unwrap();
    pair.wire.clear();
    pair.advance(REJECT_AFTER_TIME);
    assert_eq!(pair.two.status(pair.now).drops.of(DropReason::HandshakeGivenUp), 1);
}

#[test]
fn a_name_that_resolves_late_starts_the_handshake() {
    let mut pair = Pair::with(
        |two| {
            two.endpoints = Vec::new();
            two.persistent_keepalive = Some(seconds(25));
        },
        |one| one.endpoints = Vec::new(),
    );
    pair.advance(seconds(10));
    assert!(pair.sent.is_empty());
    let (now, endpoint) = (pair.now, peer_config(Side::Two).endpoints[0]);
    pair.one.set_endpoints(now, &Side::Two.public_key(), vec![endpoint]);
    pair.settle();
    assert!(pair.is_up(Side::One) && pair.is_up(Side::Two));
}

#[test]
fn a_name_that_resolves_anew_calls_nobody_who_is_not_wanted_and_no_sooner_than_the_next_try() {
    let elsewhere = Endpoint::new("192.0.2.9:51900".parse().unwrap());
    let initiations_after = |had_one: bool, wanted: bool, calls: bool| {
        let mut pair = Pair::with(
            |two| {
                two.persistent_keepalive = wanted.then(|| seconds(25));
                two.endpoints.truncate(usize::from(had_one));
            },
            |_| (),
        );
        pair.lose = Box::new(|_, _| true);
        if calls {
            pair.send(Side::One, b"x");
        }
        pair.advance(Duration::from_millis(100));
        let before = pair.initiations(Side::One).len();
        let now = pair.now;
        pair.one.set_endpoints(now, &Side::Two.public_key(), vec![elsewhere]);
        pair.collect();
        let at_once = pair.initiations(Side::One).len() - before;
        pair.advance(seconds(5));
        (at_once, pair.initiations(Side::One).len() > before)
    };
    assert_eq!(initiations_after(false, true, false), (1, true), "wanted, and nowhere so far");
    assert_eq!(initiations_after(false, false, false), (0, false), "not wanted");
    assert_eq!(initiations_after(true, false, false), (0, false), "not wanted, but known");
    assert_eq!(initiations_after(true, true, true), (0, true), "called already");
}
