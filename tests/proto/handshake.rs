use std::time::Duration;

use underpass::keys::{PresharedKey, PrivateKey};
use underpass::packet::message::{INITIATION_LEN, MAC_LEN, Message};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::constants::{
    GIVE_UP_AFTER, MAX_LANES, MIN_INITIATION_INTERVAL, REFUSAL_TOLD_INTERVAL, REJECT_AFTER_TIME, RETRY_INTERVALS,
    RETRY_JITTER,
};
use underpass::proto::cookie::MacKeys;
use underpass::proto::device::Device;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::handshake::{consume_initiation, create_response};
use underpass::proto::noise::{Parameters, Suite};
use underpass::proto::randomness::{Entropy, Randomness};
use underpass::proto::stats::{LinkReason, LinkState};

use crate::pair::{InFlight, LATENCY, PING_DATAGRAM_LEN, Pair, Side, device_config, peer_config, seconds, start};

#[test]
fn a_packet_starts_a_handshake_and_follows_it() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"first");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"first"]);
    assert_eq!(pair.delivered[0].0 - pair.start, LATENCY * 3, "initiation, response, data");
    pair.send(Side::Two, b"back");
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"back"]);
    assert_eq!(pair.status(Side::One).round_trip, Some(LATENCY * 2));
    assert_eq!(pair.refused, []);
}

#[test]
fn an_attempt_begins_no_sooner_than_a_second_after_the_last_initiation_of_the_one_before() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"first");
    pair.settle();
    let now = pair.now;
    pair.two.shutdown(now);
    pair.settle();
    pair.send(Side::One, b"again");
    pair.advance(seconds(2));
    let sent: Vec<_> = pair.initiations(Side::One).iter().map(|at| *at - pair.start).collect();
    assert_eq!(sent, [Duration::ZERO, MIN_INITIATION_INTERVAL]);
}

#[test]
fn a_retry_leaves_the_choice_of_the_local_address_to_the_kernel_and_the_first_initiation_does_not() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let local = Some(Side::One.address().ip());
    assert_eq!(pair.status(Side::One).endpoint.unwrap().local, local);
    let now = pair.now;
    pair.two.shutdown(now);
    pair.settle();
    pair.lose = Box::new(|_, _| true);
    pair.send(Side::One, b"has to wait for a second to pass");
    for (initiations, expected) in [(0, local), (1, local), (2, None)] {
        while pair.initiations(Side::One).len() < initiations {
            assert!(pair.now < now + seconds(5), "{initiations}");
            pair.advance(Duration::from_millis(1));
        }
        assert_eq!(pair.status(Side::One).endpoint.unwrap().local, expected, "{initiations}");
    }
}

#[test]
fn a_link_without_a_session_is_down_while_one_is_made_and_idle_otherwise() {
    const MAKING: (LinkState, Option<LinkReason>) = (LinkState::Down, Some(LinkReason::NoHandshake));
    const IDLE: (LinkState, Option<LinkReason>) = (LinkState::Idle, Some(LinkReason::NoTraffic));
    let mut pair = Pair::new();
    let links = |pair: &mut Pair| {
        [Side::One, Side::Two].map(|side| pair.status(side)).map(|status| (status.state, status.reason))
    };
    assert_eq!(links(&mut pair), [IDLE, IDLE]);
    pair.send(Side::One, b"x");
    assert_eq!(links(&mut pair), [MAKING, IDLE]);
    pair.lose = Box::new(|side, _| side == Side::Two);
    pair.advance(LATENCY);
    assert_eq!(links(&mut pair), [MAKING, MAKING], "the responder waits for a confirmation");
    pair.advance(GIVE_UP_AFTER + REJECT_AFTER_TIME + seconds(10));
    assert_eq!(links(&mut pair), [IDLE, IDLE]);
}

#[test]
fn the_initiators_suite_is_used() {
    for suite in Suite::ALL {
        let mut pair = Pair::with(|two| two.suite = Some(suite), |_| ());
        pair.connect(Side::One);
        assert_eq!(pair.status(Side::One).suite, Some(suite));
        assert_eq!(pair.status(Side::Two).suite, Some(suite));
    }
}

