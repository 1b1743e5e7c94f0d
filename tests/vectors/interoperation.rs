//! Conversations between a real device and the second implementation.

use std::time::Duration;

use serde_json::json;
use underpass::keys::PresharedKey;
use underpass::packet::frame::{Control, FLAG_CHECKSUM_PARTIAL, FLAG_CONTINUES, packet_header};
use underpass::packet::message::{COOKIE_REPLY_LEN, INITIATION_LEN};
use underpass::proto::constants::{HANDSHAKES_PER_SECOND_AND_SOURCE, PING_AFTER_DATA, REJECT_AFTER_TIME};
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::noise::Suite;
use underpass::proto::stats::LinkState;

use crate::link::{Link, OURS, Setup, THEIRS, TICK};
use crate::packets::{cut_tcp, tcp, udp, without_checksum};

/// After which the second implementation takes silence for loss.
const THEIR_PATIENCE: Duration = Duration::from_secs(15);

fn setups() -> impl Iterator<Item = Setup> {
    let preshared_key = PresharedKey::from_bytes([9; 32]).unwrap();
    Suite::ALL.into_iter().flat_map(move |suite| {
        [None, Some(preshared_key.clone())].map(|preshared_key| Setup { suite, preshared_key, ..Setup::default() })
    })
}

/// A link with a session that they initiated.
fn connected(setup: Setup) -> Link {
    let mut link = Link::new(setup);
    link.they_send(&udp(THEIRS, OURS, b"hello"));
    assert!(link.is_up());
    link.clear();
    link
}

