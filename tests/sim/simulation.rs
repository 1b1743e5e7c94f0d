//! The world of a run: nodes, the network between them and one virtual clock. After everything that happens, the
//! invariants of `checks` are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use underpass::keys::{PresharedKey, PrivateKey};
use underpass::packet::message::Message;
use underpass::proto::cookie::MacKeys;
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::staged::StagedPacket;
use underpass::proto::transmit::Transmit;

use crate::checks::{self, Untouched};
use crate::inner_packet::inner_packet;
use crate::network::{Datagram, Network, Origin};
use crate::node::{Node, NodeSetup, inner_addresses};
use crate::random::Random;
use crate::reference::{Checked, Ledger, SentPacket, ensure};

/// What wall clocks say when a run begins.
const UNIX_TIME: Duration = Duration::from_secs(1_700_000_000);

/// One run's world.
pub(crate) struct Simulation {
    pub start: Instant,
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub ledger: Ledger,
    pub random: Random,
    /// What a peer's configuration was before it was removed, by node and peer.
    pub removed: BTreeMap<(usize, usize), PeerConfig>,
    /// Keys that nodes will have.
    pub announced: BTreeMap<usize, PrivateKey>,
    /// How far each node's wall clock is behind.
    pub clock_back: Vec<Duration>,
    /// The newest wall clock time at which each node initiated.
    pub newest_initiation: Vec<Duration>,
    /// Sessions that were established, with the node that says so and the peer.
    pub established: Vec<(Instant, usize, usize)>,
    /// When a node last had more handshake messages than it works on.
    pub flooded_at: Vec<Option<Instant>>,
    /// A line for everything that happened, if anybody wants to read it.
    pub trace: Option<Vec<String>>,
    starts: u64,
    /// Datagrams that an incarnation took, by hash.
    taken: BTreeSet<(u64, u64)>,
    /// The newest counter that an incarnation took, by session index and lane.
    newest_counters: BTreeMap<(u64, u32, u8), u64>,
    moves: u16,
    wakeups: BTreeMap<(usize, u64), usize>,
}

