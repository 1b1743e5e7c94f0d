//! After the network heals, peers with traffic exchange packets within a time that follows from the constants.

use std::time::{Duration, Instant};

use underpass::proto::constants::{
    LIVENESS_INTERVAL, LIVENESS_MAX_PATIENCE, LIVENESS_PINGS_UNANSWERED, LIVENESS_RETRY_INTERVAL, RETRY_INTERVALS,
    RETRY_JITTER,
};
use underpass::proto::error::{DropReason, Miss};

use crate::inner_packet::{Burst, LONGEST_PAYLOAD};
use crate::node::{HAND_OVER, Node, inner_addresses};
use crate::reference::{Checked, ensure};
use crate::simulation::{Simulation, pairs};

/// The longest wait between two initiations.
const RETRY: Duration = RETRY_INTERVALS[RETRY_INTERVALS.len() - 1].saturating_add(RETRY_JITTER);
/// Silence of the other side is found out within so long.
const FOUND_DEAD: Duration = LIVENESS_INTERVAL
    .saturating_add(LIVENESS_MAX_PATIENCE.saturating_mul(2))
    .saturating_add(LIVENESS_RETRY_INTERVAL.saturating_mul(LIVENESS_PINGS_UNANSWERED));
/// No pair takes longer.
const LONGEST: Duration = FOUND_DEAD.saturating_add(RETRY.saturating_mul(4));
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// A round trip, and what threads take to tell each other.
const SETTLE: Duration = Duration::from_millis(60);
/// What is sealed so shortly before the end of a session may come too late: the responder's age runs ahead.
const ENDING: Duration = Duration::from_secs(1);
/// How often both sides send while they recover.
const INTERVAL: Duration = Duration::from_millis(200);

/// What one pair of nodes has reached since the network healed.
struct Recovering {
    one: usize,
    two: usize,
    /// Until when each must have heard the other.
    deadline: Instant,
    /// The packets sent since, by direction.
    sent: [Vec<u64>; 2],
}

impl Simulation {
    /// Makes the network perfect and all threads prompt, lets all pairs that can find each other send, and waits until
    /// they have exchanged packets.
    pub(crate) fn heal(&mut self) -> Checked {
        self.network.heal();
        for node in 0..self.nodes.len() {
            self.nodes[node].thaw();
        }
        // What slow threads still have to tell each other, and what the attacker has held back, arrives first.
        self.advance(Duration::from_secs(3))?;
        self.established.clear();
        let mut recovering = self.find_pairs()?;
        self.advance(HAND_OVER)?;
        while !recovering.is_empty() {
            for pair in &mut recovering {
                pair.sent[0].push(self.send(pair.one, pair.two, 1, 20)?);
                pair.sent[1].push(self.send(pair.two, pair.one, 1, 20)?);
            }
            self.advance(INTERVAL)?;
            self.check_established()?;
            let mut still = Vec::new();
            for pair in recovering {
                if !self.has_recovered(&pair) {
                    ensure!(self.now < pair.deadline, "{}", self.stalled(&pair));
                    still.push(pair);
                }
            }
            recovering = still;
        }
        self.check_steady()
    }

    /// The pairs that must find each other. Where neither side knows where the other is, a name is resolved.
    fn find_pairs(&mut self) -> Result<Vec<Recovering>, crate::Violation> {
        let mut found = Vec::new();
        for (one, two) in pairs(self.nodes.len()) {
            if !self.agree(one, two) || !self.agree(two, one) {
                continue;
            }
            if !self.may_find(one, two) && !self.may_find(two, one) {
                self.resolve(one, two)?;
                self.resolve(two, one)?;
            }
            if self.may_find(one, two) || self.may_find(two, one) {
                let deadline = self.now + self.recovery_bound(one, two);
                found.push(Recovering { one, two, deadline, sent: [Vec::new(), Vec::new()] });
            }
        }
        Ok(found)
    }

    /// Whether `one` is configured such that `two` can reach it, and its initiations are not refused as old.
    fn agree(&self, one: usize, two: usize) -> bool {
        let (Some(peer), Some(own)) = (self.nodes[one].peers.get(&two), self.nodes[two].peers.get(&one)) else {
            return false;
        };
        let remote = self.nodes[two].private_key.public_key();
        let knows_key = peer.config.public_key == remote || peer.config.next_public_key == Some(remote);
        let routes = inner_addresses(two).iter().all(|address| self.nodes[one].allowed.lookup(*address) == Some(two));
        let clock_is_ahead = self.unix_time(one) > self.newest_initiation[one] || self.clock_back[one].is_zero();
        knows_key && routes && clock_is_ahead && peer.config.preshared_key == own.config.preshared_key
    }

    /// Whether `one` knows an address at which it reaches `two`, also when the two have first to find out that they must
    /// begin anew.
    fn may_find(&self, one: usize, two: usize) -> bool {
        let configured = self.nodes[one].peers[&two].config.endpoints.first().map(|endpoint| endpoint.remote);
        let mut known = [configured, self.nodes[one].endpoint_of(self.now, two)].into_iter().flatten();
        known.any(|address| self.network.reaches(self.now + LONGEST, one, address) == Some(two))
    }

