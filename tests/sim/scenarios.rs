//! Runs that are not left to chance: races that random runs meet too rarely.

use std::net::SocketAddr;
use std::time::Duration;

use underpass::packet::frame::FRAME_HEADER_LEN;
use underpass::packet::message::{Message, TRANSPORT_OVERHEAD};
use underpass::proto::constants::{
    HANDSHAKES_PER_SECOND_UNDER_LOAD, PATH_SEARCH_STEP, REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_JITTER,
    RETRY_INTERVALS, RETRY_JITTER,
};
use underpass::proto::noise::Suite;
use underpass::proto::stats::LinkState;

use crate::arrival::PROBE_LEN;
use crate::hostile::HostileKind;
use crate::inner_packet::{Burst, LONGEST_PAYLOAD, MTU};
use crate::network::{Datagram, Fate, OUTER_HEADERS, Quality};
use crate::node::NodeSetup;
use crate::random::Random;
use crate::reference::Checked;
use crate::simulation::Simulation;
use crate::transition::Transition;
use crate::worker::OFFLOADS;

/// Two nodes that know each other.
fn two_nodes(suite: Suite, lanes: u8, has_workers: bool, natted: bool) -> Simulation {
    nodes_with(natted, |number| NodeSetup {
        number,
        suite,
        lanes,
        has_workers,
        offloads: OFFLOADS[2],
        tries_paths: false,
    })
}

fn nodes_with(natted: bool, setup: impl Fn(usize) -> NodeSetup) -> Simulation {
    let mut simulation = Simulation::with_nodes((0..2).map(setup).collect(), &[false, natted], false, 1);
    simulation.introduce_plainly(0, 1);
    simulation
}

fn delivered(simulation: &Simulation, numbers: impl IntoIterator<Item = u64>) -> usize {
    numbers.into_iter().filter(|number| simulation.ledger.packet(*number).delivered_at.is_some()).count()
}

#[test]
fn both_sides_initiating_at_once_find_each_other_whatever_is_lost_or_late() {
    const FATES: [Fate; 3] = [Fate::Arrives, Fate::IsLost, Fate::IsLate(Duration::from_millis(50))];
    let meet = |fates: &[Fate], has_workers| -> Checked {
        let mut simulation = two_nodes(Suite::Aes256Gcm, 1, has_workers, false);
        simulation.network.decide(fates.iter().copied());
        simulation.apply(&Transition::SendBoth { one: 0, two: 0 })?;
        simulation.advance(Duration::from_millis(300))?;
        simulation.apply(&Transition::Heal)
    };
    for case in 0..3usize.pow(6) {
        let fates: Vec<Fate> = (0..6).map(|place| FATES[case / 3usize.pow(place) % 3]).collect();
        meet(&fates, case % 2 == 0).unwrap_or_else(|violation| panic!("{fates:?}: {}", violation.0));
    }
}

#[test]
fn a_lost_or_late_datagram_costs_only_its_own_segments() {
    const FATES: [Fate; 3] = [Fate::Arrives, Fate::IsLost, Fate::IsLate(Duration::from_millis(50))];
    let burst = Burst { segments: 5, length: LONGEST_PAYLOAD, last: 700, is_partial: true };
    let mut simulation = two_nodes(Suite::Aes256Gcm, 1, true, false);
    simulation.apply(&Transition::SendBoth { one: 0, two: 0 }).unwrap();
    simulation.advance(Duration::from_secs(1)).unwrap();
    for case in 0..3usize.pow(5) {
        let fates: Vec<Fate> = (0..5).map(|place| FATES[case / 3usize.pow(place) % 3]).collect();
        simulation.network.decide(fates.iter().copied());
        // Longer than half a packet, so that each has a datagram of its own.
        let first = simulation.send_bursts(0, 1, 1, burst, case % 2 == 0, false).unwrap();
        simulation.advance(Duration::from_millis(100)).unwrap();
        for (number, fate) in (first..).zip(&fates) {
            let arrived = delivered(&simulation, [number]) == 1;
            assert_eq!(arrived, *fate != Fate::IsLost, "segment {} of {fates:?}", number - first);
        }
    }
}

#[test]
fn superpackets_of_one_flow_are_written_to_the_tun_as_they_were_sent() {
    let mut simulation = two_nodes(Suite::Aes256Gcm, 1, true, false);
    simulation.apply(&Transition::SendBoth { one: 0, two: 0 }).unwrap();
    simulation.advance(Duration::from_secs(1)).unwrap();
    let before = simulation.tally.writes;
    let burst = Burst { segments: 40, length: LONGEST_PAYLOAD, last: 100, is_partial: true };
    let first = simulation.send_bursts(0, 1, 3, burst, true, false).unwrap();
    simulation.advance(Duration::from_secs(1)).unwrap();
    assert_eq!(delivered(&simulation, first..first + 120), 120);
    // One for each, and one more where datagrams are received apart, 64 at once.
    assert_eq!(simulation.tally.writes - before, 4);
}

