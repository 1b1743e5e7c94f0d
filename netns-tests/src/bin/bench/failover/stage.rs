//! Where backends fail: load balancers on one machine, each with its own way to the same two apps.
//!
//! ```text
//!              proxy  HAProxy with underpass, with wireguard-go, with no tunnel
//!                │ 10.1.0.2
//!             network
//!     10.1.1.2 │   │ 10.1.2.2
//!       backend1   backend2
//! ```
//!
//! All of them meet the same failure at the same moment. The one with underpass has the file that is shipped, as it stands; the
//! others have the same file, but for a plain check of every two seconds in place of all that needs underpass.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use netns_tests::haproxy::HaProxy;
use netns_tests::nginx::NginxApp;
use netns_tests::outage::Outage;
use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role};
use netns_tests::wireguard::{self, End, Wireguard};
use netns_tests::{Host, Lab, wait};
use nix::sys::signal::Signal;

use crate::contender::Kind;

/// All machines, with everything that runs on them.
pub(super) struct Stage {
    pub(super) fronts: Vec<Front>,
    pub(super) proxy: Host,
    pub(super) proxy_side: Daemon,
    /// The backends'.
    pub(super) sides: [Daemon; 2],
    network: Host,
    backends: [Host; 2],
    /// Of the first backend's daemon.
    config: Config,
    _wireguard: Vec<Wireguard>,
    _apps: [NginxApp; 2],
    _lab: Lab,
}

/// One HAProxy.
pub(super) struct Front {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) listen: SocketAddr,
    pub(super) haproxy: HaProxy,
}

/// The app on the backend that fails, in all configurations.
pub(super) const APP: &str = "app1";

const NAMES: [&str; 2] = [APP, "app2"];
const UNDERPASS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 11), Ipv4Addr::new(10, 77, 0, 12)];
const WIREGUARD: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 1, 2), Ipv4Addr::new(10, 78, 2, 2)];
const PLAIN: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 1, 2), Ipv4Addr::new(10, 1, 2, 2)];
const APP_PORT: u16 = 8080;
/// The router's interfaces.
const TO_PROXY: &str = "to-proxy";
const TO_FIRST: &str = "to-backend1";

impl Stage {
    /// With a HAProxy for each of these contenders that has one here.
    pub(super) fn start(names: &[&'static str]) -> Stage {
        let lab = Lab::new("failover");
        let (proxy, network, backends) = connect(&lab);
        let everywhere = SocketAddr::from(([0, 0, 0, 0], APP_PORT));
        let apps = [0, 1].map(|n: usize| NginxApp::start(&backends[n], everywhere, NAMES[n]));
        let (at_proxy, at_backends) = configure(&proxy);
        let sides = [0, 1].map(|n: usize| Daemon::start(&backends[n], &at_backends[n]));
        let proxy_side = Daemon::start(&proxy, &at_proxy);
        NAMES.iter().for_each(|name| proxy_side.wait_for_state(name, "up"));
        let (mut fronts, mut wireguard) = (vec![], vec![]);
        for name in names {
            match *name {
                "underpass" => fronts.push(Front::shipped(&proxy)),
                "wireguard-go" => {
                    wireguard.extend((0..2).flat_map(|n| start_wireguard(n, &proxy, &backends[n])));
                    fronts.push(Front::plain_check(&proxy, name, Kind::Peer, 81, WIREGUARD));
                }
                "plain" => fronts.push(Front::plain_check(&proxy, name, Kind::Plain, 82, PLAIN)),
                _ => {}
            }
        }
        let [config, _] = at_backends;
        let stage = Stage {
            fronts,
            proxy,
            proxy_side,
            sides,
            network,
            backends,
            config,
            _wireguard: wireguard,
            _apps: apps,
            _lab: lab,
        };
        stage.fronts.iter().for_each(Front::wait_until_all_is_well);
        stage
    }

    /// Cuts the first backend off. Nothing says so to anybody.
    pub(super) fn unplug(&self) -> Outage {
        Outage::cut(&self.network, TO_FIRST)
    }

    /// Loses so many of a hundred packets at random, each way, of all between the proxy and the backends.
    pub(super) fn lose(&self, percent: u32) -> Outage {
        Outage::lose(&self.network, TO_PROXY, percent)
    }

    /// Asks the first backend's daemon to end.
    pub(super) fn stop_first(&mut self) {
        self.sides[0].process().signal(Signal::SIGTERM);
    }

    /// Starts it again, without waiting for it.
    pub(super) fn start_first(&mut self) {
        self.sides[0].process().wait_for_exit(wait::PATIENCE);
        self.sides[0] = Daemon::launch(&self.backends[0], &self.config);
    }
}

fn connect(lab: &Lab) -> (Host, Host, [Host; 2]) {
    let (proxy, network) = (lab.host("proxy"), lab.router("network"));
    let backends = [lab.host("backend1"), lab.host("backend2")];
    lab.link(proxy.port("wan", ["10.1.0.2/24"]), network.port(TO_PROXY, ["10.1.0.1/24"]));
    lab.link(backends[0].port("wan", ["10.1.1.2/24"]), network.port(TO_FIRST, ["10.1.1.1/24"]));
    lab.link(backends[1].port("wan", ["10.1.2.2/24"]), network.port("to-backend2", ["10.1.2.1/24"]));
    proxy.ip("route add default via 10.1.0.1");
    backends[0].ip("route add default via 10.1.1.1");
    backends[1].ip("route add default via 10.1.2.1");
    (proxy, network, backends)
}

/// The proxy side's configuration, and those of the backend sides.
fn configure(proxy: &Host) -> (Config, [Config; 2]) {
    let keys = [(); 3].map(|()| KeyPair::generate(proxy));
    let mut at_proxy = Config::new(Role::Proxy, &keys[2], ["10.77.0.1/24"]);
    let at_backends = [0, 1].map(|n: usize| {
        let address = UNDERPASS[n].to_string();
        let peer = Peer::new(NAMES[n], &keys[n].public, [address.as_str()]);
        at_proxy = at_proxy.clone().peer(peer.endpoint(&format!("{}:51900", PLAIN[n])));
        let config = Config::new(Role::Backend, &keys[n], [format!("{address}/24").as_str()]);
        config.peer(Peer::new("proxy", &keys[2].public, ["10.77.0.1"]))
    });
    (at_proxy, at_backends)
}

fn start_wireguard(n: usize, proxy: &Host, backend: &Host) -> [Wireguard; 2] {
    let interface = format!("wg{n}");
    let [far, near] = [2, 1].map(|end| {
        let [a, b, c, _] = WIREGUARD[n].octets();
        format!("{}/24", Ipv4Addr::new(a, b, c, end))
    });
    let endpoint = |address: Ipv4Addr| SocketAddr::from((address, 51_820 + n as u16));
    wireguard::connect([
        End { host: proxy, interface: &interface, address: &near, endpoint: endpoint(Ipv4Addr::new(10, 1, 0, 2)) },
        End { host: backend, interface: &interface, address: &far, endpoint: endpoint(PLAIN[n]) },
    ])
}

impl Front {
    /// Until it sends requests to both apps, by whatever checks it has.
    pub(super) fn wait_until_all_is_well(&self) {
        NAMES.iter().for_each(|app| self.haproxy.wait_for_status(app, "UP"));
        if self.kind == Kind::Underpass {
            let heard = || NAMES.iter().all(|app| self.haproxy.server(app)["agent_status"] == "L7OK");
            wait::until("HAProxy has heard of both apps", heard);
        }
    }

