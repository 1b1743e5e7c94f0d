use std::time::Duration;

use underpass::proto::constants::PING_AFTER_DATA;
use underpass::proto::stats::LinkState;

use crate::pair::{LATENCY, Pair, Side, seconds};

#[test]
fn an_idle_session_is_silent_and_ends() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(PING_AFTER_DATA + seconds(1));
    pair.sent.clear();
    pair.advance(seconds(600));
    assert!(pair.sent.is_empty());
    assert_eq!(pair.status(Side::One).state, LinkState::Idle);
    assert!(pair.one.poll_timeout().is_none(), "nothing to wake up for");
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
    assert!(received.len() >= 38, "lost more than the time until the session was found dead: {}", received.len());
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
