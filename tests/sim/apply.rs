//! How each transition is done to the world.

use std::time::Duration;

use ipnet::IpNet;
use underpass::keys::PrivateKey;
use underpass::proto::endpoint::Endpoint;

use crate::network::Quality;
use crate::node::inner_addresses;
use crate::random::Random;
use crate::reference::Checked;
use crate::simulation::{Simulation, preshared_key, private_key};
use crate::transition::{LinkCharacter, Transition};

impl Simulation {
    /// Does one thing. Whatever follows from it at once has been checked when this returns.
    pub(crate) fn apply(&mut self, transition: &Transition) -> Checked {
        self.trace(|| format!("== {transition:?}"));
        match *transition {
            Transition::SendPackets { from, to, count, length } => {
                let (from, to) = self.two(from, to);
                self.send(from, to, count, length).map(drop)
            }
            Transition::SendBursts { from, to, count, burst, is_tcp, single } => {
                let (from, to) = self.two(from, to);
                self.send_bursts(from, to, count, burst, is_tcp, single).map(drop)
            }
            Transition::SendHostile { from, to, kind } => {
                let (from, to) = self.two(from, to);
                self.send_hostile(from, to, kind)
            }
            Transition::Harass { from, to, kind, count } => {
                let (from, to) = self.two(from, to);
                let mut random = Random::new(self.random.u64(), b'm');
                self.harass(from, to, kind, count, &mut random)
            }
            Transition::SendSpoofed { from, to, source } => {
                let (from, to) = self.two(from, to);
                self.send_from(from, to, source % (self.nodes.len() + 2), 1, 20).map(drop)
            }
            Transition::SendBoth { one, two } => {
                let (one, two) = self.two(one, two);
                self.send(one, two, 1, 20)?;
                self.send(two, one, 1, 20).map(drop)
            }
            Transition::Stream { from, to, both_ways, interval, duration } => {
                let (from, to) = self.two(from, to);
                self.stream(from, to, both_ways, interval, duration)
            }
            Transition::Advance(duration) => self.advance(duration),
            Transition::Heal => self.heal(),
            _ => self.apply_to_surroundings(transition),
        }
    }

    fn apply_to_surroundings(&mut self, transition: &Transition) -> Checked {
        match *transition {
            Transition::SetLink { from, to, character } => {
                let (from, to) = self.two(from, to);
                let blocked = self.network.link(from, to).blocked;
                *self.network.link(from, to) = Quality { blocked, ..quality(character) };
            }
            Transition::Partition { from, to, one_way } => {
                let (from, to) = self.two(from, to);
                self.network.link(from, to).blocked = true;
                self.network.link(to, from).blocked |= !one_way;
            }
            Transition::Roam { node } => {
                let node = self.one(node);
                self.roam(node);
            }
            Transition::Resolve { node, peer } => {
                let (node, peer) = self.two(node, peer);
                return self.resolve(node, peer);
            }
            Transition::Divert { from, to } => {
                let (from, to) = self.two(from, to);
                self.network.divert(from, to);
            }
            Transition::Replay { pick, copies, from_elsewhere } => return self.replay(pick, copies, from_elsewhere),
            Transition::Tamper { pick, kind } => return self.tamper(pick, kind),
            Transition::Reflect { pick } => return self.reflect(pick),
            Transition::Forge { to, kind, mac1, pick } => return self.forge(to, kind, mac1, pick),
            Transition::Flood { to, count, mac1 } => return self.flood(to, count, mac1),
            _ => return self.apply_to_node(transition),
        }
        Ok(())
    }

    fn apply_to_node(&mut self, transition: &Transition) -> Checked {
        match *transition {
            Transition::Restart { node, goodbye, clock_back } => {
                let node = self.one(node);
                self.clock_back[node] += clock_back;
                if goodbye {
                    self.nodes[node].device.shutdown(self.now);
                    self.collect(node)?;
                }
                self.restart(node)
            }
            Transition::FreezeWorkers { node, frozen } => {
                let node = self.one(node);
                self.nodes[node].workers.iter_mut().for_each(|worker| worker.is_frozen = frozen);
                Ok(())
            }
            Transition::HandleNotices { node, handling } => {
                let node = self.one(node);
                self.nodes[node].notice_handling = handling;
                Ok(())
            }
            Transition::SpuriousTimeout { node } => self.handle_timeout(self.one(node)),
            _ => self.apply_to_configuration(transition),
        }
    }

