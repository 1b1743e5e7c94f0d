//! Checks of an installation that runs, from this side: what an operator would try by hand after setting it up.
//!
//! Owns which checks there are, and what to do about each failure. Nothing is changed; connections are opened and closed.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::api::{LinkState, PeerReport, StatusReport};
use super::client::ClientError;
use super::netlink::Netlink;
use crate::config::{Config, Endpoint, Peer, Role};
use crate::dataplane::clock;

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The peer's name. None for this machine.
    pub peer: Option<String>,
    /// What was checked.
    pub check: Check,
    /// How it went.
    pub outcome: Outcome,
    /// In a person's words.
    pub what: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A daemon runs.
    Daemon,
    /// By the configuration file as it is now.
    Configuration,
    /// This machine's clock is kept right.
    Clock,
    /// The link carries traffic, so both sides have the right keys.
    Link,
    /// The way to the peer carries the interface's longest packets whole.
    PathMtu,
    /// Packets to the peer go into the tunnel.
    Route,
    /// A port is reached through the tunnel.
    Port,
    /// The same port is not reached in the clear, around the tunnel.
    Plaintext,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It was not checked.
    Skipped,
    /// It works, but should be looked at.
    Warning,
    /// It does not work, or is not safe.
    Failed,
}

/// A port to try, of one peer or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The peer's name.
    pub peer: Option<String>,
    /// TCP.
    pub number: u16,
}

/// Checks what `config` describes. `status` is what the daemon says; `ports` are tried for at most `patience` each.
pub async fn verify(
    config: &Config,
    status: Result<StatusReport, ClientError>,
    ports: &[Port],
    patience: Duration,
) -> Vec<Finding> {
    let mut findings = vec![daemon(config, &status), clock()];
    let Ok(status) = status else { return findings };
    findings.push(configuration(config, &status));
    let netlink = Netlink::open().ok();
    let peers = config.peers.iter().map(|peer| {
        let verification = PeerVerification {
            config,
            peer,
            report: status.peers.iter().find(|report| report.name == peer.name),
            netlink: netlink.as_ref(),
            patience,
        };
        let numbers = ports.iter().filter(|port| port.peer.as_ref().is_none_or(|name| *name == peer.name));
        let numbers: Vec<u16> = numbers.map(|port| port.number).collect();
        async move { verification.run(&numbers).await }
    });
    findings.extend(join_all(peers).await.into_iter().flatten());
    findings
}

/// The worst of all outcomes.
pub fn verdict(findings: &[Finding]) -> Outcome {
    findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Ok)
}

impl Finding {
    fn new(check: Check, outcome: Outcome, what: impl Into<String>) -> Self {
        Self { peer: None, check, outcome, what: what.into(), remedy: None }
    }

    fn ok(check: Check, what: impl Into<String>) -> Self {
        Self::new(check, Outcome::Ok, what)
    }

    fn failed(check: Check, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(check, Outcome::Failed, what) }
    }

    fn warning(check: Check, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(check, Outcome::Warning, what) }
    }
}

fn daemon(config: &Config, status: &Result<StatusReport, ClientError>) -> Finding {
    match status {
        Ok(StatusReport { interface, .. }) => {
            let what = format!("version {}, process {}, {}", interface.version, interface.pid, interface.name);
            Finding::ok(Check::Daemon, what)
        }
        Err(error) => {
            let remedy = format!(
                "start it (systemctl start underpass@NAME), or give the file that it runs by; it should answer at {}",
                config.interface.control_socket.display()
            );
            Finding::failed(Check::Daemon, error.to_string(), remedy)
        }
    }
}

/// A clock that jumps back makes a peer refuse this machine's handshakes, which then look like replays.
fn clock() -> Finding {
    match clock::is_synchronized() {
        Some(true) => Finding::ok(Check::Clock, "synchronised"),
        Some(false) => Finding::warning(
            Check::Clock,
            "nothing keeps this machine's clock right",
            "run chrony or systemd-timesyncd: if the clock is set back, peers refuse handshakes until it has caught up",
        ),
        None => Finding::new(Check::Clock, Outcome::Skipped, "the system does not say whether it is synchronised"),
    }
}