#[test]
fn an_initiation_with_a_suite_that_is_not_accepted_is_refused_and_counted() {
    for (proposed, accepted) in Suite::ALL.into_iter().zip(Suite::ALL.into_iter().rev()) {
        let mut pair = Pair::with(|two| two.suite = Some(proposed), |_| ());
        pair.two.set_accepted_suites(vec![accepted]);
        pair.send(Side::One, b"x");
        pair.settle();
        assert_eq!(pair.refused, [(Side::Two, DropReason::SuiteNotAccepted)]);
        assert_eq!(pair.two.status(pair.now).drops.of(DropReason::SuiteNotAccepted), 1);
        assert_eq!(pair.sent.iter().filter(|(_, from, _)| *from == Side::Two).count(), 0, "it is answered");
        // The next one is, from here on.
        pair.two.set_accepted_suites(vec![proposed]);
        pair.advance(seconds(10));
        assert_eq!(pair.status(Side::Two).suite, Some(proposed));
    }
}

#[test]
fn the_responder_sends_nothing_before_the_initiators_first_transport_data() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|side, datagram| match Message::parse(datagram) {
        Ok(Message::Transport(_)) => side == Side::One,
        Ok(Message::Initiation(_)) => side == Side::Two,
        _ => false,
    });
    pair.send(Side::One, b"lost");
    pair.settle();
    pair.send(Side::Two, b"must wait");
    pair.settle();
    assert_eq!(pair.transports(Side::Two), []);
}

#[test]
fn initiations_are_repeated_with_growing_jittered_waits_and_given_up() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|_, _| true);
    pair.send(Side::One, b"nobody hears");
    pair.advance(GIVE_UP_AFTER + seconds(20));
    let sent = pair.initiations(Side::One);
    let mut jitters = Vec::new();
    for (number, pair) in sent.windows(2).enumerate() {
        let interval = RETRY_INTERVALS[number.min(RETRY_INTERVALS.len() - 1)];
        let waited = pair[1] - pair[0];
        assert!(waited >= interval && waited < interval + RETRY_JITTER.min(interval / 3), "wait {number}: {waited:?}");
        jitters.push(waited - interval);
    }
    jitters.dedup();
    assert!(jitters.len() > 10, "each wait has its own jitter");
    assert!(*sent.last().unwrap() - pair.start < GIVE_UP_AFTER + RETRY_JITTER);
    let peer = Side::Two.public_key();
    pair.events.retain(|(_, event)| !matches!(event, Event::LinkChanged { .. }));
    let told = [Event::HandshakeUnanswered { peer }, Event::HandshakeGivenUp { peer }];
    assert_eq!(pair.events, told.map(|event| (Side::One, event)));
    assert_eq!(pair.one.status(pair.now).drops.of(DropReason::HandshakeGivenUp), 1);

    pair.lose = Box::new(|_, _| false);
    pair.send(Side::One, b"anew");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"anew"], "what was given up is not delivered late");
}

#[test]
fn a_late_response_is_accepted_until_the_retry() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"slow");
    pair.advance(LATENCY);
    let mut response = pair.wire.pop_front().unwrap();
    assert_eq!(response.to, Side::One);
    response.arrives_at = pair.now + RETRY_INTERVALS[0] - LATENCY * 2;
    pair.wire.push_back(response);
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"slow"]);
    assert_eq!(pair.initiations(Side::One).len(), 1);
}

#[test]
fn lost_messages_of_either_kind_delay_by_one_retry_only() {
    for lost in [Side::One, Side::Two] {
        let mut pair = Pair::new();
        let mut first = true;
        pair.lose = Box::new(move |side, _| side == lost && std::mem::take(&mut first));
        pair.send(Side::One, b"x");
        pair.advance(RETRY_INTERVALS[0] + RETRY_JITTER + LATENCY * 3);
        assert_eq!(pair.payloads(Side::Two), [b"x"], "lost the first of {lost:?}");
    }
}

