//! An interface whose MTU is found from the paths: how it grows, and what holds it.

use std::time::Duration;

use underpass::packet::frame::FRAME_HEADER_LEN;
use underpass::packet::message::TRANSPORT_OVERHEAD;
use underpass::proto::constants::{MTU_LOWER_AFTER, MTU_MOST, PATH_SEARCH_STEP};
use underpass::proto::event::Event;
use underpass::proto::interface_mtu::MtuRange;
use underpass::proto::stats::LinkState;

use crate::pair::{LATENCY, Pair, Side, peer_config, seconds};

const LEAST: u16 = 1420;
const AUTO: MtuRange = MtuRange { least: LEAST, most: MTU_MOST, current: LEAST };
const OVERHEAD: u16 = (TRANSPORT_OVERHEAD + FRAME_HEADER_LEN) as u16;
/// UDP payload of an IPv4 packet of 9000 bytes, which both sides' own links carry.
const JUMBO: u16 = 9000 - 28;
/// Of one of 1500.
const USUAL: u16 = 1500 - 28;

/// Two sides on a path of datagrams of up to `longest` bytes, not yet connected.
fn pair_with(ranges: [MtuRange; 2], longest: u16) -> Pair {
    let mut pair = Pair::with_devices(|side, config| config.mtu = Some(ranges[side as usize]));
    pair.longest = [longest.into(); 2];
    pair
}

/// Both sides' own links carry datagrams of up to `length` bytes.
fn set_ceilings(pair: &mut Pair, length: u16) {
    for side in [Side::One, Side::Two] {
        let (now, remote) = (pair.now, side.other().address().ip());
        assert!(pair.device(side).set_path_ceiling(now, &side.other().public_key(), remote, length));
    }
}

/// The same, connected and left alone for `duration`.
fn settled(ranges: [MtuRange; 2], longest: u16, duration: Duration) -> Pair {
    let mut pair = pair_with(ranges, longest);
    pair.connect(Side::One);
    set_ceilings(&mut pair, JUMBO);
    pair.advance(duration);
    pair
}

/// What the interface of `side` was told to take, one after the other.
fn told(pair: &Pair, side: Side) -> Vec<u16> {
    let changes = pair.events.iter().filter_map(|(told, event)| match event {
        Event::MtuChanged { mtu } if *told == side => Some(*mtu),
        _ => None,
    });
    changes.collect()
}

fn is_found(mtu: u16, longest: u16) -> bool {
    let most = longest - OVERHEAD;
    (most - PATH_SEARCH_STEP..=most).contains(&mtu)
}

#[test]
fn a_jumbo_path_is_used_after_a_few_round_trips_and_without_data() {
    let mut pair = settled([AUTO; 2], JUMBO, LATENCY * 10);
    for side in [Side::One, Side::Two] {
        assert_eq!(pair.path_mtu(side), JUMBO - OVERHEAD);
        assert_eq!(told(&pair, side), [JUMBO - OVERHEAD]);
        assert_eq!(pair.status(side).state, LinkState::Up);
    }
    pair.carry(seconds(200));
    assert_eq!([Side::One, Side::Two].map(|side| told(&pair, side).len()), [1; 2], "once");
}

#[test]
fn traffic_does_not_wait_for_a_search_beyond_what_most_paths_carry() {
    let mut pair = pair_with([AUTO; 2], USUAL);
    pair.connect(Side::One);
    set_ceilings(&mut pair, JUMBO);
    pair.advance(LATENCY * 4);
    assert!(pair.path_mtu(Side::One) >= LEAST);
}

#[test]
fn a_path_of_1500_bytes_changes_nothing_whatever_the_links_at_its_ends() {
    for ceiling in [JUMBO, USUAL] {
        let mut pair = pair_with([AUTO; 2], USUAL);
        pair.connect(Side::One);
        set_ceilings(&mut pair, ceiling);
        pair.events.clear();
        pair.carry(seconds(100));
        for side in [Side::One, Side::Two] {
            assert!(pair.path_mtu(side) >= LEAST, "{ceiling}");
            assert_eq!(told(&pair, side), [0; 0]);
            let status = pair.status(side);
            assert_eq!((status.state, status.reason), (LinkState::Up, None), "{ceiling}");
        }
        let links = pair.events.iter().filter(|(_, event)| matches!(event, Event::LinkChanged { .. }));
        assert_eq!(links.count(), 0, "nor is any link called narrow meanwhile");
    }
}

#[test]
fn what_lies_between_is_found_within_seconds_and_told_once() {
    for longest in [2000, 4000, 8000] {
        let mut pair = settled([AUTO; 2], longest, seconds(5));
        for side in [Side::One, Side::Two] {
            let mtu = pair.path_mtu(side);
            assert!(is_found(mtu, longest), "{longest}: {mtu}");
            assert_eq!(told(&pair, side), [mtu]);
        }
    }
}

#[test]
fn nothing_longer_is_tried_than_this_machine_sends() {
    let mut pair = pair_with([AUTO; 2], JUMBO);
    pair.connect(Side::One);
    pair.carry(seconds(5));
    assert_eq!(told(&pair, Side::One), [0; 0], "nobody has said what it sends");
    set_ceilings(&mut pair, USUAL);
    pair.carry(seconds(5));
    assert!(pair.sent.iter().all(|(.., datagram)| datagram.len() <= usize::from(LEAST + OVERHEAD)));
    set_ceilings(&mut pair, 4028);
    pair.carry(seconds(5));
    let longest = pair.sent.iter().map(|(.., datagram)| datagram.len()).max();
    assert_eq!((longest, told(&pair, Side::One)), (Some(4028), vec![4028 - OVERHEAD]));
}

