//! The reference model: what was sent, what may be delivered, which nonces were used. Slow and obvious.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use underpass::packet::message::{Message, TransportHeader};
use underpass::proto::constants::{MIN_INITIATION_INTERVAL, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, RETRY_INTERVALS};

use crate::inner_packet::{Flow, number_of};
use crate::twin::packet::{addresses, decapsulated, ecn, is_atomic, is_v4, set_field};

/// An invariant that does not hold, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation(pub String);

/// What every check returns.
pub(crate) type Checked = Result<(), Violation>;

/// Returns a [`Violation`] unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err($crate::reference::Violation(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// Which peer has which prefix: what a node's cryptokey routing must do.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowedTable(Vec<(IpNet, usize)>);

impl AllowedTable {
    /// Gives `peer` these prefixes and no others. A prefix has one owner.
    pub(crate) fn set(&mut self, peer: usize, prefixes: &[IpNet]) {
        self.remove(peer);
        for prefix in prefixes {
            self.0.retain(|(other, _)| *other != prefix.trunc());
            self.0.push((prefix.trunc(), peer));
        }
    }

    pub(crate) fn remove(&mut self, peer: usize) {
        self.0.retain(|(_, owner)| *owner != peer);
    }

    /// The owner of the longest prefix that contains `address`.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<usize> {
        let containing = self.0.iter().filter(|(prefix, _)| prefix.contains(&address));
        containing.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, peer)| *peer)
    }
}

/// The newest initiation to a peer.
#[derive(Debug, Clone, Copy)]
struct Initiated {
    index: u32,
    at: Instant,
    /// When the one before it was sent.
    before: Option<Instant>,
}

/// A packet that a node was given by its TUN.
#[derive(Debug, Clone)]
pub(crate) struct SentPacket {
    pub from: usize,
    /// Whom the sender's threads thought that the destination belongs to.
    pub leads_to: Vec<usize>,
    /// `None` for what a hostile node made of one, and in what order.
    pub flow: Option<Flow>,
    /// As a host must see it: with its checksum complete.
    pub bytes: Vec<u8>,
    pub delivered_at: Option<Instant>,
}

/// A packet that a node gave out.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// Who the device says it is from.
    pub peer: usize,
    /// As a host sees it.
    pub bytes: Vec<u8>,
    /// Whether the source is the peer's, by the model of what the device was told.
    pub source_is_allowed: bool,
}

impl SentPacket {
    /// Whether it is unchanged, but for what the network may have marked: what joins packets may count anew what says
    /// nothing, and repair what a hostile peer spoilt.
    fn is(&self, delivered: &[u8]) -> bool {
        let Some(mut sent) = decapsulated(&self.bytes, ecn(delivered)) else { return false };
        let mut delivered = delivered.to_vec();
        if sent.len() == delivered.len() && is_v4(&delivered) && (is_atomic(&delivered) || self.flow.is_none()) {
            for packet in [&mut sent, &mut delivered] {
                // Identification and header checksum.
                [4, 10].into_iter().for_each(|at| set_field(packet, at, 0));
            }
        }
        sent == delivered
    }
}

/// Everything that was sent in a run.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By number.
    packets: Vec<SentPacket>,
    /// Every (incarnation, index that its peer chose, lane, counter) that was sealed with.
    nonces: BTreeSet<(u64, u32, u8, u64)>,
    /// When an incarnation made its session with an index that its peer chose.
    sessions: BTreeMap<(u64, u32), Instant>,
    /// When an incarnation last initiated to a peer.
    initiations: BTreeMap<(u64, usize), Initiated>,
    /// The newest packet of each flow that one node gave out of another's while the network kept the order.
    newest: BTreeMap<(usize, usize, Flow), u64>,
    deliveries: u64,
}

impl Ledger {
    /// The number of the next packet.
    pub(crate) fn next_number(&self) -> u64 {
        self.packets.len() as u64
    }

    pub(crate) fn record(&mut self, packet: SentPacket) {
        self.packets.push(packet);
    }

    pub(crate) fn packet(&self, number: u64) -> &SentPacket {
        &self.packets[number as usize]
    }

    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Whether a packet was sent just so: whole, or as a fragment by a hostile node.
    pub(crate) fn knows(&self, delivered: &[u8]) -> bool {
        let sent = number_of(delivered).and_then(|number| self.packets.get(usize::try_from(number).ok()?));
        sent.is_some_and(|sent| sent.is(delivered))
    }

