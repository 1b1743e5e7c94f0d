//! Replays what the fuzzers of `tests/fuzz` have found worth keeping, without a fuzzer. `make fuzz` looks for more.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fuzz/bodies/choices.rs"]
mod choices;
#[path = "fuzz/bodies/config.rs"]
mod config;
#[path = "fuzz/bodies/datagram.rs"]
mod datagram;
#[path = "fuzz/bodies/inbound.rs"]
mod inbound;
#[path = "fuzz/bodies/links.rs"]
mod links;
#[path = "fuzz/bodies/outbound.rs"]
mod outbound;
#[path = "fuzz/bodies/policy.rs"]
mod policy;
#[path = "twin/policy.rs"]
mod policy_twin;
#[path = "fuzz/seeds/mod.rs"]
mod seeds;
#[path = "fuzz/bodies/segment_size.rs"]
mod segment_size;
#[path = "twin/mod.rs"]
mod twin;

use std::fs;
use std::path::{Path, PathBuf};

/// Set to write the seeds anew.
const WRITE_SEEDS: &str = "UNDERPASS_WRITE_SEEDS";

#[test]
fn replays_the_datagram_corpus() {
    replay("datagram", |data| datagram::World::new().do_steps(data));
}

#[test]
fn replays_the_config_corpus() {
    replay("config", config::run);
}

#[test]
fn replays_the_inbound_corpus() {
    replay("inbound", inbound::run);
}

#[test]
fn replays_the_outbound_corpus() {
    replay("outbound", outbound::run);
}

#[test]
fn replays_the_policy_corpus() {
    replay("policy", policy::run);
}

#[test]
fn replays_the_segment_size_corpus() {
    replay("segment_size", segment_size::run);
}

#[test]
fn seeds_come_to_what_they_are_named_for() {
    let [mut came_to, mut expected] = [Vec::new(), Vec::new()];
    for (name, seed, outcome) in seeds::inbound::seeds() {
        came_to.push(format!("inbound {name}: {:?}", inbound::run(&seed)));
        expected.push(format!("inbound {name}: {outcome:?}"));
    }
    for (name, seed, outcome) in seeds::outbound::seeds() {
        came_to.push(format!("outbound {name}: {:?}", outbound::run(&seed)));
        expected.push(format!("outbound {name}: {outcome:?}"));
    }
    for (name, seed, outcome) in seeds::policy::seeds() {
        came_to.push(format!("policy {name}: {:?}", policy::run(&seed)));
        expected.push(format!("policy {name}: {outcome:?}"));
    }
    for (name, seed, outcome) in seeds::segment_size::seeds() {
        came_to.push(format!("segment_size {name}: {:?}", segment_size::run(&seed)));
        expected.push(format!("segment_size {name}: {outcome:?}"));
    }
    assert_eq!(came_to, expected);
}

#[test]
fn every_seed_lies_in_its_corpus() {
    let of = |target: &str, name: &str| corpus(target).join(name);
    let datagrams = seeds::datagram::seeds().into_iter().map(|(name, seed)| (of("datagram", name), seed));
    let inbound = seeds::inbound::seeds().into_iter().map(|(name, seed, _)| (of("inbound", name), seed));
    let outbound = seeds::outbound::seeds().into_iter().map(|(name, seed, _)| (of("outbound", name), seed));
    let policies = seeds::policy::seeds().into_iter().map(|(name, seed, _)| (of("policy", name), seed));
    let sizes = seeds::segment_size::seeds().into_iter().map(|(name, seed, _)| (of("segment_size", name), seed));
    let seeds = datagrams.chain(inbound).chain(outbound).chain(policies).chain(sizes).chain(config_seeds());
    for (path, seed) in seeds {
        if std::env::var_os(WRITE_SEEDS).is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &seed).unwrap();
        }
        assert!(fs::read(&path).unwrap_or_default() == seed, "{} is out of date: set {WRITE_SEEDS}=1", path.display());
    }
}

/// The examples with keys in place are what most mutations should start from.
fn config_seeds() -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    let configs = fs::read_dir(root().join("config")).unwrap().map(|entry| entry.unwrap().path());
    let configs = configs.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    configs.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let key = "aFcQp34rJLmuzyTHVRFeSoIxp8Ej4vCWBCYvYrW3N3A=";
        let text = ["PUBLIC_KEY_OF_APP1", "PUBLIC_KEY_OF_LB1"].iter().fold(text, |text, name| text.replace(name, key));
        (corpus("config").join(path.file_name().unwrap()), text.into_bytes())
    })
}

fn replay<T>(target: &str, run: impl Fn(&[u8]) -> T) {
    let mut inputs: Vec<PathBuf> = fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 4, "the corpus of {target} has only {} inputs", inputs.len());
    for input in inputs {
        println!("{}", input.display());
        run(&fs::read(input).unwrap());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn corpus(target: &str) -> PathBuf {
    root().join("tests/fuzz/corpus").join(target)
}
