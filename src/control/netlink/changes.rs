//! Changes of an interface that is up and carries packets: what stays the same is not touched.
//!
//! First everything that is new is added, which can fail and be taken back; what is gone is removed at the end.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

use ipnet::IpNet;
use nix::errno::Errno;

use super::{Existing, InterfaceSettings, Netlink, NetlinkError, Route, errno, route_message};

/// What is to change of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceChanges {
    added_addresses: Vec<IpNet>,
    removed_addresses: Vec<IpNet>,
    added_routes: Vec<Route>,
    removed_routes: Vec<Route>,
}

impl InterfaceChanges {
    /// From one to the other. Only addresses and routes are looked at.
    pub fn between(old: &InterfaceSettings, new: &InterfaceSettings) -> Self {
        Self {
            added_addresses: missing(&old.addresses, &new.addresses),
            removed_addresses: missing(&new.addresses, &old.addresses),
            added_routes: missing(&old.routes, &new.routes),
            removed_routes: missing(&new.routes, &old.routes),
        }
    }

    /// Set where both are the same.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn added_to(&self, settings: &InterfaceSettings) -> InterfaceSettings {
        let (addresses, routes) = (self.added_addresses.clone(), self.added_routes.clone());
        InterfaceSettings { addresses, routes, ..settings.clone() }
    }

    /// Set for an IPv6 address that the interface has already, with another prefix length: the kernel takes only one, so it
    /// is added when the other has been removed.
    fn has_another_prefix_length(&self, address: IpNet) -> bool {
        address.addr().is_ipv6() && self.removed_addresses.iter().any(|removed| removed.addr() == address.addr())
    }
}

/// Additions and removals, for a message.
impl fmt::Display for InterfaceChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = |routes: &[Route]| routes.iter().map(|route| route.destination).collect::<Vec<_>>();
        let parts = [
            ("add the address", self.added_addresses.clone()),
            ("add a route to", routes(&self.added_routes)),
            ("remove the address", self.removed_addresses.clone()),
            ("remove the route to", routes(&self.removed_routes)),
        ];
        let all = parts.iter().flat_map(|(what, networks)| networks.iter().map(move |net| format!("{what} {net}")));
        let all: Vec<String> = all.take(MAX_NAMED).collect();
        f.write_str(if all.is_empty() { "change the nftables table" } else { "" })?;
        f.write_str(&all.join(", "))
    }
}

/// As many as a line holds.
const MAX_NAMED: usize = 8;

impl Netlink {
    /// Looks whether the device can have what is new in `settings`, and whether an address is another's.
    pub async fn check_new(
        &self,
        settings: &InterfaceSettings,
        changes: &InterfaceChanges,
    ) -> Result<(), NetlinkError> {
        self.check(&changes.added_to(settings)).await
    }

