//! One installation of the bench: sound, until a row of the table breaks something.

use std::cell::RefCell;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};

use netns_tests::process::Output;
use netns_tests::underpass::{self, Config, Daemon, KeyPair, Peer, Role};
use netns_tests::{Host, Lab, Process, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::prepared;

/// The laboratory on which installations stand, one after the other:
///
/// ```text
///   proxy ──────────────────────────────────── network ──────────────────────────────────── backend ─────────── behind
///     wan 10.1.0.2/24     10.1.0.1 to-proxy      (router)     to-backend 10.1.1.1   wan 10.1.1.2/24   lan 10.30.0.1/24
///         fd01::2/64        fd01::1                            fd02::1                  fd02::2/64          10.30.0.5/24
/// ```
pub(crate) struct Bench {
    pub(crate) proxy: Host,
    pub(crate) network: Host,
    pub(crate) backend: Host,
    pub(crate) behind: Host,
    pub(crate) proxy_keys: KeyPair,
    pub(crate) backend_keys: KeyPair,
    pub(crate) strangers: KeyPair,
    /// The last to go.
    _lab: Lab,
}

/// Which side is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Proxy,
    Backend,
}

/// One side's configuration: its interface, and the other side as its peer.
#[derive(Clone)]
pub(crate) struct End {
    pub(crate) interface: Config,
    pub(crate) peer: Peer,
}

/// One installation.
pub(crate) struct Case<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) proxy: End,
    pub(crate) backend: End,
    /// The file that the command is given, if it is not the one that the daemon was started with.
    pub(crate) file: Option<Config>,
    /// Addresses and ports of the app: on the backend, but for the address of the machine behind it.
    pub(crate) app: Vec<(String, u16)>,
    /// The port that `verify` tries.
    pub(crate) port: String,
    /// The sides whose daemons are started.
    pub(crate) runs: (bool, bool),
    /// Set if the proxy side's daemon has no capability, on a device that was made for it.
    pub(crate) is_prepared: bool,
    unprivileged: Option<Process>,
    daemons: (Option<Daemon>, Option<Daemon>),
    listeners: Vec<TcpListener>,
    undo: RefCell<Vec<(Host, Vec<String>)>>,
}

const ENDPOINT: &str = "10.1.1.2:51900";
pub(crate) const APP: u16 = 8080;

impl Bench {
    #[track_caller]
    pub(crate) fn new(lab: Lab) -> Bench {
        let (proxy, network) = (lab.host("proxy"), lab.router("network"));
        let (backend, behind) = (lab.router("backend"), lab.host("behind"));
        lab.link(
            proxy.port("wan", ["10.1.0.2/24", "fd01::2/64"]),
            network.port("to-proxy", ["10.1.0.1/24", "fd01::1/64"]),
        );
        lab.link(
            backend.port("wan", ["10.1.1.2/24", "fd02::2/64"]),
            network.port("to-backend", ["10.1.1.1/24", "fd02::1/64"]),
        );
        lab.link(backend.port("lan", ["10.30.0.1/24"]), behind.port("lan", ["10.30.0.5/24"]));
        for (host, v4, v6) in [(&proxy, "10.1.0.1", "fd01::1"), (&backend, "10.1.1.1", "fd02::1")] {
            host.ip(&format!("route add default via {v4}"));
            host.ip(&format!("-6 route add default via {v6}"));
        }
        behind.ip("route add default via 10.30.0.1");
        let [proxy_keys, backend_keys, strangers] = [(); 3].map(|()| KeyPair::generate(&proxy));
        Bench { proxy, network, backend, behind, proxy_keys, backend_keys, strangers, _lab: lab }
    }
}

impl End {
    pub(crate) fn config(&self) -> Config {
        self.interface.clone().peer(self.peer.clone())
    }
}

