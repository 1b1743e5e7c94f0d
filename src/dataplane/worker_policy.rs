//! How many workers serve the lanes: as many as the operator gave, or as many as help.
//!
//! ```text
//!   one busy for 3 s, its lanes divide, a CPU idle ─▶ more        the work fits fewer for 30 s ──────────────┐
//!                                                                no CPU idle and workers wait, for 5 s ──────┴─▶ one fewer
//! ```
//!
//! It reads no clock and no file, starts no thread and moves no lane: it is told what was used, and says how many there are to be.

use std::fmt;
use std::time::{Duration, Instant};

use super::processors::Times;

/// Time between two looks at what was used.
const INTERVAL: Duration = Duration::from_secs(1);
/// Share of its time that a worker runs from which it is busy: what waits for it may wait longer from here on.
const BUSY: f64 = 0.85;
/// Share of the busiest worker's work that more workers have to take off it, to be of use.
const RELIEF: f64 = 0.1;
/// CPUs that must be idle for one more worker, or it takes from applications what it adds.
const ROOM: f64 = 0.9;
/// Share of its time that the busiest of fewer workers may run. Well below [`BUSY`], so that the number does not swing.
const COMFORT: f64 = 0.6;
/// Idle CPUs below which the machine is full.
const FULL: f64 = 0.25;
/// Time in wait for each time on a CPU from which workers on a full machine stand in each other's way.
const CROWD: f64 = 0.3;
/// How long each has to last before the number follows.
const BUSY_FOR: Duration = Duration::from_secs(3);
const CROWDED_FOR: Duration = Duration::from_secs(5);
const COMFORTABLE_FOR: Duration = Duration::from_secs(30);

/// Number of workers that the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerCount {
    /// As many as help, chosen again and again.
    Auto,
    /// So many, as far as there are lanes for them.
    Number(u8),
}

/// How many workers there are, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkersStatus {
    /// Workers that have lanes.
    pub number: usize,
    /// Lanes: as many as workers there can be without a restart.
    pub lanes: usize,
    /// Set while the number follows from what helps, not from the configuration.
    pub is_chosen: bool,
    /// Reason of the number, as the end of a sentence.
    pub reason: String,
}

/// What was used since some beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    /// By worker.
    pub(super) workers: Vec<Times>,
    /// Bytes by lane.
    pub(super) lanes: Vec<u64>,
    /// Time in which CPUs had nothing to do, summed over all of them.
    pub(super) idle: Duration,
}

