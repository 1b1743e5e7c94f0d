//! A datagram that the slow path wants sent, and the way that it takes.

use super::endpoint::Endpoint;

/// One datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to, and from which local address.
    pub endpoint: Endpoint,
    /// From which port.
    pub port: SourcePort,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// It may be cut into fragments on its way. What may not is lost where it is too long for the path.
    pub may_fragment: bool,
}

/// Which of our UDP ports a datagram leaves from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SourcePort {
    /// The one that we listen on.
    #[default]
    Listen,
    /// This lane's own.
    Lane(u8),
}

/// The way of a lane's datagrams to its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Where to, and from which local address.
    pub endpoint: Endpoint,
    /// From which port.
    pub port: SourcePort,
}

impl Way {
    /// That of lane 0, which every lane takes that has no other.
    pub fn main(endpoint: Endpoint) -> Self {
        Self { endpoint, port: SourcePort::Listen }
    }

    /// The path of the lane's own.
    pub fn own(endpoint: Endpoint, lane: u8) -> Self {
        Self { endpoint, port: SourcePort::Lane(lane) }
    }
}
