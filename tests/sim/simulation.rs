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
use underpass::proto::event::Event;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::policy::{Exposure, Policy};
use underpass::proto::transmit::Transmit;

use crate::checks;
use crate::network::Network;
use crate::node::{Node, NodeSetup, inner_addresses};
use crate::random::Random;
use crate::reassembly::Reassembly;
use crate::reference::{Checked, Ledger, ensure};
use crate::runner::Tally;
use crate::worker::OFFLOADS;

/// What wall clocks say when a run begins.
const UNIX_TIME: Duration = Duration::from_secs(1_700_000_000);

/// One run's world.
pub(crate) struct Simulation {
    pub start: Instant,
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub ledger: Ledger,
    /// Of what nodes give out.
    reassembly: Reassembly,
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
    /// What the run amounted to so far.
    pub tally: Tally,
    /// A line for everything that happened, if anybody wants to read it.
    pub trace: Option<Vec<String>>,
    starts: u64,
    /// Datagrams that an incarnation took, by hash.
    pub taken: BTreeSet<(u64, u64)>,
    /// The newest datagram of one node that another got.
    pub newest_arrivals: BTreeMap<(usize, usize), u64>,
    /// Sources of the datagrams that a node took.
    pub seen_at: BTreeMap<usize, BTreeSet<SocketAddr>>,
    /// What hostile nodes sealed, with who did it and the plaintext, by hash.
    pub hostile: BTreeMap<u64, (usize, Vec<u8>)>,
    /// The newest counter that an incarnation took, by session index and lane.
    pub newest_counters: BTreeMap<(u64, u32, u8), u64>,
    moves: u16,
    wakeups: BTreeMap<(usize, u64), usize>,
}

impl Simulation {
    /// A world drawn from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, b's');
        let mut paths = Random::new(seed, b'p');
        let count = 3 + random.below(3);
        let setups: Vec<NodeSetup> = (0..count)
            .map(|number| NodeSetup {
                number,
                suite: *random.pick(&Suite::ALL),
                lanes: 1 + random.below(3) as u8,
                has_workers: random.chance(50),
                offloads: OFFLOADS[random.below(OFFLOADS.len())],
                tries_paths: paths.chance(50),
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
            reassembly: Reassembly::default(),
            random,
            removed: BTreeMap::new(),
            announced: BTreeMap::new(),
            clock_back: vec![Duration::ZERO; count],
            newest_initiation: vec![Duration::ZERO; count],
            established: Vec::new(),
            flooded_at: vec![None; count],
            tally: Tally::default(),
            trace: None,
            starts: count as u64,
            taken: BTreeSet::new(),
            newest_arrivals: BTreeMap::new(),
            seen_at: BTreeMap::new(),
            hostile: BTreeMap::new(),
            newest_counters: BTreeMap::new(),
            moves: 0,
            wakeups: BTreeMap::new(),
        }
    }

