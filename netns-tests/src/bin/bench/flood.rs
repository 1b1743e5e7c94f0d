//! What is left of a transfer while its link's backend side is flooded, beside what is left of one without a tunnel while a
//! program without encryption on the same machine is flooded in the same way.
//!
//! The flood takes a core for itself. The transfers have a rate, so that they do not need all that is there in peace.

use std::net::SocketAddr;

use netns_tests::probe::{IPERF3_PORT, Iperf3};
use netns_tests::pump::Pump;
use netns_tests::siege::{Attack, INSIDE, OUTSIDE, SINK_PORT, Siege, Sink};
use netns_tests::underpass::PORT;

use crate::contender::Kind;
use crate::measurement::{Figure, Measurement};
use crate::meter::mebibytes;
use crate::results::{Better, Table};
use crate::{Arguments, Note, caught};

/// One of these tests.
pub(crate) struct FloodTest {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    attack: Attack,
    title: &'static str,
}

/// All of them.
pub(crate) const TESTS: [FloodTest; 7] = [
    FloodTest {
        name: "flood-initiations",
        attack: Attack::Initiations,
        title: "TCP of 1 Gb/s while initiations with the right mac1 come from everywhere: of the same in peace",
    },
    FloodTest {
        name: "flood-mac1",
        attack: Attack::WrongMac1,
        title: "TCP of 1 Gb/s while initiations with a wrong mac1 come from everywhere: of the same in peace",
    },
    FloodTest {
        name: "flood-garbage",
        attack: Attack::Garbage,
        title: "TCP of 1 Gb/s while noise of every length comes from everywhere: of the same in peace",
    },
    FloodTest {
        name: "flood-replays",
        attack: Attack::Replays,
        title: "TCP of 1 Gb/s while recorded datagrams come again: of the same in peace",
    },
    FloodTest {
        name: "flood-forgeries",
        attack: Attack::Forgeries,
        title: "TCP of 1 Gb/s while recorded datagrams come with another tag: of the same in peace",
    },
    FloodTest {
        name: "flood-half-open",
        attack: Attack::HalfOpen,
        title: "TCP of 1 Gb/s while a peer's key begins handshakes from everywhere: of the same in peace",
    },
    FloodTest {
        name: "flood-proven",
        attack: Attack::Proven,
        title: "TCP of 1 Gb/s while a hundred addresses with cookies begin handshakes: of the same in peace",
    },
];

/// All of them, as far as they are chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str], note: Note) -> Vec<Table> {
    let chosen = TESTS.into_iter().filter(|test| chosen.contains(&test.name));
    let (attacks, mut tables): (Vec<_>, Vec<_>) =
        chosen.map(|test| (test.attack, Table::new(test.name, test.title, Better::More))).unzip();
    if tables.is_empty() {
        return tables;
    }
    match caught(|| Siege::start("flood")) {
        Ok(siege) => (0..arguments.rounds).for_each(|round| {
            for (attack, table) in attacks.iter().zip(&mut tables) {
                let measured = caught(|| plain(&siege, *attack, arguments.seconds));
                table.add(round, "plain", Kind::Plain, measured);
                let measured = caught(|| underpass(&siege, *attack, arguments.seconds));
                table.add(round, "underpass", Kind::Underpass, measured);
            }
        }),
        Err(reason) => note("flood", reason),
    }
    tables
}

fn plain(siege: &Siege, attack: Attack, seconds: u32) -> Measurement {
    let _sink = Sink::start(siege);
    kept(siege, attack, SocketAddr::from((OUTSIDE, IPERF3_PORT)), SINK_PORT, seconds)
}

fn underpass(siege: &Siege, attack: Attack, seconds: u32) -> Measurement {
    let process = siege.backend_side.as_ref();
    let inside = |port| SocketAddr::from((INSIDE, port));
    let measured = kept(siege, attack, inside(IPERF3_PORT), PORT, seconds);
    let before = process.held_at_rest();
    let pump = Pump::start(&siege.proxy, &siege.backend, inside(7000), 1);
    let flood = siege.attack(attack, PORT);
    let paired = siege.newcomer_pairs();
    flood.stop();
    pump.stop();
    let held = process.held_at_rest();
    measured
        .with(Figure::Paired, paired.as_secs_f64() * 1e3)
        .with(Figure::GrownMebibytes, mebibytes(held.bytes) - mebibytes(before.bytes))
        .with(Figure::GrownDescriptors, held.descriptors as f64 - before.descriptors as f64)
}

/// In bits per second, of iperf3: what a core that is left can well carry.
const RATE: &str = "1G";

/// What a transfer moves during an attack, of what it moves before it.
fn kept(siege: &Siege, attack: Attack, server: SocketAddr, port: u16, seconds: u32) -> Measurement {
    let iperf3 = Iperf3::behind(&siege.backend, server);
    let seconds = seconds.to_string();
    let transfer = || iperf3.send(&siege.proxy, &["-t", &seconds, "-b", RATE, "-C", "cubic"]).bits_per_second;
    let in_peace = transfer();
    let (flood, at) = (siege.attack(attack, port), netns_tests::wait::now());
    let attacked = transfer();
    let elapsed = at.elapsed().as_secs_f64();
    let rate = flood.stop() as f64 / elapsed;
    Measurement::new(attacked / in_peace).with(Figure::Gigabits, attacked / 1e9).with(Figure::FloodRate, rate / 1e3)
}
