//! What a measurement costs: processor time and memory of a contender's programs.

use std::fs;
use std::time::Duration;

use netns_tests::Process;

use crate::contender::Contender;

/// Reads of the meters before a measurement.
pub(crate) struct Meter<'a> {
    contender: &'a Contender,
    daemons: Duration,
    machine: Duration,
}

/// What was used between start and end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Seconds of all the contender's programs.
    pub(crate) daemons: f64,
    /// Seconds of everything on this machine, the programs that measure included.
    pub(crate) machine: f64,
    /// The most memory that one of the contender's programs had resident, in MiB.
    pub(crate) peak_mebibytes: f64,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(contender: &'a Contender) -> Meter<'a> {
        for daemon in contender.processes() {
            // 5: forget the peak of resident memory. Who is gone has none.
            let _ = fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5");
        }
        Meter { contender, daemons: daemons_time(contender), machine: machine_time() }
    }

    pub(crate) fn read(&self) -> Usage {
        let peaks = self.contender.processes().map(Process::peak_resident_bytes);
        Usage {
            daemons: (daemons_time(self.contender) - self.daemons).as_secs_f64(),
            machine: (machine_time() - self.machine).as_secs_f64(),
            peak_mebibytes: mebibytes(peaks.max().unwrap_or(0)),
        }
    }
}

fn daemons_time(contender: &Contender) -> Duration {
    contender.processes().map(Process::cpu_time).sum()
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
