//! `make bench`: the speed and the cost of underpass beside no tunnel, other tunnels and TLS, in one laboratory and one run.
//!
//! All contenders stand at the same time and are measured in turn, round by round, since machines differ and drift: only
//! ratios inside one round mean much. What goes wrong in one measurement is reported and ends nothing.

mod bars;
mod bulk;
mod catalogue;
mod chart;
mod churn;
mod contender;
mod costs;
mod failover;
mod field;
mod flood;
mod foreign;
mod hostile;
mod http;
mod jumbo;
mod latency;
mod load;
mod measurement;
mod meter;
mod overlay;
mod path_mtu;
mod peers;
mod report;
mod restarts;
mod results;
mod site;
mod starting;
mod statistics;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use netns_tests::{Process, round_trip};
use serde_json::{Map, json};

use crate::bars::Verdict;
use crate::catalogue::{TESTS, Test};
use crate::contender::{Contender, Service};
use crate::costs::Cost;
use crate::field::Field;
use crate::foreign::ForeignLoad;
use crate::load::Load;
use crate::measurement::Figure;
use crate::results::Table;
use crate::site::Site;
use crate::starting::{AGAINST, NAMES, Programs};

/// Measures underpass, no tunnel, other tunnels and TLS in network namespaces. Needs root.
#[derive(Parser)]
struct Arguments {
    /// How often each contender takes each test.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How often each failure is caused, in the tests of failover.
    #[arg(long, default_value_t = 20)]
    repetitions: usize,
    /// How long one measurement takes, in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// How long peers come and go in the test of churn, in seconds.
    #[arg(long, default_value_t = 600)]
    churn_seconds: u32,
    /// Only these tests; a word before a hyphen stands for all that begin with it.
    #[arg(long, value_delimiter = ',')]
    tests: Vec<String>,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
    /// Other work on the machine, in the tests of contenders.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "idle,nice0,nice19,elsewhere")]
    loads: Vec<Load>,
    /// Another build of underpass, measured as the contender underpass-against.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Where the tunnels lie that cargo installs; beside this program's directory, if not said.
    #[arg(long, value_name = "DIRECTORY")]
    peers: Option<PathBuf>,
    /// Writes everything to a file as JSON, or prints it instead of the tables.
    #[arg(long, value_name = "FILE")]
    json: Option<Option<PathBuf>>,
    /// Draws what such a file holds as SVG to the standard output, and measures nothing.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

/// All that a measurement needs.
pub(crate) struct Bench {
    field: Field,
    site: Site,
    _nginx: Process,
    seconds: u32,
}

impl Bench {
    fn during(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.chart {
        match std::fs::read_to_string(file)
            .map_err(Into::into)
            .and_then(|text| chart::draw(&serde_json::from_str(&text)?))
        {
            Ok(svg) => print!("{svg}"),
            Err(error) => {
                eprintln!("{}: {error:#}", file.display());
                std::process::exit(1);
            }
        }
        return;
    }
    let chosen = select(&all_tests(), &arguments.tests);
    let mut names = select(&NAMES, &arguments.contenders);
    let programs = programs(&arguments);
    names.retain(|name| programs.suffice_for(name));
    // Whoever names another build wants it measured.
    let against = arguments.against.as_ref().map(|_| AGAINST).filter(|against| !names.contains(against));
    names.extend(against);
    // What is caught is told where it happens, without a trace of this program's innards.
    set_hook(Box::new(|panic| eprintln!("failed: {panic}")));
    let mut failures = vec![];
    let mut note = |name: &str, reason| failures.push((name.to_owned(), reason));
    let (mut tables, versions) = run(&arguments, &programs, &chosen, &names, &mut note);
    tables.extend(peers::measure(&arguments, &chosen, &mut note));
    tables.extend(restarts::measure(&arguments, &chosen, &mut note));
    tables.extend(failover::measure(&arguments, &chosen, &names, &mut note));
    tables.extend(flood::measure(&arguments, &chosen, &mut note));
    tables.extend(hostile::measure(&arguments, &chosen, &mut note));
    tables.extend(jumbo::measure(&arguments, &chosen, &mut note));
    tables.extend(path_mtu::measure(&arguments, &chosen, &mut note));
    tables.extend(churn::measure(&arguments, &chosen));
    let costs = costs::measure(&chosen, &mut note);
    let verdicts = bars::judge(&tables);
    let everything = json!({
        "schema_version": 3,
        "versions": versions.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect::<Map<_, _>>(),
        "rounds": arguments.rounds,
        "repetitions": arguments.repetitions,
        "seconds": arguments.seconds,
        "tests": report::json(&tables),
        "bars": verdicts.iter().map(Verdict::json).collect::<Vec<_>>(),
        "costs": costs.iter().map(Cost::json).collect::<Vec<_>>(),
        "failures": failures.iter().map(|(name, reason)| json!({ "what": name, "reason": reason })).collect::<Vec<_>>(),
    });
    if let Some(None) = arguments.json {
        println!("{everything:#}");
        return;
    }
    report::print_versions(&versions);
    tables.iter().for_each(report::print);
    report::print_bars(&verdicts, &costs);
    failures.iter().for_each(|(name, reason)| println!("\n{name} was not measured: {reason}"));
    if let Some(Some(file)) = arguments.json {
        std::fs::write(&file, format!("{everything:#}\n")).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
}

fn all_tests() -> Vec<&'static str> {
    let of_contenders = TESTS.iter().map(|test| test.name);
    of_contenders
        .chain(peers::TESTS)
        .chain(restarts::TESTS)
        .chain(failover::TESTS)
        .chain(flood::TESTS.map(|test| test.name))
        .chain(hostile::TESTS)
        .chain(jumbo::TESTS)
        .chain(path_mtu::TESTS)
        .chain(churn::TESTS)
        .chain(costs::TESTS)
        .collect()
}

/// Takes what could not be measured, and why.
pub(crate) type Note<'a> = &'a mut dyn FnMut(&str, String);

fn run(
    arguments: &Arguments,
    programs: &Programs,
    chosen: &[&str],
    names: &[&'static str],
    note: Note,
) -> (Vec<Table>, Versions) {
    let tests: Vec<&Test> = TESTS.iter().filter(|test| chosen.contains(&test.name)).collect();
    if tests.is_empty() {
        return Default::default();
    }
    let field = Field::build();
    let mut contenders = vec![];
    for name in names {
        eprintln!("starting {name}");
        match caught(|| starting::start(&field, programs, name)) {
            Ok(contender) => contenders.push(contender),
            Err(reason) => note(name, reason),
        }
    }
    round_trip::serve_echo(&field.backend, Service::Echo.port());
    let nginx = site::start_nginx(&field.backend, Some(&field.certificate));
    site::make_app(&field.backend, &nginx);
    let route = |contender: &Contender| site::route(contender, programs.haproxy(contender.name), &field.certificate);
    let site = Site::start(&field.proxy, &contenders.iter().map(route).collect::<Vec<_>>());
    let bench = Bench { field, site, _nginx: nginx, seconds: arguments.seconds };
    contenders.retain(|contender| {
        let checked = caught(|| http::check_resumption(&bench, contender));
        checked.map_err(|reason| note(contender.name, reason)).is_ok()
    });
    let table = |test: &Test, load| Table::new(test.name, test.title, test.better).under(load);
    let of_load = |load| tests.iter().map(move |test| (*test, table(test, load))).collect::<Vec<_>>();
    let mut tables: Vec<_> = arguments.loads.iter().map(|load| (*load, of_load(*load))).collect();
    for round in 0..arguments.rounds {
        for (load, tables) in &mut tables {
            let begun = caught(|| load.start(&bench.field.router));
            if let Err(reason) = &begun {
                note(load.name(), reason.clone());
                continue;
            }
            for (test, table) in tables {
                measure_all(&bench, test, &contenders, round, table);
            }
        }
    }
    let tables = tables.into_iter().flat_map(|(_, tables)| tables).map(|(_, table)| table).collect();
    (tables, contenders.into_iter().map(|contender| (contender.name, contender.version)).collect())
}

/// Contenders and what their programs say of their versions.
type Versions = Vec<(&'static str, String)>;

/// Each contender once, in an order that another one begins in each round.
fn measure_all(bench: &Bench, test: &Test, contenders: &[Contender], round: usize, table: &mut Table) {
    let able: Vec<_> = contenders.iter().filter(|contender| test.admits(contender)).collect();
    // The rows are in the order of the contenders, whoever is first in this round.
    able.iter().for_each(|contender| _ = table.series_of(contender.name, contender.kind));
    let first = round % able.len().max(1);
    for contender in able[first..].iter().chain(&able[..first]) {
        let outcome = caught(|| {
            bench.field.set_wire(test.wire);
            let foreign = ForeignLoad::start();
            let measurement = (test.measure)(bench, contender);
            measurement.with(Figure::Foreign, foreign.percent())
        });
        table.add(round, contender.name, contender.kind, outcome);
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
    // Each program is started in its host's own directory.
    let peers = std::path::absolute(&peers).unwrap_or(peers);
    let [haproxy, wireguard_go] = ["HAPROXY", "WIREGUARD_GO"].map(|name| std::env::var_os(name).map(PathBuf::from));
    Programs { against: arguments.against.clone(), peers, haproxy, wireguard_go }
}

/// Which of all names some words mean, exactly or by what stands before a hyphen; everything if there are none.
fn select(all: &[&'static str], words: &[String]) -> Vec<&'static str> {
    let means = |word: &String, name: &str| {
        name == word || !all.contains(&word.as_str()) && name.starts_with(&format!("{word}-"))
    };
    for word in words {
        if !all.iter().any(|name| means(word, name)) {
            eprintln!("{word} is none of {}", all.join(", "));
            std::process::exit(2);
        }
    }
    all.iter().filter(|name| words.is_empty() || words.iter().any(|word| means(word, name))).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(words: &[&str]) -> Vec<&'static str> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        select(&["tcp-1", "tcp-1-reverse", "tcp-8", "ping", "ping-load"], &words)
    }

    #[test]
    fn a_word_means_the_name_that_it_is_or_all_that_it_begins() {
        assert_eq!(selected(&["tcp-1"]), ["tcp-1"]);
        assert_eq!(selected(&["tcp", "ping"]), ["tcp-1", "tcp-1-reverse", "tcp-8", "ping"]);
        assert_eq!(selected(&[]).len(), 5);
    }
}
