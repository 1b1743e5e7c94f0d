//! The kernel's side of the tunnel interface, by rtnetlink: link settings, addresses, routes.
//!
//! It creates no device: that is `dataplane`'s. What is set here belongs to the device and vanishes with it, so there is
//! nothing to undo, on failure either; but for the routes that refuse packets without it (`closed`), which
//! are to stay.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use nix::net::if_::{if_indextoname, if_nametoindex};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::packet::frame::FRAME_HEADER_LEN;
use crate::packet::message::TRANSPORT_OVERHEAD;

mod changes;
mod closed;
mod drift;
mod existing;
mod lookup;
mod monitor;
mod route_get;
mod tunnels;

pub use changes::{Failed, InterfaceChanges};
use closed::is_refusal;
pub use closed::{closed_routes, still_refused, without};
pub use drift::{Drift, KernelRoute, Readings, Repaired};
pub use lookup::{Question, Way};
pub use monitor::RouteMonitor;
pub use route_get::{Egress, Lookup};

/// What the kernel must know of the tunnel interface before packets flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// The device's index.
    pub index: u32,
    /// The device's name, for messages.
    pub name: String,
    /// Tunnel addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Largest packet.
    pub mtu: u16,
    /// Set when the device takes superpackets, whose size must then be limited.
    pub offload: bool,
    /// Set for an interface that an earlier daemon has set up, perhaps differently.
    pub is_kept: bool,
    /// Set for an interface that was made for this daemon, and may have been set up as far as the daemon has no privilege to.
    pub is_prepared: bool,
    /// What lies behind the peers.
    pub routes: Vec<Route>,
    /// What is refused while the interface is not there.
    pub closed: Vec<Route>,
    /// Networks whose refusal by earlier configurations is to end.
    pub open: Vec<IpNet>,
}

/// A route into the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// What is reached.
    pub destination: IpNet,
    /// The kernel's routing table: [`MAIN_TABLE`], or the one that the operator's rules consult.
    pub table: u32,
}

/// How long superpackets may be that the kernel hands over. It cuts a longer one into single packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuperpacketLimit {
    /// So long that one send takes all segments: [`gso_max_size`].
    #[default]
    OneSend,
    /// As long as any device's. For what comes from other devices: a tunnel makes its superpackets without regard to the
    /// device that they leave by.
    Longest,
}

/// What happens if an address or route that is to be added is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// It may be somebody else's.
    Refuse,
    /// It can only be our own.
    Keep,
}

/// The routes that a configuration needs, and the prefixes that get none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutePlan {
    /// To be added.
    pub routes: Vec<Route>,
    /// Default routes without a firewall mark to tell inner from outer packets: the operator's decision, not ours.
    pub left_out: Vec<IpNet>,
}

/// The routing table for the traffic of the whole machine.
pub const MAIN_TABLE: u32 = 254;

/// A connection to the kernel's rtnetlink, in the network namespace of this thread. Must be made inside a tokio runtime.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

