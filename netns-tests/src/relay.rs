//! A man in the middle: two cables joined by a program that may do with the datagrams what it likes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::background::{Background, End};
use crate::frame::{self, Datagram};
use crate::host::Host;
use crate::lab::Lab;
use crate::link::Port;
use crate::packet_socket::PacketSocket;
use crate::random::Random;
use crate::wait;

/// What the man in the middle does to UDP datagrams, each "one in so many" (0: never). He leaves all other frames alone, so
/// that what changes is the tunnel's and not the network's address resolution.
#[derive(Clone, Debug, Default)]
pub struct Mischief {
    /// Flips a bit of the payload, and repairs the UDP checksum so that the datagram arrives.
    pub tamper: u32,
    /// Leaves the datagram alone, and sends a changed copy ahead of it.
    pub forge: u32,
    /// Leaves the datagram alone, and sends a copy that is cut short ahead of it.
    pub truncate: u32,
    /// Sends it twice.
    pub duplicate: u32,
    /// Holds it back for a random time below [`Mischief::REORDER_WINDOW`], so that later ones overtake it.
    pub reorder: u32,
    /// Sends an old one, in the direction that it once went, after it.
    pub replay: u32,
    /// Loses it.
    pub drop: u32,
    /// Delays every datagram.
    pub delay: Duration,
    /// Loses every datagram with a longer payload, and tells nobody: a black hole.
    pub longer_than: Option<usize>,
}

impl Mischief {
    /// How far a reordered datagram can be late.
    pub const REORDER_WINDOW: Duration = Duration::from_millis(5);

    /// Loses everything.
    pub fn cut() -> Mischief {
        Mischief { drop: 1, ..Mischief::default() }
    }
}

/// How many datagrams it did what to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came in.
    pub received: u64,
    /// Were changed on their way.
    pub tampered: u64,
    /// Were sent as a changed copy beside the true one.
    pub forged: u64,
    /// Were sent as a copy that was cut short beside the true one.
    pub truncated: u64,
    /// Were sent twice.
    pub duplicated: u64,
    /// Were held back.
    pub reordered: u64,
    /// Old ones sent again.
    pub replayed: u64,
    /// Were lost.
    pub dropped: u64,
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From the first port of [`Relay::between`] to the second.
    There,
    /// From the second to the first.
    Back,
}

/// A datagram that went by.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Which way it went.
    pub way: Way,
    /// The whole frame.
    pub frame: Vec<u8>,
    /// Its addresses and payload.
    pub datagram: Datagram,
}

impl Recorded {
    /// What the datagram carries.
    pub fn payload(&self) -> &[u8] {
        &self.frame[self.datagram.payload.clone()]
    }
}

/// A man in the middle between two ports.
pub struct Relay {
    host: Host,
    shared: Arc<Shared>,
    _worker: Background,
}

#[derive(Default)]
struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    mischief: Mischief,
    counts: Counts,
    records: Vec<Recorded>,
    /// Frames to be sent that nobody sent: replays and forgeries on demand.
    injected: Vec<(Way, Vec<u8>)>,
}

impl Relay {
    /// Connects two ports through a program in a namespace of its own. Without mischief it is a cable.
    #[track_caller]
    pub fn between(lab: &Lab, a: Port, b: Port) -> Relay {
        let host = lab.host("relay");
        lab.link(a.wire(), host.port("a", []).mtu(JUMBO).wire());
        lab.link(b.wire(), host.port("b", []).mtu(JUMBO).wire());
        let sockets = [PacketSocket::open(&host, "a"), PacketSocket::open(&host, "b")];
        let shared = Arc::<Shared>::default();
        let worker =
            Worker { sockets, shared: shared.clone(), late: BinaryHeap::new(), sequence: 0, random: Random::new(1) };
        let worker = Background::new(|end| std::thread::spawn(move || worker.run(&end)));
        Relay { host, shared, _worker: worker }
    }

