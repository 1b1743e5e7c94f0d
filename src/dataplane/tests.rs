//! Whole data planes over loopback, with a socket in the kernel's place behind each TUN: no privileges needed.

use std::ops::Range;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::samples::{Sample, assert_checksums};
use super::tun::TunQueue;
use super::virtio::{VIRTIO_HEADER_LEN, VirtioHeader};
use super::*;
use crate::packet::ip::{IpPacket, PROTOCOL_ICMP};
use crate::proto::error::DropReason;
use crate::proto::noise::Suite;
use crate::proto::policy::{Exposure, Policy};
use crate::proto::stats::{DeviceStatus, LinkState};

const PATIENCE: Duration = Duration::from_secs(10);

/// A running data plane and the kernel's end of its TUN queues.
struct Node {
    dataplane: Dataplane,
    kernel: Vec<UnixDatagram>,
    failures: mpsc::Receiver<Failure>,
    offload: Offload,
}

/// What a node is made from: a number for its key, its TUN, and whom it knows: number, endpoint, allowed IPs.
struct Setup<'a> {
    number: u8,
    offload: Offload,
    lanes: usize,
    peers: &'a [(u8, Option<SocketAddr>, &'a [&'a str])],
}

impl Node {
    fn start(setup: &Setup<'_>) -> Self {
        let pairs: Vec<_> = (0..setup.lanes).map(|_| UnixDatagram::pair().unwrap()).collect();
        let (queues, kernel) = pairs
            .into_iter()
            .map(|(queue, kernel)| {
                kernel.set_read_timeout(Some(PATIENCE)).unwrap();
                (Arc::new(TunQueue::of_socket(queue, setup.offload)), kernel)
            })
            .unzip();
        let config = DataplaneConfig {
            interface_name: "unused".into(),
            mtu: MtuRange::fixed(1420),
            mode: DeviceMode::Auto,
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            ipv6_optional: true,
            fwmark: None,
            lanes: 1,
            workers: WorkerCount::Number(setup.lanes.try_into().unwrap()),
            pin_workers: false,
            busy_poll: true,
            device: DeviceConfig {
                private_key: key(setup.number),
                previous_private_key: None,
                suite: Suite::Aes256Gcm,
                send_lanes: 1,
                lane_paths: true,
                mtu: None,
            },
            privileges: None,
            peers: setup.peers.iter().map(|(number, remote, allowed)| peer(*number, *remote, allowed)).collect(),
        };
        let inheritance = Inheritance { tun: Some(Tun { queues, index: 0, is_prepared: false }), sockets: Vec::new() };
        let mut dataplane = Dataplane::open(config, inheritance).unwrap();
        let (sender, failures) = mpsc::channel();
        dataplane.start(move |failure| drop(sender.send(failure)), |_| {}).unwrap();
        Self { dataplane, kernel, failures, offload: setup.offload }
    }

    fn address(&self) -> SocketAddr {
        self.dataplane.local_addresses()[0]
    }

    /// The host sends a packet or superpacket into the tunnel.
    fn send(&self, sample: &Sample) {
        match self.offload {
            Offload::None => self.send_raw(&sample.packet()),
            _ => self.send_raw(&sample.read()),
        }
    }

    fn send_raw(&self, bytes: &[u8]) {
        self.kernel[0].send(bytes).unwrap();
    }