impl<'a> Case<'a> {
    /// Two sides with IPv4 and IPv6 in the tunnel, an app that listens there, and the proxy side connects.
    pub(crate) fn sound(bench: &'a Bench) -> Case<'a> {
        let proxy = End {
            interface: Config::new(Role::Proxy, &bench.proxy_keys, ["10.77.0.1/24", "fd77::1/64"]),
            peer: Peer::new("backend", &bench.backend_keys.public, ["10.77.0.11", "fd77::11"]).endpoint(ENDPOINT),
        };
        let backend = End {
            interface: Config::new(Role::Backend, &bench.backend_keys, ["10.77.0.11/24", "fd77::11/64"]),
            peer: Peer::new("proxy", &bench.proxy_keys.public, ["10.77.0.1", "fd77::1"]),
        };
        Case {
            bench,
            proxy,
            backend,
            file: None,
            app: ["10.77.0.11", "fd77::11"].map(|address| (address.to_owned(), APP)).to_vec(),
            port: APP.to_string(),
            runs: (true, true),
            is_prepared: false,
            unprivileged: None,
            daemons: (None, None),
            listeners: Vec::new(),
            undo: RefCell::default(),
        }
    }

    /// Runs `ip` with these words, and the opposite at the end.
    #[track_caller]
    pub(crate) fn ip(&self, host: &Host, arguments: &str) {
        host.ip(arguments);
        let opposite = match arguments {
            _ if arguments.contains(" add ") => arguments.replacen(" add ", " del ", 1),
            _ if arguments.contains(" del ") => arguments.replacen(" del ", " add ", 1),
            _ => panic!("what undoes ip {arguments}?"),
        };
        self.undo_by(host, &format!("ip {opposite}"));
    }

    /// Has a firewall of the host do what this rule of nftables says, at that hook.
    #[track_caller]
    pub(crate) fn nft(&self, host: &Host, hook: &str, rule: &str) {
        let table = format!(
            "table inet fault-{hook} {{ chain fault {{ type filter hook {hook} priority -10; {rule}\n }}\n}}\n"
        );
        host.command("nft").args(["-f", "-"]).stdin(table).run();
        self.undo_by(host, &format!("nft delete table inet fault-{hook}"));
    }

    /// Sets a sysctl under `net`, which has `before` again at the end.
    #[track_caller]
    pub(crate) fn sysctl(&self, host: &Host, name: &str, value: &str, before: &str) {
        host.set_sysctl(name, value);
        self.undo_by(host, &format!("sysctl -q -w net/{name}={before}"));
    }

    /// Notes a command that puts something right at the end.
    pub(crate) fn undo_by(&self, host: &Host, command: &str) {
        let words = command.split_whitespace().map(str::to_owned).collect();
        self.undo.borrow_mut().push((host.clone(), words));
    }

    /// Starts the app and the daemons.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        // What the installation before has learned is of no use to this one.
        for host in [&self.bench.proxy, &self.bench.backend] {
            host.command("rm").args(["-f", "/run/underpass/underpass0.peers"]).run();
        }
        if self.runs.1 {
            self.daemons.1 = Some(Daemon::start(&self.bench.backend, &self.backend.config()));
        }
        if self.is_prepared {
            let proxy = &self.bench.proxy;
            prepared::prepare(proxy, "");
            self.undo_by(proxy, "ip link del underpass0");
            prepared::hand_over(proxy, &self.proxy.config());
            // What such a daemon can't do itself, root does for it.
            underpass::command(proxy).args(["close", "--config"]).arg(self.written(Side::Proxy)).run();
            self.unprivileged = Some(prepared::start(proxy));
        } else if self.runs.0 {
            self.daemons.0 = Some(Daemon::start(&self.bench.proxy, &self.proxy.config()));
        }
        self.start_app();
    }

    /// Without the daemon there is no address to listen at.
    #[track_caller]
    fn start_app(&mut self) {
        for (address, port) in self.app.iter().filter(|_| self.runs.1) {
            let address: IpAddr = address.parse().unwrap();
            let is_behind = address == IpAddr::from([10, 30, 0, 5]);
            let host = if is_behind { &self.bench.behind } else { &self.bench.backend };
            let listener = wait::value("the app listens", || host.run(|| TcpListener::bind((address, *port))).ok());
            self.listeners.push(listener);
        }
    }

    /// Waits until a side's link is in this state.
    #[track_caller]
    pub(crate) fn wait_for(&self, side: Side, state: &str) {
        let (host, peer) = self.asked(side);
        let what = format!("the link to {peer} is {state}");
        wait::until(&what, || underpass::status(host).peer(peer).text("state") == state);
    }

