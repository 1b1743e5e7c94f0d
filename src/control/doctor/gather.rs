//! Asks the daemon, the configuration file, the kernel and the name servers.
//!
//! Each may fail alone: a fact that can't be had is left open.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use ipnet::IpNet;
use tokio::time::timeout;

use super::facts::{DaemonFacts, Facts, FileFacts, Leads, NameFacts, RouteFacts};
use super::listeners::{named_ports, unserved};
use crate::config::{Config, ConfigError, Endpoint, Peer};
use crate::control::api::{Reload, StatusReport};
use crate::control::client::{self, ClientError};
use crate::control::netlink::Netlink;
use crate::control::resolver;
use crate::dataplane::clock;

/// Time that a look-up may take before it counts as failed: longer than a resolver tries.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(12);

/// Which link is asked about, and what is known of where to ask.
#[derive(Debug)]
pub struct Question {
    /// The peer's name.
    pub peer: String,
    /// The daemon's answer.
    pub status: Result<StatusReport, ClientError>,
    /// Differences that the daemon finds in its file, if it was asked.
    pub changes: Option<Reload>,
    /// The configuration file, if there is one.
    pub file: Option<PathBuf>,
    /// Content of that file.
    pub config: Option<Result<Config, ConfigError>>,
}

/// All that can be had. `question` names a peer that the daemon or the file knows.
pub async fn gather(question: Question) -> Facts {
    let Question { peer, status, changes, file, config } = question;
    let problem = match &config {
        Some(Err(error)) => Some(error.to_string()),
        _ => None,
    };
    let config = config.and_then(Result::ok);
    let configured = config.as_ref().and_then(|config| config.peers.iter().find(|table| table.name == peer));
    let own_key = match (&status, &config) {
        (Ok(status), _) => Some(status.interface.public_key.clone()),
        (Err(_), Some(config)) => Some(config.interface.private_key.public_key().to_string()),
        _ => None,
    };
    let interface = interface_name(&status, config.as_ref());
    let file = FileFacts {
        path: file,
        problem,
        has_peer: configured.is_some(),
        has_endpoint: configured.is_some_and(|peer| !peer.endpoints.is_empty()),
        has_preshared_key: configured.is_some_and(|peer| peer.preshared_key.is_some()),
        fwmark: config.as_ref().and_then(|config| config.interface.fwmark),
        interface: interface.clone(),
    };
    let daemon = daemon_facts(&peer, status, changes);
    let names = join_all(configured.iter().flat_map(|peer| hosts(peer)).map(look_up)).await;
    let endpoints = endpoints(&daemon, configured, &names);
    let routes = routes(endpoints, &interface, file.fwmark).await;
    let (unserved_ports, serves_any_port) = ports(config.as_ref(), configured);
    let clock_synchronised = clock::is_synchronized();
    Facts { peer, daemon, file, own_key, names, routes, clock_synchronised, unserved_ports, serves_any_port }
}

fn interface_name(status: &Result<StatusReport, ClientError>, config: Option<&Config>) -> String {
    let running = status.as_ref().ok().map(|status| &status.interface.name);
    running.or(config.map(|config| &config.interface.name)).cloned().unwrap_or_default()
}

fn daemon_facts(peer: &str, status: Result<StatusReport, ClientError>, changes: Option<Reload>) -> DaemonFacts {
    match status {
        Ok(status) => DaemonFacts {
            problem: None,
            unix_time: status.unix_time,
            uptime_seconds: status.interface.uptime_seconds,
            mtu: status.interface.mtu,
            listen: status.interface.listen,
            link: status.peers.into_iter().find(|report| report.name == peer),
            refused: status.refused_initiations,
            routing_loops: status.drops.get("routing_loop").copied().unwrap_or_default(),
            changes,
        },
        Err(error) => DaemonFacts { problem: Some(error.to_string()), ..DaemonFacts::default() },
    }
}

