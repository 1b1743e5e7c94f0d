//! Packets for what lies behind a peer go into the tunnel: its addresses, and the networks of a gateway.

use std::net::IpAddr;

use futures_util::future::join_all;
use ipnet::IpNet;

use super::way::{Way, Ways};
use super::{Check, Finding, Outcome};
use crate::config::{Config, Peer};

/// One finding for each prefix that is routed to the peer. Default routes are the operator's rules to lead.
pub(super) async fn check(config: &Config, peer: &Peer, ways: &Ways) -> Vec<Finding> {
    let interface = config.interface.name.as_str();
    let prefixes = peer.allowed_ips.iter().filter(|prefix| prefix.prefix_len() > 0);
    let findings = prefixes.map(|prefix| async move {
        let found = join_all(samples(*prefix).into_iter().map(|address| ways.to(address, None))).await;
        judge(*prefix, interface, &found)
    });
    join_all(findings).await
}

/// Addresses that stand for a prefix: of a network the first and the last host's, since one may be this machine's own.
fn samples(prefix: IpNet) -> Vec<IpAddr> {
    let mut hosts = match prefix {
        IpNet::V4(net) => vec![net.network().into(), net.broadcast().into()],
        IpNet::V6(net) => vec![net.network().into(), net.broadcast().into()],
    };
    if prefix.max_prefix_len() - prefix.prefix_len() > 1 {
        hosts = vec![step(hosts[0], 1), step(hosts[1], -1)];
    }
    hosts.dedup();
    hosts
}

/// Within a network of four addresses or more, neither end is left.
fn step(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(address) => u32::from(address).wrapping_add_signed(by.into()).to_be_bytes().into(),
        IpAddr::V6(address) => u128::from(address).wrapping_add_signed(by.into()).to_be_bytes().into(),
    }
}

/// `ways` are those of a prefix's samples: one that goes into the tunnel is enough of a network.
fn judge(prefix: IpNet, interface: &str, ways: &[Way]) -> Finding {
    let is_host = prefix.prefix_len() == prefix.max_prefix_len();
    let name = if is_host { prefix.addr().to_string() } else { prefix.to_string() };
    let worst = ways.iter().find(|way| **way != Way::Tunnel).filter(|_| !ways.contains(&Way::Tunnel));
    let shown = format!("`ip route get {}` shows", prefix.addr());
    match worst {
        None => Finding::ok(Check::Route, format!("{name} leads into {interface}")),
        Some(Way::Elsewhere(other) | Way::Filtered(other)) => Finding::failed(
            Check::Route,
            format!("{name} leads to {other}, not into {interface}: traffic for it is not protected"),
            format!("{shown} which route is preferred to the tunnel's: remove it, or that rule"),
        ),
        Some(Way::Local) => Finding::failed(
            Check::Route,
            format!("{name} is an address of this machine, so packets for the peer stay here"),
            "take it from this machine (ip address del), or give the peer another".to_owned(),
        ),
        Some(Way::Refused) => Finding::failed(
            Check::Route,
            format!("{name} is refused here: nothing reaches it, and nothing goes around the tunnel"),
            format!("bring {interface} up (ip link set {interface} up) and `underpass restart`; {shown} what refuses"),
        ),
        Some(Way::Nowhere) => Finding::failed(
            Check::Route,
            format!("no route leads to {name}: nothing reaches it, and nothing goes around the tunnel"),
            format!("bring {interface} up (ip link set {interface} up) and `underpass restart`"),
        ),
        Some(Way::Tunnel | Way::Unknown) => {
            Finding::new(Check::Route, Outcome::Skipped, format!("the kernel does not say where {name} leads"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(prefix: &str, ways: &[Way]) -> (Outcome, String) {
        let finding = judge(prefix.parse().unwrap(), "underpass0", ways);
        (finding.outcome, finding.what)
    }

    fn sampled(prefix: &str) -> Vec<String> {
        samples(prefix.parse().unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_refused_route_is_no_leak() {
        for way in [Way::Refused, Way::Nowhere] {
            let (outcome, what) = found("10.77.0.11/32", &[way]);
            assert_eq!(outcome, Outcome::Failed);
            assert!(!what.contains("not protected") && what.contains("nothing goes around the tunnel"), "{what}");
        }
        let (outcome, what) = found("10.77.0.11/32", &[Way::Elsewhere("eth0".into())]);
        assert!(outcome == Outcome::Failed && what.contains("not protected"), "{what}");
    }

    #[test]
    fn a_network_is_led_by_any_of_its_hosts() {
        let elsewhere = || Way::Elsewhere("eth0".into());
        assert_eq!(found("10.30.0.0/24", &[Way::Local, Way::Tunnel]).0, Outcome::Ok);
        assert_eq!(found("10.30.0.0/24", &[elsewhere(), elsewhere()]).0, Outcome::Failed);
    }

    #[test]
    fn hosts_stand_for_their_network() {
        assert_eq!(sampled("10.77.0.11/32"), ["10.77.0.11"]);
        assert_eq!(sampled("10.30.0.0/31"), ["10.30.0.0", "10.30.0.1"]);
        assert_eq!(sampled("10.30.0.0/24"), ["10.30.0.1", "10.30.0.254"]);
        assert_eq!(sampled("fd30::/126"), ["fd30::1", "fd30::2"]);
    }
}
