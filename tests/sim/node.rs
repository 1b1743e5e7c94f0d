//! A node: a device with its workers, as the data plane drives them, and what its operator configured.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use underpass::dataplane::testing;
use underpass::keys::{PrivateKey, PublicKey};
use underpass::packet::frame::FLAG_CHECKSUM_PARTIAL;
use underpass::packet::ip::TransportProtocol;
use underpass::packet::message::{Message, TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::interface_mtu::MtuRange;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::peer_table::PeerId;
use underpass::proto::randomness::Entropy;
use underpass::proto::router::{Notice, Router};
use underpass::proto::session::Session;
use underpass::proto::staged::StagedPacket;
use underpass::proto::transmit::{SourcePort, Transmit};

use crate::inner_packet::MTU;
use crate::random::Random;
use crate::reference::{AllowedTable, Delivery, Violation};
use crate::twin::packet::{addresses, completed};
use crate::worker::{Arrived, Snapshot, Worker};

/// Notices of one peer that wait between a worker and the slow path, at most.
const NOTICE_QUEUE: usize = 32;
/// How long a new snapshot or a notice takes between threads, at most.
pub(crate) const HAND_OVER: Duration = Duration::from_millis(3);
/// How late the notices of a slow slow path are.
const LATE: Duration = Duration::from_secs(2);

/// What the world draws for a node once.
#[derive(Debug, Clone)]
pub(crate) struct NodeSetup {
    pub number: usize,
    pub suite: Suite,
    /// Lanes, each with a worker; or only lanes, where the slow path does everything.
    pub lanes: u8,
    pub has_workers: bool,
    /// What the workers' TUN takes.
    pub offloads: &'static [TransportProtocol],
    /// Whether it finds out what paths carry.
    pub tries_paths: bool,
}

/// What happens to the notices of a node's workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoticeHandling {
    Prompt,
    Late,
    Dropped,
}

/// A peer as a node knows it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub config: PeerConfig,
    pub id: PeerId,
}

/// One machine.
pub(crate) struct Node {
    pub setup: NodeSetup,
    /// Differs for every start of every node.
    pub incarnation: u64,
    pub device: Device,
    pub private_key: PrivateKey,
    pub previous_private_key: Option<PrivateKey>,
    /// By node number.
    pub peers: BTreeMap<usize, Known>,
    /// What the device was told of prefixes.
    pub allowed: Arc<AllowedTable>,
    pub workers: Vec<Worker>,
    pub notice_handling: NoticeHandling,
    /// Every session seen in a snapshot, by its local index.
    pub sessions: BTreeMap<u32, Weak<Session>>,
    /// What its workers gave out since it was last polled.
    outputs: Outputs,
}

/// What a node gave out.
#[derive(Default)]
pub(crate) struct Outputs {
    pub transmits: Vec<Transmit>,
    pub deliveries: Vec<Delivery>,
    pub events: Vec<Event>,
    /// How often a TUN was written to by a worker, and how many frames workers refused.
    pub writes: usize,
    pub refused: u64,
}

/// The inner addresses of node `number`: one of each family.
pub(crate) fn inner_addresses(number: usize) -> [IpAddr; 2] {
    let last = number as u16 + 1;
    [Ipv4Addr::new(10, 77, 0, last as u8).into(), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last).into()]
}

impl Node {
    /// Starts a node without peers.
    pub(crate) fn new(
        now: Instant,
        unix_time: Duration,
        setup: NodeSetup,
        private_key: PrivateKey,
        incarnation: u64,
        seed: [u8; 32],
    ) -> Self {
        let config = DeviceConfig {
            private_key: private_key.clone(),
            previous_private_key: None,
            suite: setup.suite,
            send_lanes: setup.lanes,
            lane_paths: true,
            mtu: setup.tries_paths.then(|| MtuRange::fixed(MTU)),
        };
        let mut device = Device::new(now, unix_time, config, Entropy::seeded(seed));
        let snapshot = Snapshot { router: device.router(), allowed: Arc::default(), names: Arc::default() };
        let lanes = (0..setup.lanes).filter(|_| setup.has_workers);
        Self {
            workers: lanes.map(|lane| Worker::new(lane, setup.offloads, snapshot.clone())).collect(),
            setup,
            incarnation,
            device,
            private_key,
            previous_private_key: None,
            peers: BTreeMap::new(),
            allowed: Arc::default(),
            notice_handling: NoticeHandling::Prompt,
            sessions: BTreeMap::new(),
            outputs: Outputs::default(),
        }
    }

    pub(crate) fn number(&self) -> usize {
        self.setup.number
    }

