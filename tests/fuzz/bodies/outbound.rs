//! What a TUN hands out, likely or not, on its way through the sending data plane: the peers it is for open exactly the
//! packets that a kernel would have cut, in order, and a host behind their TUN gets them. Everything else is counted.
//!
//! The data is a list of steps: reads are made, spoilt, and drained.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::mpsc;

use underpass::dataplane::testing::{self, Receiver, Run, Transmitter};
use underpass::packet::ip::TransportProtocol;
use underpass::packet::traffic_class::Ecn;
use underpass::proto::error::{DropReason, Miss};

use crate::choices::Choices;
use crate::links::{Links, US, endpoint, routed_to};
use crate::twin::delivery::{CONTINUES, Expectation, PARTIAL, counted, position};
use crate::twin::kernel;
use crate::twin::packet::{
    addresses, completed, direct_transport, ecn, ip_header_len, is_v4, is_whole, mark_congestion, pseudo_header_sum,
    set_field, sum,
};

/// A read as a kernel gives it: [`Choices::read`].
pub(crate) const READ: u8 = 0;
/// A read of any bytes: `length (1), bytes`.
pub(crate) const BYTES: u8 = 1;
/// Changes a byte of a read: `read (1), offset (1), difference (1)`.
pub(crate) const FLIP: u8 = 2;
/// Cuts a read short, or makes it longer: `read (1), length (2)`.
pub(crate) const RESIZE: u8 = 3;
/// Repeats a read behind all others: `read (1), times (1)`.
pub(crate) const REPEAT: u8 = 4;
/// Sends what there is: `MTU (1)`; with its upper bit set, from a queue that stands.
pub(crate) const DRAIN: u8 = 5;
/// Steps are read modulo this.
const STEPS: u8 = 6;

/// The last is the longest that leaves a datagram no more packets than a socket in a kernel's place holds.
const MTUS: [u16; 3] = [1420, 1280, 9000];
/// Of one drain.
const MAX_READS: usize = 64;
/// Steps of a run and bytes of its reads, so that none takes long.
const MAX_STEPS: usize = 64;
const MAX_BYTES: usize = 100_000;
/// The longest datagram, and what it costs beside its frames.
const MAX_DATAGRAM: usize = 65_507;
const OVERHEAD: usize = 28;
const FRAME_HEADER_LEN: usize = 4;
/// The longest packet that a TUN hands out, or that a superpacket is cut into: no interface's MTU is longer.
const LONGEST_PACKET: usize = MAX_DATAGRAM - OVERHEAD - FRAME_HEADER_LEN;
const MAX_DATAGRAMS_OF_RUN: usize = 64;

/// What a run came to, for those who want to know that it came to something.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub packets: usize,
    pub writes: usize,
    pub missed: usize,
}

