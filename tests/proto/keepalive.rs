use std::time::Duration;

use underpass::proto::constants::{KEEPALIVE_TIMEOUT, UNANSWERED_TIMEOUT};
use underpass::proto::stats::LinkState;

use crate::pair::{LATENCY, Pair, Side, seconds};

#[test]
fn data_without_an_answer_is_answered_by_a_keepalive() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(seconds(30));
    pair.sent.clear();
    let sent_at = pair.now;
    pair.send(Side::One, b"x");
    pair.advance(KEEPALIVE_TIMEOUT + seconds(1));
    let keepalives = pair.transports(Side::Two);
    assert_eq!(keepalives.len(), 1);
    let waited = keepalives[0] - sent_at - LATENCY;
    assert!(waited >= KEEPALIVE_TIMEOUT - seconds(0) - LATENCY && waited <= KEEPALIVE_TIMEOUT + LATENCY, "{waited:?}");
}

#[test]
fn the_passive_keepalive_counts_from_the_first_unanswered_data_packet() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(seconds(30));
    pair.sent.clear();
    let first = pair.now;
    for _ in 0..25 {
        pair.send(Side::One, b"x");
        pair.advance(seconds(1));
    }
    let keepalives = pair.transports(Side::Two);
    assert_eq!(keepalives.len(), 2);
    assert!(keepalives[0] - first <= KEEPALIVE_TIMEOUT + LATENCY * 2);
}

#[test]
fn a_keepalive_does_not_answer_a_keepalive() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send(Side::One, b"x");
    pair.advance(seconds(170));
    // Two's keepalive for the data, nothing after it.
    assert_eq!(pair.transports(Side::One).len(), 1);
    assert_eq!(pair.transports(Side::Two).len(), 1);
}

#[test]
fn an_idle_session_is_silent_and_ends() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(KEEPALIVE_TIMEOUT * 2);
    pair.sent.clear();
    pair.advance(seconds(600));
    assert!(pair.sent.is_empty());
    assert_eq!(pair.status(Side::One).state, LinkState::Idle);
    assert!(pair.one.poll_timeout().is_none(), "nothing to wake up for");
}

#[test]
fn unanswered_data_starts_a_handshake() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(seconds(30));
    pair.lose = Box::new(|side, _| side == Side::Two);
    pair.sent.clear();
    let sent_at = pair.now;
    pair.send(Side::One, b"x");
    pair.advance(UNANSWERED_TIMEOUT + seconds(1));
    let initiations = pair.initiations(Side::One);
    assert!(!initiations.is_empty());
    assert!(initiations[0] - sent_at >= UNANSWERED_TIMEOUT - LATENCY);
}

#[test]
fn a_peer_that_restarted_is_met_again() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.restart(Side::Two, seconds(1_700_000_100));
    for number in 0..40u8 {
        pair.send(Side::One, &[number]);
        pair.advance(seconds(1));
    }
    let received = pair.payloads(Side::Two);
    assert!(received.len() >= 22, "lost more than the time until the session was found dead: {}", received.len());
}

#[test]
fn a_persistent_keepalive_connects_by_itself_and_keeps_the_session() {
    let interval = seconds(25);
    let mut pair = Pair::with(|two| two.persistent_keepalive = Some(interval), |_| ());
    pair.advance(seconds(1));
    assert!(pair.is_up(Side::One) && pair.is_up(Side::Two));
    for _ in 0..60 {
        pair.advance(seconds(10));
        assert!(pair.is_up(Side::One) && pair.is_up(Side::Two), "at {:?}", pair.now - pair.start);
    }
    let mut sent: Vec<_> = pair.sent.iter().filter(|(_, from, _)| *from == Side::One).map(|(at, ..)| *at).collect();
    sent.dedup();
    assert!(sent.windows(2).all(|pair| pair[1] - pair[0] <= interval + LATENCY * 4));
}

#[test]
fn a_persistent_keepalive_never_gives_up() {
    let mut pair = Pair::with(|two| two.persistent_keepalive = Some(seconds(25)), |_| ());
    pair.lose = Box::new(|_, _| true);
    pair.advance(seconds(3600));
    pair.lose = Box::new(|_, _| false);
    pair.advance(seconds(6));
    assert!(pair.is_up(Side::One));
}

#[test]
fn no_persistent_keepalive_while_data_flows() {
    let mut pair = Pair::with(|two| two.persistent_keepalive = Some(seconds(2)), |_| ());
    pair.advance(seconds(1));
    pair.sent.clear();
    for number in 0..100u8 {
        pair.send(Side::Two, &[number]);
        pair.send(Side::One, &[number]);
        pair.advance(seconds(1));
    }
    assert_eq!(pair.transports(Side::One).len(), 100);
}

#[test]
fn a_persistent_keepalive_of_zero_is_none() {
    let mut pair = Pair::with(|two| two.persistent_keepalive = Some(Duration::ZERO), |_| ());
    pair.advance(seconds(100));
    assert!(pair.sent.is_empty());
    assert!(pair.one.poll_timeout().is_none(), "nothing to wake up for");
}
