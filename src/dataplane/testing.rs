//! The fast path without privileges, whole and by its stages, for what stands outside of this crate: tests, simulation,
//! fuzz targets and benchmarks. A daemon is built without it.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use crate::packet::ip::{IpPacket, Malformed, TransportProtocol};
use crate::packet::tunnel::TunnelKind;
use crate::proto::error::{DropReason, Miss};
use crate::proto::router::{Notice, Opened, Router};
use crate::proto::stats::DropCounters;
use crate::proto::transmit::Way;

use super::batch::Outbound;
use super::counters::Counters;
use super::inbound::Inbound;
use super::inheritance::Inheritance;
pub use super::samples::{Sample, TunnelSample, config, device, handshake};
use super::segment::Segments;
use super::sender::{SendRun, Sender, Unsent};
use super::sockets::Sockets;
use super::train::Train;
use super::tun::{Offload, TUN_BUFFER_LEN, Tun, TunQueue, TunRead};
use super::udp::{BindOptions, UdpSocket};
use super::{Dataplane, DataplaneConfig, StartError};

/// A data plane with a socket in the kernel's place behind each TUN queue, one lane for each: a datagram is what one
/// read or write of a TUN with offload carries, and one with superpackets in tunnels where these end on this machine.
pub fn open(
    config: DataplaneConfig,
    queues: Vec<UnixDatagram>,
    tunnels: &[(u16, TunnelKind)],
) -> Result<Dataplane, StartError> {
    let offload = if tunnels.is_empty() { Offload::TcpAndUdp } else { Offload::Tunnels { shift: 0 } };
    let queue = |socket| Arc::new(TunQueue::of_socket(socket, offload));
    let tun = Tun { queues: queues.into_iter().map(queue).collect(), index: 0, is_prepared: false };
    let dataplane = Dataplane::open(config, Inheritance { tun: Some(tun), sockets: Vec::new() })?;
    dataplane.handle().set_tunnels(tunnels);
    Ok(dataplane)
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

/// A worker's way out.
#[derive(Debug)]
pub struct Transmitter {
    outbound: Outbound,
    counters: Arc<Counters>,
    /// A superpacket is to tell its flow that there is congestion.
    signals_congestion: bool,
}

/// Datagrams that leave together.
#[derive(Debug, Clone)]
pub struct Run {
    /// Where they go, and from which port.
    pub way: Way,
    /// The datagrams, end to end.
    pub bytes: Vec<u8>,
    /// Length of each but the last, which may be shorter.
    pub segment_size: usize,
}

#[derive(Debug)]
struct Channel(mpsc::Sender<Run>);

impl SendRun for Channel {
    fn send(&mut self, _now: Instant, way: &Way, bytes: &[u8], segment_size: usize) -> Result<(), Unsent> {
        let run = Run { way: *way, bytes: bytes.to_vec(), segment_size };
        self.0.send(run).map_err(|_| Unsent(bytes.len().div_ceil(segment_size) as u64))
    }
}

impl Transmitter {
    /// For an interface of this MTU in bytes, with a socket on loopback.
    pub fn new(mtu: u16) -> Self {
        let options = BindOptions { shared: false, handshakes: false, fwmark: None, privileges: None };
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).expect("loopback has free ports");
        Self::sending(0, mtu, Sender::new(Sockets::shared([socket])))
    }

    /// Without a socket: what it would send comes out of a channel.
    pub fn into_channel(lane: u8, mtu: u16) -> (Self, mpsc::Receiver<Run>) {
        let (sender, runs) = mpsc::channel();
        (Self::sending(lane, mtu, Channel(sender)), runs)
    }

    fn sending(lane: u8, mtu: u16, sender: impl SendRun + 'static) -> Self {
        let counters = Arc::new(Counters::default());
        Self { outbound: Outbound::new(lane, mtu, sender, counters.clone()), counters, signals_congestion: false }
    }

    /// Has the first superpacket of the next drain marked, or cost its first segment if its flow would not understand.
    pub fn signal_congestion(&mut self) {
        self.signals_congestion = true;
    }

    /// Packs, seals and sends what one drain of a TUN with offload gave. Returns what is not to be sent, by its place in
    /// `reads`, and why.
    pub fn drain(
        &mut self,
        now: Instant,
        router: &Router,
        reads: &mut [Vec<u8>],
        notices: &mut Vec<Notice>,
    ) -> Vec<(usize, Miss)> {
        let mut signals_congestion = std::mem::take(&mut self.signals_congestion);
        let mut drain = self.outbound.drain(now, notices);
        let mut missed = Vec::new();
        for (index, read) in reads.iter_mut().enumerate() {
            let pushed = segments(read).map_err(|_| DropReason::MalformedPacket.into()).and_then(|mut segments| {
                let route = router.route(now, segments.packet().destination())?;
                segments.fit(route.path())?;
                router.on_sent(now, route.peer(), segments.packet());
                if segments.count() > 1 && std::mem::take(&mut signals_congestion) && !segments.mark_congestion() {
                    segments.drop_first();
                }
                drain.push(route, &segments);
                Ok(())
            });
            missed.extend(pushed.err().map(|miss| (index, miss)));
        }
        drain.finish();
        missed
    }

    /// What it dropped since it was made.
    pub fn drops(&self) -> DropCounters {
        total(&self.counters)
    }
}

