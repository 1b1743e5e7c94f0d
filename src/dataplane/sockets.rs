//! Which UDP sockets there are, and which worker has which.
//!
//! ```text
//!                 the port that we listen on      a port of its own
//!   worker 0      a share                         none: the share is lane 0's
//!   worker i      a share                         lane i's
//! ```
//!
//! Each for every address that we listen on. It sends and receives nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::proto::transmit::SourcePort;

use super::DataplaneConfig;
use super::udp::{BindError, BindOptions, UdpSocket};

/// What one thread sends from, and a worker receives on.
#[derive(Debug, Clone)]
pub(super) struct Sockets {
    /// A share of each port that we listen on, in the order of the addresses; at least one.
    pub(super) listen: Arc<[UdpSocket]>,
    /// By lane, as many as of the others, or none.
    of_lane: Arc<[Box<[UdpSocket]>]>,
}

impl Sockets {
    /// Where no lane has a port of its own.
    pub(super) fn shared(listen: impl Into<Arc<[UdpSocket]>>) -> Self {
        Self { listen: listen.into(), of_lane: Arc::default() }
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

    /// Has what leaves from all of them marked.
    pub(super) fn set_mark(&self, mark: Option<u32>) -> io::Result<()> {
        let all = self.listen.iter().chain(self.of_lane.iter().flatten());
        all.into_iter().try_for_each(|socket| socket.set_mark(mark))
    }

    /// Every port that any thread sends from.
    pub(super) fn ports(&self) -> Arc<[u16]> {
        let all = self.listen.iter().chain(self.of_lane.iter().flatten());
        all.map(|socket| socket.local().port()).collect()
    }
}

/// One set per worker.
pub(super) fn bind(config: &DataplaneConfig) -> Result<Vec<Sockets>, BindError> {
    let first = bind_set(config)?;
    if config.workers == 1 {
        return Ok(vec![Sockets::shared(first)]);
    }
    // Shared ports would also be shared with another program of ours: the first set was bound alone to notice one. Its
    // ports, now known, are bound again, once per worker.
    let addresses: Vec<SocketAddr> = first.iter().map(UdpSocket::local).collect();
    drop(first);
    let options = BindOptions { shared: false, fwmark: config.fwmark };
    let shares = (0..config.workers).map(|_| bind_all(&addresses, BindOptions { shared: true, ..options }));
    let shares = shares.collect::<Result<Vec<_>, _>>()?;
    for socket in &shares[0] {
        // Without it the kernel picks a worker by the sender's address: every lane of a peer then ends at one worker.
        if let Err(error) = socket.steer_by_lane(config.workers) {
            tracing::debug!(%error, "the kernel does not give each lane's datagrams to its worker");
        }
    }
    let any_port: Vec<SocketAddr> = addresses.iter().map(|address| SocketAddr::new(address.ip(), 0)).collect();
    let of_lane = (0..config.workers).map(|lane| if lane == 0 { Ok(Vec::new()) } else { bind_all(&any_port, options) });
    let of_lane = of_lane.map(|set| set.map(Vec::into_boxed_slice)).collect::<Result<Vec<_>, _>>()?;
    let of_lane: Arc<[_]> = of_lane.into();
    Ok(shares.into_iter().map(|share| Sockets { listen: share.into(), of_lane: of_lane.clone() }).collect())
}

fn bind_all(addresses: &[SocketAddr], options: BindOptions) -> Result<Vec<UdpSocket>, BindError> {
    addresses.iter().map(|address| UdpSocket::bind(*address, options)).collect()
}

fn bind_set(config: &DataplaneConfig) -> Result<Vec<UdpSocket>, BindError> {
    let options = BindOptions { shared: false, fwmark: config.fwmark };
    let mut sockets = Vec::new();
    let mut passed_over = None;
    for address in &config.listen {
        match UdpSocket::bind(*address, options) {
            Ok(socket) => sockets.push(socket),
            Err(error) if config.ipv6_optional && address.is_ipv6() && error.is_family_missing() => {
                tracing::info!(%address, "this host has no IPv6, going on without");
                passed_over = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match passed_over {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok(sockets),
    }
}
