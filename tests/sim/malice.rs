//! What a peer does to others that was broken into: it has a session with a node, as they have, and sends that node whatever
//! costs it most. None of the others can tell: each run is done with the malice and without, and compared.

use std::net::SocketAddr;
use std::time::Duration;

use underpass::packet::frame::Control;
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::endpoint::Endpoint;
use underpass::proto::noise::Suite;
use underpass::proto::peer::PeerConfig;
use underpass::proto::randomness::Entropy;
use underpass::proto::staged::StagedPacket;
use underpass::proto::stats::PeerStatus;
use underpass::proto::transmit::{SourcePort, Transmit};

use crate::inner_packet::{Burst, Flow};
use crate::node::{Node, NodeSetup, inner_addresses};
use crate::random::Random;
use crate::reference::{Checked, Violation, ensure};
use crate::simulation::Simulation;
use crate::twin::kernel::HEADER_LEN;
use crate::worker::OFFLOADS;

/// What a flood is made of. Every datagram but those of handshakes is authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaliceKind {
    /// Datagrams that come from another address each.
    Flaps,
    /// Datagrams full of pings.
    Pings,
    /// Datagrams full of probes.
    Probes,
    /// Datagrams full of control frames of any kind, answers to what was never asked among them.
    Controls,
    /// Datagrams full of frames with nothing in them.
    TinyFrames,
    /// A ping on each lane that there can be, each from another address.
    Lanes,
    /// Initiations: a new one, and copies of it.
    Handshakes,
}

impl MaliceKind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Flaps, Self::Pings, Self::Probes, Self::Controls, Self::TinyFrames, Self::Lanes, Self::Handshakes];
}

/// Lanes of the peer that was broken into: as many as there can be.
const LANES: u8 = 64;
/// Bytes of a datagram's plaintext that are filled.
const FILLED: usize = 1390;
/// As long as a ping, so that a datagram may be answered with a question.
const PADDING: [u8; 20] = [0; 20];

impl Simulation {
    /// Has `from` send `to` a flood of `count` datagrams. Its draws are of `random` only.
    pub(crate) fn harass(
        &mut self,
        from: usize,
        to: usize,
        kind: MaliceKind,
        count: usize,
        random: &mut Random,
    ) -> Checked {
        self.trace(|| format!("node {from} floods node {to} with {count} of {kind:?}"));
        if kind == MaliceKind::Handshakes {
            self.flood_with_initiations(from, to, count, random);
            return Ok(());
        }
        let home = self.network.public_address(from);
        for number in 0..count {
            let lane = if kind == MaliceKind::Lanes { (number % usize::from(LANES)) as u8 } else { 0 };
            if matches!(kind, MaliceKind::Flaps | MaliceKind::Lanes) {
                let address = ([203, 0, 113, 1 + random.below(200) as u8], 1024 + random.below(60_000) as u16);
                self.network.move_to(from, SocketAddr::from(address));
            }
            let plaintext = plaintext(kind, random);
            self.nodes[from].seal(self.now, lane, inner_addresses(to)[0], &plaintext);
            self.collect(from)?;
        }
        self.network.move_to(from, home);
        Ok(())
    }

    /// Sends initiations that are as genuine as the node's own.
    fn flood_with_initiations(&mut self, from: usize, to: usize, count: usize, random: &mut Random) {
        let endpoint = Endpoint::new(self.network.public_address(to));
        let config = DeviceConfig {
            private_key: self.nodes[from].private_key.clone(),
            previous_private_key: None,
            suite: Suite::Aes256Gcm,
            send_lanes: LANES,
            lane_paths: true,
            mtu: None,
        };
        let mut device = Device::new(self.now, self.unix_time(from), config, Entropy::seeded(random.seed()));
        device.upsert_peer(self.now, PeerConfig { endpoints: vec![endpoint], ..self.peer_config(to) });
        let read = flow(from, to, 0, 1).read(0, Burst::single(8, false));
        let packet = StagedPacket { bytes: read[HEADER_LEN..].to_vec(), checksum_partial: false };
        device.handle_packet(self.now, packet).expect("the endpoint is known");
        let payload = device.poll_transmit().expect("a packet without a session starts a handshake").payload;
        for _ in 0..count {
            let (traffic_class, payload) = (TrafficClass::default(), payload.clone());
            let transmit = Transmit { endpoint, port: SourcePort::Listen, traffic_class, payload, may_fragment: true };
            self.network.send(self.now, from, transmit);
        }
        self.newest_initiation[from] = self.newest_initiation[from].max(self.unix_time(from));
    }
}