/// A worker's way in, from opened datagrams to a socket in the kernel's place behind its TUN queue.
#[derive(Debug)]
pub struct Receiver {
    tun: TunQueue,
    kernel: UnixDatagram,
    counters: Counters,
    buffer: Box<[u8]>,
}

impl Receiver {
    /// With a TUN that takes superpackets of these protocols; of none, and it is a plain one.
    pub fn new(superpackets: &[TransportProtocol]) -> Self {
        let takes = |protocol| superpackets.contains(&protocol);
        let offload = match (takes(TransportProtocol::Tcp), takes(TransportProtocol::Udp)) {
            (_, true) => Offload::TcpAndUdp,
            (true, false) => Offload::Tcp,
            (false, false) => Offload::None,
        };
        let (queue, kernel) = UnixDatagram::pair().expect("sockets are to be had");
        kernel.set_nonblocking(true).expect("a socket that is open can be made non-blocking");
        let tun = TunQueue::of_socket(queue, offload);
        Self { tun, kernel, counters: Counters::default(), buffer: vec![0; TUN_BUFFER_LEN].into() }
    }

    /// Takes the datagrams of one receive, from a socket whose queue stands or not. Returns what was written to the TUN.
    pub fn receive(
        &mut self,
        router: &Router,
        opened: &[Opened<'_, '_>],
        standing: bool,
        notices: &mut Vec<Notice>,
    ) -> Vec<Vec<u8>> {
        let mut written = Vec::new();
        let mut inbound = Inbound::new(router, &self.tun, &self.counters);
        if standing {
            inbound.signal_congestion();
        }
        for opened in opened {
            inbound.take(opened, notices).expect("the kernel's end is open");
            // The socket does not hold more than some datagrams' packets.
            written.extend(drain(&self.kernel, &mut self.buffer));
        }
        inbound.deliver().expect("the kernel's end is open");
        written.extend(drain(&self.kernel, &mut self.buffer));
        written
    }

    /// What it dropped since it was made.
    pub fn drops(&self) -> DropCounters {
        total(&self.counters)
    }
}

fn drain(socket: &UnixDatagram, buffer: &mut [u8]) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(|| socket.recv(buffer).ok().map(|length| buffer[..length].to_vec()))
}

fn total(counters: &Counters) -> DropCounters {
    let mut drops = DropCounters::default();
    counters.add_to(&mut drops);
    drops
}

fn segments(read: &mut [u8]) -> Result<Segments<'_>, Malformed> {
    let TunRead { header, bytes } = TunRead::new(Offload::TcpAndUdp, read).ok_or(Malformed)?;
    Segments::new(&header.map_err(|_| Malformed)?, bytes)
}
