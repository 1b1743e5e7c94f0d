//! `underpass top` on a real terminal, with a real daemon.

use std::time::Duration;

use netns_tests::terminal::Terminal;
use netns_tests::underpass::{self, Daemon};
use netns_tests::{probe, wait};
use nix::sys::signal::Signal;

use crate::ends::{BACKEND, Ends};

const ENDPOINT: &str = "10.1.0.2:51900";

fn top(ends: &Ends, columns: u16, rows: u16) -> Terminal {
    Terminal::start(underpass::command(&ends.proxy).arg("top"), "top", columns, rows)
}

/// Waits until the backend's line has all of these words.
#[track_caller]
fn wait_for_link(terminal: &Terminal, words: &[&str]) {
    wait::until(&format!("the backend's line has {words:?}"), || {
        let line = terminal.line("backend").unwrap_or_default();
        words.iter().all(|word| line.split_whitespace().any(|found| found == *word))
    });
}

/// The cable of [`Ends::wired`].
#[test]
fn top_shows_a_link_and_outlives_the_daemon() {
    let ends = Ends::wired("top");
    let (proxy, backend) = ends.start_calling(ENDPOINT);
    let mut terminal = top(&ends, 120, 24);
    wait_for_link(&terminal, &["up", ENDPOINT]);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    wait::until("pings of the link are traffic", || {
        let line = terminal.line("backend").unwrap_or_default();
        line.contains("bit/s") && line.contains('█')
    });
    assert!(terminal.text().contains("underpass0: proxy side"), "{}", terminal.text());

    terminal.press("/nothing");
    wait::until("no link has the filter's text", || terminal.line("backend").is_none());
    terminal.press("\u{1b}");
    wait_for_link(&terminal, &["up"]);

    terminal.resize(44, 12);
    wait::until("a narrow terminal leaves columns out", || {
        terminal.line("NAME").is_some_and(|titles| !titles.contains("ENDPOINT") && titles.contains("STATE"))
    });
    wait_for_link(&terminal, &["up"]);

    assert_eq!(backend.stop(), 0);
    wait_for_link(&terminal, &["down"]);
    assert_eq!(proxy.stop(), 0);
    terminal.resize(140, 24);
    wait::until("top says that the daemon is gone", || terminal.text().contains("no daemon is running"));
    wait_for_link(&terminal, &["down", "goodbye"]);
    let _again = ends.start_calling(ENDPOINT);
    wait_for_link(&terminal, &["up"]);
    wait::until("top says so no longer", || !terminal.text().contains("no daemon is running"));

    terminal.press("q");
    assert_eq!(terminal.process().wait_for_exit(Duration::from_secs(5)).code(), Some(0));
    wait::until("the terminal is as it was", || terminal.is_as_before());
}

/// The cable of [`Ends::wired`], not needed here.
#[test]
fn top_gives_the_terminal_back_however_it_ends() {
    let ends = Ends::wired("top-ends");
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    type End = fn(&mut Terminal);
    let endings: [(&str, End); 5] = [
        ("Ctrl-C", |terminal| terminal.press("\u{3}")),
        ("Esc", |terminal| terminal.press("\u{1b}")),
        ("SIGTERM", |terminal| terminal.process().signal(Signal::SIGTERM)),
        ("SIGINT", |terminal| terminal.process().signal(Signal::SIGINT)),
        ("SIGHUP", |terminal| terminal.process().signal(Signal::SIGHUP)),
    ];
    for (ending, end) in endings {
        let mut terminal = top(&ends, 80, 24);
        wait_for_link(&terminal, &["down"]);
        assert!(!terminal.is_as_before());
        end(&mut terminal);
        assert_eq!(terminal.process().wait_for_exit(Duration::from_secs(5)).code(), Some(0), "{ending}");
        wait::until(&format!("after {ending} the terminal is as it was"), || terminal.is_as_before());
    }
}

/// A machine without a daemon, and one whose input or output is no terminal.
#[test]
fn top_says_why_it_cannot_start() {
    let ends = Ends::wired("top-alone");
    let mut terminal = top(&ends, 120, 24);
    assert_eq!(terminal.process().wait_for_exit(Duration::from_secs(5)).code(), Some(7));
    wait::until("top says that there is no daemon", || terminal.text().contains("no daemon is running"));
    assert!(terminal.is_as_before());
    let output = underpass::command(&ends.proxy).arg("top").output();
    assert_eq!((output.code(), output.stdout.as_str()), (2, ""), "{}", output.stderr);
    assert!(output.stderr.contains("underpass status"), "{}", output.stderr);
}
