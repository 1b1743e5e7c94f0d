//! Where the fuzzer of what a TUN hands out begins, and what is to come of it.

use super::read::Read;
use crate::choices::{COMPLETE, EXTENDED, MAY_FRAGMENT, OTHER_ECN, WITHOUT_ECN};
use crate::outbound::{BYTES, DRAIN, FLIP, Outcome, READ, REPEAT, RESIZE};

const MTU_1420: u8 = 0;
const MTU_1280: u8 = 1;
const MTU_9000: u8 = 2;

fn read(read: Read) -> Vec<u8> {
    [vec![READ], read.encode()].concat()
}

fn drain(mtu: u8) -> Vec<u8> {
    vec![DRAIN, mtu]
}

fn outcome(packets: usize, writes: usize, missed: usize) -> Outcome {
    Outcome { packets, writes, missed }
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let tcp = Read::tcp(5000, 1300);
    let small = read(Read::udp(40, 0));
    let seeds = [
        ("superpacket", read(tcp), outcome(4, 1, 0)),
        ("longest-superpacket", read(Read::tcp(65_000, 1368)), outcome(48, 1, 0)),
        ("superpackets-of-every-kind", every_kind(), outcome(21, 5, 0)),
        ("small-segments", read(Read::udp(4000, 60)), outcome(67, 2, 0)),
        ("small-packets", [small.clone(), vec![REPEAT, 0, 40]].concat(), outcome(41, 1, 0)),
        ("mixed-sizes", mixed_sizes(), outcome(9, 9, 0)),
        ("padded", [read(Read::tcp(1100, 0)), read(Read::tcp(1350, 0)).repeat(3)].concat(), outcome(4, 4, 0)),
        ("two-peers-and-nobody", two_peers_and_nobody(), outcome(4, 4, 1)),
        ("too-large", [read(Read::tcp(2900, 1400)), small.clone()].concat(), outcome(2, 2, 0)),
        (
            "mtus",
            [drain(MTU_1280), drain(MTU_9000)].map(|drain| [small_and_large(), drain].concat()).concat(),
            outcome(9, 5, 0),
        ),
        ("whole-and-extended", whole_and_extended(), outcome(5, 5, 0)),
        ("standing-queue", standing_queue(), outcome(14, 4, 0)),
        ("longer-than-any-mtu", longer_than_any_mtu(), outcome(2, 1, 0)),
        ("every-ecn-field", every_ecn_field(), outcome(16, 8, 0)),
        ("no-segment-size", [read(tcp), vec![FLIP, 0, 4, 0x14, FLIP, 0, 5, 0x05]].concat(), outcome(0, 0, 1)),
        ("wrong-kind", [read(tcp), vec![FLIP, 0, 1, 4]].concat(), outcome(0, 0, 1)),
        ("cut-short", [read(tcp), vec![RESIZE, 0, 100, 0]].concat(), outcome(0, 0, 1)),
        ("checksum-elsewhere", [small.clone(), vec![FLIP, 0, 8, 1]].concat(), outcome(1, 1, 0)),
        ("any-bytes", [vec![BYTES, 12], vec![0x45; 12], small].concat(), outcome(1, 1, 1)),
    ];
    seeds.map(|(name, seed, outcome)| (name, [seed, drain(MTU_1420)].concat(), outcome)).into()
}

/// With flows that understand marks of congestion, and with one that does not.
fn standing_queue() -> Vec<u8> {
    let drain = drain(MTU_1420 | 0x80);
    let marked = [Read::tcp(4500, 1300), Read::udp(4500, 1300)].map(|shape| [read(shape), drain.clone()].concat());
    let lost = [read(Read::tcp(4500, 1300).shaped(WITHOUT_ECN)), read(Read::tcp(3900, 1300)), drain].concat();
    [marked.concat(), lost].concat()
}

/// It is passed over, and what makes a queue stand is the superpacket behind it.
fn longer_than_any_mtu() -> Vec<u8> {
    let long = read(Read { options: 0xaa, ..Read::tcp(65_407, 0) }.shaped(WITHOUT_ECN));
    [long, read(Read::tcp(3900, 1300).shaped(WITHOUT_ECN)), drain(MTU_9000 | 0x80)].concat()
}

/// Packets of one field share a datagram.
fn every_ecn_field() -> Vec<u8> {
    let one = |read: Read, field: u8| [vec![READ], read.shaped(field * OTHER_ECN).encode()].concat();
    let two = |field| [Read::udp(40, 0), Read::udp(40, 0).over_v6()].map(|read| one(read, field).repeat(2)).concat();
    (0..4).map(two).collect::<Vec<_>>().concat()
}

fn every_kind() -> Vec<u8> {
    let with_options = Read { options: 0x3a, tcp_flags: 0x90, ..Read::tcp(5000, 1000) };
    let kinds = [
        Read::tcp(4500, 1300),
        Read::tcp(4500, 1300).over_v6(),
        Read::udp(2000, 600),
        Read::udp(2000, 600).over_v6(),
        with_options,
    ];
    kinds.map(read).concat()
}

fn mixed_sizes() -> Vec<u8> {
    [600, 500, 20, 620, 580, 10, 700, 450, 90].map(|length| read(Read::udp(length, 0).shaped(MAY_FRAGMENT))).concat()
}

fn two_peers_and_nobody() -> Vec<u8> {
    let [one, other] = [2, 3].map(|destination| read(Read { destination, ..Read::tcp(100, 0) }));
    // Behind the virtio header: the third byte of the destination.
    let nobody = [one.clone(), vec![FLIP, 4, 10 + 18, 1]].concat();
    [one.clone(), other.clone(), one, other, nobody].concat()
}

fn small_and_large() -> Vec<u8> {
    [read(Read::udp(1200, 0)), read(Read::tcp(3500, 1200)), read(Read::udp(1300, 0).over_v6())].concat()
}

fn whole_and_extended() -> Vec<u8> {
    let whole = [Read::udp(40, 0), Read::tcp(40, 0).over_v6()].map(|shape| read(shape.shaped(COMPLETE))).concat();
    [whole, read(Read::udp(2500, 1000).over_v6().shaped(EXTENDED))].concat()
}