#[test]
fn what_a_hostile_peer_seals_is_dropped_and_counted_and_changes_nothing_else() {
    for has_workers in [true, false] {
        let mut simulation = two_nodes(Suite::Aes256Gcm, 2, has_workers, false);
        simulation.apply(&Transition::SendBoth { one: 0, two: 0 }).unwrap();
        simulation.advance(Duration::from_secs(1)).unwrap();
        for kind in HostileKind::ALL.repeat(20) {
            let first = simulation.ledger.next_number();
            simulation.apply(&Transition::SendHostile { from: 0, to: 0, kind }).unwrap();
            simulation.advance(Duration::from_millis(50)).unwrap();
            let next = simulation.send(0, 1, 1, 20).unwrap();
            simulation.advance(Duration::from_millis(50)).unwrap();
            let of_train = delivered(&simulation, first..next);
            let expected = match kind {
                HostileKind::Header => 7..=8,
                HostileKind::Source | HostileKind::CutShort | HostileKind::UnknownFlags => 7..=7,
                // It and all behind it in its datagram.
                HostileKind::FrameTooLong | HostileKind::Padding => 0..=7,
                _ => 8..=8,
            };
            assert!(expected.contains(&of_train), "{of_train} of {kind:?}");
            assert_eq!(delivered(&simulation, [next]), 1, "an honest packet behind {kind:?}");
        }
        assert!(!has_workers || simulation.tally.refused > 0);
    }
}

#[test]
fn an_hour_of_traffic_over_a_perfect_network_loses_nothing_and_rekeys_once_per_interval() {
    for (suite, has_workers) in [(Suite::Aes256Gcm, true), (Suite::ChaCha20Poly1305, false)] {
        let mut simulation = two_nodes(suite, 2, has_workers, false);
        let duration = Duration::from_secs(3600);
        let interval = Duration::from_millis(900);
        simulation.apply(&Transition::Stream { from: 0, to: 0, both_ways: true, interval, duration }).unwrap();
        let sent = simulation.ledger.next_number();
        assert_eq!(delivered(&simulation, 0..sent) as u64, sent);
        let established = simulation.established.len() as u32;
        let most = duration.as_secs().div_ceil((REKEY_AFTER_TIME - REKEY_JITTER).as_secs()) as u32;
        // Both sides tell of each session, and the first was made twice, at once.
        assert!((2 * most - 10..=2 * most + 2).contains(&established), "{established} sessions");
    }
}

#[test]
fn peers_without_traffic_fall_silent_and_forget_their_keys() {
    let mut simulation = two_nodes(Suite::Aes256Gcm, 2, true, false);
    simulation.apply(&Transition::SendBoth { one: 0, two: 0 }).unwrap();
    simulation.advance(Duration::from_secs(60)).unwrap();
    let datagrams = simulation.network.recorded().len();
    simulation.advance(REJECT_AFTER_TIME).unwrap();
    assert_eq!(simulation.network.recorded().len(), datagrams);
    for node in &mut simulation.nodes {
        let footprint = node.device.footprint();
        assert_eq!((footprint.sessions, footprint.session_indices, node.deadline()), (0, 0, None));
        assert_eq!(node.device.status(simulation.now).peers[0].state, LinkState::Idle);
    }
}

#[test]
fn packets_do_not_go_to_the_old_address_during_a_roam() {
    for has_workers in [true, false] {
        let mut simulation = two_nodes(Suite::Aes256Gcm, 1, has_workers, false);
        simulation.apply(&Transition::SendBoth { one: 0, two: 0 }).unwrap();
        simulation.advance(Duration::from_secs(1)).unwrap();
        // What node 1 sends before it moves arrives after what it sends then.
        *simulation.network.link(1, 0) = Quality { jitter: Duration::from_millis(300), ..Quality::PERFECT };
        for _ in 0..3 {
            stream_at_close_intervals(&mut simulation);
            simulation.roam(1);
            stream_at_close_intervals(&mut simulation);
        }
        let mut seen: Vec<SocketAddr> = Vec::new();
        // A probe asks where node 1 seems to be before anything else goes there.
        let is_data = |datagram: &Datagram| datagram.payload.len() != PROBE_LEN;
        let recorded = simulation.network.recorded();
        for recorded in recorded.iter().filter(|recorded| recorded.sender == 0 && is_data(&recorded.datagram)) {
            let to = recorded.datagram.to;
            assert!(!seen.contains(&to) || seen.last() == Some(&to), "back to {to}");
            if seen.last() != Some(&to) {
                seen.push(to);
            }
        }
        assert!(seen.len() >= 2, "node 0 never followed: {seen:?}");
    }
}

