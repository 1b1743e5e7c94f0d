//! What the documents say of the sources is so: constants have the stated values, tests that are named exist.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass::proto::constants as c;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn time(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds => format!("{seconds} s"),
    }
}

fn power(number: u64) -> String {
    assert!(number.is_power_of_two());
    format!("2^{}", number.ilog2())
}

/// The rows of the protocol's tables of constants: name and value.
fn stated_constants() -> Vec<(String, String)> {
    let retries: Vec<String> = c::RETRY_INTERVALS.iter().map(|interval| interval.as_secs_f64().to_string()).collect();
    [
        ("REKEY_AFTER_TIME", time(c::REKEY_AFTER_TIME)),
        ("REKEY_JITTER", format!("up to {}", time(c::REKEY_JITTER))),
        ("REKEY_AFTER_TIME_RECEIVING", time(c::REKEY_AFTER_TIME_RECEIVING)),
        ("REJECT_AFTER_TIME", time(c::REJECT_AFTER_TIME)),
        ("REKEY_AFTER_MESSAGES", power(c::REKEY_AFTER_MESSAGES)),
        ("REJECT_AFTER_MESSAGES", power(c::REJECT_AFTER_MESSAGES)),
        ("REKEY_AFTER_BYTES", power(c::REKEY_AFTER_BYTES)),
        ("REJECT_AFTER_BYTES", power(c::REJECT_AFTER_BYTES)),
        ("RETRY_INTERVALS", format!("{}, {}, … s", retries.join(", "), retries.last().unwrap())),
        ("RETRY_JITTER", format!("up to {}", time(c::RETRY_JITTER))),
        ("MIN_INITIATION_INTERVAL", time(c::MIN_INITIATION_INTERVAL)),
        ("MIN_ACCEPTED_INITIATION_INTERVAL", time(c::MIN_ACCEPTED_INITIATION_INTERVAL)),
        ("GIVE_UP_AFTER", time(c::GIVE_UP_AFTER)),
        ("SIMULTANEOUS_INTERVAL", time(c::SIMULTANEOUS_INTERVAL)),
        ("LIVENESS_INTERVAL", time(c::LIVENESS_INTERVAL)),
        ("LIVENESS_RETRY_INTERVAL", time(c::LIVENESS_RETRY_INTERVAL)),
        ("LIVENESS_PINGS_UNANSWERED", c::LIVENESS_PINGS_UNANSWERED.to_string()),
        ("LIVENESS_PINGS_PER_SECOND", c::LIVENESS_PINGS_PER_SECOND.to_string()),
        ("LIVENESS_MIN_PATIENCE", time(c::LIVENESS_MIN_PATIENCE)),
        ("LIVENESS_MAX_PATIENCE", time(c::LIVENESS_MAX_PATIENCE)),
        ("LIVENESS_PONGS_TO_REVIVE", c::LIVENESS_PONGS_TO_REVIVE.to_string()),
        ("PING_LOST_AFTER", time(c::PING_LOST_AFTER)),
        ("DEGRADED_ABOVE_LOSS", format!("{} %", c::DEGRADED_ABOVE_LOSS * 100.0)),
        ("DEGRADED_UNTIL_LOSS", format!("{} %", c::DEGRADED_UNTIL_LOSS * 100.0)),
        ("REPEAT_INTERVAL", time(c::REPEAT_INTERVAL)),
        ("REPEAT_FOR", time(c::REPEAT_FOR)),
        ("EAGER_RETRY_FOR", time(c::EAGER_RETRY_FOR)),
        ("LIVENESS_DEAD_INTERVAL", time(c::LIVENESS_DEAD_INTERVAL)),
        ("PATH_BASE_LEN", format!("{} bytes", c::PATH_BASE_LEN)),
        ("PATH_FLOOR_LEN", format!("{} bytes", c::PATH_FLOOR_LEN)),
        ("PATH_SEARCH_STEP", format!("{} bytes", c::PATH_SEARCH_STEP)),
        ("PATH_CONFIRM_INTERVAL", time(c::PATH_CONFIRM_INTERVAL)),
        ("PATH_IDLE_INTERVAL", time(c::PATH_IDLE_INTERVAL)),
        ("PATH_PROBES_PER_SECOND", c::PATH_PROBES_PER_SECOND.to_string()),
        ("PATH_RETRY_INTERVAL", time(c::PATH_RETRY_INTERVAL)),
        ("PATH_PROBES_CONFIRMING", c::PATH_PROBES_CONFIRMING.to_string()),
        ("PATH_PROBES_SEARCHING", c::PATH_PROBES_SEARCHING.to_string()),
        ("PATH_RAISE_INTERVAL", time(c::PATH_RAISE_INTERVAL)),
        ("MTU_MOST", format!("{} bytes", c::MTU_MOST)),
        ("MTU_MIN_GAIN", c::MTU_MIN_GAIN.to_string()),
        ("MTU_LOWER_AFTER", time(c::MTU_LOWER_AFTER)),
        ("ALTERNATIVE_AFTER_PINGS", c::ALTERNATIVE_AFTER_PINGS.to_string()),
        ("ALTERNATIVE_DELAY", time(c::ALTERNATIVE_DELAY)),
        ("CANDIDATE_INTERVAL", time(c::CANDIDATE_INTERVAL)),
        ("CANDIDATES_PER_SECOND", c::CANDIDATES_PER_SECOND.to_string()),
        ("PREFERRED_PROBE_INTERVAL", time(c::PREFERRED_PROBE_INTERVAL)),
        ("PREFERRED_PONGS", c::PREFERRED_PONGS.to_string()),
        ("COOKIE_LIFETIME", time(c::COOKIE_LIFETIME)),
        ("CALL_BACK_INTERVAL", time(c::CALL_BACK_INTERVAL)),
        ("CLOCK_STEP", time(c::CLOCK_STEP)),
        ("CONNECTED_INTERVAL", time(c::CONNECTED_INTERVAL)),
        ("REFUSAL_TOLD_INTERVAL", time(c::REFUSAL_TOLD_INTERVAL)),
        ("MAX_LANES", c::MAX_LANES.to_string()),
        ("LANE_PING_INTERVAL", time(c::LANE_PING_INTERVAL)),
        ("LANE_PINGS_UNANSWERED", c::LANE_PINGS_UNANSWERED.to_string()),
        ("PING_AFTER_DATA", time(c::PING_AFTER_DATA)),
        ("LANE_PATH_LIFETIME", time(c::LANE_PATH_LIFETIME)),
        ("LANE_PROBE_MAX_INTERVAL", time(c::LANE_PROBE_MAX_INTERVAL)),
        ("REPLAY_WINDOW", c::REPLAY_WINDOW.to_string()),
        ("COOKIE_SECRET_LIFETIME", time(c::COOKIE_SECRET_LIFETIME)),
        ("HANDSHAKES_PER_SECOND_AND_SOURCE", c::HANDSHAKES_PER_SECOND_AND_SOURCE.to_string()),
        ("HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE", c::HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE.to_string()),
        ("HANDSHAKES_PER_SECOND_PROVEN", c::HANDSHAKES_PER_SECOND_PROVEN.to_string()),
        ("HANDSHAKES_PER_SECOND_UNDER_LOAD", c::HANDSHAKES_PER_SECOND_UNDER_LOAD.to_string()),
        ("TIMES_PER_HANDSHAKE", c::TIMES_PER_HANDSHAKE.to_string()),
        ("TIMES_PER_HANDSHAKE_PROVEN", c::TIMES_PER_HANDSHAKE_PROVEN.to_string()),
        ("MAX_HANDSHAKE_TIME", time(c::MAX_HANDSHAKE_TIME)),
        ("MAX_LIMITED_SOURCES", c::MAX_LIMITED_SOURCES.to_string()),
        ("MAX_STAGED_PACKETS", c::MAX_STAGED_PACKETS.to_string()),
        ("MAX_STAGED_BYTES", format!("{} KiB", c::MAX_STAGED_BYTES / 1024)),
        ("FLOW_LIFETIME", time(c::FLOW_LIFETIME)),
        ("MAX_FLOWS", c::MAX_FLOWS.to_string()),
        ("CONNECTION_LIFETIME", time(c::CONNECTION_LIFETIME)),
        ("MAX_CONNECTIONS", c::MAX_CONNECTIONS.to_string()),
        ("FRAGMENT_LIFETIME", time(c::FRAGMENT_LIFETIME)),
        ("MAX_FRAGMENTED_PACKETS", c::MAX_FRAGMENTED_PACKETS.to_string()),
        ("NOTICES_PER_SECOND", c::NOTICES_PER_SECOND.to_string()),
        ("NOTICES_AT_ONCE", c::NOTICES_AT_ONCE.to_string()),
        ("MAX_CONTROL_FRAMES", c::MAX_CONTROL_FRAMES.to_string()),
        ("MAX_WASTED_FRAMES", c::MAX_WASTED_FRAMES.to_string()),
        ("ANSWERS_PER_SECOND", c::ANSWERS_PER_SECOND.to_string()),
        ("ANSWERS_AT_ONCE", c::ANSWERS_AT_ONCE.to_string()),
        ("ROAMS_PER_SECOND", c::ROAMS_PER_SECOND.to_string()),
        ("ROAMS_AT_ONCE", c::ROAMS_AT_ONCE.to_string()),
        ("ROAM_INTERVAL", time(c::ROAM_INTERVAL)),
        ("DRAINING_PONGS", c::DRAINING_PONGS.to_string()),
        ("PONGS_TO_UNDRAIN", c::PONGS_TO_UNDRAIN.to_string()),
        ("REKEY_REQUEST_INTERVAL", time(c::REKEY_REQUEST_INTERVAL)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[test]
fn the_protocol_states_every_constant_with_its_value() {
    let document = read("docs/protocol.md");
    let stated = stated_constants();
    for (name, value) in &stated {
        let row = format!("| `{name}` | {value} |");
        assert!(document.contains(&row), "docs/protocol.md has no row {row}");
    }
    let source = read("src/proto/constants.rs");
    let defined: Vec<&str> =
        source.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next()).collect();
    let missing: Vec<_> = defined.iter().filter(|name| stated.iter().all(|(stated, _)| stated != *name)).collect();
    assert!(missing.is_empty(), "not in docs/protocol.md: {missing:?}");
}

#[test]
fn every_test_that_the_security_document_names_exists() {
    let document = read("docs/security.md");
    let (mut file, mut found) = ("", 0);
    for name in document.split('`').skip(1).step_by(2) {
        let Some((path, test)) = name.split_once("::") else { continue };
        if !path.is_empty() {
            file = path;
        }
        assert!(read(file).contains(&format!("fn {test}(")), "{file} has no test {test}");
        found += 1;
    }
    assert!(found > 20, "only {found} tests are named");
}

#[test]
fn the_security_document_lists_all_unsafe_code() {
    let document = read("docs/security.md");
    let listed: BTreeSet<&str> = document.lines().filter(|line| line.starts_with("| `src/")).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeSet::new();
    collect_files(&root.join("src"), &mut files);
    let mut expected = 0;
    for file in files {
        let blocks = fs::read_to_string(&file).unwrap().matches("unsafe {").count();
        if blocks > 0 {
            let row = format!("| `{}` | {blocks} |", file.strip_prefix(root).unwrap().display());
            assert!(listed.iter().any(|line| line.starts_with(&row)), "docs/security.md has no row {row}");
            expected += 1;
        }
    }
    assert_eq!(listed.len(), expected, "docs/security.md lists files that have no unsafe code");
}

#[test]
fn every_test_that_the_testing_document_names_exists() {
    let mut tests = BTreeSet::new();
    for directory in ["src", "tests", "netns-tests"] {
        collect_functions(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut tests);
    }
    let document = read("docs/testing.md");
    let rows = document.lines().filter(|line| line.starts_with('|'));
    // In a table's row, what stands between backquotes and is made of at least three words is a test.
    let named = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|name| name.matches('_').count() > 1);
    let named: BTreeSet<String> = named.filter(|name| !name.contains(['/', '.'])).map(str::to_owned).collect();
    assert!(named.len() > 80, "only {} tests are named", named.len());
    let missing: Vec<_> = named.difference(&tests).collect();
    assert!(missing.is_empty(), "docs/testing.md names tests that do not exist: {missing:#?}");
}

fn collect_functions(directory: &Path, names: &mut BTreeSet<String>) {
    let mut files = BTreeSet::new();
    collect_files(directory, &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let declarations = text.lines().map(|line| line.trim().trim_start_matches("async "));
        let functions = declarations.filter_map(|line| line.strip_prefix("fn ")?.split('(').next());
        names.extend(functions.map(str::to_owned));
    }
}

fn collect_files(directory: &Path, files: &mut BTreeSet<PathBuf>) {
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            collect_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(path);
        }
    }
}
