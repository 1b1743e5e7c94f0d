//! What one drain of the TUN sends: per peer one buffer, in which packets are packed into datagrams, each sealed where it
//! lies, and consecutive datagrams of one size and one traffic class leave in one segmented send.
//!
//! ```text
//! buffer  | sent | datagram | datagram | open: room for header | frame | frame |   room for more, tag   |
//!                ^ start               ^ end
//!                  └── a run, of one size ──┘
//! ```
//!
//! It never waits for more packets: what a drain found is sent at its end.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::packet::frame::{FLAG_CONTINUES, FRAME_HEADER_LEN, packet_header, pad};
use crate::packet::message::{TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD};
use crate::packet::traffic_class::TrafficClass;
use crate::proto::error::DropReason;
use crate::proto::router::{Notice, Route};
use crate::proto::transmit::Way;

use super::counters::Counters;
use super::segment::Segments;
use super::sender::{MAX_SEND_LEN, MAX_SEND_SEGMENTS, SendRun, Unsent};

/// Peers whose datagrams are collected at the same time; a further one makes another's leave early.
const MAX_BATCHES: usize = 16;
/// Room for one longest send.
const BUFFER_LEN: usize = 65_536;

/// A worker's way out: its lane, its sockets and its buffers, which are allocated once.
#[derive(Debug)]
pub(super) struct Outbound {
    lane: u8,
    /// The longest plaintext of any datagram: one packet in its frame, as long as the interface may take.
    max_plaintext: usize,
    sender: Box<dyn SendRun>,
    counters: Arc<Counters>,
    /// One per batch, end to end; pages that no batch has used are not resident.
    buffers: Box<[u8]>,
}

impl Outbound {
    /// For packets of up to `mtu` bytes.
    pub(super) fn new(lane: u8, mtu: u16, sender: impl SendRun + 'static, counters: Arc<Counters>) -> Self {
        let max_plaintext = (usize::from(mtu) + FRAME_HEADER_LEN).min(MAX_SEND_LEN - TRANSPORT_OVERHEAD);
        let buffers = vec![0; MAX_BATCHES * BUFFER_LEN].into();
        Self { lane, max_plaintext, sender: Box::new(sender), counters, buffers }
    }

    /// What is collected from here on leaves by `sender`.
    pub(super) fn send_by(&mut self, sender: impl SendRun + 'static) {
        self.sender = Box::new(sender);
    }

    /// Begins to collect what one drain sends.
    pub(super) fn drain<'o, 'r>(&'o mut self, now: Instant, notices: &'o mut Vec<Notice>) -> Drain<'o, 'r> {
        Drain { now, outbound: self, notices, batches: [const { None }; MAX_BATCHES], next_victim: 0 }
    }
}

/// What one drain sends.
#[derive(Debug)]
pub(super) struct Drain<'o, 'r> {
    now: Instant,
    outbound: &'o mut Outbound,
    notices: &'o mut Vec<Notice>,
    batches: [Option<Batch<'r>>; MAX_BATCHES],
    next_victim: usize,
}

impl<'r> Drain<'_, 'r> {
    /// Adds the packets of one TUN read.
    pub(super) fn push(&mut self, route: Route<'r>, segments: &Segments<'_>) {
        let slot = self.slot(&route);
        let (batch, mut wire) = self.open(slot, route);
        batch.push(&mut wire, segments);
    }

    /// Sends all that is left.
    pub(super) fn finish(mut self) {
        for slot in 0..MAX_BATCHES {
            self.flush(slot);
        }
    }

    fn slot(&mut self, route: &Route<'r>) -> usize {
        let mut free = None;
        for (slot, batch) in self.batches.iter().enumerate() {
            match batch {
                Some(batch) if batch.route.peer() == route.peer() => return slot,
                Some(_) => {}
                // Slots fill from the front, so behind the first free one there is none in use.
                None => {
                    free = Some(slot);
                    break;
                }
            }
        }
        free.unwrap_or_else(|| {
            let victim = self.next_victim;
            self.next_victim = (victim + 1) % MAX_BATCHES;
            self.flush(victim);
            victim
        })
    }

    fn flush(&mut self, slot: usize) {
        if let Some(mut batch) = self.batches[slot].take() {
            batch.flush(&mut self.wire(slot));
        }
    }