fn packet_frame(flags: u8, packet: &[u8]) -> Vec<u8> {
    [&packet_header(flags, packet.len() as u16), packet].concat()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn they_initiate_and_packets_and_pings_go_both_ways() {
    for setup in setups() {
        let mut link = Link::new(setup);
        let (there, back) = (udp(THEIRS, OURS, b"there"), udp(OURS, THEIRS, b"back"));
        link.they_send(&there);
        assert_eq!(link.delivered, [(there, false)]);
        link.we_send(back.clone());
        assert_eq!(link.theirs.packets, [(back, 1)]);
        assert_eq!(link.theirs.events, ["initiated", "pong"]);
        assert_eq!(link.status().suite, Some(link.setup.suite));
        assert!(link.refused.is_empty() && link.theirs.refused.is_empty());
    }
}

#[test]
fn they_answer_each_of_our_lanes_where_it_comes_from() {
    for setup in setups() {
        let mut link = Link::new(setup);
        link.we_send(udp(OURS, THEIRS, b"hello"));
        let frames = packet_frame(0, &udp(THEIRS, OURS, b"back"));
        for (lane, destination) in [(0, "192.0.2.1:51900"), (1, "192.0.2.1:51901"), (2, "192.0.2.1:51900")] {
            link.clear();
            link.they_send_frames(lane, &frames);
            assert_eq!(link.theirs.destinations[0], destination, "lane {lane}");
        }
        assert_eq!(link.theirs.endpoint, "192.0.2.1:51900");
        // Our lane is silent for long: nobody knows whether its path is still open.
        link.advance(seconds(10));
        link.clear();
        link.they_send_frames(1, &frames);
        assert_eq!(link.theirs.destinations[0], "192.0.2.1:51900");
        assert!(link.refused.is_empty() && link.theirs.refused.is_empty());
    }
}

#[test]
fn we_initiate_and_packets_and_pings_go_both_ways() {
    for setup in setups() {
        let mut link = Link::new(setup);
        let (there, back) = (udp(OURS, THEIRS, b"there"), udp(THEIRS, OURS, b"back"));
        link.we_send(there.clone());
        assert_eq!(link.theirs.packets, [(there, 1)]);
        assert_eq!(link.theirs.events, ["confirmed"]);
        assert_eq!(link.status().round_trip, Some(Duration::ZERO), "our ping was answered");
        link.they_send(&back);
        assert_eq!(link.delivered, [(back, false)]);
        link.they(json!({ "do": "ping" }));
        assert_eq!(link.theirs.events, ["confirmed", "pong"]);
        assert!(link.refused.is_empty() && link.theirs.refused.is_empty());
    }
}

#[test]
fn different_preshared_keys_never_meet() {
    let mut link = Link::new(Setup { preshared_key: PresharedKey::from_bytes([9; 32]).ok(), ..Setup::default() });
    link.setup.preshared_key = None;
    link.restart_device();
    link.they_send(&udp(THEIRS, OURS, b"x"));
    link.we_send(udp(OURS, THEIRS, b"x"));
    link.advance(seconds(5));
    assert!(link.delivered.is_empty() && link.theirs.packets.is_empty());
    assert!(link.theirs.refused.iter().all(|reason| reason == "payload does not decrypt"));
}

#[test]
fn both_initiate_at_once() {
    for seeds in [[1, 2], [2, 1]] {
        let mut link = Link::new(Setup { seeds, ..Setup::default() });
        let keys = link.setup.public_keys();
        // Both initiations are under way before either arrives.
        link.lose = Box::new(|_, _| true);
        link.we_send(udp(OURS, THEIRS, b"ours"));
        link.they_send(&udp(THEIRS, OURS, b"theirs"));
        link.lose = Box::new(|_, _| false);
        let [(_, ours), (_, theirs)]: [(bool, Vec<u8>); 2] = link.sent.clone().try_into().unwrap();
        link.give_us(link.their_endpoint, theirs);
        link.give_them(&[ours]);
        assert_eq!((link.delivered.len(), link.theirs.packets.len()), (1, 1));

        // From here on both use the session that the side with the greater key initiated.
        link.clear();
        link.we_send(udp(OURS, THEIRS, b"after"));
        link.they_send(&udp(THEIRS, OURS, b"after"));
        assert_eq!((link.delivered.len(), link.theirs.packets.len()), (1, 1));
        let router = format!("{:?}", link.device.router());
        let index = |ours: bool| {
            let (_, datagram) = link.sent.iter().find(|(by_us, _)| *by_us == ours).unwrap();
            u32::from_le_bytes(datagram[2..6].try_into().unwrap())
        };
        let ours_is_greater = keys[0] > keys[1];
        let used =
            format!("local_index: {}, remote_index: {}, is_initiator: {ours_is_greater}", index(false), index(true));
        assert!(router.contains(&used), "{used} is not in {router}");
    }
}

#[test]
fn packed_packets_padding_and_unknown_frames_are_understood_both_ways() {
    let mut link = connected(Setup::default());
    let frames = |source, destination| {
        let odd = without_checksum(udp(source, destination, b"odd"));
        let frames = [
            packet_frame(0, &udp(source, destination, b"one")),
            packet_frame(FLAG_CHECKSUM_PARTIAL, &odd),
            vec![77, 1, 2, 0, 0, 0],
            vec![2, 0, 1, 0, 200],
            packet_frame(0, &udp(source, destination, b"three")),
            vec![0; 11],
        ];
        frames.concat()
    };
    link.we_send_frames(1, &[&frames(OURS, THEIRS)]);
    let expected = [b"one".as_slice(), b"odd", b"three"].map(|payload| (udp(OURS, THEIRS, payload), 1));
    assert_eq!(link.theirs.packets, expected);

    link.they_send_frames(2, &frames(THEIRS, OURS));
    let odd = without_checksum(udp(THEIRS, OURS, b"odd"));
    assert_eq!(link.delivered, [(udp(THEIRS, OURS, b"one"), false), (odd, true), (udp(THEIRS, OURS, b"three"), false)]);
    assert!(link.refused.is_empty() && link.theirs.refused.is_empty());
}

#[test]
fn they_rebuild_a_train_that_spans_datagrams() {
    let mut link = connected(Setup::default());
    let payload: Vec<u8> = (0..2000u32).map(|at| (at % 251) as u8).collect();
    let train = FLAG_CHECKSUM_PARTIAL | FLAG_CONTINUES;
    let frames: Vec<Vec<u8>> = cut_tcp(OURS, THEIRS, &payload, 300)
        .iter()
        .enumerate()
        .map(|(index, packet)| packet_frame(if index == 0 { FLAG_CHECKSUM_PARTIAL } else { train }, packet))
        .collect();
    // All of it in one datagram; then in one each, which arrive together; then one of those is lost.
    link.we_send_frames(0, &[&frames.concat()]);
    assert_eq!(link.theirs.packets, [(tcp(OURS, THEIRS, &payload), 7)]);
    link.clear();
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    link.we_send_frames(0, &frames);
    assert_eq!(link.theirs.packets, [(tcp(OURS, THEIRS, &payload), 7)]);
    link.clear();
    let mut number = 0;
    link.lose = Box::new(move |_, _| {
        number += 1;
        number == 4
    });
    link.we_send_frames(0, &frames);
    assert_eq!(link.theirs.packets.iter().map(|(_, joined)| *joined).collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn each_follows_the_other_to_a_new_address() {
    let mut link = connected(Setup::default());
    link.their_endpoint = "[2001:db8::9]:4000".parse().unwrap();
    link.they_send(&udp(THEIRS, OURS, b"I moved"));
    assert_eq!(link.status().endpoint.unwrap().remote, link.their_endpoint);
    link.clear();
    // Their answer to us would go where we are heard from: the packet itself may be refused.
    link.their_endpoint = "[2001:db8::9]:5000".parse().unwrap();
    link.they_send(&udp([10, 99, 0, 1], OURS, b"not my address"));
    assert!(link.delivered.is_empty());
    assert_eq!(link.status().endpoint.unwrap().remote, link.their_endpoint);
    link.we_send(udp(OURS, THEIRS, b"found you"));
    assert_eq!(link.theirs.packets.len(), 1);
}

#[test]
fn we_show_the_cookie_that_they_demand() {
    let mut link = Link::new(Setup::default());
    link.they(json!({ "do": "under_load", "under_load": true }));
    link.we_send(udp(OURS, THEIRS, b"through the flood"));
    assert_eq!(link.theirs.refused, ["a cookie is demanded"]);
    assert!(link.theirs.packets.is_empty());
    link.advance(seconds(2));
    assert_eq!(link.theirs.packets.len(), 1);
    assert_eq!(link.theirs.refused.len(), 1);
}

#[test]
fn they_show_the_cookie_that_we_demand() {
    let mut link = Link::new(Setup::default());
    link.lose = Box::new(|ours, _| !ours);
    link.they_send(&udp(THEIRS, OURS, b"through the flood"));
    let first = link.sent[0].1.clone();

    let second = next_initiation(&mut link);
    flood(&mut link, &first);
    link.give_us(link.their_endpoint, second);
    assert_eq!(link.refused.pop(), Some(DropReason::CookieDemanded));
    link.they(json!({ "do": "nothing" }));
    assert_eq!(link.sent.last().unwrap().1.len(), COOKIE_REPLY_LEN);
    assert_eq!(link.theirs.events, ["cookie"]);

    let third = next_initiation(&mut link);
    link.lose = Box::new(|_, _| false);
    flood(&mut link, &first);
    link.give_us(link.their_endpoint, third);
    link.they(json!({ "do": "nothing" }));
    assert_eq!(link.delivered, [(udp(THEIRS, OURS, b"through the flood"), false)]);
}

/// A replayed initiation costs its source as much as a new one.
fn flood(link: &mut Link, initiation: &[u8]) {
    (0..=HANDSHAKES_PER_SECOND_AND_SOURCE).for_each(|_| link.give_us(link.their_endpoint, initiation.to_vec()));
    while link.device.poll_transmit().is_some() {}
}

/// Waits for their next retry.
fn next_initiation(link: &mut Link) -> Vec<u8> {
    link.sent.clear();
    loop {
        link.advance(TICK);
        let initiation = link.sent.iter().find(|(ours, datagram)| !ours && datagram.len() == INITIATION_LEN);
        if let Some((_, initiation)) = initiation {
            return initiation.clone();
        }
    }
}

#[test]
fn rekeys_lose_nothing() {
    for they_initiate in [true, false] {
        let mut link = Link::new(Setup::default());
        if they_initiate {
            link.they_send(&udp(THEIRS, OURS, b"first"));
        } else {
            link.we_send(udp(OURS, THEIRS, b"first"));
        }
        link.clear();
        let rounds = 130u32;
        for number in 0..rounds {
            link.we_send(udp(OURS, THEIRS, &number.to_be_bytes()));
            link.they_send(&udp(THEIRS, OURS, &number.to_be_bytes()));
            link.advance(seconds(3));
        }
        let expected =
            |source, destination| (0..rounds).map(move |number| udp(source, destination, &number.to_be_bytes()));
        assert!(link.delivered.iter().map(|(packet, _)| packet.clone()).eq(expected(THEIRS, OURS)));
        assert!(link.theirs.packets.iter().map(|(packet, _)| packet.clone()).eq(expected(OURS, THEIRS)));
        let initiations = link.sent.iter().filter(|(_, datagram)| datagram.len() == INITIATION_LEN).count();
        assert_eq!(initiations, 3, "390 s in sessions of two minutes each");
        assert!(link.refused.is_empty() && link.theirs.refused.is_empty());
    }
}

#[test]
fn our_pings_are_answered_while_data_passes_and_stop_after_it() {
    let mut link = connected(Setup::default());
    link.advance(seconds(30));
    for ours in [true, false] {
        link.clear();
        let before = link.status().pings;
        if ours {
            link.we_send(udp(OURS, THEIRS, b"x"));
        } else {
            link.they_send(&udp(THEIRS, OURS, b"x"));
        }
        link.advance(PING_AFTER_DATA * 2);
        let status = link.status();
        assert!(status.pings >= before + 10, "{status:?}");
        assert_eq!((status.pings_lost, status.state), (0, LinkState::Up));
        link.clear();
        link.advance(seconds(30));
        assert_eq!(link.sent, []);
    }
}

#[test]
fn they_notice_that_we_restarted() {
    let mut link = connected(Setup::default());
    link.restart_device();
    link.they_send(&udp(THEIRS, OURS, b"lost"));
    link.advance(THEIR_PATIENCE + TICK * 2);
    assert!(link.is_up());
    link.they_send(&udp(THEIRS, OURS, b"found again"));
    assert_eq!(link.delivered, [(udp(THEIRS, OURS, b"found again"), false)]);
}

#[test]
fn an_idle_session_ends_on_both_sides() {
    let mut link = connected(Setup::default());
    link.advance(PING_AFTER_DATA * 2);
    link.clear();
    link.advance(REJECT_AFTER_TIME);
    assert!(!link.theirs.has_session);
    assert!(!link.is_up());
    assert!(link.events.iter().any(|event| matches!(event, Event::SessionEnded { .. })));
    assert_eq!(link.sent, []);
}

#[test]
fn a_goodbye_ends_the_sessions_of_the_other() {
    let mut link = connected(Setup::default());
    link.they(json!({ "do": "shutdown" }));
    assert!(link.events.iter().any(|event| matches!(event, Event::Goodbye { .. })));

    let mut link = connected(Setup::default());
    let now = link.now;
    link.device.shutdown(now);
    link.they(json!({ "do": "nothing" }));
    assert_eq!(link.theirs.events, ["goodbye"]);
    assert!(!link.theirs.has_session);
}

#[test]
fn malformed_frames_and_control_frames_do_no_harm() {
    let mut link = connected(Setup::default());
    let good = packet_frame(0, &udp(OURS, THEIRS, b"good"));
    let mut ping = Vec::new();
    Control::Ping(1).encode(&mut ping);
    let cases: [&[u8]; 7] =
        [&[1, 4, 1, 0, 0], &[2, 0, 0, 0], &[2, 0, 2, 0, 1, 1], &[1, 0, 9, 0, 1], &[1], &[1, 0, 0, 0], &ping[..8]];
    for case in cases {
        link.clear();
        link.we_send_frames(0, &[&[good.as_slice(), case].concat()]);
        assert_eq!(link.theirs.packets.len(), 1, "{case:?}");
    }
}
