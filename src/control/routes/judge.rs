//! Whether what is for each peer goes into the tunnel: which packets to ask the kernel about, and what its answers mean.
//!
//! The judge decides on owned values and asks nobody. Packets of programs that set no mark are what counts: who marks
//! packets, or leads them by rules of their own into other tables, has decided about these.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::WatchedPeer;
use crate::control::netlink::{MAIN_TABLE, Question, Readings, Way};
use crate::keys::PublicKey;
use crate::proto::stats::RouteFault;

/// Which peer's prefixes a network lies in, the longest first.
#[derive(Debug, Default)]
pub(super) struct PrefixOwners {
    v4: PrefixMap<Ipv4Net, usize>,
    v6: PrefixMap<Ipv6Net, usize>,
}

/// Something that is for a peer, and a packet by which to find out where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inquiry {
    /// Which peer.
    pub(super) peer: usize,
    pub(super) subject: Subject,
    pub(super) question: Question,
}

/// The subject of an inquiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// One of the peer's addresses.
    Address(IpAddr),
    /// One of its further prefixes.
    Prefix(IpNet),
    /// A network inside them that a route or a rule of others names.
    Part(IpNet),
}

/// A part of a peer's traffic that does not go into the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: RouteFault,
    /// The routes, for people.
    pub(super) routes: String,
}

/// Facts beside the peers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) readings: &'a Readings,
    /// This machine's tunnel addresses.
    pub(super) own: &'a [IpNet],
    /// Addresses to which datagrams to peers go: the routes that lead there are needed.
    pub(super) endpoints: &'a [IpAddr],
    /// Networks that may be reached around the tunnel.
    pub(super) open: &'a [IpNet],
}

impl PrefixOwners {
    pub(super) fn new(peers: &[WatchedPeer]) -> Self {
        let mut owners = Self::default();
        for (index, peer) in peers.iter().enumerate() {
            let hosts = peer.addresses.iter().copied().map(IpNet::from);
            for prefix in hosts.chain(peer.prefixes.iter().copied()) {
                match prefix {
                    IpNet::V4(prefix) => drop(owners.v4.insert(prefix, index)),
                    IpNet::V6(prefix) => drop(owners.v6.insert(prefix, index)),
                }
            }
        }
        owners
    }

    /// The peer with the longest prefix that all of `network` lies in.
    pub(super) fn owner_of(&self, network: &IpNet) -> Option<usize> {
        match network {
            IpNet::V4(network) => self.v4.get_lpm(network).map(|(_, index)| *index),
            IpNet::V6(network) => self.v6.get_lpm(network).map(|(_, index)| *index),
        }
    }
}

/// Inquiries of the kernel, so that its answers tell of every peer where its packets go.
pub(super) fn inquiries(peers: &[WatchedPeer], owners: &PrefixOwners, around: Surroundings<'_>) -> Vec<Inquiry> {
    let mut inquiries = Vec::new();
    for (index, peer) in peers.iter().enumerate() {
        let addresses = peer.addresses.iter().map(|address| (Subject::Address(*address), *address));
        let prefixes = peer.prefixes.iter().filter_map(|prefix| {
            Some((Subject::Prefix(*prefix), representative(*prefix, index, owners, around.readings)?))
        });
        for (subject, destination) in addresses.chain(prefixes) {
            let own = around.own.iter().map(IpNet::addr).find(|own| own.is_ipv4() == destination.is_ipv4());
            let sources = std::iter::once(None).chain(own.filter(|_| around.readings.has_rules).map(Some));
            inquiries.extend(sources.map(|source| Inquiry {
                peer: index,
                subject,
                question: Question { destination, source },
            }));
        }
    }
    inquiries.extend(parts(peers, owners, around));
    inquiries
}

/// Networks of others' routes and rules inside the peers' prefixes.
fn parts(peers: &[WatchedPeer], owners: &PrefixOwners, around: Surroundings<'_>) -> Vec<Inquiry> {
    let is_needed = |network: &IpNet| around.endpoints.iter().any(|endpoint| network.contains(endpoint));
    let is_open = |network: &IpNet| around.open.iter().any(|open| open.contains(network));
    let mut networks: Vec<IpNet> =
        others(around.readings).filter(|network| !is_needed(network) && !is_open(network)).collect();
    networks.sort_unstable();
    networks.dedup();
    let part = |network: IpNet| {
        let peer = owners.owner_of(&network)?;
        if peers[peer].addresses.iter().any(|address| IpNet::from(*address) == network) {
            return None;
        }
        let inquiry = move |destination| Inquiry {
            peer,
            subject: Subject::Part(network),
            question: Question { destination, source: None },
        };
        Some(ends(network).into_iter().map(inquiry))
    };
    networks.into_iter().filter_map(part).flatten().collect()
}

fn others(readings: &Readings) -> impl Iterator<Item = IpNet> {
    readings.others.iter().map(|route| route.destination).chain(readings.ruled.iter().copied())
}

