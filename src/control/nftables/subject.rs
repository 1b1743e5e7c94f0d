//! From a configuration and a machine's addresses to what its table refuses.

use std::net::IpAddr;

use ipnet::IpNet;

use super::machine::MachineAddress;
use super::rules::GuardRules;

/// Addresses and networks to be guarded, as far as the configuration tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardSubject {
    /// The tunnel's interface.
    pub interface: String,
    /// Tunnel addresses of this machine, with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Further prefixes that are routed into the tunnel.
    pub routed: Vec<IpNet>,
    /// Addresses of peers outside of the tunnel, as far as the configuration has them.
    pub endpoints: Vec<IpAddr>,
    /// UDP ports that are listened on.
    pub ports: Vec<u16>,
    /// Mark of the daemon's own datagrams.
    pub fwmark: Option<u32>,
}

/// Rules of a table, and the networks that it leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardPlan {
    /// To be refused.
    pub rules: GuardRules,
    /// Not to be refused.
    pub left_out: Vec<LeftOut>,
}

/// A network behind the tunnel that is also one outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The network.
    pub network: IpNet,
    /// Why its addresses are expected outside.
    pub reason: String,
}

impl GuardSubject {
    /// Rules for a machine whose other interfaces have `others`.
    pub fn plan(&self, others: &[MachineAddress]) -> GuardPlan {
        let (mut networks, mut left_out) = (Vec::new(), Vec::new());
        let own = self.addresses.iter().filter(|address| address.prefix_len() < address.max_prefix_len());
        let own = own.map(|address| (address.trunc(), true));
        for (network, is_own) in own.chain(self.routed.iter().map(|prefix| (prefix.trunc(), false))) {
            match self.reason_to_leave_out(network, is_own, others) {
                Some(reason) => left_out.push(LeftOut { network, reason }),
                None if !networks.contains(&network) => networks.push(network),
                None => {}
            }
        }
        let (interface, ports, fwmark) = (self.interface.clone(), self.ports.clone(), self.fwmark);
        GuardPlan {
            rules: GuardRules { interface, addresses: self.own_addresses(), networks, ports, fwmark },
            left_out,
        }
    }

    /// As before the network is set up, when nobody can tell yet which of the routed prefixes are also outside.
    pub fn plan_early(&self, others: &[MachineAddress]) -> GuardPlan {
        let is_up = |prefix: &IpNet| others.iter().any(|other| other.address.is_ipv4() == prefix.addr().is_ipv4());
        let routed = self.routed.iter().copied().filter(is_up).collect();
        Self { routed, ..self.clone() }.plan(others)
    }

    /// With what the kernel takes for a broadcast, and so for its own.
    fn own_addresses(&self) -> Vec<IpAddr> {
        let mut own: Vec<IpAddr> = self.addresses.iter().map(IpNet::addr).collect();
        for address in &self.addresses {
            let has_broadcast = address.addr().is_ipv4() && address.prefix_len() < 31;
            let broadcasts = has_broadcast.then(|| [address.network(), address.broadcast()]);
            own.extend(broadcasts.into_iter().flatten());
        }
        let mut seen = std::collections::HashSet::new();
        own.retain(|address| seen.insert(*address));
        own
    }

    /// The peers' own datagrams come from their endpoints, and neighbours from where this machine has an address. Into the
    /// tunnel's own network nobody is let by an address that was announced: whoever is on the network can do that.
    fn reason_to_leave_out(&self, network: IpNet, is_own: bool, others: &[MachineAddress]) -> Option<String> {
        if network.prefix_len() == 0 {
            return Some("it is everything".to_owned());
        }
        if let Some(endpoint) = self.endpoints.iter().find(|endpoint| network.contains(*endpoint)) {
            return Some(format!("the endpoint {endpoint} of a peer lies in it"));
        }
        let counts = |other: &&MachineAddress| network.contains(&other.address) && (other.is_permanent || !is_own);
        let other = others.iter().find(counts)?;
        Some(format!("{} has the address {} in it", other.interface, other.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(addresses: &[&str], routed: &[&str], endpoints: &[&str]) -> GuardSubject {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        GuardSubject {
            interface: "underpass0".into(),
            addresses: nets(addresses),
            routed: nets(routed),
            endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
            ports: vec![51900],
            fwmark: None,
        }
    }

    fn other(address: &str, is_permanent: bool) -> MachineAddress {
        MachineAddress { address: address.parse().unwrap(), interface: "eth0".into(), is_permanent }
    }

    fn networks(plan: &GuardPlan) -> Vec<String> {
        plan.rules.networks.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn own_addresses_their_networks_and_routed_prefixes_are_refused_elsewhere() {
        let plan = subject(&["10.77.0.1/24", "10.78.0.1/32", "fd77::1/64"], &["10.99.0.0/16"], &["192.0.2.1"])
            .plan(&[other("192.0.2.10", true), other("fe80::1", true)]);
        assert_eq!(networks(&plan), ["10.77.0.0/24", "fd77::/64", "10.99.0.0/16"]);
        let own = ["10.77.0.1", "10.78.0.1", "fd77::1", "10.77.0.0", "10.77.0.255"];
        assert_eq!(plan.rules.addresses, own.map(|address| address.parse::<IpAddr>().unwrap()));
        assert_eq!(plan.left_out, []);
    }

    #[test]
    fn what_is_also_outside_is_left_out_and_told() {
        let subject =
            subject(&["10.77.0.1/24"], &["0.0.0.0/0", "192.0.2.0/24", "10.0.0.0/8", "10.99.0.0/16"], &["192.0.2.7"]);
        let plan = subject.plan(&[other("10.1.0.1", true)]);
        assert_eq!(networks(&plan), ["10.77.0.0/24", "10.99.0.0/16"]);
        let reasons: Vec<&str> = plan.left_out.iter().map(|left| left.reason.as_str()).collect();
        let expected =
            ["it is everything", "the endpoint 192.0.2.7 of a peer lies in it", "eth0 has the address 10.1.0.1 in it"];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn an_address_that_the_network_announces_opens_no_hole_into_the_tunnels_own_network() {
        let subject = subject(&["fd77::1/64"], &["fd99::/32"], &[]);
        let announced = [other("fd77::66", false), other("fd99::66", false)];
        assert_eq!(networks(&subject.plan(&announced)), ["fd77::/64"]);
        assert_eq!(networks(&subject.plan(&[other("fd77::66", true)])), ["fd99::/32"]);
    }

    #[test]
    fn before_the_network_is_up_routed_prefixes_wait() {
        let subject = subject(&["10.77.0.1/24", "fd77::1/64"], &["10.99.0.0/16", "fd99::/32"], &[]);
        assert_eq!(networks(&subject.plan_early(&[])), ["10.77.0.0/24", "fd77::/64"]);
        assert_eq!(
            networks(&subject.plan_early(&[other("192.0.2.10", true)])),
            ["10.77.0.0/24", "fd77::/64", "10.99.0.0/16"]
        );
    }
}
