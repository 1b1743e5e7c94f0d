//! Checks of an installation that runs, from this side: what an operator would try by hand after setting it up.
//!
//! Owns the answers and their order: a cause stands before what follows from it. Facts are gathered first, then judged by
//! functions without I/O, one file for each subject. Nothing is changed; connections are opened and closed.

mod app;
mod endpoint;
mod guard;
mod link;
mod machine;
mod route;
mod way;

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use ipnet::IpNet;
use serde::Serialize;

use self::endpoint::Place;
use self::way::Ways;
use super::api::{LinkState, PeerReport, StatusReport};
use super::client::ClientError;
use crate::config::{Config, Peer, Role};

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
    /// Tunnel addresses are refused outside of the tunnel.
    Guard,
    /// Datagrams to the peer have a way out, to where the configuration says that it is.
    Endpoint,
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

/// A port to try: of one peer, of all, or of an address that is reached through one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The peer's name.
    pub peer: Option<String>,
    /// The app's own address, if it is not the peer's: of a network behind a gateway, or one that it had before.
    pub address: Option<IpAddr>,
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
    let mut findings = vec![machine::daemon(config, &status), machine::clock()];
    let Ok(status) = status else { return findings };
    findings.push(machine::configuration(config, &status));
    findings.extend(guard::check(config).await);
    let ways = Ways::open(&config.interface.name);
    let peers = config.peers.iter().map(|peer| {
        let report = status.peers.iter().find(|report| report.name == peer.name);
        let verification = PeerVerification { config, peer, report, ways: &ways, patience };
        let ports: Vec<&Port> = ports.iter().filter(|port| port.concerns(config, peer)).collect();
        async move { verification.run(&ports).await }
    });
    findings.extend(join_all(peers).await.into_iter().flatten());
    findings
}

/// The worst of all outcomes.
pub fn verdict(findings: &[Finding]) -> Outcome {
    findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Ok)
}

impl Port {
    /// Set if no peer is named, or one of that name or with that address is configured.
    pub fn is_known(&self, config: &Config) -> bool {
        config.peers.iter().any(|peer| self.concerns(config, peer))
    }

    /// An address is reached through the peer with the longest prefix that contains it.
    fn concerns(&self, config: &Config, peer: &Peer) -> bool {
        let is_named = self.peer.as_ref().is_none_or(|name| *name == peer.name);
        let covering = |peer: &Peer, address: IpAddr| {
            peer.allowed_ips.iter().filter(|prefix| prefix.contains(&address)).map(IpNet::prefix_len).max()
        };
        is_named
            && self.address.is_none_or(|address| {
                let longest = config.peers.iter().filter_map(|peer| covering(peer, address)).max();
                longest.is_some() && covering(peer, address) == longest
            })
    }
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

/// The checks of one peer.
#[derive(Clone, Copy)]
struct PeerVerification<'a> {
    config: &'a Config,
    peer: &'a Peer,
    report: Option<&'a PeerReport>,
    ways: &'a Ways,
    patience: Duration,
}

impl PeerVerification<'_> {
    async fn run(self, ports: &[&Port]) -> Vec<Finding> {
        let Self { config, peer, report, ways, patience } = self;
        let places = endpoint::places(config, peer, ways, patience).await;
        let mut findings = endpoint::judge(peer, report, &places);
        let has_no_way = findings.iter().any(|finding| finding.outcome == Outcome::Failed);
        findings.extend(route::check(config, peer, ways).await);
        findings.extend(report.and_then(|report| link::judge_path_mtu(report, config.interface.mtu.first())));
        findings.push(link::judge(peer, report, has_no_way));
        if config.role == Role::Proxy {
            let outside = outside_addresses(report, &places);
            findings.extend(app::check(peer, ports, &outside, ways, patience).await);
        }
        findings.iter_mut().for_each(|finding| finding.peer = Some(peer.name.clone()));
        findings
    }
}

/// Addresses of the peer's machine on the network between, without its tunnel addresses.
fn outside_addresses(report: Option<&PeerReport>, places: &[Place<'_>]) -> Vec<IpAddr> {
    let in_use = report.and_then(|report| report.endpoint);
    let configured = places.iter().flat_map(|place| place.addresses.iter().map(|(address, _)| *address));
    let mut addresses: Vec<IpAddr> = in_use.into_iter().chain(configured).map(|address| address.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Set if the link carries packets, be it well or not.
fn carries_traffic(report: &PeerReport) -> bool {
    matches!(report.state, LinkState::Up | LinkState::Degraded | LinkState::Draining)
}

#[cfg(test)]
pub(in crate::control) mod tests {
    use std::path::Path;

    use zeroize::Zeroizing;

    use super::*;
    use crate::config::{KeyFileError, KeyFiles};
    use crate::keys::PrivateKey;

    /// `N.key` holds the private key of 32 bytes N.
    struct Imagined;

    impl KeyFiles for Imagined {
        fn read(&mut self, path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
            let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            Ok(key(number.ok_or(KeyFileError::NotFound)?).to_base64())
        }
    }

    fn key(number: u8) -> PrivateKey {
        PrivateKey::from_bytes([number; 32]).unwrap()
    }

    /// The proxy side, with a backend for each of `peers`: further lines of its table.
    fn config(peers: &[&str]) -> Config {
        let tables = peers.iter().zip(11..).map(|(more, number)| {
            let public_key = key(number).public_key();
            format!(
                "[[backend]]\nname = \"app{}\"\npublic_key = \"{public_key}\"\naddresses = [\"10.77.0.{number}\"]\n{more}\n",
                number - 10
            )
        });
        let tables: String = tables.collect();
        let top = "role = \"proxy\"\n[interface]\naddresses = [\"10.77.0.1/24\"]\nprivate_key_file = \"1.key\"\n";
        Config::parse(&format!("{top}{tables}"), Path::new("/etc/underpass/proxy.toml"), &mut Imagined).unwrap()
    }

    /// The peer `app1`, with further lines of its table.
    pub(in crate::control) fn peer(more: &str) -> Peer {
        config(&[more]).peers.remove(0)
    }

    /// Its link.
    pub(in crate::control) fn report(state: LinkState, reason: Option<&str>) -> PeerReport {
        let status = crate::control::api::tests::status();
        PeerReport { state, reason: reason.map(str::to_owned), ..status.peers[0].clone() }
    }

    #[test]
    fn a_port_concerns_the_peer_that_is_named_or_has_the_address_or_every_one() {
        let config = config(&["allowed_ips = [\"10.30.0.0/16\"]", "allowed_ips = [\"10.30.5.0/24\"]"]);
        let concerned = |peer: Option<&str>, address: Option<&str>| -> Vec<&str> {
            let (peer, address) = (peer.map(str::to_owned), address.map(|address| address.parse().unwrap()));
            let port = Port { peer, address, number: 80 };
            let peers: Vec<_> = config.peers.iter().filter(|peer| port.concerns(&config, peer)).collect();
            assert_eq!(port.is_known(&config), !peers.is_empty());
            peers.into_iter().map(|peer| peer.name.as_str()).collect()
        };
        assert_eq!(concerned(None, None), ["app1", "app2"]);
        assert_eq!(concerned(Some("app2"), None), ["app2"]);
        assert_eq!(concerned(None, Some("10.30.5.9")), ["app2"]);
        assert_eq!(concerned(None, Some("10.30.4.9")), ["app1"]);
        assert_eq!(concerned(None, Some("10.99.0.1")), [""; 0]);
        assert_eq!(concerned(Some("nobody"), None), [""; 0]);
    }

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
}
