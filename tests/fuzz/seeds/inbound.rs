//! Where the fuzzer of what hostile peers seal begins, and what is to come of it.

use std::ops::Range;

use super::read::Read;
use crate::choices::{COMPLETE, EXTENDED, MAY_FRAGMENT, OTHER_ECN, WITHOUT_ECN};
use crate::inbound::{
    EXCHANGE, FLAGS, FLIP, FRAME, LOSE, MARK, OMIT, Outcome, PACKETS, RECEIVE, REORDER, REPEAT, RESIZE, SEAL,
};

const ALL_OFFLOADS: u8 = 0;
const TCP_OFFLOAD: u8 = 1;
const PLAIN: u8 = 2;
/// With all offloads, and only one UDP port exposed.
const POLICED: u8 = 3;

const CONTINUES: u8 = 2;

fn packets(read: Read) -> Vec<u8> {
    [vec![PACKETS], read.encode()].concat()
}

/// As many frames to a datagram, by the first peer on its first lane.
fn seal(frames: u8) -> Vec<u8> {
    vec![SEAL, frames, 0]
}

fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len() as u8;
    [&[FRAME, kind, flags, length, 0, length], body].concat()
}

fn resize(frame: u8, length: u16, headers_say_so: bool) -> Vec<u8> {
    let [low, high] = length.to_le_bytes();
    vec![RESIZE, frame, low, high, headers_say_so.into()]
}

fn seed(tun: u8, steps: &[Vec<u8>]) -> Vec<u8> {
    [vec![tun], steps.concat()].concat()
}

