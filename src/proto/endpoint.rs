//! Where a peer is: its UDP address, and the local address that we answer from.

use std::net::{IpAddr, SocketAddr};

/// A peer's UDP address, with the local address its last datagram was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The local address to send from; `None` lets the kernel choose.
    pub local: Option<IpAddr>,
    /// Index of the interface to send on, for link-local addresses; 0 for any.
    pub interface: u32,
}

impl Endpoint {
    /// An endpoint known by its address only, as configuration gives it.
    pub fn new(remote: SocketAddr) -> Self {
        Self { remote, local: None, interface: 0 }
    }
}