fn plaintext(kind: MaliceKind, random: &mut Random) -> Vec<u8> {
    let control = |random: &mut Random| {
        let token = random.u64();
        match kind {
            MaliceKind::Pings | MaliceKind::Lanes => Control::Ping(token),
            MaliceKind::Probes => Control::Probe(token),
            _ => *random.pick(&[
                Control::Ping(token),
                Control::Pong(token),
                Control::Probe(token),
                Control::Draining(token.is_multiple_of(2)),
                Control::Unknown(99),
            ]),
        }
    };
    match kind {
        MaliceKind::Flaps | MaliceKind::Handshakes => PADDING.to_vec(),
        MaliceKind::TinyFrames => [1, 0, 0, 0].repeat(FILLED / 4),
        MaliceKind::Lanes => {
            let mut ping = Vec::new();
            control(random).encode(&mut ping);
            [&ping[..], &PADDING].concat()
        }
        _ => {
            let mut frames = Vec::new();
            while frames.len() < FILLED - 20 {
                control(random).encode(&mut frames);
            }
            frames
        }
    }
}

/// The node that all others are peers of, as a proxy side is.
const PROXY: usize = 0;
const HOSTILE: usize = 1;
const HONEST: [usize; 3] = [2, 3, 4];
const NODES: usize = 5;
const STEPS: usize = 30;
const PACKET: Burst = Burst { segments: 1, length: 100, last: 100, is_partial: true };

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many packets each way between the proxy side and an honest peer.
    Exchange(usize, usize),
    /// An honest peer has another address.
    Roam(usize),
    /// An honest peer's daemon starts anew.
    Restart(usize),
    /// A flood. Without malice nothing happens instead.
    Malice(MaliceKind, usize),
    Advance(Duration),
}

fn draw(random: &mut Random) -> Step {
    let peer = *random.pick(&HONEST);
    match random.below(20) {
        0..=5 => Step::Exchange(peer, *random.pick(&[1, 3, 40])),
        6 => Step::Roam(peer),
        7 => Step::Restart(peer),
        8..=13 => Step::Malice(*random.pick(&MaliceKind::ALL), *random.pick(&[5, 70, 300])),
        _ => Step::Advance(Duration::from_millis(*random.pick(&[1, 15, 120, 1_100, 4_000]))),
    }
}

/// What honest peers can see, by step: of a thing that chance decides, each in a line of its own.
type Seen = Vec<Vec<String>>;

/// Does the run of `seed`, with malice or without. What the proxy side draws follows from `chance` too. Returns what is seen, and
/// how many bytes the proxy side took from the hostile peer.
fn run(seed: u64, has_workers: bool, chance: u64, with_malice: bool) -> Result<(Seen, u64), Violation> {
    let (mut steps, mut malice) = (Random::new(seed, b'h'), Random::new(seed, b'm'));
    let mut simulation = world(seed, has_workers, chance)?;
    let mut seen = vec![simulation.seen_by_honest_peers(has_workers)];
    for _ in 0..STEPS {
        match draw(&mut steps) {
            Step::Exchange(peer, count) => {
                let (family, port) = (steps.below(2), steps.below(4) as u16);
                simulation.drain(PROXY, flow(PROXY, peer, family, port), &[PACKET; 40][..count])?;
                simulation.drain(peer, flow(peer, PROXY, family, port), &[PACKET; 40][..count])?;
            }
            Step::Roam(peer) => simulation.roam(peer),
            Step::Restart(peer) => {
                let mut random = Random::new(steps.u64(), b'r');
                std::mem::swap(&mut simulation.random, &mut random);
                simulation.restart(peer)?;
                simulation.random = random;
            }
            Step::Malice(kind, count) if with_malice => {
                simulation.harass(HOSTILE, PROXY, kind, count, &mut malice)?;
            }
            Step::Malice(..) => {}
            Step::Advance(duration) => simulation.advance(duration)?,
        }
        simulation.advance(Duration::from_millis(12))?;
        seen.push(simulation.seen_by_honest_peers(has_workers));
    }
    Ok((seen, simulation.heard_of_hostile_peer()))
}

/// A proxy side that has a session with each of its peers.
fn world(seed: u64, has_workers: bool, chance: u64) -> Result<Simulation, Violation> {
    let setup = |number| NodeSetup {
        number,
        suite: Suite::Aes256Gcm,
        lanes: if number == HOSTILE { LANES } else { 2 },
        has_workers: has_workers && number == PROXY,
        offloads: OFFLOADS[2],
        tries_paths: false,
    };
    let nodes = (0..NODES).map(setup).collect();
    let mut simulation = Simulation::with_nodes(nodes, &[false; NODES], false, seed);
    let proxy_seed = Random::new(chance, b'c').seed();
    let (private_key, unix_time) = (simulation.nodes[PROXY].private_key.clone(), simulation.unix_time(PROXY));
    simulation.nodes[PROXY] = Node::new(simulation.now, unix_time, setup(PROXY), private_key, PROXY as u64, proxy_seed);
    (0..chance).for_each(|_| _ = simulation.random.u64());
    for peer in (0..NODES).filter(|peer| *peer != PROXY) {
        simulation.introduce_plainly(PROXY, peer);
        simulation.drain(peer, flow(peer, PROXY, 0, 1), &[PACKET])?;
    }
    simulation.advance(Duration::from_secs(1))?;
    Ok(simulation)
}