    /// What the host gets from the tunnel next.
    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let length = self.kernel[0].recv(&mut buffer).expect("a packet in time");
        buffer.truncate(length);
        buffer
    }

    fn status(&self) -> DeviceStatus {
        self.whole_status().device
    }

    fn whole_status(&self) -> DataplaneStatus {
        let (sender, receiver) = mpsc::channel();
        self.dataplane.handle().status(move |status| sender.send(status).unwrap());
        receiver.recv_timeout(PATIENCE).unwrap()
    }

    /// Hands over packets with these numbers to one TUN queue, from the sender of samples to their destination, or back.
    fn send_numbered(&self, queue: usize, numbers: Range<u64>, is_back: bool) {
        for number in numbers {
            let payload = number.to_le_bytes().to_vec();
            let mut read = Sample { payload, segment_size: 0, ..Sample::udp_v6(0, 0) }.read();
            if is_back {
                // Behind the virtio header and 8 bytes of the IPv6 header; the checksum does not tell one order from the other.
                let (source, destination) = read[VIRTIO_HEADER_LEN + 8..VIRTIO_HEADER_LEN + 40].split_at_mut(16);
                source.swap_with_slice(destination);
            }
            self.kernel[queue].send(&read).unwrap();
        }
    }

    /// The numbers of the next `count` packets that come out of a TUN queue.
    fn receive_numbered(&self, queue: usize, count: usize) -> Vec<u64> {
        let (mut numbers, mut packet, mut read) = (Vec::new(), vec![0; 70_000], vec![0; 70_000]);
        while numbers.len() < count {
            let length = self.kernel[queue].recv(&mut read).expect("no packet is lost");
            let each = |_, packet: &[u8]| numbers.push(u64::from_le_bytes(*packet.last_chunk().unwrap()));
            testing::cut(&mut read[..length], &mut packet, each).unwrap();
        }
        numbers
    }

    fn wait_for(&self, what: &str, reached: impl Fn(&DeviceStatus) -> bool) {
        let deadline = clock::now() + PATIENCE;
        while !reached(&self.status()) {
            assert!(clock::now() < deadline, "{what}");
            thread::yield_now();
        }
    }
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32]).unwrap()
}

fn peer(number: u8, remote: Option<SocketAddr>, allowed: &[&str]) -> PeerConfig {
    PeerConfig {
        endpoints: Vec::from_iter(remote.map(Endpoint::new)),
        allowed_ips: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        policy: Policy::exposing(Exposure::everything()).into(),
        ..PeerConfig::new(key(number).public_key())
    }
}

/// The addresses that [`Sample`] packets come from, and go to.
const SOURCES: &[&str] = &["10.77.0.1/32", "fd00::1/128"];
const DESTINATIONS: &[&str] = &["10.77.0.2/32", "fd00::2/128"];

/// Two nodes; the first knows the second's address and sends samples to it.
fn pair(offloads: [Offload; 2], lanes: usize) -> [Node; 2] {
    let two = Node::start(&Setup { number: 2, offload: offloads[1], lanes, peers: &[(1, None, SOURCES)] });
    let peers = [(2, Some(two.address()), DESTINATIONS)];
    [Node::start(&Setup { number: 1, offload: offloads[0], lanes, peers: &peers }), two]
}

#[test]
fn the_first_packet_waits_for_the_handshake_and_arrives() {
    let [one, two] = pair([Offload::TcpAndUdp; 2], 1);
    let sample = Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) };
    one.send(&sample);
    let received = two.receive();
    assert_eq!(VirtioHeader::decode(received.first_chunk().unwrap()).unwrap().checksum_start, 20);
    assert_eq!(received[VIRTIO_HEADER_LEN..], sample.packet());
    two.wait_for("the session is confirmed", |status| status.peers[0].state == LinkState::Up);
}

#[test]
fn a_superpacket_arrives_as_a_superpacket() {
    let [one, two] = pair([Offload::TcpAndUdp; 2], 1);
    one.send(&Sample { segment_size: 0, ..Sample::tcp_v4(1, 0) });
    two.receive();
    one.wait_for("the path is known", |status| status.peers[0].path_mtu == Some(1420));
    for sample in [Sample::tcp_v4(45 * 1368, 1368), Sample::udp_v6(30_000, 1200), Sample::tcp_v4(5000, 1000)] {
        one.send(&sample);
        assert_eq!(two.receive(), sample.read());
    }
}

#[test]
fn a_superpacket_without_a_session_waits_in_pieces() {
    let [one, two] = pair([Offload::TcpAndUdp; 2], 1);
    one.send(&Sample::tcp_v4(10_000, 1000));
    let mut received = 0;
    while received < 10_000 {
        received += two.receive().len() - VIRTIO_HEADER_LEN - 52;
    }
    assert_eq!(received, 10_000);
}

