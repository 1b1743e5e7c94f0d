use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use underpass::packet::frame::FRAME_HEADER_LEN;
use underpass::packet::message::{Message, TRANSPORT_OVERHEAD};
use underpass::proto::constants::{
    PATH_BASE_LEN, PATH_FLOOR_LEN, PATH_PROBES_PER_SECOND, PATH_RAISE_INTERVAL, PATH_SEARCH_STEP, PING_AFTER_DATA,
};
use underpass::proto::event::Event;
use underpass::proto::interface_mtu::MtuRange;
use underpass::proto::staged::StagedPacket;
use underpass::proto::stats::{LinkReason, LinkState};

use crate::pair::{LATENCY, PING_DATAGRAM_LEN, Pair, Side, inner_packet, seconds};

const MTU: u16 = 1420;
const OVERHEAD: usize = TRANSPORT_OVERHEAD + FRAME_HEADER_LEN;
/// UDP payload of an IPv4 packet of 1280 and of 1300 bytes.
const OF_1280: usize = 1280 - 28;
const OF_1300: usize = 1300 - 28;

fn pair_on(longest: [usize; 2]) -> Pair {
    pair_with_mtu(MTU, longest)
}

/// Both sides have an interface of this MTU.
fn pair_with_mtu(mtu: u16, longest: [usize; 2]) -> Pair {
    let mut pair = Pair::with_devices(|_, config| config.mtu = Some(MtuRange::fixed(mtu)));
    pair.longest = longest;
    pair.connect(Side::One);
    pair
}

/// What is to be found on a path that carries datagrams of `longest` bytes.
fn is_found(path_mtu: u16, longest: usize) -> bool {
    let most = (longest - OVERHEAD) as u16;
    (most - PATH_SEARCH_STEP..=most).contains(&path_mtu)
}

/// How long it takes until the path of side one is known, while data passes.
fn until_found(pair: &mut Pair, longest: usize) -> Duration {
    let start = pair.now;
    while !is_found(pair.path_mtu(Side::One), longest) {
        assert!(pair.now - start < seconds(120), "{:?}", pair.status(Side::One));
        pair.carry(Duration::from_millis(50));
    }
    pair.now - start
}

fn lose_share(pair: &mut Pair, percent: u64) {
    let mut state = 7u64;
    pair.lose = Box::new(move |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 100 < percent
    });
}

fn told(pair: &Pair, side: Side) -> Vec<(LinkState, Option<LinkReason>)> {
    let changes = pair.events.iter().filter_map(|(told, event)| match event {
        Event::LinkChanged { state, reason, .. } if *told == side => Some((*state, *reason)),
        _ => None,
    });
    changes.collect()
}

#[test]
fn a_path_that_carries_everything_is_known_after_a_round_trip() {
    let mut pair = pair_on([usize::MAX; 2]);
    for side in [Side::One, Side::Two] {
        assert_eq!(pair.path_mtu(side), MTU);
    }
    pair.carry(seconds(30));
    assert_eq!([Side::One, Side::Two].map(|side| told(&pair, side).len()), [0, 0], "the links are up all the time");
}

#[test]
fn a_path_that_nobody_tries_is_taken_to_carry_everything() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    assert_eq!(pair.status(Side::One).path_mtu, None);
    pair.carry(seconds(5));
    assert!(pair.sent.iter().all(|(.., datagram)| datagram.len() <= PING_DATAGRAM_LEN + 64));
}

#[test]
fn a_narrow_path_is_found_and_told_once() {
    let mut pair = pair_on([OF_1280; 2]);
    pair.events.clear();
    let took = until_found(&mut pair, OF_1280);
    assert!(took < seconds(3), "{took:?}");
    pair.carry(seconds(100));
    for side in [Side::One, Side::Two] {
        assert!(is_found(pair.path_mtu(side), OF_1280));
        let status = pair.status(side);
        assert_eq!((status.state, status.reason), (LinkState::Degraded, Some(LinkReason::Mtu)));
        assert_eq!(told(&pair, side), [(LinkState::Degraded, Some(LinkReason::Mtu))]);
        let (now, found) = (pair.now, usize::from(pair.path_mtu(side)));
        let router = pair.device(side).router();
        let path = router.route(now, side.other().inner().into()).unwrap().path();
        assert_eq!(usize::from(path.datagram), found + OVERHEAD, "the fast path knows it");
    }
}