pub(crate) fn run(data: &[u8]) -> Outcome {
    WORLD.with_borrow_mut(|world| {
        // Long before the sessions have sealed all that they may.
        let world = match world {
            Some(world) if world.runs < 1 << 16 => world,
            _ => world.insert(World::new()),
        };
        world.runs += 1;
        world.do_steps(Choices::new(data))
    })
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Links on which we send.
struct World {
    links: Links,
    /// Of each peer.
    receivers: [Receiver; 2],
    /// By MTU.
    transmitters: [(Transmitter, mpsc::Receiver<Run>); 3],
    runs: u32,
}

const TUN: [TransportProtocol; 2] = [TransportProtocol::Tcp, TransportProtocol::Udp];

impl World {
    fn new() -> Self {
        let receivers = [(); 2].map(|()| Receiver::new(&TUN));
        let transmitters = MTUS.map(|mtu| Transmitter::into_channel(0, mtu));
        Self { links: Links::new(), receivers, transmitters, runs: 0 }
    }

    fn do_steps(&mut self, mut choices: Choices<'_>) -> Outcome {
        let (mut reads, mut bytes, mut sequence) = (Vec::new(), 0, 0);
        let mut outcome = Outcome::default();
        for _ in 0..MAX_STEPS {
            if choices.is_empty() || bytes >= MAX_BYTES {
                break;
            }
            match choices.byte() % STEPS {
                READ => {
                    let (read, payload_len) = choices.read(sequence);
                    sequence += payload_len;
                    bytes += read.len();
                    reads.push(read);
                }
                BYTES => {
                    let length = usize::from(choices.byte());
                    reads.push(choices.bytes(length).to_vec());
                }
                DRAIN => {
                    let choice = choices.byte();
                    self.drain(usize::from(choice & 0x7f) % MTUS.len(), choice & 0x80 != 0, &mut reads, &mut outcome);
                }
                step => bytes += spoil(step, &mut choices, &mut reads),
            }
            if reads.len() >= MAX_READS {
                self.drain(0, false, &mut reads, &mut outcome);
            }
        }
        self.drain(0, false, &mut reads, &mut outcome);
        outcome
    }

    /// Sends the packets of `reads`, from a queue that stands or not, and receives them.
    fn drain(&mut self, mtu: usize, standing: bool, reads: &mut Vec<Vec<u8>>, outcome: &mut Outcome) {
        let mut reads = std::mem::take(reads);
        reads.iter_mut().for_each(|read| set_sum(read));
        let is_short = |(_, packet): &(u8, Vec<u8>)| packet.len() <= LONGEST_PACKET;
        reads.retain(|read| {
            read.len() <= LONGEST_PACKET || cut(read).is_none_or(|packets| packets.iter().all(is_short))
        });
        let max_plaintext = (usize::from(MTUS[mtu]) + FRAME_HEADER_LEN).min(MAX_DATAGRAM - OVERHEAD);
        let mut expected = Expected { signals_congestion: standing, ..Expected::default() };
        for (index, read) in reads.iter().enumerate() {
            expected.add(index, read, max_plaintext - FRAME_HEADER_LEN);
        }
        let (transmitter, channel) = &mut self.transmitters[mtu];
        if standing {
            transmitter.signal_congestion();
        }
        let before = transmitter.drops();
        let missed = transmitter.drain(self.links.now, &self.links.us, &mut reads, &mut Vec::new());
        assert_eq!(missed, expected.missed);
        let too_large = counted(&before, &transmitter.drops());
        assert_eq!(too_large.values().sum::<u64>(), expected.too_large);
        assert!(too_large.keys().all(|reason| *reason == DropReason::TooLarge), "{too_large:?}");
        let mut datagrams: [Vec<(Ecn, Vec<u8>)>; 2] = Default::default();
        for run in channel.try_iter() {
            assert!(run.bytes.len() <= MAX_DATAGRAM, "{} bytes in one send", run.bytes.len());
            let peer = (0..2).find(|peer| run.way.endpoint == endpoint(*peer)).expect("an endpoint of a peer");
            let ecn = run.way.traffic_class.ecn();
            let cut = run.bytes.chunks(run.segment_size).map(|datagram| (ecn, datagram.to_vec()));
            assert!(cut.len() <= MAX_DATAGRAMS_OF_RUN, "{} datagrams in one send", cut.len());
            datagrams[peer].extend(cut);
        }
        for (peer, mut datagrams) in datagrams.into_iter().enumerate() {
            let longest = datagrams.iter().map(|(_, datagram)| datagram.len()).max().unwrap_or_default();
            assert!(longest <= max_plaintext + OVERHEAD, "a datagram of {longest} bytes");
            let sent = expected.packets.remove(&peer).unwrap_or_default();
            outcome.packets += sent.len();
            outcome.writes += self.receive(peer, &mut datagrams, &sent);
        }
        outcome.missed += missed.len();
    }

    /// Has a peer receive `datagrams`, in which `sent` was packed. Returns how often its TUN was written to.
    fn receive(&mut self, peer: usize, datagrams: &mut [(Ecn, Vec<u8>)], sent: &[(u8, Vec<u8>)]) -> usize {
        let (Links { now, peers, .. }, receiver) = (&self.links, &mut self.receivers[peer]);
        let router = &peers[peer];
        let mut notices = Vec::new();
        let mut expectation = Expectation::default();
        let mut opened = Vec::new();
        for (outer, datagram) in datagrams {
            let datagram = router.open(*now, endpoint(US), *outer, datagram, &mut notices).expect("a good datagram");
            assert_eq!(datagram.plaintext.first(), Some(&1), "a datagram does not begin with a packet");
            let before = expectation.admitted.len();
            expectation.add(position(&datagram), *outer, datagram.plaintext, |_| true);
            let inner = expectation.admitted[before..].iter().map(|packet| ecn(&packet.bytes));
            assert!(inner.into_iter().all(|inner| inner == *outer as u8), "a datagram's ECN field is not its packets'");
            opened.push(datagram);
        }
        assert!(expectation.refused.is_empty(), "{:?}", expectation.refused);
        let frames = expectation.admitted.iter().map(|admitted| (admitted.flags, admitted.bytes.clone()));
        assert_eq!(frames.collect::<Vec<_>>(), sent);
        let before = receiver.drops();
        let writes = receiver.receive(router, &opened, false, &mut notices);
        assert_eq!(counted(&before, &receiver.drops()), BTreeMap::new());
        if let Err(wrong) = expectation.check(&writes, &TUN, false, 0) {
            panic!("{wrong}");
        }
        writes.len()
    }
}

/// What is to come of the reads of one drain.
#[derive(Default)]
struct Expected {
    /// By peer: what its datagrams carry.
    packets: BTreeMap<usize, Vec<(u8, Vec<u8>)>>,
    missed: Vec<(usize, Miss)>,
    too_large: u64,
    /// The next superpacket is to be marked, or to lose its first segment.
    signals_congestion: bool,
}

impl Expected {
    fn add(&mut self, index: usize, read: &[u8], longest: usize) {
        let Some(mut packets) = cut(read) else {
            return self.missed.push((index, DropReason::MalformedPacket.into()));
        };
        let Some(peer) = routed_to(addresses(&packets[0].1)[1]) else {
            return self.missed.push((index, DropReason::NoPeerForDestination.into()));
        };
        if packets.len() > 1 && std::mem::take(&mut self.signals_congestion) {
            signal_congestion(&mut packets);
        }
        let sent = self.packets.entry(peer).or_default();
        let mut neighbour_is_sent = false;
        for (flags, packet) in packets {
            if packet.len() > longest {
                self.too_large += 1;
                neighbour_is_sent = false;
                continue;
            }
            sent.push((if neighbour_is_sent { flags } else { flags & !CONTINUES }, packet));
            neighbour_is_sent = true;
        }
    }
}

/// Has every packet of a flow that understands say that it met congestion; else the first is lost.
fn signal_congestion(packets: &mut Vec<(u8, Vec<u8>)>) {
    if ecn(&packets[0].1) == 0 {
        packets.remove(0);
        return;
    }
    for (_, packet) in packets {
        mark_congestion(packet);
        if is_v4(packet) {
            let header_len = ip_header_len(packet);
            set_field(packet, 10, 0);
            let checksum = 0xffff - sum(&packet[..header_len]);
            set_field(packet, 10, checksum);
        }
    }
}

/// Cuts a read. What a kernel hands out is cut as a kernel would.
fn cut(read: &[u8]) -> Option<Vec<(u8, Vec<u8>)>> {
    let mut packets = Vec::new();
    let result = testing::cut(&mut read.to_vec(), &mut vec![0; read.len()], |flags, packet| {
        packets.push((flags, packet.to_vec()));
    });
    if let Ok(expected) = kernel::take(read) {
        assert!(result.is_ok(), "a good read is refused");
        let flags: Vec<u8> = packets.iter().map(|(flags, _)| *flags).collect();
        let is_partial = flags[0] & PARTIAL != 0;
        assert!(flags.iter().skip(1).all(|flags| *flags == if is_partial { PARTIAL | CONTINUES } else { 0 }));
        let complete = packets.iter().map(|(flags, packet)| match flags & PARTIAL {
            0 => packet.clone(),
            _ => completed(packet),
        });
        assert_eq!(complete.collect::<Vec<_>>(), expected);
    }
    result.is_ok().then_some(packets)
}

/// Sets the sum in an open checksum field: the one thing in a read that only a broken kernel would get wrong.
fn set_sum(read: &mut [u8]) {
    let Some((header, packet)) = read.split_at_mut_checked(kernel::HEADER_LEN) else { return };
    let checksum_start = usize::from(u16::from_ne_bytes([header[6], header[7]]));
    if is_whole(packet)
        && let Some(transport) = direct_transport(packet).filter(|transport| transport.start == checksum_start)
    {
        let sum = pseudo_header_sum(packet, transport);
        set_field(packet, transport.start + transport.checksum_offset(), sum);
    }
}

/// Steps that change reads. Returns how many bytes are new.
fn spoil(step: u8, choices: &mut Choices<'_>, reads: &mut Vec<Vec<u8>>) -> usize {
    let Some(index) = choices.index(reads) else { return 0 };
    match step {
        FLIP => {
            let (offset, difference) = (usize::from(choices.byte()), choices.byte());
            if let Some(byte) = reads[index].get_mut(offset) {
                *byte ^= difference;
            }
            0
        }
        RESIZE => {
            let length = choices.short();
            reads[index].resize(length, 0x5a);
            length
        }
        REPEAT => {
            let times = usize::from(choices.byte()).min(MAX_READS - reads.len());
            let read = reads[index].clone();
            let bytes = times * read.len();
            // No more than a run may have.
            let times = if bytes > MAX_BYTES { 1 } else { times };
            reads.extend(std::iter::repeat_n(read, times));
            bytes
        }
        _ => unreachable!("the other steps change no read"),
    }
}