/// Why the interface could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel gave no netlink socket.
    #[error("could not open a netlink socket to configure the interface")]
    Open(#[source] io::Error),
    /// Not root.
    #[error(
        "no permission to configure interface {interface} ({action}): run as root or with the capability CAP_NET_ADMIN"
    )]
    NoPermission {
        /// Our interface.
        interface: String,
        /// What was refused.
        action: String,
    },
    /// Someone has our tunnel address.
    #[error(
        "interface.addresses: {address} is already an address of interface {other}; give the tunnel an address of its own, \
         or remove that one (ip address del)"
    )]
    AddressInUse {
        /// The address.
        address: IpAddr,
        /// The interface that has it.
        other: String,
    },
    /// Someone has our tunnel network: packets to peers would go there.
    #[error(
        "interface.addresses: {network} is already the network of interface {other}, so packets to peers would go there; \
         choose another network, or a prefix length of {host_prefix_len} to have one route per peer instead"
    )]
    NetworkInUse {
        /// The network.
        network: IpNet,
        /// The interface that has it.
        other: String,
        /// 32 or 128.
        host_prefix_len: u8,
    },
    /// The sysctl `disable_ipv6`, or a kernel without IPv6.
    #[error(
        "{what} is IPv6, but IPv6 is disabled on interface {interface}: remove it, or enable IPv6 \
         (sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0) and start again"
    )]
    Ipv6Disabled {
        /// Our interface.
        interface: String,
        /// The address or prefix that needs IPv6.
        what: IpNet,
    },
    /// A route to a peer's prefix is there already.
    #[error(
        "a route to {destination} exists already{}: take {destination} out of the peer's addresses and allowed_ips. The other \
         route may be how this machine is reached: leave it in place unless you know it is of no use", .other.as_ref().map(|other| format!(" through interface {other}")).unwrap_or_default()
    )]
    RouteExists {
        /// The prefix.
        destination: IpNet,
        /// The interface that the other route leads to, where it can be told.
        other: Option<String>,
    },
    /// It was made beforehand, and we have no privilege.
    #[error(
        "interface {interface} was made beforehand and lacks something that this daemon has no privilege to add: {}",
        .commands.join("; ")
    )]
    Unprepared {
        /// Our interface.
        interface: String,
        /// What adds it.
        commands: Vec<String>,
    },
    /// The kernel refused for a reason that has no variant of its own.
    #[error("interface {interface}: could not {action}")]
    Refused {
        /// Our interface.
        interface: String,
        /// What was refused.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl RoutePlan {
    /// One route per prefix that no network of the interface covers. A default route goes to the table numbered `fwmark`,
    /// which no packet consults before the operator's rules say so; without a mark it is left out, since the outer
    /// datagrams would follow it back into the tunnel.
    pub fn new(addresses: &[IpNet], allowed_ips: impl IntoIterator<Item = IpNet>, fwmark: Option<u32>) -> Self {
        let mut plan = Self::default();
        let mut seen = HashSet::new();
        for destination in allowed_ips {
            let destination = destination.trunc();
            if addresses.iter().any(|address| address.trunc().contains(&destination)) || !seen.insert(destination) {
                continue;
            }
            match (destination.prefix_len(), fwmark) {
                (0, Some(table)) if !KERNEL_TABLES.contains(&table) => plan.routes.push(Route { destination, table }),
                (0, _) => plan.left_out.push(destination),
                _ => plan.routes.push(Route { destination, table: MAIN_TABLE }),
            }
        }
        plan
    }
}

impl Netlink {
    /// Opens the connection and drives it on this runtime until dropped.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Looks whether the device can have these addresses and routes, and whether the addresses are another's.
    pub async fn check(&self, settings: &InterfaceSettings) -> Result<(), NetlinkError> {
        check_ipv6(settings)?;
        self.check_addresses(settings).await
    }

    /// Makes the device ready for packets, after [`check`](Self::check): limits, addresses, up, routes. Of one that is kept,
    /// only what differs is touched. Returns what is refused though it is no longer configured.
    pub async fn configure(&self, settings: &InterfaceSettings) -> Result<Vec<Route>, NetlinkError> {
        let mut missing = Missing::of(settings);
        let refused = self.close(settings).await?;
        self.configure_link(settings, &mut missing).await?;
        let kept = self.keep_routes(settings).await?;
        for route in settings.routes.iter().filter(|route| !kept.contains(route)) {
            let added = self.add_route(settings, *route, Existing::Refuse).await;
            missing.or(added, |name| format!("ip route add {} dev {name} table {}", route.destination, route.table))?;
        }
        missing.check()?;
        Ok(refused)
    }

    async fn configure_link(
        &self,
        settings: &InterfaceSettings,
        missing: &mut Missing<'_>,
    ) -> Result<(), NetlinkError> {
        let (mtu, is_up) = self.mtu_and_state(settings).await?;
        if !settings.is_prepared || mtu != Some(settings.mtu.into()) {
            let wanted = link(settings.index).mtu(settings.mtu.into()).multicast(false).build();
            let set = self.change_link(settings, wanted, &format!("set its MTU to {}", settings.mtu)).await;
            missing.or(set, |name| format!("ip link set dev {name} mtu {}", settings.mtu))?;
        }
        self.tune(settings).await;
        let kept = self.keep_addresses(settings).await?;
        for address in settings.addresses.iter().filter(|address| !kept.contains(address)) {
            let added = self.add_address(settings, *address, Existing::Refuse).await;
            missing.or(added, |name| format!("ip address add {address} dev {name}"))?;
        }
        if !is_up {
            let up = self.change_link(settings, link(settings.index).up().build(), "bring it up").await;
            missing.or(up, |name| format!("ip link set dev {name} up"))?;
        }
        Ok(())
    }