fn configuration(config: &Config, status: &StatusReport) -> Finding {
    let wanted: BTreeMap<&str, String> =
        config.peers.iter().map(|peer| (peer.name.as_str(), peer.public_key.to_string())).collect();
    let running: BTreeMap<&str, String> =
        status.peers.iter().map(|peer| (peer.name.as_str(), peer.public_key.clone())).collect();
    let mut differences = Vec::new();
    if status.interface.public_key != config.interface.private_key.public_key().to_string() {
        differences.push("its private key".to_owned());
    }
    let names = wanted.keys().chain(running.keys().filter(|name| !wanted.contains_key(*name)));
    differences.extend(names.filter(|name| wanted.get(*name) != running.get(*name)).map(|name| format!("peer {name}")));
    if differences.is_empty() {
        return Finding::ok(Check::Configuration, "the daemon has this file's keys and peers");
    }
    let what = format!("the daemon runs by something else than this file: {}", differences.join(", "));
    Finding::failed(Check::Configuration, what, "underpass reload")
}

/// The checks of one peer.
#[derive(Clone, Copy)]
struct PeerVerification<'a> {
    config: &'a Config,
    peer: &'a Peer,
    report: Option<&'a PeerReport>,
    netlink: Option<&'a Netlink>,
    patience: Duration,
}

