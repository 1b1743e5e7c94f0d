//! Routing of a packet as the kernel would do it: the kernel is asked, so that rules, tables and metrics count as they
//! do for packets.

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};

use super::{Netlink, errno, output_interface, table};

/// A packet that this machine might send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question {
    /// Destination of the packet.
    pub destination: IpAddr,
    /// Source of the packet, if a program has chosen one.
    pub source: Option<IpAddr>,
}

/// The way that it would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out by an interface.
    Out {
        /// Its index.
        interface: u32,
        /// The next hop, if it is another one than the destination.
        gateway: Option<IpAddr>,
        /// The routing table that says so, where the kernel tells.
        table: u32,
    },
    /// To this machine itself.
    Local,
    /// Nowhere: a route or rule refuses it, or there is none.
    Refused,
}

impl Netlink {
    /// The way that the kernel sends a packet without a mark. `None` where it does not say.
    pub async fn way(&self, Question { destination, source }: Question) -> Option<Way> {
        match self.route_get(destination, source, None).await {
            Ok(route) => way(&route?),
            Err(error) => is_refusal(errno(&error)?).then_some(Way::Refused),
        }
    }
}

fn way(route: &RouteMessage) -> Option<Way> {
    match route.header.kind {
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => Some(Way::Local),
        RouteType::Unicast => {
            Some(Way::Out { interface: output_interface(route)?, gateway: gateway(route), table: table(route) })
        }
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => Some(Way::Refused),
        _ => None,
    }
}

pub(super) fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) | RouteAttribute::Via(RouteVia::Inet(address)) => {
            Some((*address).into())
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) | RouteAttribute::Via(RouteVia::Inet6(address)) => {
            Some((*address).into())
        }
        _ => None,
    })
}

/// The kernel's words for unreachable, prohibited and blackholed, and for no route at all.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL | Errno::ESRCH)
}
