use super::super::tests::start;
use super::*;

const INTERVAL: Duration = Duration::from_millis(200);
const MOMENT: Duration = Duration::from_millis(1);

fn endpoint() -> Endpoint {
    Endpoint::new(([192, 0, 2, 1], 51900).into())
}

fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn answer(liveness: &mut Liveness, at: Instant, round_trip: Duration) {
    liveness.on_ping_sent(at, 1, endpoint());
    let answered = Answered { endpoint: endpoint(), round_trip, is_ping: true };
    assert_eq!(liveness.on_pong(at + round_trip, 1), Some(answered));
}

fn lose(liveness: &mut Liveness, at: Instant) {
    liveness.on_ping_sent(at, 1, endpoint());
    liveness.judge_lost(at + PING_LOST_AFTER);
}

/// Of a peer that answered after 20 ms, and then no more. Returns when the last ping was sent.
fn unanswered(now: Instant, pings: u32) -> (Liveness, Instant) {
    let mut liveness = Liveness::default();
    answer(&mut liveness, now - INTERVAL, milliseconds(20));
    let mut at = now;
    for number in 0..pings {
        assert_eq!(liveness.next_at(at, INTERVAL), at, "{number}");
        assert_eq!(liveness.tend(at - MOMENT, None, INTERVAL), None, "{number}");
        assert_eq!(liveness.tend(at, None, INTERVAL), Some(Finding::Ping { unanswered: number }));
        assert_eq!(liveness.is_doubtful(), number >= ALTERNATIVE_AFTER_PINGS, "{number}");
        liveness.on_ping_sent(at, 100 + u64::from(number), endpoint());
        at += if number == 0 { liveness.patience() } else { LIVENESS_RETRY_INTERVAL };
    }
    (liveness, at - LIVENESS_RETRY_INTERVAL)
}

#[test]
fn a_round_trip_is_smoothed_and_an_answer_waited_for_within_bounds() {
    let (now, mut liveness) = (start(), Liveness::default());
    let known = |liveness: &Liveness| (liveness.round_trip(), liveness.round_trip_variation());
    assert_eq!((known(&liveness), liveness.patience()), ((None, None), LIVENESS_MAX_PATIENCE));
    answer(&mut liveness, now, milliseconds(100));
    assert_eq!(known(&liveness), (Some(milliseconds(100)), Some(milliseconds(50))));
    assert_eq!(liveness.patience(), milliseconds(300));
    answer(&mut liveness, now, milliseconds(180));
    // 7/8 of 100 and 1/8 of 180; 3/4 of 50 and 1/4 of 80.
    assert_eq!(known(&liveness), (Some(milliseconds(110)), Some(Duration::from_micros(57_500))));
    assert_eq!(liveness.patience(), milliseconds(340));
    for (round_trip, patience) in [(1, LIVENESS_MIN_PATIENCE), (400, LIVENESS_MAX_PATIENCE)] {
        let mut liveness = Liveness::default();
        answer(&mut liveness, now, milliseconds(round_trip));
        assert_eq!(liveness.patience(), patience);
    }
}

#[test]
fn a_silent_peer_is_pinged_faster_and_dead_when_the_last_ping_has_had_its_time() {
    let (mut liveness, last) = unanswered(start(), LIVENESS_PINGS_UNANSWERED);
    let missed = last + liveness.patience();
    assert_eq!(liveness.next_at(last, INTERVAL), missed);
    assert_eq!(liveness.tend(missed - MOMENT, None, INTERVAL), None);
    assert!(!liveness.is_dead());
    assert_eq!(liveness.tend(missed, None, INTERVAL), Some(Finding::Died));
    assert!(liveness.is_dead());
    let next = last + LIVENESS_DEAD_INTERVAL;
    assert_eq!(liveness.next_at(missed, INTERVAL), next);
    assert_eq!(liveness.tend(next - MOMENT, None, INTERVAL), None);
    let ping = Finding::Ping { unanswered: LIVENESS_PINGS_UNANSWERED };
    assert_eq!(liveness.tend(next, None, INTERVAL), Some(ping));
}

#[test]
fn several_pongs_bring_a_dead_peer_back_without_its_past() {
    let (mut liveness, last) = unanswered(start(), LIVENESS_PINGS_UNANSWERED);
    let mut now = last + PING_LOST_AFTER;
    assert_eq!(liveness.tend(now, None, INTERVAL), Some(Finding::Died));
    assert!(liveness.loss() > 0.5);
    for _ in 1..LIVENESS_PONGS_TO_REVIVE {
        answer(&mut liveness, now, milliseconds(20));
        assert!(liveness.is_dead());
        let next = now + LIVENESS_RETRY_INTERVAL;
        assert_eq!(liveness.tend(next - MOMENT, Some(now), INTERVAL), None, "hearing is not enough");
        assert_eq!(liveness.next_at(now, INTERVAL), next);
        now = next;
    }
    answer(&mut liveness, now, milliseconds(20));
    assert!(!liveness.is_dead() && !liveness.is_degraded());
    assert_eq!((liveness.loss(), liveness.next_at(now, INTERVAL)), (0.0, now + INTERVAL));
}