fn flow(from: usize, to: usize, family: usize, port: u16) -> Flow {
    let [source, destination] = [from, to].map(|node| inner_addresses(node)[family]);
    Flow { source, destination, is_tcp: false, port }
}

impl Simulation {
    fn heard_of_hostile_peer(&self) -> u64 {
        let key = self.nodes[HOSTILE].private_key.public_key();
        let peers = self.nodes[PROXY].device.status(self.now).peers;
        peers.iter().filter(|peer| peer.public_key == key).map(|peer| peer.received_bytes).sum()
    }

    /// All that honest peers know of their links and the proxy side of them, and which packets were delivered when.
    fn seen_by_honest_peers(&self, has_workers: bool) -> Vec<String> {
        let honest = HONEST.map(|peer| &self.nodes[peer]);
        let theirs = honest.iter().flat_map(|node| node.device.status(self.now).peers);
        let is_honest =
            |status: &PeerStatus| honest.iter().any(|node| node.private_key.public_key() == status.public_key);
        let ours = self.nodes[PROXY].device.status(self.now).peers.into_iter().filter(is_honest);
        let delivered = (0..self.ledger.next_number()).flat_map(|number| {
            let at = self.ledger.packet(number).delivered_at.map(|at| at - self.start);
            [
                format!("packet {number} is delivered: {}", at.is_some()),
                format!("packet {number} is delivered at {at:?}"),
            ]
        });
        theirs.chain(ours).flat_map(|status| shown(&status, has_workers)).chain(delivered).collect()
    }
}

/// Where workers take turns, chance decides too often how many datagrams a restart takes.
fn shown(status: &PeerStatus, has_workers: bool) -> Vec<String> {
    let PeerStatus { state, reason, state_since, awaits_answer, endpoint, endpoint_source, .. } = status;
    let PeerStatus { round_trip, round_trip_variation, loss, pings, pings_lost, path_mtu, .. } = status;
    let PeerStatus { handshakes, latest_handshake, suite, received_bytes, sent_bytes, .. } = status;
    let bytes = (!has_workers).then_some([received_bytes, sent_bytes]);
    let lines = [
        format!("{state:?} for {reason:?}"),
        format!("since {state_since:?}, awaits an answer: {awaits_answer}"),
        format!("at {:?} by {endpoint_source:?}", endpoint.map(|endpoint| endpoint.remote)),
        format!("{handshakes} sessions of {suite:?}"),
        format!("the last at {latest_handshake:?}"),
        format!("loss {loss}, {pings_lost} pings lost, path {path_mtu:?}"),
        format!("{pings} pings"),
        format!("round trip {round_trip:?}, {round_trip_variation:?}"),
        format!("{bytes:?} bytes received and sent"),
    ];
    lines.into_iter().map(|line| format!("{}: {line}", status.public_key.short())).collect()
}

/// Nothing is asked of what differs by chance alone.
fn compare(seed: u64, has_workers: bool) -> Checked {
    let without = (0..3).map(|chance| run(seed, has_workers, chance, false)).collect::<Result<Vec<_>, _>>()?;
    let (with, heard) = run(seed, has_workers, 0, true)?;
    ensure!(heard > without[0].1, "seed {seed}: no malice has reached the proxy side");
    for (step, with) in with.iter().enumerate() {
        for (line, with) in with.iter().enumerate() {
            let [one, two, three] = [0, 1, 2].map(|chance| &without[chance].0[step][line]);
            ensure!(
                one != two || two != three || one == with,
                "seed {seed}, workers: {has_workers}: after step {step} an honest peer sees: {with}\nwithout malice: {one}"
            );
        }
    }
    Ok(())
}

#[test]
fn what_one_peer_sends_changes_nothing_that_another_can_see() {
    let seeds = crate::variable(crate::SEED_VARIABLE).map_or(0..10, |seed| seed..seed + 1);
    for (seed, has_workers) in seeds.flat_map(|seed| [(seed, false), (seed, true)]) {
        compare(seed, has_workers).unwrap_or_else(|violation| panic!("{}", violation.0));
    }
}
