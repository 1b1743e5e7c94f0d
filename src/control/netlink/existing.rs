//! What an interface that is kept over a restart has already: what is wanted stays, what an earlier configuration wanted
//! goes.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};

use super::{
    InterfaceSettings, Netlink, NetlinkError, Route, destination, every_route, local_address, output_interface, table,
};

impl Netlink {
    /// Removes the interface's addresses that are not wanted, unless an operator has made it, and returns those that are. Before any is added: with the first
    /// address of a network the kernel removes the others.
    pub(super) async fn keep_addresses(&self, settings: &InterfaceSettings) -> Result<HashSet<IpNet>, NetlinkError> {
        if !settings.is_kept && !settings.is_prepared {
            return Ok(HashSet::new());
        }
        let listed = self.handle.address().get().set_link_index_filter(settings.index).execute();
        let existing: Vec<AddressMessage> =
            listed.try_collect().await.map_err(|error| settings.refused("list the addresses that it has", &error))?;
        let mut kept = HashSet::new();
        for message in existing {
            match local_address(&message) {
                Some(address) if settings.addresses.contains(&address) => drop(kept.insert(address)),
                Some(address) if !is_link_local(address) && !settings.is_prepared => {
                    let removed = self.handle.address().del(message).execute().await;
                    removed.map_err(|error| settings.refused(&format!("remove the address {address}"), &error))?;
                }
                _ => {}
            }
        }
        Ok(kept)
    }

    /// Removes the routes to the interface that a daemon has made and this one would not, and returns those that it would.
    pub(super) async fn keep_routes(&self, settings: &InterfaceSettings) -> Result<HashSet<Route>, NetlinkError> {
        let mut kept = HashSet::new();
        if !settings.is_kept && !settings.is_prepared {
            return Ok(kept);
        }
        let wanted: HashSet<Route> = settings.routes.iter().copied().collect();
        for is_v6 in [false, true] {
            let listed = self.handle.route().get(every_route(is_v6)).execute();
            let existing: Vec<RouteMessage> = listed
                .try_filter(|route| std::future::ready(is_ours(route, settings)))
                .try_collect()
                .await
                .map_err(|error| settings.refused("list the routes to it", &error))?;
            for message in existing {
                let Some(destination) = destination(&message).or_else(|| default_route(&message)) else { continue };
                let route = Route { destination, table: table(&message) };
                if wanted.contains(&route) {
                    kept.insert(route);
                    continue;
                }
                if settings.is_prepared {
                    continue;
                }
                let removed = self.handle.route().del(message).execute().await;
                removed.map_err(|error| settings.refused(&format!("remove the route to {destination}"), &error))?;
            }
        }
        Ok(kept)
    }
}

/// The kernel's own has no router solicitations to answer for, and is none of ours.
fn is_link_local(address: IpNet) -> bool {
    matches!(address.addr(), IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Those of the kernel go with the addresses, and what an operator adds has another protocol (`ip route` says boot), which is
/// as good on an interface that he has made.
fn is_ours(route: &RouteMessage, settings: &InterfaceSettings) -> bool {
    let is_daemons = route.header.protocol == RouteProtocol::Static;
    output_interface(route) == Some(settings.index) && (is_daemons || settings.is_prepared)
}

/// It has no destination.
pub(super) fn default_route(route: &RouteMessage) -> Option<IpNet> {
    let any: IpAddr = match route.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    (route.header.destination_prefix_length == 0).then(|| IpNet::new(any, 0).ok()).flatten()
}
