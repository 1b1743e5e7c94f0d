//! What happens to the world, one thing at a time, and how a run of it is drawn from a seed.

use std::time::Duration;

use crate::hostile::HostileKind;
use crate::inner_packet::{Burst, LONGEST_PAYLOAD};
use crate::malice::MaliceKind;
use crate::node::NoticeHandling;
use crate::random::Random;

/// One thing that happens. Numbers of nodes, keys and recorded datagrams are taken modulo how many there are, so that
/// every part of a run is a run: that is how failing runs are made short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transition {
    /// Packets of this many bytes from one node's inner address to another's.
    SendPackets {
        from: usize,
        to: usize,
        count: usize,
        length: usize,
    },
    /// So many bursts in one drain of the TUN: superpackets, each with a small packet of the same flow behind it or not.
    SendBursts {
        from: usize,
        to: usize,
        count: usize,
        burst: Burst,
        is_tcp: bool,
        single: bool,
    },
    /// What no honest node seals: a train that is none, frames that are malformed.
    SendHostile {
        from: usize,
        to: usize,
        kind: HostileKind,
    },
    /// Floods another with what costs it most.
    Harass {
        from: usize,
        to: usize,
        kind: MaliceKind,
        count: usize,
    },
    /// A packet whose source is a third node's, or nobody's.
    SendSpoofed {
        from: usize,
        to: usize,
        source: usize,
    },
    /// Both initiate in the same instant, if they have no session.
    SendBoth {
        one: usize,
        two: usize,
    },
    /// Packets at this interval, one way or both ways.
    Stream {
        from: usize,
        to: usize,
        both_ways: bool,
        interval: Duration,
        duration: Duration,
    },
    /// Time passes: from nothing at all to more than a session's life.
    Advance(Duration),
    /// A link of this character, in one direction.
    SetLink {
        from: usize,
        to: usize,
        character: LinkCharacter,
    },
    /// Nothing passes between two nodes, in one direction or both.
    Partition {
        from: usize,
        to: usize,
        one_way: bool,
    },
    /// All links are perfect and all threads prompt again: now everybody must find everybody.
    Heal,
    /// Another outer address: it moved, or its NAT forgot everything.
    Roam {
        node: usize,
    },
    /// A name was resolved to where a peer is.
    Resolve {
        node: usize,
        peer: usize,
    },
    /// A daemon starts anew, after a goodbye or not, and its wall clock goes back.
    Restart {
        node: usize,
        goodbye: bool,
        clock_back: Duration,
    },
    RemovePeer {
        node: usize,
        peer: usize,
    },
    AddPeer {
        node: usize,
        peer: usize,
    },
    /// A node lets a peer use the whole inner network, or just its own addresses, or another's too.
    SetAllowedIps {
        node: usize,
        peer: usize,
        kind: usize,
    },
    /// One side's preshared key: 0 is none.
    SetPresharedKey {
        node: usize,
        peer: usize,
        key: u8,
    },
    /// Both sides' preshared key.
    AgreePresharedKey {
        one: usize,
        two: usize,
        key: u8,
    },
    SetKeepalive {
        node: usize,
        peer: usize,
        seconds: u64,
    },
    /// The node's peers learn which key it will have, but for one.
    AnnounceKey {
        node: usize,
        but_not_to: usize,
    },
    /// The node changes to the announced key.
    ChangeKey {
        node: usize,
        keep_previous: bool,
    },
    /// The node's peers forget the key that it had.
    ForgetKey {
        node: usize,
    },
    /// A recorded datagram comes again, maybe from the attacker's address.
    Replay {
        pick: usize,
        copies: usize,
        from_elsewhere: bool,
    },
    /// The next datagram from one node to another comes from the attacker's address, and only from there.
    Divert {
        from: usize,
        to: usize,
    },
    /// A recorded datagram comes altered.
    Tamper {
        pick: usize,
        kind: TamperKind,
    },
    /// A recorded datagram comes back to its sender.
    Reflect {
        pick: usize,
    },
    /// A datagram of random bytes under a plausible header, with a right mac1 or without.
    Forge {
        to: usize,
        kind: usize,
        mac1: bool,
        pick: usize,
    },
    /// Initiations of a stranger from many addresses.
    Flood {
        to: usize,
        count: usize,
        mac1: bool,
    },
    /// A node's workers keep the snapshot that they have, or take the newest.
    FreezeWorkers {
        node: usize,
        frozen: bool,
    },
    HandleNotices {
        node: usize,
        handling: NoticeHandling,
    },
    /// Something else woke the slow path.
    SpuriousTimeout {
        node: usize,
    },
}

/// Kinds of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkCharacter {
    Perfect,
    Lossy,
    Reordering,
    Duplicating,
    Altering,
    Marking,
    /// Too narrow for handshakes.
    Narrow,
    FarAway,
}

/// What the attacker does to a recorded datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TamperKind {
    FlipBit,
    /// Flip a bit and make mac1 right again.
    FlipBitAndSign,
    Truncate,
    Extend,
}

/// The transitions of a run.
pub(crate) fn draw_run(seed: u64, length: usize) -> Vec<Transition> {
    let mut random = Random::new(seed, b't');
    (0..length).map(|_| draw(&mut random)).collect()
}

fn draw(random: &mut Random) -> Transition {
    match random.below(100) {
        0..=36 => draw_traffic(random),
        37..=58 => Transition::Advance(draw_duration(random)),
        59..=69 => draw_network(random),
        70..=78 => draw_operator(random),
        79..=92 => draw_attack(random),
        93..=97 => draw_threads(random),
        _ => Transition::Heal,
    }
}