    /// Tells the device of a peer, or of a change to it.
    pub(crate) fn upsert_peer(&mut self, now: Instant, peer: usize, config: PeerConfig) {
        let Some(id) = self.device.upsert_peer(now, config.clone()) else { return };
        Arc::make_mut(&mut self.allowed).set(peer, &config.allowed_ips);
        self.peers.insert(peer, Known { config, id });
    }

    /// Tells the device who it is from here on.
    pub(crate) fn set_private_key(&mut self, now: Instant, current: PrivateKey, previous: Option<PrivateKey>) {
        self.device.set_private_key(now, current.clone(), previous.clone());
        self.private_key = current;
        self.previous_private_key = previous;
    }

    pub(crate) fn remove_peer(&mut self, peer: usize) -> Option<PeerConfig> {
        let known = self.peers.remove(&peer)?;
        self.device.remove_peer(&known.config.public_key);
        Arc::make_mut(&mut self.allowed).remove(peer);
        Some(known.config)
    }

    /// Whom `destination` belongs to in the eyes of the device and of its workers, who may be late.
    pub(crate) fn leads_to(&self, destination: IpAddr) -> Vec<usize> {
        let late = self.workers.iter().map(|worker| &worker.snapshot.allowed);
        late.chain([&self.allowed]).filter_map(|allowed| allowed.lookup(destination)).collect()
    }

    /// The node whose configured key is `key`.
    pub(crate) fn name(&self, key: &PublicKey) -> Option<usize> {
        self.peers.iter().find(|(_, known)| known.config.public_key == *key).map(|(name, _)| *name)
    }

    /// Takes what one drain of a TUN queue gives; each of several workers has a queue.
    pub(crate) fn transmit(&mut self, now: Instant, queue: usize, reads: &[Vec<u8>]) {
        let mut slow_paths: Vec<usize> = (0..reads.len()).collect();
        if !self.workers.is_empty() {
            let lane = queue % self.workers.len();
            let mut notices = Vec::new();
            let (transmits, missed) = self.workers[lane].transmit(now, reads, &mut notices);
            self.outputs.transmits.extend(transmits);
            self.hand_over(now, lane, notices);
            slow_paths = missed;
        }
        for index in slow_paths {
            let packet = &mut [0; MTU as usize];
            testing::cut(&mut reads[index].clone(), packet, |flags, packet| {
                let (bytes, checksum_partial) = (packet.to_vec(), flags & FLAG_CHECKSUM_PARTIAL != 0);
                // Refused or staged or sent: the ledger knows what must not come of it.
                let _ = self.device.handle_packet(now, StagedPacket { bytes, checksum_partial });
            })
            .expect("reads are well-formed");
        }
    }

    /// Seals what an honest node would not, if there is a session with whom `destination` belongs to.
    pub(crate) fn seal(&mut self, now: Instant, lane: u8, destination: IpAddr, plaintext: &[u8]) -> Option<Vec<u8>> {
        let router = self.device.router();
        let route = router.route(now, destination).ok()?;
        let mut payload = [&[0; TRANSPORT_HEADER_LEN], plaintext, &[0; TAG_LEN]].concat();
        route.seal(now, lane % self.setup.lanes, &mut payload, &mut Vec::new()).ok()?;
        let transmit = Transmit {
            endpoint: route.endpoint(),
            port: SourcePort::Listen,
            traffic_class: TrafficClass::default(),
            payload: payload.clone(),
            may_fragment: false,
        };
        self.outputs.transmits.push(transmit);
        Some(payload)
    }

    /// Whether datagrams are received together, but for handshakes.
    pub(crate) fn gathers(&self, datagram: &[u8]) -> bool {
        !self.workers.is_empty() && !is_handshake(datagram)
    }

