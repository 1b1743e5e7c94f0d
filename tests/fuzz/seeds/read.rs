//! A TUN read as the targets' data describes it.

use crate::choices::{UDP, V6};

/// What [`Choices::read`](crate::choices::Choices::read) takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub shape: u8,
    pub tcp_flags: u8,
    /// Words of IP options in the lower half, of TCP options in the upper.
    pub options: u8,
    pub port: u8,
    pub source: u8,
    pub destination: u8,
    pub payload: u16,
    /// 0 for a packet that is no superpacket.
    pub segment: u16,
}

impl Read {
    /// A superpacket over IPv4 with timestamps, ACK and PSH.
    pub(crate) const fn tcp(payload: u16, segment: u16) -> Self {
        Self { shape: 0, tcp_flags: 0x18, options: 0x30, port: 1, source: 1, destination: 2, payload, segment }
    }

    /// The same as UDP.
    pub(crate) const fn udp(payload: u16, segment: u16) -> Self {
        Self { shape: UDP, ..Self::tcp(payload, segment) }
    }

    pub(crate) const fn over_v6(self) -> Self {
        self.shaped(V6)
    }

    pub(crate) const fn shaped(self, shape: u8) -> Self {
        Self { shape: self.shape | shape, ..self }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { shape, tcp_flags, options, port, source, destination, payload, segment } = *self;
        let mut bytes = vec![shape, tcp_flags, options, port, source, destination, 16];
        bytes.extend(payload.to_le_bytes());
        bytes.extend(segment.to_le_bytes());
        bytes
    }
}
