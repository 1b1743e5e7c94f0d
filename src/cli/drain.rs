//! `underpass drain` and `underpass undrain`: whether a link is to get new connections.

use std::io::Write;

use super::Failure;
use super::arguments::DrainArguments;
use crate::control::client;

/// Asks the daemon and says to `out` how the link is called from here on.
pub fn run(arguments: &DrainArguments, draining: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let drain = client::set_draining(&arguments.daemon.socket()?, arguments.peer.clone(), draining)?;
    let state = if drain.draining { "draining" } else { "no longer draining" };
    Ok(writeln!(out, "{}: {state}", drain.peer)?)
}
