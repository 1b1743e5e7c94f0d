//! The newest error that the network has sent about datagrams to each endpoint: for an operator who wants to know why nobody
//! answers.
//!
//! A hint and no more: anyone can forge ICMP, so nothing is done about it. The number of endpoints is bounded.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::udp::{IcmpError, UdpSocket};
use crate::proto::router::Router;

/// Endpoints that are remembered, at most; a further one takes the place of the oldest.
const MAX_ENDPOINTS: usize = 256;

/// Errors by endpoint. Shared by all threads that receive.
#[derive(Debug, Default)]
pub struct NetworkErrors(Mutex<Vec<NetworkError>>);

/// The network's errors about one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkError {
    /// Destination of the datagrams.
    pub endpoint: SocketAddr,
    /// The newest error's kind.
    pub kind: NetworkErrorKind,
    /// The machine that says so.
    pub from: IpAddr,
    /// Number of errors about this endpoint.
    pub count: u64,
    /// When the newest came, as time since the Unix epoch.
    pub latest: Duration,
}

/// Kinds of errors that ICMP reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkErrorKind {
    /// Nothing listens at the port.
    PortUnreachable,
    /// The host does not answer on its own network.
    HostUnreachable,
    /// A router has no way.
    NetworkUnreachable,
    /// A firewall's answer.
    Prohibited,
    /// The host takes no UDP.
    ProtocolUnreachable,
    /// A datagram is longer than a link on the way carries.
    TooBig,
    /// A routing loop on the way, or fragments that were lost.
    TimeExceeded,
    /// Anything else, by ICMP's type and code.
    Other(u8, u8),
}

impl NetworkErrors {
    /// Takes what the kernel has for `socket`, and remembers what is about an endpoint of `router`'s: of others nobody wants
    /// to know anything.
    pub(super) fn take(&self, unix_time: Duration, socket: &UdpSocket, router: &Router) {
        socket.take_errors(|told| {
            if router.has_endpoint(told.endpoint) {
                self.note(unix_time, told);
            }
        });
    }

    /// Remembers what was told at `unix_time`.
    fn note(&self, unix_time: Duration, told: IcmpError) {
        let IcmpError { endpoint, kind, from } = told;
        let mut errors = self.errors();
        if let Some(known) = errors.iter_mut().find(|known| known.endpoint == endpoint) {
            *known = NetworkError { kind, from, count: known.count + 1, latest: unix_time, ..*known };
            return;
        }
        if errors.len() >= MAX_ENDPOINTS
            && let Some(oldest) = (0..errors.len()).min_by_key(|index| errors[*index].latest)
        {
            errors.swap_remove(oldest);
        }
        errors.push(NetworkError { endpoint, kind, from, count: 1, latest: unix_time });
    }

    /// The error that is remembered of `endpoint`.
    pub fn of(&self, endpoint: SocketAddr) -> Option<NetworkError> {
        let is_same =
            |known: &&NetworkError| (known.endpoint.ip(), known.endpoint.port()) == (endpoint.ip(), endpoint.port());
        self.errors().iter().find(is_same).copied()
    }

    fn errors(&self) -> MutexGuard<'_, Vec<NetworkError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetworkErrorKind {
    /// By RFC 792 and RFC 1812 §5.2.7.1.
    pub(super) fn of_v4(kind: u8, code: u8) -> Self {
        match (kind, code) {
            (3, 0 | 6 | 8 | 11) => Self::NetworkUnreachable,
            (3, 1 | 5 | 7 | 12) => Self::HostUnreachable,
            (3, 2) => Self::ProtocolUnreachable,
            (3, 3) => Self::PortUnreachable,
            (3, 4) => Self::TooBig,
            (3, 9 | 10 | 13) => Self::Prohibited,
            (11, _) => Self::TimeExceeded,
            _ => Self::Other(kind, code),
        }
    }

    /// By RFC 4443 §3.
    pub(super) fn of_v6(kind: u8, code: u8) -> Self {
        match (kind, code) {
            (1, 0) => Self::NetworkUnreachable,
            (1, 2 | 3) => Self::HostUnreachable,
            (1, 4) => Self::PortUnreachable,
            (1, 1 | 5 | 6) => Self::Prohibited,
            (2, _) => Self::TooBig,
            (3, _) => Self::TimeExceeded,
            _ => Self::Other(kind, code),
        }
    }
}

impl std::fmt::Display for NetworkErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PortUnreachable => "port unreachable",
            Self::HostUnreachable => "host unreachable",
            Self::NetworkUnreachable => "network unreachable",
            Self::Prohibited => "administratively prohibited",
            Self::ProtocolUnreachable => "protocol unreachable",
            Self::TooBig => "packet too big",
            Self::TimeExceeded => "time exceeded",
            Self::Other(kind, code) => return write!(f, "ICMP type {kind}, code {code}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: u16, kind: NetworkErrorKind) -> IcmpError {
        let endpoint = SocketAddr::from(([192, 0, (number >> 8) as u8, number as u8], 51900));
        IcmpError { endpoint, kind, from: "192.0.2.254".parse().unwrap() }
    }

    #[test]
    fn the_newest_of_each_endpoint_is_kept_and_counted() {
        let errors = NetworkErrors::default();
        let at = Duration::from_secs;
        errors.note(at(1), told(1, NetworkErrorKind::HostUnreachable));
        errors.note(at(5), told(1, NetworkErrorKind::PortUnreachable));
        let known = errors.of(told(1, NetworkErrorKind::TooBig).endpoint).unwrap();
        assert_eq!((known.kind, known.count, known.latest), (NetworkErrorKind::PortUnreachable, 2, at(5)));
        assert_eq!(errors.of(told(2, NetworkErrorKind::TooBig).endpoint), None);
    }

    #[test]
    fn forged_errors_about_many_endpoints_take_no_more_room() {
        let errors = NetworkErrors::default();
        for number in 0..2000 {
            errors.note(Duration::from_secs(number.into()), told(number, NetworkErrorKind::PortUnreachable));
        }
        assert_eq!(errors.errors().len(), MAX_ENDPOINTS);
        assert!(errors.of(told(1999, NetworkErrorKind::TooBig).endpoint).is_some());
        assert!(errors.of(told(1, NetworkErrorKind::TooBig).endpoint).is_none());
    }
}