fn outcome(delivered: usize, writes: usize, refused: u64) -> Outcome {
    Outcome { delivered, writes, refused }
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let tcp = Read::tcp(5000, 1000);
    let train = [packets(tcp), seal(1)].concat();
    let small = packets(Read::udp(40, 0));
    vec![
        ("tcp-train", seed(ALL_OFFLOADS, std::slice::from_ref(&train)), outcome(5, 1, 0)),
        ("trains-of-every-kind", seed(ALL_OFFLOADS, &every_kind()), outcome(25, 5, 0)),
        ("trains-to-a-plain-tun", seed(PLAIN, &every_kind()), outcome(25, 25, 0)),
        ("trains-to-a-tun-with-tcp-only", seed(TCP_OFFLOAD, &every_kind()), outcome(25, 13, 0)),
        ("longest-train", seed(ALL_OFFLOADS, &[packets(Read::tcp(65_000, 1368)), seal(1)]), outcome(48, 1, 0)),
        ("more-than-a-train", seed(ALL_OFFLOADS, &[packets(Read::tcp(700, 10)), seal(10)]), outcome(70, 2, 0)),
        ("packed", seed(ALL_OFFLOADS, &[small.repeat(20), seal(20)]), outcome(20, 1, 0)),
        ("packed-that-may-fragment", seed(ALL_OFFLOADS, &[may_fragment().repeat(5), seal(5)]), outcome(5, 5, 0)),
        ("whole-and-extended", seed(ALL_OFFLOADS, &whole_and_extended()), outcome(5, 5, 0)),
        ("lost-and-reordered", seed(ALL_OFFLOADS, &[train.clone(), vec![LOSE, 1, REORDER, 1, 2]]), outcome(4, 4, 0)),
        ("two-peers-take-turns", seed(ALL_OFFLOADS, &two_peers()), outcome(10, 10, 0)),
        ("receives-apart", seed(ALL_OFFLOADS, &[train.clone(), vec![RECEIVE, 0], train.clone()]), outcome(10, 2, 0)),
        ("standing-queue", seed(ALL_OFFLOADS, &[train, vec![RECEIVE, 1]]), outcome(5, 1, 0)),
        ("standing-queue-without-ecn", seed(ALL_OFFLOADS, &standing_without_ecn()), outcome(4, 2, 0)),
        ("foreign-source-in-a-train", seed(ALL_OFFLOADS, &spoilt(vec![FLIP, 2, 15, 1 ^ 3])), outcome(4, 2, 1)),
        ("other-source-in-a-train", seed(ALL_OFFLOADS, &spoilt(vec![FLIP, 2, 15, 7])), outcome(5, 3, 0)),
        ("sequence-in-a-train", seed(ALL_OFFLOADS, &spoilt(vec![FLIP, 2, 27, 7])), outcome(5, 3, 0)),
        ("fin-in-a-train", seed(ALL_OFFLOADS, &spoilt(vec![FLIP, 2, 33, 1])), outcome(5, 2, 0)),
        ("cut-short-in-a-train", seed(ALL_OFFLOADS, &spoilt(resize(2, 500, false))), outcome(4, 2, 1)),
        ("shorter-in-a-train", seed(ALL_OFFLOADS, &spoilt(resize(2, 500, true))), outcome(5, 2, 0)),
        ("longer-in-a-train", seed(ALL_OFFLOADS, &spoilt(resize(2, 1500, true))), outcome(5, 3, 0)),
        ("not-partial-in-a-train", seed(ALL_OFFLOADS, &spoilt(vec![FLAGS, 2, 1])), outcome(5, 3, 0)),
        ("window-in-a-train", seed(ALL_OFFLOADS, &spoilt(vec![FLIP, 2, 34, 7])), outcome(5, 3, 0)),
        ("tcp-options-in-a-train", seed(ALL_OFFLOADS, &spoilt(vec![FLIP, 2, 44, 7])), outcome(5, 3, 0)),
        ("behind-a-shorter-one", seed(ALL_OFFLOADS, &behind_a_shorter_one()), outcome(4, 2, 0)),
        ("longer-than-a-superpacket", seed(ALL_OFFLOADS, &longer_than_a_superpacket()), outcome(60, 2, 0)),
        ("lost-from-udp", seed(ALL_OFFLOADS, &[may_fragment_train(), seal(1), vec![LOSE, 2]]), outcome(4, 2, 0)),
        ("refused-in-udp", seed(ALL_OFFLOADS, &refused_in_udp()), outcome(4, 2, 1)),
        ("anothers-train-is-continued", seed(ALL_OFFLOADS, &anothers_train_is_continued()), outcome(1, 1, 1)),
        ("exchanged", seed(ALL_OFFLOADS, &spoilt(vec![EXCHANGE, 1, 3])), outcome(5, 5, 0)),
        ("repeated-and-omitted", seed(ALL_OFFLOADS, &spoilt(vec![REPEAT, 4, OMIT, 1])), outcome(5, 3, 0)),
        ("continues-nothing", seed(ALL_OFFLOADS, &[small, vec![FLAGS, 0, CONTINUES], seal(1)]), outcome(1, 1, 0)),
        ("frames-of-every-kind", seed(ALL_OFFLOADS, &frames_of_every_kind()), outcome(3, 1, 6)),
        ("exposed-port", seed(POLICED, &[packets(Read::udp(5000, 1000)), seal(1)]), outcome(5, 1, 0)),
        ("another-port-in-a-train", seed(POLICED, &another_port_in_a_train()), outcome(4, 2, 1)),
        ("opening-in-a-train", seed(POLICED, &spoilt(vec![FLIP, 2, 33, 0x12])), outcome(4, 2, 1)),
        ("marked-train", seed(ALL_OFFLOADS, &marked(0, 0..5)), outcome(5, 1, 0)),
        ("marked-in-the-middle", seed(ALL_OFFLOADS, &marked(0, 2..3)), outcome(5, 3, 0)),
        ("marked-without-ecn", seed(ALL_OFFLOADS, &marked(WITHOUT_ECN, 2..3)), outcome(4, 2, 1)),
        ("every-ecn-field-in-every-other", seed(ALL_OFFLOADS, &every_ecn_field_in_every_other()), outcome(30, 30, 2)),
        ("partial-without-transport", seed(ALL_OFFLOADS, &spoilt(vec![FLIP, 2, 9, 0xff])), outcome(4, 2, 1)),
    ]
}

fn every_kind() -> Vec<Vec<u8>> {
    let with_options = Read { options: 0x3a, tcp_flags: 0x90, ..Read::tcp(5000, 1000) };
    let kinds = [Read::tcp(4500, 1000).over_v6(), Read::udp(5000, 1000), Read::udp(5000, 1200).over_v6(), with_options];
    let first = [packets(Read::tcp(5000, 1000)), seal(1)];
    let others = kinds.map(|read| [packets(read), seal(3)].concat());
    first.into_iter().chain(others).collect()
}

fn may_fragment() -> Vec<u8> {
    packets(Read::udp(40, 0).shaped(MAY_FRAGMENT))
}

fn may_fragment_train() -> Vec<u8> {
    packets(Read::udp(5000, 1000).shaped(MAY_FRAGMENT))
}

