//! The way to the peer outside the tunnel: datagrams to each of its endpoints have one, and the endpoint in use is one that
//! the configuration names.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use super::way::{Way, Ways};
use super::{Check, Finding, Outcome, carries_traffic};
use crate::config::{Config, Endpoint, Peer};
use crate::control::api::{EndpointSource, PeerReport};

/// A configured endpoint, with the addresses that it has and where datagrams to them go. A name without any was not found.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) addresses: Vec<(SocketAddr, Way)>,
}

/// Finds out all that is judged here, by the daemon's own firewall mark.
pub(super) async fn places<'a>(config: &Config, peer: &'a Peer, ways: &Ways, patience: Duration) -> Vec<Place<'a>> {
    let mut places = Vec::with_capacity(peer.endpoints.len());
    for endpoint in &peer.endpoints {
        let mut addresses = Vec::new();
        for address in resolve(endpoint, patience).await {
            addresses.push((address, ways.to_endpoint(address.ip(), config.interface.fwmark).await));
        }
        places.push(Place { endpoint, addresses });
    }
    places
}

async fn resolve(endpoint: &Endpoint, patience: Duration) -> Vec<SocketAddr> {
    match endpoint {
        Endpoint::Address(address) => vec![*address],
        Endpoint::Name { host, port } => {
            let found = timeout(patience, lookup_host((host.as_str(), *port))).await;
            found.into_iter().flatten().flatten().collect()
        }
    }
}

