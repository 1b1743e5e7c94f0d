//! The way of packets to an address, in an operator's words.

use std::fs;
use std::net::IpAddr;

use nix::net::if_::{if_indextoname, if_nametoindex};

use crate::control::netlink::{Lookup, Netlink};

/// Asks the kernel.
#[derive(Debug)]
pub(super) struct Ways {
    /// None where the kernel can't be asked.
    netlink: Option<Netlink>,
    /// The tunnel's index.
    tunnel: Option<u32>,
}

/// The way of packets to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Into the tunnel.
    Tunnel,
    /// Out by this interface.
    Elsewhere(String),
    /// Out by this interface, whose reverse-path filter drops what comes back.
    Filtered(String),
    /// To this machine itself.
    Local,
    /// A route refuses them.
    Refused,
    /// No route leads there.
    Nowhere,
    /// The kernel does not say.
    Unknown,
}

impl Ways {
    /// For the tunnel interface of that name. Must be made inside a tokio runtime.
    pub(super) fn open(interface: &str) -> Self {
        Self { netlink: Netlink::open().ok(), tunnel: if_nametoindex(interface).ok() }
    }

    /// The way of packets to `address` with this firewall mark.
    pub(super) async fn to(&self, address: IpAddr, fwmark: Option<u32>) -> Way {
        let Some(netlink) = &self.netlink else { return Way::Unknown };
        match netlink.lookup(address, fwmark).await {
            Lookup::Interface(index) if Some(index) == self.tunnel => Way::Tunnel,
            Lookup::Interface(index) => Way::Elsewhere(interface_name(index)),
            Lookup::Local => Way::Local,
            Lookup::Refused => Way::Refused,
            Lookup::Nowhere => Way::Nowhere,
            Lookup::Unknown => Way::Unknown,
        }
    }

    /// The way of the daemon's own datagrams to `address`, and whether answers are let in: a strict filter asks where
    /// packets without the mark would go.
    pub(super) async fn to_endpoint(&self, address: IpAddr, fwmark: Option<u32>) -> Way {
        match self.to(address, fwmark).await {
            Way::Elsewhere(interface)
                if address.is_ipv4()
                    && fwmark.is_some()
                    && is_strict(&interface)
                    && self.to(address, None).await == Way::Tunnel =>
            {
                Way::Filtered(interface)
            }
            way => way,
        }
    }
}

/// The kernel takes the greater of both values; 1 is strict, 2 loose. With `src_valid_mark` it heeds marks.
fn is_strict(interface: &str) -> bool {
    let value = |scope: &str, name: &str| -> u32 {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{scope}/{name}")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let greatest = |name: &str| value("all", name).max(value(interface, name));
    greatest("rp_filter") == 1 && greatest("src_valid_mark") == 0
}

fn interface_name(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}
