//! The laboratory: makes hosts and links, and shows what happened when a test fails.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

use crate::host::Host;
use crate::link::{Port, Switch, connect};
use crate::slot::Slot;

/// Everything that one test needs. What it made disappears with it, also when the test panics or is killed.
pub struct Lab {
    name: String,
    directory: TempDir,
    hosts: Mutex<Vec<Host>>,
    slot: Arc<Slot>,
}

impl Lab {
    /// An empty laboratory. Fails with what to do if this machine cannot have one.
    #[track_caller]
    pub fn new(name: &str) -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "tests in network namespaces need root: run them with sudo");
        let tun = "/dev/net/tun";
        assert!(fs::exists(tun).unwrap_or(false), "{tun} is missing: load the tun module (modprobe tun)");
        let directory = TempDir::with_prefix("underpass-lab-").expect("there is room for temporary files");
        Lab { name: name.to_owned(), directory, hosts: Mutex::default(), slot: Arc::new(Slot::acquire()) }
    }

    /// A second laboratory for the same test: it takes no further slot, for which it might wait for ever.
    pub fn beside(&self, name: &str) -> Lab {
        let directory = TempDir::with_prefix("underpass-lab-").expect("there is room for temporary files");
        Lab { name: name.to_owned(), directory, hosts: Mutex::default(), slot: self.slot.clone() }
    }

    /// One more machine.
    #[track_caller]
    pub fn host(&self, name: &str) -> Host {
        let host = Host::new(name, self.directory.path().join(name));
        self.hosts.lock().expect("no test thread panics while it adds a host").push(host.clone());
        host
    }

    /// One more machine, which forwards packets.
    #[track_caller]
    pub fn router(&self, name: &str) -> Host {
        let router = self.host(name);
        router.forward_packets();
        router
    }

    /// Connects two machines by a cable.
    #[track_caller]
    pub fn link(&self, a: Port, b: Port) {
        connect(&a, &b);
    }

    /// A switch, which all of `ports` are plugged into: a shared network.
    #[track_caller]
    pub fn switch<'a>(&self, name: &str, ports: impl IntoIterator<Item = Port<'a>>) -> Switch {
        let switch = Switch::new(self.host(name));
        ports.into_iter().for_each(|port| switch.plug(&port));
        switch
    }

    fn explain_failure(&self) {
        let hosts = self.hosts.lock().map(|hosts| hosts.clone()).unwrap_or_default();
        eprintln!("\n--- laboratory {} ---", self.name);
        for host in &hosts {
            eprintln!("{}: nsenter --net={} bash", host.name(), host.netns().display());
        }
        for log in hosts.iter().flat_map(Host::logs) {
            print_tail(&log);
        }
        if std::env::var_os(KEEP).is_some() {
            eprintln!("kept standing ({KEEP} is set): stop the test run when you have seen enough");
            loop {
                thread::park();
            }
        }
        eprintln!("(set {KEEP}=1 to keep the laboratory of a failed test standing and look around in it)");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.explain_failure();
        }
    }
}

/// With this set in the environment, a failed test does not end.
const KEEP: &str = "UNDERPASS_LAB_KEEP";

fn print_tail(log: &PathBuf) {
    const LINES: usize = 40;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LINES);
    eprintln!("--- {} (last {} of {} lines)", log.display(), lines.len() - skipped, lines.len());
    lines[skipped..].iter().for_each(|line| eprintln!("{line}"));
}
