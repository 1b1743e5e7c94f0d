//! Which UDP sockets there are, and which lane has which.
//!
//! ```text
//!                 the port that we listen on                  a port of its own
//!   lane 0        a share                                     none: the share is lane 0's
//!   lane i        a share                                     lane i's
//!   slow path     the share for all that is no transport data
//! ```
//!
//! Each for every address that we listen on. What is no transport data has a queue of its own in the kernel, since anyone may
//! send it: a flood of it fills no queue that data waits in. This module sends and receives nothing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use crate::proto::transmit::SourcePort;

use super::DataplaneConfig;
use super::inheritance::Role;
use super::privileges::Privileges;
use super::udp::{BindError, BindOptions, UdpSocket};

/// The sockets that a lane, or the slow path, sends from and receives on.
#[derive(Debug, Clone)]
pub(super) struct Sockets {
    /// A share of each port that we listen on, in the order of the addresses; at least one.
    pub(super) listen: Arc<[UdpSocket]>,
    /// The share of each port for all that is no transport data, on which the slow path receives.
    pub(super) handshakes: Arc<[UdpSocket]>,
    /// By lane, as many as of the others, or none.
    of_lane: Arc<[Box<[UdpSocket]>]>,
}

impl Sockets {
    /// Where no lane has a port of its own.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn shared(listen: impl Into<Arc<[UdpSocket]>>) -> Self {
        Self { listen: listen.into(), handshakes: Arc::default(), of_lane: Arc::default() }
    }

    /// Those that leave from `port`.
    pub(super) fn on(&self, port: SourcePort) -> &[UdpSocket] {
        match port {
            SourcePort::Listen => &self.listen,
            SourcePort::Lane(lane) => self.of_lane(lane),
        }
    }

    /// Those of a lane's own port; none if it has none.
    pub(super) fn of_lane(&self, lane: u8) -> &[UdpSocket] {
        self.of_lane.get(usize::from(lane)).map_or(&[], |sockets| sockets)
    }

    fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        self.listen.iter().chain(self.handshakes.iter()).chain(self.of_lane.iter().flatten())
    }

    /// Has what leaves from all of them marked.
    pub(super) fn set_mark(&self, mark: Option<u32>, privileges: Option<&dyn Privileges>) -> io::Result<()> {
        self.all().try_for_each(|socket| socket.set_mark(mark, privileges))
    }

    /// Drops what has come for the process before.
    pub(super) fn discard_queued(&self) {
        self.all().for_each(UdpSocket::discard_queued);
    }

    /// The descriptors of lane `number` and, with the first lane's, those that all have, each with what it is for.
    pub(super) fn descriptors(&self, number: u8) -> impl Iterator<Item = (Role, BorrowedFd<'_>)> {
        let shares = self.listen.iter().map(move |socket| (Role::Listen(number), socket.as_fd()));
        let handshakes = self.handshakes.iter().map(|socket| (Role::Handshakes, socket.as_fd()));
        let lanes = (0..).zip(self.of_lane.iter());
        let of_lanes =
            lanes.flat_map(|(lane, sockets)| sockets.iter().map(move |socket| (Role::Lane(lane), socket.as_fd())));
        shares.chain(handshakes.chain(of_lanes).filter(move |_| number == 0))
    }

    /// Every port that any thread sends from.
    pub(super) fn ports(&self) -> Arc<[u16]> {
        let all = self.listen.iter().chain(self.of_lane.iter().flatten());
        all.map(|socket| socket.local().port()).collect()
    }
}

/// All sockets of one address that we listen on.
#[derive(Debug)]
pub(super) struct AddressSockets {
    /// One per lane: a share of the port.
    pub(super) shares: Vec<UdpSocket>,
    /// One more share, for all that is no transport data.
    pub(super) handshakes: UdpSocket,
    /// One per lane but the first.
    pub(super) of_lane: Vec<UdpSocket>,
}

