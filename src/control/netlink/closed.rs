//! Failing closed: routes that refuse what is for the tunnel while there is no interface to take it, which would otherwise
//! follow the default route around the tunnel, in the clear.
//!
//! They come after the interface's own routes (a greater metric), belong to no device and so outlive the daemon, however it
//! ends. A daemon knows its own by their protocol and metric.

use std::collections::HashSet;
use std::future::ready;
use std::io;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
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

impl Netlink {
    /// Has `settings.closed` refused while the interface is not there, and nothing else that a daemon of this interface has
    /// had refused.
    pub async fn close(&self, settings: &InterfaceSettings) -> Result<(), NetlinkError> {
        let metric = metric(&settings.name);
        let existing = existing(settings, metric).await?;
        for route in settings.closed.iter().filter(|route| !existing.contains(route)) {
            let added = self.handle.route().add(refusal(*route, metric)).execute().await;
            if let Err(error) = added
                && errno(&error) != Some(Errno::EEXIST)
            {
                let action = format!("have packets to {} refused while it is not there", route.destination);
                return Err(settings.refused(&action, &error));
            }
        }
        for route in existing.iter().filter(|route| !settings.closed.contains(route)) {
            let removed = self.handle.route().del(refusal(*route, metric)).execute().await;
            if let Err(error) = removed
                && errno(&error) != Some(Errno::ESRCH)
            {
                let action = format!("have packets to {} no longer refused", route.destination);
                return Err(settings.refused(&action, &error));
            }
        }
        Ok(())
    }
}

impl Netlink {
    /// Has nothing refused any more that a daemon of whatever interface has had refused.
    pub async fn open_everything(&self) -> Result<(), NetlinkError> {
        let refused = |error: &rtnetlink::Error| {
            let (interface, action) = ("of any name".to_owned(), "remove the routes that refuse packets".to_owned());
            match errno(error) {
                Some(Errno::EPERM) => NetlinkError::NoPermission { interface, action },
                _ => NetlinkError::Refused { interface, action, source: io::Error::other(error.clone()) },
            }
        };
        for message in all().await?.map_err(|error| refused(&error))? {
            let removed = self.handle.route().del(message).execute().await;
            if let Err(error) = removed
                && errno(&error) != Some(Errno::ESRCH)
            {
                return Err(refused(&error));
            }
        }
        Ok(())
    }
}

/// Routes that a daemon of this interface has left.
async fn existing(settings: &InterfaceSettings, metric: u32) -> Result<HashSet<Route>, NetlinkError> {
    let listed = all().await?.map_err(|error| settings.refused("list the routes that refuse packets", &error))?;
    let ours = listed.iter().filter(|message| priority(message) == Some(metric));
    let route = |message: &RouteMessage| {
        let destination = destination(message).or_else(|| default_route(message))?;
        Some(Route { destination, table: table(message) })
    };
    Ok(ours.filter_map(route).collect())
}

/// Routes that daemons have left, of whatever interface.
async fn all() -> Result<Result<Vec<RouteMessage>, rtnetlink::Error>, NetlinkError> {
    // So that the kernel gives only those of our protocol (Linux 4.20), and not the table of the whole internet.
    let connected = new_connection_with_strict_check().or_else(|_| new_connection()).map_err(NetlinkError::Open)?;
    let (connection, handle, _) = connected;
    let netlink = Netlink { handle, connection: tokio::spawn(connection) };
    let mut all = Vec::new();
    for is_v6 in [false, true] {
        let mut question = every_route(is_v6);
        question.header.table = 0;
        question.header.protocol = PROTOCOL;
        question.header.kind = RouteType::Unspec;
        let listed = netlink.handle.route().get(question).execute();
        match listed.try_filter(|route| ready(is_refusal(route))).try_collect::<Vec<_>>().await {
            Ok(listed) => all.extend(listed),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(all))
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
    1 << 30 | hash & ((1 << 30) - 1)
}

/// Unassigned among the kernel's and the routing daemons' (`/etc/iproute2/rt_protos`), so that `ip route` tells them apart.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(151);

#[cfg(test)]
mod tests {
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

    #[test]
    fn each_interface_has_a_metric_of_its_own_behind_all_others() {
        assert_ne!(metric("underpass0"), metric("underpass1"));
        assert!(metric("underpass0") >= 1 << 30 && metric("underpass1") <= i32::MAX as u32);
    }
}
