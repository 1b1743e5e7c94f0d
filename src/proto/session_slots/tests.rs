use std::time::Duration;

use super::super::constants::REJECT_AFTER_TIME;
use super::super::noise::Suite;
use super::super::session::tests::pair;
use super::super::tests::start;
use super::*;

const MOMENT: Duration = Duration::from_millis(1);
const NONE: [u32; 0] = [];

fn ours(local_index: u32, created_at: Instant) -> Arc<Session> {
    let [initiated, _] = pair(created_at, Suite::Aes256Gcm, 1);
    numbered(local_index, initiated)
}

fn theirs(local_index: u32, created_at: Instant) -> Arc<Session> {
    let [_, responded] = pair(created_at, Suite::Aes256Gcm, 1);
    numbered(local_index, responded)
}

fn numbered(local_index: u32, mut session: Session) -> Arc<Session> {
    session.local_index = local_index;
    Arc::new(session)
}

fn indices(sessions: &[Arc<Session>]) -> Vec<u32> {
    sessions.iter().map(|session| session.local_index).collect()
}

/// The current session, the next one, and those that only receive.
fn slots(slots: &SessionSlots) -> (Option<u32>, Option<u32>, Vec<u32>) {
    let index = |session: Option<&Arc<Session>>| session.map(|session| session.local_index);
    (index(slots.current()), index(slots.next()), slots.retired.iter().map(|session| session.local_index).collect())
}

#[test]
fn a_session_in_any_slot_is_found_by_its_index() {
    let now = start();
    let mut all = SessionSlots::default();
    assert!(all.is_empty());
    all.add_initiated(ours(1, now), Precedence::Ours);
    all.add_initiated(ours(2, now + MOMENT), Precedence::Ours);
    all.add_responded(theirs(3, now + 2 * MOMENT));
    assert_eq!(slots(&all), (Some(2), Some(3), vec![1]));
    assert!(!all.is_empty());
    assert!((1..=3).all(|index| all.get(index).is_some_and(|session| session.local_index == index)));
    assert!(all.get(4).is_none());
    assert_eq!(indices(&all.end_all()), [2, 3, 1]);
    assert!(all.is_empty());
}

#[test]
fn a_session_that_waits_is_replaced_by_the_peers_next_initiation() {
    let now = start();
    let mut all = SessionSlots::default();
    assert_eq!(indices(&all.add_responded(theirs(1, now))), NONE);
    assert_eq!(indices(&all.add_responded(theirs(2, now))), [1]);
    assert!(!all.is_empty(), "one that waits is one");
    assert_eq!(slots(&all), (None, Some(2), vec![]));
}

#[test]
fn what_waits_beside_ours_goes_on_waiting_only_if_both_crossed_and_theirs_wins() {
    let now = start();
    for (precedence, apart, waits) in [
        (Precedence::Theirs, MOMENT, true),
        (Precedence::Theirs, SIMULTANEOUS_INTERVAL - MOMENT, true),
        (Precedence::Theirs, SIMULTANEOUS_INTERVAL, false),
        (Precedence::Ours, MOMENT, false),
    ] {
        let mut all = SessionSlots::default();
        all.add_responded(theirs(1, now));
        assert_eq!(indices(&all.add_initiated(ours(2, now + apart), precedence)), NONE);
        let expected = if waits { (Some(2), Some(1), vec![]) } else { (Some(2), None, vec![1]) };
        assert_eq!(slots(&all), expected, "{precedence:?} {apart:?}");
    }
}

#[test]
fn what_the_peer_confirms_takes_over_unless_it_crossed_ours_and_ours_wins() {
    let now = start();
    let late = now + 2 * SIMULTANEOUS_INTERVAL;
    for (current, next, precedence, takes_over) in [
        (ours(1, late), theirs(2, late), Precedence::Ours, false),
        (ours(1, late), theirs(2, late - MOMENT), Precedence::Ours, false),
        (ours(1, late), theirs(2, late + MOMENT), Precedence::Ours, true),
        (ours(1, late), theirs(2, late - SIMULTANEOUS_INTERVAL), Precedence::Ours, true),
        (ours(1, late), theirs(2, late), Precedence::Theirs, true),
        (theirs(1, late), theirs(2, late), Precedence::Ours, true),
    ] {
        let mut all = SessionSlots { current: Some(current), ..SessionSlots::default() };
        all.add_responded(next);
        assert_eq!(all.next_takes_over(precedence), takes_over, "{all:?} {precedence:?}");
        assert!(!all.confirm(1, precedence).0, "it is the current one");
        let (was_next, ended) = all.confirm(2, precedence);
        assert!(was_next && ended.is_empty());
        assert_eq!(slots(&all), if takes_over { (Some(2), None, vec![1]) } else { (Some(1), None, vec![2]) });
        assert!(!all.next_takes_over(precedence), "none is left");
    }
}

#[test]
fn the_newest_few_go_on_receiving() {
    let now = start();
    let mut all = SessionSlots::default();
    for number in 1..=4 {
        assert_eq!(indices(&all.add_initiated(ours(number, now + number * MOMENT), Precedence::Ours)), NONE);
    }
    assert_eq!(slots(&all), (Some(4), None, vec![3, 2, 1]));
    assert_eq!(indices(&all.add_initiated(ours(5, now + 5 * MOMENT), Precedence::Ours)), [1]);
    // One that loses is retired too.
    all.add_responded(theirs(6, now + 5 * MOMENT));
    assert_eq!(indices(&all.confirm(6, Precedence::Ours).1), [2]);
    assert_eq!(slots(&all), (Some(5), None, vec![6, 4, 3]));
}

#[test]
fn what_the_peer_has_left_ends_with_all_that_is_older() {
    let now = start();
    let mut all = SessionSlots::default();
    for number in 1..=3 {
        all.add_initiated(ours(number, now + number * MOMENT), Precedence::Ours);
    }
    all.add_responded(theirs(4, now + 4 * MOMENT));
    assert_eq!(indices(&all.end_up_to(9)), NONE);
    assert_eq!(indices(&all.end_up_to(2)), [2, 1]);
    assert_eq!(slots(&all), (Some(3), Some(4), vec![]));
}

#[test]
fn each_expires_in_its_time() {
    let now = start();
    let mut all = SessionSlots::default();
    assert_eq!(all.next_expiry(), None);
    all.add_initiated(ours(1, now), Precedence::Ours);
    all.add_initiated(ours(2, now + MOMENT), Precedence::Ours);
    assert_eq!(all.next_expiry(), Some(now + REJECT_AFTER_TIME));
    assert_eq!(indices(&all.expire(now + REJECT_AFTER_TIME - MOMENT)), NONE);
    assert_eq!(indices(&all.expire(now + REJECT_AFTER_TIME)), [1]);
    assert_eq!(all.next_expiry(), Some(now + MOMENT + REJECT_AFTER_TIME));
}
