use underpass::packet::message::Message;
use underpass::proto::constants::{
    REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_AFTER_TIME_RECEIVING, REKEY_JITTER, RETRY_INTERVALS, RETRY_JITTER,
};
use underpass::proto::event::Event;
use underpass::proto::stats::LinkState;

use crate::pair::{Pair, Side, seconds};

#[test]
fn a_goodbye_ends_the_session_at_once_and_a_packet_makes_a_new_one() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let now = pair.now;
    pair.two.shutdown(now);
    pair.settle();
    assert_eq!(pair.status(Side::One).state, LinkState::Down);
    assert!(!format!("{:?}", pair.one.router()).contains("local_index"));
    pair.restart(Side::Two, seconds(1_700_000_100));
    pair.advance(seconds(1));
    pair.send(Side::One, b"welcome back");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"welcome back"]);
    assert_eq!(pair.status(Side::One).state, LinkState::Up);
}

#[test]
fn a_late_goodbye_does_not_end_a_newer_session() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let now = pair.now;
    pair.two.shutdown(now);
    pair.collect();
    let goodbye = pair.wire.pop_front().unwrap();
    pair.advance(seconds(2));
    pair.restart(Side::Two, seconds(1_700_000_100));
    pair.send(Side::Two, b"back again");
    pair.settle();
    pair.deliver(goodbye);
    assert!(pair.is_up(Side::One));
    assert!(pair.now - now < REJECT_AFTER_TIME, "the old session was still there to be ended");
}

#[test]
fn a_goodbye_while_a_rekey_is_due_asks_for_no_new_session() {
    // The one that goes would rekey by what it sends, the one that stays by what it receives.
    for (age, leaver) in [(REKEY_AFTER_TIME, Side::One), (REKEY_AFTER_TIME_RECEIVING, Side::Two)] {
        let mut pair = Pair::new();
        pair.connect(Side::One);
        pair.advance(age);
        let now = pair.now;
        pair.device(leaver).shutdown(now);
        pair.settle();
        assert_eq!(pair.status(leaver.other()).state, LinkState::Down);
        pair.advance(REKEY_JITTER);
        assert!(pair.initiations(Side::One).is_empty() && pair.initiations(Side::Two).is_empty());
    }
}

#[test]
fn a_goodbye_ends_the_attempt_to_replace_the_session() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(REKEY_AFTER_TIME);
    pair.lose = Box::new(|side, _| side == Side::One);
    pair.send(Side::One, b"x");
    pair.advance(REKEY_JITTER);
    assert!(!pair.initiations(Side::One).is_empty());
    let now = pair.now;
    pair.two.shutdown(now);
    pair.settle();
    assert!(!pair.status(Side::One).awaits_answer);
    pair.sent.clear();
    pair.advance(seconds(100));
    assert!(pair.sent.is_empty());
}

#[test]
fn a_goodbye_during_an_unfinished_handshake_counts() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(REKEY_AFTER_TIME);
    pair.lose = Box::new(|_, payload| matches!(Message::parse(payload), Ok(Message::Response(_))));
    pair.send(Side::One, b"rekey");
    pair.advance(REKEY_JITTER + RETRY_INTERVALS[0] + RETRY_JITTER);
    assert!(!pair.initiations(Side::One).is_empty(), "two has answered");
    let now = pair.now;
    pair.one.shutdown(now);
    pair.settle();
    assert_eq!(pair.status(Side::Two).state, LinkState::Down);
    assert!(pair.events.contains(&(Side::Two, Event::Goodbye { peer: Side::One.public_key() })));

    pair.lose = Box::new(|_, _| false);
    pair.advance(seconds(1));
    pair.send(Side::One, b"back again");
    pair.settle();
    assert_eq!(pair.status(Side::Two).state, LinkState::Up);
}
