//! UDP flows whose datagrams are numbered, many at once and each both ways, so that it shows when one overtakes another.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::host::Host;
use crate::wait;

/// Bytes of a datagram that is one of a superpacket.
const LONG: usize = 1000;
/// Datagrams of a superpacket.
const SEGMENTS: u64 = 20;
/// Bytes of a datagram that is sent by itself.
const SHORT: usize = 60;
/// Datagrams that are sent one by one after each superpacket.
const SINGLES: u64 = 10;
/// Datagrams of a flow in each round.
const ROUND: u64 = SEGMENTS + SINGLES;
/// So many datagrams that queues are long, and not most are lost in full ones.
const FAST: Pace = Pace { window: 2_000, patience: Duration::from_millis(50) };
/// Each round arrives before the next.
const CAREFUL: Pace = Pace { window: 1, patience: wait::PATIENCE };
/// Without arrivals for so long, what has not arrived is lost.
const SILENCE: Duration = Duration::from_millis(500);

/// How much is sent at once.
#[derive(Clone, Copy)]
struct Pace {
    /// Datagrams of all flows of one direction on their way, from which on no more are sent.
    window: u64,
    /// How long they are waited for.
    patience: Duration,
}

/// Flows between two machines.
pub struct NumberedFlows {
    /// One pair of connected sockets per flow.
    sockets: Vec<[UdpSocket; 2]>,
}

/// What one end of a flow has received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Datagrams.
    pub received: u64,
    /// Those that came after one with a greater number, or the same.
    pub late: u64,
    next: u64,
}

impl NumberedFlows {
    /// So many flows between these machines' addresses.
    pub fn between(one: (&Host, &str), two: (&Host, &str), flows: usize) -> NumberedFlows {
        let sockets = (0..flows).map(|_| {
            let sockets = [one, two].map(|(host, address)| bind(host, address));
            let addresses = [&sockets[0], &sockets[1]].map(|socket| socket.local_addr().expect("a bound socket"));
            sockets[0].connect(addresses[1]).expect("any UDP socket can be connected");
            sockets[1].connect(addresses[0]).expect("any UDP socket can be connected");
            sockets
        });
        NumberedFlows { sockets: sockets.collect() }
    }

    /// Sends one datagram each way in each flow. Returns whether all have arrived after so long.
    pub fn all_pass(&self, within: Duration) -> bool {
        let ways = || self.sockets.iter().flat_map(|[one, two]| [(one, two), (two, one)]);
        for (from, to) in ways() {
            while recv(to.as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT).is_ok() {}
            let _ = from.send(&[]);
        }
        let mut missing: Vec<&UdpSocket> = ways().map(|(_, to)| to).collect();
        wait::try_value_within(within, || {
            missing.retain(|to| recv(to.as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT).is_err());
            missing.is_empty().then_some(())
        })
        .is_some()
    }

    /// Sends so many superpackets and lone datagrams in turn in each flow, both ways at once. Returns what arrived, for each
    /// flow and direction.
    pub fn exchange(&self, rounds: u64) -> Vec<Arrivals> {
        self.exchange_at(FAST, rounds)
    }

    /// The same, so slowly that no queue is ever full, and nothing has a reason to be lost. Returns whether each datagram has
    /// arrived once and in order, or else what arrived.
    pub fn exchange_all(&self, rounds: u64) -> Result<(), Vec<Arrivals>> {
        let arrivals = self.exchange_at(CAREFUL, rounds);
        let is_whole = |flow: &Arrivals| flow.received == rounds * ROUND && flow.late == 0;
        if arrivals.iter().all(is_whole) { Ok(()) } else { Err(arrivals) }
    }

    fn exchange_at(&self, pace: Pace, rounds: u64) -> Vec<Arrivals> {
        let end = |side: usize| self.sockets.iter().map(|sockets| &sockets[side]).collect::<Vec<_>>();
        thread::scope(|scope| {
            let way = |from: Vec<_>, to: Vec<_>| scope.spawn(move || carry(&from, &to, pace, rounds));
            let ways = [way(end(0), end(1)), way(end(1), end(0))];
            ways.into_iter().flat_map(|way| way.join().expect("no flow panics")).collect()
        })
    }
}

fn bind(host: &Host, address: &str) -> UdpSocket {
    let address: IpAddr = address.parse().expect("an address");
    let socket = host.run(|| UdpSocket::bind(SocketAddr::new(address, 0))).expect("an address of the host");
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).expect("these tests run as root");
    setsockopt(&socket, sockopt::UdpGsoSegment, &(LONG as i32)).expect("Linux cuts for UDP");
    socket
}

/// One direction of all flows.
fn carry(from: &[&UdpSocket], to: &[&UdpSocket], pace: Pace, rounds: u64) -> Vec<Arrivals> {
    let (received, is_sent) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_all(to, &received, &is_sent));
        send_all(from, pace, rounds, &received);
        is_sent.store(true, Ordering::Release);
        receiver.join().expect("a receiver does not panic")
    })
}

fn send_all(flows: &[&UdpSocket], pace: Pace, rounds: u64, received: &AtomicU64) {
    let (mut sent, mut lost) = (0, 0);
    for round in 0..rounds {
        for flow in flows {
            send_round(flow, round * ROUND);
        }
        sent += flows.len() as u64 * ROUND;
        let on_the_way = || sent - lost - received.load(Ordering::Relaxed).min(sent - lost);
        if wait::try_value_within(pace.patience, || (on_the_way() < pace.window).then_some(())).is_none() {
            lost += on_the_way();
        }
    }
}

/// What is lost on the way is not missed, and neither is what the kernel does not take.
fn send_round(flow: &UdpSocket, first: u64) {
    let numbers = first..first + ROUND;
    let datagram = |number: u64, length: usize| {
        let mut datagram = number.to_le_bytes().to_vec();
        datagram.resize(length, 0);
        datagram
    };
    let superpacket: Vec<u8> =
        numbers.clone().take(SEGMENTS as usize).flat_map(|number| datagram(number, LONG)).collect();
    let _ = flow.send(&superpacket);
    for number in numbers.skip(SEGMENTS as usize) {
        let _ = flow.send(&datagram(number, SHORT));
    }
}

fn receive_all(flows: &[&UdpSocket], received: &AtomicU64, is_sent: &AtomicBool) -> Vec<Arrivals> {
    let mut arrivals = vec![Arrivals::default(); flows.len()];
    loop {
        let is_last = is_sent.load(Ordering::Acquire);
        let mut waiting: Vec<PollFd> = flows.iter().map(|flow| PollFd::new(flow.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(SILENCE).expect("half a second fits");
        if poll(&mut waiting, timeout).expect("the descriptors are open") == 0 && is_last {
            return arrivals;
        }
        for (flow, arrivals) in flows.iter().zip(&mut arrivals) {
            let before = arrivals.received;
            receive(flow, arrivals);
            received.fetch_add(arrivals.received - before, Ordering::Relaxed);
        }
    }
}

/// Takes what is there.
fn receive(flow: &UdpSocket, arrivals: &mut Arrivals) {
    let mut datagram = [0; LONG];
    while let Ok(length) = recv(flow.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
        if length == 0 {
            // One of the flow's first.
            continue;
        }
        let number = u64::from_le_bytes(*datagram.first_chunk().expect("longer than a number"));
        arrivals.received += 1;
        arrivals.late += u64::from(number < arrivals.next);
        arrivals.next = arrivals.next.max(number + 1);
    }
}
