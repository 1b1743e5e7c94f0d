//! What a device tells its owner.

use std::time::Duration;

use underpass::packet::traffic_class::Ecn;
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::staged::StagedPacket;

use crate::pair::{Pair, Side, UNIX_TIME, inner_packet, seconds};

#[test]
fn times_are_told_by_the_clock_at_the_devices_start() {
    let mut pair = Pair::new();
    pair.advance(seconds(10));
    pair.connect(Side::One);
    let connected = UNIX_TIME + (pair.now - pair.start);
    pair.advance(seconds(5));
    let status = pair.status(Side::One);
    let since = |at: Duration| connected.abs_diff(at);
    assert!(since(status.state_since) < seconds(1), "{:?}", status.state_since);
    assert!(since(status.latest_handshake.unwrap()) < seconds(1), "{:?}", status.latest_handshake);
}

#[test]
fn what_its_owner_refused_is_counted_with_what_it_refused() {
    let mut pair = Pair::new();
    pair.one.count_drop(DropReason::NoEndpoint);
    assert_eq!(pair.one.status(pair.now).drops.of(DropReason::NoEndpoint), 1);
}

#[test]
fn there_is_a_new_snapshot_once_for_each_change() {
    let mut pair = Pair::new();
    assert!(pair.one.poll_router().is_some(), "of the peer");
    assert!(pair.one.poll_router().is_none());
    pair.connect(Side::One);
    let router = pair.one.poll_router().unwrap();
    assert!(router.route(pair.now, Side::Two.inner().into()).is_ok());
    assert!(pair.one.poll_router().is_none());
    pair.send(Side::One, b"changes nothing");
    assert!(pair.one.poll_router().is_none());
}

#[test]
fn a_packet_says_whether_its_checksum_is_still_to_be_made() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    for checksum_partial in [false, true] {
        let bytes = inner_packet(Side::One.inner(), Side::Two.inner(), b"data");
        let now = pair.now;
        pair.one.handle_packet(now, StagedPacket { bytes: bytes.clone(), checksum_partial }).unwrap();
        let mut datagram = pair.one.poll_transmit().unwrap().payload;
        let from = Endpoint::new(Side::One.address());
        pair.two.handle_datagram(now, from, Ecn::NotEct, &mut datagram).unwrap();
        let delivered =
            std::iter::from_fn(|| pair.two.poll_event()).find(|event| matches!(event, Event::Packet { .. }));
        assert_eq!(delivered, Some(Event::Packet { peer: Side::One.public_key(), bytes, checksum_partial }));
    }
}
