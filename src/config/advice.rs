//! What is allowed but probably not meant.
//!
//! Owns hints about a valid configuration. It refuses nothing.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Config, Endpoint, Health, Interface, Peer, Role};
use crate::proto::policy::Service;

impl Config {
    /// One sentence for each thing that an operator should look at again.
    pub fn advice(&self) -> Vec<String> {
        let interface = &self.interface;
        let loops = self.peers.iter().flat_map(|peer| endpoints_in_the_tunnel(interface, peer));
        let families = self.peers.iter().filter_map(|peer| address_family_without_source(interface, peer));
        loops.chain(families).chain(open_health(&self.health)).chain(exposed(self)).collect()
    }
}

/// Sealed datagrams to such an endpoint would be routed into the tunnel again.
fn endpoints_in_the_tunnel(interface: &Interface, peer: &Peer) -> Vec<String> {
    let warning = |endpoint| endpoint_in_the_tunnel(interface, peer, endpoint);
    peer.endpoints.iter().filter_map(warning).collect()
}

fn endpoint_in_the_tunnel(interface: &Interface, peer: &Peer, endpoint: &Endpoint) -> Option<String> {
    let Endpoint::Address(address) = endpoint else { return None };
    let prefix = peer.allowed_ips.iter().find(|prefix| prefix.contains(&address.ip()))?;
    if interface.fwmark.is_some() {
        return None;
    }
    Some(format!(
        "{}: its endpoint {} lies in {prefix}, which is routed into the tunnel; unless a more specific route leads to it \
         outside, set interface.fwmark and a routing rule for that mark",
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
        services if services.contains(&Service::Any) => Some(format!(
            "{}: everything is exposed to it; name the ports that it has to reach, such as expose = [\"tcp/8080\"]",
            peer.name
        )),
        _ => None,
    })
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

    fn advice(text: &str) -> Vec<String> {
        parse(text).unwrap().advice()
    }

    #[test]
    fn a_common_configuration_needs_none() {
        assert!(advice(&minimal()).is_empty());
    }

    #[test]
    fn an_endpoint_inside_the_tunnel_is_pointed_out_unless_marked() {
        let text = format!("{}endpoint = \"192.0.2.1\"\nallowed_ips = [\"0.0.0.0/0\"]\n", minimal());
        assert!(advice(&text)[0].starts_with("app1: its endpoint 192.0.2.1 lies in 0.0.0.0/0"));
        assert!(advice(&text.replace("[[backend]]", "fwmark = 1\n[[backend]]")).is_empty());
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
        assert!(advice(&text("[\"any\"]"))[0].starts_with("app1: everything is exposed to it"));
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