fn node(random: &mut Random) -> usize {
    random.below(1 << 16)
}

fn draw_traffic(random: &mut Random) -> Transition {
    let (from, to) = (node(random), node(random));
    match random.below(20) {
        0..=9 => {
            let count = *random.pick(&[1, 1, 1, 2, 3, 10, 200]);
            Transition::SendPackets { from, to, count, length: *random.pick(&[8, 20, 100, 1300]) }
        }
        10..=12 => draw_bursts(random, from, to),
        13..=15 => Transition::SendBoth { one: from, two: to },
        16..=17 => Transition::SendSpoofed { from, to, source: node(random) },
        _ => Transition::Stream {
            from,
            to,
            both_ways: random.chance(50),
            interval: Duration::from_millis(*random.pick(&[200, 900, 5_000, 14_000])),
            duration: Duration::from_secs(*random.pick(&[2, 10, 60, 200])),
        },
    }
}

fn draw_bursts(random: &mut Random, from: usize, to: usize) -> Transition {
    let segments = *random.pick(&[2, 3, 8, 45]);
    let length = *random.pick(&[8, 100, 600, LONGEST_PAYLOAD]);
    let last = if random.chance(50) { length } else { length / 3 };
    let burst = Burst { segments, length, last, is_partial: true };
    Transition::SendBursts {
        from,
        to,
        count: *random.pick(&[1, 1, 2, 4]),
        burst,
        is_tcp: random.chance(60),
        single: random.chance(30),
    }
}

fn draw_duration(random: &mut Random) -> Duration {
    let bound = match random.below(20) {
        0..=1 => return Duration::ZERO,
        2..=7 => Duration::from_millis(15),
        8..=12 => Duration::from_millis(300),
        13..=16 => Duration::from_secs(6),
        17..=18 => Duration::from_secs(40),
        _ => Duration::from_secs(400),
    };
    random.duration(bound)
}

fn draw_network(random: &mut Random) -> Transition {
    use LinkCharacter::{Altering, Duplicating, FarAway, Lossy, Marking, Narrow, Perfect, Reordering};
    let (from, to) = (node(random), node(random));
    match random.below(10) {
        0..=4 => {
            let often = [Perfect, Lossy, Reordering, Marking];
            let seldom = [Duplicating, Altering, Narrow, FarAway];
            let character = *random.pick(&[&often[..], &often, &seldom].concat());
            Transition::SetLink { from, to, character }
        }
        5..=6 => Transition::Partition { from, to, one_way: random.chance(50) },
        7..=8 => Transition::Roam { node: from },
        _ => Transition::Resolve { node: from, peer: to },
    }
}

fn draw_operator(random: &mut Random) -> Transition {
    let (node, peer) = (node(random), node(random));
    match random.below(20) {
        0..=5 => {
            let clock_back = Duration::from_secs(*random.pick(&[0, 0, 0, 0, 2, 60]));
            Transition::Restart { node, goodbye: random.chance(40), clock_back }
        }
        6..=7 => Transition::RemovePeer { node, peer },
        8..=10 => Transition::AddPeer { node, peer },
        11..=12 => Transition::SetAllowedIps { node, peer, kind: random.below(4) },
        13 => Transition::SetPresharedKey { node, peer, key: random.below(3) as u8 },
        14 => Transition::AgreePresharedKey { one: node, two: peer, key: random.below(3) as u8 },
        15 => Transition::SetKeepalive { node, peer, seconds: *random.pick(&[0, 1, 25]) },
        16 => Transition::AnnounceKey { node, but_not_to: peer },
        17..=18 => Transition::ChangeKey { node, keep_previous: random.chance(60) },
        _ => Transition::ForgetKey { node },
    }
}

fn draw_attack(random: &mut Random) -> Transition {
    use TamperKind::{Extend, FlipBit, FlipBitAndSign, Truncate};
    let pick = node(random);
    match random.below(26) {
        24..=25 => {
            let (to, kind) = (node(random), *random.pick(&MaliceKind::ALL));
            Transition::Harass { from: pick, to, kind, count: *random.pick(&[5, 70, 300]) }
        }
        20..=23 => Transition::SendHostile { from: pick, to: node(random), kind: *random.pick(&HostileKind::ALL) },
        0..=5 => Transition::Replay { pick, copies: *random.pick(&[1, 1, 2, 20]), from_elsewhere: random.chance(30) },
        6..=12 => {
            Transition::Tamper { pick, kind: *random.pick(&[FlipBit, FlipBit, FlipBitAndSign, Truncate, Extend]) }
        }
        13 => Transition::Reflect { pick },
        14 => Transition::Divert { from: pick, to: node(random) },
        15..=18 => Transition::Forge { to: node(random), kind: random.below(5), mac1: random.chance(50), pick },
        _ => Transition::Flood { to: pick, count: *random.pick(&[30, 30, 600]), mac1: random.chance(60) },
    }
}

fn draw_threads(random: &mut Random) -> Transition {
    let node = node(random);
    match random.below(5) {
        0..=1 => Transition::FreezeWorkers { node, frozen: random.chance(50) },
        2..=3 => {
            let handlings = [NoticeHandling::Prompt, NoticeHandling::Late, NoticeHandling::Dropped];
            Transition::HandleNotices { node, handling: *random.pick(&handlings) }
        }
        _ => Transition::SpuriousTimeout { node },
    }
}
