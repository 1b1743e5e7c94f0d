//! Failing closed: routes that refuse what is for the tunnel while there is no interface to take it, which would otherwise
//! follow the default route around the tunnel, in the clear.
//!
//! They come after the interface's own routes (a greater metric), belong to no device and so outlive the daemon, however it
//! ends. A daemon knows its own by their protocol and metric.

use std::collections::{BTreeMap, HashSet};

use futures_util::TryStreamExt as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{new_connection, new_connection_with_strict_check};

use super::existing::default_route;
use super::{
    InterfaceSettings, MAIN_TABLE, Netlink, NetlinkError, Route, destination, errno, every_route, route_to, table,
};

/// What is refused without an interface with these addresses and routes: their networks, and what the routes lead to.
pub fn closed_routes(addresses: &[IpNet], routes: &[Route]) -> Vec<Route> {
    let is_network = |address: &&IpNet| address.prefix_len() < address.max_prefix_len();
    let networks = addresses.iter().filter(is_network);
    let networks = networks.map(|address| Route { destination: address.trunc(), table: MAIN_TABLE });
    let mut seen = HashSet::new();
    networks.chain(routes.iter().copied()).filter(|route| seen.insert(*route)).collect()
}

/// Changes to the refusals that there are. The kernel's table is the memory of earlier configurations.
#[derive(Debug, Default, PartialEq, Eq)]
struct RefusalChanges {
    added: Vec<Route>,
    removed: Vec<Route>,
    /// No longer configured, and refused until somebody opens it.
    retained: Vec<Route>,
}

impl RefusalChanges {
    /// Has `wanted` refused, and of what `existing` refuses beside it all but `open`.
    fn plan(wanted: &[Route], open: &[IpNet], existing: &HashSet<Route>) -> Self {
        // A wider one that is configured refuses it too, or leads it into the tunnel, where it would stand in the way.
        let is_covered = |route: &Route| {
            wanted.iter().any(|wider| wider.table == route.table && wider.destination.contains(&route.destination))
        };
        let left = existing.iter().filter(|route| !is_covered(route));
        let parts = |route: &Route| {
            let table = route.table;
            without(route.destination, open).into_iter().map(move |destination| Route { destination, table })
        };
        let mut retained: Vec<Route> = left.flat_map(parts).collect();
        retained.sort_unstable();
        retained.dedup();
        let target: HashSet<Route> = wanted.iter().chain(&retained).copied().collect();
        let is_new = |route: &&Route| !existing.contains(route);
        Self {
            added: wanted.iter().chain(&retained).filter(is_new).copied().collect(),
            removed: existing.difference(&target).copied().collect(),
            retained,
        }
    }
}

impl Netlink {
    /// Has `settings.closed` refused while the interface is not there. What else daemons of this interface have had refused
    /// stays so, but for `settings.open`, and is returned.
    pub async fn close(&self, settings: &InterfaceSettings) -> Result<Vec<Route>, NetlinkError> {
        let existing = refusals(&settings.name, Some(metric(&settings.name))).await?;
        let existing = existing.into_iter().map(|(route, _)| route).collect();
        let changes = RefusalChanges::plan(&settings.closed, &settings.open, &existing);
        match self.change_refusals(&settings.name, metric(&settings.name), &changes).await {
            // It stays without a daemon, and refuses what nobody reads.
            Err(NetlinkError::NoPermission { .. }) if settings.is_prepared => Ok(Vec::new()),
            changed => changed.map(|()| changes.retained),
        }
    }

    /// Has nothing in `prefix` refused any longer that a daemon has had refused: one of `interface`, or any. For a machine on
    /// which none runs. Returns the networks that were opened.
    pub async fn open_network(&self, prefix: IpNet, interface: Option<&str>) -> Result<Vec<IpNet>, NetlinkError> {
        let name = interface.unwrap_or("underpass*");
        let mut by_metric: BTreeMap<u32, HashSet<Route>> = BTreeMap::new();
        for (route, metric) in refusals(name, interface.map(metric)).await? {
            by_metric.entry(metric).or_default().insert(route);
        }
        let mut opened = Vec::new();
        for (metric, existing) in by_metric {
            let changes = RefusalChanges::plan(&[], &[prefix], &existing);
            self.change_refusals(name, metric, &changes).await?;
            opened.extend(changes.removed.iter().map(|route| narrower(route.destination, prefix)));
        }
        opened.sort_unstable();
        opened.dedup();
        Ok(opened)
    }

