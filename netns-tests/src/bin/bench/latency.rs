//! How long a packet takes there and back.

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use netns_tests::round_trip::{self, RoundTrips};
use netns_tests::wait;

use crate::contender::{Contender, Service};
use crate::measurement::{Figure, Measurement};
use crate::meter::Meter;
use crate::{Bench, bulk};

/// A hundred a second: far enough apart that each finds everything asleep.
const PING_INTERVAL: Duration = Duration::from_millis(10);

/// Pings with nothing else to carry.
pub(crate) fn ping_idle(bench: &Bench, contender: &Contender) -> Measurement {
    let meter = Meter::start(contender.processes());
    let trips = ping(bench, contender, bench.during());
    measurement(&trips).with_daemons(meter.read())
}

/// Pings while one TCP flow takes all it gets.
pub(crate) fn ping_under_load(bench: &Bench, contender: &Contender) -> Measurement {
    let meter = Meter::start(contender.processes());
    let (server, proxy, seconds) = (bulk::iperf3(bench, contender), bench.field.proxy.clone(), bench.seconds + 1);
    let flow = thread::spawn(move || server.send(&proxy, &["-t", &seconds.to_string()]));
    // The flow has then found its pace.
    wait::pass(Duration::from_millis(700));
    let trips = ping(bench, contender, bench.during());
    let flow = flow.join().unwrap_or_else(|panic| resume_unwind(panic));
    let usage = meter.read();
    let measurement = measurement(&trips).with(Figure::Gigabits, flow.bits_per_second / 1e9);
    measurement.with_usage_per_gigabyte(usage, flow.bytes as f64)
}

/// One byte there, one byte back, the next one: nothing is ever waiting.
pub(crate) fn request_response(bench: &Bench, contender: &Contender) -> Measurement {
    let meter = Meter::start(contender.processes());
    let target = contender.tcp(Service::Echo).expect("it carries TCP");
    let trips = round_trip::request_response(&bench.field.proxy, target, bench.during());
    let usage = meter.read();
    Measurement::of_times(&trips.times).with_usage_per_request(usage, trips.times.len() as f64)
}

fn ping(bench: &Bench, contender: &Contender, during: Duration) -> RoundTrips {
    let address = contender.address().expect("it carries packets");
    round_trip::ping(&bench.field.proxy, address, PING_INTERVAL, during)
}

fn measurement(trips: &RoundTrips) -> Measurement {
    assert!(!trips.times.is_empty(), "not one of {} pings was answered", trips.lost);
    let lost = 100.0 * trips.lost as f64 / (trips.lost + trips.times.len()) as f64;
    Measurement::of_times(&trips.times).with(Figure::LostPercent, lost)
}