impl Simulation {
    /// A world drawn from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, b's');
        let count = 3 + random.below(3);
        let setups: Vec<NodeSetup> = (0..count)
            .map(|number| NodeSetup {
                number,
                suite: *random.pick(&Suite::ALL),
                lanes: 1 + random.below(3) as u8,
                has_workers: random.chance(50),
            })
            .collect();
        // Node 0 is the proxy side, which everybody finds.
        let natted: Vec<bool> = (0..count).map(|number| number > 0 && random.chance(30)).collect();
        let is_v6 = random.chance(30);
        let mut simulation = Self::with_nodes(setups, &natted, is_v6, seed);
        for (one, two) in pairs(count) {
            if one == 0 || random.chance(30) {
                let preshared_key = random.chance(30).then(|| preshared_key(1));
                simulation.introduce(one, two, preshared_key, &mut random);
            }
        }
        simulation.nodes.iter_mut().for_each(Node::start);
        simulation
    }

    /// Nodes that do not know each other.
    pub(crate) fn with_nodes(setups: Vec<NodeSetup>, natted: &[bool], is_v6: bool, seed: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
        let now = Instant::now();
        let count = setups.len();
        let addresses: Vec<SocketAddr> = (0..count).map(|number| home(number, is_v6)).collect();
        let mut random = Random::new(seed, b'w');
        let network = Network::new(&addresses, natted, Random::new(seed, b'n'));
        let nodes = setups.into_iter().enumerate().map(|(number, setup)| {
            Node::new(now, UNIX_TIME, setup, private_key(number, 0), number as u64, random.seed())
        });
        Self {
            start: now,
            now,
            nodes: nodes.collect(),
            network,
            ledger: Ledger::default(),
            random,
            removed: BTreeMap::new(),
            announced: BTreeMap::new(),
            clock_back: vec![Duration::ZERO; count],
            newest_initiation: vec![Duration::ZERO; count],
            established: Vec::new(),
            flooded_at: vec![None; count],
            trace: None,
            starts: count as u64,
            taken: BTreeSet::new(),
            newest_counters: BTreeMap::new(),
            moves: 0,
            wakeups: BTreeMap::new(),
        }
    }

    /// Makes two nodes peers of each other. Who can be found from outside is known by address, mostly.
    fn introduce(&mut self, one: usize, two: usize, preshared_key: Option<PresharedKey>, random: &mut Random) {
        for (node, peer) in [(one, two), (two, one)] {
            let config = PeerConfig {
                preshared_key: preshared_key.clone(),
                // The side behind a NAT has to call, so it must know where.
                endpoint: self.home_endpoint(peer).filter(|_| self.network.is_natted(node) || random.chance(85)),
                persistent_keepalive: random.chance(30).then(|| Duration::from_secs(1 + random.below(25) as u64)),
                suite: random.chance(20).then(|| *random.pick(&Suite::ALL)),
                ..self.peer_config(peer)
            };
            self.nodes[node].upsert_peer(self.now, peer, config);
        }
    }

    /// Makes two nodes peers of each other, with nothing unusual.
    pub(crate) fn introduce_plainly(&mut self, one: usize, two: usize) {
        for (node, peer) in [(one, two), (two, one)] {
            let config = PeerConfig { endpoint: self.home_endpoint(peer), ..self.peer_config(peer) };
            self.nodes[node].upsert_peer(self.now, peer, config);
            self.nodes[node].start();
        }
    }

    /// How `peer` is configured elsewhere, without an endpoint.
    pub(crate) fn peer_config(&self, peer: usize) -> PeerConfig {
        PeerConfig {
            public_key: self.nodes[peer].private_key.public_key(),
            next_public_key: None,
            preshared_key: None,
            endpoint: None,
            allowed_ips: inner_addresses(peer).map(Into::into).to_vec(),
            persistent_keepalive: None,
            suite: None,
        }
    }

    fn home_endpoint(&self, peer: usize) -> Option<Endpoint> {
        (!self.network.is_natted(peer)).then(|| Endpoint::new(self.network.public_address(peer)))
    }

    /// What the wall clock of `node` says.
    pub(crate) fn unix_time(&self, node: usize) -> Duration {
        (UNIX_TIME + (self.now - self.start)).saturating_sub(self.clock_back[node])
    }

    /// Starts a node's daemon anew, with the configuration that it had.
    pub(crate) fn restart(&mut self, node: usize) -> Checked {
        let old = &self.nodes[node];
        let (setup, peers) = (old.setup.clone(), old.peers.clone());
        let (current, previous) = (old.private_key.clone(), old.previous_private_key.clone());
        let seed = self.random.seed();
        self.starts += 1;
        let mut new = Node::new(self.now, self.unix_time(node), setup, current.clone(), self.starts, seed);
        if previous.is_some() {
            new.set_private_key(self.now, current, previous);
        }
        for (peer, known) in peers {
            new.upsert_peer(self.now, peer, known.config);
        }
        new.start();
        self.nodes[node] = new;
        self.collect(node, None)
    }

    /// A new outer address for a node.
    pub(crate) fn roam(&mut self, node: usize) {
        self.moves += 1;
        let port = 1024 + self.moves;
        let last = (self.moves % 200) as u8 + 1;
        let address = if self.moves.is_multiple_of(3) {
            SocketAddr::from(([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(last)], port))
        } else {
            SocketAddr::from(([198, 51, 100, last], port))
        };
        self.network.move_to(node, address);
        self.trace(|| format!("node {node} is at {address}"));
    }

    /// Gives `count` packets to the device of `from`. Returns the number of the first.
    pub(crate) fn send(
        &mut self,
        from: usize,
        to: usize,
        count: usize,
        length: usize,
    ) -> Result<u64, crate::Violation> {
        self.send_from(from, to, from, count, length)
    }

    /// The same with the addresses of `source` inside, which may be nobody.
    pub(crate) fn send_from(
        &mut self,
        from: usize,
        to: usize,
        source: usize,
        count: usize,
        length: usize,
    ) -> Result<u64, crate::Violation> {
        let first = self.ledger.next_number();
        let mut left = count;
        while left > 0 {
            // As many as fit into one datagram, as workers pack them.
            let packed = left.min(1300 / (length + 60)).max(1);
            let family = self.random.below(2);
            let (source, destination) = (inner_addresses(source)[family], inner_addresses(to)[family]);
            let packets: Vec<StagedPacket> = (0..packed)
                .map(|_| {
                    let bytes = inner_packet(source, destination, self.ledger.next_number(), length);
                    let checksum_partial = self.random.chance(30);
                    let leads_to = self.nodes[from].leads_to(destination);
                    let sent =
                        SentPacket { from, leads_to, bytes: bytes.clone(), checksum_partial, delivered_at: None };
                    self.ledger.record(sent);
                    StagedPacket { bytes, checksum_partial }
                })
                .collect();
            left -= packed;
            self.nodes[from].send_packets(self.now, packets, &mut self.random);
            self.collect(from, None)?;
        }
        self.trace(|| format!("node {from} sends packets {first}..{} to node {to}", first + count as u64));
        Ok(first)
    }

    /// Lets everything happen that is due within `duration`.
    pub(crate) fn advance(&mut self, duration: Duration) -> Checked {
        let end = self.now + duration;
        while let Some(at) = self.next_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step()?;
        }
        self.now = end;
        Ok(())
    }

    fn next_at(&self) -> Option<Instant> {
        self.nodes.iter().filter_map(Node::next_at).chain(self.network.next_arrival()).min()
    }

    fn step(&mut self) -> Checked {
        while let Some((node, datagram)) = self.network.receive(self.now) {
            self.deliver(node, datagram)?;
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].next_at().is_some_and(|at| at <= self.now) {
                self.wake(node)?;
            }
        }
        Ok(())
    }

    /// Lets a node's threads and timers run.
    pub(crate) fn wake(&mut self, node: usize) -> Checked {
        let now = self.now;
        self.nodes[node].run_threads(now);
        self.collect(node, None)?;
        if self.nodes[node].deadline().is_some_and(|deadline| deadline <= now) {
            self.count_wakeup(node)?;
        }
        self.handle_timeout(node)
    }

    /// Calls the timeout, due or not.
    pub(crate) fn handle_timeout(&mut self, node: usize) -> Checked {
        let now = self.now;
        self.nodes[node].device.handle_timeout(now);
        self.collect(node, None)?;
        checks::after_timeout(now, &mut self.nodes[node])
    }

    /// A device that is woken again and again has a busy loop.
    fn count_wakeup(&mut self, node: usize) -> Checked {
        let second = (self.now - self.start).as_secs();
        let wakeups = self.wakeups.entry((node, second)).or_default();
        *wakeups += 1;
        let allowed = 20 * self.nodes.len();
        ensure!(*wakeups <= allowed, "node {node} was woken {wakeups} times in one second");
        Ok(())
    }

    /// Gives a datagram to a node and checks what it does with it.
    pub(crate) fn deliver(&mut self, node: usize, mut datagram: Datagram) -> Checked {
        let (now, bytes) = (self.now, datagram.payload.clone());
        let before = self.untouched(node, &datagram);
        let from = Endpoint { remote: datagram.from, local: Some(self.network.own_address(node)), interface: 0 };
        let endpoints = self.nodes[node].endpoints(now);
        let outcome = self.nodes[node].receive(now, from, &mut datagram.payload, &mut self.random);
        self.trace(|| format!("node {node} gets {} from {}: {outcome:?}", describe(&bytes), datagram.from));
        let is_newest = outcome.is_ok() && self.on_taken(node, &bytes);
        let moved = self.nodes[node].endpoints(now).into_iter().zip(endpoints).find(|(after, before)| after != before);
        ensure!(
            moved.is_none() || (is_newest && moved.is_some_and(|(after, _)| after == Some(datagram.from))),
            "{} from {} moved an endpoint of node {node}: {moved:?}",
            describe(&bytes),
            datagram.from
        );
        match before {
            Some(before) => self.check_untouched(node, outcome, &before, &bytes),
            None => {
                let limit = answer_limit(&bytes);
                self.collect(node, limit)
            }
        }
    }

    /// The state of a node before a datagram that must not change it.
    fn untouched(&mut self, node: usize, datagram: &Datagram) -> Option<Untouched> {
        let must_be_refused = match datagram.origin {
            Origin::Genuine => false,
            Origin::Copy => self.taken.contains(&(self.nodes[node].incarnation, hash(&datagram.payload))),
            Origin::Altered => true,
        };
        must_be_refused.then(|| Untouched::new(self.now, &mut self.nodes[node]))
    }

    fn check_untouched(
        &mut self,
        node: usize,
        outcome: Result<(), DropReason>,
        before: &Untouched,
        datagram: &[u8],
    ) -> Checked {
        let outputs = self.nodes[node].poll(self.now, &mut self.random);
        ensure!(outcome.is_err(), "node {node} took what no peer sent: {}", describe(datagram));
        ensure!(outputs.deliveries.is_empty() && outputs.events.is_empty(), "{} did something", describe(datagram));
        let answered: usize = outputs.transmits.iter().map(|transmit| transmit.payload.len()).sum();
        ensure!(answered <= datagram.len(), "{answered} bytes answer {} bytes of a stranger", datagram.len());
        outputs.transmits.into_iter().try_for_each(|transmit| self.transmit(node, transmit))?;
        let after = Untouched::new(self.now, &mut self.nodes[node]);
        ensure!(*before == after, "{} changed node {node} from {before:?} to {after:?}", describe(datagram));
        checks::node(self.now, &mut self.nodes[node])
    }

    /// Notes what a node took. Returns whether it may move an endpoint.
    fn on_taken(&mut self, node: usize, datagram: &[u8]) -> bool {
        let incarnation = self.nodes[node].incarnation;
        self.taken.insert((incarnation, hash(datagram)));
        match Message::parse(datagram) {
            Ok(Message::Response(response)) => {
                self.ledger.on_session(self.now, incarnation, response.sender_index());
                true
            }
            Ok(Message::Transport(header)) => {
                let lane = (incarnation, header.receiver_index, header.lane);
                let next = self.newest_counters.entry(lane).or_default();
                let is_newest = header.counter >= *next;
                *next = (*next).max(header.counter + 1);
                is_newest
            }
            _ => false,
        }
    }

    /// A node forgets a peer, so that old initiations of that peer may be new to it.
    pub(crate) fn on_peer_removed(&mut self, node: usize, peer: usize) {
        let incarnation = self.nodes[node].incarnation;
        self.ledger.on_peer_removed(incarnation, peer);
        self.taken.retain(|(taken_by, _)| *taken_by != incarnation);
    }

    /// Takes all that a node gives out, and checks it and the node. An answer has at most `limit` bytes.
    pub(crate) fn collect(&mut self, node: usize, limit: Option<usize>) -> Checked {
        let now = self.now;
        let outputs = self.nodes[node].poll(now, &mut self.random);
        for delivery in &outputs.deliveries {
            self.ledger.on_delivered(now, node, delivery)?;
        }
        for event in outputs.events {
            self.trace(|| format!("node {node}: {event:?}"));
            if let Event::SessionEstablished { peer, .. } = event
                && let Some(peer) = self.nodes[node].name(&peer)
            {
                self.established.push((now, node, peer));
            }
        }
        let sent: usize = outputs.transmits.iter().map(|transmit| transmit.payload.len()).sum();
        ensure!(limit.is_none_or(|limit| sent <= limit), "{sent} bytes answer a handshake message of {limit:?}");
        outputs.transmits.into_iter().try_for_each(|transmit| self.transmit(node, transmit))?;
        checks::node(now, &mut self.nodes[node])
    }

    fn transmit(&mut self, node: usize, transmit: Transmit) -> Checked {
        let Transmit { endpoint, payload } = transmit;
        let incarnation = self.nodes[node].incarnation;
        self.trace(|| format!("node {node} sends {} to {}", describe(&payload), endpoint.remote));
        self.ledger.on_sent(self.now, incarnation, &payload)?;
        if let Ok(Message::Initiation(initiation)) = Message::parse(&payload) {
            self.newest_initiation[node] = self.newest_initiation[node].max(self.unix_time(node));
            if let Some(peer) = self.addressee(node, &payload) {
                self.ledger.on_initiation(self.now, incarnation, peer, initiation.sender_index())?;
            }
        }
        self.network.send(self.now, node, endpoint.remote, payload);
        Ok(())
    }

    /// The peer whose public key an initiation was made for.
    fn addressee(&self, node: usize, initiation: &[u8]) -> Option<usize> {
        let made_for = |config: &PeerConfig| {
            let mut keys = std::iter::once(config.public_key).chain(config.next_public_key);
            keys.any(|key| MacKeys::new(&key).verify_mac1(initiation))
        };
        self.nodes[node].peers.iter().find(|(_, known)| made_for(&known.config)).map(|(peer, _)| *peer)
    }

    pub(crate) fn trace(&mut self, line: impl FnOnce() -> String) {
        let at = self.now - self.start;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} s  {}", at.as_secs_f64(), line()));
        }
    }
}