    /// How long two nodes may take to exchange packets.
    fn recovery_bound(&mut self, one: usize, two: usize) -> Duration {
        let sealing = [self.seals_for(one, two), self.seals_for(two, one)];
        // Whoever knows where the other is tells it the way back; else the configured address is tried again.
        let astray = !self.knows_way(one, two) && !self.knows_way(two, one);
        if sealing == [Some(true); 2] && !astray {
            return INTERVAL * 2;
        }
        let is_changing_key = |node: &Node, peer| node.peers[&peer].config.next_public_key.is_some();
        let keys = is_changing_key(&self.nodes[one], two) || is_changing_key(&self.nodes[two], one);
        let retries = RETRY * (1 + u32::from(keys) + u32::from(astray)) + ROUND_TRIP * 3 + INTERVAL;
        // That a session or an address leads nowhere has to be found out first.
        let in_vain = sealing.contains(&Some(false)) || (astray && sealing != [None; 2]);
        if in_vain { FOUND_DEAD + retries } else { retries }
    }

    /// Whether what `from` seals for `to` can be opened there; `None` if it would not seal, or not for long.
    fn seals_for(&mut self, from: usize, to: usize) -> Option<bool> {
        let router = self.nodes[from].device.router();
        let index = router.route(self.now + ENDING, inner_addresses(to)[0]).ok()?.session().remote_index;
        Some(self.nodes[to].device.router().sessions().any(|(_, session)| session.local_index == index))
    }

    /// Whether what `from` sends arrives at `to` and is opened.
    fn is_live(&mut self, from: usize, to: usize) -> bool {
        let router = self.nodes[from].device.router();
        let Ok(route) = router.route(self.now, inner_addresses(to)[0]) else { return false };
        let arrives = self.network.reaches(self.now, from, route.endpoint().remote) == Some(to);
        arrives && self.seals_for(from, to) == Some(true)
    }

    /// Whether `from` seals nothing for `to`, whom it has found dead: that the other has just confirmed a session of before
    /// does not tell it otherwise.
    fn refuses(&mut self, from: usize, to: usize) -> bool {
        let router = self.nodes[from].device.router();
        matches!(router.route(self.now, inner_addresses(to)[0]), Err(Miss::Drop(DropReason::LinkDown)))
    }

    /// Whether `from` knows the way to `to`.
    fn knows_way(&self, from: usize, to: usize) -> bool {
        let endpoint = self.nodes[from].endpoint_of(self.now, to);
        endpoint.is_some_and(|address| self.network.reaches(self.now, from, address) == Some(to))
    }

    /// Whether each has heard the other since the network healed, and will.
    fn has_recovered(&mut self, pair: &Recovering) -> bool {
        let delivered = |number: &u64| self.ledger.packet(*number).delivered_at.is_some();
        pair.sent.iter().all(|sent| sent.iter().any(delivered))
            && self.is_live(pair.one, pair.two)
            && self.is_live(pair.two, pair.one)
    }

    /// Once a session was established over a healthy network, neither side seals with a session that the other lacks.
    fn check_established(&mut self) -> Checked {
        for (at, node, peer) in std::mem::take(&mut self.established) {
            if self.now < at + SETTLE {
                self.established.push((at, node, peer));
                continue;
            }
            for (from, to) in [(node, peer), (peer, node)] {
                if self.agree(from, to) && self.agree(to, from) {
                    let is_live = self.refuses(from, to) || self.is_live(from, to);
                    ensure!(is_live, "after a handshake, node {from} sends to node {to} in vain");
                }
            }
        }
        Ok(())
    }

    /// Nothing is lost between nodes that have found each other.
    fn check_steady(&mut self) -> Checked {
        self.advance(SETTLE)?;
        let mut sent = Vec::new();
        for (one, two) in pairs(self.nodes.len()) {
            for (from, to) in [(one, two), (two, one)] {
                let agreed = self.agree(from, to) && self.agree(to, from);
                if agreed && self.is_live(from, to) && self.is_live(to, from) {
                    let first = self.send(from, to, 1, 20)?;
                    let burst = Burst { segments: 5, length: LONGEST_PAYLOAD, last: 300, is_partial: true };
                    self.send_bursts(from, to, 1, burst, true, true)?;
                    sent.extend(first..self.ledger.next_number());
                }
            }
        }
        self.advance(SETTLE)?;
        for number in sent {
            let packet = self.ledger.packet(number);
            ensure!(packet.delivered_at.is_some(), "over a healthy network, packet {number} was lost: {packet:?}");
        }
        Ok(())
    }

    fn stalled(&mut self, pair: &Recovering) -> String {
        let Recovering { one, two, .. } = *pair;
        let live = [self.is_live(one, two), self.is_live(two, one)];
        let status = |node: usize, peer: usize| {
            let key = self.nodes[node].peers[&peer].config.public_key;
            let peers = self.nodes[node].device.status(self.now).peers;
            format!("{:?}", peers.into_iter().find(|status| status.public_key == key))
        };
        format!(
            "nodes {one} and {two} did not find each other in time (live: {live:?}): {} and {}",
            status(one, two),
            status(two, one)
        )
    }
}