#[test]
fn a_plain_device_and_an_offload_device_understand_each_other() {
    let [one, two] = pair([Offload::TcpAndUdp, Offload::None], 1);
    one.send(&Sample::tcp_v4(10_000, 1000));
    for _ in 0..10 {
        assert_checksums(&two.receive());
    }
    let [one, two] = pair([Offload::None, Offload::TcpAndUdp], 1);
    let mut complete = Sample { segment_size: 0, ..Sample::udp_v6(500, 0) }.packet();
    crate::packet::ip::complete_checksum(&mut complete).unwrap();
    one.send_raw(&complete);
    assert_eq!(two.receive(), [&VirtioHeader::PLAIN.encode()[..], &complete].concat());
}

#[test]
fn two_workers_carry_what_either_queue_gets() {
    let [one, two] = pair([Offload::TcpAndUdp; 2], 2);
    let sample = Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) };
    let bytes = sample.read();
    // Which of the peer's workers gets a socket's datagrams is the kernel's choice.
    let arrived = |queue: &UnixDatagram| {
        queue.set_nonblocking(true).unwrap();
        queue.recv(&mut [0; 2000]).is_ok()
    };
    for queue in &one.kernel {
        queue.send(&bytes).unwrap();
        let deadline = clock::now() + PATIENCE;
        while !two.kernel.iter().any(arrived) {
            assert!(clock::now() < deadline, "the packet of either queue arrives");
            thread::yield_now();
        }
    }
    assert_eq!(one.address().port(), one.dataplane.sockets[1].listen[0].local().port());
}

/// Two nodes of so many lanes with a session, each lane of which has proven its path.
fn connected(lanes: usize) -> [Node; 2] {
    let nodes = pair([Offload::TcpAndUdp; 2], lanes);
    nodes[0].send_numbered(0, 0..1, false);
    nodes[1].receive_numbered(0, 1);
    nodes[0].wait_for("the path is known", |status| status.peers[0].path_mtu == Some(1420));
    nodes[1].wait_for("the session is confirmed", |status| status.peers[0].state == LinkState::Up);
    nodes
}

/// Has the number of both nodes' workers changed as fast as that goes while `carry` runs.
fn while_workers_change(nodes: &[Node; 2], carry: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    let handles = nodes.each_ref().map(|node| node.dataplane.handle());
    thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let counts = [1, 3, 2].map(WorkerCount::Number).into_iter().chain([WorkerCount::Auto]).cycle();
            for (turn, count) in counts.enumerate().take_while(|_| !is_over.load(Ordering::Relaxed)) {
                handles[turn % 2].set_workers(count);
                // Neither is the queue of commands to grow, nor are changes to wait for packets.
                let (sender, done) = mpsc::channel();
                handles[turn % 2].status(move |_| sender.send(()).unwrap());
                done.recv().unwrap();
            }
        });
        carry();
        is_over.store(true, Ordering::Relaxed);
        changer.join().unwrap();
    });
}

#[test]
fn while_lanes_move_between_workers_no_packet_is_lost_doubled_or_overtaken() {
    // A Unix socket in a TUN's place takes ten packets at most.
    const BURST: u64 = 5;
    let nodes = connected(3);
    let [one, two] = &nodes;
    while_workers_change(&nodes, || {
        for burst in 1..=400 {
            let numbers = burst * BURST..(burst + 1) * BURST;
            for queue in 0..3 {
                one.send_numbered(queue, numbers.clone(), false);
                two.send_numbered(queue, numbers.clone(), true);
            }
            for (queue, node) in (0..3).flat_map(|queue| [(queue, one), (queue, two)]) {
                let expected: Vec<u64> = numbers.clone().collect();
                assert_eq!(node.receive_numbered(queue, BURST as usize), expected, "queue {queue}");
            }
        }
    });
}

#[test]
fn the_number_of_workers_follows_the_operator_at_once_as_far_as_there_are_lanes() {
    let node = Node::start(&Setup { number: 1, offload: Offload::Tcp, lanes: 2, peers: &[] });
    let after = |count| {
        node.dataplane.handle().set_workers(count);
        let WorkersStatus { number, lanes, is_chosen, reason } = node.whole_status().workers;
        assert_eq!(lanes, 2);
        (number, is_chosen, reason)
    };
    let configured = |number| (number, false, "configured".to_owned());
    assert_eq!(node.whole_status().workers.number, 2);
    assert_eq!(after(WorkerCount::Number(1)), configured(1));
    assert_eq!(after(WorkerCount::Auto), (1, true, "none is busy".to_owned()));
    assert_eq!(after(WorkerCount::Number(2)), configured(2));
    assert_eq!(after(WorkerCount::Number(3)), (2, false, "3 are configured, and each needs a lane".to_owned()));
}

