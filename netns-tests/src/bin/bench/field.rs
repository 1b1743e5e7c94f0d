//! Where it is measured: three machines, two kinds of wire between them, and all contenders standing.
//!
//! ```text
//!   proxy ── router ── backend
//! ```

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use netns_tests::certificates::Certificate;
use netns_tests::udp_load::{self, Shape};
use netns_tests::{Host, Lab};

use crate::contender::BACKEND;

/// The machines.
pub(crate) struct Field {
    pub(crate) proxy: Host,
    pub(crate) router: Host,
    pub(crate) backend: Host,
    /// The backend's, for its name.
    pub(crate) certificate: Certificate,
    wire: Cell<Wire>,
    _lab: Lab,
}

/// What the cables pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Superpackets whole, as veth pairs do: what the two machines cost without a network.
    Whole,
    /// Packets one by one, and nobody merges what comes in: the least that a network card can do.
    Segmented,
    /// Packets one by one, which the kernel merges at each end (GRO), as the drivers of real network cards have it do.
    Merged,
}

/// Linux's usual TCP congestion control, whatever this machine's default is: a namespace can't have another default, but its
/// routes can.
pub(crate) const CUBIC: &str = "congctl cubic";

/// The backend's name in its certificate.
pub(crate) const NAME: &str = "backend";

impl Field {
    pub(crate) fn build() -> Field {
        let lab = Lab::new("bench");
        let (proxy, router, backend) = (lab.host("proxy"), lab.router("router"), lab.host("backend"));
        lab.link(proxy.port("wan", ["10.1.0.2/24"]), router.port("proxy", ["10.1.0.1/24"]));
        lab.link(backend.port("wan", ["10.2.0.2/24"]), router.port("backend", ["10.2.0.1/24"]));
        proxy.ip(&format!("route add default via 10.1.0.1 {CUBIC}"));
        backend.ip(&format!("route add default via 10.2.0.1 {CUBIC}"));
        for host in [&proxy, &backend] {
            host.ip(&format!("route replace local 127.0.0.1 dev lo table local src 127.0.0.1 {CUBIC}"));
            // A new connection for each request needs many ports.
            host.set_sysctl("ipv4/ip_local_port_range", "20000 65535");
        }
        let certificate = Certificate::generate(&backend, NAME);
        Field { proxy, router, backend, certificate, wire: Cell::new(Wire::Whole), _lab: lab }
    }

    /// Has TCP use the same congestion control through a tunnel as without one.
    pub(crate) fn finish_tunnel(&self, interface: &str, [near, far]: [Ipv4Addr; 2]) {
        self.proxy.ip(&format!("route replace {far}/32 dev {interface} {CUBIC}"));
        self.backend.ip(&format!("route replace {near}/32 dev {interface} {CUBIC}"));
    }

    /// Changes the cables, if they are not so already, and checks what they pass.
    pub(crate) fn set_wire(&self, wire: Wire) {
        if self.wire.get() == wire {
            return;
        }
        let on = |yes| if yes { "on" } else { "off" };
        let (whole, merged) = (on(wire == Wire::Whole), on(wire == Wire::Merged));
        let ends = [(&self.proxy, "wan"), (&self.router, "proxy"), (&self.router, "backend"), (&self.backend, "wan")];
        for (host, interface) in ends {
            let features = ["tso", "gso", "tx-udp-segmentation"].into_iter().flat_map(|feature| [feature, whole]);
            host.command("ethtool").args(["-K", interface]).args(features).args(["gro", merged]).run();
        }
        let datagrams = self.datagrams_per_packet_on_the_wire();
        assert_eq!(
            datagrams > 1.5,
            wire == Wire::Whole,
            "{wire:?}: {datagrams:.1} datagrams in one packet on the wire"
        );
        self.wire.set(wire);
    }

    fn datagrams_per_packet_on_the_wire(&self) -> f64 {
        let before = self.packets_at_the_router();
        let (target, shape) = (SocketAddr::from((BACKEND, 9)), Shape::Segmented(1200, 40));
        let flood = udp_load::flood(&self.proxy, &self.backend, target, shape, Duration::from_millis(100));
        flood.total_sent as f64 / (self.packets_at_the_router() - before) as f64
    }

    fn packets_at_the_router(&self) -> u64 {
        let table = self.router.read("/proc/thread-self/net/dev");
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix("proxy:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|packets| packets.parse().ok()).expect("the kernel counts packets")
    }
}

/// The addresses of a tunnel's two ends, the proxy's and the backend's, by the tunnel's number.
pub(crate) fn tunnel_addresses(number: u8) -> [Ipv4Addr; 2] {
    [1, 2].map(|end| Ipv4Addr::new(10, 70 + number, 0, end))
}
