//! Runs from seeds, and short runs from failing ones.

use std::ops::Add;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::reference::{Checked, Violation};
use crate::simulation::Simulation;
use crate::transition::{Transition, draw_run};

/// Transitions of a random run.
const RUN_LENGTH: usize = 120;
/// Runs tried to make a failing one shorter.
const SHRINKING_RUNS: usize = 400;

/// What runs amounted to, so that a test can see that they were not idle.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub transitions: u64,
    pub packets: u64,
    pub deliveries: u64,
    /// How often workers wrote to their TUNs.
    pub writes: u64,
    /// Frames that workers refused.
    pub refused: u64,
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            transitions: self.transitions + other.transitions,
            packets: self.packets + other.packets,
            deliveries: self.deliveries + other.deliveries,
            writes: self.writes + other.writes,
            refused: self.refused + other.refused,
        }
    }
}

/// Does the run of `seed`. Panics with a short run that fails, and how to see it again.
pub(crate) fn run_seed(seed: u64) -> Tally {
    let run = draw_run(seed, RUN_LENGTH);
    match attempt(seed, &run) {
        Ok(tally) => tally,
        Err(violation) => {
            let (short, violation) = shrink(seed, run, violation);
            let trace = trace(seed, &short);
            panic!(
                "seed {seed}: {}\n\ntransitions: {short:#?}\n\nlast of what happened:\n{}\n\nsee it again with {}={seed}",
                violation.0,
                trace.join("\n"),
                crate::SEED_VARIABLE,
            );
        }
    }
}

/// Does a run. A panic of the core is a violation too.
fn attempt(seed: u64, run: &[Transition]) -> Result<Tally, Violation> {
    catch_unwind(AssertUnwindSafe(|| {
        let mut simulation = Simulation::new(seed);
        do_run(&mut simulation, run)?;
        Ok(Tally {
            transitions: run.len() as u64,
            packets: simulation.ledger.next_number(),
            deliveries: simulation.ledger.deliveries(),
            ..simulation.tally
        })
    }))
    .unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation(format!("panic: {}", text.unwrap_or_default())))
    })
}

fn do_run(simulation: &mut Simulation, run: &[Transition]) -> Checked {
    run.iter().try_for_each(|transition| simulation.apply(transition))?;
    // Every run ends well.
    simulation.apply(&Transition::Heal)
}

/// Leaves out what the failure does not need, in ever smaller parts.
fn shrink(seed: u64, mut run: Vec<Transition>, mut violation: Violation) -> (Vec<Transition>, Violation) {
    let (mut part, mut tried) = (run.len() / 2, 0);
    while part > 0 && tried < SHRINKING_RUNS {
        let mut at = 0;
        while at < run.len() && tried < SHRINKING_RUNS {
            let mut shorter = run.clone();
            shorter.drain(at..(at + part).min(run.len()));
            tried += 1;
            match attempt(seed, &shorter) {
                Err(still) => (run, violation) = (shorter, still),
                Ok(_) => at += part,
            }
        }
        part /= 2;
    }
    (run, violation)
}

/// The last of what happens in a run; all of it, if that very run was asked for.
fn trace(seed: u64, run: &[Transition]) -> Vec<String> {
    const LINES: usize = 50;
    let mut simulation = Simulation::new(seed);
    simulation.trace = Some(Vec::new());
    // It fails, maybe with a panic: what happened before is what matters.
    let _ = catch_unwind(AssertUnwindSafe(|| do_run(&mut simulation, run)));
    let mut lines = simulation.trace.take().unwrap_or_default();
    let left_out = if std::env::var_os(crate::SEED_VARIABLE).is_some() { 0 } else { lines.len().saturating_sub(LINES) };
    lines.split_off(left_out)
}
