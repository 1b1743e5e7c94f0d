//! As much as possible: TCP by iperf3, UDP by a sender of our own.

use netns_tests::probe::{Flow, Iperf3};

use crate::Bench;
use crate::contender::{Contender, Service};
use crate::measurement::{Figure, Measurement};
use crate::meter::Meter;

/// TCP flows for a while, with iperf3's options for number and direction.
pub(crate) fn tcp(bench: &Bench, contender: &Contender, options: &[&str]) -> Measurement {
    let meter = Meter::start(contender);
    let flow = run_iperf3(bench, contender, bench.seconds, options);
    let usage = meter.read();
    Measurement::new(flow.bits_per_second / 1e9)
        .with(Figure::Retransmits, flow.retransmits as f64 / f64::from(bench.seconds))
        .with_usage_per_gigabyte(usage, flow.bytes as f64)
}

pub(crate) fn run_iperf3(bench: &Bench, contender: &Contender, seconds: u32, options: &[&str]) -> Flow {
    let server = Iperf3::behind(&bench.field.backend, contender.tcp(Service::Iperf3).expect("it carries TCP"));
    server.send(&bench.field.proxy, &[&["-t", &seconds.to_string()], options].concat())
}