/// The number of workers, and what led to it.
#[derive(Debug)]
pub(super) struct WorkerPolicy {
    lanes: usize,
    count: WorkerCount,
    workers: usize,
    /// Why there are so many.
    reason: Reason,
    /// Why there are not more, where that would help.
    obstacle: Option<Reason>,
    looked_at: Option<Instant>,
    /// What had been used then, if the system has told.
    last: Option<Usage>,
    /// What speaks for another number, and since when.
    trend: Option<(Trend, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trend {
    Busy,
    Crowded,
    Comfortable,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reason {
    Given,
    GivenMore(u8),
    OneLane,
    NoneBusy,
    AsBefore,
    WasBusy { seconds: u64, idle: f64 },
    WereCrowded,
    Fit,
    OneFlow,
    NoRoom { idle: f64 },
    Unknown,
}

/// Judgement of one interval.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Keep(Option<Reason>),
    Change(Trend, usize),
}

impl WorkerPolicy {
    /// At the start: one worker where nobody has given a number.
    pub(super) fn new(lanes: usize, count: WorkerCount) -> Self {
        let reason = Reason::NoneBusy;
        let mut policy =
            Self { lanes, count, workers: 1, reason, obstacle: None, looked_at: None, last: None, trend: None };
        policy.set(count);
        policy
    }

    /// Workers that there are to be.
    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    /// Follows another wish of the operator's. A choice begins with what there is.
    pub(super) fn set(&mut self, count: WorkerCount) {
        (self.count, self.obstacle, self.last, self.trend) = (count, None, None, None);
        match count {
            WorkerCount::Number(number) => {
                self.workers = usize::from(number).clamp(1, self.lanes);
                self.reason = if usize::from(number) > self.lanes { Reason::GivenMore(number) } else { Reason::Given };
            }
            WorkerCount::Auto if self.lanes == 1 => self.reason = Reason::OneLane,
            WorkerCount::Auto if self.workers == 1 => self.reason = Reason::NoneBusy,
            WorkerCount::Auto => self.reason = Reason::AsBefore,
        }
    }

    pub(super) fn status(&self) -> WorkersStatus {
        let is_chosen = self.count == WorkerCount::Auto;
        let reason = self.obstacle.unwrap_or(self.reason).to_string();
        WorkersStatus { number: self.workers, lanes: self.lanes, is_chosen, reason }
    }

    /// Whether it is time for a [`look`](Self::look): never where there is nothing to choose.
    pub(super) fn wants_look(&self, now: Instant) -> bool {
        let is_due = self.looked_at.is_none_or(|looked_at| now >= looked_at + INTERVAL);
        self.count == WorkerCount::Auto && self.lanes > 1 && is_due
    }

    /// Judges what was used since the last look; `None` where the system does not tell. Returns how many workers there are to
    /// be from here on, if that is another number.
    pub(super) fn look(&mut self, now: Instant, usage: Option<Usage>) -> Option<usize> {
        let looked_at = self.looked_at.replace(now);
        let before = std::mem::replace(&mut self.last, usage);
        let Some(after) = &self.last else {
            self.obstacle = Some(Reason::Unknown);
            return None;
        };
        let (looked_at, before) = looked_at.zip(before)?;
        let interval = Interval::between(&before, after, now.saturating_duration_since(looked_at), self.workers)?;
        match self.judge(&interval) {
            Verdict::Keep(obstacle) => {
                (self.obstacle, self.trend) = (obstacle, None);
                if self.workers == 1 {
                    self.reason = Reason::NoneBusy;
                }
                None
            }
            Verdict::Change(trend, workers) => {
                self.obstacle = None;
                let since = self.trend.filter(|(same, _)| *same == trend).map_or(looked_at, |(_, since)| since);
                self.trend = Some((trend, since));
                let lasted = now.saturating_duration_since(since);
                (lasted >= trend.patience()).then(|| self.change(trend, workers, lasted, interval.idle))
            }
        }
    }

    fn judge(&self, interval: &Interval) -> Verdict {
        let busiest = interval.busiest(self.workers);
        if interval.busy >= BUSY {
            let helps = |workers: &usize| interval.busiest(*workers) <= (1.0 - RELIEF) * busiest;
            return match (self.workers + 1..=self.lanes).find(helps) {
                None => Verdict::Keep(Some(Reason::OneFlow)),
                Some(_) if interval.idle < ROOM => Verdict::Keep(Some(Reason::NoRoom { idle: interval.idle })),
                Some(workers) => Verdict::Change(Trend::Busy, workers),
            };
        }
        let fewer = self.workers - 1;
        if fewer == 0 {
            Verdict::Keep(None)
        } else if interval.busiest(fewer) <= COMFORT {
            Verdict::Change(Trend::Comfortable, fewer)
        } else if interval.idle < FULL && interval.waited >= CROWD * interval.ran {
            Verdict::Change(Trend::Crowded, fewer)
        } else {
            Verdict::Keep(None)
        }
    }

    fn change(&mut self, trend: Trend, workers: usize, lasted: Duration, idle: f64) -> usize {
        (self.workers, self.trend) = (workers, None);
        self.reason = match trend {
            Trend::Busy => Reason::WasBusy { seconds: lasted.as_secs(), idle },
            Trend::Crowded => Reason::WereCrowded,
            Trend::Comfortable => Reason::Fit,
        };
        workers
    }
}

impl Trend {
    fn patience(self) -> Duration {
        match self {
            Self::Busy => BUSY_FOR,
            Self::Crowded => CROWDED_FOR,
            Self::Comfortable => COMFORTABLE_FOR,
        }
    }
}

/// What was used in one interval, as CPUs: 1.0 is all the time of one.
#[derive(Debug)]
struct Interval {
    /// Time of the busiest worker.
    busy: f64,
    /// Time of all workers.
    ran: f64,
    waited: f64,
    idle: f64,
    /// What each lane has cost its worker, by its bytes.
    lanes: Vec<f64>,
}

impl Interval {
    /// `None` if it has no length.
    fn between(before: &Usage, after: &Usage, lasted: Duration, workers: usize) -> Option<Self> {
        if lasted.is_zero() {
            return None;
        }
        let cpus = |before: Duration, after: Duration| after.saturating_sub(before).div_duration_f64(lasted);
        let pairs = || before.workers.iter().zip(&after.workers);
        // A worker that looks for packets in vain has time for them, and takes a processor that would be idle.
        let awake: Vec<f64> = pairs().map(|(before, after)| cpus(before.awake, after.awake)).collect();
        let work = |((before, after), awake): ((&Times, &Times), &f64)| (cpus(before.ran, after.ran) - awake).max(0.0);
        let ran: Vec<f64> = pairs().zip(&awake).map(work).collect();
        let bytes = before.lanes.iter().zip(&after.lanes).map(|(before, after)| after.wrapping_sub(*before) as f64);
        let bytes: Vec<f64> = bytes.collect();
        let of_worker = sums(&bytes, workers);
        let cost = |(lane, bytes): (usize, &f64)| {
            let worker = lane % workers;
            if of_worker[worker] > 0.0 { ran[worker] * bytes / of_worker[worker] } else { 0.0 }
        };
        Some(Self {
            busy: ran.iter().copied().fold(0.0, f64::max),
            ran: ran.iter().sum(),
            waited: pairs().map(|(before, after)| cpus(before.waited, after.waited)).sum(),
            idle: cpus(before.idle, after.idle) + awake.iter().sum::<f64>(),
            lanes: bytes.iter().enumerate().map(cost).collect(),
        })
    }

    /// What the busiest of so many workers would have had to do.
    fn busiest(&self, workers: usize) -> f64 {
        sums(&self.lanes, workers).into_iter().fold(0.0, f64::max)
    }
}

/// What the lanes of each of so many workers come to.
fn sums(lanes: &[f64], workers: usize) -> Vec<f64> {
    (0..workers).map(|worker| lanes.iter().skip(worker).step_by(workers).sum()).collect()
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => write!(f, "configured"),
            Self::GivenMore(number) => write!(f, "{number} are configured, and each needs a lane"),
            Self::OneLane => write!(f, "there is one lane"),
            Self::NoneBusy => write!(f, "none is busy"),
            Self::AsBefore => write!(f, "as many as before the reload"),
            Self::WasBusy { seconds, idle } => write!(f, "one was busy for {seconds} s, {idle:.1} CPUs idle"),
            Self::WereCrowded => write!(f, "more waited for CPUs, and none was idle"),
            Self::Fit => write!(f, "the work fits so many"),
            Self::OneFlow => write!(f, "one is busy, with flows of one lane"),
            Self::NoRoom { idle } => write!(f, "one is busy, and only {idle:.1} CPUs are idle"),
            Self::Unknown => write!(f, "the system does not tell how busy workers and CPUs are"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock;
    use super::*;

    /// A machine whose workers do what a test says, second by second.
    struct Machine {
        policy: WorkerPolicy,
        now: Instant,
        usage: Usage,
    }

    /// What a second is like: how much of a CPU each lane's packets need, how many CPUs are idle, and how much workers wait for
    /// each time that they run.
    #[derive(Clone, Copy)]
    struct Second {
        lanes: [f64; 4],
        idle: f64,
        wait: f64,
    }

    const QUIET: Second = Second { lanes: [0.01; 4], idle: 3.9, wait: 0.0 };
    /// More than one worker can do, in two lanes.
    const BUSY_LANES: Second = Second { lanes: [0.7, 0.7, 0.0, 0.0], idle: 1.4, wait: 0.0 };

    impl Machine {
        fn new(count: WorkerCount) -> Self {
            let usage = Usage { workers: vec![Times::default(); 4], lanes: vec![0; 4], idle: Duration::ZERO };
            let mut machine = Self { policy: WorkerPolicy::new(4, count), now: clock::now(), usage };
            machine.policy.look(machine.now, Some(machine.usage.clone()));
            machine
        }

        fn pass(&mut self, Second { lanes, idle, wait }: Second) -> Option<usize> {
            let workers = self.policy.workers();
            for (worker, wanted) in sums(&lanes, workers).into_iter().enumerate() {
                let ran = wanted.min(1.0 / (1.0 + wait));
                self.usage.workers[worker].ran += Duration::from_secs_f64(ran);
                self.usage.workers[worker].waited += Duration::from_secs_f64(ran * wait);
            }
            self.usage.lanes.iter_mut().zip(lanes).for_each(|(bytes, share)| *bytes += (share * 1e9) as u64);
            self.usage.idle += Duration::from_secs_f64(idle);
            self.now += INTERVAL;
            assert!(self.policy.wants_look(self.now));
            self.policy.look(self.now, Some(self.usage.clone()))
        }

        /// The number of workers after so many seconds.
        fn after(&mut self, seconds: u64, second: Second) -> usize {
            for _ in 0..seconds {
                self.pass(second);
            }
            self.policy.workers()
        }

        fn reason(&self) -> String {
            self.policy.status().reason
        }
    }

    #[test]
    fn a_number_that_is_given_stays_and_reaches_as_far_as_the_lanes() {
        for (given, expected, reason) in
            [(1, 1, "configured"), (3, 3, "configured"), (9, 4, "9 are configured, and each needs a lane")]
        {
            let policy = WorkerPolicy::new(4, WorkerCount::Number(given));
            let status = WorkersStatus { number: expected, lanes: 4, is_chosen: false, reason: reason.to_owned() };
            assert_eq!(policy.status(), status);
            assert!(!policy.wants_look(clock::now()), "there is nothing to choose");
        }
    }

    #[test]
    fn a_quiet_machine_has_one_worker() {
        let mut machine = Machine::new(WorkerCount::Auto);
        assert_eq!(machine.after(1000, QUIET), 1);
        assert_eq!(machine.policy.status().reason, "none is busy");
    }

    #[test]
    fn one_lane_leaves_nothing_to_choose() {
        let policy = WorkerPolicy::new(1, WorkerCount::Auto);
        assert!(!policy.wants_look(clock::now()));
        assert_eq!((policy.workers(), policy.status().reason.as_str()), (1, "there is one lane"));
    }

    #[test]
    fn a_worker_that_is_busy_for_three_seconds_gets_help_where_a_cpu_is_idle() {
        let mut machine = Machine::new(WorkerCount::Auto);
        assert_eq!(machine.after(2, BUSY_LANES), 1);
        assert_eq!(machine.pass(BUSY_LANES), Some(2));
        assert_eq!(machine.reason(), "one was busy for 3 s, 1.4 CPUs idle");
        assert_eq!(machine.after(1000, BUSY_LANES), 2, "two can do it, one could not");
    }

    #[test]
    fn a_worker_that_is_busy_now_and_then_stays_alone() {
        let mut machine = Machine::new(WorkerCount::Auto);
        for _ in 0..100 {
            assert_eq!(machine.after(2, BUSY_LANES), 1);
            assert_eq!(machine.after(1, QUIET), 1);
        }
    }

    #[test]
    fn flows_of_one_lane_get_no_second_worker() {
        let mut machine = Machine::new(WorkerCount::Auto);
        let one_lane = Second { lanes: [1.0, 0.02, 0.0, 0.0], ..BUSY_LANES };
        assert_eq!(machine.after(100, one_lane), 1);
        assert_eq!(machine.reason(), "one is busy, with flows of one lane");
        assert_eq!(machine.after(3, BUSY_LANES), 2);
    }

    #[test]
    fn lanes_that_the_next_number_would_leave_together_get_the_number_that_parts_them() {
        let mut machine = Machine::new(WorkerCount::Auto);
        assert_eq!(machine.after(3, Second { lanes: [0.6, 0.0, 0.6, 0.0], ..BUSY_LANES }), 3);
    }

    #[test]
    fn applications_that_want_the_cpus_keep_them() {
        let mut machine = Machine::new(WorkerCount::Auto);
        assert_eq!(machine.after(100, Second { idle: 0.3, ..BUSY_LANES }), 1);
        assert_eq!(machine.reason(), "one is busy, and only 0.3 CPUs are idle");
    }

    #[test]
    fn work_that_fits_one_worker_comfortably_goes_back_to_it_after_half_a_minute() {
        let mut machine = Machine::new(WorkerCount::Auto);
        machine.after(3, BUSY_LANES);
        let fits = Second { lanes: [0.25, 0.25, 0.0, 0.0], ..QUIET };
        assert_eq!(machine.after(29, fits), 2);
        assert_eq!(machine.after(1, fits), 1);
        // What is too little for two and too much for one changes nothing either way.
        machine.after(3, BUSY_LANES);
        let between = Second { lanes: [0.35, 0.35, 0.0, 0.0], ..QUIET };
        assert_eq!(machine.after(1000, between), 2);
        machine.after(30, fits);
        assert_eq!(machine.after(1000, between), 1);
    }

    #[test]
    fn workers_that_wait_for_cpus_on_a_full_machine_become_fewer() {
        let mut machine = Machine::new(WorkerCount::Auto);
        machine.after(3, BUSY_LANES);
        let full = Second { lanes: [0.5, 0.5, 0.0, 0.0], idle: 0.0, wait: 0.5 };
        assert_eq!(machine.after(4, full), 2);
        assert_eq!(machine.pass(full), Some(1));
        assert_eq!(machine.after(100, full), 1);
    }

    #[test]
    fn workers_with_little_to_do_become_fewer_whatever_else_the_machine_does() {
        let mut machine = Machine::new(WorkerCount::Number(2));
        machine.policy.set(WorkerCount::Auto);
        for seconds in [3, 4, 3, 4, 3, 4, 3, 4] {
            machine.after(seconds, QUIET);
            machine.after(1, Second { idle: 0.0, wait: 2.0, ..QUIET });
        }
        assert_eq!((machine.policy.workers(), machine.reason().as_str()), (1, "none is busy"));
    }

    #[test]
    fn the_operators_wish_is_followed_at_once_and_a_choice_begins_with_what_there_is() {
        let mut machine = Machine::new(WorkerCount::Number(3));
        machine.policy.set(WorkerCount::Auto);
        assert_eq!((machine.policy.workers(), machine.reason().as_str()), (3, "as many as before the reload"));
        machine.after(31, QUIET);
        assert_eq!((machine.policy.workers(), machine.reason().as_str()), (2, "the work fits so many"));
        machine.policy.set(WorkerCount::Number(4));
        assert_eq!((machine.policy.workers(), machine.reason().as_str()), (4, "configured"));
    }

    #[test]
    fn nothing_is_changed_where_the_system_tells_nothing() {
        let mut machine = Machine::new(WorkerCount::Auto);
        assert_eq!(machine.policy.look(machine.now + INTERVAL, None), None);
        assert_eq!(machine.reason(), "the system does not tell how busy workers and CPUs are");
        assert!(!machine.policy.wants_look(machine.now + INTERVAL), "it is not asked all the time either");
    }

    #[test]
    fn two_looks_at_the_same_time_say_nothing() {
        let mut machine = Machine::new(WorkerCount::Auto);
        assert_eq!(machine.policy.look(machine.now, Some(machine.usage.clone())), None);
    }

    #[test]
    fn a_worker_that_stays_awake_for_packets_is_not_busy_with_them() {
        let mut machine = Machine::new(WorkerCount::Auto);
        for _ in 0..100 {
            let times = &mut machine.usage.workers[0];
            (times.ran, times.awake) = (times.ran + INTERVAL.mul_f64(0.8), times.awake + INTERVAL.mul_f64(0.7));
            assert_eq!(machine.pass(Second { lanes: [0.1, 0.1, 0.0, 0.0], idle: 0.9, wait: 0.0 }), None);
            assert_eq!(machine.reason(), "none is busy");
        }
    }
}
