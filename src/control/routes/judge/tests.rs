//! Answers of an imagined kernel, which knows routes and rules as the real one does: the longest prefix wins.

use super::*;
use crate::control::netlink::KernelRoute;
use crate::keys::PrivateKey;

const TUNNEL: u32 = 7;
const WAN: u32 = 2;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn peer(number: u8, addresses: &[&str], prefixes: &[&str]) -> WatchedPeer {
    WatchedPeer {
        public_key: PrivateKey::from_bytes([number; 32]).unwrap().public_key(),
        name: format!("app{number}"),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        prefixes: nets(prefixes),
        endpoints: Vec::new(),
    }
}

/// A kernel: what leads into the tunnel, and what elsewhere.
struct Kernel {
    tunnel: Vec<IpNet>,
    others: Vec<IpNet>,
    endpoints: Vec<IpAddr>,
    open: Vec<IpNet>,
}

impl Kernel {
    fn new(tunnel: &[&str], others: &[&str]) -> Self {
        Self { tunnel: nets(tunnel), others: nets(others), endpoints: Vec::new(), open: Vec::new() }
    }

    fn way(&self, question: Question) -> Way {
        let ours = self.tunnel.iter().map(|net| (net, TUNNEL));
        let all = ours.chain(self.others.iter().map(|net| (net, WAN)));
        let longest =
            all.filter(|(net, _)| net.contains(&question.destination)).max_by_key(|(net, _)| net.prefix_len());
        longest.map_or(Way::Refused, |(_, interface)| Way::Out { interface, gateway: None, table: MAIN_TABLE })
    }

    /// By names of peers: how bad, and what is said.
    fn faults(&self, peers: &[WatchedPeer]) -> Vec<(String, RouteFault, String)> {
        let owners = PrefixOwners::new(peers);
        let route = |destination: &IpNet| KernelRoute {
            destination: *destination,
            interface: Some(WAN),
            gateway: None,
            table: MAIN_TABLE,
        };
        let inside = self.others.iter().filter(|other| owners.owner_of(other).is_some());
        let readings = Readings { others: inside.map(route).collect(), ..Readings::default() };
        let around = Surroundings { readings: &readings, own: &[], endpoints: &self.endpoints, open: &self.open };
        let asked = inquiries(peers, &owners, around);
        let answers: Vec<_> = asked.into_iter().map(|inquiry| (inquiry, Some(self.way(inquiry.question)))).collect();
        let found = faults(peers, TUNNEL, &answers, |_| "wan".into());
        let of = |peer: &WatchedPeer| {
            found.get(&peer.public_key).map(|fault| (peer.name.clone(), fault.kind, fault.routes.clone()))
        };
        peers.iter().filter_map(of).collect()
    }
}

fn fault(name: &str, kind: RouteFault, routes: &str) -> (String, RouteFault, String) {
    (name.to_owned(), kind, routes.to_owned())
}

#[test]
fn what_goes_into_the_tunnel_is_no_fault() {
    let peers = [peer(1, &["10.77.0.11", "fd77::11"], &["10.99.0.0/16"]), peer(2, &["10.77.0.12"], &["10.99.5.0/24"])];
    let kernel = Kernel::new(
        &["10.77.0.0/24", "fd77::/64", "10.99.0.0/16", "10.99.5.0/24"],
        &["0.0.0.0/0", "::/0", "10.1.0.0/24"],
    );
    assert_eq!(kernel.faults(&peers), []);
}

#[test]
fn an_address_that_goes_elsewhere_is_worse_than_a_part_of_a_prefix() {
    let peers = [peer(1, &["10.77.0.11"], &["10.99.0.0/16"]), peer(2, &["10.77.0.12"], &[])];
    let tunnel = ["10.77.0.0/24", "10.99.0.0/16"];
    let faults = |others: &[&str]| Kernel::new(&tunnel, others).faults(&peers);
    let (part, addresses) = (RouteFault::Part, RouteFault::Addresses);
    assert_eq!(faults(&["10.99.5.0/24"]), [fault("app1", part, "10.99.5.0/24 dev wan")]);
    assert_eq!(faults(&["10.77.0.11/32"]), [fault("app1", addresses, "10.77.0.11 dev wan")]);
    assert_eq!(
        faults(&["10.77.0.8/29", "10.99.5.0/24"]),
        [
            fault("app1", addresses, "10.77.0.11 dev wan, 10.99.5.0/24 dev wan"),
            fault("app2", addresses, "10.77.0.12 dev wan"),
        ]
    );
}