    fn open(&mut self, slot: usize, route: Route<'r>) -> (&mut Batch<'r>, Wire<'_>) {
        let max_plaintext = self.outbound.max_plaintext;
        let batch = self.batches[slot].get_or_insert_with(|| Batch::new(route, max_plaintext));
        (batch, wire(self.now, self.outbound, self.notices, slot))
    }

    fn wire(&mut self, slot: usize) -> Wire<'_> {
        wire(self.now, self.outbound, self.notices, slot)
    }
}

/// Everything that a batch works with but does not own.
struct Wire<'w> {
    now: Instant,
    lane: u8,
    max_plaintext: usize,
    sender: &'w mut dyn SendRun,
    counters: &'w Counters,
    notices: &'w mut Vec<Notice>,
    buffer: &'w mut [u8],
}

fn wire<'w>(now: Instant, outbound: &'w mut Outbound, notices: &'w mut Vec<Notice>, slot: usize) -> Wire<'w> {
    Wire {
        now,
        lane: outbound.lane,
        max_plaintext: outbound.max_plaintext,
        sender: outbound.sender.as_mut(),
        counters: &outbound.counters,
        notices,
        buffer: &mut outbound.buffers[slot * BUFFER_LEN..(slot + 1) * BUFFER_LEN],
    }
}

/// One peer's datagrams.
#[derive(Debug)]
struct Batch<'r> {
    route: Route<'r>,
    /// That of all datagrams in the buffer.
    traffic_class: TrafficClass,
    /// The longest plaintext that packets are packed into: what the path carries.
    max_packed: usize,
    start: usize,
    end: usize,
    /// Length of the run's datagrams; `None` before the first is sealed.
    segment_size: Option<usize>,
    /// Datagrams of the run.
    datagrams: usize,
    open: OpenDatagram,
}

/// The datagram that still takes packets.
#[derive(Debug, Default, Clone, Copy)]
struct OpenDatagram {
    /// Bytes of frames; 0 while there is none.
    plaintext_len: usize,
    packets: u64,
    /// Length of its frames if they are all of one length, else 0.
    frame_len: usize,
}

impl<'r> Batch<'r> {
    fn new(route: Route<'r>, max_plaintext: usize) -> Self {
        let max_packed = max_plaintext.min(usize::from(route.path().datagram) - TRANSPORT_OVERHEAD);
        Self {
            route,
            traffic_class: TrafficClass::default(),
            max_packed,
            start: 0,
            end: 0,
            segment_size: None,
            datagrams: 0,
            open: OpenDatagram::default(),
        }
    }

    fn push(&mut self, wire: &mut Wire<'_>, segments: &Segments<'_>) {
        let traffic_class = self.route.traffic_class(segments.traffic_class());
        if traffic_class != self.traffic_class {
            self.flush(wire);
            self.traffic_class = traffic_class;
        }
        let count = segments.count();
        if count > 1 {
            self.make_room(wire, segments.length(0), count);
        }
        let mut neighbour_is_sent = false;
        for index in 0..count {
            let length = segments.length(index);
            let Some(room) = self.reserve(wire, length) else {
                neighbour_is_sent = false;
                continue;
            };
            let frame = &mut wire.buffer[room];
            let frame_length = u16::try_from(length).expect("reserved, so within the MTU");
            let flags = segments.flags(index) & if neighbour_is_sent { !0 } else { !FLAG_CONTINUES };
            frame[..FRAME_HEADER_LEN].copy_from_slice(&packet_header(flags, frame_length));
            segments.write(index, &mut frame[FRAME_HEADER_LEN..]);
            neighbour_is_sent = true;
        }
        // A large superpacket has filled the send: the peer can work on it while the next one is read.
        if count > 1 && self.end - self.start > MAX_SEND_LEN / 2 {
            self.flush(wire);
        }
    }

    /// Sends what there is if a superpacket fits one send, but not together with it.
    fn make_room(&mut self, wire: &mut Wire<'_>, longest: usize, count: usize) {
        let frame_len = FRAME_HEADER_LEN + longest;
        let per_datagram = (self.max_packed / frame_len).max(1);
        let datagrams = count.div_ceil(per_datagram);
        let length = count * frame_len + datagrams * TRANSPORT_OVERHEAD;
        let used = self.end + self.open.plaintext_len + TRANSPORT_OVERHEAD;
        if self.datagrams + 1 + datagrams > MAX_SEND_SEGMENTS || used + length > MAX_SEND_LEN {
            self.flush(wire);
        }
    }

