use std::time::Duration;

use underpass::packet::message::Message;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::handshake::consume_initiation;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::randomness::Randomness;
use underpass::proto::tai64n::Tai64N;

use crate::pair::{InFlight, Pair, Side, UNIX_TIME, peer_config, seconds};

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

/// The label of the newest initiation that side one has sent.
fn newest_label(pair: &Pair) -> Tai64N {
    let mut initiations = pair.sent.iter().filter_map(|(_, from, payload)| match Message::parse(payload) {
        Ok(Message::Initiation(initiation)) if *from == Side::One => Some(initiation),
        _ => None,
    });
    let mut randomness = Randomness::new([7; 32]);
    let initiation = initiations.next_back().expect("one was sent");
    consume_initiation(Suite::Aes256Gcm, initiation, &Side::Two.private_key(), &mut randomness).unwrap().timestamp
}

#[test]
fn each_initiation_is_labelled_by_the_clock_as_it_is_set_then_and_never_by_an_earlier_time() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|_, _| true);
    pair.send(Side::One, b"x");
    assert_eq!(newest_label(&pair), Tai64N::from_unix(UNIX_TIME));
    // Set right by a day, and kept so.
    let day = seconds(86_400);
    let now = pair.now;
    pair.one.set_unix_time(now, UNIX_TIME + day);
    pair.advance(seconds(1));
    let right = newest_label(&pair);
    assert!(right >= Tai64N::from_unix(UNIX_TIME + day) && right < Tai64N::from_unix(UNIX_TIME + day + seconds(1)));
    // Set back by a year.
    let now = pair.now;
    pair.one.set_unix_time(now, UNIX_TIME - day * 365);
    let before = pair.initiations(Side::One).len();
    pair.advance(seconds(30));
    assert!(pair.initiations(Side::One).len() > before);
    let later = newest_label(&pair);
    assert!(later > right && later < Tai64N::from_unix(UNIX_TIME + day + seconds(1)));
}

/// A pair of which side one, a proxy that watches its link, [starts again](restart). Two does not know where one is.
fn restarted_with(unix_time: Duration) -> Pair {
    let mut pair = Pair::with(|two| *two = watched(), |one| one.endpoints = Vec::new());
    pair.advance(seconds(5));
    assert!(pair.is_up(Side::One) && pair.is_up(Side::Two));
    restart(&mut pair, unix_time);
    pair
}

/// Has side one start with another wall clock, a second after its end.
fn restart(pair: &mut Pair, unix_time: Duration) {
    let now = pair.now;
    pair.one.shutdown(now);
    pair.settle();
    pair.advance(seconds(1));
    pair.restart(Side::One, unix_time);
    let now = pair.now;
    pair.one.upsert_peer(now, watched());
}

fn watched() -> PeerConfig {
    PeerConfig { watched: true, ..peer_config(Side::Two) }
}

#[test]
fn a_clock_that_is_behind_or_was_once_ahead_locks_nobody_out() {
    let mut pair = restarted_with(UNIX_TIME - seconds(86_400));
    pair.advance(seconds(2));
    assert!(pair.is_up(Side::One) && pair.is_up(Side::Two), "{:?}", pair.refused);
    let told = |(side, event): &(Side, Event)| {
        *side == Side::Two
            && matches!(event, Event::InitiationRefused { peer: Some(_), reason: DropReason::StaleInitiation, .. })
    };
    assert!(pair.events.iter().any(told), "the side that refuses says so");
    // It stays up, and the next sessions come as ever.
    pair.events.clear();
    pair.advance(seconds(1000));
    assert!(pair.is_up(Side::One) && pair.status(Side::One).handshakes > 3);
    let is_change = |(_, event): &(Side, Event)| matches!(event, Event::LinkChanged { .. });
    assert!(!pair.events.iter().any(is_change), "{:?}", pair.events);
}

#[test]
fn a_peer_that_initiates_to_several_restarts_with_clocks_of_any_kind_is_met_within_seconds() {
    let year = seconds(365 * 86_400);
    for clock in [UNIX_TIME, UNIX_TIME - year, UNIX_TIME + year, Duration::ZERO] {
        let mut pair = restarted_with(UNIX_TIME + year);
        pair.advance(seconds(2));
        assert!(pair.is_up(Side::One));
        restart(&mut pair, clock);
        pair.advance(seconds(2));
        assert!(pair.is_up(Side::One) && pair.is_up(Side::Two), "{clock:?}");
    }
}

#[test]
fn a_replayed_older_initiation_is_worth_one_initiation_a_second_and_nothing_while_the_peer_is_heard() {
    let mut pair = Pair::new();
    pair.send(Side::One, b"x");
    let older = pair.wire[0].clone();
    pair.connect(Side::One);
    let now = pair.now;
    pair.one.shutdown(now);
    pair.settle();
    pair.advance(seconds(2));
    pair.connect(Side::One);
    let replayed = InFlight { from: "203.0.113.66:66".parse().unwrap(), ..older };
    let [status, session] =
        [format!("{:?}", pair.status(Side::Two)), format!("{:?}", pair.two.router().sessions().count())];
    let replay = |pair: &mut Pair| pair.deliver(InFlight { arrives_at: pair.now, ..replayed.clone() });

    replay(&mut pair);
    assert_eq!(pair.refused.pop(), Some((Side::Two, DropReason::StaleInitiation)));
    assert_eq!(pair.initiations(Side::Two), [], "it was just heard");
    pair.advance(seconds(5));
    pair.sent.clear();
    // Not so fast that a cookie is demanded.
    for _ in 0..30 {
        replay(&mut pair);
        pair.advance(Duration::from_millis(100));
    }
    let answers: Vec<_> = pair.sent.iter().filter(|(_, from, _)| *from == Side::Two).collect();
    assert!((1..=3).contains(&answers.len()), "{}", answers.len());
    assert!(answers.iter().all(|(.., payload)| payload.len() <= replayed.payload.len()));
    assert_eq!(pair.status(Side::Two).endpoint.unwrap().remote, Side::One.address(), "it moves nothing");
    assert_eq!(format!("{:?}", pair.two.router().sessions().count()), session);
    assert!(!pair.events.iter().any(|(_, event)| matches!(event, Event::LinkChanged { .. })), "{status}");
    pair.advance(seconds(2));
    assert!(!pair.status(Side::Two).awaits_answer, "it does not go on by itself");
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