    fn apply_to_configuration(&mut self, transition: &Transition) -> Checked {
        match *transition {
            Transition::RemovePeer { node, peer } => {
                let (node, peer) = self.two(node, peer);
                self.remove_peer(node, peer)
            }
            Transition::AddPeer { node, peer } => {
                let (node, peer) = self.two(node, peer);
                self.add_peer(node, peer)
            }
            Transition::SetAllowedIps { node, peer, kind } => {
                let (node, peer) = self.two(node, peer);
                let prefixes = self.prefixes(peer, kind);
                self.reconfigure(node, peer, |config| config.allowed_ips = prefixes)
            }
            Transition::SetPresharedKey { node, peer, key } => {
                let (node, peer) = self.two(node, peer);
                self.reconfigure(node, peer, |config| config.preshared_key = (key > 0).then(|| preshared_key(key)))
            }
            Transition::AgreePresharedKey { one, two, key } => {
                let (one, two) = self.two(one, two);
                for (node, peer) in [(one, two), (two, one)] {
                    let key = (key > 0).then(|| preshared_key(key));
                    self.reconfigure(node, peer, |config| config.preshared_key = key)?;
                }
                Ok(())
            }
            Transition::SetKeepalive { node, peer, seconds } => {
                let (node, peer) = self.two(node, peer);
                let keepalive = (seconds > 0).then(|| Duration::from_secs(seconds));
                self.reconfigure(node, peer, |config| config.persistent_keepalive = keepalive)
            }
            Transition::AnnounceKey { node, but_not_to } => {
                let node = self.one(node);
                self.announce_key(node, but_not_to % self.nodes.len())
            }
            Transition::ChangeKey { node, keep_previous } => {
                let node = self.one(node);
                self.change_key(node, keep_previous)
            }
            Transition::ForgetKey { node } => {
                let node = self.one(node);
                self.forget_key(node)
            }
            _ => unreachable!("the others were applied before"),
        }
    }

    fn one(&self, node: usize) -> usize {
        node % self.nodes.len()
    }

    /// Two different nodes.
    fn two(&self, one: usize, two: usize) -> (usize, usize) {
        let count = self.nodes.len();
        (one % count, (one % count + 1 + two % (count - 1)) % count)
    }

    /// Tells a node where a peer is, as a resolved name would.
    pub(crate) fn resolve(&mut self, node: usize, peer: usize) -> Checked {
        let Some(known) = self.nodes[node].peers.get(&peer) else { return Ok(()) };
        let (key, endpoint) = (known.config.public_key, Endpoint::new(self.network.public_address(peer)));
        if !self.network.is_natted(peer) {
            self.nodes[node].device.set_endpoints(self.now, &key, vec![endpoint]);
        }
        self.collect(node)
    }

    fn remove_peer(&mut self, node: usize, peer: usize) -> Checked {
        if let Some(config) = self.nodes[node].remove_peer(peer) {
            self.removed.insert((node, peer), config);
            self.on_peer_removed(node, peer);
        }
        self.collect(node)
    }

    /// Adds a peer again that was removed.
    fn add_peer(&mut self, node: usize, peer: usize) -> Checked {
        if let Some(config) = self.removed.remove(&(node, peer)) {
            self.nodes[node].upsert_peer(self.now, peer, config);
        }
        self.collect(node)
    }

    fn reconfigure(
        &mut self,
        node: usize,
        peer: usize,
        change: impl FnOnce(&mut underpass::proto::peer::PeerConfig),
    ) -> Checked {
        if let Some(known) = self.nodes[node].peers.get(&peer) {
            let mut config = known.config.clone();
            change(&mut config);
            self.nodes[node].upsert_peer(self.now, peer, config);
        }
        self.collect(node)
    }

    fn prefixes(&self, peer: usize, kind: usize) -> Vec<IpNet> {
        let own = inner_addresses(peer).map(IpNet::from);
        let another = inner_addresses((peer + 1) % self.nodes.len()).map(IpNet::from);
        let wide = ["10.77.0.0/24", "fd77::/64"].map(|prefix| prefix.parse().expect("a prefix"));
        match kind {
            0 => [own, another].concat(),
            1 => wide.to_vec(),
            _ => own.to_vec(),
        }
    }

    fn announce_key(&mut self, node: usize, but_not_to: usize) -> Checked {
        let next = private_key(node, self.random.below(200) as u8 + 1);
        let public = next.public_key();
        if public == self.nodes[node].private_key.public_key() {
            return Ok(());
        }
        self.announced.insert(node, next);
        for peer in (0..self.nodes.len()).filter(|peer| *peer != but_not_to) {
            self.reconfigure(peer, node, |config| config.next_public_key = Some(public))?;
        }
        Ok(())
    }

    fn change_key(&mut self, node: usize, keep_previous: bool) -> Checked {
        let Some(next) = self.announced.remove(&node) else { return Ok(()) };
        let now = self.now;
        let current: PrivateKey = self.nodes[node].private_key.clone();
        self.nodes[node].set_private_key(now, next, keep_previous.then_some(current));
        self.collect(node)
    }

    /// Every peer that was told of the node's present key keeps only that one.
    fn forget_key(&mut self, node: usize) -> Checked {
        let present = self.nodes[node].private_key.public_key();
        for peer in 0..self.nodes.len() {
            self.reconfigure(peer, node, |config| {
                if config.next_public_key == Some(present) {
                    config.public_key = present;
                    config.next_public_key = None;
                }
            })?;
        }
        Ok(())
    }
}

fn quality(character: LinkCharacter) -> Quality {
    let perfect = Quality::PERFECT;
    match character {
        LinkCharacter::Perfect => perfect,
        LinkCharacter::Lossy => Quality { loss: 40, ..perfect },
        LinkCharacter::Reordering => Quality { jitter: Duration::from_millis(1500), loss: 5, ..perfect },
        LinkCharacter::Duplicating => Quality { duplicate: 60, jitter: Duration::from_millis(100), ..perfect },
        LinkCharacter::Altering => Quality { alter: 40, ..perfect },
        LinkCharacter::Marking => Quality { mark: 40, ..perfect },
        LinkCharacter::Narrow => Quality { mtu: 1280, ..perfect },
        LinkCharacter::FarAway => Quality { delay: Duration::from_millis(700), ..perfect },
    }
}
