//! How the kernel's scheduler treats a worker, and where.
//!
//! Two policies of sched(7) suit a worker, each on another machine (measured, `docs/performance.md`). A thread under
//! `SCHED_BATCH` does not interrupt others when it is woken: where processors have little else to do, a round trip takes
//! a third of the time. Where they do have, such a thread waits for the end of somebody's time slice at each wake-up,
//! even a background job's. So the policy follows from how long the thread had to wait for a processor. How long it ran and waited
//! is told to whoever chooses how many workers there are, too.
#![expect(unsafe_code, reason = "no crate here sets a thread's scheduling policy")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Turns of a worker between two looks at how long it waited, where they are many: a look is a system call.
const TURNS_PER_LOOK: u32 = 16;
/// Time between two looks where turns are few.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Waiting in so many turns that only another's time slice explains, of which one lasts 3 to 4 ms. Half as long come
/// together where the applications that the worker serves take all there is.
const LONG_WAIT: Duration = Duration::from_millis(2);
/// The default policy is kept for this long before the other is tried again, and each time twice as long if that was in
/// vain.
const FIRST_STAY: Duration = Duration::from_secs(1);
const LONGEST_STAY: Duration = Duration::from_secs(64);
/// Share of the processors' time over the stay that must have been idle for the other policy to be tried.
const IDLE_SHARE: f64 = 0.75;

/// A scheduling policy of sched(7) for a thread that is not to come before others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// `SCHED_OTHER`: a thread that has slept interrupts others when it is woken.
    Default,
    /// `SCHED_BATCH`: it waits until they have run.
    Batch,
}

/// The calling thread's scheduling policy, chosen again and again.
#[derive(Debug)]
pub(super) struct Scheduling {
    choice: Choice,
    /// `/proc/thread-self/schedstat`; nothing on a kernel that does not count (without `CONFIG_SCHED_INFO`).
    statistics: Option<File>,
    /// `/proc/uptime`.
    uptime: Option<Uptime>,
    load: Arc<Load>,
    waited: Duration,
    looked_at: Instant,
    turns: u32,
}

/// What a worker's thread has had of the processors, as of its last look: written by it, read by any.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Set once the thread has told: a kernel need not count.
    is_known: AtomicBool,
    ran: AtomicU64,
    waited: AtomicU64,
    awake: AtomicU64,
}

/// What a thread has had of the processors since it began.
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

impl Scheduling {
    /// The policy of a quiet machine, or the default one where nobody tells whether it is quiet.
    pub(super) fn of_this_thread(now: Instant, load: Arc<Load>) -> Self {
        let statistics = File::open("/proc/thread-self/schedstat");
        let statistics = statistics.inspect_err(|error| tracing::debug!(%error, "time in wait is not known")).ok();
        let times = statistics.as_ref().and_then(times);
        if let Some([ran, waited]) = times {
            load.set(ran, waited);
            adopt(Policy::Batch);
        }
        let (choice, uptime) = (Choice::new(now, processors()), Uptime::open());
        let [_, waited] = times.unwrap_or_default();
        Self { choice, statistics, uptime, load, waited, looked_at: now, turns: 0 }
    }

    /// Counts one turn of the worker, and changes the policy now and then.
    pub(super) fn on_turn(&mut self, now: Instant) {
        self.turns += 1;
        if self.turns < TURNS_PER_LOOK && now < self.looked_at + LOOK_INTERVAL {
            return;
        }
        (self.turns, self.looked_at) = (0, now);
        let Some([ran, waited]) = self.statistics.as_ref().and_then(times) else { return };
        self.load.set(ran, waited);
        let since_last_look = waited.saturating_sub(std::mem::replace(&mut self.waited, waited));
        let idle = || self.uptime.as_ref().and_then(Uptime::idle);
        if let Some(policy) = self.choice.look(now, since_last_look, idle) {
            tracing::debug!(?policy, ?since_last_look, "scheduling policy changed");
            adopt(policy);
        }
    }
}

