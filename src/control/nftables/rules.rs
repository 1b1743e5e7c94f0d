//! The rules of one interface's table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Packets that the table of one interface is to refuse, and those of them that it is to let pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRules {
    /// The tunnel's interface, by which all of this may come and go.
    pub interface: String,
    /// Addresses that this machine takes packets for by the tunnel only.
    pub addresses: Vec<IpAddr>,
    /// Networks behind the tunnel.
    pub networks: Vec<IpNet>,
    /// UDP ports of the daemon's own datagrams, which come in and leave by other interfaces.
    pub ports: Vec<u16>,
    /// Mark of the daemon's own datagrams.
    pub fwmark: Option<u32>,
}

impl GuardRules {
    /// Union of both: for the time between two configurations.
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.addresses.extend(other.addresses.iter().filter(|address| !self.addresses.contains(address)));
        both.networks.extend(other.networks.iter().filter(|network| !self.networks.contains(network)));
        both.ports.extend(other.ports.iter().filter(|port| !self.ports.contains(port)));
        both.fwmark = other.fwmark;
        both
    }

    /// Set if both concern the same packets, so that two interfaces can't have them both.
    pub fn overlaps(&self, addresses: &[IpAddr], networks: &[IpNet]) -> bool {
        let shares = |network: &IpNet| {
            let same = |other: &IpNet| other.contains(network) || network.contains(other);
            networks.iter().any(same)
        };
        self.addresses.iter().any(|address| addresses.contains(address)) || self.networks.iter().any(shares)
    }

    /// Ranges of 32 bits, merged and in order, of the networks of IPv4.
    pub(super) fn ranges_v4(&self) -> Vec<Range> {
        let networks = self.networks.iter().filter_map(|network| match network {
            IpNet::V4(network) => Some(*network),
            IpNet::V6(_) => None,
        });
        let networks = Ipv4Net::aggregate(&networks.map(|network| network.trunc()).collect());
        ranges(networks.iter().map(|network| (u32::from(network.network()), u32::from(network.broadcast()))), u32::MAX)
            .map(|(first, after)| Range {
                first: Ipv4Addr::from(first).octets().to_vec(),
                after: after.map(|after| Ipv4Addr::from(after).octets().to_vec()),
            })
            .collect()
    }

    /// The same of IPv6.
    pub(super) fn ranges_v6(&self) -> Vec<Range> {
        let networks = self.networks.iter().filter_map(|network| match network {
            IpNet::V6(network) => Some(*network),
            IpNet::V4(_) => None,
        });
        let networks = Ipv6Net::aggregate(&networks.map(|network| network.trunc()).collect());
        let bounds = networks.iter().map(|network| (u128::from(network.network()), u128::from(network.broadcast())));
        ranges(bounds, u128::MAX)
            .map(|(first, after)| Range {
                first: Ipv6Addr::from(first).octets().to_vec(),
                after: after.map(|after| Ipv6Addr::from(after).octets().to_vec()),
            })
            .collect()
    }
}

/// A range of addresses, as the kernel's sets have it: from one on, up to before another, which the last of all has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: Vec<u8>,
    pub(super) after: Option<Vec<u8>>,
}

fn ranges<N>(bounds: impl Iterator<Item = (N, N)>, greatest: N) -> impl Iterator<Item = (N, Option<N>)>
where
    N: Copy + Ord + From<u8> + std::ops::Add<Output = N>,
{
    let mut merged: Vec<(N, N)> = Vec::new();
    for (first, last) in bounds {
        match merged.last_mut() {
            Some((_, end)) if *end < greatest && *end + N::from(1) >= first => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(move |(first, last)| (first, (last < greatest).then(|| last + N::from(1))))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn rules(networks: &[&str]) -> GuardRules {
        GuardRules {
            interface: "underpass0".into(),
            addresses: vec!["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()],
            networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
            ports: vec![51900],
            fwmark: None,
        }
    }

    #[test]
    fn networks_become_ranges_that_neither_overlap_nor_touch() {
        let rules = rules(&["10.78.0.0/24", "10.77.0.0/24", "10.77.1.0/24", "10.77.2.0/24", "10.77.0.128/25"]);
        let range = |first: [u8; 4], after: [u8; 4]| Range { first: first.to_vec(), after: Some(after.to_vec()) };
        assert_eq!(rules.ranges_v4(), [range([10, 77, 0, 0], [10, 77, 3, 0]), range([10, 78, 0, 0], [10, 78, 1, 0])]);
        assert_eq!(rules.ranges_v6(), []);
    }

    #[test]
    fn the_last_range_has_no_end() {
        let rules = rules(&["255.255.0.0/16", "ff00::/8"]);
        assert_eq!(rules.ranges_v4(), [Range { first: vec![255, 255, 0, 0], after: None }]);
        assert_eq!(rules.ranges_v6()[0].after, None);
    }

    #[test]
    fn between_two_configurations_both_are_refused() {
        let both = rules(&["10.77.0.0/24"]).and(&GuardRules { ports: vec![7], ..rules(&["10.78.0.0/24"]) });
        assert_eq!(both.networks, rules(&["10.77.0.0/24", "10.78.0.0/24"]).networks);
        assert_eq!((both.addresses.len(), both.ports), (2, vec![51900, 7]));
    }
}