fn stream_at_close_intervals(simulation: &mut Simulation) {
    let (interval, duration) = (Duration::from_millis(20), Duration::from_millis(600));
    simulation.apply(&Transition::Stream { from: 1, to: 0, both_ways: true, interval, duration }).unwrap();
}

#[test]
fn under_load_a_peer_behind_a_nat_gets_through_also_after_its_address_changed() {
    let mut simulation = two_nodes(Suite::ChaCha20Poly1305, 1, true, true);
    let first_retries = RETRY_INTERVALS[0] + RETRY_INTERVALS[1] + RETRY_JITTER * 2;
    for _ in 0..2 {
        // The first initiation gets a cookie, the second is worked on; after the move, the cookie is another address's.
        let number = simulation.send(1, 0, 1, 20).unwrap();
        let cookies = count_cookies(&simulation);
        flood_before_every_arrival(&mut simulation, first_retries + Duration::from_millis(100));
        assert_eq!(delivered(&simulation, [number]), 1);
        assert!(count_cookies(&simulation) > cookies, "no cookie was demanded");
        simulation.apply(&Transition::Restart { node: 1, goodbye: false, clock_back: Duration::ZERO }).unwrap();
        simulation.roam(1);
    }
}

/// Lets `duration` pass. Whatever arrives in it meets a node 0 that has just been asked for more than it works on.
fn flood_before_every_arrival(simulation: &mut Simulation, duration: Duration) {
    let end = simulation.now + duration;
    while simulation.now < end {
        let just_before = simulation.network.next_arrival().map(|at| at - Duration::from_micros(1));
        let at = just_before.filter(|at| *at > simulation.now).unwrap_or(simulation.now + Duration::from_millis(50));
        simulation.advance(at.min(end) - simulation.now).unwrap();
        let count = HANDSHAKES_PER_SECOND_UNDER_LOAD as usize + 1;
        simulation.apply(&Transition::Flood { to: 0, count, mac1: true }).unwrap();
    }
}

fn count_cookies(simulation: &Simulation) -> usize {
    let is_cookie = |payload: &[u8]| matches!(Message::parse(payload), Ok(Message::CookieReply(_)));
    simulation.network.recorded().iter().filter(|recorded| is_cookie(&recorded.datagram.payload)).count()
}

#[test]
fn paths_of_changing_width_are_found_whatever_the_network_does_meanwhile() {
    let headers = OUTER_HEADERS + TRANSPORT_OVERHEAD + FRAME_HEADER_LEN;
    let mut random = Random::new(5, b'p');
    let mut simulation = nodes_with(true, |number| NodeSetup {
        number,
        suite: Suite::Aes256Gcm,
        lanes: 2,
        has_workers: number == 0,
        offloads: OFFLOADS[2],
        tries_paths: true,
    });
    for _ in 0..15 {
        let mtus = [(); 2].map(|()| 1280 + random.below(280));
        for (from, mtu) in mtus.into_iter().enumerate() {
            let loss = *random.pick(&[0, 0, 5]);
            let delay = *random.pick(&[1, 10, 80]);
            let delay = Duration::from_millis(delay);
            *simulation.network.link(from, 1 - from) = Quality { mtu, loss, delay, ..Quality::PERFECT };
        }
        let mut stream = |seconds| {
            simulation.stream(0, 1, true, Duration::from_millis(100), Duration::from_secs(seconds)).unwrap();
            let of_node = |node: usize| {
                let status = simulation.nodes[node].device.status(simulation.now).peers.remove(0);
                (usize::from(status.path_mtu.unwrap()), (mtus[node] - headers).min(MTU.into()))
            };
            [0, 1].map(of_node)
        };
        let soon = stream(4);
        assert!(soon.iter().all(|(found, carried)| found <= carried), "too long: {soon:?}");
        // Twice the time between two attempts at more: chance may spoil one.
        let later = stream(75);
        let is_near =
            |(found, carried): &(usize, usize)| (carried - PATH_SEARCH_STEP as usize..=*carried).contains(found);
        assert!(later.iter().all(is_near), "not what is carried: {later:?}");
    }
}
