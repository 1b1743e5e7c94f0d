//! A datagram that the slow path wants sent.

use super::endpoint::Endpoint;

/// One datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to, and from which local address.
    pub endpoint: Endpoint,
    /// The UDP payload.
    pub payload: Vec<u8>,
}
