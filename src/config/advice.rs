//! What is allowed but probably not meant.
//!
//! Owns hints about a valid configuration. It refuses nothing.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Config, Endpoint, Health, Interface, Peer, Role};
use crate::proto::policy::{Destination, Exposure, Service};

impl Config {
    /// One sentence for each thing that an operator should look at again.
    pub fn advice(&self) -> Vec<String> {
        let interface = &self.interface;
        let loops = self.peers.iter().flat_map(|peer| endpoints_behind_others(self, peer));
        let families = self.peers.iter().filter_map(|peer| address_family_without_source(interface, peer));
        loops.chain(families).chain(open_health(&self.health)).chain(exposed(self)).collect()
    }
}

/// Sealed datagrams to such an endpoint would be routed into the tunnel again, unless another route is more specific. What the
/// peer itself has is refused.
fn endpoints_behind_others(config: &Config, peer: &Peer) -> Vec<String> {
    let behind = |endpoint| endpoint_behind_another(config, peer, endpoint);
    peer.endpoints.iter().filter_map(behind).collect()
}

fn endpoint_behind_another(config: &Config, peer: &Peer, endpoint: &Endpoint) -> Option<String> {
    let Endpoint::Address(address) = endpoint else { return None };
    let has_it = |prefix: &&IpNet| prefix.prefix_len() > 0 && prefix.contains(&address.ip());
    let of = |other: &Peer| Some((other.name.clone(), *other.allowed_ips.iter().find(has_it)?));
    let (other, prefix) = config.peers.iter().filter(|other| other.name != peer.name).find_map(of)?;
    if config.interface.fwmark.is_some() {
        return None;
    }
    Some(format!(
        "{}: its endpoint {} lies in {prefix} of {other}, which is routed into the tunnel; unless a more specific route leads \
         to it outside, take it out of there, or set interface.fwmark and a routing rule for that mark",
        peer.name,
        address.ip()
    ))
}

/// Nobody is asked who he is there.
fn open_health(health: &Health) -> impl Iterator<Item = String> {
    let keys = [("agent_check", &health.agent_check), ("http", &health.http)];
    keys.into_iter().flat_map(|(key, addresses)| {
        addresses.iter().filter(|address| !address.ip().is_loopback()).map(move |address| {
            format!(
                "health.{key}: {address} is not a loopback address: whoever reaches it is told the names and states of all \
                 links; let only load balancers and monitors reach it"
            )
        })
    })
}

/// What a peer that was broken into might use, or a load balancer misses.
fn exposed(config: &Config) -> impl Iterator<Item = String> {
    let is_backend = config.role == Role::Backend;
    config.peers.iter().filter_map(move |peer| match &peer.expose[..] {
        [] if is_backend => {
            Some(format!("{}: nothing is exposed to it: it can't reach any app of this machine", peer.name))
        }
        exposures => exposures.iter().find_map(|exposure| everything(peer, exposure)),
    })
}

fn everything(peer: &Peer, exposure: &Exposure) -> Option<String> {
    let (name, any) = (&peer.name, exposure.service == Service::Any);
    match exposure.destination {
        Destination::Own if any => Some(format!(
            "{name}: everything of this machine is exposed to it; name the ports that it has to reach, such as \
             expose = [\"tcp/8080\"]"
        )),
        Destination::Network(network) if network.prefix_len() == 0 => Some(format!(
            "{name}: \"{exposure}\" exposes whatever this machine can reach to it; name the network, such as \
             expose = [\"tcp/10.30.0.0/24:8080\"]"
        )),
        _ => None,
    }
}

fn address_family_without_source(interface: &Interface, peer: &Peer) -> Option<String> {
    let own = |ipv6: bool| interface.addresses.iter().any(|address| address.addr().is_ipv6() == ipv6);
    let missing = |prefix: &&IpNet| !own(prefix.addr().is_ipv6());
    let prefix = peer.allowed_ips.iter().find(missing)?;
    let family = if matches!(prefix.addr(), IpAddr::V6(_)) { "IPv6" } else { "IPv4" };
    Some(format!(
        "{}: it may use {prefix}, but interface.addresses holds no {family} address to reach it from",
        peer.name
    ))
}

#[cfg(test)]
mod tests {
    use super::super::parse::tests::{minimal, parse};
    use crate::keys::PrivateKey;

    fn advice(text: &str) -> Vec<String> {
        parse(text).unwrap().advice()
    }

    #[test]
    fn a_common_configuration_needs_none() {
        assert!(advice(&minimal()).is_empty());
    }

    #[test]
    fn an_endpoint_behind_another_peer_is_pointed_out_unless_marked() {
        let other = PrivateKey::from_bytes([3; 32]).unwrap().public_key();
        let text = format!(
            "{}endpoint = \"192.0.2.1\"\n[[backend]]\nname = \"app2\"\npublic_key = \"{other}\"\nallowed_ips = [\"192.0.2.0/24\"]\n",
            minimal()
        );
        assert!(advice(&text)[0].starts_with("app1: its endpoint 192.0.2.1 lies in 192.0.2.0/24 of app2"));
        assert!(advice(&text.replacen("[[backend]]", "fwmark = 1\n[[backend]]", 1)).is_empty());
        assert!(advice(&text.replace("192.0.2.0/24", "0.0.0.0/0")).is_empty(), "no route is added for this");
    }

    #[test]
    fn health_addresses_that_others_may_reach_are_pointed_out() {
        let health = "[health]\nagent_check = [\"127.0.0.1:1\", \"[::1]:1\"]\nhttp = \"0.0.0.0:2\"\n";
        let advice = advice(&minimal().replace("[[backend]]", &format!("{health}[[backend]]")));
        assert_eq!(advice.len(), 1);
        assert!(advice[0].starts_with("health.http: 0.0.0.0:2 is not a loopback address"));
    }

    #[test]
    fn a_peer_that_reaches_everything_or_nothing_of_a_backend_is_pointed_out() {
        let text = |expose| format!("{}expose = {expose}\n", minimal());
        assert!(advice(&text("[\"any\"]"))[0].starts_with("app1: everything of this machine is exposed to it"));
        assert!(advice(&text("[\"tcp/[::]/0:80\"]"))[0].starts_with("app1: \"tcp/[::]/0:80\" exposes whatever"));
        assert!(advice(&text("[\"any/10.30.0.0/24\"]")).is_empty());
        assert!(advice(&text("[]")).is_empty());
        let backend = |expose| {
            let text = text(expose).replace("\"proxy\"", "\"backend\"");
            text.replace("[[backend]]", "expose = [\"tcp/1\"]\n[[proxy]]")
        };
        assert!(advice(&backend("[]"))[0].starts_with("app1: nothing is exposed to it"));
        assert!(advice(&backend("[\"udp/53\"]")).is_empty());
    }

    #[test]
    fn a_peer_of_a_family_that_this_side_lacks_is_pointed_out() {
        let text = format!("{}allowed_ips = [\"fd00::/8\"]\n", minimal());
        assert!(advice(&text)[0].ends_with("interface.addresses holds no IPv6 address to reach it from"));
    }
}
