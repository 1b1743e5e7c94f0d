//! `underpass close`: refuses without a daemon what a daemon would.

use std::io::{self, Write};

use tokio::runtime::Builder;

use super::arguments::CloseArguments;
use super::{Exit, Failure};
use crate::config::Config;
use crate::control::close::{self, CloseError};
use crate::control::netlink::Route;
use crate::control::nftables::{GuardError, GuardPlan, script, table_name};
use crate::control::translate;

/// Sets, prints or removes it.
pub fn run(arguments: &CloseArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let Some(file) = &arguments.config else {
        let tables = runtime.block_on(close::open_everything())?;
        writeln!(out, "removed the routes that refuse packets, and {} nftables tables", tables.len())?;
        return Ok(());
    };
    let config = Config::load_without_keys(file)?;
    if arguments.print {
        return Ok(print(&config, &close::plan(&config)?, out)?);
    }
    let plan = runtime.block_on(close::close(&config))?;
    writeln!(
        out,
        "{} is closed: routes of type unreachable, table inet {}",
        config.interface.name,
        table_name(&config.interface.name)
    )?;
    for left in &plan.left_out {
        writeln!(out, "  not refused as a source on other interfaces: {} ({})", left.network, left.reason)?;
    }
    Ok(())
}

fn print(config: &Config, plan: &GuardPlan, out: &mut dyn Write) -> io::Result<()> {
    for Route { destination, table } in translate::interface_settings(config, 0, false).closed {
        writeln!(out, "# ip route replace unreachable {destination} table {table} proto 151 metric 1073741824")?;
    }
    write!(out, "{}", script(&plan.rules))
}

impl From<CloseError> for Failure {
    fn from(error: CloseError) -> Self {
        let exit = match &error {
            CloseError::Netlink(error) => super::run::exit_of_netlink(error),
            CloseError::Guard(GuardError::NoPermission) => Exit::Permission,
            CloseError::Guard(GuardError::Unsupported(_) | GuardError::Refused(_)) => Exit::Device,
            CloseError::NotWanted => Exit::Config,
        };
        Self::new(exit, error)
    }
}