#[test]
fn a_whole_prefix_that_goes_elsewhere_is_a_part_of_what_is_for_the_peer() {
    let peers = [peer(1, &["10.77.0.11"], &["10.99.0.0/16"])];
    let kernel = Kernel::new(&["10.77.0.0/24"], &["10.99.0.0/16"]);
    assert_eq!(kernel.faults(&peers), [fault("app1", RouteFault::Part, "10.99.0.0/16 dev wan")]);
    assert_eq!(
        Kernel::new(&["10.77.0.0/24"], &[]).faults(&peers),
        [fault("app1", RouteFault::Part, "10.99.0.0/16 is refused")]
    );
}

#[test]
fn a_route_to_an_endpoint_is_needed_and_one_to_an_open_network_is_meant() {
    let peers = [peer(1, &["10.77.0.11"], &["10.0.0.0/8"])];
    let tunnel = ["10.77.0.0/24", "10.0.0.0/8"];
    let mut kernel = Kernel::new(&tunnel, &["10.1.0.0/24"]);
    assert_eq!(kernel.faults(&peers), [fault("app1", RouteFault::Part, "10.1.0.0/24 dev wan")]);
    kernel.endpoints = vec!["10.1.0.2".parse().unwrap()];
    assert_eq!(kernel.faults(&peers), []);
    kernel.endpoints.clear();
    kernel.open = nets(&["10.1.0.0/16"]);
    assert_eq!(kernel.faults(&peers), []);
    kernel.others.push(net("10.77.0.11/32"));
    kernel.open.push(net("10.77.0.0/24"));
    let found = kernel.faults(&peers);
    assert_eq!(found[0].1, RouteFault::Addresses, "a peer's own addresses are watched in any case");
}

#[test]
fn a_line_names_few_routes() {
    let peers = [peer(1, &["10.77.0.11"], &["10.99.0.0/16"])];
    let many: Vec<String> = (0..9).map(|number| format!("10.99.{number}.0/24")).collect();
    let kernel = Kernel::new(&["10.77.0.0/24", "10.99.0.0/16"], &many.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(kernel.faults(&peers)[0].2.ends_with("10.99.3.0/24 dev wan and 5 more"), "{:?}", kernel.faults(&peers));
}

#[test]
fn only_what_leaves_by_another_interface_counts_for_a_source_of_ours() {
    let question = Question { destination: "10.77.0.11".parse().unwrap(), source: Some("10.77.0.1".parse().unwrap()) };
    let inquiry = Inquiry { peer: 0, subject: Subject::Address(question.destination), question };
    let peers = [peer(1, &["10.77.0.11"], &[])];
    let found = |way| faults(&peers, TUNNEL, &[(inquiry, Some(way))], |_| "wan".into());
    assert!(found(Way::Refused).is_empty() && found(Way::Local).is_empty());
    let out = Way::Out { interface: WAN, gateway: Some("10.1.0.2".parse().unwrap()), table: 100 };
    let fault = found(out).into_values().next().unwrap();
    assert_eq!(fault.routes, "10.77.0.11 from 10.77.0.1 via 10.1.0.2 dev wan table 100");
    let address = Inquiry { question: Question { source: None, ..question }, ..inquiry };
    let fault = faults(&peers, TUNNEL, &[(address, Some(Way::Local))], |_| "wan".into()).into_values().next().unwrap();
    assert_eq!(
        (fault.kind, fault.routes.as_str()),
        (RouteFault::Addresses, "10.77.0.11 is an address of this machine")
    );
}