    async fn mtu_and_state(&self, settings: &InterfaceSettings) -> Result<(Option<u32>, bool), NetlinkError> {
        let mut listed = self.handle.link().get().match_index(settings.index).execute();
        let message = listed.try_next().await.map_err(|error| settings.refused("read its settings", &error))?;
        let mtu = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        };
        Ok(message.map_or((None, false), |message| {
            (message.attributes.iter().find_map(mtu), message.header.flags.contains(LinkFlags::Up))
        }))
    }

    /// Gives an interface an address and brings it up: one that nobody else uses and that vanishes with whoever made it.
    pub async fn set_up_probe(&self, interface: &str, address: IpNet) -> Result<(), NetlinkError> {
        let settings = InterfaceSettings {
            index: if_nametoindex(interface).unwrap_or_default(),
            name: interface.to_owned(),
            addresses: vec![address],
            mtu: PROBE_MTU,
            offload: false,
            is_kept: false,
            is_prepared: false,
            routes: Vec::new(),
            closed: Vec::new(),
            open: Vec::new(),
        };
        self.configure_link(&settings, &mut Missing::of(&settings)).await
    }

    /// How many packets have passed the interface both ways since it was made.
    pub async fn packets(&self, index: u32) -> Option<u64> {
        let message = self.handle.link().get().match_index(index).execute().try_next().await.ok()??;
        message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(stats.rx_packets + stats.tx_packets),
            _ => None,
        })
    }

    /// The interface that datagrams to `destination` with this firewall mark would leave by.
    pub async fn egress(&self, destination: IpAddr, fwmark: Option<u32>) -> Option<u32> {
        output_interface(&self.route_get(destination, None, fwmark).await.ok()??)
    }

    /// The kernel itself allows an address twice; packets then go astray without a word.
    pub async fn check_addresses(&self, settings: &InterfaceSettings) -> Result<(), NetlinkError> {
        let mut existing = self.handle.address().get().execute();
        while let Some(message) =
            existing.try_next().await.map_err(|error| settings.refused("list the addresses of this machine", &error))?
        {
            let Some(theirs) = local_address(&message).filter(|_| message.header.index != settings.index) else {
                continue;
            };
            for ours in &settings.addresses {
                check_address(*ours, theirs, message.header.index)?;
            }
        }
        Ok(())
    }

    /// Has the device take packets as long as `settings` says from here on, with superpackets to suit.
    pub async fn set_mtu(&self, settings: &InterfaceSettings, limit: SuperpacketLimit) -> Result<(), NetlinkError> {
        let wanted = link(settings.index).mtu(settings.mtu.into()).build();
        self.change_link(settings, wanted, &format!("set its MTU to {}", settings.mtu)).await?;
        self.suit_superpackets(settings, limit).await;
        Ok(())
    }

    /// The MTU of the device.
    pub async fn mtu(&self, settings: &InterfaceSettings) -> Option<u16> {
        let (mtu, _) = self.mtu_and_state(settings).await.ok()?;
        u16::try_from(mtu?).ok()
    }

    async fn suit_superpackets(&self, settings: &InterfaceSettings, limit: SuperpacketLimit) {
        if settings.offload
            && let Err(error) = self.limit_superpackets(settings, limit).await
        {
            tracing::warn!(error = chain(&error), "bulk transfers will be slower");
        }
    }

    /// Settings without which the tunnel works too: a refusal is worth a word in the log, not the end.
    async fn tune(&self, settings: &InterfaceSettings) {
        self.suit_superpackets(settings, SuperpacketLimit::OneSend).await;
        // No link-local address: its router solicitations would wake an idle tunnel and have no peer to go to.
        let inet6 = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
        let quiet = link(settings.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(inet6)]))
            .build();
        if let Err(error) = self.change_link(settings, quiet, "do without a link-local address").await {
            tracing::debug!(error = chain(&error), "left as it is");
        }
    }

    /// Has the kernel hand over superpackets up to this size.
    pub async fn limit_superpackets(
        &self,
        settings: &InterfaceSettings,
        limit: SuperpacketLimit,
    ) -> Result<(), NetlinkError> {
        let size = |headers| match limit {
            SuperpacketLimit::OneSend => gso_max_size(settings.mtu, headers),
            SuperpacketLimit::Longest => LONGEST_SUPERPACKET,
        };
        let limits = link(settings.index)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(size(IPV6_TCP_HEADERS)))
            .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(size(IPV4_TCP_HEADERS)))
            .build();
        self.change_link(settings, limits, "limit the size of superpackets").await
    }

    async fn change_link(
        &self,
        settings: &InterfaceSettings,
        message: LinkMessage,
        action: &str,
    ) -> Result<(), NetlinkError> {
        self.handle.link().change(message).execute().await.map_err(|error| settings.refused(action, &error))
    }

    async fn add_address(
        &self,
        settings: &InterfaceSettings,
        address: IpNet,
        existing: Existing,
    ) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(settings.index, address.addr(), address.prefix_len());
        if existing == Existing::Keep {
            request = request.replace();
        }
        let attributes = &mut request.message_mut().attributes;
        // A point-to-point device has no broadcast, and no neighbour that could have the same address.
        attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        if address.addr().is_ipv6() {
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(|error| settings.refused(&format!("add the address {address}"), &error))
    }

    async fn add_route(
        &self,
        settings: &InterfaceSettings,
        route: Route,
        existing: Existing,
    ) -> Result<(), NetlinkError> {
        let mut request = self.handle.route().add(route_message(settings.index, route));
        if existing == Existing::Keep {
            request = request.replace();
        }
        let Err(error) = request.execute().await else { return Ok(()) };
        if errno(&error) == Some(Errno::EEXIST) {
            let other = self.route_owner(route).await;
            return Err(NetlinkError::RouteExists { destination: route.destination, other });
        }
        Err(settings.refused(&format!("add a route to {}", route.destination), &error))
    }

    /// The interface of the route that stands in the way. Reads the whole table, so only for an error message.
    async fn route_owner(&self, wanted: Route) -> Option<String> {
        let mut routes = self.handle.route().get(every_route(wanted.destination.addr().is_ipv6())).execute();
        while let Some(route) = routes.try_next().await.ok()? {
            let is_in_the_way = !is_refusal(&route) && table(&route) == wanted.table;
            if is_in_the_way && destination(&route) == Some(wanted.destination) {
                return output_interface(&route).map(interface_name);
            }
        }
        None
    }
}

