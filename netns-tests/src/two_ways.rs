//! A backend with two endpoints, to which separate ways lead.
//!
//! ```text
//!           ┌── first ───┐ 10.2.1.2
//!   proxy ──┤            ├── backend
//!           └── second ──┘ 10.2.2.2
//! ```

use std::net::IpAddr;

use crate::host::Host;
use crate::lab::Lab;
use crate::outage::Outage;
use crate::underpass::{Config, Daemon, KeyPair, Peer, Role};

/// The machines, and the daemon of the backend.
pub struct TwoWays {
    /// Beside the load balancer.
    pub proxy: Host,
    /// Beside the app.
    pub backend: Host,
    first: Host,
    at_proxy: Config,
    _backend_side: Daemon,
    _lab: Lab,
}

/// The backend's address in the tunnel.
pub const INSIDE: &str = "10.77.0.11";
/// The backend's two endpoints, the preferred one first.
pub const ENDPOINTS: [&str; 2] = ["10.2.1.2", "10.2.2.2"];

impl TwoWays {
    /// Builds it, with the backend's daemon running.
    #[track_caller]
    pub fn start(name: &str) -> TwoWays {
        let lab = Lab::new(name);
        let (proxy, backend) = (lab.host("proxy"), lab.host("backend"));
        let routers = ["first", "second"].map(|name| lab.router(name));
        for (n, router) in (1..).zip(&routers) {
            let [near, nearer] = [2, 1].map(|end| format!("10.1.{n}.{end}/24"));
            let [far, farther] = [2, 1].map(|end| format!("10.2.{n}.{end}/24"));
            let name = format!("wan{n}");
            lab.link(proxy.port(&name, [&*near]), router.port("proxy", [&*nearer]));
            lab.link(backend.port(&name, [&*far]), router.port("backend", [&*farther]));
            proxy.ip(&format!("route add 10.2.{n}.0/24 via 10.1.{n}.1"));
            backend.ip(&format!("route add 10.1.{n}.0/24 via 10.2.{n}.1"));
        }
        let [proxy_keys, backend_keys] = [&proxy, &backend].map(KeyPair::generate);
        let caller = Peer::new("proxy", &proxy_keys.public, ["10.77.0.1"]);
        let at_backend = Config::new(Role::Backend, &backend_keys, ["10.77.0.11/24"]).peer(caller);
        let endpoints = ENDPOINTS.map(|address| format!("\"{address}:51900\"")).join(", ");
        let called = Peer::new("backend", &backend_keys.public, [INSIDE]).set("endpoint", format!("[{endpoints}]"));
        let at_proxy = Config::new(Role::Proxy, &proxy_keys, ["10.77.0.1/24"]).peer(called);
        let backend_side = Daemon::start(&backend, &at_backend);
        let [first, _] = routers;
        TwoWays { proxy, backend, first, at_proxy, _backend_side: backend_side, _lab: lab }
    }

    /// Starts the proxy's daemon, which begins with the preferred endpoint.
    #[track_caller]
    pub fn start_proxy_side(&self) -> Daemon {
        // Where one before it has found the backend.
        self.proxy.command("rm").args(["-f", "/run/underpass/underpass0.peers"]).run();
        let daemon = Daemon::start(&self.proxy, &self.at_proxy);
        daemon.wait_for_state("backend", "up");
        daemon
    }

    /// Cuts the way to the preferred endpoint. Nobody is told.
    #[track_caller]
    pub fn cut_first(&self) -> Outage {
        Outage::cut(&self.first, "backend")
    }
}

/// Whether a proxy's daemon uses this endpoint of the backend.
#[track_caller]
pub fn uses(proxy_side: &Daemon, endpoint: &str) -> bool {
    let in_use = proxy_side.status().peer("backend").endpoint().map(|endpoint| endpoint.ip());
    in_use == endpoint.parse::<IpAddr>().ok()
}