/// Findings about each place that is wrong, else about the one in use.
pub(super) fn judge(peer: &Peer, report: Option<&PeerReport>, places: &[Place<'_>]) -> Vec<Finding> {
    let is_connected = report.is_some_and(carries_traffic);
    let mut findings: Vec<Finding> = places.iter().flat_map(|place| trouble(place, is_connected)).collect();
    if findings.is_empty() {
        findings.extend(report.and_then(|report| judge_use(peer, report, places)));
    }
    findings
}

/// A link that works does so by another endpoint.
fn trouble(place: &Place<'_>, is_connected: bool) -> Vec<Finding> {
    let outcome = if is_connected { Outcome::Warning } else { Outcome::Failed };
    let finding = |(what, remedy): (String, String)| Finding {
        remedy: Some(remedy),
        ..Finding::new(Check::Endpoint, outcome, what)
    };
    if place.addresses.is_empty() {
        return vec![finding((
            format!("no address is found for {}", place.endpoint),
            "correct the name, or see by `getent ahosts NAME` what /etc/hosts and /etc/resolv.conf make of it"
                .to_owned(),
        ))];
    }
    place.addresses.iter().filter_map(|(address, way)| trouble_of_way(*address, way)).map(finding).collect()
}

fn trouble_of_way(address: SocketAddr, way: &Way) -> Option<(String, String)> {
    let ip = address.ip();
    match way {
        Way::Elsewhere(_) | Way::Unknown => None,
        Way::Tunnel => Some((
            format!("a routing loop: the route to the endpoint {address} leads into the tunnel itself"),
            format!(
                "take {ip} out of allowed_ips, or set interface.fwmark and route by it (docs/operations.md, All traffic)"
            ),
        )),
        Way::Filtered(interface) => Some((
            format!(
                "the reverse-path filter of {interface} drops what comes from the endpoint {address}: without the mark, the \
                 route there leads into the tunnel"
            ),
            "sysctl -w net.ipv4.conf.all.src_valid_mark=1, and a file in /etc/sysctl.d with it".to_owned(),
        )),
        Way::Local => Some((
            format!("the endpoint {address} is this machine itself"),
            "write the address that the untrusted network knows the peer by".to_owned(),
        )),
        Way::Refused => Some((
            format!("a route refuses datagrams to the endpoint {address}"),
            format!("`ip route get {ip}` shows it: remove it"),
        )),
        Way::Nowhere => Some((
            format!("no route leads to the endpoint {address}"),
            format!("correct the endpoint, or add the route that `ip route get {ip}` misses"),
        )),
    }
}

/// The endpoint of a link that carries traffic.
fn judge_use(peer: &Peer, report: &PeerReport, places: &[Place<'_>]) -> Option<Finding> {
    let in_use = report.endpoint.filter(|_| carries_traffic(report))?;
    let is_configured = |place: &Place<'_>| place.addresses.iter().any(|(address, _)| *address == in_use);
    if places.is_empty() {
        let how = match report.endpoint_source {
            Some(EndpointSource::Remembered) => {
                "remembered from before the daemon's start: after the next boot the peer has to connect"
            }
            _ => "the peer has connected from there",
        };
        return Some(Finding::ok(Check::Endpoint, format!("{in_use} is in use, none is configured: {how}")));
    }
    if places.iter().any(is_configured) {
        return Some(Finding::ok(Check::Endpoint, format!("datagrams go to {in_use}, as configured")));
    }
    let configured: Vec<String> = peer.endpoints.iter().map(ToString::to_string).collect();
    let configured = configured.join(", ");
    if report.endpoint_source == Some(EndpointSource::Configured) {
        let what = format!("{in_use} is in use by another configuration than this file, which has {configured}");
        return Some(Finding::warning(Check::Endpoint, what, "underpass reload"));
    }
    Some(Finding::warning(
        Check::Endpoint,
        format!(
            "{in_use} is in use, where the peer has connected from, and not the configuration's {configured}: after the \
             next boot datagrams go there"
        ),
        format!("if the peer is not at {configured}, write {in_use}; else see why it does not answer there"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::LinkState;
    use crate::control::verify::tests::{peer, report};

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The finding about a peer with one endpoint, to which datagrams go by this way.
    fn outcome(state: LinkState, in_use: Option<&str>, way: Way) -> (Outcome, String) {
        outcome_of(state, in_use, way, EndpointSource::Roamed)
    }

    fn outcome_of(state: LinkState, in_use: Option<&str>, way: Way, source: EndpointSource) -> (Outcome, String) {
        let peer = peer("endpoint = \"192.0.2.10\"");
        let place = Place { endpoint: &peer.endpoints[0], addresses: vec![(address("192.0.2.10:51900"), way)] };
        let report = PeerReport { endpoint: in_use.map(address), endpoint_source: Some(source), ..report(state, None) };
        let findings = judge(&peer, Some(&report), &[place]);
        assert!(findings.len() <= 1, "{findings:?}");
        findings.first().map_or((Outcome::Skipped, String::new()), |found| (found.outcome, found.what.clone()))
    }

    #[test]
    fn a_routing_loop_is_called_one() {
        let (outcome, what) = outcome(LinkState::Down, Some("192.0.2.10:51900"), Way::Tunnel);
        assert_eq!(outcome, Outcome::Failed);
        assert!(what.starts_with("a routing loop"), "{what}");
    }

    #[test]
    fn trouble_at_an_endpoint_fails_a_link_that_is_down_only() {
        for way in [Way::Tunnel, Way::Filtered("eth0".into()), Way::Local, Way::Refused, Way::Nowhere] {
            assert_eq!(outcome(LinkState::Down, None, way.clone()).0, Outcome::Failed);
            assert_eq!(outcome(LinkState::Up, Some("192.0.2.99:51900"), way).0, Outcome::Warning);
        }
        assert_eq!(outcome(LinkState::Down, None, Way::Elsewhere("eth0".into())).0, Outcome::Skipped);
    }

    #[test]
    fn an_endpoint_in_use_that_the_configuration_does_not_name_is_a_warning() {
        let way = || Way::Elsewhere("eth0".into());
        assert_eq!(outcome(LinkState::Up, Some("192.0.2.10:51900"), way()).0, Outcome::Ok);
        let old = outcome_of(LinkState::Up, Some("192.0.2.99:51900"), way(), EndpointSource::Configured);
        assert!(old.0 == Outcome::Warning && old.1.contains("another configuration"), "{old:?}");
        let (outcome, what) = outcome(LinkState::Up, Some("192.0.2.99:40000"), way());
        assert_eq!(outcome, Outcome::Warning);
        assert!(
            what.starts_with("192.0.2.99:40000 is in use") && what.contains("configuration's 192.0.2.10:51900"),
            "{what}"
        );
    }

    #[test]
    fn a_name_without_an_address_is_named() {
        let peer = peer("endpoint = \"app1.example\"");
        let place = Place { endpoint: &peer.endpoints[0], addresses: vec![] };
        let findings = judge(&peer, Some(&report(LinkState::Down, Some("no-handshake"))), &[place]);
        assert_eq!(findings[0].outcome, Outcome::Failed);
        assert!(findings[0].what.contains("app1.example"), "{findings:?}");
    }
}
