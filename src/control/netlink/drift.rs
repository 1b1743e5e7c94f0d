//! Settings that an interface lacks: somebody else may take away what is the daemon's, and it is put back.
//!
//! Reading needs no privilege. What needs one, [`Netlink::repair`], works on owned values only.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, LinkMessageBuilder, LinkUnspec};

use super::closed::is_refusal_of;
use super::existing::default_route;
use super::lookup::gateway;
use super::{
    Existing, InterfaceSettings, MAIN_TABLE, Netlink, NetlinkError, Route, destination, errno, every_route,
    local_address, output_interface, route_message, table,
};

/// A route that is not the daemon's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRoute {
    /// Network that it leads to.
    pub destination: IpNet,
    /// Interface that it leaves by.
    pub interface: Option<u32>,
    /// By whom.
    pub gateway: Option<IpAddr>,
    /// The kernel's routing table.
    pub table: u32,
}

/// Readings of an interface, and of what is beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readings {
    /// Largest packet.
    pub mtu: Option<u32>,
    /// Whether it is up.
    pub is_up: bool,
    /// Its addresses.
    pub addresses: HashSet<IpNet>,
    /// Routes to it.
    pub routes: HashSet<Route>,
    /// Routes that are refused in its name.
    pub refusals: HashSet<Route>,
    /// Others' routes that the reader wanted to know.
    pub others: Vec<KernelRoute>,
    /// Set where somebody has added routing rules to the kernel's own.
    pub has_rules: bool,
    /// Destinations that these rules name.
    pub ruled: Vec<IpNet>,
}

/// Settings that an interface lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drift {
    /// Another MTU than it should have.
    pub mtu: bool,
    /// Set if the interface is down.
    pub is_down: bool,
    /// Addresses that it had.
    pub addresses: Vec<IpNet>,
    /// Routes that led to it.
    pub routes: Vec<Route>,
    /// Networks that were refused without it.
    pub refusals: Vec<Route>,
}

/// The outcome of a repair.
#[derive(Debug, Default)]
pub struct Repaired {
    /// The number of things that were put back.
    pub done: u64,
    /// Changes that the kernel refused.
    pub failed: Vec<NetlinkError>,
}

impl Drift {
    /// The drift of `readings` from `settings` and from `refused`, which stays so from earlier configurations.
    pub fn between(settings: &InterfaceSettings, refused: &[Route], readings: &Readings) -> Self {
        let lacks = |there: &HashSet<Route>, route: &Route| !there.contains(route);
        let routes = settings.routes.iter().copied().chain(networks(&settings.addresses));
        // A device that was made beforehand stays without a daemon, and refuses what nobody reads.
        let closed = if settings.is_prepared { &[][..] } else { &settings.closed };
        let refusals = closed.iter().chain(refused).copied();
        Self {
            mtu: readings.mtu.is_some_and(|mtu| mtu != u32::from(settings.mtu)),
            is_down: !readings.is_up,
            addresses: settings.addresses.iter().filter(|own| !readings.addresses.contains(own)).copied().collect(),
            routes: routes.filter(|route| lacks(&readings.routes, route)).collect(),
            refusals: refusals.filter(|route| lacks(&readings.refusals, route)).collect(),
        }
    }

