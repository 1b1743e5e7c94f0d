//! As much as possible: TCP by iperf3, UDP by a sender of our own.

use std::net::SocketAddr;

use netns_tests::probe::Iperf3;
use netns_tests::udp_load::{self, Buffer, Flood, Shape};

use crate::Bench;
use crate::contender::{Contender, Service};
use crate::measurement::{Figure, Measurement};
use crate::meter::Meter;

/// TCP flows for a while, with iperf3's options for number and direction.
pub(crate) fn tcp(bench: &Bench, contender: &Contender, options: &[&str]) -> Measurement {
    let meter = Meter::start(contender.processes());
    let seconds = bench.seconds.to_string();
    let flow = iperf3(bench, contender).send(&bench.field.proxy, &[&["-t", &seconds], options].concat());
    let usage = meter.read();
    Measurement::new(flow.bits_per_second / 1e9)
        .with(Figure::Retransmits, flow.retransmits as f64 / f64::from(bench.seconds))
        .with_usage_per_gigabyte(usage, flow.bytes as f64)
}

pub(crate) fn iperf3(bench: &Bench, contender: &Contender) -> Iperf3 {
    Iperf3::behind(&bench.field.backend, contender.tcp(Service::Iperf3).expect("it carries TCP"))
}

/// Datagrams without a pause, as gigabits of payload per second.
pub(crate) fn udp_gigabits(bench: &Bench, contender: &Contender, shape: Shape) -> Measurement {
    udp(bench, contender, shape, Buffer::Large, |flood| flood.bytes * 8.0 / 1e9)
}

/// Small datagrams without a pause, in thousands per second.
pub(crate) fn udp_packets(bench: &Bench, contender: &Contender, buffer: Buffer) -> Measurement {
    udp(bench, contender, Shape::Single(64), buffer, |flood| flood.received / 1e3)
}

fn udp(bench: &Bench, contender: &Contender, shape: Shape, buffer: Buffer, value: fn(&Flood) -> f64) -> Measurement {
    let target = SocketAddr::from((contender.address().expect("it carries packets"), UDP_PORT));
    let meter = Meter::start(contender.processes());
    let flood = udp_load::flood_into(buffer, &bench.field.proxy, &bench.field.backend, target, shape, bench.during());
    let usage = meter.read();
    assert!(flood.received > 0.0, "nothing arrived of {} datagrams", flood.total_sent);
    Measurement::new(value(&flood))
        .with(Figure::LostPercent, 100.0 * (1.0 - flood.received / flood.sent))
        .with_usage_per_gigabyte(usage, flood.total_bytes as f64)
}

const UDP_PORT: u16 = 7001;