/// Every pair once.
pub(crate) fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |one| (one + 1..count).map(move |two| (one, two)))
}

/// The `generation`th key of node `number`.
pub(crate) fn private_key(number: usize, generation: u8) -> PrivateKey {
    let mut bytes = [number as u8 + 1; 32];
    bytes[1] = generation + 1;
    PrivateKey::from_bytes(bytes).expect("not all zeros")
}

pub(crate) fn preshared_key(number: u8) -> PresharedKey {
    PresharedKey::from_bytes([number; 32]).expect("not all zeros")
}

fn home(number: usize, is_v6: bool) -> SocketAddr {
    if is_v6 {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16 + 1], 51900))
    } else {
        SocketAddr::from(([192, 0, 2, number as u8 + 1], 51900))
    }
}

/// What a handshake message may be answered with, in bytes. Transport data comes from a peer, which may cause more.
fn answer_limit(datagram: &[u8]) -> Option<usize> {
    matches!(Message::parse(datagram), Ok(Message::Initiation(_) | Message::CookieReply(_))).then_some(datagram.len())
}

fn hash(datagram: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    datagram.hash(&mut hasher);
    hasher.finish()
}

fn describe(datagram: &[u8]) -> String {
    match Message::parse(datagram) {
        Ok(Message::Initiation(message)) => format!("initiation {:08x}", message.sender_index()),
        Ok(Message::Response(message)) => {
            format!("response {:08x} to {:08x}", message.sender_index(), message.receiver_index())
        }
        Ok(Message::CookieReply(message)) => format!("cookie reply to {:08x}", message.receiver_index()),
        Ok(Message::Transport(header)) => {
            let length = datagram.len();
            format!("transport {:08x}/{}/{} ({length} bytes)", header.receiver_index, header.lane, header.counter)
        }
        Err(_) => format!("{} bytes of no kind", datagram.len()),
    }
}
