//! Closing without a daemon: the routes that refuse packets for peers, and the table that refuses tunnel addresses on other
//! interfaces. For the time before a daemon's first start, and for one that has not the privilege itself.

use nix::net::if_::if_nametoindex;

use super::netlink::{Netlink, NetlinkError};
use super::nftables::{self, GuardError, GuardPlan, MachineAddress};
use super::translate;
use crate::config::Config;

/// Why it is not closed, or not opened again.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The routes, or an address that is another interface's.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The table.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// `fail_closed = false`.
    #[error("interface.fail_closed is false: there is nothing to close")]
    NotWanted,
}

/// Rules that [`close`] sets in the table.
pub fn plan(config: &Config) -> Result<GuardPlan, CloseError> {
    let others = MachineAddress::list_without(&config.interface.name).unwrap_or_default();
    translate::guard_subject(config).map(|subject| subject.plan_early(&others)).ok_or(CloseError::NotWanted)
}

/// Sets what a daemon of this configuration would leave behind. What is there already stays. Inside a tokio runtime.
pub async fn close(config: &Config) -> Result<GuardPlan, CloseError> {
    let plan = plan(config)?;
    let index = if_nametoindex(config.interface.name.as_str()).unwrap_or_default();
    let settings = translate::interface_settings(config, index, false);
    let netlink = Netlink::open()?;
    netlink.check_addresses(&settings).await?;
    let routes = netlink.close(&settings).await;
    nftables::apply(&plan.rules)?;
    routes?;
    Ok(plan)
}

/// Takes back what any daemon of this machine, or [`close`], has set. Returns the names of the tables. Inside a tokio runtime.
pub async fn open_everything() -> Result<Vec<String>, CloseError> {
    Netlink::open()?.open_everything().await?;
    Ok(nftables::remove_all()?)
}