impl PeerVerification<'_> {
    async fn run(self, ports: &[u16]) -> Vec<Finding> {
        let mut findings = vec![self.link()];
        findings.extend(self.path_mtu());
        findings.extend(join_all(self.peer.addresses.iter().map(|address| self.route(*address))).await);
        if self.config.role == Role::Proxy {
            findings.extend(self.ports(ports).await);
        }
        findings.iter_mut().for_each(|finding| finding.peer = Some(self.peer.name.clone()));
        findings
    }

    fn link(self) -> Finding {
        let Some(report) = self.report else {
            return Finding::failed(Check::Link, "the daemon does not know this peer", "underpass reload");
        };
        let reason = report.reason.as_deref().unwrap_or("no reason given");
        let described = format!("{}: {reason}", report.state.as_str());
        match report.state {
            LinkState::Up => {
                let round_trip =
                    report.rtt_microseconds.map(|time| format!(", round trip {:.1} ms", time as f64 / 1e3));
                Finding::ok(Check::Link, format!("up{}", round_trip.unwrap_or_default()))
            }
            LinkState::Idle => Finding::new(Check::Link, Outcome::Skipped, described),
            LinkState::Draining => {
                Finding::warning(Check::Link, described, "underpass undrain, when it is to serve again")
            }
            LinkState::Degraded | LinkState::Unknown => Finding::warning(Check::Link, described, remedy_of(reason)),
            LinkState::Down => Finding::failed(Check::Link, described, remedy_of(reason)),
        }
    }

    /// `None` where nobody has found out yet.
    fn path_mtu(self) -> Option<Finding> {
        let (path, interface) = (self.report?.path_mtu?, self.config.interface.mtu);
        if path >= interface {
            return Some(Finding::ok(Check::PathMtu, format!("packets of {interface} bytes pass whole")));
        }
        let what = format!("only packets of up to {path} bytes pass whole, the interface's MTU is {interface}");
        let remedy = format!("set interface.mtu = {path} at both sides, or find the narrow place on the way");
        Some(Finding::warning(Check::PathMtu, what, remedy))
    }

    async fn route(self, address: IpAddr) -> Finding {
        let Some(netlink) = self.netlink else {
            return Finding::new(Check::Route, Outcome::Skipped, "the kernel's routes can't be asked for");
        };
        let interface = &self.config.interface.name;
        let tunnel = nix::net::if_::if_nametoindex(interface.as_str()).ok();
        let egress = netlink.egress(address, None).await;
        if egress.is_some() && egress == tunnel {
            return Finding::ok(Check::Route, format!("{address} leads into {interface}"));
        }
        let elsewhere = egress.map_or_else(|| "nowhere".to_owned(), interface_name);
        Finding::failed(
            Check::Route,
            format!("{address} leads to {elsewhere}, not into {interface}: traffic for it is not protected"),
            format!("`ip route get {address}` shows which route is preferred to the tunnel's: remove it, or that rule"),
        )
    }

    async fn ports(self, ports: &[u16]) -> Vec<Finding> {
        if ports.is_empty() {
            let what = "no port was tried: name the app's with --port";
            return vec![Finding::new(Check::Port, Outcome::Skipped, what)];
        }
        let outside = self.outside_addresses().await;
        let mut findings = Vec::new();
        for &port in ports {
            let through = self.peer.addresses.iter().map(|address| self.through(SocketAddr::new(*address, port)));
            findings.extend(join_all(through).await);
            let around = outside.iter().map(|address| self.around(SocketAddr::new(*address, port)));
            findings.extend(join_all(around).await);
        }
        findings
    }

    async fn through(self, address: SocketAddr) -> Finding {
        match connect(address, self.patience).await {
            Ok(()) => Finding::ok(Check::Port, format!("{address} answers through the tunnel")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Finding::failed(
                Check::Port,
                format!("{address} refuses connections"),
                "start the app there, or have it listen on that address and port",
            ),
            Err(error) => Finding::failed(
                Check::Port,
                format!("{address} is not reached through the tunnel: {error}"),
                "the link has to be up, and the backend's `expose` has to name the port; then look at its firewall",
            ),
        }
    }

    /// Whoever reads the network between reads what is sent there.
    async fn around(self, address: SocketAddr) -> Finding {
        match connect(address, self.patience).await {
            Ok(()) => Finding::failed(
                Check::Plaintext,
                format!("{address} answers in the clear, around the tunnel"),
                format!(
                    "have the app listen on {} only, or close port {} to the network in that machine's firewall",
                    self.peer.addresses.first().map_or_else(String::new, ToString::to_string),
                    address.port()
                ),
            ),
            Err(error) => {
                Finding::ok(Check::Plaintext, format!("{address} does not answer around the tunnel: {error}"))
            }
        }
    }

    /// Where the peer's machine is on the network between, without what is routed into the tunnel.
    async fn outside_addresses(self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> =
            self.report.and_then(|report| report.endpoint).map(|at| at.ip()).into_iter().collect();
        for endpoint in &self.peer.endpoints {
            match endpoint {
                Endpoint::Address(address) => addresses.push(address.ip()),
                Endpoint::Name { host, port } => {
                    let found = timeout(self.patience, lookup_host((host.as_str(), *port))).await;
                    addresses.extend(found.into_iter().flatten().flatten().map(|address| address.ip()));
                }
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses.retain(|address| !self.peer.addresses.contains(address));
        addresses
    }
}

/// Closed again at once: an app sees a connection without a request.
async fn connect(address: SocketAddr, patience: Duration) -> io::Result<()> {
    match timeout(patience, TcpStream::connect(address)).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", patience.as_secs()))),
    }
}

fn interface_name(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}

/// By the words of `underpass status`.
fn remedy_of(reason: &str) -> &'static str {
    match reason {
        "no-handshake" => {
            "is its daemon running, is its UDP port open on the way, do both sides have each other's public key?"
        }
        "key-refused" => "each side needs the other's public key: compare `underpass pubkey` with the configurations",
        "unanswered" => "the network between, or the machine, has failed: try to reach its endpoint",
        "goodbye" => "its daemon was stopped: start it again",
        "loss" => "the network between loses packets: look at it and at the interfaces' counters",
        "mtu" => "the path carries less than the interface's MTU: see path MTU in docs/operations.md",
        _ => "see docs/operations.md for this reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_the_worst_outcome() {
        let findings = |outcomes: &[Outcome]| -> Vec<Finding> {
            outcomes.iter().map(|outcome| Finding::new(Check::Link, *outcome, "")).collect()
        };
        assert_eq!(verdict(&findings(&[])), Outcome::Ok);
        assert_eq!(verdict(&findings(&[Outcome::Skipped, Outcome::Ok])), Outcome::Skipped);
        assert_eq!(verdict(&findings(&[Outcome::Warning, Outcome::Skipped])), Outcome::Warning);
        assert_eq!(verdict(&findings(&[Outcome::Failed, Outcome::Warning])), Outcome::Failed);
    }

    #[tokio::test]
    async fn a_connection_is_made_refused_or_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Duration::from_secs(5);
        connect(address, patience).await.unwrap();
        drop(listener);
        assert_eq!(connect(address, patience).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let given_up = connect(address, Duration::ZERO).await;
        assert!(given_up.is_err());
    }
}
