//! What a daemon writes down: JSON, entries of the journal, and the trail of who did what.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use netns_tests::underpass::{Config, Daemon, KeyPair, Peer};
use netns_tests::{Host, Process, probe, underpass, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINT: &str = "10.1.0.2:51900";
const AUDIT: &str = "underpass::audit";

/// The audit trail of a log in JSON. Every line of it must be JSON.
#[track_caller]
fn trail(process: &Process) -> Vec<Value> {
    let log = process.log();
    // The last line may not be whole yet.
    let complete = log.rfind('\n').map_or("", |end| &log[..end]);
    let lines = complete.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")));
    lines.filter(|line: &Value| line["target"] == AUDIT).collect()
}

fn events(process: &Process) -> Vec<String> {
    trail(process).iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_for_event(process: &Process, event: &str) -> Value {
    wait::value(&format!("the trail has {event}"), || trail(process).into_iter().find(|line| line["event"] == event))
}

/// The cable of [`Ends::wired`]. Everything that may be seen of the trail in one daemon's life.
#[test]
fn the_audit_trail_tells_who_connected_and_who_changed_what() {
    let ends = Ends::wired("audit");
    let json = |config: Config| config.env("UNDERPASS_LOG_FORMAT", "json");
    let backend = Daemon::start(&ends.backend, &json(ends.backend_waiting()));
    let config = json(ends.proxy_calling(ENDPOINT));
    let mut proxy = Daemon::start(&ends.proxy, &config);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    let connected = wait_for_event(proxy.process(), "peer-connected");
    let short = |key: &str| key[..8].to_owned();
    assert_eq!(connected["peer"], "backend");
    assert_eq!(connected["key"], short(&ends.backend_keys.public));
    assert_eq!((&connected["endpoint"], &connected["suite"]), (&ENDPOINT.into(), &"aes-256-gcm".into()));
    let called = wait_for_event(backend.as_ref(), "peer-connected");
    assert_eq!((&called["peer"], &called["endpoint"]), (&"proxy".into(), &"10.1.0.1:51900".into()));

    assert_eq!(proxy.ask(&["drain", "backend"]).code(), 0);
    assert_eq!(proxy.ask(&["undrain", "backend"]).code(), 0);
    let other = Peer::new("other", &KeyPair::generate(&ends.proxy).public, ["10.77.0.12"]);
    proxy.reload(&config.clone().peer(other));
    let file = config.write(&ends.proxy);
    proxy.reload(&config);
    fs::write(&file, "nonsense").unwrap();
    assert_eq!(proxy.ask(&["reload"]).code(), 3);
    assert_eq!(proxy.ask(&["restart"]).code(), 1);
    config.write(&ends.proxy);
    proxy.process().signal(Signal::SIGHUP);
    wait::until("the signal is obeyed", || events(proxy.process()).iter().filter(|e| *e == "reloaded").count() == 3);
    let command = wait_for_event(proxy.process(), "command");
    assert_eq!(
        (&command["command"], &command["peer"], &command["user"]),
        (&"drain".into(), &"backend".into(), &0.into())
    );
    assert!(command["process"].as_u64().is_some_and(|process| process > 1));

    let expected = [
        "started",
        "peer-connected",
        "command",
        "peer-drained",
        "command",
        "peer-undrained",
        "command",
        "peer-added",
        "reloaded",
        "command",
        "peer-removed",
        "reloaded",
        "command",
        "reload-refused",
        "command",
        "restart-refused",
        "reloaded",
    ];
    assert_eq!(events(proxy.process()), expected);

    proxy.process().signal(Signal::SIGTERM);
    assert_eq!(proxy.process().wait_for_exit(wait::PATIENCE).code(), Some(0));
    assert_eq!(events(proxy.process()).last().unwrap(), "stopping");
    assert_eq!(wait_for_event(backend.as_ref(), "peer-disconnected")["reason"], "goodbye");
    for log in [proxy.process().log(), backend.as_ref().log()] {
        assert!(!log.contains(&ends.proxy_keys.private) && !log.contains(&ends.backend_keys.private), "{log}");
        assert!(!log.contains(PROXY[1]) && !log.contains(BACKEND[1]), "a tunnel address: {log}");
    }
}

/// A journal of one machine: what is sent to it, as text.
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn new(host: &Host) -> Journal {
        let socket = host.call(|| {
            fs::create_dir_all("/run/systemd/journal").unwrap();
            UnixDatagram::bind("/run/systemd/journal/socket").unwrap()
        });
        let entries = Arc::new(Mutex::new(vec![]));
        let told = entries.clone();
        thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok(length) = socket.recv(&mut bytes) {
                told.lock().unwrap().push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            }
        });
        Journal(entries)
    }

    /// Waits for an entry that has all of these lines.
    #[track_caller]
    fn wait_for(&self, lines: &[&str]) {
        wait::until(&format!("the journal has an entry with {lines:?}"), || {
            let has = |entry: &String| lines.iter().all(|line| entry.lines().any(|found| found == *line));
            self.0.lock().unwrap().iter().any(has)
        });
    }
}

/// The cable of [`Ends::wired`], and a journal on the proxy's machine.
#[test]
fn a_service_of_systemd_sends_its_fields_to_the_journal() {
    let ends = Ends::wired("journal");
    let journal = Journal::new(&ends.proxy);
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    // As systemd names the stream that it gives to a service as its standard error.
    let name_stream = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec \"$@\"";
    let command = ends.proxy.command("sh").args(["-c", name_stream, "sh"]).arg(underpass::program());
    let daemon = command.args(["run", "--allow-root", "--config"]).arg(file).start("journalled");
    journal.wait_for(&[
        "SYSLOG_IDENTIFIER=underpass",
        "PRIORITY=6",
        "TARGET=underpass::audit",
        "UNDERPASS_EVENT=peer-connected",
        "UNDERPASS_PEER=backend",
        &format!("UNDERPASS_ENDPOINT={ENDPOINT}"),
    ]);
    assert_eq!(daemon.log(), "", "nothing twice");
    fs::write(ends.proxy.directory().join("underpass0.toml"), "role = 1").unwrap();
    daemon.signal(Signal::SIGHUP);
    journal.wait_for(&["PRIORITY=4", "UNDERPASS_EVENT=reload-refused"]);
}