#[test]
fn all_lanes_wait_during_a_pause_and_go_on_after_it_with_other_sockets_whoever_has_them() {
    let mut nodes = connected(3);
    for round in 1..=20_u64 {
        let [one, two] = &mut nodes;
        one.dataplane.handle().set_workers(WorkerCount::Number(1 + (round % 3) as u8));
        assert!(one.dataplane.pause());
        one.dataplane.handle().set_workers(WorkerCount::Number(1 + (round % 2) as u8));
        (0..3).for_each(|queue| one.send_numbered(queue, round..round + 1, false));
        let other = one.dataplane.bind(vec!["127.0.0.1:0".parse().unwrap()], true, None).unwrap();
        one.dataplane.use_sockets(other);
        assert!((0..3).all(|queue| is_empty(&two.kernel[queue])), "a lane goes on during a pause");
        one.dataplane.resume();
        (0..3).for_each(|queue| assert_eq!(two.receive_numbered(queue, 1), [round]));
        let pulse = one.dataplane.pulse();
        pulse.ask();
        let deadline = clock::now() + PATIENCE;
        while !pulse.is_felt() {
            assert!(clock::now() < deadline, "a worker with lanes or without does not answer");
            thread::yield_now();
        }
    }
}

/// Whether nothing waits on the kernel's end of a queue.
fn is_empty(queue: &UnixDatagram) -> bool {
    queue.set_nonblocking(true).unwrap();
    let nothing = queue.recv(&mut []).is_err();
    queue.set_nonblocking(false).unwrap();
    nothing
}

#[test]
fn a_destination_without_a_peer_is_answered_at_once() {
    let node = Node::start(&Setup { number: 1, offload: Offload::Tcp, lanes: 1, peers: &[] });
    node.send(&Sample::tcp_v4(3000, 1000));
    let answer = node.receive();
    let packet = IpPacket::parse(&answer[VIRTIO_HEADER_LEN..]).unwrap();
    assert_eq!((packet.protocol(), packet.source().to_string()), (PROTOCOL_ICMP, "10.77.0.2".into()));
    assert_eq!(node.status().drops.of(DropReason::NoPeerForDestination), 3);
}

#[test]
fn what_a_peer_may_not_send_is_dropped_and_counted() {
    let two = Node::start(&Setup {
        number: 2,
        offload: Offload::Tcp,
        lanes: 1,
        peers: &[(1, None, &["10.77.0.0/24"]), (3, None, &["10.77.0.1/32"])],
    });
    let peers = [(2, Some(two.address()), DESTINATIONS)];
    let one = Node::start(&Setup { number: 1, offload: Offload::Tcp, lanes: 1, peers: &peers });
    one.send(&Sample { segment_size: 0, ..Sample::tcp_v4(100, 0) });
    two.wait_for("the narrower prefix is another peer's", |status| status.drops.of(DropReason::SourceNotAllowed) == 1);
}

#[test]
fn our_own_datagrams_do_not_enter_the_tunnel() {
    let two: SocketAddr = "10.77.0.2:50000".parse().unwrap();
    let node =
        Node::start(&Setup { number: 1, offload: Offload::Tcp, lanes: 1, peers: &[(2, Some(two), DESTINATIONS)] });
    let mut looping = Sample { v6: false, segment_size: 0, ..Sample::udp_v6(100, 0) }.packet();
    looping[20..22].copy_from_slice(&node.address().port().to_be_bytes());
    node.send_raw(&[&VirtioHeader::PLAIN.encode()[..], &looping].concat());
    node.wait_for("counted", |status| status.drops.of(DropReason::RoutingLoop) == 1);
    looping[20] ^= 1;
    node.send_raw(&[&VirtioHeader::PLAIN.encode()[..], &looping].concat());
    node.wait_for("another port's is carried", |status| status.peers[0].state == LinkState::Down);
    assert_eq!(node.status().drops.of(DropReason::RoutingLoop), 1);
}

