//! How long a link stands still when its preferred endpoint is cut off, in the laboratory of [`TwoWays`].
//!
//! The load is TCP both ways, and every byte is checked: a connection that breaks, or loses a byte, fails the repetition.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use netns_tests::pump::Pump;
use netns_tests::random::Random;
use netns_tests::two_ways::{self, ENDPOINTS, INSIDE, TwoWays};
use netns_tests::{round_trip, wait};

use super::{milliseconds, pass_some_time};
use crate::caught;
use crate::contender::Kind;
use crate::measurement::{Figure, Measurement};
use crate::results::Table;

const CONNECTIONS: usize = 4;
/// Of the pings that tell how long nothing passes.
const INTERVAL: Duration = Duration::from_millis(10);
const PINGED_FOR: Duration = Duration::from_secs(3);

/// Cuts it off so many times.
pub(super) fn cut(table: &mut Table, repetitions: usize) {
    let ways = TwoWays::start("endpoints");
    let mut random = Random::new(4);
    for repetition in 0..repetitions {
        table.add(repetition, "underpass", Kind::Underpass, caught(|| cut_once(&ways, &mut random)));
    }
}

fn cut_once(ways: &TwoWays, random: &mut Random) -> Measurement {
    // The one of the last repetition would take seconds to return to the first endpoint.
    let proxy_side = ways.start_proxy_side();
    assert!(two_ways::uses(&proxy_side, ENDPOINTS[0]), "it does not begin with the preferred endpoint");
    let inside: Ipv4Addr = INSIDE.parse().expect("an address");
    let pump = Pump::start(&ways.proxy, &ways.backend, SocketAddr::from((inside, 7000)), CONNECTIONS);
    pump.wait_for_progress();
    let lost = thread::scope(|scope| {
        let pings = scope.spawn(|| round_trip::ping(&ways.proxy, inside, INTERVAL, PINGED_FOR));
        pass_some_time(random);
        let outage = ways.cut_first();
        wait::until("it uses the second endpoint", || two_ways::uses(&proxy_side, ENDPOINTS[1]));
        pump.wait_for_progress();
        let pings = pings.join().expect("no ping fails");
        outage.heal();
        pings.lost
    });
    let silence = milliseconds(pump.stop().longest_stall);
    assert_eq!(proxy_side.stop(), 0);
    Measurement::new(silence).with(Figure::PingSilence, milliseconds(INTERVAL * lost as u32))
}