    /// Has nothing refused any more that a daemon of whatever interface has had refused.
    pub async fn open_everything(&self) -> Result<(), NetlinkError> {
        for everything in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
            self.open_network(everything, None).await?;
        }
        Ok(())
    }

    /// New ones first, so that nothing passes in between.
    async fn change_refusals(
        &self,
        interface: &str,
        metric: u32,
        changes: &RefusalChanges,
    ) -> Result<(), NetlinkError> {
        for route in &changes.added {
            self.add_refusal(interface, metric, *route).await?;
        }
        for route in &changes.removed {
            let removed = self.handle.route().del(refusal(*route, metric)).execute().await;
            if let Err(error) = removed
                && errno(&error) != Some(Errno::ESRCH)
            {
                let action = format!("have packets to {} no longer refused", route.destination);
                return Err(NetlinkError::refused(interface, &action, &error));
            }
        }
        Ok(())
    }

    async fn add_refusal(&self, interface: &str, metric: u32, route: Route) -> Result<(), NetlinkError> {
        match self.handle.route().add(refusal(route, metric)).execute().await {
            Err(error) if errno(&error) != Some(Errno::EEXIST) => {
                let action = format!("have packets to {} refused while it is not there", route.destination);
                Err(NetlinkError::refused(interface, &action, &error))
            }
            _ => Ok(()),
        }
    }

    /// Puts back refusals of this interface that somebody has removed.
    pub(super) async fn restore_refusals(&self, interface: &str, routes: &[Route]) -> Vec<NetlinkError> {
        let mut failed = Vec::new();
        for route in routes {
            failed.extend(self.add_refusal(interface, metric(interface), *route).await.err());
        }
        failed
    }
}

/// Routes that daemons of this interface have refused and its configuration does not want refused: what is still
/// closed.
pub async fn still_refused(settings: &InterfaceSettings) -> Result<Vec<Route>, NetlinkError> {
    let existing = refusals(&settings.name, Some(metric(&settings.name))).await?;
    let existing = existing.into_iter().map(|(route, _)| route).collect();
    Ok(RefusalChanges::plan(&settings.closed, &settings.open, &existing).retained)
}

/// Set for a refusal of this interface.
pub(super) fn is_refusal_of(route: &RouteMessage, interface: &str) -> bool {
    is_refusal(route) && priority(route) == Some(metric(interface))
}

/// The networks that are left of `net` once each of `open` is taken out of it.
pub fn without(net: IpNet, open: &[IpNet]) -> Vec<IpNet> {
    open.iter().fold(vec![net], |left, hole| left.into_iter().flat_map(|net| subtract(net, *hole)).collect())
}

fn subtract(net: IpNet, hole: IpNet) -> Vec<IpNet> {
    if hole.contains(&net) {
        return Vec::new();
    }
    if !net.contains(&hole) {
        return vec![net];
    }
    let halves = net.subnets(net.prefix_len() + 1).expect("what contains a longer prefix can be halved");
    halves.flat_map(|half| subtract(half, hole)).collect()
}

/// Of two networks, one of which contains the other.
fn narrower(one: IpNet, other: IpNet) -> IpNet {
    if one.prefix_len() >= other.prefix_len() { one } else { other }
}

/// All that daemons have left, with its metric: those with this one, or all. `interface` is for messages.
async fn refusals(interface: &str, wanted: Option<u32>) -> Result<Vec<(Route, u32)>, NetlinkError> {
    // So that the kernel gives only those of our protocol (Linux 4.20), and not the table of the whole internet.
    let connected = new_connection_with_strict_check().or_else(|_| new_connection()).map_err(NetlinkError::Open)?;
    let (connection, handle, _) = connected;
    let netlink = Netlink { handle, connection: tokio::spawn(connection) };
    let mut existing = Vec::new();
    for is_v6 in [false, true] {
        let mut question = every_route(is_v6);
        question.header.table = 0;
        question.header.protocol = PROTOCOL;
        question.header.kind = RouteType::Unspec;
        let mut listed = netlink.handle.route().get(question).execute();
        let refused = |error: &_| NetlinkError::refused(interface, "list the routes that refuse packets", error);
        while let Some(message) = listed.try_next().await.map_err(|error| refused(&error))? {
            let Some(metric) = priority(&message).filter(|metric| is_refusal(&message) && *metric >= LEAST_METRIC)
            else {
                continue;
            };
            if let Some(destination) = destination(&message).or_else(|| default_route(&message))
                && wanted.is_none_or(|wanted| wanted == metric)
            {
                existing.push((Route { destination, table: table(&message) }, metric));
            }
        }
    }
    Ok(existing)
}

