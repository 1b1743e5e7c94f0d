//! The site that load balancers are tested on, and what carries their traffic across the network in the middle.

use std::net::{IpAddr, SocketAddr};

use netns_tests::wireguard::{self, WireguardGo};
use netns_tests::{Host, Lab};

/// What carries the traffic between the load balancer and the apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Nothing: the apps are spoken to across the network as it is. Shows that the laboratory and its programs work.
    Plain,
    /// Debian's wireguard-go: shows that the laboratory can carry a tunnel.
    WireguardGo,
}

/// A load balancer, two app servers, and a network between them that others own:
///
/// ```text
///             proxy
///               │ .1 wan    10.1.0.0/24
///            network  (router)
///   10.1.1.0/24 │ .1    │ .1 10.1.2.0/24
///            .2 │       │ .2
///          backend1  backend2
/// ```
pub(crate) struct Site {
    #[expect(dead_code, reason = "it stands as long as the site does")]
    pub(crate) lab: Lab,
    pub(crate) proxy: Host,
    pub(crate) backends: [Host; 2],
    /// Where the apps are reached from the proxy.
    pub(crate) addresses: [IpAddr; 2],
    _wireguard: Vec<WireguardGo>,
}

impl Site {
    #[track_caller]
    pub(crate) fn new(name: &str, carrier: Carrier) -> Site {
        let lab = Lab::new(name);
        let (proxy, network) = (lab.host("proxy"), lab.router("network"));
        let backends = [lab.host("backend1"), lab.host("backend2")];
        lab.link(proxy.port("wan", ["10.1.0.2/24"]), network.port("to-proxy", ["10.1.0.1/24"]));
        lab.link(backends[0].port("wan", ["10.1.1.2/24"]), network.port("to-backend1", ["10.1.1.1/24"]));
        lab.link(backends[1].port("wan", ["10.1.2.2/24"]), network.port("to-backend2", ["10.1.2.1/24"]));
        proxy.ip("route add default via 10.1.0.1");
        backends[0].ip("route add default via 10.1.1.1");
        backends[1].ip("route add default via 10.1.2.1");
        let mut site = Site { lab, proxy, backends, addresses: OUTSIDE, _wireguard: vec![] };
        if carrier == Carrier::WireguardGo {
            site.start_wireguard();
        }
        site
    }

    /// The addresses of the two apps with a port.
    pub(crate) fn apps(&self, port: u16) -> [SocketAddr; 2] {
        self.addresses.map(|address| SocketAddr::new(address, port))
    }

    #[track_caller]
    fn start_wireguard(&mut self) {
        self.addresses = ["10.77.1.2", "10.77.2.2"].map(|address| address.parse().unwrap());
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

const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 2)), IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 2))];
