use underpass::keys::{PresharedKey, PrivateKey, PublicKey};
use underpass::proto::constants::{REJECT_AFTER_TIME, RETRY_INTERVALS, RETRY_JITTER};
use underpass::proto::event::Event;
use underpass::proto::peer::PeerConfig;
use underpass::proto::stats::LinkState;

use crate::pair::{Pair, Side, peer_config, seconds, start};

#[test]
fn a_changed_preshared_key_is_used_by_the_next_handshake_and_does_not_end_the_session() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let now = pair.now;
    for side in [Side::One, Side::Two] {
        let mut changed = peer_config(side.other());
        changed.preshared_key = Some(PresharedKey::from_bytes([9; 32]).unwrap());
        pair.device(side).upsert_peer(now, changed);
    }
    pair.send(Side::One, b"same session");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"same session"]);
    assert!(pair.initiations(Side::One).is_empty());
    pair.advance(seconds(200));
    pair.send(Side::One, b"new session");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two)[1], b"new session");

    pair.restart(Side::One, seconds(1_800_000_000));
    pair.advance(seconds(2));
    pair.send(Side::One, b"without the key");
    pair.advance(seconds(3));
    assert_eq!(pair.payloads(Side::Two).len(), 2);
}

#[test]
fn a_key_pair_is_replaced_step_by_step_without_losing_the_link() {
    let mut pair = Pair::new();
    pair.connect(Side::One);
    let new_private = PrivateKey::from_bytes([42; 32]).unwrap();
    let new_public = new_private.public_key();

    // 1. Two learns the key that will come.
    let mut both = peer_config(Side::One);
    both.next_public_key = Some(new_public);
    let now = pair.now;
    pair.two.upsert_peer(now, both);
    // 2. One changes over, and still answers to its old key.
    pair.one.set_private_key(now, new_private, Some(Side::One.private_key()));
    pair.send(Side::One, b"old session");
    pair.settle();
    pair.advance(seconds(200));
    pair.send(Side::Two, b"to the old key");
    pair.settle();
    pair.advance(seconds(200));
    pair.send(Side::One, b"from the new key");
    pair.settle();
    // 3. Two forgets the old key.
    let mut new_only = peer_config(Side::One);
    new_only.public_key = new_public;
    let now = pair.now;
    pair.two.upsert_peer(now, new_only);
    pair.send(Side::Two, b"same session still");
    pair.settle();
    pair.advance(seconds(200));
    pair.send(Side::Two, b"to the new key");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"old session".to_vec(), b"from the new key".to_vec()]);
    assert_eq!(
        pair.payloads(Side::One),
        [b"to the old key".to_vec(), b"same session still".to_vec(), b"to the new key".to_vec()]
    );
    assert_eq!(pair.two.status(pair.now).peers.len(), 1);
}

#[test]
fn a_peer_that_has_only_its_next_key_is_found_by_the_second_initiation_and_from_then_on_by_the_first() {
    let mut pair = Pair::new();
    let new_private = PrivateKey::from_bytes([42; 32]).unwrap();
    let both = PeerConfig { next_public_key: Some(new_private.public_key()), ..peer_config(Side::One) };
    let now = pair.now;
    pair.two.upsert_peer(now, both.clone());
    pair.one.set_private_key(now, new_private, None);
    pair.send(Side::Two, b"x");
    pair.advance(seconds(2));
    assert_eq!(pair.payloads(Side::One), [b"x"]);
    assert_eq!(pair.initiations(Side::Two).len(), 2);

    pair.advance(REJECT_AFTER_TIME);
    let now = pair.now;
    pair.two.upsert_peer(now, both);
    pair.send(Side::Two, b"y");
    pair.settle();
    assert_eq!(pair.payloads(Side::One), [b"x", b"y"]);
    assert_eq!(pair.initiations(Side::Two).len(), 3, "it is remembered over a new configuration");
}

#[test]
fn a_handshake_under_way_begins_again_with_the_new_key() {
    let mut pair = Pair::new();
    let new_private = PrivateKey::from_bytes([42; 32]).unwrap();
    let mut known = peer_config(Side::One);
    known.next_public_key = Some(new_private.public_key());
    let now = pair.now;
    pair.two.upsert_peer(now, known);
    pair.send(Side::One, b"x");
    pair.one.set_private_key(now, new_private, None);
    pair.advance(seconds(3));
    assert_eq!(pair.payloads(Side::Two), [b"x"]);
    assert_eq!(pair.status(Side::One).state, LinkState::Up);
}

#[test]
fn the_retries_with_a_new_key_begin_with_the_first_wait() {
    let mut pair = Pair::new();
    pair.lose = Box::new(|_, _| true);
    pair.send(Side::One, b"x");
    pair.advance(seconds(30));
    let now = pair.now;
    pair.sent.clear();
    pair.one.set_private_key(now, PrivateKey::from_bytes([42; 32]).unwrap(), None);
    pair.advance(seconds(10));
    let initiations = pair.initiations(Side::One);
    for (sent, wait) in initiations.windows(2).zip(RETRY_INTERVALS) {
        assert!((wait..=wait + RETRY_JITTER).contains(&(sent[1] - sent[0])), "{:?} for {wait:?}", sent[1] - sent[0]);
    }
    assert!(initiations.len() > 3);
}

#[test]
fn a_peer_whose_key_becomes_our_own_is_removed() {
    let (ours, theirs) = (PrivateKey::from_bytes([42; 32]).unwrap(), Side::Two.private_key());
    for (current, previous) in [(theirs.clone(), None), (ours, Some(theirs))] {
        let mut pair = Pair::new();
        pair.connect(Side::One);
        let now = pair.now;
        pair.one.set_private_key(now, current, previous);
        assert!(pair.one.status(now).peers.is_empty());
        assert_eq!(pair.one.footprint().sessions, 0);
    }
}

#[test]
fn a_key_claimed_by_two_peers_belongs_to_the_last() {
    let [a, b, shared] = [61, 62, 63].map(|byte| PrivateKey::from_bytes([byte; 32]).unwrap());
    let known = |key: &PrivateKey, next: &PrivateKey| PeerConfig {
        public_key: key.public_key(),
        next_public_key: Some(next.public_key()),
        ..peer_config(Side::Two)
    };
    let mut pair = Pair::without_peers(start());
    let now = pair.now;
    pair.one.upsert_peer(now, known(&a, &shared));
    pair.one.upsert_peer(now, known(&b, &shared));
    let names = |pair: &Pair| pair.one.status(now).peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>();
    let sorted = |keys: &[&PrivateKey]| {
        let mut keys: Vec<PublicKey> = keys.iter().map(|key| key.public_key()).collect();
        keys.sort();
        keys
    };
    assert_eq!(names(&pair), sorted(&[&a, &b]));

    pair.two.set_private_key(now, shared.clone(), None);
    pair.two.upsert_peer(now, peer_config(Side::One));
    pair.send(Side::Two, b"whose?");
    pair.settle();
    let established = |(side, event): &(Side, Event)| match event {
        Event::SessionEstablished { peer, .. } if *side == Side::One => Some(*peer),
        _ => None,
    };
    assert_eq!(pair.events.iter().filter_map(established).collect::<Vec<_>>(), [b.public_key()]);

    pair.one.upsert_peer(now, known(&a, &b));
    assert_eq!(names(&pair), sorted(&[&a, &shared]), "the other is known by the key that it has left");
    pair.one.upsert_peer(now, known(&a, &shared));
    assert_eq!(names(&pair), sorted(&[&a]), "and is no more without any");
    assert_eq!(pair.one.footprint().sessions, 0);
}