    /// Adds what is new in `settings`, after [`check_new`](Self::check_new). If something of it is refused, nothing is added.
    pub async fn add(&self, settings: &InterfaceSettings, changes: &InterfaceChanges) -> Result<(), Failed> {
        let mut done = InterfaceChanges::default();
        let outcome = self.try_add(settings, changes, &mut done).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(cause) => Err(Failed { cause, left: self.take_back(settings, &done).await }),
        }
    }

    async fn try_add(
        &self,
        settings: &InterfaceSettings,
        changes: &InterfaceChanges,
        done: &mut InterfaceChanges,
    ) -> Result<(), NetlinkError> {
        let added = changes.added_to(settings);
        for address in added.addresses.into_iter().filter(|address| !changes.has_another_prefix_length(*address)) {
            self.add_address(settings, address, Existing::Refuse).await?;
            done.added_addresses.push(address);
        }
        for route in added.routes {
            match self.add_route(settings, route, Existing::Refuse).await {
                Ok(()) => done.added_routes.push(route),
                // The network of an address that is going to be removed.
                Err(NetlinkError::RouteExists { other: Some(other), .. }) if other == settings.name => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Undoes [`add`](Self::add), as far as the kernel lets it: returns what could not be removed.
    pub async fn take_back(&self, settings: &InterfaceSettings, changes: &InterfaceChanges) -> Vec<NetlinkError> {
        let mut left = self.remove_routes(settings, &changes.added_routes).await;
        left.extend(self.remove_addresses(settings, &changes.added_addresses).await);
        left
    }

    /// Removes what is no longer in `settings`, after [`add`](Self::add). Returns what could not be.
    pub async fn remove(&self, settings: &InterfaceSettings, changes: &InterfaceChanges) -> Vec<NetlinkError> {
        let mut left = self.remove_routes(settings, &changes.removed_routes).await;
        if changes.removed_addresses.is_empty() {
            return left;
        }
        left.extend(self.remove_addresses(settings, &changes.removed_addresses).await);
        // With the first address of a network the kernel removes its others, and with the last address of all the routes. Some
        // could not be added before.
        for address in &settings.addresses {
            left.extend(self.add_address(settings, *address, Existing::Keep).await.err());
        }
        for route in &settings.routes {
            left.extend(self.add_route(settings, *route, Existing::Keep).await.err());
        }
        left
    }

    async fn remove_routes(&self, settings: &InterfaceSettings, routes: &[Route]) -> Vec<NetlinkError> {
        let mut left = Vec::new();
        for route in routes {
            let removed = self.handle.route().del(route_message(settings.index, *route)).execute().await;
            let action = || format!("remove the route to {}", route.destination);
            left.extend(removed.err().and_then(|error| not_gone(settings, &action(), &error)));
        }
        left
    }

    async fn remove_addresses(&self, settings: &InterfaceSettings, addresses: &[IpNet]) -> Vec<NetlinkError> {
        let mut left = Vec::new();
        for address in addresses {
            // What names an address when it is added names it here.
            let mut request = self.handle.address().add(settings.index, address.addr(), address.prefix_len());
            let removed = self.handle.address().del(request.message_mut().clone()).execute().await;
            let action = || format!("remove the address {address}");
            left.extend(removed.err().and_then(|error| not_gone(settings, &action(), &error)));
        }
        left
    }
}

/// Why nothing was added.
#[derive(Debug)]
pub struct Failed {
    /// What the kernel refused.
    pub cause: NetlinkError,
    /// What had been added before and could not be taken back.
    pub left: Vec<NetlinkError>,
}

/// Somebody may have removed it by hand.
fn not_gone(settings: &InterfaceSettings, action: &str, error: &rtnetlink::Error) -> Option<NetlinkError> {
    let is_gone = matches!(errno(error), Some(Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENOENT));
    (!is_gone).then(|| settings.refused(action, error))
}

/// Those of `wanted` that `there` lacks.
fn missing<T: Copy + Eq + Hash>(there: &[T], wanted: &[T]) -> Vec<T> {
    let there: HashSet<T> = there.iter().copied().collect();
    wanted.iter().copied().filter(|one| !there.contains(one)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::MAIN_TABLE;
    use super::*;

    fn settings(addresses: &[&str], routes: &[(&str, u32)]) -> InterfaceSettings {
        let routes = routes.iter().map(|&(net, table)| Route { destination: net.parse().unwrap(), table });
        InterfaceSettings {
            index: 1,
            name: "underpass0".into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mtu: 1420,
            offload: false,
            is_kept: false,
            is_prepared: false,
            routes: routes.collect(),
            closed: Vec::new(),
            open: Vec::new(),
        }
    }

    #[test]
    fn what_stays_is_no_change() {
        let old = settings(&["10.77.0.1/24", "fd77::1/64"], &[("10.1.0.0/16", MAIN_TABLE), ("0.0.0.0/0", 7)]);
        let reordered = settings(&["fd77::1/64", "10.77.0.1/24"], &[("0.0.0.0/0", 7), ("10.1.0.0/16", MAIN_TABLE)]);
        assert_eq!(InterfaceChanges::between(&old, &reordered), InterfaceChanges::default());
        let new = settings(&["10.77.0.1/24"], &[("10.1.0.0/16", MAIN_TABLE), ("0.0.0.0/0", 8)]);
        let changes = InterfaceChanges::between(&old, &new);
        assert_eq!(changes.removed_addresses, settings(&["fd77::1/64"], &[]).addresses);
        assert_eq!(changes.added_addresses, []);
        assert_eq!(changes.added_routes, settings(&[], &[("0.0.0.0/0", 8)]).routes);
        assert_eq!(changes.removed_routes, settings(&[], &[("0.0.0.0/0", 7)]).routes);
    }

    #[test]
    fn another_prefix_length_is_another_address() {
        let changes = InterfaceChanges::between(&settings(&["10.77.0.1/24"], &[]), &settings(&["10.77.0.1/16"], &[]));
        assert_eq!((changes.added_addresses.len(), changes.removed_addresses.len()), (1, 1));
    }
}
