//! `make bench`: the speed and the cost of underpass beside no tunnel, other tunnels and TLS, in one laboratory and one run.
//!
//! All contenders stand at the same time and are measured in turn, round by round, since machines differ and drift: only
//! ratios inside one round mean much. What goes wrong in one measurement is reported and ends nothing.

mod bars;
mod bulk;
mod catalogue;
mod contender;
mod costs;
mod field;
mod http;
mod latency;
mod measurement;
mod meter;
mod report;
mod results;
mod site;
mod starting;
mod statistics;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use crate::catalogue::{TESTS, Test};
use crate::contender::Contender;
use crate::field::Field;
use crate::results::TestResults;
use crate::site::Site;
use crate::starting::{NAMES, Programs};

/// Measures underpass, no tunnel, other tunnels and TLS in network namespaces. Needs root.
#[derive(Parser)]
struct Arguments {
    /// How often each contender takes each test.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement takes, in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Only these tests; a word before a hyphen stands for all that begin with it.
    #[arg(long, value_delimiter = ',')]
    tests: Vec<String>,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
    /// Another build of underpass, measured as the contender underpass-against.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Where the tunnels lie that cargo installs; beside this program's directory, if not said.
    #[arg(long, value_name = "DIRECTORY")]
    peers: Option<PathBuf>,
    /// Writes everything to a file as JSON, or prints it instead of the tables.
    #[arg(long, value_name = "FILE")]
    json: Option<Option<PathBuf>>,
}

/// All that a measurement needs.
pub(crate) struct Bench {
    field: Field,
    site: Site,
    seconds: u32,
}

impl Bench {
    fn during(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

fn main() {
    let arguments = Arguments::parse();
    let tests = select(TESTS.iter().map(|test| (test.name, test)), &arguments.tests);
    let names = select(NAMES.iter().map(|name| (*name, *name)), &arguments.contenders);
    let (results, absent) = run(&arguments, &tests, &names);
    let idle = costs::measure_idle();
    let crowd = costs::measure_crowd();
    let everything = json!({
        "schema_version": 2,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "absent": absent,
        "tests": report::json(&results),
        "idle_daemon": idle.report(),
        "thousand_peers": crowd.report(),
    });
    if let Some(None) = arguments.json {
        println!("{everything:#}");
        return;
    }
    results.iter().for_each(|(test, results)| report::print(test, results));
    println!();
    idle.print();
    crowd.print();
    if let Some(Some(file)) = arguments.json {
        std::fs::write(&file, format!("{everything:#}\n")).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

type Results = Vec<(&'static Test, TestResults)>;
/// Who could not be started, and why.
type Absent = Vec<(&'static str, String)>;

fn run(arguments: &Arguments, tests: &[&'static Test], names: &[&'static str]) -> (Results, Absent) {
    let (field, programs) = (Field::build(), programs(arguments));
    let mut absent = vec![];
    let mut contenders = vec![];
    for name in names {
        if *name == "underpass-against" && programs.against.is_none() {
            continue;
        }
        eprintln!("starting {name}");
        match caught(|| starting::start(&field, &programs, name)) {
            Ok(contender) => contenders.push(contender),
            Err(reason) => absent.push((*name, reason)),
        }
    }
    let site = Site::start(&field, &contenders);
    let bench = Bench { field, site, seconds: arguments.seconds };
    let mut results: Results = tests.iter().map(|test| (*test, TestResults::default())).collect();
    for round in 0..arguments.rounds {
        for (test, results) in &mut results {
            bench.field.set_wire(test.wire);
            measure_all(&bench, test, &contenders, round, results);
        }
    }
    (results, absent)
}

/// Each contender once, in an order that another one begins in each round.
fn measure_all(bench: &Bench, test: &Test, contenders: &[Contender], round: usize, results: &mut TestResults) {
    let able: Vec<_> = contenders.iter().filter(|contender| test.needs.are_met_by(contender.reach)).collect();
    // The series begin in the order of the tables, whoever is first in this round.
    able.iter().for_each(|contender| _ = results.series_of(contender.name, contender.kind));
    let first = round % able.len().max(1);
    for contender in able[first..].iter().chain(&able[..first]) {
        let outcome = caught(|| (test.measure)(bench, contender));
        let text = outcome.as_ref().map_or_else(|_| "failed".to_owned(), |measurement| format!("{:.2}", measurement.value));
        eprintln!("round {}: {:16} {:17} {text}", round + 1, test.name, contender.name);
        results.series_of(contender.name, contender.kind).rounds.push(outcome);
    }
}

/// What a measurement gives, or what it says when it fails.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

fn programs(arguments: &Arguments) -> Programs {
    let here = std::env::current_exe().expect("Linux tells a program where it lies");
    let target = here.ancestors().nth(2).expect("target/<profile>/bench").to_path_buf();
    let peers = arguments.peers.clone().unwrap_or_else(|| target.join("peers/bin"));
    Programs { against: arguments.against.clone(), peers }
}

/// What some words name, exactly or by what stands before a hyphen; everything if there are none.
fn select<T: Copy>(all: impl Iterator<Item = (&'static str, T)> + Clone, words: &[String]) -> Vec<T> {
    for word in words {
        let known = all.clone().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(known.iter().any(|name| matches(name, word, &known)), "{word} is none of {known:?}");
    }
    let known = all.clone().map(|(name, _)| name).collect::<Vec<_>>();
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| matches(name, word, &known));
    all.filter(|(name, _)| chosen(name)).map(|(_, item)| item).collect()
}

fn matches(name: &str, word: &str, known: &[&str]) -> bool {
    name == word || !known.contains(&word) && name.starts_with(&format!("{word}-"))
}
