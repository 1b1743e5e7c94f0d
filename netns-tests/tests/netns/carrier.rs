//! The site that load balancers are tested on, and what carries their traffic across the network in the middle.

use std::net::{IpAddr, SocketAddr};

use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role, quote};
use netns_tests::wireguard::{self, Wireguard};
use netns_tests::{Host, Lab};

/// What carries the traffic between the load balancer and the apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Nothing: the apps are spoken to across the network as it is. Shows that the laboratory and its programs work.
    Plain,
    /// Debian's wireguard-go: shows that the laboratory can carry a tunnel.
    WireguardGo,
    /// Ours, with this kind of device.
    Underpass(&'static str),
}

/// A load balancer, two app servers, and a network between them that others own:
///
/// ```text
///             proxy
///               │ .2 wan    10.1.0.0/24
///               │ .1 to-proxy
///            network  (router)
///   to-backend1 │ .1    │ .1 to-backend2
///   10.1.1.0/24 │ .2    │ .2 10.1.2.0/24
///          backend1  backend2
/// ```
///
/// In the tunnel, the proxy is 10.77.0.1 and fd77::1, the backends are 10.77.0.11 and .12, fd77::11 and ::12.
pub(crate) struct Site {
    pub(crate) proxy: Host,
    pub(crate) network: Host,
    pub(crate) backends: [Host; 2],
    /// Where the apps are reached from the proxy.
    pub(crate) addresses: [IpAddr; 2],
    /// The proxy's first, then the backends'; empty where another carrier is used.
    pub(crate) daemons: Vec<Daemon>,
    /// Theirs, in the same order.
    configs: Vec<Config>,
    _wireguard: Vec<Wireguard>,
    /// The last to go: what a failed test has to say lies in it.
    _lab: Lab,
}

impl Site {
    #[track_caller]
    pub(crate) fn new(name: &str, carrier: Carrier) -> Site {
        let mut site = Site::bare(name);
        match carrier {
            Carrier::Plain => (),
            Carrier::WireguardGo => site.start_wireguard(),
            Carrier::Underpass(device) => site.start_underpass(device, |peers| peers),
        }
        site
    }

    /// With underpass, and with the proxy side's peers changed.
    #[track_caller]
    pub(crate) fn with_proxy_peers(name: &str, change: impl FnOnce([Peer; 2]) -> [Peer; 2]) -> Site {
        let mut site = Site::bare(name);
        site.start_underpass("offload", change);
        site
    }

    /// The addresses of the two apps with a port.
    pub(crate) fn apps(&self, port: u16) -> [SocketAddr; 2] {
        self.addresses.map(|address| SocketAddr::new(address, port))
    }

    /// The daemon beside the load balancer.
    #[track_caller]
    pub(crate) fn proxy_daemon(&self) -> &Daemon {
        self.daemons.first().expect("underpass is the carrier")
    }

    /// Ends the daemon of the first backend as its operator would.
    #[track_caller]
    pub(crate) fn stop_first_backend(&mut self) {
        assert_eq!(self.daemons.remove(1).stop(), 0);
    }

    /// Starts it again.
    #[track_caller]
    pub(crate) fn start_first_backend(&mut self) {
        self.daemons.insert(1, Daemon::start(&self.backends[0], &self.configs[1]));
    }

    /// Has the daemon beside the load balancer reload its configuration of before, changed.
    #[track_caller]
    pub(crate) fn reload_proxy(&self, change: impl FnOnce(Config) -> Config) {
        self.proxy_daemon().reload(&change(self.configs[0].clone()));
    }

    #[track_caller]
    fn bare(name: &str) -> Site {
        let lab = Lab::new(name);
        let (proxy, network) = (lab.host("proxy"), lab.router("network"));
        let backends = [lab.host("backend1"), lab.host("backend2")];
        lab.link(proxy.port("wan", ["10.1.0.2/24"]), network.port("to-proxy", ["10.1.0.1/24"]));
        lab.link(backends[0].port("wan", ["10.1.1.2/24"]), network.port("to-backend1", ["10.1.1.1/24"]));
        lab.link(backends[1].port("wan", ["10.1.2.2/24"]), network.port("to-backend2", ["10.1.2.1/24"]));
        proxy.ip("route add default via 10.1.0.1");
        backends[0].ip("route add default via 10.1.1.1");
        backends[1].ip("route add default via 10.1.2.1");
        let addresses = addresses(["10.1.1.2", "10.1.2.2"]);
        Site { proxy, network, backends, addresses, daemons: vec![], configs: vec![], _wireguard: vec![], _lab: lab }
    }

    #[track_caller]
    fn start_underpass(&mut self, device: &str, change: impl FnOnce([Peer; 2]) -> [Peer; 2]) {
        self.addresses = addresses(["10.77.0.11", "10.77.0.12"]);
        let keys = [(); 3].map(|()| KeyPair::generate(&self.proxy));
        let finish = |config: Config| config.set("device", quote(device));
        let peers = [1, 2].map(|n: usize| {
            let addresses = [format!("10.77.0.1{n}"), format!("fd77::1{n}")];
            let peer = Peer::new(&format!("app{n}"), &keys[n].public, addresses.each_ref().map(String::as_str));
            peer.endpoint(&format!("10.1.{n}.2:51900"))
        });
        let config = Config::new(Role::Proxy, &keys[0], ["10.77.0.1/24", "fd77::1/64"]);
        let config = change(peers).into_iter().fold(config, Config::peer);
        self.configs.push(finish(config));
        for n in 1..=self.backends.len() {
            let addresses = [format!("10.77.0.1{n}/24"), format!("fd77::1{n}/64")];
            let config = Config::new(Role::Backend, &keys[n], addresses.each_ref().map(String::as_str));
            let proxy = Peer::new("proxy", &keys[0].public, ["10.77.0.1", "fd77::1"]);
            self.configs.push(finish(config.peer(proxy)));
        }
        let hosts = [&self.proxy].into_iter().chain(&self.backends);
        self.daemons = hosts.zip(&self.configs).map(|(host, config)| Daemon::start(host, config)).collect();
        // The proxy side has called before there was anybody to answer; a load balancer's first check would come too early.
        for app in ["app1", "app2"] {
            self.proxy_daemon().wait_for_state(app, "up");
        }
    }

    #[track_caller]
    fn start_wireguard(&mut self) {
        self.addresses = addresses(["10.77.1.2", "10.77.2.2"]);
        for (n, backend) in (1..).zip(&self.backends) {
            let end = |host, interface, address, endpoint: String| wireguard::End {
                host,
                interface,
                address,
                endpoint: endpoint.parse().unwrap(),
            };
            let (interface, near, far) = (format!("wg{n}"), format!("10.77.{n}.1/24"), format!("10.77.{n}.2/24"));
            let ends = wireguard::connect([
                end(&self.proxy, &interface, &near, format!("10.1.0.2:{}", 51820 + n)),
                end(backend, "wg0", &far, format!("10.1.{n}.2:51820")),
            ]);
            self._wireguard.extend(ends);
        }
    }
}

fn addresses(addresses: [&str; 2]) -> [IpAddr; 2] {
    addresses.map(|address| address.parse().unwrap())
}
