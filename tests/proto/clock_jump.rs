use std::time::Duration;

use crate::pair::{InFlight, Pair, Side, seconds};

#[test]
fn a_clock_that_stands_still_makes_no_initiation_refusable() {
    let mut pair = Pair::new();
    // Both initiations are written in the same instant.
    pair.send(Side::One, b"x");
    let first = pair.wire.pop_front().unwrap();
    pair.one.set_private_key(pair.now, Side::One.private_key(), None);
    pair.advance(Duration::ZERO);
    pair.deliver(first);
    pair.advance(seconds(2));
    assert_eq!(pair.payloads(Side::Two), [b"x"]);
}

#[test]
fn a_wall_clock_that_steps_back_while_running_is_harmless() {
    // The wall clock is read once, at the start: only a restart can see it step back.
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(seconds(300));
    pair.send(Side::One, b"x");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"x"]);
}

#[test]
fn after_a_restart_with_an_earlier_wall_clock_the_other_side_can_still_connect() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    // Until nobody watches the link: two would miss one at once.
    pair.advance(seconds(4));
    pair.restart(Side::One, seconds(1_600_000_000));
    pair.advance(seconds(2));
    pair.send(Side::One, b"refused as a replay");
    pair.advance(seconds(3));
    assert!(pair.payloads(Side::Two).is_empty());
    for number in 0..20u8 {
        pair.send(Side::Two, &[number]);
        pair.advance(seconds(1));
    }
    assert!(pair.is_up(Side::One), "two's initiation is not judged by one's clock");
    assert_eq!(pair.payloads(Side::Two), [b"refused as a replay"]);
}

#[test]
fn time_that_seems_to_go_back_between_threads_does_not_panic() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send(Side::One, b"x");
    let datagram = pair.wire.pop_front().unwrap();
    pair.now -= Duration::from_millis(500);
    pair.deliver(InFlight { arrives_at: pair.now, ..datagram });
    let now = pair.now;
    pair.two.handle_timeout(now);
    assert_eq!(pair.payloads(Side::Two), [b"x"]);
}