fn refused_in_udp() -> Vec<Vec<u8>> {
    vec![may_fragment_train(), resize(2, 500, false), seal(1)]
}

/// Both peers send from an address of the first's.
fn anothers_train_is_continued() -> Vec<Vec<u8>> {
    let continued = [packets(Read::udp(2000, 1000)), vec![OMIT, 0], vec![SEAL, 1, 1]];
    [vec![packets(Read::udp(1000, 0)), seal(1)], continued.to_vec()].concat()
}

fn without_psh(read: Read) -> Vec<u8> {
    packets(Read { tcp_flags: 0x10, ..read })
}

fn behind_a_shorter_one() -> Vec<Vec<u8>> {
    vec![without_psh(Read::tcp(2500, 1000)), without_psh(Read::tcp(500, 0)), seal(1)]
}

fn longer_than_a_superpacket() -> Vec<Vec<u8>> {
    vec![without_psh(Read::tcp(20 * 1368, 1368)).repeat(3), seal(1)]
}

fn whole_and_extended() -> Vec<Vec<u8>> {
    let whole = [Read::udp(40, 0), Read::tcp(40, 0).over_v6()].map(|read| packets(read.shaped(COMPLETE)));
    let extended = packets(Read::udp(2500, 1000).over_v6().shaped(EXTENDED));
    [&whole[..], &[extended, seal(2)]].concat()
}

/// Trains of one flow each, whose datagrams arrive in turn.
fn two_peers() -> Vec<Vec<u8>> {
    let one = vec![packets(Read::tcp(5000, 1000)), vec![SEAL, 1, 0]];
    let two = vec![packets(Read { source: 3, ..Read::tcp(5000, 1000) }), vec![SEAL, 1, 1]];
    let in_turn = [[1, 5], [2, 5], [3, 6], [4, 5], [6, 8], [7, 8]].map(|[one, two]| vec![REORDER, one, two]);
    [one, two, in_turn.to_vec()].concat()
}

fn standing_without_ecn() -> Vec<Vec<u8>> {
    vec![packets(Read::tcp(5000, 1000).shaped(WITHOUT_ECN)), seal(1), vec![RECEIVE, 1]]
}

/// A TCP train of five packets, some of which a router marks.
fn marked(shape: u8, datagrams: Range<u8>) -> Vec<Vec<u8>> {
    let train = [packets(Read::tcp(5000, 1000).shaped(shape)), seal(1)];
    let marks = datagrams.map(|datagram| vec![MARK, datagram, 3]);
    train.into_iter().chain(marks).collect()
}

/// Over IPv4 and IPv6.
fn every_ecn_field_in_every_other() -> Vec<Vec<u8>> {
    let fields = (0..16).map(|index| (index / 4, index % 4));
    let both = |inner: u8| [Read::udp(40, 0), Read::udp(40, 0).over_v6()].map(|read| read.shaped(inner * OTHER_ECN));
    let datagram = |(inner, outer)| {
        let packets = both(inner).map(packets).concat();
        [packets, seal(2), vec![MARK, 0, outer, RECEIVE, 0]].concat()
    };
    fields.map(datagram).collect()
}

/// A TCP train of five packets that is changed before it is sealed.
fn spoilt(how: Vec<u8>) -> Vec<Vec<u8>> {
    vec![packets(Read::tcp(5000, 1000)), how, seal(2)]
}

fn another_port_in_a_train() -> Vec<Vec<u8>> {
    vec![packets(Read::udp(5000, 1000)), vec![FLIP, 2, 23, 1], seal(1)]
}

fn frames_of_every_kind() -> Vec<Vec<u8>> {
    let small = || packets(Read::udp(40, 0));
    vec![
        small(),
        frame(2, 0, &[1, 1, 2, 3, 4, 5, 6, 7, 8]),
        frame(2, 0, &[1, 1]),
        frame(2, 0, &[4, 1]),
        frame(2, 0, &[]),
        frame(2, 0, &[200, 1]),
        frame(9, 9, &[1, 2, 3]),
        frame(1, 0x80, &[0x45]),
        frame(1, 0, &[0x45]),
        small(),
        vec![FRAME, 1, 0, 0xff, 0xff, 3, 1, 2, 3],
        small(),
        seal(32),
        small(),
        frame(0, 7, &[7; 9]),
        small(),
        seal(32),
    ]
}