    /// Makes room for the frame of a packet of `length` bytes; `None` if no datagram takes it.
    fn reserve(&mut self, wire: &mut Wire<'_>, length: usize) -> Option<Range<usize>> {
        let frame_len = FRAME_HEADER_LEN + length;
        if frame_len > wire.max_plaintext {
            wire.counters.count(DropReason::TooLarge);
            return None;
        }
        if self.open.plaintext_len + frame_len > self.max_packed {
            self.close(wire, Some(frame_len));
        }
        if self.open.plaintext_len == 0 {
            self.make_room_for_datagram(wire, frame_len.max(self.max_packed));
            self.open.frame_len = frame_len;
        } else if self.open.frame_len != frame_len {
            self.open.frame_len = 0;
        }
        let at = self.end + TRANSPORT_HEADER_LEN + self.open.plaintext_len;
        self.open.plaintext_len += frame_len;
        self.open.packets += 1;
        Some(at..at + frame_len)
    }

    /// For a plaintext of up to `longest` bytes, or one that is padded to the length of those before it.
    fn make_room_for_datagram(&mut self, wire: &mut Wire<'_>, longest: usize) {
        let datagram = (longest + TRANSPORT_OVERHEAD).max(self.segment_size.unwrap_or(0));
        if self.end - self.start + datagram > MAX_SEND_LEN
            || self.datagrams == MAX_SEND_SEGMENTS
            || self.end + datagram > BUFFER_LEN
        {
            self.send(wire);
        }
        if self.end + datagram > BUFFER_LEN {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Seals the open datagram, if any; `next` is the frame that did not fit, `None` at the end of the batch. One size
    /// makes one send, so a datagram is padded where that costs little; else it ends its run.
    fn close(&mut self, wire: &mut Wire<'_>, next: Option<usize>) {
        let length = self.open.plaintext_len;
        if length == 0 {
            return;
        }
        if self.segment_size.is_some_and(|size| length + TRANSPORT_OVERHEAD > size) {
            self.send(wire);
        }
        let padded_to = |target: usize| if target - length <= target / MAX_PADDING { target } else { length };
        let padded = match (self.segment_size, next) {
            (_, None) => length,
            // More of the same will follow: that size is the run's.
            (None, Some(next)) if next == self.open.frame_len => length,
            (None, Some(_)) => padded_to(self.max_packed.max(length)),
            (Some(size), Some(_)) => padded_to(size - TRANSPORT_OVERHEAD),
        };
        let datagram = &mut wire.buffer[self.end..self.end + padded + TRANSPORT_OVERHEAD];
        pad(&mut datagram[TRANSPORT_HEADER_LEN + length..TRANSPORT_HEADER_LEN + padded]);
        let packets = std::mem::take(&mut self.open).packets;
        if let Err(reason) = self.route.seal(wire.now, wire.lane, datagram, wire.notices) {
            return wire.counters.add(reason, packets);
        }
        let sealed = datagram.len();
        let size = *self.segment_size.get_or_insert(sealed);
        self.datagrams += 1;
        self.end += sealed;
        if sealed < size {
            self.send(wire);
        }
    }

    /// Seals and sends all there is, and starts at the front again.
    fn flush(&mut self, wire: &mut Wire<'_>) {
        self.close(wire, None);
        self.send(wire);
        (self.start, self.end) = (0, 0);
    }

    /// Sends the run.
    fn send(&mut self, wire: &mut Wire<'_>) {
        let run = &wire.buffer[self.start..self.end];
        let way = Way { traffic_class: self.traffic_class, ..self.route.way(wire.lane) };
        if let Some(segment_size) = self.segment_size.take()
            && let Err(Unsent(datagrams)) = wire.sender.send(wire.now, &way, run, segment_size)
        {
            wire.counters.add(DropReason::SendFailed, datagrams);
        }
        self.start = self.end;
        self.datagrams = 0;
    }
}

/// A datagram is padded by at most this fraction of its plaintext.
const MAX_PADDING: usize = 4;

#[cfg(test)]
mod tests;
