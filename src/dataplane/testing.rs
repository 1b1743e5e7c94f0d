//! The fast path without privileges, whole and by its stages, for what stands outside of this crate: tests, simulation,
//! fuzz targets and benchmarks. A daemon is built without it.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

pub use super::samples::{Sample, config, device, handshake};
use super::tun::{Offload, Tun, TunQueue};
use super::{Dataplane, DataplaneConfig, StartError};

/// A data plane with a socket in the kernel's place behind each TUN queue, one worker for each: a datagram is what one
/// read or write of a TUN with offload carries.
pub fn open(config: DataplaneConfig, queues: Vec<UnixDatagram>) -> Result<Dataplane, StartError> {
    let queue = |socket| Arc::new(TunQueue::of_socket(socket, Offload::TcpAndUdp));
    Dataplane::open_with(Tun { queues: queues.into_iter().map(queue).collect(), index: 0 }, config)
}
