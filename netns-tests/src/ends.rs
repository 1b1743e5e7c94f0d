//! The two ends of one link, for tests that need no more than a proxy side and a backend side.

use crate::host::Host;
use crate::lab::Lab;
use crate::link::Port;
use crate::underpass::{Config, Daemon, KeyPair, Peer, Role};

/// Tunnel addresses of the proxy side.
pub const PROXY: [&str; 2] = ["10.77.0.1", "fd77::1"];
/// Tunnel addresses of the backend side.
pub const BACKEND: [&str; 2] = ["10.77.0.11", "fd77::11"];

/// Two machines with keys, not yet connected.
pub struct Ends {
    /// What they stand in.
    pub lab: Lab,
    /// The machine beside the load balancer.
    pub proxy: Host,
    /// The machine beside the app.
    pub backend: Host,
    /// The proxy side's.
    pub proxy_keys: KeyPair,
    /// The backend side's.
    pub backend_keys: KeyPair,
}

impl Ends {
    /// Both, without a cable.
    #[track_caller]
    pub fn new(name: &str) -> Ends {
        let lab = Lab::new(name);
        let (proxy, backend) = (lab.host("proxy"), lab.host("backend"));
        let (proxy_keys, backend_keys) = (KeyPair::generate(&proxy), KeyPair::generate(&proxy));
        Ends { lab, proxy, backend, proxy_keys, backend_keys }
    }

    /// With a cable between them:
    ///
    /// ```text
    ///   proxy ───────────────────────────── backend
    ///     wan 10.1.0.1/24        wan 10.1.0.2/24
    ///         fd01::1/64             fd01::2/64
    /// ```
    #[track_caller]
    pub fn wired(name: &str) -> Ends {
        let ends = Ends::new(name);
        ends.lab.link(ends.proxy_port(), ends.backend_port());
        ends
    }

    /// The proxy's end of a cable.
    pub fn proxy_port(&self) -> Port<'static> {
        self.proxy.port("wan", ["10.1.0.1/24", "fd01::1/64"])
    }

    /// The backend's end of a cable.
    pub fn backend_port(&self) -> Port<'static> {
        self.backend.port("wan", ["10.1.0.2/24", "fd01::2/64"])
    }

    /// The proxy side's interface, without peers.
    pub fn proxy_interface(&self) -> Config {
        Config::new(Role::Proxy, &self.proxy_keys, ["10.77.0.1/24", "fd77::1/64"])
    }

    /// The backend side's interface, without peers.
    pub fn backend_interface(&self) -> Config {
        Config::new(Role::Backend, &self.backend_keys, ["10.77.0.11/24", "fd77::11/64"])
    }

    /// The backend side, as the proxy side's peer.
    pub fn backend_peer(&self) -> Peer {
        Peer::new("backend", &self.backend_keys.public, BACKEND)
    }

    /// The proxy side, as the backend side's peer.
    pub fn proxy_peer(&self) -> Peer {
        Peer::new("proxy", &self.proxy_keys.public, PROXY)
    }

    /// The proxy side's configuration, which calls the backend side at `endpoint`.
    pub fn proxy_calling(&self, endpoint: &str) -> Config {
        self.proxy_interface().peer(self.backend_peer().endpoint(endpoint))
    }

    /// The backend side's configuration, which waits to be called.
    pub fn backend_waiting(&self) -> Config {
        self.backend_interface().peer(self.proxy_peer())
    }

    /// The backend side's configuration, which calls the proxy side at `endpoint`.
    pub fn backend_calling(&self, endpoint: &str) -> Config {
        self.backend_interface().peer(self.proxy_peer().endpoint(endpoint))
    }

    /// Starts both sides; the proxy side calls the backend side at `endpoint`.
    #[track_caller]
    pub fn start_calling(&self, endpoint: &str) -> (Daemon, Daemon) {
        let backend = Daemon::start(&self.backend, &self.backend_waiting());
        (Daemon::start(&self.proxy, &self.proxy_calling(endpoint)), backend)
    }
}