/// Which policy suits, by the time in wait under the one that there is.
#[derive(Debug)]
struct Choice {
    policy: Policy,
    since: Instant,
    /// How long the default policy is kept; nothing before it was taken for the first time.
    stay: Duration,
    /// Time in which processors had nothing to do until `since`, as far as it is known.
    idle: Option<Duration>,
    /// How many processors there are.
    processors: usize,
}

impl Choice {
    fn new(now: Instant, processors: usize) -> Self {
        Self { policy: Policy::Batch, since: now, stay: Duration::ZERO, idle: None, processors }
    }

    /// Judges by how long the thread has waited since the last look, and by the time in which processors had nothing to do
    /// since some beginning. Returns a policy to change to.
    fn look(&mut self, now: Instant, waited: Duration, idle: impl FnOnce() -> Option<Duration>) -> Option<Policy> {
        let lasted = now.saturating_duration_since(self.since);
        match self.policy {
            Policy::Batch if waited >= LONG_WAIT => {
                self.stay = if lasted < self.stay { (self.stay * 2).min(LONGEST_STAY) } else { FIRST_STAY };
                self.idle = idle();
                self.policy = Policy::Default;
            }
            Policy::Default if lasted >= self.stay => {
                let before = std::mem::replace(&mut self.idle, idle());
                let idle = self.idle.zip(before).map(|(idle, before)| idle.saturating_sub(before).as_secs_f64());
                let all = lasted.as_secs_f64() * self.processors as f64;
                if idle.is_some_and(|idle| idle < IDLE_SHARE * all) {
                    self.since = now;
                    return None;
                }
                self.policy = Policy::Batch;
            }
            _ => return None,
        }
        self.since = now;
        Some(self.policy)
    }
}

/// How many processors `/proc/uptime` sums up.
fn processors() -> usize {
    sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().and_then(|number| number.try_into().ok()).unwrap_or(1)
}

/// Time that a thread ran, and that it waited (Documentation/scheduler/sched-stats.rst).
fn times(schedstat: &File) -> Option<[Duration; 2]> {
    // Nanoseconds on a processor, nanoseconds in wait for one, turns on one.
    first_numbers(schedstat, |word| word.parse().map(Duration::from_nanos).ok())
}

/// Whether a control group gives this process less processor time than the processors that it may use have.
pub(super) fn is_processor_time_limited() -> bool {
    let allowed = sched_getaffinity(Pid::from_raw(0))
        .map(|set| (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).count());
    // Of what the standard library knows, only the quota makes it less than the affinity.
    std::thread::available_parallelism().is_ok_and(|quota| allowed.is_ok_and(|allowed| quota.get() < allowed))
}

fn first_numbers(file: &File, parse: impl Fn(&str) -> Option<Duration>) -> Option<[Duration; 2]> {
    // At most three numbers of 20 digits.
    let mut buffer = [0; 64];
    let length = file.read_at(&mut buffer, 0).ok()?;
    let mut words = std::str::from_utf8(&buffer[..length]).ok()?.split_ascii_whitespace();
    Some([parse(words.next()?)?, parse(words.next()?)?])
}

/// Has the kernel schedule the calling thread so. Needs no privilege; where it is refused, only speed is lost.
fn adopt(policy: Policy) {
    let number = match policy {
        Policy::Default => libc::SCHED_OTHER,
        Policy::Batch => libc::SCHED_BATCH,
    };
    // SAFETY: all zeros is a valid `sched_param`; priority 0 is the only one that these policies have.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the call only reads `parameters`, which outlives it; 0 is the calling thread.
    if let Err(errno) = Errno::result(unsafe { libc::sched_setscheduler(0, number, &raw const parameters) }) {
        tracing::debug!(%errno, ?policy, "the kernel refuses a scheduling policy");
    }
}

/// Keeps the calling thread on one of the CPUs that it may use: on the first as worker 0, on the next as worker 1, and
/// from the first again where there are more workers.
pub(super) fn pin(worker: usize) {
    if let Err(errno) = try_pin(worker) {
        tracing::warn!(%errno, worker, "the kernel does not let a worker stay on one CPU");
    }
}