#[test]
fn the_fast_path_knows_of_every_change_at_once_and_of_nothing_else() {
    let mut pair = pair_on([usize::MAX; 2]);
    let mut changes = Vec::new();
    for (longest, duration) in [(usize::MAX, seconds(1)), (OF_1280, seconds(5)), (usize::MAX, seconds(35))] {
        pair.longest = [longest; 2];
        let end = pair.now + duration;
        while pair.now < end {
            if (pair.now - pair.start).as_millis().is_multiple_of(50) {
                pair.send(Side::One, b"data");
            }
            pair.advance(Duration::from_millis(1));
            let (now, known) = (pair.now, pair.path_mtu(Side::One));
            if let Some(router) = pair.one.poll_router() {
                changes.push(router.route(now, Side::Two.inner().into()).unwrap().path().packet());
            }
            assert_eq!(*changes.last().unwrap(), known);
        }
    }
    let snapshots = changes.len();
    changes.dedup();
    assert!(changes.len() > 4 && changes.first() == changes.last(), "{changes:?}");
    assert!(snapshots < changes.len() * 2, "{snapshots} snapshots of {} changes", changes.len());
}

#[test]
fn each_direction_has_a_path_of_its_own() {
    let mut pair = pair_on([OF_1280, usize::MAX]);
    pair.carry(seconds(5));
    assert!(is_found(pair.path_mtu(Side::One), OF_1280));
    assert_eq!(pair.path_mtu(Side::Two), MTU);
    assert_eq!(pair.status(Side::One).state, LinkState::Degraded);
    assert_eq!(pair.status(Side::Two).state, LinkState::Up);
}

#[test]
fn every_width_is_found_within_a_step() {
    for longest in (1201..1500).step_by(7) {
        let mut pair = pair_on([longest; 2]);
        pair.carry(seconds(4));
        let most = ((longest - OVERHEAD) as u16).min(MTU);
        let found = pair.path_mtu(Side::One);
        assert!((most.saturating_sub(PATH_SEARCH_STEP)..=most).contains(&found), "{longest}: {found}");
    }
}

#[test]
fn a_path_that_shrinks_while_data_passes_is_noticed_within_a_second() {
    // Whenever in the interval between two confirmations it happens.
    for offset in (0..400).step_by(20) {
        let mut pair = pair_on([usize::MAX; 2]);
        pair.carry(Duration::from_millis(2_000 + offset));
        pair.longest = [OF_1300; 2];
        let start = pair.now;
        while usize::from(pair.path_mtu(Side::One)) + OVERHEAD > OF_1300 {
            pair.carry(Duration::from_millis(10));
        }
        assert!(pair.now - start < Duration::from_millis(750), "{:?}", pair.now - start);
        let took = until_found(&mut pair, OF_1300);
        assert!(took < seconds(3), "{took:?}");
    }
}

#[test]
fn a_path_that_grows_is_noticed_within_a_minute() {
    let mut pair = pair_on([OF_1300; 2]);
    pair.carry(seconds(10));
    assert!(is_found(pair.path_mtu(Side::One), OF_1300));
    pair.longest = [OF_1300 + 100; 2];
    let took = until_found(&mut pair, OF_1300 + 100);
    assert!(took < seconds(60), "a little: {took:?}");
    pair.longest = [usize::MAX; 2];
    let start = pair.now;
    while pair.status(Side::One).state != LinkState::Up {
        pair.carry(Duration::from_millis(50));
        assert!(pair.now - start < seconds(60), "fully");
    }
    assert_eq!(pair.path_mtu(Side::One), MTU);
}

#[test]
fn jumbo_datagrams_are_used_where_the_path_carries_them() {
    let mut pair = pair_with_mtu(8900, [usize::MAX; 2]);
    assert_eq!(pair.path_mtu(Side::One), 8900);
    pair.longest = [4000; 2];
    let took = until_found(&mut pair, 4000);
    assert!(took < seconds(5), "{took:?}");
}

#[test]
fn random_loss_is_no_narrow_path() {
    let mut pair = pair_on([usize::MAX; 2]);
    lose_share(&mut pair, 5);
    for _ in 0..600 {
        pair.carry(seconds(1));
        assert_eq!(pair.path_mtu(Side::One), MTU);
    }
}

#[test]
fn a_narrow_path_is_found_in_spite_of_random_loss() {
    let mut pair = pair_on([usize::MAX; 2]);
    lose_share(&mut pair, 5);
    pair.longest = [OF_1300; 2];
    let took = until_found(&mut pair, OF_1300);
    assert!(took < seconds(5), "{took:?}");
}

#[test]
fn a_narrow_path_is_found_where_answers_take_longer_than_anybody_waits() {
    let mut pair = pair_with_mtu(MTU, [usize::MAX; 2]);
    pair.latency = Duration::from_millis(600);
    pair.carry(seconds(5));
    assert_eq!(pair.path_mtu(Side::One), MTU);
    pair.longest = [OF_1300; 2];
    let took = until_found(&mut pair, OF_1300);
    assert!(took < seconds(30), "{took:?}");
}

