//! A copy of a device's memory, as a virtual machine's snapshot has it, and what it tells of later sessions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use underpass::packet::message::{DH_LEN, INITIATION_NOISE, Message, RESPONSE_KEM_CIPHERTEXT};
use underpass::proto::constants::REJECT_AFTER_TIME;
use underpass::proto::device::Device;
use underpass::proto::event::{Event, Interruption};
use underpass::proto::randomness::Entropy;
use underpass::proto::router::Router;

use crate::pair::{Pair, Side, UNIX_TIME, device_config, peer_config, seconds, start};

/// An event in the life of the two.
#[derive(Debug, Clone, Copy)]
enum Step {
    Send(Side),
    Wait(u64),
    Shutdown(Side),
    Lose(bool),
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::One), Just(Side::Two)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => side().prop_map(Step::Send),
        3 => (1_u64..3000).prop_map(Step::Wait),
        1 => side().prop_map(Step::Shutdown),
        1 => any::<bool>().prop_map(Step::Lose),
    ]
}

/// The ephemeral keys that side one sends before and after step `copied_at` of `steps` and a last handshake of each side,
/// if the machine gives it other entropy from that step on, named by `world`.
fn ephemeral_keys(steps: &[Step], copied_at: usize, world: u64) -> [BTreeSet<Vec<u8>>; 2] {
    let entropy_of_one = Arc::new(AtomicU64::new(0));
    let mut pair = Pair::without_peers(start());
    let now = pair.now;
    pair.one = Device::new(now, UNIX_TIME, device_config(Side::One), numbered(entropy_of_one.clone()));
    pair.one.upsert_peer(now, peer_config(Side::Two));
    pair.two.upsert_peer(now, peer_config(Side::One));
    let run = |pair: &mut Pair, steps: &[Step]| {
        for step in steps {
            apply(pair, *step);
        }
    };
    run(&mut pair, &steps[..copied_at]);
    let before = sent_by_one(&mut pair);
    entropy_of_one.store(world, Ordering::Relaxed);
    run(&mut pair, &steps[copied_at..]);
    for side in [Side::One, Side::Two] {
        run(&mut pair, &[Step::Lose(false), Step::Wait(REJECT_AFTER_TIME.as_millis() as u64), Step::Send(side)]);
        pair.advance(seconds(10));
    }
    [before, sent_by_one(&mut pair)]
}

/// Bytes that follow from how many came before, and from a number that may change.
fn numbered(world: Arc<AtomicU64>) -> Entropy {
    let mut drawn = 0_u64;
    Entropy::new(move || {
        drawn += 1;
        let mut fresh = [1; 32];
        fresh[..8].copy_from_slice(&drawn.to_le_bytes());
        fresh[8..16].copy_from_slice(&world.load(Ordering::Relaxed).to_le_bytes());
        fresh
    })
}

fn apply(pair: &mut Pair, step: Step) {
    let now = pair.now;
    match step {
        Step::Send(from) => pair.send(from, b"x"),
        Step::Wait(millis) => pair.advance(std::time::Duration::from_millis(millis)),
        Step::Shutdown(side) => pair.device(side).shutdown(now),
        Step::Lose(all) => pair.lose = Box::new(move |_, _| all),
    }
    pair.collect();
}

fn sent_by_one(pair: &mut Pair) -> BTreeSet<Vec<u8>> {
    let sent = std::mem::take(&mut pair.sent);
    sent.iter().filter(|(_, from, _)| *from == Side::One).filter_map(|(.., message)| ephemeral_key(message)).collect()
}

fn ephemeral_key(message: &[u8]) -> Option<Vec<u8>> {
    let offset = match Message::parse(message).ok()? {
        Message::Initiation(_) => INITIATION_NOISE.start,
        Message::Response(_) => RESPONSE_KEM_CIPHERTEXT.end,
        _ => return None,
    };
    Some(message[offset..][..DH_LEN].to_vec())
}

#[test]
fn after_an_interruption_nothing_is_sealed_with_the_keys_from_before_and_there_is_a_new_session() {
    for cause in [Interruption::Copied, Interruption::Suspended(seconds(60))] {
        let mut pair = Pair::new();
        pair.connect(Side::One);
        pair.advance(seconds(5));
        let old = receiver_indices(&pair.one.router());
        let its = receiver_indices(&pair.two.router());
        let now = pair.now;
        pair.sent.clear();
        pair.one.renew_sessions(now, cause);
        assert!(pair.one.router().sessions().all(|(_, session)| !old.contains(&session.local_index)));
        pair.send(Side::One, b"after");
        pair.send(Side::Two, b"with the old keys");
        pair.advance(seconds(2));
        assert!(pair.events.contains(&(Side::One, Event::SessionsRenewed { cause })));
        assert_eq!(pair.payloads(Side::Two), [b"after"]);
        assert_eq!(pair.payloads(Side::One), Vec::<Vec<u8>>::new(), "nor opened");
        assert!(pair.is_up(Side::One) && pair.is_up(Side::Two));
        let sealed_with =
            pair.sent.iter().filter(|(_, from, _)| *from == Side::One).filter_map(
                |(.., message)| match Message::parse(message) {
                    Ok(Message::Transport(_)) => Some(u32::from_le_bytes(*message[2..].first_chunk().unwrap())),
                    _ => None,
                },
            );
        assert!(sealed_with.clone().count() > 0);
        assert!(sealed_with.clone().all(|index| !its.contains(&index)), "not even a goodbye");
    }
}

fn receiver_indices(router: &Router) -> BTreeSet<u32> {
    router.sessions().map(|(_, session)| session.local_index).collect()
}

#[test]
fn after_an_interruption_who_had_no_session_is_left_alone_and_who_is_always_wanted_is_called() {
    for (persistent_keepalive, expected) in [(None, 0), (Some(seconds(25)), 1)] {
        let mut pair = Pair::with(|two| two.persistent_keepalive = persistent_keepalive, |_| ());
        pair.lose = Box::new(|_, _| true);
        pair.advance(seconds(2));
        pair.sent.clear();
        let now = pair.now;
        pair.one.renew_sessions(now, Interruption::Copied);
        pair.advance(seconds(2));
        assert!(pair.initiations(Side::One).len() >= expected && (expected > 0 || pair.sent.is_empty()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever has the copy can do all that the device did, but for what the machine's kernel gives it from there on.
    #[test]
    fn a_copy_of_a_device_at_any_step_tells_no_ephemeral_key_after_it(
        steps in prop::collection::vec(step(), 0..30),
        position in any::<prop::sample::Index>(),
    ) {
        let copied_at = position.index(steps.len() + 1);
        let [before, after] = ephemeral_keys(&steps, copied_at, 1);
        let [known_before, guessed] = ephemeral_keys(&steps, copied_at, 2);
        prop_assert_eq!(before, known_before, "the copy repeats the past");
        prop_assert!(after.len() >= 2, "an initiation and a response");
        prop_assert!(after.is_disjoint(&guessed));
    }
}
