//! A link while another peer of the same backend side, which was broken into, does harm with a core of its own; beside the same
//! link while that peer sends as much that is honest.

use std::net::SocketAddr;
use std::time::Duration;

use netns_tests::insider::Malice;
use netns_tests::probe::{IPERF3_PORT, Iperf3};
use netns_tests::round_trip;
use netns_tests::siege::{INSIDE, Siege};
use netns_tests::wait;

use crate::contender::Kind;
use crate::measurement::{Figure, Measurement};
use crate::results::{Better, Table};
use crate::{Arguments, Note, caught};

/// Their names.
pub(crate) const TESTS: [&str; 2] = ["hostile-tcp", "hostile-ping"];

/// Reference of the others.
pub(crate) const HONEST: &str = "honest";

fn name(malice: Malice) -> &'static str {
    match malice {
        Malice::None => HONEST,
        Malice::Roaming => "roaming",
        Malice::Pings => "pings",
        Malice::Probes => "probes",
        Malice::TinyFrames => "tiny-frames",
        Malice::Lanes => "lanes",
        Malice::Controls => "controls",
    }
}

/// Measurements of those tests that are chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str], note: Note) -> Vec<Table> {
    let titles = [
        "TCP, one flow, while another peer sends all that a core can, by what it sends (Gb/s)",
        "Ping while another peer sends all that a core can, by what it sends (µs)",
    ];
    let all = TESTS.into_iter().zip(titles).zip([Better::More, Better::Less]);
    let chosen = all.filter(|((test, _), _)| chosen.contains(test));
    let mut tables: Vec<Table> = chosen.map(|((test, title), better)| Table::new(test, title, better)).collect();
    if tables.is_empty() {
        return tables;
    }
    match caught(|| Siege::start("hostile")) {
        Ok(siege) => (0..arguments.rounds).for_each(|round| {
            for malice in [Malice::None].into_iter().chain(Malice::ALL) {
                let kind = if malice == Malice::None { Kind::Plain } else { Kind::Underpass };
                for table in &mut tables {
                    let measured = caught(|| beside(&siege, malice, table.name, arguments.seconds));
                    table.add(round, name(malice), kind, measured);
                }
            }
        }),
        Err(reason) => note("hostile", reason),
    }
    tables
}

fn beside(siege: &Siege, malice: Malice, test: &str, seconds: u32) -> Measurement {
    let received = || siege.backend_side.status().peer("insider").number("received_bytes");
    let before = received();
    let flood = siege.betray(malice);
    wait::until("the insider is heard", || received() > before + (1 << 20));
    let at = wait::now();
    let measured = match test {
        "hostile-tcp" => {
            let iperf3 = Iperf3::behind(&siege.backend, SocketAddr::from((INSIDE, IPERF3_PORT)));
            let flow = iperf3.send(&siege.proxy, &["-t", &seconds.to_string(), "-C", "cubic"]);
            Measurement::new(flow.bits_per_second / 1e9)
        }
        _ => {
            let during = Duration::from_secs(seconds.into());
            let trips = round_trip::ping(&siege.proxy, INSIDE, Duration::from_millis(10), during);
            let lost = 100.0 * trips.lost as f64 / (trips.lost + trips.times.len()) as f64;
            Measurement::of_times(&trips.times).with(Figure::LostPercent, lost)
        }
    };
    let rate = flood.stop() as f64 / at.elapsed().as_secs_f64();
    measured.with(Figure::FloodRate, rate / 1e3)
}
