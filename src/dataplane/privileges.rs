//! What takes a capability: asked of another process where the kernel has refused it to this one.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::tun::{DeviceMode, Tun, TunError};

/// Whoever may do what takes a capability.
pub trait Privileges: fmt::Debug + Send + Sync {
    /// Gives the socket what it is to have.
    fn grant(&self, socket: BorrowedFd<'_>, grant: SocketGrant) -> io::Result<()>;

    /// Creates the configured TUN, and returns its queues in their order.
    fn create_device(&self) -> io::Result<Vec<OwnedFd>>;
}

/// A thing that takes a capability, for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketGrant {
    /// A port below 1024 to listen on.
    Bind(SocketAddr),
    /// SO_MARK; 0 for none.
    Mark(u32),
    /// A receive buffer of so many bytes, whatever `net.core.rmem_max` says.
    ReceiveBuffer(usize),
    /// A send buffer of so many bytes, whatever `net.core.wmem_max` says.
    SendBuffer(usize),
}

/// What was `tried`, or what another grants where that was refused.
pub fn or_granted(
    tried: io::Result<()>,
    privileges: Option<&dyn Privileges>,
    socket: BorrowedFd<'_>,
    grant: SocketGrant,
) -> io::Result<()> {
    match (tried, privileges) {
        (Err(error), Some(privileges)) if error.kind() == io::ErrorKind::PermissionDenied => {
            privileges.grant(socket, grant)
        }
        (tried, _) => tried,
    }
}

/// Creates a TUN for another process, and returns its queues in their order.
pub fn create_device(name: &str, mode: DeviceMode, queues: u8) -> Result<Vec<OwnedFd>, TunError> {
    Tun::create(name, mode, queues)?.into_queues().map_err(|source| TunError::Io { name: name.into(), source })
}
