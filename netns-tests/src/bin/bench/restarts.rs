//! How long connections stand still when a daemon between their ends is killed and started again, or upgraded.
//!
//! ```text
//!   clients ── proxy side ── cable ── backend side ── servers
//! ```
//!
//! The load is TCP both ways, and every byte is checked: a connection that breaks, or loses a byte, fails the round.

use std::net::SocketAddr;
use std::time::Duration;

use netns_tests::pump::Pump;
use netns_tests::service::Service;
use netns_tests::underpass::{self, Config, KeyPair, Peer, Role};
use netns_tests::{Lab, probe, wait};

use crate::contender::Kind;
use crate::measurement::Measurement;
use crate::results::{Better, Table};
use crate::{Arguments, Note, caught};

/// What these are called on the command line.
pub(crate) const TESTS: [&str; 2] = [KILLED, UPGRADED];
const KILLED: &str = "restart-killed";
const UPGRADED: &str = "restart-upgraded";

/// Each side's, in one round.
const RESTARTS: usize = 2;
const CONNECTIONS: usize = 4;
/// From one restart to the next all connections flow for so long. One that is cut again while it makes up for the last time
/// waits twice as long, whatever lies between its ends.
const CALM: Duration = Duration::from_secs(1);
/// `RestartSec=` of the unit.
const MANAGERS_PAUSE: Duration = Duration::from_millis(20);

/// Both tests, as far as they are chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str], note: Note) -> Vec<Table> {
    let tables = [
        Table::new(
            KILLED,
            "Longest silence of TCP while either side's daemon is killed and restarted, ms",
            Better::Less,
        ),
        Table::new(
            UPGRADED,
            "Longest silence of TCP while either side's daemon is upgraded in place, ms",
            Better::Less,
        ),
    ];
    let mut tables: Vec<_> = tables.into_iter().filter(|table| chosen.contains(&table.name)).collect();
    for table in &mut tables {
        for round in 0..arguments.rounds {
            let outcome = caught(|| longest_silence(table.name)).inspect_err(|reason| note(table.name, reason.clone()));
            table.add(round, "underpass", Kind::Underpass, outcome);
        }
    }
    tables
}

fn longest_silence(test: &str) -> Measurement {
    let lab = Lab::new(test);
    let (proxy, backend) = (lab.host("proxy"), lab.host("backend"));
    lab.link(proxy.port("wan", ["192.0.2.1/24"]), backend.port("wan", ["192.0.2.10/24"]));
    let [proxy_keys, backend_keys] = [&proxy, &backend].map(KeyPair::generate);
    // A program of its own, which can be replaced.
    let program = proxy.directory().join("underpass");
    underpass::install(&program);
    let waiting = Config::new(Role::Backend, &backend_keys, ["10.77.0.11/24"]).program(program.clone());
    let waiting = waiting.peer(Peer::new("proxy", &proxy_keys.public, ["10.77.0.1"]));
    let calling = Config::new(Role::Proxy, &proxy_keys, ["10.77.0.1/24"]).program(program.clone());
    let called = Peer::new("backend", &backend_keys.public, ["10.77.0.11"]).endpoint("192.0.2.10:51900");
    let backend_side = Service::start(&backend, waiting);
    let proxy_side = Service::start(&proxy, calling.peer(called));
    probe::ping(&proxy, "10.77.0.11").assert_all_answered();

    let server = SocketAddr::from(([10, 77, 0, 11], 7000));
    let pump = Pump::start(&proxy, &backend, server, CONNECTIONS);
    let mut sides = [proxy_side, backend_side];
    for _ in 0..RESTARTS {
        for side in &mut sides {
            pump.wait_for_progress();
            wait::pass(CALM);
            pump.wait_for_progress();
            if test == UPGRADED {
                underpass::install(&program);
                side.host().command(&program).arg("restart").run();
            } else {
                side.kill();
                wait::pass(MANAGERS_PAUSE);
                side.start_again();
            }
        }
    }
    pump.wait_for_progress();
    Measurement::new(pump.stop().longest_stall.as_secs_f64() * 1e3)
}