#[test]
fn whatever_is_heard_since_the_first_unanswered_ping_ends_the_doubt() {
    let now = start();
    for (heard_at, is_answered) in [(now - MOMENT, false), (now, true), (now + MOMENT, true)] {
        let (mut liveness, last) = unanswered(now, 3);
        liveness.tend(last, Some(heard_at), INTERVAL);
        assert_eq!(liveness.is_doubtful(), !is_answered);
        let wait = if is_answered { INTERVAL } else { LIVENESS_RETRY_INTERVAL };
        assert_eq!(liveness.next_at(last, INTERVAL), last + wait);
    }
}

#[test]
fn a_session_is_a_sign_of_life() {
    let (mut liveness, last) = unanswered(start(), LIVENESS_PINGS_UNANSWERED);
    assert_eq!(liveness.tend(last + PING_LOST_AFTER, None, INTERVAL), Some(Finding::Died));
    liveness.on_session();
    assert!(!liveness.is_dead() && !liveness.is_doubtful());
}

#[test]
fn pings_are_lost_after_a_second_and_probes_do_not_count() {
    let (now, mut liveness) = (start(), Liveness::default());
    liveness.on_ping_sent(now, 1, endpoint());
    liveness.on_probe_sent(now, 2, endpoint());
    liveness.on_ping_sent(now, 3, endpoint());
    liveness.on_probe_sent(now, 4, endpoint());
    assert!(liveness.on_pong(now + milliseconds(20), 3).unwrap().is_ping);
    assert!(!liveness.on_pong(now + milliseconds(900), 4).unwrap().is_ping);
    assert_eq!(liveness.on_pong(now + milliseconds(900), 3), None, "once");
    assert_eq!(liveness.round_trip(), Some(milliseconds(20)), "not that of another endpoint");
    liveness.judge_lost(now + PING_LOST_AFTER - MOMENT);
    assert_eq!((liveness.counts(), liveness.loss()), ((2, 0), 0.0));
    liveness.judge_lost(now + PING_LOST_AFTER);
    assert_eq!((liveness.counts(), liveness.loss()), ((2, 1), 0.5));
    assert_eq!(liveness.on_pong(now + PING_LOST_AFTER, 1), None, "too late");
}

#[test]
fn what_was_sent_to_another_endpoint_before_a_move_does_not_count() {
    let (mut liveness, last) = unanswered(start(), 5);
    let before = liveness.round_trip();
    liveness.on_moved();
    assert!(!liveness.is_doubtful());
    assert!(!liveness.on_pong(last + milliseconds(300), 100).unwrap().is_ping);
    liveness.judge_lost(last + PING_LOST_AFTER);
    assert_eq!((liveness.counts(), liveness.loss(), liveness.round_trip()), ((6, 0), 0.0, before));
}

#[test]
fn answers_are_waited_for_to_so_many_pings_and_probes() {
    let (now, mut liveness) = (start(), Liveness::default());
    for token in 0..=MAX_IN_FLIGHT as u64 {
        liveness.on_probe_sent(now, token, endpoint());
    }
    assert_eq!(liveness.on_pong(now, 0), None);
    assert!(liveness.on_pong(now, 1).is_some());
}

#[test]
fn a_link_is_degraded_from_a_quarter_lost_on_until_it_is_a_tenth() {
    let (now, mut liveness) = (start(), Liveness::default());
    (0..5).for_each(|_| lose(&mut liveness, now));
    let mut outcomes = 5;
    let mut after = |liveness: &mut Liveness, number: u32| {
        for _ in outcomes..number {
            answer(liveness, now, MOMENT);
        }
        outcomes = number;
        liveness.judge_lost(now);
        liveness.is_degraded()
    };
    assert!(!after(&mut liveness, MIN_OUTCOMES - 1), "too few to say");
    assert!(after(&mut liveness, 20), "a quarter");
    assert!(after(&mut liveness, 49), "more than a tenth");
    assert!(!after(&mut liveness, 50), "a tenth");
}

#[test]
fn the_loss_is_that_of_the_newest_hundred() {
    let (now, mut liveness) = (start(), Liveness::default());
    (0..100).for_each(|_| lose(&mut liveness, now));
    assert_eq!(liveness.loss(), 1.0);
    (0..50).for_each(|_| answer(&mut liveness, now, MOMENT));
    assert_eq!(liveness.loss(), 0.5);
    (0..50).for_each(|_| answer(&mut liveness, now, MOMENT));
    assert_eq!(liveness.loss(), 0.0);
}
