use underpass::proto::constants::REJECT_AFTER_TIME;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::stats::LinkState;

use crate::pair::{Pair, Side, seconds};

#[test]
fn no_key_material_remains_after_a_sessions_end() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.advance(REJECT_AFTER_TIME);
    for side in [Side::One, Side::Two] {
        let router = pair.device(side).router();
        assert!(!format!("{router:?}").contains("Session {"), "{side:?} still has a session");
        assert_eq!(pair.status(side).state, LinkState::Idle);
    }
    let ended = |side: Side| (side, Event::SessionEnded { peer: side.other().public_key() });
    assert!(pair.events.contains(&ended(Side::One)) && pair.events.contains(&ended(Side::Two)));
}

#[test]
fn a_datagram_of_an_ended_session_is_dropped() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair.send(Side::One, b"x");
    let datagram = pair.wire.pop_front().unwrap();
    pair.advance(REJECT_AFTER_TIME);
    pair.deliver(datagram);
    assert_eq!(pair.refused, [(Side::Two, DropReason::UnknownSession)]);
}

#[test]
fn a_snapshot_that_was_not_replaced_seals_and_opens_nothing_after_the_end() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let router = pair.one.router();
    let destination = std::net::IpAddr::from(Side::Two.inner());
    assert!(router.route(pair.now, destination).is_ok());
    assert!(router.route(pair.now + REJECT_AFTER_TIME, destination).is_err());
}

#[test]
fn byte_counts_survive_sessions() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let before = pair.status(Side::Two).received_bytes;
    assert_eq!(before, pair.status(Side::One).sent_bytes, "nothing was lost on the way");
    pair.advance(REJECT_AFTER_TIME + seconds(1));
    assert!(pair.status(Side::Two).received_bytes >= before);
    assert_eq!(pair.status(Side::Two).sent_bytes, pair.status(Side::One).received_bytes);
}