    /// A delivered packet was sent by its peer, unchanged, at most once, and its source is allowed. `in_order`: the network
    /// let nothing overtake its datagram, so that no packet of its flow has overtaken it.
    pub(crate) fn on_delivered(
        &mut self,
        now: Instant,
        receiver: usize,
        delivery: &Delivery,
        in_order: bool,
    ) -> Checked {
        let number = number_of(&delivery.bytes);
        let sent = number.and_then(|number| Some((number, self.packets.get_mut(number as usize)?)));
        let Some((number, sent)) = sent else {
            return Err(Violation(format!("node {receiver} delivered what nobody sent: {delivery:?}")));
        };
        ensure!(sent.from == delivery.peer, "node {receiver} took {sent:?} for a packet of node {}", delivery.peer);
        ensure!(sent.leads_to.contains(&receiver), "node {receiver} delivered a packet for {:?}", sent.leads_to);
        ensure!(sent.is(&delivery.bytes), "node {receiver} delivered a changed packet: {delivery:?} of {sent:?}");
        ensure!(sent.delivered_at.is_none(), "node {receiver} delivered packet {number} twice");
        ensure!(
            delivery.source_is_allowed,
            "node {receiver} delivered a packet of node {} from {}",
            delivery.peer,
            addresses(&delivery.bytes)[0]
        );
        sent.delivered_at = Some(now);
        self.deliveries += 1;
        if let Some(flow) = sent.flow.filter(|_| in_order) {
            let newest = self.newest.insert((sent.from, receiver, flow), number);
            ensure!(newest < Some(number), "node {receiver} delivered packet {number} behind {newest:?} of {flow:?}");
        }
        Ok(())
    }

    /// `incarnation` has agreed on a session in which it sends to `remote_index`.
    pub(crate) fn on_session(&mut self, now: Instant, incarnation: u64, remote_index: u32) {
        self.sessions.insert((incarnation, remote_index), now);
    }

    /// No (key, nonce) is used twice, and nothing is sealed after a session's limits.
    pub(crate) fn on_sent(&mut self, now: Instant, incarnation: u64, datagram: &[u8]) -> Checked {
        match Message::parse(datagram) {
            Ok(Message::Transport(header)) => self.on_sealed(now, incarnation, header),
            Ok(Message::Response(response)) => {
                self.on_session(now, incarnation, response.receiver_index());
                Ok(())
            }
            Ok(Message::Initiation(_) | Message::CookieReply(_)) => Ok(()),
            Err(_) => Err(Violation(format!("a device sent what is no message: {datagram:02x?}"))),
        }
    }

    /// Initiations to one peer are not too close together: only the second of an attempt follows its first soon. One may go to
    /// two addresses, there maybe a little later.
    pub(crate) fn on_initiation(&mut self, now: Instant, incarnation: u64, peer: usize, index: u32) -> Checked {
        let newest = self.initiations.entry((incarnation, peer)).or_insert(Initiated { index, at: now, before: None });
        if newest.index != index {
            let apart = now.saturating_duration_since(newest.at);
            ensure!(apart >= RETRY_INTERVALS[0], "initiations to node {peer} only {apart:?} apart");
            let two_apart = newest.before.map_or(Duration::MAX, |before| now.saturating_duration_since(before));
            ensure!(two_apart >= MIN_INITIATION_INTERVAL, "three initiations to node {peer} in {two_apart:?}");
            *newest = Initiated { index, at: now, before: Some(newest.at) };
        }
        Ok(())
    }

    /// `incarnation` has forgotten `peer`, and with it when it last initiated.
    pub(crate) fn on_peer_removed(&mut self, incarnation: u64, peer: usize) {
        self.initiations.remove(&(incarnation, peer));
    }

    fn on_sealed(&mut self, now: Instant, incarnation: u64, header: TransportHeader) -> Checked {
        let TransportHeader { lane, receiver_index, counter } = header;
        let made_at = self.sessions.get(&(incarnation, receiver_index));
        ensure!(made_at.is_some(), "sealed for session {receiver_index:08x} that was never agreed");
        let age = now.saturating_duration_since(*made_at.expect("just checked"));
        ensure!(age < REJECT_AFTER_TIME, "sealed with a session of {age:?}");
        ensure!(counter < REJECT_AFTER_MESSAGES, "sealed with counter {counter}");
        ensure!(
            self.nonces.insert((incarnation, receiver_index, lane, counter)),
            "sealed twice with session {receiver_index:08x}, lane {lane}, counter {counter}"
        );
        Ok(())
    }
}
