//! Round trips, to the microsecond: pings spaced in time, and requests over TCP.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;

use crate::host::Host;
use crate::probe;
use crate::wait;

/// What became of a series of requests.
#[derive(Clone, Debug, Default)]
pub struct RoundTrips {
    /// How long each answered one took, in no order.
    pub times: Vec<Duration>,
    /// How many were not answered.
    pub lost: usize,
}

/// Pings an IPv4 address for a while, one ping each `interval`, whether the ones before are answered or not.
///
/// A round trip ends when the kernel has the answer, as for the `ping` program, not when this one has been woken.
#[track_caller]
pub fn ping(host: &Host, target: Ipv4Addr, interval: Duration, during: Duration) -> RoundTrips {
    let pings = host.run(|| Pinger::new(target)?.send(interval, during));
    pings.unwrap_or_else(|e| panic!("pings from {} to {target}: {e}", host.name()))
}

struct Pinger {
    socket: UdpSocket,
    target: Ipv4Addr,
    /// The wall clock at which each ping without an answer was sent.
    waiting: BTreeMap<u16, Duration>,
    times: Vec<Duration>,
}

impl Pinger {
    fn new(target: Ipv4Addr) -> io::Result<Pinger> {
        let socket = probe::icmp_socket(target.into())?;
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        Ok(Pinger { socket, target, waiting: BTreeMap::new(), times: vec![] })
    }

    fn send(mut self, interval: Duration, during: Duration) -> io::Result<RoundTrips> {
        let start = wait::now();
        let count = (during.as_nanos() / interval.as_nanos()) as u16;
        for number in 0..count {
            self.receive_until(start + interval * u32::from(number))?;
            self.waiting.insert(number, wait::unix_time());
            let [high, low] = number.to_be_bytes();
            let request = [&[8, 0, 0, 0, 0, 0, high, low][..], &[0; 56]].concat();
            self.socket.send_to(&request, (self.target, 0))?;
        }
        let deadline = wait::now() + Duration::from_secs(1);
        while !self.waiting.is_empty() && wait::now() < deadline {
            self.receive_until(deadline.min(wait::now() + interval))?;
        }
        Ok(RoundTrips { times: self.times, lost: self.waiting.len() })
    }

    fn receive_until(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            let rest = deadline.saturating_duration_since(wait::now());
            let mut readable = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if rest.is_zero() || ppoll(&mut readable, Some(TimeSpec::from(rest)), None)? == 0 {
                return Ok(());
            }
            self.receive()?;
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 256];
        let mut control = cmsg_space!(TimeSpec);
        let mut into = [IoSliceMut::new(&mut buffer)];
        let (fd, none) = (self.socket.as_raw_fd(), MsgFlags::empty());
        let message = recvmsg::<SockaddrStorage>(fd, &mut into, Some(&mut control), none)?;
        let stamp = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
            _ => None,
        });
        let number = u16::from_be_bytes([buffer[6], buffer[7]]);
        if let (Some(sent), Some(received)) = (self.waiting.remove(&number), stamp) {
            self.times.push(received.saturating_sub(sent));
        }
        Ok(())
    }
}

/// Starts a server on a port of all of a machine's addresses that sends back each byte.
#[track_caller]
pub fn serve_echo(host: &Host, port: u16) {
    let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    let listener = listener.unwrap_or_else(|e| panic!("port {port} of {}: {e}", host.name()));
    host.spawn(move || {
        // A connection that breaks is its other end's to report.
        listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| echo(stream))));
    });
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Sends one byte after the other to such a server for a while, each when the one before has come back.
#[track_caller]
pub fn request_response(host: &Host, server: SocketAddr, during: Duration) -> RoundTrips {
    let trips = host.run(|| exchange(server, during));
    trips.unwrap_or_else(|e| panic!("requests from {} to {server}: {e}", host.name()))
}

fn exchange(server: SocketAddr, during: Duration) -> io::Result<RoundTrips> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (start, mut byte, mut times) = (wait::now(), [0], vec![]);
    while start.elapsed() < during {
        let sent = wait::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        times.push(sent.elapsed());
    }
    Ok(RoundTrips { times, lost: 0 })
}