    /// Takes datagrams from the network: several only if it [`gathers`](Self::gathers) them. Returns what comes of each.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        datagrams: &mut [Arrived],
        random: &mut Random,
    ) -> Result<Vec<Result<(), DropReason>>, Violation> {
        if let [Arrived { from, ecn, payload }] = datagrams
            && !self.gathers(payload)
        {
            return Ok(vec![self.device.handle_datagram(now, *from, *ecn, payload)]);
        }
        let lane = random.below(self.workers.len());
        let received = self.workers[lane].receive(now, datagrams)?;
        self.outputs.deliveries.extend(received.deliveries);
        self.outputs.writes += received.writes;
        self.outputs.refused += received.refused;
        self.hand_over(now, lane, received.notices);
        Ok(received.outcomes)
    }

    fn hand_over(&mut self, now: Instant, lane: usize, notices: Vec<Notice>) {
        let due = match self.notice_handling {
            NoticeHandling::Prompt => now + HAND_OVER / 3,
            NoticeHandling::Late => now + LATE,
            NoticeHandling::Dropped => return,
        };
        let queue = &mut self.workers[lane].notices;
        for notice in notices {
            let of_peer = queue.iter().filter(|(_, waiting)| waiting.peer == notice.peer).count();
            if of_peer < NOTICE_QUEUE {
                queue.push_back((due, notice));
            }
        }
    }

    /// Makes the threads prompt again.
    pub(crate) fn thaw(&mut self) {
        self.notice_handling = NoticeHandling::Prompt;
        self.workers.iter_mut().for_each(|worker| worker.is_frozen = false);
    }

    /// When something happens inside the node: a deadline of the device, or a message between its threads.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let between_threads = self.workers.iter().flat_map(|worker| {
            let update = worker.update.as_ref().filter(|_| !worker.is_frozen).map(|(at, _)| *at);
            update.into_iter().chain(worker.notices.front().map(|(at, _)| *at))
        });
        between_threads.chain(self.deadline()).min()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.device.poll_timeout().map(|(deadline, _)| deadline)
    }

    /// Takes the snapshots and notices that have arrived.
    pub(crate) fn run_threads(&mut self, now: Instant) {
        for worker in &mut self.workers {
            if let Some((_, snapshot)) = worker.update.take_if(|(at, _)| *at <= now && !worker.is_frozen) {
                worker.snapshot = snapshot;
            }
            while let Some((_, notice)) = worker.notices.pop_front_if(|(at, _)| *at <= now) {
                self.device.handle_notice(now, notice);
            }
        }
    }

    /// Whether every worker has the device's snapshot.
    pub(crate) fn workers_are_current(&mut self) -> bool {
        let router = self.device.router();
        self.workers.iter().all(|worker| Arc::ptr_eq(&worker.snapshot.router, &router))
    }

    /// Polls everything until it is empty, and publishes the new snapshot.
    pub(crate) fn poll(&mut self, now: Instant, random: &mut Random) -> Outputs {
        let mut outputs = std::mem::take(&mut self.outputs);
        outputs.transmits.extend(std::iter::from_fn(|| self.device.poll_transmit()));
        while let Some(event) = self.device.poll_event() {
            match event {
                Event::Packet { peer, bytes, checksum_partial } => {
                    outputs.deliveries.push(self.delivery(&peer, bytes, checksum_partial));
                }
                event => outputs.events.push(event),
            }
        }
        if let Some(router) = self.device.poll_router() {
            self.publish(now, &router, random);
        }
        outputs
    }

    fn delivery(&self, peer: &PublicKey, bytes: Vec<u8>, checksum_partial: bool) -> Delivery {
        let peer = self.name(peer).expect("events name configured peers");
        let source_is_allowed = self.allowed.lookup(addresses(&bytes)[0]) == Some(peer);
        let bytes = if checksum_partial { completed(&bytes) } else { bytes };
        Delivery { peer, bytes, source_is_allowed }
    }

    /// Gives the workers the first snapshot that they see.
    pub(crate) fn start(&mut self) {
        // That links to watch are not up yet.
        while self.device.poll_event().is_some() {}
        let snapshot = self.snapshot();
        self.workers.iter_mut().for_each(|worker| worker.snapshot = snapshot.clone());
    }

    fn snapshot(&mut self) -> Snapshot {
        let names = self.peers.iter().map(|(name, known)| (known.id, *name)).collect();
        Snapshot { router: self.device.router(), allowed: self.allowed.clone(), names: Arc::new(names) }
    }

    fn publish(&mut self, now: Instant, router: &Router, random: &mut Random) {
        for (_, session) in router.sessions() {
            self.sessions.entry(session.local_index).or_insert_with(|| Arc::downgrade(session));
        }
        let snapshot = self.snapshot();
        for worker in &mut self.workers {
            worker.update = Some((now + random.duration(HAND_OVER), snapshot.clone()));
        }
    }

    /// Where the device sends to, in the order of its peers' keys.
    pub(crate) fn endpoints(&self, now: Instant) -> Vec<Option<SocketAddr>> {
        let peers = self.device.status(now).peers;
        peers.into_iter().map(|peer| peer.endpoint.map(|endpoint| endpoint.remote)).collect()
    }

    /// Where the device sends to for `peer`.
    pub(crate) fn endpoint_of(&self, now: Instant, peer: usize) -> Option<SocketAddr> {
        let key = self.peers.get(&peer)?.config.public_key;
        let status = self.device.status(now).peers.into_iter().find(|status| status.public_key == key)?;
        status.endpoint.map(|endpoint| endpoint.remote)
    }
}

fn is_handshake(datagram: &[u8]) -> bool {
    matches!(Message::parse(datagram), Ok(Message::Initiation(_) | Message::Response(_) | Message::CookieReply(_)))
}
