//! A datagram that the slow path wants sent, and the way that it takes.

use std::fmt;

use crate::packet::traffic_class::TrafficClass;

use super::endpoint::Endpoint;

/// One datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to, and from which local address.
    pub endpoint: Endpoint,
    /// From which port.
    pub port: SourcePort,
    /// That of its IP header.
    pub traffic_class: TrafficClass,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// It may be cut into fragments on its way. What may not is lost where it is too long for the path.
    pub may_fragment: bool,
}

impl Transmit {
    /// A handshake message: it has to pass where nothing is known of the path.
    pub(super) fn handshake(endpoint: Endpoint, dscp: Dscp, payload: Vec<u8>) -> Self {
        let traffic_class = dscp.outer(TrafficClass::default());
        Self { endpoint, port: SourcePort::Listen, traffic_class, payload, may_fragment: true }
    }
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
    /// That of their IP headers.
    pub traffic_class: TrafficClass,
}

impl Way {
    /// That of lane 0, which every lane takes that has no other.
    pub fn main(endpoint: Endpoint) -> Self {
        Self { endpoint, port: SourcePort::Listen, traffic_class: TrafficClass::default() }
    }

    /// The path of the lane's own.
    pub fn own(endpoint: Endpoint, lane: u8) -> Self {
        Self { port: SourcePort::Lane(lane), ..Self::main(endpoint) }
    }
}

/// What the DSCP of datagrams says (RFC 2983).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dscp {
    /// What the packets in them say; 0 without any.
    Copy,
    /// Always this: 0 to 63.
    Value(u8),
}

impl Dscp {
    /// The traffic class of a datagram with packets of the class `inner`; of one without packets for the default.
    pub(super) fn outer(self, inner: TrafficClass) -> TrafficClass {
        match self {
            Self::Copy => inner,
            Self::Value(dscp) => inner.with_dscp(dscp),
        }
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.pad("copy"),
            Self::Value(dscp) => dscp.fmt(f),
        }
    }
}

/// Packets look the same from outside, whatever they are.
impl Default for Dscp {
    fn default() -> Self {
        Self::Value(0)
    }
}
