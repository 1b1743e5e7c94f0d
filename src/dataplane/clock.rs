//! The only reader of the clocks: everything else is given `now`.
#![expect(unsafe_code, reason = "no crate asks the kernel how well it keeps the wall clock")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// The monotonic clock, for every timer.
#[expect(clippy::disallowed_methods, reason = "the one place where the monotonic clock is read")]
pub fn now() -> Instant {
    Instant::now()
}

/// The monotonic clock as time since its own beginning: for a service manager, which reads the same clock.
pub fn monotonic_time() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Time that the machine has been suspended since its start: what the clock that goes on then is ahead of the one that
/// stands still. `None` if this thread stood still in between.
pub fn time_suspended() -> Option<Duration> {
    let read = |clock| clock_gettime(clock).map(Duration::from).ok();
    let before = read(ClockId::CLOCK_MONOTONIC)?;
    let with_suspend = read(ClockId::CLOCK_BOOTTIME)?;
    let after = read(ClockId::CLOCK_MONOTONIC)?;
    let is_at_once = after.saturating_sub(before) < Duration::from_millis(100);
    is_at_once.then(|| with_suspend.saturating_sub(before))
}

/// The wall clock as time since the Unix epoch, which handshake timestamps start from. A clock set before 1970 reads as
/// the epoch.
#[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Whether something keeps the wall clock right, as far as the kernel says (adjtimex(2), which changes nothing without a mode).
pub fn is_synchronized() -> Option<bool> {
    // SAFETY: `timex` is plain numbers, of which all zeros is a valid value and means to change nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to the one structure that it is given.
    let state = unsafe { libc::adjtimex(&mut timex) };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let earlier = now();
        assert!(now() >= earlier);
        let earlier = monotonic_time();
        assert!(monotonic_time() >= earlier && !earlier.is_zero());
    }

    #[test]
    fn the_time_that_a_machine_was_suspended_stands_still_while_it_runs() {
        let read = || std::iter::repeat_with(time_suspended).flatten().next().unwrap();
        let earlier = read();
        assert!(read().abs_diff(earlier) < Duration::from_millis(200));
    }

    #[test]
    fn the_wall_clock_is_past_the_year_2025() {
        assert!(unix_time() > Duration::from_secs(55 * 365 * 86_400));
    }
}