fn try_pin(worker: usize) -> Result<(), Errno> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread)?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
    let mut one = CpuSet::new();
    one.set(*cpus.get(worker % cpus.len().max(1)).ok_or(Errno::ENODEV)?)?;
    sched_setaffinity(this_thread, &one)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::super::clock;
    use super::*;

    const QUIET: Duration = Duration::from_micros(100);

    fn policy_of_this_thread() -> libc::c_int {
        // SAFETY: the call reads nothing of ours; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    /// A look beside two processors of which so many are idle on average.
    fn look(choice: &mut Choice, at: Duration, waited: Duration, idle_processors: f64) -> Option<Policy> {
        let start = *START;
        choice.look(start + at, waited, || Some(at.mul_f64(idle_processors)))
    }

    static START: LazyLock<Instant> = LazyLock::new(clock::now);
    const MOMENT: Duration = Duration::from_millis(10);

    #[test]
    fn a_worker_that_hardly_waits_keeps_the_batch_policy() {
        let mut choice = Choice::new(*START, 2);
        assert!((1..1000).all(|n| look(&mut choice, n * MOMENT, QUIET, 0.0).is_none()));
        assert_eq!(choice.policy, Policy::Batch);
    }

    #[test]
    fn a_worker_that_waits_for_anothers_slice_takes_the_default_policy_until_processors_are_idle_again() {
        let mut choice = Choice::new(*START, 2);
        assert_eq!(look(&mut choice, MOMENT, LONG_WAIT, 0.0), Some(Policy::Default));
        assert!((2..1000).all(|n| look(&mut choice, n * MOMENT, QUIET, 1.0).is_none()));
        let quiet = (1000..2000).find(|n| look(&mut choice, *n * MOMENT, QUIET, 2.0).is_some());
        assert!(quiet.is_some_and(|n| n <= 1100), "{quiet:?}");
        assert_eq!(choice.policy, Policy::Batch);
    }

    #[test]
    fn where_idle_processors_do_not_help_trials_become_rare() {
        let mut choice = Choice::new(*START, 2);
        let trials = (0..).map(|n| n * MOMENT).take_while(|at| *at < HOUR);
        let trials = trials.filter(|at| look(&mut choice, *at, LONG_WAIT, 2.0) == Some(Policy::Batch)).count();
        assert!((50..70).contains(&trials), "{trials} trials in an hour");
    }

    #[test]
    fn a_kernel_that_does_not_tell_of_idle_processors_is_tried() {
        let mut choice = Choice::new(*START, 2);
        assert_eq!(choice.look(*START, LONG_WAIT, || None), Some(Policy::Default));
        assert_eq!(choice.look(*START + FIRST_STAY, LONG_WAIT, || None), Some(Policy::Batch));
    }

    #[test]
    fn a_long_calm_is_not_held_against_the_next_crowd() {
        let mut choice = Choice::new(*START, 2);
        choice.stay = LONGEST_STAY;
        assert_eq!(look(&mut choice, LONGEST_STAY, LONG_WAIT, 0.0), Some(Policy::Default));
        assert_eq!(choice.stay, FIRST_STAY);
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_kernel_tells_a_thread_how_long_it_ran_and_waited_and_takes_both_policies() {
        let thread = std::thread::spawn(|| {
            let load = Arc::new(Load::default());
            assert_eq!(load.times(), None);
            let _scheduling = Scheduling::of_this_thread(clock::now(), load.clone());
            let under_batch = policy_of_this_thread();
            adopt(Policy::Default);
            (load.times(), under_batch, policy_of_this_thread())
        });
        let (times, first, second) = thread.join().unwrap();
        assert!(times.is_some());
        assert!(Uptime::open().unwrap().idle().is_some());
        assert_eq!((first, second), (libc::SCHED_BATCH, libc::SCHED_OTHER));
    }

    #[test]
    fn a_pinned_worker_stays_on_its_own_of_the_cpus_that_it_may_use() {
        let cpus = || {
            let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
            (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).collect::<Vec<_>>()
        };
        let all = cpus();
        for worker in 0..3 {
            let pinned = std::thread::spawn(move || {
                pin(worker);
                cpus()
            });
            assert_eq!(pinned.join().unwrap(), [all[worker % all.len()]]);
        }
    }
}
