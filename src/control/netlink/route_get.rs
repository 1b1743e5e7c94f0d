//! The route by which the kernel would send a packet: routes and rules as they are, asked and not read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType};

use super::{Netlink, errno, output_interface};

/// The kernel's answer for one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// Packets leave by the interface with this index.
    Interface(u32),
    /// The destination is an address of this machine.
    Local,
    /// A route refuses packets: of type `unreachable`, as this daemon's own are, `prohibit` or `blackhole`.
    Refused,
    /// No route leads there.
    Nowhere,
    /// The kernel gave no answer.
    Unknown,
}

/// Way of a packet out of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egress {
    /// Index of the interface that it leaves by.
    pub interface: u32,
    /// Longest packet in bytes that leaves there.
    pub mtu: u32,
}

impl Netlink {
    /// Asks where packets to `destination` with this firewall mark would go.
    pub async fn lookup(&self, destination: IpAddr, fwmark: Option<u32>) -> Lookup {
        match self.route_get(destination, None, fwmark).await {
            Ok(Some(route)) => of_route(&route),
            Ok(None) => Lookup::Unknown,
            Err(error) => of_error(errno(&error)),
        }
    }

    /// Asks by which interface packets to `destination` with this firewall mark leave, and how long they may be then. What
    /// ICMP has said of the destination counts for nothing: anybody can forge it.
    pub async fn egress_mtu(&self, destination: IpAddr, fwmark: Option<u32>) -> Option<Egress> {
        let route = self.route_get(destination, None, fwmark).await.ok()??;
        let interface = output_interface(&route)?;
        let mut mtu = self.device_mtu(interface).await?;
        if metric(&route).is_some() {
            // As it was configured: the other answer has what was learned in it, too.
            let flags = RouteFlags::LookupTable | RouteFlags::FibMatch;
            let configured = self.route_get_with(flags, destination, None, fwmark).await.ok()?;
            mtu = configured.as_ref().and_then(metric).unwrap_or(mtu).min(mtu);
        }
        Some(Egress { interface, mtu })
    }

    async fn device_mtu(&self, index: u32) -> Option<u32> {
        let message = self.handle.link().get().match_index(index).execute().try_next().await.ok()??;
        message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    }

    /// The same from `source`, if a program has chosen one, in the kernel's words.
    pub(super) async fn route_get(
        &self,
        destination: IpAddr,
        source: Option<IpAddr>,
        fwmark: Option<u32>,
    ) -> Result<Option<RouteMessage>, rtnetlink::Error> {
        self.route_get_with(RouteFlags::LookupTable, destination, source, fwmark).await
    }

    async fn route_get_with(
        &self,
        flags: RouteFlags,
        destination: IpAddr,
        source: Option<IpAddr>,
        fwmark: Option<u32>,
    ) -> Result<Option<RouteMessage>, rtnetlink::Error> {
        let mut message = match destination {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build(),
        };
        message.header.flags = flags;
        if let Some(source) = source {
            message.header.source_prefix_length = if source.is_ipv4() { 32 } else { 128 };
            message.attributes.push(RouteAttribute::Source(route_address(source)));
        }
        message.attributes.extend(fwmark.map(RouteAttribute::Mark));
        self.handle.route().get(message).execute().try_next().await
    }
}

/// The route's own limit.
fn metric(route: &RouteMessage) -> Option<u32> {
    let metrics = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn of_route(route: &RouteMessage) -> Lookup {
    match (route.header.kind, output_interface(route)) {
        (RouteType::Local, _) => Lookup::Local,
        (RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole, _) => Lookup::Refused,
        (_, Some(index)) => Lookup::Interface(index),
        (_, None) => Lookup::Unknown,
    }
}

/// The kernel tells the type of a route that refuses by an error: `fib_props` and `ip6_prop`.
fn of_error(errno: Option<Errno>) -> Lookup {
    match errno {
        Some(Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => Lookup::Refused,
        Some(Errno::ENETUNREACH) => Lookup::Nowhere,
        _ => Lookup::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_of_this_machine_is_told_from_others() {
        let netlink = Netlink::open().unwrap();
        assert_eq!(netlink.lookup(Ipv4Addr::LOCALHOST.into(), None).await, Lookup::Local);
    }

    #[test]
    fn an_error_says_whether_a_route_refuses_or_none_leads_there() {
        assert_eq!(of_error(Some(Errno::EHOSTUNREACH)), Lookup::Refused);
        assert_eq!(of_error(Some(Errno::ENETUNREACH)), Lookup::Nowhere);
        assert_eq!(of_error(Some(Errno::EPERM)), Lookup::Unknown);
    }
}
