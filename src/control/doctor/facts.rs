//! Facts about one link and about what it stands on, in values that a test can write down.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use crate::control::api::{PeerReport, RefusedReport, Reload};

/// Everything that is asked about one peer's link.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// The peer's name.
    pub peer: String,
    /// The daemon's view.
    pub daemon: DaemonFacts,
    /// The configuration file's view.
    pub file: FileFacts,
    /// This machine's public key, as far as it is known.
    pub own_key: Option<String>,
    /// The names among the peer's endpoints.
    pub names: Vec<NameFacts>,
    /// Every address that datagrams to the peer may go to.
    pub routes: Vec<RouteFacts>,
    /// Whether something keeps this machine's clock right; none where the kernel does not say.
    pub clock_synchronised: Option<bool>,
    /// TCP ports that the peer may reach, one by one, where nothing listens.
    pub unserved_ports: Vec<u16>,
    /// Whether something listens on another of them, or none is named one by one.
    pub serves_any_port: bool,
}

/// The daemon's view of the link.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct DaemonFacts {
    /// Why it could not be asked.
    pub problem: Option<String>,
    /// The daemon's wall clock, in seconds since 1970.
    pub unix_time: u64,
    /// For how long it has been running.
    pub uptime_seconds: u64,
    /// Largest packet inside the tunnel.
    pub mtu: u16,
    /// The UDP addresses that it is bound to.
    pub listen: Vec<SocketAddr>,
    /// The link. None if the daemon does not know the peer.
    pub link: Option<PeerReport>,
    /// Initiations that it refused.
    pub refused: Vec<RefusedReport>,
    /// Datagrams that were to leave and would have entered the tunnel again.
    pub routing_loops: u64,
    /// Differences in its configuration file. None if they are not known.
    pub changes: Option<Reload>,
}

/// The configuration file's view of the peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FileFacts {
    /// Path of the file.
    pub path: Option<PathBuf>,
    /// Why it can't be used, a line for each mistake.
    pub problem: Option<String>,
    /// Whether it names the peer.
    pub has_peer: bool,
    /// Whether it says where the peer is.
    pub has_endpoint: bool,
    /// Whether there is a preshared key.
    pub has_preshared_key: bool,
    /// Mark on the outer datagrams.
    pub fwmark: Option<u32>,
    /// The tunnel device.
    pub interface: String,
}

/// A name and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NameFacts {
    /// As in the configuration.
    pub host: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Why there are none.
    pub problem: Option<String>,
}

/// An endpoint and where datagrams to it would leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteFacts {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// The way there.
    pub leads: Leads,
}

/// Destination of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Leads {
    /// Out of this machine by the interface of that name.
    By(String),
    /// Into the tunnel itself.
    IntoTunnel,
    /// To this machine.
    ToItself,
    /// There is none, or one that refuses.
    Nowhere,
}
