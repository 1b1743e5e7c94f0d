//! What a path costs that is narrower than its ends believe and says nothing of it, beside one that says so.

use std::net::SocketAddr;
use std::time::Duration;

use netns_tests::ends::BACKEND;
use netns_tests::narrows::{ENDPOINTS, Narrows, wait_for_path_mtu};
use netns_tests::probe::{self, IPERF3_PORT, Iperf3};
use netns_tests::pump::Pump;
use netns_tests::wait;

use crate::contender::Kind;
use crate::measurement::Measurement;
use crate::results::{Better, Table};
use crate::{Arguments, Note, caught};

/// What these are called on the command line.
pub(crate) const TESTS: [&str; 4] = [BULK, REVERSE, SHRINK, GROWTH];
const BULK: &str = "path-mtu-bulk";
const REVERSE: &str = "path-mtu-bulk-reverse";
const SHRINK: &str = "path-mtu-shrink";
const GROWTH: &str = "path-mtu-growth";

/// Of underpass where routers say how long packets may be.
pub(crate) const HONEST: &str = "underpass-honest";

/// All of them, as far as they are chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str], note: Note) -> Vec<Table> {
    let tables = [
        Table::new(BULK, "TCP, 100 MiB over a path of 1280 bytes, proxy to backend, Gb/s", Better::More),
        Table::new(REVERSE, "TCP, 100 MiB over a path of 1280 bytes, backend to proxy, Gb/s", Better::More),
        Table::new(SHRINK, "A path shrinks from 1500 to 1300 bytes: longest silence of TCP, ms", Better::Less),
        Table::new(GROWTH, "It grows to 1500 bytes again: until that is found, s", Better::Less),
    ];
    let mut tables: Vec<_> = tables.into_iter().filter(|table| chosen.contains(&table.name)).collect();
    for table in &mut tables {
        let outcome = caught(|| match table.name {
            BULK => transfer(table, arguments.rounds, &[]),
            REVERSE => transfer(table, arguments.rounds, &["-R"]),
            name => (0..arguments.rounds).for_each(|round| {
                let outcome = caught(|| change(name));
                table.add(round, "underpass", Kind::Underpass, outcome);
            }),
        });
        outcome.unwrap_or_else(|reason| note(table.name, reason));
    }
    tables
}

/// Everything stands anew each time: the first bytes find the path as they do in a path's first minute.
fn transfer(table: &mut Table, rounds: usize, options: &[&str]) {
    for round in 0..rounds {
        let plain = caught(|| {
            let narrows = Narrows::honest("path-mtu-plain", 1280);
            let reached = SocketAddr::from(([10, 2, 0, 2], IPERF3_PORT));
            send(&narrows, &Iperf3::behind(&narrows.ends.backend, reached), options)
        });
        table.add(round, "plain", Kind::Plain, plain);
        for (name, make) in [(HONEST, Narrows::honest as fn(&str, u32) -> Narrows), ("underpass", Narrows::silent)] {
            let outcome = caught(|| {
                let narrows = make("path-mtu", 1280);
                let _daemons = narrows.start(ENDPOINTS[0]);
                probe::ping(&narrows.ends.proxy, BACKEND[0]).assert_all_answered();
                send(&narrows, &Iperf3::at(&narrows.ends.backend, BACKEND[0]), options)
            });
            table.add(round, name, Kind::Underpass, outcome);
        }
    }
}

fn send(narrows: &Narrows, server: &Iperf3, options: &[&str]) -> Measurement {
    let options = [&["-n", "100M", "-C", "cubic"], options].concat();
    Measurement::new(server.send(&narrows.ends.proxy, &options).bits_per_second / 1e9)
}

fn change(name: &str) -> Measurement {
    let narrows = Narrows::silent(name, 1500);
    let daemons = narrows.start(ENDPOINTS[0]);
    probe::ping(&narrows.ends.proxy, BACKEND[0]).assert_all_answered();
    wait_for_path_mtu(&daemons, 1420..=1420);
    let server = SocketAddr::from(([10, 77, 0, 11], 7000));
    let pump = Pump::start(&narrows.ends.proxy, &narrows.ends.backend, server, 2);
    pump.wait_for_progress();
    narrows.set_mtu(1300);
    pump.wait_for_progress();
    wait_for_path_mtu(&daemons, 1212..=1240);
    pump.wait_for_progress();
    let at = wait::now();
    if name == GROWTH {
        narrows.set_mtu(1500);
        wait_for_path_mtu(&daemons, 1420..=1420);
    }
    let found: Duration = at.elapsed();
    let silence = pump.stop().longest_stall;
    Measurement::new(if name == GROWTH { found.as_secs_f64() } else { silence.as_secs_f64() * 1e3 })
}
