//! How long a packet takes there and back.

use std::time::Duration;

use netns_tests::round_trip::{self, RoundTrips};

use crate::Bench;
use crate::contender::Contender;
use crate::measurement::{Figure, Measurement};
use crate::meter::Meter;

/// A hundred a second: far enough apart that each finds everything asleep.
const PING_INTERVAL: Duration = Duration::from_millis(10);

/// Pings with nothing else to carry.
pub(crate) fn ping_idle(bench: &Bench, contender: &Contender) -> Measurement {
    let meter = Meter::start(contender);
    let trips = ping(bench, contender, bench.during());
    measurement(&trips).with_memory(meter.read())
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
