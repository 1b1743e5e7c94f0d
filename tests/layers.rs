//! The layers of `src/`: an arrow goes down only, and the core is pure.
//!
//! ```text
//! main ── cli → control → { config, dataplane } → proto → { keys, packet }
//! ```
//!
//! Reads the sources as text: paths that begin at the crate's root tell which module knows which. Unit tests are exempt.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate's root with the modules that it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("keys", &[]),
    ("packet", &[]),
    ("logging", &[]),
    ("proto", &["keys", "packet"]),
    ("config", &["keys", "packet", "proto"]),
    ("dataplane", &["keys", "packet", "proto"]),
    ("control", &["keys", "packet", "proto", "config", "dataplane"]),
    ("cli", &["keys", "packet", "proto", "config", "dataplane", "control", "logging"]),
    ("main", &["cli", "logging"]),
];

/// The modules that do nothing by themselves.
const CORE: &[&str] = &["keys", "packet", "proto"];

/// What the core may not name.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "UnixStream",
    "std::thread",
    "std::fs",
    "std::process",
    "std::env",
    "tokio",
    "SystemRandom",
    "OsRng",
    "getrandom",
    "libc",
    "nix",
    "socket2",
];

/// One source file without its comments and its unit tests.
struct Source {
    path: PathBuf,
    /// The module of the crate's root that it belongs to.
    module: String,
    /// How many `super::` lead from its code to the crate's root.
    depth: usize,
    code: String,
}

#[test]
fn an_arrow_goes_down_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        let (_, allowed) = LAYERS
            .iter()
            .find(|(module, _)| *module == source.module)
            .unwrap_or_else(|| panic!("{} has no layer: give it one in this file", source.path.display()));
        for named in modules_named(&source.code, source.depth) {
            if named != source.module && is_module(&named) && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{}: {} → {named}", source.path.display(), source.module));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that do not go down:\n{}", wrong.join("\n"));
}

#[test]
fn the_core_has_no_clock_socket_thread_file_or_randomness_of_its_own() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| CORE.contains(&source.module.as_str())) {
        for name in IMPURE.iter().filter(|name| names(&source.code, name)) {
            wrong.push(format!("{}: {name}", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "the core names what it may not:\n{}", wrong.join("\n"));
}

#[test]
fn nothing_below_control_is_async() {
    for source in sources().iter().filter(|source| !matches!(source.module.as_str(), "control" | "cli" | "main")) {
        for name in ["tokio", "async"] {
            assert!(!names(&source.code, name), "{}: {name}", source.path.display());
        }
    }
}

#[test]
fn one_module_names_snow() {
    let all = sources();
    let naming: Vec<_> = all.iter().filter(|source| names(&source.code, "snow")).map(|source| &source.path).collect();
    assert_eq!(naming, ["src/proto/noise/primitives.rs", "src/proto/noise.rs"].map(Path::new));
}

#[test]
fn the_reader_finds_every_way_to_name_a_module() {
    let found = |code: &str, depth| modules_named(&without_comments(code), depth).into_iter().collect::<Vec<_>>();
    assert_eq!(found("use crate::config::Config;", 1), ["config"]);
    assert_eq!(found("use crate::{keys::PublicKey, proto::{self, Device}, packet};", 1), ["keys", "packet", "proto"]);
    assert_eq!(found("let x = crate::control::run();", 1), ["control"]);
    assert_eq!(found("use super::super::config::Config;", 2), ["config"]);
    assert_eq!(found("use super::super::error;", 3), [""; 0]);
    assert_eq!(found("use super::{config, keys};", 1), ["config", "keys"]);
    assert_eq!(found("pub(in crate::config) fn f() {}", 2), ["config"]);
    assert_eq!(found("use underpass::cli::{self};", 0), ["cli"]);
    assert_eq!(found("// use crate::config;\nfn f() {} // crate::keys\n", 1), [""; 0]);
    assert!(names("std::thread::spawn", "std::thread") && !names("nixie", "nix") && !names("a_nix", "nix"));
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\nb\n}\n"), "a\n");
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&root.join("src"), &mut paths);
    paths.sort();
    let sources: Vec<Source> = paths.iter().filter_map(|path| read(root, path)).collect();
    assert!(sources.len() > 10, "the sources were not found");
    sources
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// `None` for the crate's root and for files of unit tests.
fn read(root: &Path, path: &Path) -> Option<Source> {
    let relative = path.strip_prefix(root).unwrap();
    let parts: Vec<&str> = relative.iter().skip(1).map(|part| part.to_str().unwrap().trim_end_matches(".rs")).collect();
    if parts == ["lib"] || parts.contains(&"tests") {
        return None;
    }
    let depth = parts.iter().filter(|part| **part != "mod").count();
    let code = without_comments(without_tests(&fs::read_to_string(path).unwrap()));
    Some(Source { path: relative.to_owned(), module: parts[0].to_owned(), depth, code })
}

/// What stands before the unit tests, which the house puts at the bottom.
fn without_tests(text: &str) -> &str {
    let begins_tests = |(at, mark): &(usize, &str)| {
        let rest = &text[at + mark.len()..];
        rest.trim_start_matches("pub(super) ").starts_with("mod ")
    };
    text.match_indices("#[cfg(test)]\n").find(begins_tests).map_or(text, |(at, _)| &text[..at])
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| line.split_once("//").map_or(line, |(code, _)| code).to_owned() + "\n";
    text.lines().map(code).collect()
}

/// The first segments of all paths that begin at the crate's root.
fn modules_named(code: &str, depth: usize) -> BTreeSet<String> {
    let to_the_root = "super::".repeat(depth.max(1));
    let roots = ["crate::", "underpass::", &to_the_root];
    let paths = roots.into_iter().flat_map(|root| paths_after(code, root));
    paths.flat_map(first_segments).collect()
}

/// What follows each `root` in `code`.
fn paths_after<'a>(code: &'a str, root: &str) -> Vec<&'a str> {
    let begins = |at: usize| code[..at].chars().next_back().is_none_or(|c| !is_word(c) && c != ':');
    code.match_indices(root).filter(|(at, _)| begins(*at)).map(|(at, root)| &code[at + root.len()..]).collect()
}

/// `config::Config` → `config`; `{keys::A, proto::{B, C}}` → `keys`, `proto`.
fn first_segments(path: &str) -> Vec<String> {
    let word = |text: &str| text.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let mut segments = vec![word(group)];
    let mut open = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            ',' if open == 1 => segments.push(word(&group[at + 1..])),
            _ => {}
        }
        if open == 0 {
            break;
        }
    }
    segments
}

/// Set when `name` stands in `code` as a path or word of its own.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Macros at the crate's root, and `super::` within a module, are no arrows between modules.
fn is_module(name: &str) -> bool {
    LAYERS.iter().any(|(module, _)| *module == name)
}
