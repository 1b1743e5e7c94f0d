//! The processors: what a worker's thread has had of them, how long they had nothing to do, and on which of them it runs.
//!
//! A worker stays under the default policy of sched(7), and under no other: beside programs that never sleep, a thread under
//! `SCHED_BATCH` waits for the end of a time slice at each wake-up (measured, `docs/performance.md`).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Time between two looks at what the thread has had: a look is a system call.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A worker's view of what its own thread has had of the processors, which it tells as its [`Load`].
#[derive(Debug)]
pub(super) struct LoadMeter {
    /// `/proc/thread-self/schedstat`; nothing on a kernel that does not count (without `CONFIG_SCHED_INFO`).
    statistics: Option<File>,
    load: Arc<Load>,
    looked_at: Instant,
}

/// The share of the processors that a worker's thread has had, as of its last look: written by it, read by any.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Set once the thread has told: a kernel need not count.
    is_known: AtomicBool,
    ran: AtomicU64,
    waited: AtomicU64,
    awake: AtomicU64,
}

/// A thread's share of the processors since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// Time on a processor.
    pub(super) ran: Duration,
    /// Time in which the thread could have run, had there been a processor.
    pub(super) waited: Duration,
    /// Time of the first in which the thread only looked whether there is something to do ([`BusyPoll`](super::busy_poll)).
    pub(super) awake: Duration,
}

impl Load {
    fn set(&self, ran: Duration, waited: Duration) {
        self.ran.store(nanoseconds(ran), Ordering::Relaxed);
        self.waited.store(nanoseconds(waited), Ordering::Relaxed);
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// Counts time in which the thread only looked whether there is something to do.
    pub(super) fn count_awake(&self, time: Duration) {
        // One writer: no other addition is lost.
        self.awake.store(self.awake.load(Ordering::Relaxed).wrapping_add(nanoseconds(time)), Ordering::Relaxed);
    }

    /// `None` where the kernel does not count.
    pub(super) fn times(&self) -> Option<Times> {
        let time = |of: &AtomicU64| Duration::from_nanos(of.load(Ordering::Relaxed));
        let times = || Times { ran: time(&self.ran), waited: time(&self.waited), awake: time(&self.awake) };
        self.is_known.load(Ordering::Relaxed).then(times)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `/proc/uptime`.
#[derive(Debug)]
pub(super) struct Uptime(File);

impl Uptime {
    pub(super) fn open() -> Option<Self> {
        File::open("/proc/uptime").map(Self).ok()
    }

    /// Time in which processors had nothing to do, summed over all of them (proc(5)).
    pub(super) fn idle(&self) -> Option<Duration> {
        // Seconds since the start, seconds idle.
        let [_, idle] = first_numbers(&self.0, |word| Duration::try_from_secs_f64(word.parse().ok()?).ok())?;
        Some(idle)
    }
}

impl LoadMeter {
    /// The meter of the calling thread.
    pub(super) fn of_this_thread(now: Instant, load: Arc<Load>) -> Self {
        let statistics = File::open("/proc/thread-self/schedstat");
        let statistics = statistics.inspect_err(|error| tracing::debug!(%error, "time in wait is not known")).ok();
        let meter = Self { statistics, load, looked_at: now };
        meter.look();
        meter
    }

    /// Looks, now and then.
    pub(super) fn on_turn(&mut self, now: Instant) {
        if now >= self.looked_at + LOOK_INTERVAL {
            self.looked_at = now;
            self.look();
        }
    }

    fn look(&self) {
        if let Some([ran, waited]) = self.statistics.as_ref().and_then(times) {
            self.load.set(ran, waited);
        }
    }
}

/// Time that a thread ran, and that it waited (Documentation/scheduler/sched-stats.rst).
fn times(schedstat: &File) -> Option<[Duration; 2]> {
    // Nanoseconds on a processor, nanoseconds in wait for one, turns on one.
    first_numbers(schedstat, |word| word.parse().map(Duration::from_nanos).ok())
}

/// Whether a control group gives this process less processor time than the processors that it may use have. To be asked
/// before a sandbox hides control groups.
pub fn is_processor_time_limited() -> bool {
    // Of what the standard library knows, only the quota makes it less than the affinity.
    let least = thread::available_parallelism();
    cpus_allowed().is_ok_and(|allowed| least.is_ok_and(|least| least.get() < allowed.len()))
}

/// The CPUs that the calling thread may use.
fn cpus_allowed() -> Result<Vec<usize>, Errno> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect())
}

fn first_numbers(file: &File, parse: impl Fn(&str) -> Option<Duration>) -> Option<[Duration; 2]> {
    // At most three numbers of 20 digits.
    let mut buffer = [0; 64];
    let length = file.read_at(&mut buffer, 0).ok()?;
    let mut words = std::str::from_utf8(&buffer[..length]).ok()?.split_ascii_whitespace();
    Some([parse(words.next()?)?, parse(words.next()?)?])
}

/// Keeps the calling thread on one of the CPUs that it may use: on the first as worker 0, on the next as worker 1, and
/// from the first again where there are more workers.
pub(super) fn pin(worker: usize) {
    if let Err(errno) = try_pin(worker) {
        tracing::warn!(%errno, worker, "the kernel does not let a worker stay on one CPU");
    }
}

fn try_pin(worker: usize) -> Result<(), Errno> {
    let cpus = cpus_allowed()?;
    let mut one = CpuSet::new();
    one.set(*cpus.get(worker % cpus.len().max(1)).ok_or(Errno::ENODEV)?)?;
    sched_setaffinity(Pid::from_raw(0), &one)
}

#[cfg(test)]
mod tests {
    use super::super::clock;
    use super::*;

    #[test]
    fn the_kernel_tells_how_long_a_thread_ran_and_waited_and_processors_were_idle() {
        let load = Arc::new(Load::default());
        assert_eq!(load.times(), None);
        LoadMeter::of_this_thread(clock::now(), load.clone());
        assert!(load.times().is_some());
        assert!(Uptime::open().unwrap().idle().is_some());
    }

    #[test]
    fn a_pinned_worker_stays_on_its_own_of_the_cpus_that_it_may_use() {
        let all = cpus_allowed().unwrap();
        for worker in 0..3 {
            let pinned = thread::spawn(move || {
                pin(worker);
                cpus_allowed().unwrap()
            });
            assert_eq!(pinned.join().unwrap(), [all[worker % all.len()]]);
        }
    }
}
