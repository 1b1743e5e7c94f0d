use std::time::Duration;

use underpass::packet::message::{Message, TRANSPORT_OVERHEAD};
use underpass::packet::traffic_class::Ecn;
use underpass::proto::constants::{
    REKEY_AFTER_TIME, REKEY_AFTER_TIME_RECEIVING, REKEY_JITTER, RETRY_INTERVALS, RETRY_JITTER,
};
use underpass::proto::endpoint::Endpoint;

use crate::pair::{Pair, Side, seconds};

const TICK: Duration = Duration::from_millis(250);

/// `from` sends a numbered packet every tick for `duration`; all must arrive, in order, once.
fn stream(pair: &mut Pair, from: Side, duration: Duration) {
    let ticks = (duration.as_millis() / TICK.as_millis()) as u32;
    for number in 0..ticks {
        pair.send(from, &number.to_be_bytes());
        pair.advance(TICK);
    }
    pair.settle();
    let expected: Vec<Vec<u8>> = (0..ticks).map(|number| number.to_be_bytes().to_vec()).collect();
    assert_eq!(pair.payloads(from.other()), expected);
}

#[test]
fn a_sending_initiator_rekeys_by_age_without_losing_a_packet() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let connected = pair.now;
    stream(&mut pair, Side::One, REKEY_AFTER_TIME + seconds(5));
    let initiations = pair.initiations(Side::One);
    assert_eq!(initiations.len(), 1);
    let age = initiations[0] - connected;
    assert!(age > REKEY_AFTER_TIME - REKEY_JITTER - seconds(1) && age < REKEY_AFTER_TIME + TICK * 2, "{age:?}");
    assert_eq!(pair.refused, []);
}

#[test]
fn a_successor_is_asked_for_at_a_random_time_within_the_jitter() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let mut waits = Vec::new();
    for _ in 0..8 {
        pair.advance(REKEY_AFTER_TIME + seconds(1));
        pair.sent.clear();
        let due = pair.now;
        pair.send(Side::One, b"x");
        pair.advance(REKEY_JITTER + seconds(1));
        waits.push(pair.initiations(Side::One)[0] - due);
    }
    assert!(waits.iter().all(|wait| *wait <= REKEY_JITTER), "{waits:?}");
    let (shortest, longest) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
    assert!(*longest - *shortest > REKEY_JITTER / 2, "{waits:?}");
}

#[test]
fn packets_go_on_in_the_old_session_while_its_successor_is_asked_for() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.lose = Box::new(|_, datagram| !matches!(Message::parse(datagram), Ok(Message::Transport(_))));
    stream(&mut pair, Side::One, REKEY_AFTER_TIME + REKEY_JITTER + seconds(20));
    assert!(pair.initiations(Side::One).len() > 5);
    assert!(pair.one.status(pair.now).drops.iter().all(|(_, number)| number == 0));
}

#[test]
fn the_responder_does_not_rekey_by_age() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    stream(&mut pair, Side::Two, REKEY_AFTER_TIME + seconds(5));
    assert_eq!(pair.initiations(Side::Two), []);
}

#[test]
fn an_initiator_that_only_receives_rekeys_before_the_end() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    // Its pings are sent with the session, so they ask for a rekey before.
    let connected = pair.now;
    stream(&mut pair, Side::Two, seconds(400));
    let initiations = pair.initiations(Side::One);
    assert!(initiations[0] - connected <= REKEY_AFTER_TIME_RECEIVING + TICK);
    assert!(initiations.len() >= 2 && initiations.len() <= 4, "{}", initiations.len());
}

#[test]
fn rekey_is_attempted_once_per_interval() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(REKEY_AFTER_TIME);
    pair.lose = Box::new(|_, _| true);
    pair.sent.clear();
    let due = pair.now;
    let send_many = |pair: &mut Pair| {
        for _ in 0..100 {
            pair.send(Side::One, b"x");
            pair.advance(Duration::from_millis(4));
        }
    };
    while pair.initiations(Side::One).is_empty() {
        assert!(pair.now < due + REKEY_JITTER + seconds(1));
        send_many(&mut pair);
    }
    pair.advance(RETRY_INTERVALS[0] + RETRY_JITTER);
    let of_one_attempt = pair.initiations(Side::One).len();
    send_many(&mut pair);
    assert_eq!(pair.initiations(Side::One).len(), of_one_attempt);
    assert!(of_one_attempt <= 2);
}

#[test]
fn the_old_session_receives_what_was_under_way() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(REKEY_AFTER_TIME - seconds(1));
    // Two's packet is on the wire while the new session is made.
    pair.send(Side::Two, b"late");
    let mut late = pair.wire.pop_front().unwrap();
    late.arrives_at = pair.now + REKEY_JITTER + seconds(1);
    pair.wire.push_back(late);
    let before = pair.status(Side::One).latest_handshake;
    pair.send(Side::One, b"rekey");
    pair.advance(REKEY_JITTER);
    assert_ne!(pair.status(Side::One).latest_handshake, before, "rekeyed meanwhile");
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"late"]);
    assert_eq!(pair.payloads(Side::Two), [b"rekey"]);
}

#[test]
fn a_snapshot_seals_with_the_successor_once_that_is_confirmed_whatever_came_in_the_old_session() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send(Side::One, b"late");
    let mut late = pair.wire.pop_front().unwrap().payload;
    pair.advance(REKEY_AFTER_TIME);
    pair.send(Side::One, b"rekey");
    let end = pair.now + REKEY_JITTER + seconds(1);
    let is_response = |payload: &[u8]| matches!(Message::parse(payload), Ok(Message::Response(_)));
    while !pair.wire.iter().any(|datagram| is_response(&datagram.payload)) {
        assert!(pair.now < end);
        pair.advance(Duration::from_millis(1));
    }
    let router = pair.two.router();
    let response = pair.wire.drain(..).find(|datagram| is_response(&datagram.payload)).unwrap();
    let Ok(Message::Response(parsed)) = Message::parse(&response.payload) else { unreachable!() };
    let index = parsed.receiver_index();
    pair.deliver(response.clone());
    let mut first = pair.wire.pop_front().unwrap().payload;

    let now = pair.now;
    let sealed_for = |datagram: &mut [u8]| {
        let mut notices = Vec::new();
        router.open(now, Endpoint::new(Side::One.address()), Ecn::NotEct, datagram, &mut notices).unwrap();
        let mut payload = [0; TRANSPORT_OVERHEAD];
        router.route(now, Side::One.inner().into()).unwrap().seal(now, 0, &mut payload, &mut notices).unwrap();
        let Ok(Message::Transport(header)) = Message::parse(&payload) else { unreachable!() };
        header.receiver_index
    };
    assert_ne!(sealed_for(&mut late), index);
    assert_eq!(sealed_for(&mut first), index);
}
