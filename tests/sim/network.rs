//! The network outside: links that delay, lose, reorder, duplicate, alter, mark and cut; NATs that translate and forget.
//!
//! It carries bytes between addresses and records them for the attacker. It knows nothing of the protocol but which
//! bytes of a message are not authenticated by design, so that what it alters is really altered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use underpass::packet::message::{MAC_LEN, Message};
use underpass::packet::traffic_class::{Ecn, TrafficClass};
use underpass::proto::transmit::Transmit;

use crate::random::Random;

/// Where the attacker receives.
pub(crate) const ATTACKER: &str = "203.0.113.66:666";

/// Outer headers of the larger family: 40 of IPv6 and 8 of UDP.
pub(crate) const OUTER_HEADERS: usize = 48;
/// Datagrams that the attacker remembers.
const RECORDED: usize = 400;
/// A NAT forgets a flow that was silent for this long.
const NAT_LIFETIME: Duration = Duration::from_secs(60);

/// What one direction of a link does to datagrams. Percentages are of each datagram by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quality {
    pub delay: Duration,
    /// Each datagram takes up to this much longer, so that later ones overtake it.
    pub jitter: Duration,
    pub loss: u8,
    pub duplicate: u8,
    pub alter: u8,
    /// Their ECN field says anything, which nobody authenticates.
    pub mark: u8,
    /// Longest outer packet.
    pub mtu: usize,
    pub blocked: bool,
}

impl Quality {
    /// In order, whole and soon.
    pub(crate) const PERFECT: Self = Self {
        delay: Duration::from_millis(10),
        jitter: Duration::ZERO,
        loss: 0,
        duplicate: 0,
        alter: 0,
        mark: 0,
        mtu: 1500,
        blocked: false,
    };
}

/// What happens to one datagram, whatever its link is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    IsLost,
    /// Later ones overtake it.
    IsLate(Duration),
}

/// What happened to a datagram since a node sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing.
    Genuine,
    /// It is a copy, maybe one of many, maybe from another address.
    Copy,
    /// It is not what any node sent.
    Altered,
}

/// A datagram on its way.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub ecn: Ecn,
    pub payload: Vec<u8>,
    pub origin: Origin,
    /// Which node sent it, or what it was made from, and as the how manyth datagram; `None` for what no node did.
    pub sent: Option<(usize, u64)>,
}

/// A datagram as the attacker saw it, with the nodes it went between.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub sender: usize,
    pub receiver: usize,
    pub datagram: Datagram,
}

/// All links, NATs and datagrams under way.
pub(crate) struct Network {
    attachments: Vec<Attachment>,
    /// By sender, then receiver.
    links: Vec<Vec<Quality>>,
    /// By arrival, then by order of sending.
    in_flight: BTreeMap<(Instant, u64), Datagram>,
    /// Of the next datagrams, in the order in which they are sent.
    fates: VecDeque<Fate>,
    /// By sender and receiver: the attacker takes the next datagram and sends it from his address.
    diverted: BTreeSet<(usize, usize)>,
    recorded: VecDeque<Recorded>,
    /// How many datagrams nodes have sent, and links have carried.
    sent: u64,
    launched: u64,
    random: Random,
}

/// Where a node is.
struct Attachment {
    own: SocketAddr,
    nat: Option<Nat>,
}

/// Maps all that a node sends to one public address, and lets answers of those in that it sent to lately.
struct Nat {
    public: SocketAddr,
    open_to: BTreeMap<SocketAddr, Instant>,
}

impl Network {
    /// Nodes at `addresses`; those in `natted` behind a NAT.
    pub(crate) fn new(addresses: &[SocketAddr], natted: &[bool], random: Random) -> Self {
        let attachments = addresses.iter().zip(natted).enumerate().map(|(node, (public, natted))| {
            let private = SocketAddr::from(([10, 0, node as u8, 2], 51900));
            match natted {
                true => Attachment { own: private, nat: Some(Nat { public: *public, open_to: BTreeMap::new() }) },
                false => Attachment { own: *public, nat: None },
            }
        });
        Self {
            attachments: attachments.collect(),
            links: vec![vec![Quality::PERFECT; addresses.len()]; addresses.len()],
            in_flight: BTreeMap::new(),
            fates: VecDeque::new(),
            diverted: BTreeSet::new(),
            recorded: VecDeque::new(),
            sent: 0,
            launched: 0,
            random,
        }
    }

    pub(crate) fn link(&mut self, from: usize, to: usize) -> &mut Quality {
        &mut self.links[from][to]
    }

    /// Decides about the next datagrams that are sent.
    pub(crate) fn decide(&mut self, fates: impl IntoIterator<Item = Fate>) {
        self.fates.extend(fates);
    }

    /// Lets the attacker take the next datagram and send it from his address.
    pub(crate) fn divert(&mut self, from: usize, to: usize) {
        self.diverted.insert((from, to));
    }

    /// Makes every link perfect for what is sent from here on.
    pub(crate) fn heal(&mut self) {
        self.fates.clear();
        self.diverted.clear();
        self.links.iter_mut().flatten().for_each(|link| *link = Quality::PERFECT);
    }

    /// The address that the node itself has.
    pub(crate) fn own_address(&self, node: usize) -> IpAddr {
        self.attachments[node].own.ip()
    }

    /// The address that others see.
    pub(crate) fn public_address(&self, node: usize) -> SocketAddr {
        let attachment = &self.attachments[node];
        attachment.nat.as_ref().map_or(attachment.own, |nat| nat.public)
    }

    pub(crate) fn is_natted(&self, node: usize) -> bool {
        self.attachments[node].nat.is_some()
    }