/// What an interface that was made beforehand lacks, for want of a privilege: all of it is told together.
struct Missing<'a> {
    settings: &'a InterfaceSettings,
    commands: Vec<String>,
}

impl<'a> Missing<'a> {
    fn of(settings: &'a InterfaceSettings) -> Self {
        Self { settings, commands: Vec::new() }
    }

    /// Takes note of the command that does what was not permitted.
    fn or(&mut self, done: Result<(), NetlinkError>, command: impl FnOnce(&str) -> String) -> Result<(), NetlinkError> {
        match done {
            Err(NetlinkError::NoPermission { .. }) if self.settings.is_prepared => {
                self.commands.push(command(&self.settings.name));
                Ok(())
            }
            done => done,
        }
    }

    fn check(self) -> Result<(), NetlinkError> {
        if self.commands.is_empty() {
            return Ok(());
        }
        Err(NetlinkError::Unprepared { interface: self.settings.name.clone(), commands: self.commands })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl InterfaceSettings {
    fn refused(&self, action: &str, error: &rtnetlink::Error) -> NetlinkError {
        NetlinkError::refused(&self.name, action, error)
    }
}

impl NetlinkError {
    fn refused(interface: &str, action: &str, error: &rtnetlink::Error) -> Self {
        let (interface, action) = (interface.to_owned(), action.to_owned());
        match errno(error) {
            Some(Errno::EPERM) => Self::NoPermission { interface, action },
            Some(errno) => Self::Refused { interface, action, source: errno.into() },
            None => Self::Refused { interface, action, source: io::Error::other(error.clone()) },
        }
    }
}

/// The largest superpacket of which one UDP send with segmentation takes all segments, for packets with `headers` bytes of
/// IP and TCP headers.
///
/// Every segment carries at most `mtu - headers` bytes of payload, becomes a datagram of at most `mtu` + 32 bytes, and one
/// send takes 65,507 bytes, so `segments = 65,507 / (mtu + 32)`, and the superpacket may have
/// `segments × (mtu - headers) + headers` bytes. Without the limit a superpacket needs two sends and arrives as two, which
/// cost 20 % of one flow's throughput when measured.
pub fn gso_max_size(mtu: u16, headers: u32) -> u32 {
    let datagram = u32::from(mtu) + (TRANSPORT_OVERHEAD + FRAME_HEADER_LEN) as u32;
    let segments = (MAX_UDP_PAYLOAD / datagram).clamp(1, MAX_UDP_SEGMENTS);
    segments * (u32::from(mtu) - headers) + headers
}

/// `GSO_LEGACY_MAX_SIZE` of `linux/netdevice.h`, with which the kernel begins.
const LONGEST_SUPERPACKET: u32 = 65_536;

/// For the log, which then shows the causes too.
fn chain(error: &NetlinkError) -> &(dyn std::error::Error + 'static) {
    error
}

fn link(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

fn route_message(index: u32, route: Route) -> RouteMessage {
    let mut message = route_to(route);
    message.attributes.push(RouteAttribute::Oif(index));
    if route.destination.addr().is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    message
}

/// Without anything to lead there.
fn route_to(Route { destination, table }: Route) -> RouteMessage {
    match destination {
        IpNet::V4(net) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().table_id(table);
            builder.destination_prefix(net.addr(), net.prefix_len()).build()
        }
        IpNet::V6(net) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().table_id(table);
            builder.destination_prefix(net.addr(), net.prefix_len()).build()
        }
    }
}

/// Asks for all routes of a family.
fn every_route(is_v6: bool) -> RouteMessage {
    if is_v6 { RouteMessageBuilder::<Ipv6Addr>::new().build() } else { RouteMessageBuilder::<Ipv4Addr>::new().build() }
}

/// The kernel's answers to an IPv6 address where IPv6 is off say "permission denied" or "not supported": look beforehand.
fn check_ipv6(settings: &InterfaceSettings) -> Result<(), NetlinkError> {
    let prefixes = settings.addresses.iter().copied().chain(settings.routes.iter().map(|route| route.destination));
    let Some(what) = prefixes.into_iter().find(|prefix| prefix.addr().is_ipv6()) else { return Ok(()) };
    let sysctl = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", settings.name);
    match std::fs::read_to_string(sysctl).as_deref().map(str::trim) {
        Ok("0") => Ok(()),
        _ => Err(NetlinkError::Ipv6Disabled { interface: settings.name.clone(), what }),
    }
}

fn check_address(ours: IpNet, theirs: IpNet, index: u32) -> Result<(), NetlinkError> {
    if ours.addr() == theirs.addr() {
        return Err(NetlinkError::AddressInUse { address: ours.addr(), other: interface_name(index) });
    }
    let shared = ours.prefix_len() < ours.max_prefix_len() && ours.trunc() == theirs.trunc();
    if shared {
        let host_prefix_len = ours.max_prefix_len();
        return Err(NetlinkError::NetworkInUse {
            network: ours.trunc(),
            other: interface_name(index),
            host_prefix_len,
        });
    }
    Ok(())
}

/// The address itself: on a point-to-point interface `Address` is the other end's.
fn local_address(message: &AddressMessage) -> Option<IpNet> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => return IpNet::new(*local, message.header.prefix_len).ok(),
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    IpNet::new(address?, message.header.prefix_len).ok()
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let prefix_len = route.header.destination_prefix_length;
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => IpNet::new((*address).into(), prefix_len).ok(),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => IpNet::new((*address).into(), prefix_len).ok(),
        _ => None,
    })
}