    /// Set where nothing is missing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// In the words of `ip`, for a line of the log.
impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut missing: Vec<String> = Vec::new();
        missing.extend(self.mtu.then(|| "its MTU".to_owned()));
        missing.extend(self.is_down.then(|| "up".to_owned()));
        missing.extend(self.addresses.iter().map(|address| format!("address {address}")));
        missing.extend(self.routes.iter().map(|route| format!("route {}", route.destination)));
        missing.extend(self.refusals.iter().map(|route| format!("unreachable {}", route.destination)));
        let more = missing.len().saturating_sub(MAX_NAMED);
        missing.truncate(MAX_NAMED);
        f.write_str(&missing.join(", "))?;
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

/// Routes that the kernel makes with the addresses.
fn networks(addresses: &[IpNet]) -> impl Iterator<Item = Route> {
    let wide = addresses.iter().filter(|address| address.prefix_len() < address.max_prefix_len());
    wide.map(|address| Route { destination: address.trunc(), table: MAIN_TABLE })
}

impl Netlink {
    /// Reads what there is of the interface, and of others' routes those to destinations that `is_wanted`.
    pub async fn read(
        &self,
        settings: &InterfaceSettings,
        is_wanted: impl Fn(&IpNet) -> bool,
    ) -> Result<Readings, NetlinkError> {
        let mut readings = Readings::default();
        (readings.mtu, readings.is_up) = self.mtu_and_state(settings).await?;
        let listed = self.handle.address().get().set_link_index_filter(settings.index).execute();
        let addresses: Vec<AddressMessage> =
            listed.try_collect().await.map_err(|error| settings.refused("list the addresses that it has", &error))?;
        readings.addresses = addresses.iter().filter_map(local_address).collect();
        for is_v6 in [false, true] {
            let mut listed = self.handle.route().get(every_route(is_v6)).execute();
            while let Some(route) =
                listed.try_next().await.map_err(|error| settings.refused("list the routes", &error))?
            {
                readings.sort_in(&route, settings, &is_wanted);
            }
        }
        self.read_rules(settings, &mut readings).await?;
        Ok(readings)
    }

    async fn read_rules(&self, settings: &InterfaceSettings, readings: &mut Readings) -> Result<(), NetlinkError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let listed = self.handle.rule().get(version).execute();
            match listed.try_collect::<Vec<RuleMessage>>().await {
                Ok(rules) => rules.iter().filter(|rule| !is_kernels(rule)).for_each(|rule| readings.sort_in_rule(rule)),
                // A kernel without policy routing has no rules.
                Err(error) if matches!(errno(&error), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {}
                Err(error) => return Err(settings.refused("list the routing rules", &error)),
            }
        }
        Ok(())
    }

    /// Puts back what is missing. What stands in the way of a route is somebody else's and stays.
    pub async fn repair(&self, settings: &InterfaceSettings, drift: &Drift) -> Repaired {
        let mut repaired = Repaired::default();
        // First, so that nothing passes meanwhile.
        let failed = self.restore_refusals(&settings.name, &drift.refusals).await;
        repaired.done += (drift.refusals.len() - failed.len()) as u64;
        repaired.failed.extend(failed);
        if drift.mtu {
            let wanted = link(settings).mtu(settings.mtu.into()).build();
            let set = self.change_link(settings, wanted, &format!("set its MTU to {}", settings.mtu)).await;
            repaired.count(set.map(|()| true));
        }
        for address in &drift.addresses {
            repaired.count(self.add_address(settings, *address, Existing::Keep).await.map(|()| true));
        }
        if drift.is_down {
            repaired.count(self.change_link(settings, link(settings).up().build(), "bring it up").await.map(|()| true));
        }
        for route in &drift.routes {
            repaired.count(self.restore_route(settings, *route).await);
        }
        repaired
    }

    /// Returns whether it was missing: it comes back with an address, and another one may have its place.
    async fn restore_route(&self, settings: &InterfaceSettings, route: Route) -> Result<bool, NetlinkError> {
        let mut message = route_message(settings.index, route);
        if !settings.routes.contains(&route) {
            // The network of an address, as the kernel makes it, which takes it away with the address.
            message.header.protocol = RouteProtocol::Kernel;
            if route.destination.addr().is_ipv6() {
                message.attributes.push(RouteAttribute::Priority(KERNEL_METRIC_V6));
            }
        }
        match self.handle.route().add(message).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(false),
            Err(error) => Err(settings.refused(&format!("add a route to {}", route.destination), &error)),
        }
    }
}

impl Repaired {
    fn count(&mut self, outcome: Result<bool, NetlinkError>) {
        match outcome {
            Ok(done) => self.done += u64::from(done),
            Err(error) => self.failed.push(error),
        }
    }
}

