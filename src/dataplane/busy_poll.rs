//! A worker's sleep between two turns, and when it is better not to sleep.
//!
//! On a quiet machine most of a small request's time on the way is falling asleep and being woken, four times for each
//! (measured, `docs/performance.md`). Where packets come one shortly after another and processors have nothing else to
//! do, a worker looks for the next packet again and again for a while, and gives way to any other thread between two looks.
//! Beside other work it never does: each look would cost that work, or a time slice if that gets its way.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};

use super::clock;
use super::processors::{Load, Uptime};

/// Time that a worker looks for the next packet before it sleeps: an application's answer to a small request takes less.
const PATIENCE: Duration = Duration::from_micros(200);
/// Time between two judgements of whether that is of use. `/proc/uptime` has steps of 10 ms.
const JUDGEMENT_INTERVAL: Duration = Duration::from_millis(100);
/// Processors that must have nothing to do, what this worker's looks take counted in.
const IDLE_PROCESSORS: f64 = 0.5;
/// One pause in so many, at least, must be short enough for the next packet to be met awake.
const PAUSES_PER_SHORT_ONE: u32 = 3;

/// The pauses of one worker.
#[derive(Debug)]
pub(super) struct BusyPoll {
    choice: Choice,
    /// Nothing where a worker always sleeps.
    uptime: Option<Uptime>,
    load: Arc<Load>,
}

impl BusyPoll {
    /// The pauses of a worker that may stay awake if `is_allowed`. The time of its looks is told as part of its `load`.
    pub(super) fn new(now: Instant, is_allowed: bool, load: Arc<Load>) -> Self {
        Self { choice: Choice::new(now), uptime: is_allowed.then(Uptime::open).flatten(), load }
    }

