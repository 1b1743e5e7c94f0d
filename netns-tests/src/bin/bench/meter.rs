//! What a measurement costs: processor time and memory of daemons.

use std::fs;
use std::time::Duration;

use netns_tests::Process;

/// Reads of the meters before a measurement.
pub(crate) struct Meter<'a> {
    daemons: Vec<&'a Process>,
    daemons_time: Duration,
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
}

impl<'a> Meter<'a> {
    pub(crate) fn start(daemons: impl IntoIterator<Item = &'a Process>) -> Meter<'a> {
        let daemons: Vec<_> = daemons.into_iter().collect();
        for daemon in &daemons {
            // 5: forget the peak of resident memory. Who is gone has none.
            let _ = fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5");
        }
        Meter { daemons_time: cpu_time(&daemons), daemons, machine_time: machine_time() }
    }

    pub(crate) fn read(&self) -> Usage {
        let peaks = self.daemons.iter().map(|daemon| daemon.peak_resident_bytes());
        let used = (cpu_time(&self.daemons) - self.daemons_time).as_secs_f64();
        Usage {
            daemons: (!self.daemons.is_empty()).then_some(used),
            machine: (machine_time() - self.machine_time).as_secs_f64(),
            peak_mebibytes: peaks.max().map(mebibytes),
        }
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
