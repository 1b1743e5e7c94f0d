//! Model-based simulation: nodes that are whole devices, a network that does its worst, an operator who changes
//! everything, an attacker who has recorded everything, and one virtual clock.
//!
//! A run is a list of transitions drawn from a seed. After everything that happens, invariants are checked against a slow
//! and obvious reference model. A failing run is made short and printed with its seed; `UNDERPASS_SIM_SEED=n` does that
//! run again, `UNDERPASS_SIM_RUNS=n` does more runs than usual.
//!
//! ```text
//!  transition ──▶ apply ──▶ simulation ──▶ node ──▶ Device
//!  (drawn by seed)  │         │    ▲        └─────▶ worker: the data plane's stages on a Router snapshot, and their twins
//!              traffic        ▼    │ arrival
//!              attacker   network (links, NATs) ──▶ reference (ledger), checks
//!              hostile, malice
//!              recovery
//! ```

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod apply;
mod arrival;
mod attacker;
mod checks;
mod hostile;
mod inner_packet;
mod malice;
mod network;
mod node;
mod random;
mod reassembly;
mod recovery;
mod reference;
mod runner;
mod scenarios;
mod simulation;
mod traffic;
mod transition;
#[path = "../twin/mod.rs"]
mod twin;
mod worker;

use reference::Violation;
use runner::{Tally, run_seed};

const SEED_VARIABLE: &str = "UNDERPASS_SIM_SEED";
const RUNS_VARIABLE: &str = "UNDERPASS_SIM_RUNS";
/// Runs of a usual test: some ten seconds without optimisation of the package itself.
const RUNS: u64 = 60;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn random_runs_keep_every_invariant() {
    let first = variable(SEED_VARIABLE);
    let runs = variable(RUNS_VARIABLE).unwrap_or(if first.is_some() { 1 } else { RUNS });
    let seeds = (first.unwrap_or(0)..).take(runs as usize);
    let tally = seeds.map(run_seed).fold(Tally::default(), |sum, run| sum + run);
    println!("{tally:?}");
    assert!(tally.deliveries * 5 > tally.packets, "few packets arrive: {tally:?}");
}

#[test]
fn a_run_follows_from_its_seed() {
    assert_eq!(run_seed(1), run_seed(1));
}
