//! The cost of one peer's datagrams: others pay nothing for it.

use std::net::IpAddr;
use std::time::Duration;

use underpass::keys::PrivateKey;
use underpass::packet::frame::{Control, packet_header};
use underpass::packet::ip::IpPacket;
use underpass::packet::message::{TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::constants::{
    ANSWERS_AT_ONCE, MAX_FRAGMENTED_PACKETS, MAX_WASTED_FRAMES, NOTICES_AT_ONCE, NOTICES_PER_SECOND,
};
use underpass::proto::error::DropReason;
use underpass::proto::peer::PeerConfig;
use underpass::proto::peer_table::PeerId;
use underpass::proto::policy::{Policy, PortRange, Service};

use crate::pair::{InFlight, Pair, Side, inner_packet, peer_config, seconds};

/// Frames as a side seals them that was broken into.
pub(crate) fn sealed(pair: &mut Pair, from: Side, frames: &[u8]) -> Vec<u8> {
    let mut payload = [&[0; TRANSPORT_HEADER_LEN], frames, &[0; TAG_LEN]].concat();
    let now = pair.now;
    let router = pair.device(from).router();
    let route = router.route(now, from.other().inner().into()).unwrap();
    route.seal(now, 0, &mut payload, &mut Vec::new()).unwrap();
    payload
}

/// Has the other side take them at once.
pub(crate) fn hand_over(pair: &mut Pair, from: Side, frames: &[u8]) {
    let payload = sealed(pair, from, frames);
    let address = pair.addresses[from as usize];
    pair.deliver(InFlight {
        arrives_at: pair.now,
        to: from.other(),
        from: address,
        to_second: false,
        traffic_class: TrafficClass::default(),
        payload,
    });
}

pub(crate) fn encoded(controls: impl IntoIterator<Item = Control>) -> Vec<u8> {
    let mut frames = Vec::new();
    controls.into_iter().for_each(|control| control.encode(&mut frames));
    frames
}

/// Datagrams that side two has sent since `sent` was cleared.
fn answers(pair: &Pair) -> usize {
    pair.sent.iter().filter(|(_, from, _)| *from == Side::Two).count()
}

fn connected() -> Pair {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    pair
}

#[test]
fn a_datagram_is_answered_once_however_many_pings_and_probes_it_has() {
    for frames in [
        encoded((0..107).map(Control::Ping)),
        encoded((0..107).map(Control::Probe)),
        encoded([Control::Probe(1), Control::Ping(2), Control::Unknown(9), Control::Probe(3)]),
    ] {
        let mut pair = connected();
        hand_over(&mut pair, Side::One, &frames);
        assert_eq!(answers(&pair), 1);
    }
}

#[test]
fn a_peer_that_pings_without_end_is_answered_at_a_bounded_rate() {
    let mut pair = connected();
    let frames = encoded([Control::Ping(7)]);
    let ping = |pair: &mut Pair| {
        pair.sent.clear();
        (0..5000).for_each(|_| hand_over(pair, Side::One, &frames));
        answers(pair)
    };
    let at_once = ping(&mut pair);
    assert!(at_once <= NOTICES_AT_ONCE as usize, "{at_once}");
    let now = pair.now;
    assert!(pair.two.status(now).drops.of(DropReason::ControlLimit) >= 5000 - u64::from(NOTICES_AT_ONCE));
    pair.now += Duration::from_millis(100);
    assert_eq!(ping(&mut pair), NOTICES_PER_SECOND as usize / 10);
}

#[test]
fn packets_pass_whatever_control_frames_are_around_them() {
    let mut pair = connected();
    let packet = inner_packet(Side::One.inner(), Side::Two.inner(), b"between");
    let pings = encoded((0..10).map(Control::Ping));
    let frames = [&packet_header(0, packet.len() as u16)[..], &packet, &pings].concat();
    (0..1000).for_each(|_| hand_over(&mut pair, Side::One, &frames));
    assert_eq!(pair.payloads(Side::Two).len(), 1000);
}

#[test]
fn a_datagram_is_read_no_further_than_some_frames_that_bring_nothing() {
    let mut pair = connected();
    let packet = inner_packet(Side::One.inner(), Side::Two.inner(), b"behind");
    let packet = [&packet_header(0, packet.len() as u16)[..], &packet].concat();
    for (wasted, is_read) in [(MAX_WASTED_FRAMES, true), (MAX_WASTED_FRAMES + 1, false), (300, false)] {
        for empty in [encoded([Control::Unknown(77)]), packet_header(0, 0).to_vec()] {
            pair.delivered.clear();
            let frames = [packet.clone(), empty.repeat(wasted as usize), packet.clone()].concat();
            hand_over(&mut pair, Side::One, &frames);
            assert_eq!(pair.payloads(Side::Two).len(), 1 + usize::from(is_read), "{wasted}");
        }
    }
    let now = pair.now;
    assert_eq!(pair.two.status(now).drops.of(DropReason::ControlLimit), 4, "once for each datagram");
}

#[test]
fn control_frames_of_unknown_types_cost_nothing_and_take_no_room() {
    let mut pair = connected();
    let unknown = encoded((0..16).map(|_| Control::Unknown(77)));
    (0..1000).for_each(|_| hand_over(&mut pair, Side::One, &unknown));
    let now = pair.now;
    assert_eq!(pair.two.status(now).drops.of(DropReason::ControlLimit), 0);
    hand_over(&mut pair, Side::One, &encoded([Control::Unknown(77), Control::Unknown(78), Control::Ping(1)]));
    assert_eq!(answers(&pair), 1);
    pair.advance(seconds(1));
}

/// Side two and another peer at side one, which may send UDP to any port.
fn two_peers(pair: &mut Pair) -> [PeerId; 2] {
    let other = PrivateKey::from_bytes([77; 32]).unwrap().public_key();
    [Side::Two.public_key(), other].map(|public_key| {
        let policy =
            Policy::exposing([Service::Udp(PortRange::ALL)]).with_own_addresses([Side::One.inner().into()]).into();
        let allowed_ips = if public_key == other { vec![] } else { peer_config(Side::Two).allowed_ips };
        let config = PeerConfig { public_key, policy, allowed_ips, ..peer_config(Side::Two) };
        pair.one.upsert_peer(pair.now, config).unwrap()
    })
}

/// A fragment of the packet of that number: the first, or a later one.
fn fragment(number: u16, field: u16) -> Vec<u8> {
    let mut packet = inner_packet(Side::Two.inner(), Side::One.inner(), &[0; 64]);
    packet[4..6].copy_from_slice(&number.to_be_bytes());
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet
}

#[test]
fn what_one_peer_has_remembered_takes_no_room_of_another() {
    const MORE_FRAGMENTS: u16 = 0x2000;
    let mut pair = Pair::new();
    let [hostile, other] = two_peers(&mut pair);
    let (start, router) = (pair.now, pair.one.router());
    let judge = |now, peer, packet: &[u8]| router.judge(now, peer, &IpPacket::parse(packet).unwrap());
    // What was seen longest ago gives way: the other's is neither the oldest when it comes nor the newest in the end.
    let flood = |now| {
        let packets = 1000..1000 + 20 * MAX_FRAGMENTED_PACKETS as u16;
        packets.for_each(|number| judge(now, hostile, &fragment(number, MORE_FRAGMENTS)).unwrap());
    };
    let [then, now] = [1, 2].map(|seconds| start + Duration::from_secs(seconds));
    flood(start);
    (0..100).for_each(|number| judge(then, other, &fragment(number, MORE_FRAGMENTS)).unwrap());
    flood(now);
    assert_eq!((0..100).filter(|number| judge(now, other, &fragment(*number, 8)).is_ok()).count(), 100);
    assert_eq!(judge(now, other, &fragment(5000, 8)), Err(DropReason::StrayFragment), "the other's, not theirs");
}

#[test]
fn answers_to_one_peer_leave_those_of_others() {
    let mut pair = Pair::new();
    let [hostile, other] = two_peers(&mut pair);
    let (now, router) = (pair.now, pair.one.router());
    assert_eq!(router.peer_of(IpAddr::from(Side::Two.inner())), Some(hostile));
    let answered = |peer| (0..1000).filter(|_| router.may_answer(now, peer)).count();
    assert_eq!([hostile, other].map(answered), [ANSWERS_AT_ONCE as usize; 2]);
    // A new snapshot gives nothing back.
    pair.one.set_endpoints(now, &Side::Two.public_key(), vec![]);
    let public_key = Side::Two.public_key();
    pair.one.upsert_peer(now, PeerConfig { public_key, ..peer_config(Side::Two) });
    assert!(!pair.one.router().may_answer(now, hostile));
}
