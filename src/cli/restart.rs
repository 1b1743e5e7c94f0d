//! `underpass restart`: has a running daemon give its place to the program and the configuration that lie on disk.

use std::io::Write;

use super::Failure;
use super::arguments::RestartArguments;
use crate::control::client;

/// Asks the daemon, waits for the new one and says to `out` which it is.
pub fn run(arguments: &RestartArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let socket = client::find_socket(arguments.socket.clone(), arguments.interface.as_deref())?;
    let interface = client::restart(&socket)?.interface;
    Ok(writeln!(out, "{}: restarted, version {}, process {}", interface.name, interface.version, interface.pid)?)
}