/// The sockets in use as one set per address: other descriptors of the same sockets.
pub(super) fn duplicated(sockets: &[Sockets]) -> io::Result<Vec<AddressSockets>> {
    let duplicate = |socket: &UdpSocket| socket.duplicate();
    let of_address = |number: usize| {
        let shares = sockets.iter().map(|of_lane| duplicate(&of_lane.listen[number])).collect::<io::Result<_>>()?;
        let lanes = sockets[0].of_lane.iter().skip(1);
        let of_lane = lanes.map(|lane| duplicate(&lane[number])).collect::<io::Result<_>>()?;
        Ok(AddressSockets { shares, handshakes: duplicate(&sockets[0].handshakes[number])?, of_lane })
    };
    (0..sockets[0].listen.len()).map(of_address).collect()
}

/// One set per lane. Of an address that `kept` has sockets of, nothing is bound.
pub(super) fn bind(config: &DataplaneConfig, mut kept: Vec<AddressSockets>) -> Result<Vec<Sockets>, BindError> {
    let mut sockets = Vec::new();
    let mut passed_over = None;
    for address in &config.listen {
        if let Some(position) = kept.iter().position(|kept| kept.serves(address)) {
            sockets.push(kept.swap_remove(position));
            continue;
        }
        match AddressSockets::bind(*address, config) {
            Ok(bound) => sockets.push(bound),
            Err(error) if config.ipv6_optional && address.is_ipv6() && error.is_family_missing() => {
                tracing::info!(%address, "this host has no IPv6, going on without");
                passed_over = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = passed_over.filter(|_| sockets.is_empty()) {
        return Err(error);
    }
    for address in &sockets {
        // Without it the kernel picks a socket by the sender's address: every lane of a peer then ends at one of ours.
        if let Err(error) = address.shares[0].steer_by_lane(config.lanes) {
            tracing::warn!(%error, "the kernel does not give each lane's datagrams to its socket");
        }
    }
    Ok(by_lane(config.lanes, sockets))
}

impl AddressSockets {
    fn bind(address: SocketAddr, config: &DataplaneConfig) -> Result<Self, BindError> {
        let privileges = config.privileges.as_deref();
        let options = BindOptions { shared: false, handshakes: false, fwmark: config.fwmark, privileges };
        let first = UdpSocket::bind(address, options)?;
        // A shared port would also be shared with another program of ours: the first was bound alone to notice one. Its
        // port, which is known from there on, is bound again, once per lane and once more.
        let address = first.local();
        drop(first);
        let share = BindOptions { shared: true, ..options };
        let shares = (0..config.lanes).map(|_| UdpSocket::bind(address, share)).collect::<Result<_, _>>()?;
        let handshakes = UdpSocket::bind(address, BindOptions { handshakes: true, ..share })?;
        let any_port = SocketAddr::new(address.ip(), 0);
        let of_lane = (1..config.lanes).map(|_| UdpSocket::bind(any_port, options)).collect::<Result<_, _>>()?;
        Ok(Self { shares, handshakes, of_lane })
    }

    /// Whether an `address` to listen on means these. Port 0 is any.
    fn serves(&self, address: &SocketAddr) -> bool {
        let local = self.shares[0].local();
        local == *address || address.port() == 0 && local.ip() == address.ip()
    }
}

fn by_lane(lanes: u8, addresses: Vec<AddressSockets>) -> Vec<Sockets> {
    let mut listen: Vec<Vec<UdpSocket>> = (0..lanes).map(|_| Vec::new()).collect();
    let mut of_lane: Vec<Vec<UdpSocket>> = (0..lanes).map(|_| Vec::new()).collect();
    let mut handshakes = Vec::new();
    for AddressSockets { shares, handshakes: of_address, of_lane: lanes } in addresses {
        handshakes.push(of_address);
        listen.iter_mut().zip(shares).for_each(|(sockets, share)| sockets.push(share));
        of_lane.iter_mut().skip(1).zip(lanes).for_each(|(sockets, lane)| sockets.push(lane));
    }
    let of_lane: Arc<[_]> = of_lane.into_iter().map(Vec::into_boxed_slice).collect();
    let handshakes: Arc<[_]> = handshakes.into();
    let set =
        |listen: Vec<_>| Sockets { listen: listen.into(), handshakes: handshakes.clone(), of_lane: of_lane.clone() };
    listen.into_iter().map(set).collect()
}
