//! The fast path without privileges, whole and by its stages, for what stands outside of this crate: tests, simulation,
//! fuzz targets and benchmarks. A daemon is built without it.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Instant;

use crate::packet::ip::{IpPacket, Malformed};
use crate::proto::router::{Notice, Router};

use super::batch::Outbound;
pub use super::samples::{Sample, config, device, handshake};
use super::segment::Segments;
use super::sender::Sender;
use super::train::Train;
use super::tun::{Offload, Tun, TunQueue};
use super::udp::{BindOptions, UdpSocket};
use super::virtio::VirtioHeader;
use super::{Dataplane, DataplaneConfig, StartError};

/// A data plane with a socket in the kernel's place behind each TUN queue, one worker for each: a datagram is what one
/// read or write of a TUN with offload carries.
pub fn open(config: DataplaneConfig, queues: Vec<UnixDatagram>) -> Result<Dataplane, StartError> {
    let queue = |socket| Arc::new(TunQueue::of_socket(socket, Offload::TcpAndUdp));
    Dataplane::open_with(Tun { queues: queues.into_iter().map(queue).collect(), index: 0 }, config)
}

/// Cuts what one read of a TUN with offload gave into packets. Each is written into `packet`, which has room for the
/// longest, and given to `each` with the flags of its frame.
pub fn cut(read: &mut [u8], packet: &mut [u8], mut each: impl FnMut(u8, &[u8])) -> Result<(), Malformed> {
    let segments = segments(read)?;
    for index in 0..segments.count() {
        let packet = &mut packet[..segments.length(index)];
        segments.write(index, packet);
        each(segments.flags(index), packet);
    }
    Ok(())
}

/// Joins packets with partial checksums into as few TUN writes as a TUN with offload needs, and gives the parts of each
/// to `write`.
pub fn join<'b>(packets: impl IntoIterator<Item = IpPacket<'b>>, mut write: impl FnMut(&[IoSlice<'_>])) {
    let mut train = Train::new(Offload::TcpAndUdp);
    let mut deliver = |train: &mut Train<'b>| {
        let delivered = train.deliver(|parts| {
            write(parts);
            Ok(())
        });
        delivered.expect("`write` takes everything");
    };
    for packet in packets {
        if !train.append(&packet) {
            deliver(&mut train);
            train.start(packet, true);
        }
    }
    deliver(&mut train);
}

/// A worker's way out, with a socket on loopback.
#[derive(Debug)]
pub struct Transmitter(Outbound);

impl Transmitter {
    /// For an interface of this MTU in bytes.
    pub fn new(mtu: u16) -> Self {
        let options = BindOptions { shared: false, fwmark: None };
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).expect("loopback has free ports");
        Self(Outbound::new(0, mtu, Sender::new(Arc::new([socket])), Arc::default()))
    }

    /// Packs, seals and sends what one drain of a TUN with offload gave, for peers that have sessions.
    pub fn drain(&mut self, now: Instant, router: &Router, reads: &mut [Vec<u8>], notices: &mut Vec<Notice>) {
        let mut drain = self.0.drain(now, notices);
        for read in reads {
            let segments = segments(read).expect("a packet as the kernel gives it");
            let route = router.route(now, segments.packet().destination()).expect("a peer with a session");
            drain.push(route, &segments);
        }
        drain.finish();
    }
}

fn segments(read: &mut [u8]) -> Result<Segments<'_>, Malformed> {
    let (header, bytes) = read.split_first_chunk_mut().ok_or(Malformed)?;
    let header = VirtioHeader::decode(header).map_err(|_| Malformed)?;
    Segments::new(&header, bytes)
}