    /// Waits until a side that does not connect itself has heard of the other, or of somebody.
    #[track_caller]
    pub(crate) fn wait_until_heard(&self, side: Side) {
        let (host, peer) = self.asked(side);
        wait::until("somebody is heard", || {
            let status = underpass::status(host);
            let refused = ["unknown_peer", "invalid_mac1"].map(|reason| status.drops(reason));
            refused != [0, 0] || status.peer(peer).text("state") != "idle"
        });
    }

    /// A side's machine, and what it calls the other.
    fn asked(&self, side: Side) -> (&'a Host, &'static str) {
        match side {
            Side::Proxy => (&self.bench.proxy, "backend"),
            Side::Backend => (&self.bench.backend, "proxy"),
        }
    }

    /// A daemon that runs.
    #[track_caller]
    pub(crate) fn daemon(&self, side: Side) -> &Daemon {
        let daemon = if side == Side::Proxy { &self.daemons.0 } else { &self.daemons.1 };
        daemon.as_ref().expect("it runs")
    }

    /// Ends a daemon as its operator would.
    #[track_caller]
    pub(crate) fn stop(&mut self, side: Side) {
        let daemon = if side == Side::Proxy { self.daemons.0.take() } else { self.daemons.1.take() };
        assert_eq!(daemon.expect("it runs").stop(), 0);
    }

    /// Ends a daemon as by `kill -9`.
    #[track_caller]
    pub(crate) fn kill(&mut self, side: Side) {
        let daemon = if side == Side::Proxy { self.daemons.0.take() } else { self.daemons.1.take() };
        let mut daemon = daemon.expect("it runs");
        daemon.process().signal(Signal::SIGKILL);
        daemon.process().wait_for_exit(wait::PATIENCE);
    }

    /// The configuration file that a command is given.
    #[track_caller]
    fn written(&self, side: Side) -> PathBuf {
        let (host, _) = self.asked(side);
        match (&self.file, side) {
            (Some(file), _) => file.write(host),
            (None, Side::Proxy) if self.is_prepared => Path::new(prepared::DIRECTORY).join("handed-over.toml"),
            (None, Side::Proxy) => self.proxy.config().write(host),
            (None, Side::Backend) => self.backend.config().write(host),
        }
    }

    /// Findings of `verify` on one side.
    #[track_caller]
    pub(crate) fn verify(&self, side: Side) -> Vec<Value> {
        let command = underpass::command(self.asked(side).0).args(["verify", "--json", "--timeout", "1", "--config"]);
        let command = command.arg(self.written(side));
        // The app is the proxy side's to reach.
        let command = if side == Side::Proxy { command.args(["--port", &self.port]) } else { command };
        list_of(&command.output(), "findings")
    }

    /// Causes that `doctor` names on one side.
    #[track_caller]
    pub(crate) fn doctor(&self, side: Side) -> Vec<Value> {
        let (host, peer) = self.asked(side);
        let command = underpass::command(host).args(["doctor", peer, "--json", "--config"]).arg(self.written(side));
        list_of(&command.output(), "causes")
    }

    /// Ends the installation and puts right what was broken around it.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        self.listeners.clear();
        if let Some(mut daemon) = self.unprivileged.take() {
            daemon.stop();
        }
        for daemon in [self.daemons.0.take(), self.daemons.1.take()].into_iter().flatten() {
            daemon.stop();
        }
        for host in [&self.bench.proxy, &self.bench.backend] {
            // The next configuration would find refused what this one had.
            underpass::command(host).args(["close", "--undo"]).run();
        }
        for (host, words) in self.undo.take().into_iter().rev() {
            // An interface that is gone has taken its addresses and routes along.
            let _ = host.command(&words[0]).args(&words[1..]).output();
        }
        // What is refused by this installation is not by the next.
        for host in [&self.bench.proxy, &self.bench.backend] {
            host.ip("-4 route flush table all proto 151");
            host.ip("-6 route flush table all proto 151");
            host.command("nft").args(["flush", "ruleset"]).run();
        }
    }
}

#[track_caller]
fn list_of(output: &Output, name: &str) -> Vec<Value> {
    let report: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr));
    report[name].as_array().unwrap_or_else(|| panic!("no list {name}: {report}")).clone()
}