    /// Gives the node, or the NAT before it, another address; what the NAT knew is forgotten.
    pub(crate) fn move_to(&mut self, node: usize, address: SocketAddr) {
        let attachment = &mut self.attachments[node];
        match &mut attachment.nat {
            Some(nat) => *nat = Nat { public: address, open_to: BTreeMap::new() },
            None => attachment.own = address,
        }
    }

    /// The node that a datagram from `from` to `to` would reach now.
    pub(crate) fn reaches(&self, now: Instant, from: usize, to: SocketAddr) -> Option<usize> {
        let receiver = self.node_at(to)?;
        self.lets_in(now, receiver, self.public_address(from)).then_some(receiver)
    }

    /// What the attacker recorded, oldest first.
    pub(crate) fn recorded(&self) -> &VecDeque<Recorded> {
        &self.recorded
    }

    /// Takes a datagram that a node sends.
    pub(crate) fn send(&mut self, now: Instant, sender: usize, transmit: Transmit) {
        // A node has one port here, whatever its lanes.
        let Transmit { endpoint, traffic_class, payload, may_fragment, .. } = transmit;
        let to = endpoint.remote;
        let from = self.translate(now, sender, to);
        let Some(receiver) = self.node_at(to) else { return };
        self.sent += 1;
        let (ecn, sent) = (traffic_class.ecn(), Some((sender, self.sent)));
        let mut datagram = Datagram { from, to, ecn, payload, origin: Origin::Genuine, sent };
        self.record(Recorded { sender, receiver, datagram: datagram.clone() });
        if self.diverted.remove(&(sender, receiver)) {
            datagram.from = ATTACKER.parse().expect("an address");
        }
        let mut quality = self.links[sender][receiver];
        match self.fates.pop_front() {
            Some(Fate::IsLost) => return,
            Some(Fate::IsLate(late)) => quality.delay += late,
            Some(Fate::Arrives) | None => {}
        }
        let too_long = !may_fragment && datagram.payload.len() + OUTER_HEADERS > quality.mtu;
        if quality.blocked || too_long || self.random.chance(quality.loss) {
            return;
        }
        if self.random.chance(quality.mark) {
            datagram.ecn = TrafficClass::from_byte(self.random.below(4) as u8).ecn();
        }
        if self.random.chance(quality.duplicate) {
            self.launch(now, quality, Datagram { origin: Origin::Copy, ..datagram.clone() });
        }
        if self.random.chance(quality.alter) {
            let payload = self.altered(datagram.payload);
            self.launch(now, quality, Datagram { payload, origin: Origin::Altered, ..datagram });
        } else {
            self.launch(now, quality, datagram);
        }
    }

    /// When the next datagram arrives.
    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next datagram that has arrived, and at which node.
    pub(crate) fn receive(&mut self, now: Instant) -> Option<(usize, Datagram)> {
        while self.next_arrival().is_some_and(|at| at <= now) {
            let (_, datagram) = self.in_flight.pop_first()?;
            let receiver = self.node_at(datagram.to);
            // The attacker is also between a node and its NAT.
            let lets_in =
                |receiver: &usize| datagram.from.to_string() == ATTACKER || self.lets_in(now, *receiver, datagram.from);
            if let Some(receiver) = receiver.filter(lets_in) {
                return Some((receiver, datagram));
            }
        }
        None
    }

    /// Flips one bit that some check covers.
    pub(crate) fn altered(&mut self, mut payload: Vec<u8>) -> Vec<u8> {
        let covered = match Message::parse(&payload) {
            // mac2 means nothing to a receiver that is not under load.
            Ok(Message::Initiation(_) | Message::Response(_)) => 0..payload.len() - MAC_LEN,
            // Two reserved bytes stand before the index.
            Ok(Message::CookieReply(_)) => 4..payload.len(),
            _ => 0..payload.len(),
        };
        let at = covered.start + self.random.below(covered.len());
        payload[at] ^= 1 << self.random.below(8);
        payload
    }

    fn launch(&mut self, now: Instant, quality: Quality, datagram: Datagram) {
        let arrives_at = now + quality.delay + self.random.duration(quality.jitter);
        self.launched += 1;
        self.in_flight.insert((arrives_at, self.launched), datagram);
    }

    fn record(&mut self, recorded: Recorded) {
        self.recorded.push_back(recorded);
        if self.recorded.len() > RECORDED {
            self.recorded.pop_front();
        }
    }

    fn node_at(&self, address: SocketAddr) -> Option<usize> {
        (0..self.attachments.len()).find(|node| self.public_address(*node) == address)
    }

    /// The source address outside of what `node` sends to `to`, for which a NAT opens.
    fn translate(&mut self, now: Instant, node: usize, to: SocketAddr) -> SocketAddr {
        let attachment = &mut self.attachments[node];
        let Some(nat) = &mut attachment.nat else { return attachment.own };
        nat.open_to.retain(|_, used_at| now.saturating_duration_since(*used_at) < NAT_LIFETIME);
        if nat.open_to.is_empty() {
            // The flow is new to the NAT: it gets a new port.
            nat.public.set_port(nat.public.port().wrapping_add(1).max(1024));
        }
        nat.open_to.insert(to, now);
        nat.public
    }

    fn lets_in(&self, now: Instant, receiver: usize, from: SocketAddr) -> bool {
        let Some(nat) = &self.attachments[receiver].nat else { return true };
        nat.open_to.get(&from).is_some_and(|used_at| now.saturating_duration_since(*used_at) < NAT_LIFETIME)
    }
}
