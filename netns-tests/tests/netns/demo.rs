//! `underpass demo`: that its claims hold here, that it says so in a pipe, and that nothing of it is left.

use std::fs;
use std::time::Duration;

use netns_tests::{Lab, underpass, wait};
use nix::sys::signal::Signal;

/// The demo builds its own network, so one machine without cables is enough.
#[test]
fn the_demo_keeps_what_it_claims() {
    let lab = Lab::new("demo");
    let host = lab.host("newcomer");
    let temporary = tempfile::tempdir().unwrap();
    let output =
        underpass::command(&host).arg("demo").env("TMPDIR", temporary.path()).within(Duration::from_secs(60)).output();
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("All 10 claims held"), "{}", output.stdout);
    assert!(!output.stdout.contains('\u{1b}'), "colour in a pipe:\n{}", output.stdout);
    // One line holds a path, which is as long as the temporary directory's.
    for line in output.stdout.lines().filter(|line| !line.contains("control_socket")) {
        assert!(line.chars().count() <= 80, "too wide: {line}");
    }
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "files are left");
}

/// The demo builds its own network, so one machine without cables is enough.
#[test]
fn an_interrupted_demo_takes_its_daemons_and_keys_away() {
    let lab = Lab::new("demo-interrupted");
    let host = lab.host("newcomer");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let temporary = tempfile::tempdir().unwrap();
        let mut demo = underpass::command(&host).arg("demo").env("TMPDIR", temporary.path()).start("demo");
        let is_running = || processes_that_name(temporary.path().to_str().unwrap()) == 3;
        wait::until("the demo's three daemons run", is_running);
        demo.signal(signal);
        assert_eq!(demo.wait_for_exit(Duration::from_secs(5)).code(), Some(128 + signal as i32));
        assert_eq!(processes_that_name(temporary.path().to_str().unwrap()), 0, "daemons are left");
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "files are left");
    }
}

/// How many daemons have a configuration file in `directory`.
fn processes_that_name(directory: &str) -> usize {
    let command_lines = fs::read_dir("/proc").unwrap().flatten().map(|entry| fs::read(entry.path().join("cmdline")));
    let names = |line: &Vec<u8>| {
        let line = String::from_utf8_lossy(line);
        line.contains("\0run\0") && line.contains(directory)
    };
    command_lines.flatten().filter(names).count()
}