fn hosts(peer: &Peer) -> impl Iterator<Item = &str> {
    peer.endpoints.iter().filter_map(|endpoint| match endpoint {
        Endpoint::Name { host, .. } => Some(host.as_str()),
        Endpoint::Address(_) => None,
    })
}

/// As the daemon does.
async fn look_up(host: &str) -> NameFacts {
    let (addresses, problem) = match timeout(LOOKUP_TIMEOUT, resolver::addresses_of_name(host)).await {
        Ok(Ok(addresses)) if addresses.is_empty() => (addresses, Some("the name has no address".to_owned())),
        Ok(Ok(addresses)) => (addresses, None),
        Ok(Err(error)) => (Vec::new(), Some(error.to_string())),
        Err(_) => (Vec::new(), Some(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs()))),
    };
    NameFacts { host: host.to_owned(), addresses, problem }
}

/// The one in use, then the configured ones, each once.
fn endpoints(daemon: &DaemonFacts, peer: Option<&Peer>, names: &[NameFacts]) -> Vec<SocketAddr> {
    let mut endpoints: Vec<SocketAddr> = daemon.link.as_ref().and_then(|link| link.endpoint).into_iter().collect();
    for endpoint in peer.iter().flat_map(|peer| &peer.endpoints) {
        match endpoint {
            Endpoint::Address(address) => endpoints.push(*address),
            Endpoint::Name { host, port } => {
                let found = names.iter().filter(|name| name.host == *host).flat_map(|name| &name.addresses);
                endpoints.extend(found.map(|address| SocketAddr::new(*address, *port)));
            }
        }
    }
    let mut seen = Vec::new();
    endpoints.retain(|endpoint| {
        !seen.contains(endpoint) && {
            seen.push(*endpoint);
            true
        }
    });
    endpoints
}

async fn routes(endpoints: Vec<SocketAddr>, interface: &str, fwmark: Option<u32>) -> Vec<RouteFacts> {
    let Ok(netlink) = Netlink::open() else { return Vec::new() };
    let lead = |endpoint: SocketAddr| {
        let netlink = &netlink;
        async move {
            let egress = netlink.egress(endpoint.ip(), fwmark).await.map(name_of);
            let leads = match egress {
                None => Leads::Nowhere,
                Some(name) if name == interface => Leads::IntoTunnel,
                Some(name) if name == "lo" => Leads::ToItself,
                Some(name) => Leads::By(name),
            };
            RouteFacts { endpoint, leads }
        }
    };
    join_all(endpoints.into_iter().map(lead)).await
}

fn name_of(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}

/// Which of the ports that the peer may reach nothing serves, and whether anything is served.
fn ports(config: Option<&Config>, peer: Option<&Peer>) -> (Vec<u16>, bool) {
    let (Some(config), Some(peer)) = (config, peer) else { return (Vec::new(), true) };
    let exposed: Vec<String> = peer.expose.iter().map(ToString::to_string).collect();
    let ports = named_ports(&exposed);
    let addresses: Vec<IpAddr> = config.interface.addresses.iter().map(IpNet::addr).collect();
    match unserved(&ports, &addresses) {
        Some(unserved) => {
            let serves_any = unserved.len() < exposed.len();
            (unserved, serves_any)
        }
        None => (Vec::new(), true),
    }
}

/// The configuration file that a daemon names, or else the one in `directory` that has the peer.
pub fn find_file(status: Option<&StatusReport>, peer: &str, directory: &Path) -> Option<PathBuf> {
    if let Some(path) = status.and_then(|status| status.interface.config.clone()) {
        return Some(path);
    }
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|it| it == "toml")).collect();
    files.sort();
    let has_peer =
        |path: &&PathBuf| Config::load(path).is_ok_and(|config| config.peers.iter().any(|table| table.name == peer));
    files.iter().find(has_peer).cloned()
}

/// Status of the daemon behind `socket`, and the differences that it finds in its file.
pub fn ask(socket: &Path) -> (Result<StatusReport, ClientError>, Option<Reload>) {
    let status = client::status(socket);
    let changes = if status.is_ok() { client::compare(socket).ok() } else { None };
    (status, changes)
}