impl Readings {
    fn sort_in(&mut self, message: &RouteMessage, settings: &InterfaceSettings, is_wanted: impl Fn(&IpNet) -> bool) {
        let Some(destination) = destination(message).or_else(|| default_route(message)) else { return };
        let route = Route { destination, table: table(message) };
        if is_refusal_of(message, &settings.name) {
            self.refusals.insert(route);
            return;
        }
        if message.header.kind != RouteType::Unicast {
            return;
        }
        match output_interface(message) {
            Some(index) if index == settings.index => drop(self.routes.insert(route)),
            interface if is_wanted(&destination) => {
                self.others.push(KernelRoute { destination, interface, gateway: gateway(message), table: route.table });
            }
            _ => {}
        }
    }

    fn sort_in_rule(&mut self, rule: &RuleMessage) {
        self.has_rules = true;
        let destination = rule.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Destination(address) => IpNet::new(*address, rule.header.dst_len).ok(),
            _ => None,
        });
        self.ruled.extend(destination);
    }
}

/// Every network namespace begins with rules for the tables local, main and, for IPv4, default.
fn is_kernels(rule: &RuleMessage) -> bool {
    let is_plain = rule.header.dst_len == 0 && rule.header.src_len == 0;
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    let selects = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::FwMark(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
        )
    };
    let is_known = matches!(rule.header.family, AddressFamily::Inet | AddressFamily::Inet6)
        && matches!(priority.unwrap_or(0), 0 | 32_766 | 32_767);
    is_plain && is_known && !rule.attributes.iter().any(selects)
}

fn link(settings: &InterfaceSettings) -> LinkMessageBuilder<LinkUnspec> {
    super::link(settings.index)
}

/// As many as a line holds.
const MAX_NAMED: usize = 8;
/// `IP6_RT_PRIO_ADDRCONF`.
const KERNEL_METRIC_V6: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(text: &str) -> Route {
        Route { destination: net(text), table: MAIN_TABLE }
    }

    fn settings() -> InterfaceSettings {
        InterfaceSettings {
            index: 7,
            name: "underpass0".into(),
            addresses: vec![net("10.77.0.1/24"), net("10.78.0.1/32")],
            mtu: 1420,
            offload: false,
            is_kept: false,
            is_prepared: false,
            routes: vec![route("10.99.0.0/16")],
            closed: vec![route("10.77.0.0/24"), route("10.99.0.0/16")],
            open: Vec::new(),
        }
    }

    fn whole() -> Readings {
        Readings {
            mtu: Some(1420),
            is_up: true,
            addresses: HashSet::from([net("10.77.0.1/24"), net("10.78.0.1/32")]),
            routes: HashSet::from([route("10.77.0.0/24"), route("10.99.0.0/16")]),
            refusals: HashSet::from([route("10.77.0.0/24"), route("10.99.0.0/16"), route("10.66.0.0/16")]),
            ..Readings::default()
        }
    }

    #[test]
    fn nothing_is_missing_of_what_is_whole() {
        assert!(Drift::between(&settings(), &[route("10.66.0.0/16")], &whole()).is_empty());
    }

    #[test]
    fn a_device_that_was_made_beforehand_needs_no_refusals() {
        let settings = InterfaceSettings { is_prepared: true, ..settings() };
        let readings = Readings { refusals: HashSet::new(), ..whole() };
        assert!(Drift::between(&settings, &[], &readings).is_empty());
    }

    #[test]
    fn each_thing_that_was_taken_away_is_missed() {
        let mut readings = whole();
        (readings.mtu, readings.is_up) = (Some(1500), false);
        readings.addresses.remove(&net("10.77.0.1/24"));
        readings.routes.clear();
        readings.refusals.remove(&route("10.66.0.0/16"));
        let drift = Drift::between(&settings(), &[route("10.66.0.0/16")], &readings);
        assert_eq!(drift.routes, [route("10.99.0.0/16"), route("10.77.0.0/24")]);
        assert_eq!(
            drift.to_string(),
            "its MTU, up, address 10.77.0.1/24, route 10.99.0.0/16, route 10.77.0.0/24, unreachable 10.66.0.0/16"
        );
    }

    #[test]
    fn a_line_names_no_more_than_it_holds() {
        let drift = Drift { addresses: vec![net("10.0.0.1/8"); 20], ..Drift::default() };
        assert!(drift.to_string().ends_with(" and 12 more"), "{drift}");
    }
}
