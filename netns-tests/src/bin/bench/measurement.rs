//! What one measurement gives.

use std::time::Duration;

use crate::meter::Usage;
use crate::statistics::percentile;

/// One contender's result of one test in one round.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    /// What the test is about, in the test's unit.
    pub(crate) value: f64,
    /// What else was seen.
    pub(crate) figures: Vec<(Figure, f64)>,
}

/// What else is seen in a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    /// Seconds of the daemons' processor time per 10⁹ bytes.
    CpuPerGigabyte,
    /// Microseconds of the daemons' processor time per request.
    CpuPerRequest,
    /// Microseconds of the machine's processor time per request, with load balancer, server and client.
    MachinePerRequest,
    /// TCP segments sent again, per second.
    Retransmits,
    /// The 99th percentile of the times, in microseconds.
    P99,
    /// The 99.9th percentile of the times, in microseconds.
    P999,
    /// What passed meanwhile, in gigabits per second.
    Gigabits,
    /// Requests that were not answered as they should be, and connections that broke.
    Errors,
    /// Of a hundred, how many were lost.
    LostPercent,
    /// Milliseconds until underpass said so.
    Told,
    /// Milliseconds in which no ping was answered.
    PingSilence,
    /// The longest time that a client waited for an answer, in milliseconds: the longest of all rounds.
    SlowestRequest,
    /// Packets of an attacker, in thousands per second.
    FloodRate,
    /// Milliseconds until a peer that was not there before is connected.
    Paired,
    /// Resident memory of a daemon that was not there before, in MiB.
    GrownMebibytes,
    /// Open descriptors of a daemon that were not there before.
    GrownDescriptors,
    /// Threads of a daemon that were not there before.
    GrownThreads,
    /// What it is of the same without a tunnel in the same round.
    OfPlain,
    /// The most memory that one of the daemons had resident, in MiB.
    PeakMebibytes,
    /// Turns of the daemons' threads on a processor, in thousands per second.
    Switches,
    /// Milliseconds in each second for which the daemons' threads waited for a processor.
    Waited,
    /// Percent of one core that programs took which have nothing to do with the measurement.
    Foreign,
}

impl Figure {
    /// The head of its column.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Figure::CpuPerGigabyte => "CPU s/GB",
            Figure::CpuPerRequest => "CPU µs/req",
            Figure::MachinePerRequest => "machine µs/req",
            Figure::Retransmits => "retrans/s",
            Figure::P99 => "p99 µs",
            Figure::P999 => "p99.9 µs",
            Figure::Gigabits => "Gb/s",
            Figure::Errors => "errors",
            Figure::LostPercent => "lost %",
            Figure::Told => "told ms",
            Figure::PingSilence => "ping silent ms",
            Figure::SlowestRequest => "slowest request ms",
            Figure::FloodRate => "flood k/s",
            Figure::Paired => "paired ms",
            Figure::GrownMebibytes => "grown MiB",
            Figure::GrownDescriptors => "grown fds",
            Figure::GrownThreads => "grown threads",
            Figure::OfPlain => "of the same plain",
            Figure::PeakMebibytes => "peak MiB",
            Figure::Switches => "switches k/s",
            Figure::Waited => "waited ms/s",
            Figure::Foreign => "foreign %",
        }
    }
}

impl Measurement {
    pub(crate) fn new(value: f64) -> Measurement {
        Measurement { value, figures: vec![] }
    }

    /// The median of some times, in microseconds, with their higher percentiles.
    pub(crate) fn of_times(times: &[Duration]) -> Measurement {
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        let measurement = Measurement::new(percentile(&times, 50.0)).with(Figure::P99, percentile(&times, 99.0));
        measurement.with(Figure::P999, percentile(&times, 99.9))
    }

    pub(crate) fn with(mut self, figure: Figure, value: f64) -> Measurement {
        self.figures.push((figure, value));
        self
    }

    /// Beside what the same was without a tunnel.
    pub(crate) fn of_plain(self, plain: f64) -> Measurement {
        let ratio = self.value / plain;
        self.with(Figure::OfPlain, ratio)
    }

    pub(crate) fn with_usage_per_gigabyte(self, usage: Usage, bytes: f64) -> Measurement {
        let seconds = usage.daemons.map(|seconds| seconds / bytes * 1e9);
        self.with_some(Figure::CpuPerGigabyte, seconds).with_daemons(usage)
    }

    pub(crate) fn with_usage_per_request(self, usage: Usage, requests: f64) -> Measurement {
        let microseconds = |seconds: f64| seconds / requests * 1e6;
        self.with_some(Figure::CpuPerRequest, usage.daemons.map(microseconds))
            .with(Figure::MachinePerRequest, microseconds(usage.machine))
            .with_daemons(usage)
    }

    /// Adds the daemons' memory, and how they were scheduled.
    pub(crate) fn with_daemons(self, usage: Usage) -> Measurement {
        self.with_some(Figure::PeakMebibytes, usage.peak_mebibytes)
            .with_some(Figure::Switches, usage.switches)
            .with_some(Figure::Waited, usage.waited)
    }

    fn with_some(self, figure: Figure, value: Option<f64>) -> Measurement {
        match value {
            Some(value) => self.with(figure, value),
            None => self,
        }
    }
}
