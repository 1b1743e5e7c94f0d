//! The demo's small world: a proxy, two app servers, and between them a network that nobody should trust.
//!
//! ```text
//!   proxy                     untrusted                     app1, app2
//!  ┌────────────┐   ┌───────────────────────────────┐   ┌────────────────┐
//!  │ eth0       ├───┤ proxy ── bridge `lan` ── app1 ├───┤ eth0           │
//!  │ 192.0.2.1  │   │            │ .66        app2  ├─┐ │ 192.0.2.11     │
//!  └────────────┘   └────────────┴──────────────────┘ │ └────────────────┘
//!                                                     └─ eth0 192.0.2.12
//! ```
//!
//! Everything passes the port `proxy`, so that is where one listens; and pulling that port out of the bridge is how a
//! man in the middle comes between. Built over netlink, without `ip`. What runs in the world is not its business.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoData, InfoVeth, LinkAttribute, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::namespace::Namespace;

/// The proxy's address on the untrusted network.
pub(super) const PROXY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The app servers' addresses on the untrusted network.
pub(super) const APPS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12)];
/// The app servers' names.
pub(super) const APP_NAMES: [&str; 2] = ["app1", "app2"];
/// The address of whoever else is on the untrusted network.
pub(super) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

/// The port of the untrusted network that the proxy's cable is in.
pub(super) const PROXY_PORT: &str = "proxy";
/// The bridge that is the untrusted network.
pub(super) const LAN: &str = "lan";

const UPLINK: &str = "eth0";
const PREFIX: u8 = 24;

/// The namespaces and what joins them.
#[derive(Debug)]
pub(super) struct Network {
    /// Where the load balancer runs.
    pub(super) proxy: Namespace,
    /// The network in the middle.
    pub(super) untrusted: Namespace,
    /// Where the apps run.
    pub(super) apps: [Namespace; 2],
}

impl Network {
    /// Builds the world and switches it on.
    pub(super) fn build() -> Result<Self> {
        let network = Self {
            proxy: Namespace::new()?,
            untrusted: Namespace::new()?,
            apps: [Namespace::new()?, Namespace::new()?],
        };
        netlink(&network.untrusted, async |handle| {
            add_link(&handle, bridge()).await?;
            silence(&handle, LAN).await;
            // A man in the middle listens on the bridge itself for frames to others.
            handle.link().set(LinkUnspec::new_with_name(LAN).promiscuous(true).up().build()).execute().await?;
            add_address(&handle, LAN, STRANGER).await
        })?;
        network.connect(PROXY_PORT, &network.proxy, PROXY)?;
        for ((name, namespace), address) in APP_NAMES.iter().zip(&network.apps).zip(APPS) {
            network.connect(name, namespace, address)?;
        }
        Ok(network)
    }

    /// Pulls the proxy's cable out of the bridge: nothing passes but what a relay carries.
    pub(super) fn unplug_proxy(&self) -> Result<()> {
        netlink(&self.untrusted, async |handle| {
            handle.link().set(LinkUnspec::new_with_name(PROXY_PORT).nocontroller().build()).execute().await?;
            Ok(())
        })
    }

    /// Puts the proxy's cable back.
    pub(super) fn plug_proxy(&self) -> Result<()> {
        netlink(&self.untrusted, async |handle| {
            let lan = index(&handle, LAN).await?;
            handle.link().set(LinkUnspec::new_with_name(PROXY_PORT).controller(lan).build()).execute().await?;
            Ok(())
        })
    }

    /// Lets the machines hand trains of packets to the virtual wire uncut, as they do to a real network card, which cuts
    /// them. Before this the wire shows and a man in the middle carries what a real one does: single packets.
    pub(super) fn allow_trains(&self) -> Result<()> {
        [&self.proxy, &self.apps[0], &self.apps[1]].into_iter().try_for_each(|namespace| {
            netlink(namespace, async |handle| {
                handle.link().set(uplink().append_extra_attribute(longest_train(65_535)).build()).execute().await?;
                Ok(())
            })
        })
    }

    /// Lays a cable from the bridge's new port `port` to `namespace`.
    fn connect(&self, port: &str, namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
        netlink(&self.untrusted, async |handle| {
            add_link(&handle, cable(port, namespace)).await?;
            silence(&handle, port).await;
            let lan = index(&handle, LAN).await?;
            handle.link().set(LinkUnspec::new_with_name(port).controller(lan).up().build()).execute().await?;
            Ok(())
        })?;
        netlink(namespace, async |handle| {
            handle.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await?;
            silence(&handle, UPLINK).await;
            handle.link().set(uplink().append_extra_attribute(longest_train(1)).up().build()).execute().await?;
            add_address(&handle, UPLINK, address).await
        })
    }
}

/// Switched off, which `LinkBridge::new` is not. Without multicast snooping, whose own packets would join the sniffer's.
fn bridge() -> LinkMessage {
    LinkMessageBuilder::<LinkBridge>::new(LAN)
        .set_info_data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]))
        .build()
}

/// A veth pair: `port` here, `eth0` in `namespace`.
fn cable(port: &str, namespace: &Namespace) -> LinkMessage {
    let far_end = LinkMessageBuilder::<LinkUnspec>::new().name(UPLINK).setns_by_fd(namespace.as_raw_fd()).build();
    LinkVeth::new(port, UPLINK).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end))).build()
}

fn uplink() -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_name(UPLINK)
}

/// How many packets an interface takes at once.
fn longest_train(packets: u32) -> LinkAttribute {
    LinkAttribute::GsoMaxSegs(packets)
}

/// Gives an interface no IPv6 link-local address: its solicitations and reports would only clutter what the sniffer hears.
/// To be done between making it and switching it on.
async fn silence(handle: &Handle, name: &str) {
    let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let message =
        LinkUnspec::new_with_name(name).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_address])).build();
    // It fails where the machine has no IPv6, and so no such address.
    drop(handle.link().set(message).execute().await);
}

async fn add_link(handle: &Handle, message: LinkMessage) -> Result<()> {
    handle.link().add(message).execute().await.context("adding a virtual network interface (veth or bridge)")
}

async fn add_address(handle: &Handle, name: &str, address: Ipv4Addr) -> Result<()> {
    let index = index(handle, name).await?;
    handle.address().add(index, address.into(), PREFIX).execute().await.context("adding an address")
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    let link = handle.link().get().match_name(name).execute().try_next().await?;
    link.map(|link| link.header.index).with_context(|| format!("there is no interface {name}"))
}

/// Runs netlink requests inside `namespace`.
fn netlink(namespace: &Namespace, work: impl AsyncFnOnce(Handle) -> Result<()> + Send) -> Result<()> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let result = work(handle).await;
            connection.abort();
            result
        })
    })
}