/// An address of `prefix` that is in no narrower network.
fn representative(prefix: IpNet, peer: usize, owners: &PrefixOwners, readings: &Readings) -> Option<IpAddr> {
    let is_narrower = |network: &IpNet| prefix.contains(network) && *network != prefix;
    let narrower: Vec<IpNet> = others(readings).filter(is_narrower).collect();
    let halves = prefix.subnets(prefix.prefix_len() + 1).ok().into_iter().flatten();
    let candidates = ends(prefix).into_iter().chain(halves.flat_map(ends));
    let is_plain = |address: &IpAddr| {
        owners.owner_of(&IpNet::from(*address)) == Some(peer) && !narrower.iter().any(|net| net.contains(address))
    };
    candidates.into_iter().find(is_plain)
}

/// The first and the last address that can be a machine's.
fn ends(network: IpNet) -> Vec<IpAddr> {
    if network.max_prefix_len() - network.prefix_len() < 2 {
        return vec![network.network()];
    }
    match (network.network(), network.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            vec![Ipv4Addr::from_bits(first.to_bits() + 1).into(), Ipv4Addr::from_bits(last.to_bits() - 1).into()]
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            vec![Ipv6Addr::from_bits(first.to_bits() + 1).into(), Ipv6Addr::from_bits(last.to_bits() - 1).into()]
        }
        _ => Vec::new(),
    }
}

/// Faults that the kernel's answers show, for a tunnel interface with the index `tunnel`. `name_of` gives interfaces'
/// names.
pub(super) fn faults(
    peers: &[WatchedPeer],
    tunnel: u32,
    answers: &[(Inquiry, Option<Way>)],
    name_of: impl Fn(u32) -> String,
) -> HashMap<PublicKey, Fault> {
    let mut found: HashMap<usize, (RouteFault, Vec<String>)> = HashMap::new();
    for (inquiry, way) in answers {
        let Some(kind) = way.and_then(|way| judge(inquiry, way, tunnel)) else { continue };
        let route = Described { inquiry, way: way.expect("it was judged"), name_of: &name_of }.to_string();
        let (worst, routes) = found.entry(inquiry.peer).or_insert((kind, Vec::new()));
        if kind == RouteFault::Addresses {
            *worst = kind;
        }
        if !routes.contains(&route) {
            routes.push(route);
        }
    }
    let fault = |(index, (kind, routes)): (usize, (RouteFault, Vec<String>))| {
        (peers[index].public_key, Fault { kind, routes: listed(&routes) })
    };
    found.into_iter().map(fault).collect()
}

fn judge(inquiry: &Inquiry, way: Way, tunnel: u32) -> Option<RouteFault> {
    let kind = match inquiry.subject {
        Subject::Address(_) => RouteFault::Addresses,
        Subject::Prefix(_) | Subject::Part(_) => RouteFault::Part,
    };
    let is_fault = match (way, inquiry.subject) {
        (Way::Out { interface, .. }, _) => interface != tunnel,
        // Which address a program can't send from says nothing of where packets go.
        _ if inquiry.question.source.is_some() => false,
        (Way::Local, Subject::Address(_)) | (Way::Refused, Subject::Address(_) | Subject::Prefix(_)) => true,
        // What stays on this machine or is refused is on nobody's wire.
        (Way::Local, Subject::Prefix(_) | Subject::Part(_)) | (Way::Refused, Subject::Part(_)) => false,
    };
    is_fault.then_some(kind)
}

struct Described<'a, N> {
    inquiry: &'a Inquiry,
    way: Way,
    name_of: &'a N,
}

/// In the words of `ip route`.
impl<N: Fn(u32) -> String> fmt::Display for Described<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inquiry.subject {
            Subject::Address(address) => write!(f, "{address}")?,
            Subject::Prefix(network) | Subject::Part(network) => write!(f, "{network}")?,
        }
        if let Some(source) = self.inquiry.question.source {
            write!(f, " from {source}")?;
        }
        match self.way {
            Way::Local => f.write_str(" is an address of this machine"),
            Way::Refused => f.write_str(" is refused"),
            Way::Out { interface, gateway, table } => {
                if let Some(gateway) = gateway {
                    write!(f, " via {gateway}")?;
                }
                write!(f, " dev {}", (self.name_of)(interface))?;
                if matches!(table, 0 | MAIN_TABLE) { Ok(()) } else { write!(f, " table {table}") }
            }
        }
    }
}

fn listed(routes: &[String]) -> String {
    let named = routes[..routes.len().min(MAX_NAMED)].join(", ");
    if routes.len() > MAX_NAMED { format!("{named} and {} more", routes.len() - MAX_NAMED) } else { named }
}

/// As many as a line holds.
const MAX_NAMED: usize = 4;

#[cfg(test)]
mod tests;