#[test]
fn a_replayed_initiation_is_refused() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"x");
    let initiation = pair.wire[0].clone();
    pair.settle();
    pair.sent.clear();
    pair.advance(seconds(1));
    pair.deliver(initiation);
    assert_eq!(pair.refused, [(Side::Two, DropReason::ReplayedInitiation)]);
    assert!(pair.sent.iter().all(|(_, _, payload)| payload.len() == PING_DATAGRAM_LEN), "{:?}", pair.sent);
}

#[test]
fn a_response_with_forbidden_lanes_leaves_the_initiation_answerable() {
    for lanes in [0, MAX_LANES + 1] {
        let mut pair = Pair::new();
        pair.send(Side::One, b"x");
        let initiation = pair.wire[0].clone();
        let response = InFlight { to: Side::One, from: Side::Two.address(), ..initiation.clone() };
        let payload = response_with(&initiation.payload, Parameters { lanes, features: 0, mtu: 0 });
        pair.deliver(InFlight { payload, ..response });
        assert_eq!(pair.refused, [(Side::One, DropReason::HandshakeFailed)]);
        assert!(!pair.is_up(Side::One));
        pair.settle();
        assert_eq!((pair.initiations(Side::One).len(), pair.payloads(Side::Two)), (1, vec![b"x".to_vec()]), "{lanes}");
    }
}

/// The response of side two to an initiation of side one with these parameters.
fn response_with(initiation: &[u8], parameters: Parameters) -> Vec<u8> {
    let Ok(Message::Initiation(initiation)) = Message::parse(initiation) else { panic!("no initiation") };
    let mut randomness = Randomness::new([7; 32]);
    let received = consume_initiation(Suite::Aes256Gcm, initiation, &Side::Two.private_key(), &mut randomness).unwrap();
    let indices = (7, initiation.sender_index());
    let (_, mut response) = create_response(received, indices, None, parameters, &mut randomness).unwrap();
    MacKeys::new(&Side::One.public_key()).write(&mut response, None);
    response
}

#[test]
fn whom_it_refuses_is_told_with_the_key_and_the_reason_once_a_second() {
    let mut pair = Pair::without_peers(start());
    pair.one.upsert_peer(pair.now, peer_config(Side::Two));
    pair.send(Side::One, b"let me in");
    pair.settle();
    let refusal = |peer, reason| (Side::Two, Event::InitiationRefused { peer, from: Side::One.address(), reason });
    let unknown = || refusal(Some(Side::One.public_key()), DropReason::UnknownPeer);
    pair.events.retain(|(_, event)| matches!(event, Event::InitiationRefused { .. }));
    assert_eq!(pair.events, [unknown()]);

    let mut changed = pair.sent[0].2.clone();
    changed[100] ^= 1;
    let initiation = InFlight {
        arrives_at: pair.now,
        to: Side::Two,
        from: Side::One.address(),
        to_second: false,
        traffic_class: TrafficClass::default(),
        payload: changed,
    };
    pair.deliver(initiation.clone());
    assert_eq!((pair.refused.len(), pair.events.len()), (2, 1), "not within the second");
    pair.now += REFUSAL_TOLD_INTERVAL;
    pair.deliver(initiation.clone());
    pair.deliver(initiation);
    assert_eq!(pair.events, [unknown(), refusal(None, DropReason::InvalidMac1)]);
}

#[test]
fn initiations_of_one_peer_are_spaced() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|side, _| side == Side::Two);
    pair.send(Side::One, b"x");
    pair.settle();
    let mut hasty = Pair::new();
    hasty.now = pair.now;
    hasty.restart(Side::One, seconds(1_800_000_000));
    hasty.send(Side::One, b"y");
    pair.deliver(InFlight { arrives_at: pair.now, ..hasty.wire.pop_front().unwrap() });
    assert_eq!(pair.refused, [(Side::Two, DropReason::InitiationTooSoon)]);
}

