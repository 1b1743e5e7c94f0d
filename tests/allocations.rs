//! No packet costs a worker an allocation. Whole data planes carry what can come to a worker, over loopback and with a
//! socket in the kernel's place behind each TUN, while an allocator counts what threads of a worker's name ask it for.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(unsafe_code, reason = "an allocator is unsafe, and it must ask for the thread's name without allocating")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use underpass::dataplane::testing::{self, Sample, TunnelSample};
use underpass::dataplane::{Dataplane, DataplaneConfig, DeviceMode, WorkerCount, clock};
use underpass::keys::PrivateKey;
use underpass::packet::tunnel::TunnelKind;
use underpass::proto::device::DeviceConfig;
use underpass::proto::endpoint::Endpoint;
use underpass::proto::interface_mtu::MtuRange;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Policy, Service};

const MTU: u16 = 1420;
/// Packets in each direction that are carried before counting: sessions are made, buffers grow to what they need.
const WARM_UP: usize = 5_000;
/// Packets in each direction while counting.
const COUNTED: usize = 50_000;
/// Where the kernel ends VXLAN tunnels (RFC 7348 §5).
const VXLAN_PORT: u16 = 4789;
/// The bits that the kind of a superpacket has in a tunnel (`VIRTIO_NET_HDR_GSO_UDP_TUNNEL`).
const SEGMENTATION_TUNNEL: u8 = 0x60;
const PATIENCE: Duration = Duration::from_secs(20);

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
static BY_WORKERS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, with [`BY_WORKERS`].
struct CountingAllocator;

// SAFETY: everything is the system allocator's doing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the same contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count() {
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes 16 bytes at most.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"worker-") {
        BY_WORKERS.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a data plane is like.
#[derive(Debug, Clone, Copy)]
struct Case {
    suite: Suite,
    lanes: usize,
    workers: u8,
    /// A VXLAN tunnel ends here.
    has_tunnel: bool,
}

impl Case {
    const PLAINEST: Self = Self { suite: Suite::Aes256Gcm, lanes: 1, workers: 1, has_tunnel: false };

    fn tunnels(self) -> &'static [(u16, TunnelKind)] {
        if self.has_tunnel { &[(VXLAN_PORT, TunnelKind::Vxlan)] } else { &[] }
    }

    /// Length in bytes of the virtio header.
    fn virtio_len(self) -> usize {
        if self.has_tunnel { 24 } else { 10 }
    }
}

/// A running data plane, and the kernel's end of its TUN.
struct Node {
    case: Case,
    dataplane: Dataplane,
    kernel: UnixDatagram,
}

impl Node {
    /// Node `number`, which knows the one other node, and where that is if it is to call it.
    fn start(number: u8, case: Case, other: Option<SocketAddr>) -> Self {
        let own = ["10.77.0.2", "fd00::2"].map(|address| address.parse().unwrap());
        let (queue, kernel) = UnixDatagram::pair().unwrap();
        kernel.set_read_timeout(Some(PATIENCE)).unwrap();
        kernel.set_write_timeout(Some(PATIENCE)).unwrap();
        let key = |number| PrivateKey::from_bytes([number; 32]).unwrap();
        let config = DataplaneConfig {
            interface_name: "unused".into(),
            mtu: MtuRange::fixed(MTU),
            mode: DeviceMode::Auto,
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            ipv6_optional: true,
            fwmark: None,
            lanes: 1,
            workers: WorkerCount::Number(case.workers),
            pin_workers: false,
            busy_poll: true,
            device: DeviceConfig {
                private_key: key(number),
                previous_private_key: None,
                suite: case.suite,
                send_lanes: 1,
                lane_paths: false,
                mtu: None,
            },
            privileges: None,
            peers: vec![PeerConfig {
                endpoints: Vec::from_iter(other.map(Endpoint::new)),
                allowed_ips: ["10.77.0.0/24", "fd00::/64"].map(|prefix| prefix.parse().unwrap()).into(),
                // So that every packet is judged, and what is sent by UDP remembered.
                policy: Policy::exposing([50_000, VXLAN_PORT].map(|port| Service::Udp(port.into())))
                    .with_own_addresses(own)
                    .into(),
                ..PeerConfig::new(key(3 - number).public_key())
            }],
        };
        // Each lane reads the one socket: whichever comes first takes the packet.
        let queues = (0..case.lanes).map(|_| queue.try_clone().unwrap()).collect();
        let mut dataplane = testing::open(config, queues, case.tunnels()).unwrap();
        dataplane.start(|failure| panic!("{failure}"), |_| {}).unwrap();
        Self { case, dataplane, kernel }
    }

    fn address(&self) -> SocketAddr {
        self.dataplane.local_addresses()[0]
    }

