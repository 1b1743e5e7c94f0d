//! The files of `config/`, filled in as the README says.

use std::fs;
use std::path::Path;

use crate::support::{Outcome, Site, a_public_key};

fn filled_in(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    let key = a_public_key();
    let text = fs::read_to_string(path).unwrap();
    text.replace("\"PUBLIC_KEY_OF_APP1\"", &format!("\"{key}\""))
        .replace("\"PUBLIC_KEY_OF_LB1\"", &format!("\"{key}\""))
}

fn check(name: &str) -> Outcome {
    Site::new().check(filled_in(name))
}

#[test]
fn the_examples_are_valid_once_the_key_is_filled_in() {
    for name in ["proxy.minimal.toml", "proxy.example.toml", "backend.minimal.toml", "backend.example.toml"] {
        let outcome = check(name);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{name}: {outcome:#?}");
        assert!(!outcome.stdout.contains("look again"), "{name}: {outcome:#?}");
    }
}

#[test]
fn the_smallest_and_the_full_example_mean_the_same() {
    for role in ["proxy", "backend"] {
        let (small, full) = (check(&format!("{role}.minimal.toml")), check(&format!("{role}.example.toml")));
        let without_keys_and_paths = |outcome: Outcome| -> Vec<String> {
            let lines = outcome.stdout.lines().skip(1).filter(|line| !line.contains("public key"));
            lines.map(ToOwned::to_owned).collect()
        };
        assert_eq!(without_keys_and_paths(small), without_keys_and_paths(full), "{role}");
    }
}

#[test]
fn a_key_that_was_not_filled_in_is_refused_with_the_way_to_get_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/proxy.minimal.toml");
    let outcome = Site::new().check(fs::read(path).unwrap());
    assert_eq!(outcome.code, 3);
    assert!(outcome.stderr.contains("backend \"app1\".public_key") && outcome.stderr.contains("underpass pubkey"));
}

#[test]
fn the_smallest_pair_is_about_ten_lines_each() {
    for name in ["proxy.minimal.toml", "backend.minimal.toml"] {
        let text = filled_in(name);
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
        assert!(lines <= 10, "{name} has {lines}");
    }
}