#[test]
fn a_stranger_gets_silence() {
    let mut pair = Pair::without_peers(start());
    pair.one.upsert_peer(pair.now, peer_config(Side::Two));
    pair.send(Side::One, b"let me in");
    pair.advance(seconds(3));
    assert!(pair.initiations(Side::One).len() > 1);
    assert!(pair.sent.iter().all(|(_, from, _)| *from == Side::One));
    assert!(pair.refused.iter().all(|refused| *refused == (Side::Two, DropReason::UnknownPeer)));
}

#[test]
fn who_does_not_know_the_public_key_gets_silence_for_one_hash() {
    let mut pair = Pair::new();
    let mut datagram = vec![0; INITIATION_LEN];
    datagram[..3].copy_from_slice(&[1, 1, 1]);
    for _ in 0..1000 {
        pair.deliver(InFlight {
            arrives_at: pair.now,
            to: Side::Two,
            from: Side::One.address(),
            to_second: false,
            traffic_class: TrafficClass::default(),
            payload: datagram.clone(),
        });
    }
    assert!(pair.sent.is_empty());
    assert_eq!(pair.two.status(pair.now).drops.of(DropReason::InvalidMac1), 1000);
}

#[test]
fn an_unknown_suite_is_dropped() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"x");
    let mut initiation = pair.wire.pop_front().unwrap();
    initiation.payload[2] = 77;
    let body = initiation.payload.len();
    MacKeys::new(&Side::Two.public_key()).write(&mut initiation.payload[..body], None);
    pair.deliver(initiation);
    assert_eq!(pair.refused, [(Side::Two, DropReason::UnknownSuite)]);
}

#[test]
fn a_forged_response_does_not_end_the_handshake() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"x");
    pair.advance(LATENCY);
    let genuine = pair.wire.pop_front().unwrap();
    for byte in [4, 12, 600, 1110, 1140] {
        let mut forged = genuine.clone();
        forged.payload[byte] ^= 1;
        let body = forged.payload.len();
        MacKeys::new(&Side::One.public_key()).write(&mut forged.payload[..body], None);
        pair.deliver(forged);
    }
    assert_eq!(pair.refused, [(Side::One, DropReason::HandshakeFailed); 5]);
    pair.wire.push_back(genuine);
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"x"]);
}

#[test]
fn a_response_to_nothing_is_dropped() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"x");
    pair.advance(LATENCY);
    let response = pair.wire[0].clone();
    pair.settle();
    pair.deliver(response);
    assert_eq!(pair.refused, [(Side::One, DropReason::UnexpectedAnswer)]);
}

#[test]
fn different_preshared_keys_never_meet() {
    let key = |byte| Some(PresharedKey::from_bytes([byte; 32]).unwrap());
    let mut pair = Pair::with(|two| two.preshared_key = key(1), |one| one.preshared_key = key(2));
    pair.send(Side::One, b"x");
    pair.advance(seconds(10));
    assert!(pair.payloads(Side::Two).is_empty());
    assert!(pair.refused.contains(&(Side::One, DropReason::HandshakeFailed)));

    let mut pair = Pair::with(|two| two.preshared_key = key(1), |one| one.preshared_key = key(1));
    pair.connect(Side::One);
}

#[test]
fn both_sides_initiating_at_once_converge_on_one_session() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"from one");
    pair.send(Side::Two, b"from two");
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"from two"]);
    assert_eq!(pair.payloads(Side::Two), [b"from one"]);
    pair.sent.clear();
    for side in [Side::One, Side::Two] {
        pair.send(side, b"after");
    }
    pair.settle();
    // Each side's session index, as the other puts it into datagrams, belongs to the session that the other seals with.
    let index_used_by = |from: Side| {
        let sent = pair.sent.iter().find(|(_, side, _)| *side == from);
        let Ok(Message::Transport(header)) = Message::parse(&sent.unwrap().2) else { panic!("not transport data") };
        header.receiver_index
    };
    let (to_two, to_one) = (index_used_by(Side::One), index_used_by(Side::Two));
    let is_initiator = [(Side::One, to_one, to_two), (Side::Two, to_two, to_one)].map(|(side, local, remote)| {
        let router = pair.device(side).router();
        let (_, session) = router.sessions().find(|(_, session)| session.local_index == local).unwrap();
        assert_eq!(session.remote_index, remote, "one session");
        session.is_initiator
    });
    let one_is_greater = Side::One.public_key() > Side::Two.public_key();
    assert_eq!(is_initiator, [one_is_greater, !one_is_greater], "that of the greater key");
}

