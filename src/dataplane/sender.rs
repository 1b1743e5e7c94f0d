//! The way out of one thread: picks the socket by port and address, and falls back to single datagrams where the kernel
//! refuses many at once.

use std::fmt::Debug;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::proto::constants::PATH_FLOOR_LEN;
use crate::proto::transmit::Way;

use super::sockets::Sockets;
use super::udp::UdpSocket;

/// The most bytes of one segmented send: an IPv4 packet less its headers.
pub(super) const MAX_SEND_LEN: usize = 65_507;
/// The most datagrams of one segmented send: `UDP_MAX_SEGMENTS` was 64 up to Linux 6.8, 128 after.
pub(super) const MAX_SEND_SEGMENTS: usize = 64;

/// A destination whose path refused segmentation gets single datagrams for this long before the next attempt.
const SEGMENTATION_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Datagrams that are not worth telling the kernel that it may cut them: answers to floods among them.
const WHOLE_EVERYWHERE: usize = PATH_FLOOR_LEN as usize;
/// How many such destinations are remembered; a further one replaces the oldest.
const MAX_REFUSALS: usize = 64;

/// Where the datagrams of a batch leave to: sockets, or in a test what stands for them.
pub(super) trait SendRun: Debug + Send {
    /// Sends `bytes` as datagrams of `segment_size`, the last maybe shorter; at most [`MAX_SEND_LEN`] bytes and
    /// [`MAX_SEND_SEGMENTS`] datagrams.
    fn send(&mut self, now: Instant, way: &Way, bytes: &[u8], segment_size: usize) -> Result<(), Unsent>;
}

/// Sends over the right one of several sockets, and remembers which destinations refuse segmented sends. Each thread
/// that sends has its own.
#[derive(Debug)]
pub(super) struct Sender {
    sockets: Sockets,
    /// Destinations that get single datagrams, and until when. Almost always empty.
    refusals: Vec<(IpAddr, Instant)>,
}

/// How many datagrams of a send the kernel did not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unsent(pub(super) u64);

impl Sender {
    /// Over `sockets`.
    pub(super) fn new(sockets: Sockets) -> Self {
        Self { sockets, refusals: Vec::new() }
    }

    /// What it sends over.
    pub(super) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Sends one datagram that may be cut into fragments on its way. For the slow path alone.
    pub(super) fn send_fragmentable(&self, way: &Way, datagram: &[u8]) -> Result<(), Unsent> {
        let socket = best_socket(&self.sockets, way).ok_or(Unsent(1))?;
        let sent = match datagram.len() {
            ..=WHOLE_EVERYWHERE => socket.send(&way.endpoint, way.traffic_class, datagram, datagram.len()),
            _ => socket.send_fragmentable(&way.endpoint, way.traffic_class, datagram),
        };
        sent.map_err(|_| Unsent(1))
    }
}

impl SendRun for Sender {
    fn send(&mut self, now: Instant, way: &Way, bytes: &[u8], segment_size: usize) -> Result<(), Unsent> {
        let datagrams = bytes.len().div_ceil(segment_size) as u64;
        let (endpoint, class) = (&way.endpoint, way.traffic_class);
        let socket = best_socket(&self.sockets, way).ok_or(Unsent(datagrams))?;
        if datagrams > 1 && !is_refused(&mut self.refusals, now, endpoint.remote.ip()) {
            match socket.send(endpoint, class, bytes, segment_size) {
                Ok(()) => return Ok(()),
                // A datagram is longer than the interface's MTU, which shorter ones after it may not be.
                Err(Errno::EMSGSIZE) => {}
                // The egress device can't compute checksums (EIO), or an older kernel's EMSGSIZE, or a driver's fault.
                Err(Errno::EIO | Errno::EINVAL) => refuse(&mut self.refusals, now, endpoint.remote.ip()),
                Err(_) => return Err(Unsent(datagrams)),
            }
        }
        let failed = bytes
            .chunks(segment_size)
            .filter(|datagram| socket.send(endpoint, class, datagram, segment_size).is_err())
            .count() as u64;
        if failed == 0 { Ok(()) } else { Err(Unsent(failed)) }
    }
}

fn best_socket<'s>(sockets: &'s Sockets, way: &Way) -> Option<&'s UdpSocket> {
    let best = sockets.on(way.port).iter().max_by_key(|socket| socket.fitness(&way.endpoint));
    best.filter(|socket| socket.fitness(&way.endpoint) > 0)
}

fn refuse(refusals: &mut Vec<(IpAddr, Instant)>, now: Instant, destination: IpAddr) {
    tracing::debug!("the kernel refuses a segmented send to a peer, sending single datagrams for a minute");
    if refusals.len() == MAX_REFUSALS {
        refusals.remove(0);
    }
    refusals.push((destination, now + SEGMENTATION_RETRY_AFTER));
}

fn is_refused(refusals: &mut Vec<(IpAddr, Instant)>, now: Instant, destination: IpAddr) -> bool {
    if refusals.is_empty() {
        return false;
    }
    refusals.retain(|(_, until)| now < *until);
    refusals.iter().any(|(refused, _)| *refused == destination)
}

#[cfg(test)]
mod tests;