    fn shipped(proxy: &Host) -> Front {
        Front::start(proxy, "underpass", Kind::Underpass, 80, &shipped())
    }

    fn plain_check(proxy: &Host, name: &'static str, kind: Kind, port: u16, apps: [Ipv4Addr; 2]) -> Front {
        let text = fs::read_to_string(shipped()).expect("the repository has a file for HAProxy");
        let file = proxy.write_file(&format!("{name}.cfg"), with_plain_check(&text, name, port, apps));
        Front::start(proxy, name, kind, port, &file)
    }

    fn start(proxy: &Host, name: &'static str, kind: Kind, port: u16, config: &Path) -> Front {
        let haproxy = HaProxy::start_with(proxy, config, port);
        Front { name, kind, listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), haproxy }
    }
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/haproxy.cfg")
}

/// The shipped file for other addresses, with the plain check of HAProxy's defaults.
fn with_plain_check(shipped: &str, name: &str, port: u16, apps: [Ipv4Addr; 2]) -> String {
    let is_wanted = |line: &&str| !line.trim_start().starts_with('#') && !line.contains("default-server agent-check");
    let lines = shipped.lines().filter(is_wanted);
    let line = |line: &str| {
        let is_check = line.trim_start().starts_with("default-server check ");
        let line = if is_check { "    default-server check inter 2s" } else { line };
        format!("{}\n", line.split(" agent-send").next().unwrap_or_default())
    };
    let mut text: String = lines.map(line).collect();
    let listen = format!("bind :{port}");
    let socket = format!("{name}.sock");
    let apps = apps.map(|address| address.to_string());
    let changes = [("bind :80", &listen), ("admin.sock", &socket), ("10.77.0.11", &apps[0]), ("10.77.0.12", &apps[1])];
    for (from, to) in changes {
        assert!(text.contains(from), "the file for HAProxy has no {from}");
        text = text.replace(from, to);
    }
    assert!(!text.contains("agent-") && text.contains("check inter 2s\n"), "{text}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_is_read_and_nothing_of_underpass_is_left_in_it() {
        let text = fs::read_to_string(shipped()).unwrap();
        let text = with_plain_check(&text, "other", 81, PLAIN);
        assert!(text.contains("server app1 10.1.1.2:8080") && text.contains("option redispatch"), "{text}");
    }
}
