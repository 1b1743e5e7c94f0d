//! Waiting for a condition with a deadline: the only place of the laboratory that reads the clock or lets time pass.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How long a condition may take when nothing says otherwise: far more than it needs on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

const POLL_INTERVAL: Duration = Duration::from_millis(10);
const MEASURING_INTERVAL: Duration = Duration::from_millis(5);

/// The monotonic clock, for deadlines and measurements.
#[expect(clippy::disallowed_methods, reason = "the laboratory watches real programs, which live in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, since 1970: what the kernel's stamps are compared with.
#[expect(clippy::disallowed_methods, reason = "the laboratory watches real programs, which live in real time")]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970")
}

/// Lets time pass in which something is measured.
pub fn pass(duration: Duration) {
    thread::sleep(duration);
}

/// Waits until `condition` holds, and fails the test when it does not within [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    until_within(PATIENCE, what, &mut condition);
}

/// Waits until `condition` holds, and fails the test when it does not `within` that time.
#[track_caller]
pub fn until_within(within: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    value_within(within, what, || condition().then_some(()));
}

/// Waits until `produce` gives a value.
#[track_caller]
pub fn value<T>(what: &str, produce: impl FnMut() -> Option<T>) -> T {
    value_within(PATIENCE, what, produce)
}

/// Waits until `produce` gives a value, and fails the test when it does not `within` that time.
#[track_caller]
pub fn value_within<T>(within: Duration, what: &str, produce: impl FnMut() -> Option<T>) -> T {
    try_value_within(within, produce).unwrap_or_else(|| panic!("after {within:?}, still not so: {what}"))
}

/// Like [`value_within`], for a caller that goes on without the value.
pub fn try_value_within<T>(within: Duration, mut produce: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = now() + within;
    loop {
        // The clock is read first, so that a condition is always tried once after the deadline has passed.
        let late = now() >= deadline;
        if let Some(value) = produce() {
            return Some(value);
        }
        if late {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// How long after `since` a condition comes to hold, to 5 ms. Fails when it does not within [`PATIENCE`].
#[track_caller]
pub fn time_until(since: Instant, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    loop {
        // The time at which it was asked: what it costs to ask is not part of it.
        let asked = since.elapsed();
        if condition() {
            return asked;
        }
        assert!(asked < PATIENCE, "after {asked:?}, still not so: {what}");
        thread::sleep(MEASURING_INTERVAL);
    }
}

/// Checks that `condition` holds all the time `during`: for what must *not* happen.
#[track_caller]
pub fn holds_during(during: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let broken = try_value_within(during, || (!condition()).then_some(()));
    assert!(broken.is_none(), "no longer so: {what}");
}
