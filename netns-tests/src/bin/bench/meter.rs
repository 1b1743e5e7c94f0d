//! What a measurement costs: processor time and memory of daemons.

use std::fs;
use std::ops::Add;
use std::path::Path;
use std::time::{Duration, Instant};

use netns_tests::{Process, wait};

/// Reads of the meters before a measurement.
pub(crate) struct Meter<'a> {
    daemons: Vec<&'a Process>,
    start: Instant,
    daemons_time: Duration,
    daemons_turns: Turns,
    machine_time: Duration,
}

/// What was used between start and end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Seconds of all the daemons; nothing if there is none.
    pub(crate) daemons: Option<f64>,
    /// Seconds of everything on this machine, the programs that measure included.
    pub(crate) machine: f64,
    /// The most memory that one of the daemons had resident, in MiB.
    pub(crate) peak_mebibytes: Option<f64>,
    /// Turns of the daemons' threads on a processor, in thousands per second.
    pub(crate) switches: Option<f64>,
    /// Time for which the daemons' threads waited for a processor, in milliseconds per second.
    pub(crate) waited: Option<f64>,
}

/// The scheduler's counts of some threads (`/proc/PID/task/TID/schedstat`).
#[derive(Clone, Copy, Debug, Default)]
struct Turns {
    /// Time in which they could have run, had there been a processor.
    waited: Duration,
    /// Turns on a processor.
    number: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(daemons: impl IntoIterator<Item = &'a Process>) -> Meter<'a> {
        let daemons: Vec<_> = daemons.into_iter().collect();
        for daemon in &daemons {
            // 5: forget the peak of resident memory. Who is gone has none.
            let _ = fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5");
        }
        let (daemons_time, daemons_turns) = (cpu_time(&daemons), Turns::of(&daemons));
        Meter { daemons, start: wait::now(), daemons_time, daemons_turns, machine_time: machine_time() }
    }

    pub(crate) fn read(&self) -> Usage {
        let peaks = self.daemons.iter().map(|daemon| daemon.peak_resident_bytes());
        let used = (cpu_time(&self.daemons) - self.daemons_time).as_secs_f64();
        let (turns, elapsed) = (Turns::of(&self.daemons), self.start.elapsed().as_secs_f64());
        let of_daemons = |value: f64| (!self.daemons.is_empty()).then_some(value);
        let waited = turns.waited.saturating_sub(self.daemons_turns.waited).as_secs_f64() * 1e3;
        let switches = turns.number.saturating_sub(self.daemons_turns.number) as f64 / 1e3;
        Usage {
            daemons: of_daemons(used),
            switches: of_daemons(switches / elapsed),
            waited: of_daemons(waited / elapsed),
            machine: (machine_time() - self.machine_time).as_secs_f64(),
            peak_mebibytes: peaks.max().map(mebibytes),
        }
    }
}

impl Turns {
    fn of(daemons: &[&Process]) -> Turns {
        let tasks = daemons.iter().filter_map(|daemon| fs::read_dir(format!("/proc/{}/task", daemon.pid())).ok());
        let turns = tasks.flatten().flatten().filter_map(|task| Turns::read(&task.path().join("schedstat")));
        turns.fold(Turns::default(), Turns::add)
    }

    /// Nanoseconds on a processor, nanoseconds in wait for one, turns.
    fn read(schedstat: &Path) -> Option<Turns> {
        let text = fs::read_to_string(schedstat).ok()?;
        let mut numbers = text.split_whitespace().skip(1).map_while(|number| number.parse().ok());
        Some(Turns { waited: Duration::from_nanos(numbers.next()?), number: numbers.next()? })
    }
}

impl Add for Turns {
    type Output = Turns;

    fn add(self, other: Turns) -> Turns {
        Turns { waited: self.waited + other.waited, number: self.number + other.number }
    }
}

fn cpu_time(daemons: &[&Process]) -> Duration {
    daemons.iter().map(|daemon| daemon.cpu_time()).sum()
}

/// The processor time that this machine has been busy with anything.
fn machine_time() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, in ticks of which Linux has 100 a second.
    let fields: Vec<u64> = stat.split_whitespace().skip(1).take(7).filter_map(|field| field.parse().ok()).collect();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    Duration::from_millis((fields.iter().sum::<u64>() - idle) * 10)
}

pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