#[test]
fn an_answer_that_comes_late_ends_the_search_for_less() {
    let mut pair = Pair::with_devices(|_, config| config.mtu = Some(MtuRange::fixed(MTU)));
    let mut delayed = BTreeSet::new();
    pair.send(Side::One, b"hello");
    for _ in 0..500 {
        let soon = pair.now + LATENCY;
        for datagram in pair.wire.iter_mut().filter(|datagram| datagram.payload.len() > 1_400) {
            if datagram.arrives_at <= soon && delayed.insert(datagram.payload[..12].to_vec()) {
                datagram.arrives_at += Duration::from_millis(900);
            }
        }
        pair.send(Side::One, b"data");
        pair.advance(Duration::from_millis(5));
    }
    assert!(delayed.len() > 4);
    assert_eq!(pair.path_mtu(Side::One), MTU);
}

#[test]
fn silence_is_no_narrow_path() {
    let mut pair = pair_on([usize::MAX; 2]);
    for duration in [100, 200, 300, 400, 500, 1_000, 10_000] {
        pair.carry(seconds(3));
        pair.lose = Box::new(|_, _| true);
        pair.carry(Duration::from_millis(duration));
        pair.lose = Box::new(|_, _| false);
        assert_eq!(pair.path_mtu(Side::One), MTU, "{duration} ms");
        pair.carry(seconds(3));
        assert_eq!(pair.path_mtu(Side::One), MTU, "{duration} ms, later");
    }
}

#[test]
fn one_direction_that_is_silent_is_no_narrow_path() {
    let mut pair = pair_on([usize::MAX; 2]);
    for silent in [Side::One, Side::Two] {
        pair.carry(seconds(3));
        pair.lose = Box::new(move |side, _| side == silent);
        pair.carry(Duration::from_millis(1_000));
        pair.lose = Box::new(|_, _| false);
        assert_eq!(pair.path_mtu(Side::One), MTU);
        assert_eq!(pair.path_mtu(Side::Two), MTU);
    }
}

#[test]
fn a_path_that_does_not_carry_the_base_is_used_at_the_floor_until_it_does() {
    let mut pair = pair_on([900; 2]);
    pair.carry(seconds(8));
    assert_eq!(usize::from(pair.path_mtu(Side::One)) + OVERHEAD, usize::from(PATH_FLOOR_LEN));
    assert_eq!(pair.status(Side::One).reason, Some(LinkReason::Mtu));
    pair.longest = [usize::from(PATH_BASE_LEN) + 100; 2];
    let took = until_found(&mut pair, usize::from(PATH_BASE_LEN) + 100);
    assert!(took < seconds(10), "{took:?}");
}

#[test]
fn handshakes_and_packets_that_are_too_long_may_be_fragmented() {
    let mut pair = Pair::with_devices(|_, config| config.mtu = Some(MtuRange::fixed(MTU)));
    pair.longest = [OF_1280; 2];
    let packet = inner_packet(Side::One.inner(), Side::Two.inner(), &[7; 1300]);
    pair.send_packet(Side::One, packet.clone()).unwrap();
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [vec![7; 1300]], "it was staged before anything was known");
    pair.carry(seconds(5));
    pair.delivered.clear();
    pair.send_packet(Side::One, packet).unwrap();
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [vec![7; 1300]]);
}

#[test]
fn a_packet_that_the_path_takes_is_never_fragmented() {
    let mut pair = pair_on([OF_1280; 2]);
    until_found(&mut pair, OF_1280);
    pair.settle();
    let longest = usize::from(pair.path_mtu(Side::One)) + OVERHEAD;
    pair.longest = [longest - 1; 2];
    for (length, arrives) in [(longest - 1, true), (longest, false), (longest + 1, true)] {
        pair.delivered.clear();
        pair.send(Side::One, &vec![7; length - OVERHEAD - 28]);
        pair.settle();
        assert_eq!(pair.payloads(Side::Two).len(), usize::from(arrives), "{length}");
    }
}

/// The one's-complement sum of all words.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum::<u64>() % 0xffff
}

/// A TCP SYN that asks for segments of up to 1460 bytes.
fn syn(from: Side) -> Vec<u8> {
    let mut packet = inner_packet(from.inner(), from.other().inner(), &[0; 16]);
    packet[9] = 6;
    packet[20..].copy_from_slice(&[
        0x1f, 0x90, 0xc3, 0x50, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x02, 1, 2, 0, 0, 0, 0, 2, 4, 0x05, 0xb4,
    ]);
    packet
}

