//! Datagrams that reach a node, alone or several at once, and what they may change.

use underpass::packet::frame::FRAME_HEADER_LEN;
use underpass::packet::message::{Message, TRANSPORT_OVERHEAD};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::DropReason;
use underpass::proto::event::Event;

use crate::checks::{self, Untouched};
use crate::network::{Datagram, Origin};
use crate::reference::{Checked, ensure};
use crate::simulation::{Simulation, describe, hash};
use crate::worker::Arrived;

/// Datagrams that are received together, at most.
const MAX_GATHERED: usize = 64;
/// A datagram of one probe or pong, which are as long: its kind and token.
pub(crate) const PROBE_LEN: usize = TRANSPORT_OVERHEAD + FRAME_HEADER_LEN + 1 + 8;

impl Simulation {
    /// Whether a node receives `next` together with those before: all may be taken, and none was overtaken.
    pub(crate) fn gathers(&self, node: usize, before: &[Datagram], next: &Datagram) -> bool {
        let receiver = &self.nodes[node];
        let is_gathered = |datagram: &Datagram| {
            receiver.gathers(&datagram.payload) && !self.must_refuse(node, datagram) && !self.is_late(node, datagram)
        };
        let follows = |other: &Datagram| {
            let of = |datagram: &Datagram| datagram.sent.unzip();
            of(other).0 != of(next).0 || of(other).1 < of(next).1
        };
        before.len() < MAX_GATHERED && before.iter().chain([next]).all(is_gathered) && before.iter().all(follows)
    }

    /// Whether a datagram was overtaken by another of its sender, or comes again. What nobody sent is always late.
    fn is_late(&self, node: usize, datagram: &Datagram) -> bool {
        datagram.sent.is_none_or(|(sender, number)| self.newest_arrivals.get(&(sender, node)) >= Some(&number))
    }

    /// Gives a datagram to a node and checks what it does with it.
    pub(crate) fn deliver(&mut self, node: usize, datagram: Datagram) -> Checked {
        self.deliver_together(node, vec![datagram])
    }

    /// The same with datagrams that are received together.
    pub(crate) fn deliver_together(&mut self, node: usize, datagrams: Vec<Datagram>) -> Checked {
        let (now, local) = (self.now, Some(self.network.own_address(node)));
        let in_order = !datagrams.iter().any(|datagram| self.is_late(node, datagram));
        for (sender, number) in datagrams.iter().filter_map(|datagram| datagram.sent) {
            let newest = self.newest_arrivals.entry((sender, node)).or_default();
            *newest = number.max(*newest);
        }
        let before = self.untouched(node, &datagrams[0]);
        let hostile = self.before_hostile(node, &datagrams[0]);
        let endpoints = self.nodes[node].endpoints(now);
        let arrived = |datagram: &Datagram| Arrived {
            from: Endpoint { remote: datagram.from, local, interface: 0 },
            ecn: datagram.ecn,
            payload: datagram.payload.clone(),
        };
        let mut received: Vec<_> = datagrams.iter().map(arrived).collect();
        let outcomes = self.nodes[node].receive(now, &mut received, &mut self.random)?;
        let mut may_move_to = Vec::new();
        for (Datagram { from, payload, .. }, outcome) in datagrams.iter().zip(&outcomes) {
            self.trace(|| format!("node {node} gets {} from {from}: {outcome:?}", describe(payload)));
            if outcome.is_err() {
                continue;
            }
            if self.on_taken(node, payload) {
                may_move_to.push(Some(*from));
            }
            let seen_at = self.seen_at.entry(node).or_default();
            seen_at.insert(*from);
            if payload.len() == PROBE_LEN {
                // A pong proves where its probe went, which is where the peer was seen, whenever and from wherever it comes.
                may_move_to.extend(seen_at.iter().copied().map(Some));
            }
        }
        let payload = &datagrams[0].payload;
        let moved = self.nodes[node].endpoints(now).into_iter().zip(endpoints).find(|(after, before)| after != before);
        ensure!(
            moved.is_none_or(|(after, _)| may_move_to.contains(&after)),
            "{} and what came with it moved an endpoint of node {node}: {moved:?}",
            describe(payload)
        );
        match before {
            Some(before) => self.check_untouched(node, outcomes[0], &before, payload),
            None => {
                self.collect_received(node, answer_limit(payload), in_order)?;
                hostile.map_or(Ok(()), |hostile| self.check_hostile(node, outcomes[0], hostile))
            }
        }
    }

    /// The state of a node before a datagram that must not change it.
    fn untouched(&mut self, node: usize, datagram: &Datagram) -> Option<Untouched> {
        self.must_refuse(node, datagram).then(|| Untouched::new(self.now, &mut self.nodes[node]))
    }

    fn must_refuse(&self, node: usize, datagram: &Datagram) -> bool {
        match datagram.origin {
            Origin::Genuine => false,
            Origin::Copy => self.taken.contains(&(self.nodes[node].incarnation, hash(&datagram.payload))),
            Origin::Altered => true,
        }
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
        let is_only_told = outputs.events.iter().all(|event| matches!(event, Event::InitiationRefused { .. }));
        ensure!(outputs.deliveries.is_empty() && is_only_told, "{} did something", describe(datagram));
        let answered: usize = outputs.transmits.iter().map(|transmit| transmit.payload.len()).sum();
        ensure!(answered <= datagram.len(), "{answered} bytes answer {} bytes of a stranger", datagram.len());
        // Whoever is refused for its clock alone is called back, which is an attempt of the device's own.
        let is_called_back = outcome == Err(DropReason::StaleInitiation) && answered > 0;
        outputs.transmits.into_iter().try_for_each(|transmit| self.transmit(node, transmit))?;
        let after = Untouched::new(self.now, &mut self.nodes[node]);
        ensure!(
            *before == after || is_called_back,
            "{} changed node {node} from {before:?} to {after:?}",
            describe(datagram)
        );
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
}

/// What a handshake message may be answered with, in bytes. Transport data comes from a peer, which may cause more.
fn answer_limit(datagram: &[u8]) -> Option<usize> {
    matches!(Message::parse(datagram), Ok(Message::Initiation(_) | Message::CookieReply(_))).then_some(datagram.len())
}
