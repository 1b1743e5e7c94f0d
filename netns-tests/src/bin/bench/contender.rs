//! Who is measured: what carries traffic from the proxy to the backend, standing.

use std::net::{Ipv4Addr, SocketAddr};

use netns_tests::Process;
use netns_tests::probe::IPERF3_PORT;

/// Something that carries traffic from the proxy to the backend.
pub(crate) struct Contender {
    /// What it is called on the command line and in tables.
    pub(crate) name: &'static str,
    /// What it is compared as.
    pub(crate) kind: Kind,
    /// What it carries, and whereto.
    pub(crate) reach: Reach,
    /// Its programs at both ends; none where none are needed.
    pub(crate) daemons: Vec<Box<dyn AsRef<Process>>>,
    /// Its program's version, in the program's own words.
    pub(crate) version: String,
}

/// What a contender is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No encryption: what there is to lose.
    Plain,
    /// What is to be judged.
    Underpass,
    /// Another tunnel.
    Peer,
    /// TLS in place of a tunnel.
    Tls,
}

/// What a contender carries, and whereto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Packets to this address of the backend.
    Packets(Ipv4Addr),
    /// TCP connections to ports of the proxy's own loopback.
    Connections,
    /// HTTP, since the load balancer itself encrypts; whether it resumes sessions.
    Tls {
        /// Or has a full handshake for each connection.
        resumed: bool,
    },
}

/// What listens on the backend, for all contenders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Iperf3,
    Echo,
    Http,
}

/// Where the backend is without a tunnel.
pub(crate) const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// Where the proxy is without a tunnel.
pub(crate) const PROXY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

impl Service {
    pub(crate) const ALL: [Service; 3] = [Service::Iperf3, Service::Echo, Service::Http];

    /// Where it listens, on every address of the backend.
    pub(crate) fn port(self) -> u16 {
        match self {
            Service::Iperf3 => IPERF3_PORT,
            Service::Echo => 7000,
            Service::Http => 8080,
        }
    }

    /// Where it is reached on the proxy's loopback, if something listens for it there.
    pub(crate) fn near(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port() + 10_000))
    }
}

impl Contender {
    /// Its programs.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.daemons.iter().map(|daemon| (**daemon).as_ref())
    }

    /// Where a TCP service of the backend is reached through it.
    pub(crate) fn tcp(&self, service: Service) -> Option<SocketAddr> {
        match self.reach {
            Reach::Packets(backend) => Some(SocketAddr::from((backend, service.port()))),
            Reach::Connections => Some(service.near()),
            Reach::Tls { .. } => None,
        }
    }

    /// The backend's address for packets of any kind.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        match self.reach {
            Reach::Packets(backend) => Some(backend),
            Reach::Connections | Reach::Tls { .. } => None,
        }
    }
}