fn table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(route.header.table.into())
}

fn output_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn interface_name(index: u32) -> String {
    match if_indextoname(index).map(|name| name.into_string()) {
        Ok(Ok(name)) => name,
        _ => format!("number {index}"),
    }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(message.raw_code().abs())),
        _ => None,
    }
}

/// An MTU that any interface carries.
const PROBE_MTU: u16 = 1280;
/// Unspecified, default, main and local: consulted without any rule of the operator's.
const KERNEL_TABLES: [u32; 4] = [0, 253, MAIN_TABLE, 255];
/// What one send with UDP_SEGMENT takes over IPv4; 20 bytes more over IPv6.
const MAX_UDP_PAYLOAD: u32 = 65_507;
/// UDP_MAX_SEGMENTS of kernels before 6.9; 128 since.
const MAX_UDP_SEGMENTS: u32 = 64;
/// IPv4 and TCP with timestamps, which is what bulk flows have.
const IPV4_TCP_HEADERS: u32 = 20 + 20 + 12;
/// IPv6 and TCP with timestamps.
const IPV6_TCP_HEADERS: u32 = 40 + 20 + 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn main_route(text: &str) -> Route {
        Route { destination: net(text), table: MAIN_TABLE }
    }

    #[test]
    fn one_superpacket_fits_one_send_for_every_mtu_and_header_length() {
        for mtu in 576..=u16::MAX - 60 {
            for headers in [IPV4_TCP_HEADERS, IPV6_TCP_HEADERS] {
                let payload = gso_max_size(mtu, headers) - headers;
                let segments = payload.div_ceil(u32::from(mtu) - headers);
                let sent = payload + segments * (headers + 32);
                assert!(sent <= MAX_UDP_PAYLOAD.max(u32::from(mtu) + 32), "{mtu} {headers}: {sent}");
                assert!(segments <= MAX_UDP_SEGMENTS);
            }
        }
    }

    #[test]
    fn the_limit_is_the_largest_that_fits() {
        assert_eq!(gso_max_size(1440, IPV4_TCP_HEADERS), 61_124);
        let one_segment_more = gso_max_size(1440, IPV4_TCP_HEADERS) + (1440 - IPV4_TCP_HEADERS);
        let segments = (one_segment_more - IPV4_TCP_HEADERS).div_ceil(1440 - IPV4_TCP_HEADERS);
        assert!(segments * (1440 + 32) > MAX_UDP_PAYLOAD);
    }

    #[test]
    fn a_prefix_inside_the_interface_network_needs_no_route() {
        let plan = RoutePlan::new(
            &[net("10.77.0.1/24"), net("fd00::1/64")],
            [net("10.77.0.11/32"), net("fd00::11/128"), net("10.77.1.11/32"), net("192.168.5.0/24")],
            None,
        );
        assert_eq!(plan.routes, [main_route("10.77.1.11/32"), main_route("192.168.5.0/24")]);
        assert!(plan.left_out.is_empty());
    }

    #[test]
    fn host_addresses_on_the_interface_give_a_route_per_peer() {
        let plan = RoutePlan::new(&[net("10.77.0.1/32")], [net("10.77.0.11/32"), net("10.77.0.12/32")], None);
        assert_eq!(plan.routes, [main_route("10.77.0.11/32"), main_route("10.77.0.12/32")]);
    }

    #[test]
    fn a_prefix_wider_than_the_interface_network_gets_its_route() {
        let plan = RoutePlan::new(&[net("10.77.0.1/24")], [net("10.0.0.0/8")], None);
        assert_eq!(plan.routes, [main_route("10.0.0.0/8")]);
    }

    #[test]
    fn a_default_route_is_left_out_without_a_mark_and_goes_to_its_table_with_one() {
        let everything = [net("0.0.0.0/0"), net("::/0")];
        let plan = RoutePlan::new(&[net("10.77.0.1/24")], everything, None);
        assert_eq!((plan.routes.len(), plan.left_out), (0, everything.to_vec()));
        let plan = RoutePlan::new(&[net("10.77.0.1/24")], everything, Some(51900));
        assert_eq!(plan.routes, everything.map(|destination| Route { destination, table: 51900 }));
        assert!(plan.left_out.is_empty());
        let plan = RoutePlan::new(&[net("10.77.0.1/24")], everything, Some(MAIN_TABLE));
        assert_eq!((plan.routes.len(), plan.left_out.len()), (0, 2));
    }

    #[test]
    fn the_same_prefix_is_routed_once() {
        let plan = RoutePlan::new(&[net("10.77.0.1/24")], [net("10.1.0.1/16"), net("10.1.0.0/16")], None);
        assert_eq!(plan.routes, [main_route("10.1.0.0/16")]);
    }

    #[test]
    fn an_address_or_network_of_another_interface_is_refused() {
        let ours = net("10.77.0.1/24");
        assert!(matches!(check_address(ours, net("10.77.0.1/32"), 1), Err(NetlinkError::AddressInUse { .. })));
        assert!(matches!(check_address(ours, net("10.77.0.9/24"), 1), Err(NetlinkError::NetworkInUse { .. })));
        assert!(check_address(ours, net("10.77.0.9/16"), 1).is_ok());
        assert!(check_address(net("10.77.0.1/32"), net("10.77.0.9/32"), 1).is_ok());
        assert!(check_address(ours, net("fd00::1/64"), 1).is_ok());
    }

    #[test]
    fn messages_name_the_key_and_the_remedy() {
        let error = check_address(net("10.77.0.1/24"), net("10.77.0.9/24"), 1).unwrap_err().to_string();
        assert!(error.contains("interface.addresses") && error.contains("prefix length of 32"), "{error}");
        let error = NetlinkError::RouteExists { destination: net("10.1.0.0/16"), other: Some("eth0".into()) };
        let error = error.to_string();
        assert!(error.contains("through interface eth0: take 10.1.0.0/16 out of the peer's addresses"), "{error}");
        assert!(!error.contains("route del"), "it may be the network card's own: {error}");
    }
}