#[test]
fn a_syn_asks_for_segments_that_fit_the_path_on_which_they_will_come() {
    let mut pair = pair_on([OF_1280, OF_1300]);
    pair.carry(seconds(5));
    for (from, longest) in [(Side::One, OF_1300), (Side::Two, OF_1280)] {
        pair.delivered.clear();
        pair.send_packet(from, syn(from)).unwrap();
        pair.settle();
        let [(_, to, packet)] = &pair.delivered[..] else { panic!("one packet") };
        assert_eq!(*to, from.other());
        let segment_size = u16::from_be_bytes([packet[42], packet[43]]);
        assert!(is_found(segment_size + 40, longest), "{segment_size}");
    }
    for checksum_partial in [false, true] {
        let (now, sent) = (pair.now, syn(Side::One));
        let packet = StagedPacket { bytes: sent.clone(), checksum_partial };
        pair.one.handle_packet(now, packet).unwrap();
        pair.settle();
        let (.., received) = pair.delivered.pop().unwrap();
        let checksum = |tcp: &[u8]| [tcp[16], tcp[17]];
        match checksum_partial {
            false => assert_eq!(sum(&received[20..]), sum(&sent[20..])),
            true => assert_eq!(checksum(&received[20..]), checksum(&sent[20..])),
        }
    }
    let mut pair = pair_on([usize::MAX; 2]);
    pair.send_packet(Side::One, syn(Side::One)).unwrap();
    pair.settle();
    assert_eq!(pair.delivered[0].2, syn(Side::One), "a path that carries everything changes nothing");
}

#[test]
fn a_link_without_data_is_left_in_peace() {
    let mut pair = pair_on([OF_1280; 2]);
    pair.carry(seconds(5));
    pair.advance(PING_AFTER_DATA + seconds(2));
    pair.sent.clear();
    pair.advance(seconds(60));
    assert!(pair.sent.is_empty(), "{:?}", pair.sent.len());
    pair.longest = [usize::MAX; 2];
    pair.advance(PATH_RAISE_INTERVAL);
    let took = until_found(&mut pair, usize::from(MTU) + OVERHEAD);
    assert!(took < seconds(1), "and looked after at once when there is: {took:?}");
}

#[test]
fn a_watched_link_is_known_to_be_narrow_before_there_is_data() {
    let mut pair = Pair::with_devices(|_, config| config.mtu = Some(MtuRange::fixed(MTU)));
    let now = pair.now;
    let mut config = crate::pair::peer_config(Side::Two);
    config.watched = true;
    pair.one.upsert_peer(now, config);
    pair.longest = [OF_1280, usize::MAX];
    pair.advance(seconds(4));
    assert_eq!(pair.status(Side::One).reason, Some(LinkReason::Mtu));
    pair.longest = [usize::MAX; 2];
    pair.advance(seconds(60));
    assert_eq!(pair.status(Side::One).state, LinkState::Up);
    pair.longest = [OF_1280, usize::MAX];
    pair.advance(seconds(10));
    assert_eq!(pair.status(Side::One).reason, Some(LinkReason::Mtu), "it has shrunk without data");
}

#[test]
fn a_peer_that_moves_is_on_a_path_of_which_nothing_is_known() {
    let mut pair = pair_on([OF_1300, usize::MAX]);
    pair.carry(seconds(5));
    assert!(is_found(pair.path_mtu(Side::One), OF_1300));
    pair.addresses[1] = SocketAddr::from(([198, 51, 100, 7], 51900));
    pair.longest = [usize::MAX; 2];
    pair.send(Side::Two, b"I have moved");
    pair.advance(LATENCY * 4);
    let took = until_found(&mut pair, usize::from(MTU) + OVERHEAD);
    assert!(took < seconds(1), "{took:?}");
}

#[test]
fn probes_are_as_long_as_datagrams_with_data_and_no_longer() {
    let mut pair = pair_on([usize::MAX; 2]);
    pair.carry(seconds(30));
    let transports =
        pair.sent.iter().filter(|(.., payload)| matches!(Message::parse(payload), Ok(Message::Transport(_))));
    let longest = transports.map(|(.., payload)| payload.len()).max();
    assert_eq!(longest, Some(usize::from(MTU) + OVERHEAD));
}

/// How many probes side one sends for so long, while data passes.
fn probes_in(pair: &mut Pair, duration: Duration) -> usize {
    pair.sent.clear();
    pair.carry(duration);
    let is_probe = |payload: &[u8]| payload.len() > 1000;
    pair.sent.iter().filter(|(_, side, payload)| *side == Side::One && is_probe(payload)).count()
}

#[test]
fn confirming_costs_a_few_datagrams_a_second() {
    let mut pair = pair_on([usize::MAX; 2]);
    pair.carry(seconds(10));
    let probes = probes_in(&mut pair, seconds(100));
    assert!((300..=410).contains(&probes), "{probes}");
}

#[test]
fn many_paths_are_confirmed_more_rarely() {
    let mut pair = pair_on([usize::MAX; 2]);
    pair.add_strangers(1_999);
    pair.carry(seconds(10));
    let expected = 20 * PATH_PROBES_PER_SECOND as usize / 2_000;
    let probes = probes_in(&mut pair, seconds(20));
    assert!((expected - 1..=expected + 1).contains(&probes), "{probes}");
}