fn refusal(route: Route, metric: u32) -> RouteMessage {
    let mut message = route_to(route);
    message.header.protocol = PROTOCOL;
    message.header.kind = RouteType::Unreachable;
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

/// Set for what a daemon has had refused.
pub(super) fn is_refusal(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL && route.header.kind == RouteType::Unreachable
}

fn priority(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

/// Behind every metric that people and routing daemons use, and another for each interface: FNV-1a of its name in the lower
/// 30 bits.
fn metric(interface: &str) -> u32 {
    let hash = interface.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    LEAST_METRIC | hash & (LEAST_METRIC - 1)
}

const LEAST_METRIC: u32 = 1 << 30;

/// Unassigned among the kernel's and the routing daemons' (`/etc/iproute2/rt_protos`), so that `ip route` tells them apart.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(151);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(destination: &str, table: u32) -> Route {
        Route { destination: destination.parse().unwrap(), table }
    }

    #[test]
    fn networks_and_routes_are_refused_once_each_and_own_addresses_are_not() {
        let addresses = ["10.77.0.1/24", "10.78.0.1/32", "fd77::1/64"].map(|address| address.parse().unwrap());
        let routes = [route("10.1.0.0/16", MAIN_TABLE), route("0.0.0.0/0", 51900), route("10.77.0.0/24", MAIN_TABLE)];
        let expected = [
            route("10.77.0.0/24", MAIN_TABLE),
            route("fd77::/64", MAIN_TABLE),
            route("10.1.0.0/16", MAIN_TABLE),
            route("0.0.0.0/0", 51900),
        ];
        assert_eq!(closed_routes(&addresses, &routes), expected);
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn routes(texts: &[&str]) -> Vec<Route> {
        texts.iter().map(|text| route(text, MAIN_TABLE)).collect()
    }

    fn planned(wanted: &[&str], open: &[&str], existing: &[&str]) -> RefusalChanges {
        let mut changes = RefusalChanges::plan(&routes(wanted), &nets(open), &routes(existing).into_iter().collect());
        changes.removed.sort_unstable();
        changes
    }

    #[test]
    fn what_is_no_longer_configured_stays_refused_until_it_is_opened() {
        let changes = planned(&["10.77.0.0/24"], &[], &["10.1.0.0/16", "fd01::/64"]);
        assert_eq!(changes.added, routes(&["10.77.0.0/24"]));
        assert_eq!((changes.removed, changes.retained), (vec![], routes(&["10.1.0.0/16", "fd01::/64"])));
        let changes = planned(&["10.77.0.0/24"], &["10.0.0.0/8"], &["10.77.0.0/24", "10.1.0.0/16", "fd01::/64"]);
        assert_eq!((changes.removed, changes.retained), (routes(&["10.1.0.0/16"]), routes(&["fd01::/64"])));
        let changes = planned(&["10.77.0.0/24"], &["0.0.0.0/0", "::/0"], &["10.77.0.0/24", "10.1.0.0/16", "fd01::/64"]);
        assert_eq!((changes.removed, changes.retained), (routes(&["10.1.0.0/16", "fd01::/64"]), vec![]));
    }

    #[test]
    fn another_prefix_length_leaves_the_rest_refused_and_nothing_in_the_way() {
        let changes = planned(&["10.1.0.0/24"], &[], &["10.1.0.0/16"]);
        assert_eq!((changes.added, changes.removed), (routes(&["10.1.0.0/24"]), vec![]));
        assert_eq!(changes.retained, routes(&["10.1.0.0/16"]));
        let changes = planned(&["10.1.0.0/16"], &[], &["10.1.0.0/24"]);
        assert_eq!((changes.added, changes.removed), (routes(&["10.1.0.0/16"]), routes(&["10.1.0.0/24"])));
        assert_eq!(changes.retained, []);
    }

    #[test]
    fn another_table_covers_nothing() {
        let existing = HashSet::from([route("0.0.0.0/0", 7)]);
        let changes = RefusalChanges::plan(&[route("0.0.0.0/0", 8)], &[], &existing);
        assert_eq!((changes.removed, changes.retained), (vec![], vec![route("0.0.0.0/0", 7)]));
    }

    #[test]
    fn a_part_is_opened_and_the_rest_stays_refused() {
        let changes = planned(&[], &["10.1.0.0/18"], &["10.1.0.0/16"]);
        assert_eq!(changes.retained, routes(&["10.1.64.0/18", "10.1.128.0/17"]));
        assert_eq!((changes.added, changes.removed), (changes.retained, routes(&["10.1.0.0/16"])));
    }

    proptest! {
        /// Against a twin that asks for each address of a small space.
        #[test]
        fn what_is_left_is_exactly_what_is_not_open(
            net in (0..=8_u8, any::<u8>()),
            open in proptest::collection::vec((0..=8_u8, any::<u8>()), 0..4),
        ) {
            let net_of = |(len, bits): (u8, u8)| IpNet::new([10, 0, 0, bits].into(), 24 + len).unwrap().trunc();
            let (net, open): (IpNet, Vec<IpNet>) = (net_of(net), open.into_iter().map(net_of).collect());
            let left = without(net, &open);
            for last in 0..=255_u8 {
                let address: std::net::IpAddr = [10, 0, 0, last].into();
                let expected = net.contains(&address) && !open.iter().any(|open| open.contains(&address));
                prop_assert_eq!(left.iter().filter(|left| left.contains(&address)).count(), usize::from(expected));
            }
        }
    }

    #[test]
    fn each_interface_has_a_metric_of_its_own_behind_all_others() {
        assert_ne!(metric("underpass0"), metric("underpass1"));
        assert!(metric("underpass0") >= 1 << 30 && metric("underpass1") <= i32::MAX as u32);
    }
}
