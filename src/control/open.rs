//! Networks that are refused though they are no longer configured, and opening them on purpose.
//!
//! The kernel's table remembers them, over reloads, restarts and times without a daemon; `netlink` knows how.

use std::error::Error;

use ipnet::IpNet;
use tokio::runtime::Builder;

use super::api::{ApiError, ErrorCode, OpenReport, Opened, SCHEMA_VERSION};
use super::audit;
use super::netlink::{Netlink, NetlinkError, Route, still_refused};
use super::reload::chain;
use super::routes::{Plan, networks};
use super::running::Running;
use super::translate;
use crate::config::Config;

impl Running<'_> {
    /// Refuses nothing in `prefix` any longer but what is configured.
    pub(super) async fn open(&mut self, prefix: IpNet) -> Result<OpenReport, ApiError> {
        let held = self.routes.hold().await;
        let before = networks(&held.refused);
        let failed = |error: &dyn Error| ApiError::new(ErrorCode::OpenFailed, chain(error));
        self.privileged.open(prefix).await.map_err(|error| failed(&error))?;
        let refused = still_refused(&held.settings).await.map_err(|error| failed(&error))?;
        let opened = Opened {
            opened: before
                .iter()
                .filter(|network| overlap(network, &prefix))
                .map(|net| narrower(*net, prefix))
                .collect(),
            configured: networks(&held.settings.closed)
                .into_iter()
                .filter(|network| overlap(network, &prefix))
                .collect(),
            refused: networks(&refused),
        };
        let plan = Plan { refused, ..held.clone() };
        self.routes.replace(held, plan);
        audit::opened(&listed(&opened.opened));
        Ok(OpenReport { schema_version: SCHEMA_VERSION, open: opened })
    }
}

/// The same on a machine where no daemon runs, for one interface or all. Returns what was opened.
pub fn without_daemon(prefix: IpNet, interface: Option<&str>) -> Result<Vec<IpNet>, NetlinkError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(NetlinkError::Open)?;
    runtime.block_on(async { Netlink::open()?.open_network(prefix, interface).await })
}

/// What is refused on this machine beside what `config` has refused. Nothing where the kernel does not say.
pub fn refused_beside(config: &Config) -> Vec<IpNet> {
    let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let settings = translate::interface_settings(config, 0, false);
    let refused = runtime.block_on(still_refused(&settings));
    refused.map_or_else(|_| Vec::new(), |routes| networks(&routes))
}

/// Says in the log what is still refused.
pub(super) fn warn_of_refused(routes: &[Route]) {
    warn_of_networks(&networks(routes));
}

/// The same.
pub(super) fn warn_of_networks(networks: &[IpNet]) {
    if !networks.is_empty() {
        let networks = listed(networks);
        tracing::warn!(networks, "still refused though no longer configured: `underpass open NETWORK` ends that");
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn narrower(one: IpNet, other: IpNet) -> IpNet {
    if one.prefix_len() >= other.prefix_len() { one } else { other }
}

fn listed(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