    /// Waits until one of them is ready, or a signal came, and returns the time then.
    pub(super) fn wait(&mut self, descriptors: &mut [PollFd<'_>]) -> Result<Instant, Errno> {
        let start = clock::now();
        if !self.choice.is_on || !look(start, descriptors)? {
            poll(descriptors, PollTimeout::NONE).or_else(as_nothing_ready)?;
        }
        let end = clock::now();
        if self.choice.is_on {
            self.load.count_awake((end - start).min(PATIENCE));
        }
        self.choice.on_pause(end, end - start, || self.uptime.as_ref().and_then(Uptime::idle));
        Ok(end)
    }
}

/// Looks for what is ready until that is in vain for too long.
fn look(start: Instant, descriptors: &mut [PollFd<'_>]) -> Result<bool, Errno> {
    while clock::now() - start < PATIENCE {
        if poll(descriptors, PollTimeout::ZERO).or_else(as_nothing_ready)? > 0 {
            return Ok(true);
        }
        thread::yield_now();
    }
    Ok(false)
}

fn as_nothing_ready(errno: Errno) -> Result<i32, Errno> {
    if errno == Errno::EINTR { Ok(0) } else { Err(errno) }
}

/// Whether to stay awake, by the pauses and the idle processors since the last judgement.
#[derive(Debug)]
struct Choice {
    is_on: bool,
    judged_at: Instant,
    /// Time in which processors had nothing to do until then, as far as it is known.
    idle: Option<Duration>,
    pauses: u32,
    short_pauses: u32,
    /// Time of them that the worker was awake.
    awake: Duration,
}

impl Choice {
    fn new(now: Instant) -> Self {
        Self { is_on: false, judged_at: now, idle: None, pauses: 0, short_pauses: 0, awake: Duration::ZERO }
    }

    /// Counts a pause of this length that has just ended. `idle` tells the time in which processors had nothing to do since
    /// some beginning.
    fn on_pause(&mut self, now: Instant, length: Duration, idle: impl FnOnce() -> Option<Duration>) {
        self.pauses += 1;
        self.short_pauses += u32::from(length < PATIENCE);
        self.awake += if self.is_on { length.min(PATIENCE) } else { Duration::ZERO };
        let lasted = now.saturating_duration_since(self.judged_at);
        if lasted >= JUDGEMENT_INTERVAL {
            self.judge(lasted, idle());
            *self = Self { is_on: self.is_on, idle: self.idle, ..Self::new(now) };
        }
    }

    fn judge(&mut self, lasted: Duration, idle: Option<Duration>) {
        let before = std::mem::replace(&mut self.idle, idle);
        let free = idle.zip(before).map(|(idle, before)| idle.saturating_sub(before) + self.awake);
        let is_quiet = free.is_some_and(|free| free >= lasted.mul_f64(IDLE_PROCESSORS));
        self.is_on = is_quiet && self.short_pauses * PAUSES_PER_SHORT_ONE >= self.pauses;
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::PollFlags;
    use nix::unistd::{pipe, write};
    use std::os::fd::AsFd as _;

    use super::*;

    const SHORT: Duration = Duration::from_micros(100);
    const MOMENT: Duration = Duration::from_micros(5);
    const LONG: Duration = Duration::from_millis(2);

    /// The choice of a worker that was awake or not, after such pauses, each after work that is as long as a short one, and
    /// beside so many idle processors.
    fn after(was_on: bool, pauses: &[Duration], idle_processors: f64) -> bool {
        let start = clock::now();
        let mut choice = Choice { is_on: was_on, idle: Some(Duration::ZERO), ..Choice::new(start) };
        let mut at = Duration::ZERO;
        for pause in pauses.iter().cycle() {
            at += *pause + SHORT;
            choice.on_pause(start + at, *pause, || Some(at.mul_f64(idle_processors)));
            if at >= 3 * JUDGEMENT_INTERVAL {
                break;
            }
        }
        choice.is_on
    }

    #[test]
    fn a_worker_stays_awake_only_where_packets_follow_each_other_and_processors_are_idle() {
        for was_on in [false, true] {
            assert!(after(was_on, &[SHORT], 1.7));
            assert!(after(was_on, &[SHORT, LONG], 1.7), "every other packet is met awake");
            assert!(!after(was_on, &[LONG], 1.7), "none would be");
            assert!(!after(was_on, &[SHORT, LONG, LONG, LONG], 1.7));
        }
        assert!(!after(false, &[SHORT], 0.2), "other work on the machine");
        assert!(!after(true, &[MOMENT], 0.2), "the same, and packets come at once");
    }

    #[test]
    fn its_own_looks_do_not_keep_a_worker_from_staying_awake() {
        assert!(after(true, &[SHORT], 0.1));
    }

    #[test]
    fn where_nobody_tells_of_idle_processors_a_worker_sleeps() {
        let start = clock::now();
        let mut choice = Choice::new(start);
        (1..5).for_each(|n| choice.on_pause(start + n * JUDGEMENT_INTERVAL, SHORT, || None));
        assert!(!choice.is_on);
    }

    #[test]
    fn a_long_silence_ends_it() {
        let start = clock::now();
        let mut choice = Choice { is_on: true, idle: Some(Duration::ZERO), ..Choice::new(start) };
        let silence = Duration::from_secs(60);
        choice.on_pause(start + silence, silence, || Some(silence * 2));
        assert!(!choice.is_on);
    }

    #[test]
    fn what_is_ready_is_found_awake_and_asleep() {
        let (reader, writer) = pipe().unwrap();
        write(&writer, b"x").unwrap();
        for is_on in [false, true] {
            let mut descriptors = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            let mut pauses =
                BusyPoll { choice: Choice { is_on, ..Choice::new(clock::now()) }, uptime: None, load: Arc::default() };
            pauses.wait(&mut descriptors).unwrap();
            assert_eq!(descriptors[0].any(), Some(true), "{is_on}");
        }
    }

    #[test]
    fn a_worker_that_looks_in_vain_falls_asleep_and_is_woken() {
        let (reader, writer) = pipe().unwrap();
        let mut descriptors = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        let start = clock::now();
        assert_eq!(look(start, &mut descriptors), Ok(false));
        assert!(clock::now() - start >= PATIENCE);

        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            write(&writer, b"x").unwrap();
        });
        let mut pauses = BusyPoll {
            choice: Choice { is_on: true, ..Choice::new(clock::now()) },
            uptime: None,
            load: Arc::default(),
        };
        pauses.wait(&mut descriptors).unwrap();
        assert_eq!(descriptors[0].any(), Some(true));
        late.join().unwrap();
    }
}
