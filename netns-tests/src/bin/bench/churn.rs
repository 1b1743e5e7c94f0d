//! Whether a daemon holds more the longer peers come and go, move, reload and are flooded.

use std::time::Duration;

use netns_tests::churn::churn;
use netns_tests::process::Held;

use crate::contender::Kind;
use crate::measurement::{Figure, Measurement};
use crate::results::{Better, Table};
use crate::{Arguments, caught};

/// What these are called on the command line.
pub(crate) const TESTS: [&str; 1] = [CHURN];
const CHURN: &str = "churn";

/// Once, if it is chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str]) -> Vec<Table> {
    if !chosen.contains(&CHURN) {
        return vec![];
    }
    let title = "Peers come, go and move, reloads, floods: growth of resident memory from after the first fifth to the end, MiB";
    let mut table = Table::new(CHURN, title, Better::Less);
    let outcome = caught(|| {
        let churned = churn(CHURN, Duration::from_secs(arguments.churn_seconds.into()));
        eprintln!("{} events, {} datagrams there and back", churned.held.len(), churned.delivered);
        let grown = |of: fn(&Held) -> u64| churned.growth(of) as f64;
        Measurement::new(grown(|held| held.bytes) / f64::from(1 << 20))
            .with(Figure::GrownDescriptors, grown(|held| held.descriptors))
            .with(Figure::GrownThreads, grown(|held| held.threads))
            .with(Figure::Errors, churned.strays as f64)
    });
    table.add(0, "underpass", Kind::Underpass, outcome);
    vec![table]
}