    fn wait_until_the_path_is_known(&self) {
        let (sender, receiver) = channel();
        let deadline = clock::now() + PATIENCE;
        while clock::now() < deadline {
            let sender = sender.clone();
            self.dataplane.handle().status(move |status| sender.send(status.device.peers[0].path_mtu).unwrap());
            if receiver.recv_timeout(PATIENCE).unwrap() == Some(MTU) {
                return;
            }
            thread::yield_now();
        }
        panic!("nobody finds out what the path carries");
    }
}

/// What a worker gets from its TUN: superpackets, many small packets, a packet for nobody, garbage; and what is in tunnels, if
/// one ends there.
fn everything(case: Case) -> Vec<Vec<u8>> {
    let single = |sample: Sample| Sample { segment_size: 0, ..sample };
    let mut for_nobody = single(Sample::tcp_v4(100, 0)).read();
    // Behind a virtio header of 10 bytes and 16 of an IPv4 header: the destination.
    for_nobody[26..30].copy_from_slice(&[192, 0, 2, 1]);
    let mut reads = vec![Sample::tcp_v4(45 * 1368, 1368).read(), Sample::udp_v6(30_000, 1200).read()];
    reads.extend((0..40).map(|number| single(Sample::tcp_v4(20 * number, 0)).read()));
    reads.extend((0..10).map(|number| single(Sample::udp_v6(100 * number, 0)).read()));
    reads.extend([for_nobody, vec![0xff; 100]]);
    if case.has_tunnel {
        reads.iter_mut().for_each(|read| drop(read.splice(10..10, [0; 14])));
        let inside = [Sample::tcp_v4(45 * 1318, 1318), Sample::udp_v6(30_000, 1200), single(Sample::tcp_v4(500, 0))];
        reads.extend(inside.map(|inner| TunnelSample::vxlan(inner).read()));
    }
    reads
}

/// Has packets sent until so many have been received; what is lost on the way is not missed.
fn carry(from: &Node, to: &Node, packets: usize) {
    let (reads, is_enough) = (everything(from.case), AtomicBool::new(false));
    let (host, address) = (&from.kernel, to.address());
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
            while !is_enough.load(Ordering::Relaxed) {
                reads.iter().for_each(|read| assert_eq!(host.send(read).unwrap(), read.len()));
                stranger.send_to(&[4; 40], address).unwrap();
                stranger.send_to(b"no message of ours", address).unwrap();
            }
        });
        let received = receive(to, packets);
        is_enough.store(true, Ordering::Relaxed);
        received
    });
    assert!(received >= packets, "only {received} packets arrived");
}

/// Receives until it is enough, or nothing more comes; returns how many packets came.
fn receive(node: &Node, packets: usize) -> usize {
    let (mut received, mut buffer, mut has_seen_tunnel) = (0, vec![0; 70_000], false);
    while received < packets
        && let Ok(length) = node.kernel.recv(&mut buffer)
    {
        // The virtio header: flags, kind of superpacket or 0, length of headers, segment size.
        let field = |at: usize| usize::from(u16::from_ne_bytes([buffer[at], buffer[at + 1]]));
        has_seen_tunnel |= buffer[1] & SEGMENTATION_TUNNEL != 0;
        received += if buffer[1] == 0 { 1 } else { (length - node.case.virtio_len() - field(2)).div_ceil(field(4)) };
    }
    assert_eq!(has_seen_tunnel, node.case.has_tunnel, "superpackets in tunnels");
    received
}

#[test]
fn no_packet_costs_a_worker_an_allocation() {
    for case in [
        Case::PLAINEST,
        Case { suite: Suite::ChaCha20Poly1305, ..Case::PLAINEST },
        Case { lanes: 2, workers: 2, ..Case::PLAINEST },
        Case { lanes: 2, ..Case::PLAINEST },
        Case { has_tunnel: true, ..Case::PLAINEST },
    ] {
        let at_start = BY_WORKERS.load(Ordering::Relaxed);
        let two = Node::start(2, case, None);
        let one = Node::start(1, case, Some(two.address()));
        let directions = [(&one, &two), (&two, &one)];
        directions.iter().for_each(|(from, to)| carry(from, to, WARM_UP));
        // Until it is known what the path carries, the slow path sends what might be too long.
        [&one, &two].iter().for_each(|node| node.wait_until_the_path_is_known());
        let before = BY_WORKERS.load(Ordering::Relaxed);
        assert!(before > at_start, "threads and handshakes cost some, so the counter is deaf");
        directions.iter().for_each(|(from, to)| carry(from, to, COUNTED));
        let made = BY_WORKERS.load(Ordering::Relaxed) - before;
        assert_eq!(made, 0, "allocations for {} packets, {case:?}", 2 * COUNTED);
    }
}
