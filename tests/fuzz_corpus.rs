//! Replays what the fuzzers of `tests/fuzz` have found worth keeping, without a fuzzer. `make fuzz` looks for more.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fuzz/bodies/config.rs"]
mod config;
#[path = "fuzz/bodies/datagram.rs"]
mod datagram;

use std::fs;
use std::path::{Path, PathBuf};

use underpass::proto::constants::GIVE_UP_AFTER;

/// Set to write the seeds anew.
const WRITE_SEEDS: &str = "UNDERPASS_WRITE_SEEDS";

#[test]
fn replays_the_datagram_corpus() {
    replay("datagram", datagram::run);
}

#[test]
fn replays_the_config_corpus() {
    replay("config", config::run);
}

#[test]
fn every_seed_lies_in_its_corpus() {
    let configs = fs::read_dir(root().join("config")).unwrap().map(|entry| entry.unwrap().path());
    let configs = configs.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let seeds = datagram_seeds().into_iter().map(|(name, seed)| (corpus("datagram").join(name), seed)).chain(
        configs.map(|path| {
            let name = path.file_name().unwrap().to_owned();
            // The examples with keys in place are what most mutations should start from.
            let text = fs::read_to_string(path).unwrap();
            let key = "aFcQp34rJLmuzyTHVRFeSoIxp8Ej4vCWBCYvYrW3N3A=";
            let text =
                ["PUBLIC_KEY_OF_APP1", "PUBLIC_KEY_OF_LB1"].iter().fold(text, |text, name| text.replace(name, key));
            (corpus("config").join(name), text.into_bytes())
        }),
    );
    for (path, seed) in seeds {
        if std::env::var_os(WRITE_SEEDS).is_some() {
            fs::write(&path, &seed).unwrap();
        }
        assert!(fs::read(&path).unwrap_or_default() == seed, "{} is out of date: set {WRITE_SEEDS}=1", path.display());
    }
}

fn replay(target: &str, run: impl Fn(&[u8])) {
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

/// One step of the datagram target's data.
fn step(mode: u8, bytes: &[u8]) -> Vec<u8> {
    [&[mode], &u16::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

fn message(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![0; length];
    message[..3].copy_from_slice(&[kind, 1, 1]);
    message
}

fn later(milliseconds: u16) -> Vec<u8> {
    [&[3], &milliseconds.to_le_bytes()[..]].concat()
}

fn datagram_seeds() -> Vec<(String, Vec<u8>)> {
    let packet = |source: u8| {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0];
        packet.extend([10, 77, 0, source, 10, 77, 0, 1]);
        packet
    };
    let frame = |kind: u8, flags: u8, body: &[u8]| [&[kind, flags, body.len() as u8, 0], body].concat();
    let ping = frame(2, 0, &[1, 1, 2, 3, 4, 5, 6, 7, 8]);
    let goodbye = frame(2, 0, &[3]);
    let half_minute = later(30_000);
    let ages = GIVE_UP_AFTER.as_secs() as usize / 30 * 3;
    let seeds: [(&str, Vec<u8>); 10] = [
        (
            "raw-of-every-kind",
            [1340, 1188, 64, 28].iter().zip(1..).flat_map(|(n, k)| step(0, &message(k, *n))).collect(),
        ),
        ("mac1-of-every-kind", [1340, 1188, 64].iter().zip(1..).flat_map(|(n, k)| step(1, &message(k, *n))).collect()),
        ("flood", step(1, &message(1, 1340)).repeat(25)),
        ("keepalive", step(2, &[])),
        ("packed", step(2, &[frame(1, 0, &packet(2)), ping.clone(), frame(1, 2, &packet(2)), vec![0; 7]].concat())),
        ("spoofed", step(2, &frame(1, 0, &packet(3)))),
        ("partial-without-transport", step(2, &frame(1, 1, &packet(2)))),
        ("frame-too-long", step(2, &[1, 0, 255, 255, 0x45])),
        ("goodbye", [step(2, &goodbye), later(5000), step(2, &ping)].concat()),
        ("ages", [step(2, &frame(1, 0, &packet(2))), half_minute.repeat(ages), step(2, &ping)].concat()),
    ];
    seeds.map(|(name, seed)| (name.to_owned(), seed)).into()
}