    /// Makes two nodes peers of each other. Who can be found from outside is known by address, mostly.
    fn introduce(&mut self, one: usize, two: usize, preshared_key: Option<PresharedKey>, random: &mut Random) {
        for (node, peer) in [(one, two), (two, one)] {
            let home = self.home_endpoint(peer);
            let config = PeerConfig {
                preshared_key: preshared_key.clone(),
                // The side behind a NAT has to call, so it must know where.
                endpoints: home.into_iter().filter(|_| self.network.is_natted(node) || random.chance(85)).collect(),
                watched: random.chance(40),
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
            let config = PeerConfig { endpoints: Vec::from_iter(self.home_endpoint(peer)), ..self.peer_config(peer) };
            self.nodes[node].upsert_peer(self.now, peer, config);
            self.nodes[node].start();
        }
    }

    /// How `peer` is configured elsewhere, without an endpoint.
    pub(crate) fn peer_config(&self, peer: usize) -> PeerConfig {
        PeerConfig {
            allowed_ips: inner_addresses(peer).map(Into::into).to_vec(),
            policy: Policy::exposing(Exposure::everything()).into(),
            ..PeerConfig::new(self.nodes[peer].private_key.public_key())
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
        self.collect(node)
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
        let mut next = self.network.receive(self.now);
        while let Some((node, datagram)) = next.take() {
            let mut together = vec![datagram];
            next = self.network.receive(self.now);
            while let Some((_, datagram)) =
                next.take_if(|(to, datagram)| *to == node && self.gathers(node, &together, datagram))
            {
                together.push(datagram);
                next = self.network.receive(self.now);
            }
            self.deliver_together(node, together)?;
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
        self.collect(node)?;
        if self.nodes[node].deadline().is_some_and(|deadline| deadline <= now) {
            self.count_wakeup(node)?;
        }
        self.handle_timeout(node)
    }

    /// Calls the timeout, due or not.
    pub(crate) fn handle_timeout(&mut self, node: usize) -> Checked {
        let now = self.now;
        let timer = self.nodes[node].device.poll_timeout().filter(|(at, _)| *at <= now).map(|(_, timer)| timer);
        self.trace(|| format!("node {node} is woken by {timer:?}"));
        self.nodes[node].device.handle_timeout(now);
        self.collect(node)?;
        checks::after_timeout(now, &mut self.nodes[node])
    }

    /// A device that is woken again and again has a busy loop. Pings of a peer in doubt and probes of its path are the most
    /// frequent: 20 a second each.
    fn count_wakeup(&mut self, node: usize) -> Checked {
        let second = (self.now - self.start).as_secs();
        let wakeups = self.wakeups.entry((node, second)).or_default();
        *wakeups += 1;
        let allowed = 50 * self.nodes.len();
        ensure!(*wakeups <= allowed, "node {node} was woken {wakeups} times in one second");
        Ok(())
    }

    /// A node forgets a peer, so that old initiations of that peer may be new to it.
    pub(crate) fn on_peer_removed(&mut self, node: usize, peer: usize) {
        let incarnation = self.nodes[node].incarnation;
        self.ledger.on_peer_removed(incarnation, peer);
        self.taken.retain(|(taken_by, _)| *taken_by != incarnation);
    }

    /// Takes all that a node gives out, and checks it and the node.
    pub(crate) fn collect(&mut self, node: usize) -> Checked {
        self.collect_received(node, None, true)
    }

    /// The same after it received. An answer has at most `limit` bytes; `in_order` is the ledger's.
    pub(crate) fn collect_received(&mut self, node: usize, limit: Option<usize>, in_order: bool) -> Checked {
        let now = self.now;
        let outputs = self.nodes[node].poll(now, &mut self.random);
        for delivery in outputs.deliveries {
            let whole = match self.ledger.knows(&delivery.bytes) {
                true => Some(delivery),
                false => self.reassembly.take(node, delivery),
            };
            whole.map_or(Ok(()), |delivery| self.ledger.on_delivered(now, node, &delivery, in_order))?;
        }
        self.tally.writes += outputs.writes as u64;
        self.tally.refused += outputs.refused;
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

    pub(crate) fn transmit(&mut self, node: usize, transmit: Transmit) -> Checked {
        let (incarnation, payload) = (self.nodes[node].incarnation, &transmit.payload);
        self.trace(|| format!("node {node} sends {} to {}", describe(payload), transmit.endpoint.remote));
        self.ledger.on_sent(self.now, incarnation, payload)?;
        if let Ok(Message::Initiation(initiation)) = Message::parse(payload) {
            self.newest_initiation[node] = self.newest_initiation[node].max(self.unix_time(node));
            if let Some(peer) = self.addressee(node, payload) {
                self.ledger.on_initiation(self.now, incarnation, peer, initiation.sender_index())?;
            }
        }
        self.network.send(self.now, node, transmit);
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

pub(crate) fn hash(datagram: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    datagram.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn describe(datagram: &[u8]) -> String {
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
