//! What hosts behind the nodes send.

use std::time::Duration;

use crate::Violation;
use crate::inner_packet::{Burst, Flow, LONGEST_WHOLE};
use crate::node::inner_addresses;
use crate::reference::{Checked, SentPacket};
use crate::simulation::Simulation;
use crate::twin::kernel;

/// TUN reads of one drain.
const MAX_READS: usize = 64;
/// Flows of one kind between two nodes.
const FLOWS: usize = 4;

impl Simulation {
    /// Gives `count` packets to the TUN of `from`. Returns the number of the first.
    pub(crate) fn send(&mut self, from: usize, to: usize, count: usize, length: usize) -> Result<u64, Violation> {
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
    ) -> Result<u64, Violation> {
        let first = self.ledger.next_number();
        let mut left = count;
        while left > 0 {
            let flow = self.flow(source, to, false);
            let drained = left.min(MAX_READS);
            let bursts: Vec<Burst> = (0..drained).map(|_| Burst::single(length, self.random.chance(50))).collect();
            self.drain(from, flow, &bursts)?;
            left -= drained;
        }
        self.trace(|| format!("node {from} sends packets {first}..{} to node {to}", first + count as u64));
        Ok(first)
    }

    /// Gives superpackets to the TUN of `from`, each with a small packet behind it or not. Returns the first number.
    pub(crate) fn send_bursts(
        &mut self,
        from: usize,
        to: usize,
        count: usize,
        burst: Burst,
        is_tcp: bool,
        single: bool,
    ) -> Result<u64, Violation> {
        let first = self.ledger.next_number();
        let flow = self.flow(from, to, is_tcp);
        // The ledger knows packets, not streams.
        let is_cut = is_tcp && self.nodes[from].setup.tries_paths;
        let length = if is_cut { burst.length.min(LONGEST_WHOLE) } else { burst.length };
        let burst = Burst { length, last: burst.last.min(length), ..burst };
        let one = [burst, Burst::single(20, true)];
        let bursts = one[..1 + usize::from(single)].repeat(count);
        self.drain(from, flow, &bursts)?;
        let next = self.ledger.next_number();
        self.trace(|| format!("node {from} sends packets {first}..{next} to node {to} in {count} of {burst:?}"));
        Ok(first)
    }

    /// Packets at intervals, one way or both ways.
    pub(crate) fn stream(
        &mut self,
        from: usize,
        to: usize,
        both_ways: bool,
        interval: Duration,
        duration: Duration,
    ) -> Checked {
        let end = self.now + duration;
        while self.now < end {
            self.send(from, to, 1, 20)?;
            if both_ways {
                self.send(to, from, 1, 20)?;
            }
            self.advance(interval)?;
        }
        Ok(())
    }

    /// Any flow between two nodes' addresses.
    pub(crate) fn flow(&mut self, from: usize, to: usize, is_tcp: bool) -> Flow {
        let family = self.random.below(2);
        let [source, destination] = [from, to].map(|node| inner_addresses(node)[family]);
        Flow { source, destination, is_tcp, port: self.random.below(FLOWS) as u16 }
    }

    /// Has one drain of the TUN of `from` give bursts of one flow, which stay in one queue as long as they last.
    pub(crate) fn drain(&mut self, from: usize, flow: Flow, bursts: &[Burst]) -> Checked {
        let leads_to = self.nodes[from].leads_to(flow.destination);
        let mut reads = Vec::new();
        for burst in bursts {
            let read = flow.read(self.ledger.next_number(), *burst);
            for bytes in kernel::take(&read).expect("a kernel's own") {
                let leads_to = leads_to.clone();
                self.ledger.record(SentPacket { from, leads_to, flow: Some(flow), bytes, delivered_at: None });
            }
            reads.push(read);
        }
        self.nodes[from].transmit(self.now, flow.port.into(), &reads);
        self.collect(from)
    }
}
