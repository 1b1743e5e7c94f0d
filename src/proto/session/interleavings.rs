use loom::thread;

use super::super::tests::start;
use super::tests::{open, pair, sealed};
use super::*;
use crate::packet::message::Message;

/// Does the same in two threads, and then looks at what came of it.
fn twice<T: Send + 'static>(work: fn(&Shared) -> T, check: fn([T; 2])) {
    loom::model(move || {
        let now = start();
        let [one, two] = pair(now, Suite::Aes256Gcm, 1);
        let datagram = sealed(&one, now, 0, b"attack at dawn").unwrap();
        let shared = Arc::new(Shared { now, one, two, datagram });
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared))
        };
        let mine = work(&shared);
        check([mine, other.join().unwrap()]);
    });
}

/// Both ends of a session, and a datagram from one to two.
struct Shared {
    now: Instant,
    one: Session,
    two: Session,
    datagram: Vec<u8>,
}

#[test]
fn loom_two_workers_never_seal_with_one_nonce() {
    let counter = |shared: &Shared| {
        let datagram = sealed(&shared.one, shared.now, 0, b"retreat").unwrap();
        let Ok(Message::Transport(header)) = Message::parse(&datagram) else { panic!("not transport data") };
        header.counter
    };
    twice(counter, |mut counters| {
        counters.sort_unstable();
        assert_eq!(counters, [1, 2]);
    });
}

#[test]
fn loom_two_workers_never_both_open_a_datagram() {
    twice(
        |shared| open(&shared.two, shared.now, &shared.datagram),
        |results| {
            let refused = results.iter().filter(|result| **result == Err(DropReason::Replayed)).count();
            assert_eq!((refused, results.iter().flatten().count()), (1, 1));
        },
    );
}

#[test]
fn loom_not_one_nonce_beyond_the_limit_is_used() {
    let seal = |shared: &Shared| {
        let lane = &shared.one.send_lanes[0];
        // Another worker may be here too.
        lane.next_counter.fetch_max(REJECT_AFTER_MESSAGES - 1, Ordering::Relaxed);
        sealed(&shared.one, shared.now, 0, b"retreat").is_ok()
    };
    twice(seal, |sealed| assert_eq!(sealed.into_iter().filter(|sealed| *sealed).count(), 1));
}
