//! Cryptokey routing: which peer a destination goes to, and which peer a source may come from. Longest prefix wins.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::peer_table::PeerId;

/// Prefixes of all peers, in one trie for each IP version.
#[derive(Debug, Clone, Default)]
pub struct AllowedIps {
    v4: PrefixMap<Ipv4Net, PeerId>,
    v6: PrefixMap<Ipv6Net, PeerId>,
}

impl AllowedIps {
    /// Gives `prefix` to `peer`, taking it from whoever had exactly that prefix. Host bits are ignored.
    pub fn insert(&mut self, prefix: IpNet, peer: PeerId) {
        match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix.trunc(), peer),
            IpNet::V6(prefix) => self.v6.insert(prefix.trunc(), peer),
        };
    }

    /// Takes all prefixes from `peer`.
    pub fn remove_peer(&mut self, peer: PeerId) {
        self.v4.retain(|_, owner| *owner != peer);
        self.v6.retain(|_, owner| *owner != peer);
    }

    /// The peer with the longest prefix that contains `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into()).map(|(_, peer)| *peer),
            IpAddr::V6(address) => self.v6.get_lpm(&address.into()).map(|(_, peer)| *peer),
        }
    }

    /// The prefixes of `peer`, IPv4 first, in order.
    pub fn prefixes_of(&self, peer: PeerId) -> Vec<IpNet> {
        let v4 = self.v4.iter().filter(|(_, owner)| **owner == peer).map(|(prefix, _)| IpNet::V4(prefix));
        let v6 = self.v6.iter().filter(|(_, owner)| **owner == peer).map(|(prefix, _)| IpNet::V6(prefix));
        v4.chain(v6).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_inside_another_peers_narrower_prefix_belongs_to_that_peer() {
        let [wide, narrow] = [1, 2].map(PeerId::from_index);
        let mut allowed = AllowedIps::default();
        allowed.insert(net("10.0.0.0/8"), wide);
        allowed.insert(net("10.1.2.0/24"), narrow);
        assert_eq!(allowed.lookup(ip("10.1.2.3")), Some(narrow));
        assert_eq!(allowed.lookup(ip("10.1.3.3")), Some(wide));
        allowed.remove_peer(narrow);
        assert_eq!(allowed.lookup(ip("10.1.2.3")), Some(wide));
        assert_eq!(allowed.lookup(ip("11.0.0.1")), None);
    }

    #[test]
    fn a_default_route_of_one_version_says_nothing_of_the_other() {
        let mut allowed = AllowedIps::default();
        allowed.insert(net("0.0.0.0/0"), PeerId::from_index(0));
        assert_eq!(allowed.lookup(ip("::1")), None);
        assert_eq!(allowed.lookup(ip("255.255.255.255")), Some(PeerId::from_index(0)));
    }

    #[test]
    fn the_same_prefix_moves_to_the_last_peer_that_asks_for_it() {
        let mut allowed = AllowedIps::default();
        for peer in [1, 2] {
            allowed.insert(net("fd00::5/64"), PeerId::from_index(peer));
        }
        assert_eq!(allowed.lookup(ip("fd00::9")), Some(PeerId::from_index(2)));
        assert_eq!(allowed.prefixes_of(PeerId::from_index(1)), []);
        assert_eq!(allowed.prefixes_of(PeerId::from_index(2)), [net("fd00::/64")]);
    }

    // Addresses of few bits, so that prefixes overlap a lot.
    prop_compose! {
        fn prefix()(v6: bool, bits: u32, length in 0u8..=32) -> IpNet {
            IpNet::new(address(v6, bits), length).unwrap().trunc()
        }
    }

    fn address(v6: bool, bits: u32) -> IpAddr {
        let bits = bits & 0x0f0f_0003;
        if v6 { Ipv6Addr::from(u128::from(bits) << 96).into() } else { Ipv4Addr::from(bits).into() }
    }

    proptest! {
        #[test]
        fn agrees_with_brute_force(
            prefixes in prop::collection::vec((prefix(), (0u32..8).prop_map(PeerId::from_index)), 0..60),
            removed in prop::option::of((0u32..8).prop_map(PeerId::from_index)),
            addresses in prop::collection::vec((any::<bool>(), any::<u32>()), 1..40),
        ) {
            let mut allowed = AllowedIps::default();
            let mut slow = BTreeMap::new();
            for (prefix, peer) in prefixes {
                slow.insert(prefix, peer);
                allowed.insert(prefix, peer);
            }
            if let Some(removed) = removed {
                slow.retain(|_, peer| *peer != removed);
                allowed.remove_peer(removed);
            }
            for (v6, bits) in addresses {
                let address = address(v6, bits);
                let expected = slow.iter().filter(|(prefix, _)| prefix.contains(&address))
                    .max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, peer)| *peer);
                prop_assert_eq!(allowed.lookup(address), expected);
            }
            for peer in (0..8).map(PeerId::from_index) {
                let expected: Vec<_> = slow.iter().filter(|(_, owner)| **owner == peer).map(|(prefix, _)| *prefix).collect();
                prop_assert_eq!(allowed.prefixes_of(peer), expected);
            }
        }
    }
}