    /// The namespace in the middle, with its interfaces `a` and `b`.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// From now on, does this.
    pub fn set(&self, mischief: Mischief) {
        self.shared.lock().mischief = mischief;
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// The first datagrams that went by, up to [`RECORDS`] of them.
    pub fn records(&self) -> Vec<Recorded> {
        self.shared.lock().records.clone()
    }

    /// Forgets the datagrams that went by, to record later ones.
    pub fn clear_records(&self) {
        self.shared.lock().records.clear();
    }

    /// Sends a frame as if it had come by.
    pub fn inject(&self, way: Way, frame: Vec<u8>) {
        self.shared.lock().injected.push((way, frame));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many datagrams are remembered.
pub const RECORDS: usize = 20_000;

const JUMBO: u32 = 65_000;

/// When a frame is due, a number that keeps equal times in order, and the frame.
type Late = (Instant, u64, Way, Vec<u8>);

struct Worker {
    sockets: [PacketSocket; 2],
    shared: Arc<Shared>,
    /// Frames that are held back, the one that is due first on top.
    late: BinaryHeap<Reverse<Late>>,
    sequence: u64,
    random: Random,
}

impl Worker {
    fn run(mut self, end: &End) {
        while !end.has_come() {
            PacketSocket::wait(&[&self.sockets[0], &self.sockets[1]], self.time_to_wait());
            for (index, way) in [(0, Way::There), (1, Way::Back)] {
                // Not all at once: what is due in the other direction must not wait for the end of a flood.
                for _ in 0..64 {
                    let Some(frame) = self.sockets[index].receive() else { break };
                    self.handle_frame(way, frame);
                }
            }
            let injected = std::mem::take(&mut self.shared.lock().injected);
            injected.iter().for_each(|(way, frame)| self.send(*way, frame));
            self.send_what_is_due();
        }
    }

    fn handle_frame(&mut self, way: Way, mut frame: Vec<u8>) {
        frame::fix_checksum(&mut frame);
        let Some(datagram) = frame::datagram(&frame) else { return self.send(way, &frame) };
        let shared = self.shared.clone();
        let mut state = shared.lock();
        state.counts.received += 1;
        if state.records.len() < RECORDS {
            state.records.push(Recorded { way, frame: frame.clone(), datagram: datagram.clone() });
        }
        let State { mischief, counts, records, .. } = &mut *state;
        let too_long = mischief.longer_than.is_some_and(|limit| datagram.payload.len() > limit);
        if too_long || self.random.one_in(mischief.drop) {
            counts.dropped += 1;
            return;
        }
        if self.random.one_in(mischief.forge) {
            counts.forged += 1;
            let forged = self.flip_a_bit(&frame, &datagram);
            self.send(way, &forged);
        }
        if self.random.one_in(mischief.truncate) {
            counts.truncated += 1;
            let length = self.random.below(datagram.payload.len().max(1));
            self.send(way, &frame::truncated(&frame, &datagram, length));
        }
        if self.random.one_in(mischief.tamper) {
            counts.tampered += 1;
            frame = self.flip_a_bit(&frame, &datagram);
        }
        let mut delay = mischief.delay;
        if self.random.one_in(mischief.reorder) {
            counts.reordered += 1;
            let window = usize::try_from(Mischief::REORDER_WINDOW.as_micros()).expect("a few milliseconds");
            delay += Duration::from_micros(self.random.below(window) as u64);
        }
        if self.random.one_in(mischief.duplicate) {
            counts.duplicated += 1;
            self.send_after(delay, way, frame.clone());
        }
        self.send_after(delay, way, frame);
        if self.random.one_in(mischief.replay) {
            counts.replayed += 1;
            let old = &records[self.random.below(records.len())];
            self.send(old.way, &old.frame);
        }
    }

    fn flip_a_bit(&mut self, frame: &[u8], datagram: &Datagram) -> Vec<u8> {
        let mut changed = frame.to_vec();
        let payload = &mut changed[datagram.payload.clone()];
        if !payload.is_empty() {
            let victim = self.random.below(payload.len());
            payload[victim] ^= 1 << self.random.below(8);
        }
        frame::fix_checksum(&mut changed);
        changed
    }

    fn send(&self, way: Way, frame: &[u8]) {
        self.sockets[usize::from(way == Way::There)].send(frame);
    }

    fn send_after(&mut self, delay: Duration, way: Way, frame: Vec<u8>) {
        if delay.is_zero() {
            return self.send(way, &frame);
        }
        self.sequence += 1;
        self.late.push(Reverse((wait::now() + delay, self.sequence, way, frame)));
    }

    fn send_what_is_due(&mut self) {
        let now = wait::now();
        while self.late.peek().is_some_and(|Reverse(first)| first.0 <= now) {
            let Reverse((_, _, way, frame)) = self.late.pop().expect("it was peeked at");
            self.send(way, &frame);
        }
    }

    fn time_to_wait(&self) -> Duration {
        // Also how late it notices that something was injected, or that it shall stop.
        const LONGEST: Duration = Duration::from_millis(20);
        self.late.peek().map_or(LONGEST, |Reverse(first)| first.0.saturating_duration_since(wait::now()).min(LONGEST))
    }
}
