//! As many UDP datagrams as a sender can get rid of, and how many of them arrive.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, UdpGroSegment};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt};

use crate::host::Host;
use crate::wait;

/// What is sent, without a pause, by one thread through one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Datagrams with so many bytes of payload, one by one, to a receiver that gets one by one.
    Single(usize),
    /// As QUIC servers do: so many bytes in each of so many datagrams, which the sender hands over as one, to a receiver that
    /// takes as many as the kernel has joined.
    Segmented(u16, usize),
}

impl Shape {
    fn payload(self) -> usize {
        match self {
            Shape::Single(length) => length,
            Shape::Segmented(length, _) => usize::from(length),
        }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Datagrams that the sender got rid of per second.
    pub sent: f64,
    /// Datagrams that arrived per second.
    pub received: f64,
    /// Bytes of payload that arrived per second.
    pub bytes: f64,
    /// Datagrams that the sender got rid of from first to last.
    pub total_sent: u64,
    /// Bytes of payload that arrived from first to last.
    pub total_bytes: u64,
}

/// What both threads do until they are stopped.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    bytes: AtomicU64,
}

/// Floods `target`, an address of `to`, for a while. What passes in the first fifth of a second does not count.
#[track_caller]
pub fn flood(from: &Host, to: &Host, target: SocketAddr, shape: Shape, during: Duration) -> Flood {
    flood_into(Buffer::Large, from, to, target, shape, during)
}

/// Size of the receiver's socket buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The kernel's default.
    Default,
    /// 16 MiB: no burst is too long.
    Large,
}

/// Floods like [`flood`], into a receiver's socket with that buffer.
#[track_caller]
pub fn flood_into(buffer: Buffer, from: &Host, to: &Host, target: SocketAddr, shape: Shape, during: Duration) -> Flood {
    let counts = Arc::new(Counts::default());
    let receiver = to.run(|| receiver(target.port(), shape, buffer)).expect("a free UDP port");
    let sender = from.run(|| sender(target)).expect("a route to the target");
    let (theirs, ours) = (counts.clone(), counts.clone());
    let threads =
        [to.spawn(move || receive(&receiver, shape, &theirs)), from.spawn(move || send(&sender, shape, &ours))];
    wait::pass(Duration::from_millis(200));
    let (start, before) = (wait::now(), counts.read());
    wait::pass(during);
    let (elapsed, after) = (start.elapsed(), counts.read());
    counts.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("no panic there").unwrap_or_else(|e| panic!("UDP to {target}: {e}"));
    }
    let per_second = |n: usize| (after[n] - before[n]) as f64 / elapsed.as_secs_f64();
    let [total_sent, _, total_bytes] = counts.read();
    Flood { sent: per_second(0), received: per_second(1), bytes: per_second(2), total_sent, total_bytes }
}

impl Counts {
    fn read(&self) -> [u64; 3] {
        [&self.sent, &self.received, &self.bytes].map(|count| count.load(Ordering::Relaxed))
    }

    /// One message: datagrams of one length, of which only the last may be shorter.
    fn add(&self, bytes: usize, shape: Shape) {
        let datagrams = bytes.div_ceil(shape.payload()).max(1);
        self.received.fetch_add(datagrams as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn receiver(port: u16, shape: Shape, buffer: Buffer) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    if buffer == Buffer::Large {
        setsockopt(&socket, RcvBufForce, &(16 << 20))?;
    }
    setsockopt(&socket, UdpGroSegment, &matches!(shape, Shape::Segmented(..)))?;
    Ok(socket)
}

fn sender(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    Ok(socket)
}

fn send(socket: &UdpSocket, shape: Shape, counts: &Counts) -> io::Result<()> {
    let (segment, number) = match shape {
        Shape::Single(length) => (length as u16, 1),
        Shape::Segmented(length, number) => (length, number),
    };
    let payload = vec![0x5a; usize::from(segment) * number];
    let slices = [IoSlice::new(&payload)];
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if number > 1 { &control[..] } else { &[] };
    while !counts.stopped() {
        match sendmsg::<()>(socket.as_raw_fd(), &slices, control, MsgFlags::empty(), None) {
            Ok(_) => _ = counts.sent.fetch_add(number as u64, Ordering::Relaxed),
            // A queue on the way is full, or the receiver of a run before has just gone.
            Err(Errno::ENOBUFS | Errno::ECONNREFUSED | Errno::EINTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn receive(socket: &UdpSocket, shape: Shape, counts: &Counts) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    while !counts.stopped() {
        match socket.recv(&mut buffer) {
            Ok(bytes) => counts.add(bytes, shape),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
