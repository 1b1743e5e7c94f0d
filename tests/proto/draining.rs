//! A side that drains says so to the other, which calls the link draining as if its own operator had.

use std::time::Duration;

use underpass::proto::constants::{LIVENESS_INTERVAL, PONGS_TO_UNDRAIN};
use underpass::proto::stats::{LinkReason, LinkState};

use crate::pair::{LATENCY, Pair, Side, seconds};

const BY_PEER: (LinkState, Option<LinkReason>) = (LinkState::Draining, Some(LinkReason::DrainedByPeer));
const UP: (LinkState, Option<LinkReason>) = (LinkState::Up, None);

/// The proxy is side one, and watches its link.
fn pair() -> Pair {
    let mut pair = Pair::with(|two| two.watched = true, |_| ());
    pair.connect(Side::One);
    pair
}

fn link(pair: &mut Pair) -> (LinkState, Option<LinkReason>) {
    let status = pair.status(Side::One);
    (status.state, status.reason)
}

fn set_draining(pair: &mut Pair, draining: bool) {
    let now = pair.now;
    assert!(pair.two.set_draining(now, &Side::One.public_key(), draining));
}

#[test]
fn a_backend_that_drains_and_undrains_is_heard_in_one_way() {
    let mut pair = pair();
    for _ in 0..3 {
        set_draining(&mut pair, true);
        pair.advance(2 * LATENCY);
        assert_eq!(link(&mut pair), BY_PEER);
        pair.advance(seconds(5));
        assert_eq!(link(&mut pair), BY_PEER);
        set_draining(&mut pair, false);
        pair.advance(2 * LATENCY);
        assert_eq!(link(&mut pair), UP);
        pair.advance(seconds(5));
        assert_eq!(link(&mut pair), UP);
    }
}

#[test]
fn what_is_lost_is_said_again_with_the_next_pongs() {
    let mut pair = pair();
    for (draining, expected) in [(true, BY_PEER), (false, UP)] {
        pair.lose = Box::new(|side, _| side == Side::Two);
        set_draining(&mut pair, draining);
        pair.collect();
        pair.lose = Box::new(|_, _| false);
        pair.advance(2 * LIVENESS_INTERVAL);
        assert_eq!(link(&mut pair), expected);
    }
}

#[test]
fn a_new_session_changes_nothing() {
    let mut pair = pair();
    set_draining(&mut pair, true);
    pair.advance(seconds(1));
    let handshakes = pair.status(Side::One).handshakes;
    while pair.status(Side::One).handshakes == handshakes {
        pair.send(Side::Two, b"busy");
        pair.advance(Duration::from_millis(100));
        assert_eq!(link(&mut pair), BY_PEER);
    }
    // The proxy restarts, and knows nothing.
    pair.restart(Side::One, seconds(1_700_001_000));
    pair.send(Side::One, b"hello");
    pair.advance(6 * LATENCY);
    assert_eq!(link(&mut pair), BY_PEER);
}

#[test]
fn a_backend_that_has_restarted_drains_no_more() {
    let mut pair = pair();
    set_draining(&mut pair, true);
    pair.advance(seconds(1));
    pair.restart(Side::Two, seconds(1_700_001_000));
    pair.advance(seconds(10) + LIVENESS_INTERVAL * (PONGS_TO_UNDRAIN + 2));
    assert_eq!(link(&mut pair), UP);
}
