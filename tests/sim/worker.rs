//! A fast-path thread of a node: the data plane's stages, with channels for sockets. It has its own idea of the snapshot,
//! and its notices travel.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use underpass::dataplane::testing::{Receiver, Run, Transmitter};
use underpass::packet::ip::TransportProtocol;
use underpass::packet::traffic_class::Ecn;
use underpass::proto::endpoint::Endpoint;
use underpass::proto::error::{DropReason, Miss};
use underpass::proto::peer_table::PeerId;
use underpass::proto::router::{Notice, Router};
use underpass::proto::transmit::Transmit;

use crate::inner_packet::MTU;
use crate::reference::{AllowedTable, Delivery, Violation, ensure};
use crate::twin::delivery::{Drops, Expectation, counted, position};
use crate::twin::packet::addresses;

/// What a TUN may take beyond single packets.
pub(crate) const OFFLOADS: [&[TransportProtocol]; 3] =
    [&[], &[TransportProtocol::Tcp], &[TransportProtocol::Tcp, TransportProtocol::Udp]];

/// A worker.
pub(crate) struct Worker {
    pub snapshot: Snapshot,
    pub update: Option<(Instant, Snapshot)>,
    pub notices: VecDeque<(Instant, Notice)>,
    /// Set while it keeps the snapshot that it has.
    pub is_frozen: bool,
    /// What its TUN takes.
    offloads: &'static [TransportProtocol],
    transmitter: Transmitter,
    /// What the transmitter sent.
    runs: mpsc::Receiver<Run>,
    receiver: Receiver,
}

/// A snapshot, with the model of what it must know.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub router: Arc<Router>,
    pub allowed: Arc<AllowedTable>,
    pub names: Arc<BTreeMap<PeerId, usize>>,
}

/// A datagram that reaches a node.
pub(crate) struct Arrived {
    pub from: Endpoint,
    pub ecn: Ecn,
    pub payload: Vec<u8>,
}

/// What came of a receive.
#[derive(Default)]
pub(crate) struct Received {
    /// Of each datagram.
    pub outcomes: Vec<Result<(), DropReason>>,
    pub deliveries: Vec<Delivery>,
    pub notices: Vec<Notice>,
    /// How often the TUN was written to.
    pub writes: usize,
    /// Frames.
    pub refused: u64,
}

impl Worker {
    pub(crate) fn new(lane: u8, offloads: &'static [TransportProtocol], snapshot: Snapshot) -> Self {
        let (transmitter, runs) = Transmitter::into_channel(lane, MTU);
        Self {
            snapshot,
            update: None,
            notices: VecDeque::new(),
            is_frozen: false,
            offloads,
            transmitter,
            runs,
            receiver: Receiver::new(offloads),
        }
    }

    /// Sends what the TUN gave. Returns the datagrams, and which reads are the slow path's.
    pub(crate) fn transmit(
        &mut self,
        now: Instant,
        reads: &[Vec<u8>],
        notices: &mut Vec<Notice>,
    ) -> (Vec<Transmit>, Vec<usize>) {
        let missed = self.transmitter.drain(now, &self.snapshot.router, &mut reads.to_vec(), notices);
        let is_slow_paths = |miss: Miss| !matches!(miss, Miss::Drop(_));
        let missed = missed.into_iter().filter(|(_, miss)| is_slow_paths(*miss)).map(|(index, _)| index).collect();
        let cut = |run: Run| {
            let datagrams = run.bytes.chunks(run.segment_size).map(<[u8]>::to_vec);
            datagrams
                .map(move |payload| Transmit {
                    endpoint: run.way.endpoint,
                    port: run.way.port,
                    traffic_class: run.way.traffic_class,
                    payload,
                    may_fragment: false,
                })
                .collect::<Vec<_>>()
        };
        (self.runs.try_iter().flat_map(cut).collect(), missed)
    }

    /// Takes datagrams together, none of them a handshake. What the TUN gets is compared with what a slow reading of their
    /// frames finds, as is what was dropped.
    pub(crate) fn receive(&mut self, now: Instant, datagrams: &mut [Arrived]) -> Result<Received, Violation> {
        let Snapshot { router, allowed, names } = &self.snapshot;
        let owns = |peer: PeerId, source| allowed.lookup(source) == Some(names[&peer]);
        let (mut received, mut opened, mut expectation) = (Received::default(), Vec::new(), Expectation::default());
        for Arrived { from, ecn, payload } in datagrams {
            received.outcomes.push(match router.open(now, *from, *ecn, payload, &mut received.notices) {
                Ok(datagram) => {
                    let owns = |source| owns(datagram.peer, source);
                    expectation.add(position(&datagram), *ecn, datagram.plaintext, owns);
                    opened.push(datagram);
                    Ok(())
                }
                Err(Miss::Drop(reason)) => Err(reason),
                Err(miss) => panic!("{miss:?}: a handshake is the slow path's"),
            });
        }
        let before = self.receiver.drops();
        let writes = self.receiver.receive(router, &opened, false, &mut received.notices);
        let drops = counted(&before, &self.receiver.drops());
        let refused = &expectation.refused;
        let of = |drops: &Drops, reason| drops.get(&reason).copied().unwrap_or_default();
        // How many control frames a peer has left is not the twin's to know.
        let is_expected = |reason| match reason {
            DropReason::ControlLimit => of(&drops, reason) >= of(refused, reason),
            _ => of(&drops, reason) == of(refused, reason),
        };
        let mut reasons = drops.keys().chain(refused.keys()).copied();
        ensure!(reasons.all(is_expected), "{drops:?} were counted, not {refused:?}");
        let delivered = expectation.check(&writes, self.offloads, false, 0).map_err(Violation)?;
        received.deliveries.extend(delivered.into_iter().map(|(peer, bytes)| Delivery {
            peer: names[&peer],
            source_is_allowed: owns(peer, addresses(&bytes)[0]),
            bytes,
        }));
        received.writes = writes.len();
        received.refused = drops.values().sum();
        Ok(received)
    }
}