#[test]
fn simultaneous_initiation_with_any_one_message_lost_does_not_stall() {
    for lost in 0..8 {
        let mut pair = Pair::new();
        let mut number = 0;
        pair.lose = Box::new(move |_, datagram| {
            let is_handshake = !matches!(Message::parse(datagram), Ok(Message::Transport(_)));
            number += 1;
            is_handshake && number - 1 == lost
        });
        pair.send(Side::One, b"one");
        pair.send(Side::Two, b"two");
        pair.advance(RETRY_INTERVALS[0] + RETRY_JITTER + LATENCY * 4);
        assert_eq!(pair.payloads(Side::One), [b"two"], "lost message {lost}");
        assert_eq!(pair.payloads(Side::Two), [b"one"], "lost message {lost}");
    }
}

#[test]
fn a_peer_that_crashed_right_after_a_handshake_is_met_again_at_once() {
    for side in [Side::One, Side::Two] {
        let mut pair = Pair::new();
        pair.connect(side);
        pair.advance(seconds(2));
        pair.restart(side.other(), seconds(1_700_000_100));
        pair.send(side.other(), b"I am back");
        pair.settle();
        pair.send(side, b"welcome back");
        pair.settle();
        assert_eq!(pair.payloads(side.other()), [b"welcome back"], "{side:?} kept the session that the other has lost");
    }
}

#[test]
fn an_answer_is_never_longer_than_what_it_answers() {
    let mut pair = Pair::new();
    for _ in 0..100 {
        pair.restart(Side::One, seconds(1_800_000_000) + (pair.now - pair.start));
        pair.send(Side::One, b"x");
        let initiation = pair.wire.pop_back().unwrap();
        let length = initiation.payload.len();
        pair.sent.clear();
        pair.now += LATENCY * 3;
        pair.deliver(initiation);
        let answered: usize = pair.sent.iter().map(|(_, _, payload)| payload.len()).sum();
        assert!(answered <= length);
        pair.wire.clear();
    }
}

#[test]
fn sessions_of_a_peer_that_restarts_again_and_again_stay_few() {
    let mut pair = Pair::new();
    for round in 0..50u64 {
        pair.restart(Side::One, seconds(1_800_000_000 + round * 10));
        pair.connect(Side::One);
        pair.advance(seconds(2));
        let sessions = format!("{:?}", pair.two.router()).matches("is_initiator").count();
        // The current (also as the route), the next, and three that only receive.
        assert!(sessions <= 6, "{sessions}");
    }
    pair.advance(seconds(400));
    for side in [Side::One, Side::Two] {
        assert!(!format!("{:?}", pair.device(side).router()).contains("Session {"), "sessions are left over");
    }
}

#[test]
fn a_peer_with_our_own_key_is_not_added() {
    let now = start();
    let mut device = Device::new(now, seconds(1), device_config(Side::One), Entropy::seeded([0; 32]));
    assert!(device.upsert_peer(now, peer_config(Side::One)).is_none());
    let mut changing = peer_config(Side::Two);
    changing.next_public_key = Some(Side::One.public_key());
    assert!(device.upsert_peer(now, changing).is_none());
    assert!(device.status(now).peers.is_empty());
}

#[test]
fn macs_close_the_message() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"x");
    let initiation = pair.wire.pop_front().unwrap();
    assert_eq!(initiation.payload[INITIATION_LEN - MAC_LEN..], [0; MAC_LEN], "no cookie, no mac2");
    assert!(MacKeys::new(&Side::Two.public_key()).verify_mac1(&initiation.payload));
    let stranger = PrivateKey::from_bytes([77; 32]).unwrap().public_key();
    assert!(!MacKeys::new(&stranger).verify_mac1(&initiation.payload));
}