#[test]
fn garbage_from_the_kernel_and_from_the_network_is_counted() {
    let node = Node::start(&Setup { number: 1, offload: Offload::Tcp, lanes: 1, peers: &[] });
    node.send_raw(&[0xff; 100]);
    node.wait_for("counted", |status| status.drops.of(DropReason::MalformedPacket) == 1);
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&[0; 40], node.address()).unwrap();
    stranger.send_to(&[4; 40], node.address()).unwrap();
    node.wait_for("counted", |status| {
        status.drops.of(DropReason::Malformed) == 1 && status.drops.of(DropReason::UnknownSession) == 1
    });
}

#[test]
fn stopping_tells_the_peers() {
    let [one, two] = pair([Offload::Tcp; 2], 1);
    one.send(&Sample { segment_size: 0, ..Sample::tcp_v4(1, 0) });
    two.receive();
    let handle = one.dataplane.handle();
    one.dataplane.stop();
    two.wait_for("the goodbye arrives", |status| status.peers[0].state == LinkState::Down);
    handle.change_peers(vec![PeerChange::Remove(key(2).public_key())]);
    handle.status(|_| panic!("nobody is there to answer"));
    assert!(one.failures.recv_timeout(PATIENCE).is_err(), "stopping is no failure");
}

#[test]
fn peers_come_and_go_while_it_runs() {
    let [one, two] = pair([Offload::Tcp; 2], 1);
    let handle = one.dataplane.handle();
    let upsert = |number, allowed: &[&str]| PeerChange::Upsert(peer(number, None, allowed));
    let remove = |number| PeerChange::Remove(key(number).public_key());
    handle.change_peers(vec![upsert(3, &["10.77.0.3/32"]), upsert(1, &["10.77.0.4/32"])]);
    one.wait_for("added, but never ourselves", |status| status.peers.len() == 2);
    handle.change_peers(vec![remove(2), remove(7)]);
    one.wait_for("removed", |status| status.peers.len() == 1);
    one.send(&Sample { segment_size: 0, ..Sample::tcp_v4(1, 0) });
    one.wait_for("no way to it", |status| status.drops.of(DropReason::NoPeerForDestination) == 1);
    handle.change_peers(vec![upsert(2, DESTINATIONS)]);
    handle.set_endpoints(key(2).public_key(), vec![two.address()]);
    one.wait_for("added again", |status| status.peers.iter().any(|peer| peer.endpoint.is_some()));
    one.send(&Sample { segment_size: 0, ..Sample::tcp_v4(1, 0) });
    two.receive();
}

#[test]
fn the_mark_of_datagrams_can_be_changed_while_it_runs() {
    let [one, two] = pair([Offload::Tcp; 2], 1);
    // It takes privileges that a test need not have.
    match one.dataplane.set_fwmark(Some(7)) {
        Ok(()) => one.dataplane.set_fwmark(None).unwrap(),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
    }
    one.send(&Sample { segment_size: 0, ..Sample::tcp_v4(1, 0) });
    two.receive();
}

#[test]
fn a_panic_in_a_thread_is_reported() {
    let (sender, failures) = mpsc::channel();
    let failed: OnFailure = Arc::new(move |failure| sender.send(failure).unwrap());
    spawn("worker-7", &failed, || panic!("as a test")).unwrap().join().unwrap();
    assert!(matches!(failures.recv().unwrap(), Failure::Panicked(name) if name == "worker-7"));
}

#[test]
fn a_port_taken_is_noticed_though_workers_share_theirs() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let queues = (0..2).map(|_| Arc::new(TunQueue::of_socket(UnixDatagram::pair().unwrap().0, Offload::Tcp))).collect();
    let mut config =
        Node::start(&Setup { number: 1, offload: Offload::Tcp, lanes: 1, peers: &[] }).dataplane.config.clone();
    config.listen = vec![taken.local_addr().unwrap()];
    let inheritance = Inheritance { tun: Some(Tun { queues, index: 0, is_prepared: false }), sockets: Vec::new() };
    let error = Dataplane::open(config, inheritance).unwrap_err();
    assert!(matches!(error, StartError::Bind(BindError::PortTaken(address)) if address == taken.local_addr().unwrap()));
}