#[test]
fn nothing_longer_is_tried_than_the_peer_has_announced() {
    for (range, expected) in
        [(MtuRange::fixed(1420), LEAST), (MtuRange::fixed(1280), LEAST), (MtuRange::fixed(8000), 8000)]
    {
        let mut pair = settled([AUTO, range], JUMBO, seconds(5));
        assert_eq!(pair.path_mtu(Side::One), expected);
        assert_eq!(told(&pair, Side::One), if expected > LEAST { vec![expected] } else { Vec::new() });
        assert_eq!(pair.path_mtu(Side::Two), range.least, "a number stays what it is");
        assert_eq!(told(&pair, Side::Two), [0; 0]);
        assert_eq!(pair.status(Side::One).state, LinkState::Up);
    }
}

#[test]
fn a_peer_that_has_announced_nothing_gets_what_it_always_got() {
    let mut pair = Pair::with_devices(|side, config| config.mtu = (side == Side::One).then_some(AUTO));
    pair.connect(Side::One);
    set_ceilings(&mut pair, JUMBO);
    pair.carry(seconds(5));
    assert_eq!((pair.path_mtu(Side::One), told(&pair, Side::One)), (LEAST, vec![]));
}

#[test]
fn a_path_that_shrinks_is_used_as_it_is_at_once_and_the_interface_follows_later() {
    let mut pair = settled([AUTO; 2], JUMBO, seconds(1));
    pair.carry(seconds(2));
    pair.longest = [USUAL.into(); 2];
    let start = pair.now;
    while pair.path_mtu(Side::One) > LEAST {
        pair.carry(Duration::from_millis(10));
    }
    assert!(pair.now - start < Duration::from_millis(750), "{:?}", pair.now - start);
    pair.carry(Duration::from_millis(200));
    assert!(pair.path_mtu(Side::One) >= LEAST, "and soon as most paths are");
    pair.carry(seconds(10));
    assert!(is_found(pair.path_mtu(Side::One), USUAL));
    let (now, router) = (pair.now, pair.one.router());
    let path = router.route(now, Side::Two.inner().into()).unwrap().path();
    assert!(path.is_narrow() && path.is_final(), "new connections are told");
    assert_eq!(pair.status(Side::One).state, LinkState::Up, "it carries what every path is to carry");
    assert_eq!(told(&pair, Side::One).len(), 1);
    pair.carry(MTU_LOWER_AFTER);
    let expected = pair.path_mtu(Side::One);
    assert_eq!(told(&pair, Side::One), [JUMBO - OVERHEAD, expected]);
    let (now, router) = (pair.now, pair.one.router());
    assert!(!router.route(now, Side::Two.inner().into()).unwrap().path().is_narrow());
}

#[test]
fn a_path_that_is_jumbo_again_in_time_leaves_the_interface_as_it_is() {
    let mut pair = settled([AUTO; 2], JUMBO, seconds(1));
    for _ in 0..5 {
        pair.longest = [USUAL.into(); 2];
        pair.carry(seconds(10));
        pair.longest = [JUMBO.into(); 2];
        pair.carry(seconds(45));
        assert_eq!(pair.path_mtu(Side::One), JUMBO - OVERHEAD);
    }
    assert_eq!(told(&pair, Side::One), [JUMBO - OVERHEAD]);
}

#[test]
fn the_widest_path_counts_and_others_are_narrow() {
    let mut pair = settled([AUTO; 2], JUMBO, seconds(1));
    let path = |pair: &mut Pair| {
        let (now, router) = (pair.now, pair.one.router());
        router.route(now, Side::Two.inner().into()).unwrap().path()
    };
    assert!(!path(&mut pair).is_narrow());
    // As if another peer's path had been found to carry that.
    let mut pair = settled([MtuRange { current: 8940, ..AUTO }, AUTO], USUAL, seconds(10));
    assert!(path(&mut pair).is_narrow() && path(&mut pair).is_final());
    assert_eq!(pair.status(Side::One).state, LinkState::Up);
}

#[test]
fn a_link_of_this_machine_that_changes_is_followed_both_ways() {
    let mut pair = settled([AUTO; 2], JUMBO, seconds(1));
    set_ceilings(&mut pair, USUAL);
    assert!(pair.path_mtu(Side::One) <= USUAL - OVERHEAD, "at once");
    pair.carry(MTU_LOWER_AFTER + seconds(1));
    assert_eq!(told(&pair, Side::One), [JUMBO - OVERHEAD, LEAST]);
    set_ceilings(&mut pair, JUMBO);
    pair.carry(seconds(1));
    assert_eq!(told(&pair, Side::One), [JUMBO - OVERHEAD, LEAST, JUMBO - OVERHEAD]);
}

#[test]
fn a_peer_that_is_removed_no_longer_holds_the_interface_up() {
    let mut pair = settled([AUTO; 2], JUMBO, seconds(1));
    let now = pair.now;
    assert_eq!(told(&pair, Side::One), [JUMBO - OVERHEAD]);
    pair.events.clear();
    pair.one.remove_peer(&Side::Two.public_key());
    pair.one.upsert_peer(now, peer_config(Side::Two));
    // The new one is not told how long datagrams leave for it.
    pair.connect(Side::One);
    pair.carry(MTU_LOWER_AFTER - seconds(2));
    assert_eq!(told(&pair, Side::One), [0; 0]);
    pair.carry(seconds(4));
    assert_eq!(told(&pair, Side::One), [LEAST]);
}

#[test]
fn random_loss_does_not_change_the_interface() {
    let mut pair = settled([AUTO; 2], JUMBO, seconds(1));
    let mut state = 7u64;
    pair.lose = Box::new(move |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 100 < 5
    });
    pair.carry(seconds(600));
    assert_eq!(told(&pair, Side::One), [JUMBO - OVERHEAD]);
}
