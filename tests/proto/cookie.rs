use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use underpass::keys::PrivateKey;
use underpass::packet::message::{COOKIE_REPLY_LEN, INITIATION_LEN, MAC_LEN, Message};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::constants::{
    HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE, HANDSHAKES_PER_SECOND_AND_SOURCE, HANDSHAKES_PER_SECOND_UNDER_LOAD,
};
use underpass::proto::cookie::{CookieJar, MacKeys};
use underpass::proto::device::{Device, DeviceConfig};
use underpass::proto::error::DropReason;
use underpass::proto::peer::PeerConfig;
use underpass::proto::randomness::Entropy;
use underpass::proto::staged::StagedPacket;

use crate::pair::{InFlight, Pair, Side, UNIX_TIME, device_config, inner_packet, peer_config, seconds};

/// An initiation to side two by somebody who knows its public key, and no more.
fn strangers_initiation(pair: &Pair) -> InFlight {
    // Mac1 is right and the rest is a stranger's: the flooder knows the public key, and no more.
    let stranger = DeviceConfig { private_key: PrivateKey::from_bytes([66; 32]).unwrap(), ..device_config(Side::One) };
    let mut attacker = Device::new(pair.now, seconds(1), stranger, Entropy::seeded([66; 32]));
    attacker.upsert_peer(pair.now, peer_config(Side::Two));
    let bytes = inner_packet(Side::One.inner(), Side::Two.inner(), b"x");
    attacker.handle_packet(pair.now, StagedPacket { bytes, checksum_partial: false }).unwrap();
    InFlight {
        arrives_at: pair.now,
        to: Side::Two,
        from: Side::One.address(),
        to_second: false,
        traffic_class: TrafficClass::default(),
        payload: attacker.poll_transmit().unwrap().payload,
    }
}

/// Sends such initiations, from `source(i)`, until side two is under load.
fn flood(pair: &mut Pair, number: u32, source: impl Fn(u32) -> [u8; 4]) {
    let datagram = strangers_initiation(pair);
    for i in 0..number {
        pair.deliver(InFlight { from: (source(i), 1000).into(), ..datagram.clone() });
    }
    pair.sent.clear();
    pair.refused.clear();
    pair.wire.clear();
}

fn spread(i: u32) -> [u8; 4] {
    [198, 51, (i >> 8) as u8, i as u8]
}

#[test]
fn under_load_a_handshake_takes_a_cookie_and_then_succeeds_whichever_side_calls() {
    for caller in [Side::One, Side::Two] {
        let mut pair = Pair::new();
        pair.advance(seconds(1));
        flood(&mut pair, HANDSHAKES_PER_SECOND_UNDER_LOAD + 10, spread);
        pair.send(caller, b"through the flood");
        // Up to what side two demands a cookie for: an initiation, or the response to its own.
        while pair.refused.is_empty() {
            let message = pair.wire.pop_front().unwrap();
            pair.deliver(message);
        }
        assert_eq!(pair.refused, [(Side::Two, DropReason::CookieDemanded)]);
        let (_, from, reply) = pair.sent.last().unwrap();
        assert_eq!((*from, reply.len()), (Side::Two, COOKIE_REPLY_LEN));

        // The flood goes on until the retry.
        (0..20).for_each(|_| advance_under_flood(&mut pair, seconds(1) / 10, spread));
        assert_eq!(pair.payloads(caller.other()), [b"through the flood"]);
        assert_eq!(pair.refused.len(), 1, "{:?}", pair.refused);
    }
}

fn advance_under_flood(pair: &mut Pair, step: Duration, source: impl Fn(u32) -> [u8; 4]) {
    pair.advance(step);
    let (sent, refused) = (std::mem::take(&mut pair.sent), std::mem::take(&mut pair.refused));
    let wire = std::mem::take(&mut pair.wire);
    flood(pair, HANDSHAKES_PER_SECOND_UNDER_LOAD, source);
    (pair.sent, pair.refused, pair.wire) = (sent, refused, wire);
}

/// Of sixty datagrams of side one's, one comes through, and somebody forges its address.
#[test]
fn an_initiation_to_a_peer_that_has_demanded_a_cookie_is_repeated_until_it_comes_through() {
    let mut pair = Pair::with(|two| two.watched = true, |one| one.endpoints = Vec::new());
    let IpAddr::V4(address) = Side::One.address().ip() else { panic!("side one has IPv4") };
    let forged = |_| address.octets();
    flood(&mut pair, HANDSHAKES_PER_SECOND_UNDER_LOAD, forged);
    let mut number = 0;
    pair.lose = Box::new(move |side, _| {
        number += usize::from(side == Side::One);
        side == Side::One && number % 60 != 1
    });
    // Sooner than it has one message's worth.
    let step = seconds(1) / HANDSHAKES_PER_SECOND_AND_SOURCE / 2;
    (0..100).for_each(|_| advance_under_flood(&mut pair, step, forged));
    assert_eq!(pair.refused, [(Side::Two, DropReason::CookieDemanded)]);
    (0..300).for_each(|_| advance_under_flood(&mut pair, step, forged));
    assert_eq!(pair.status(Side::One).handshakes, 1, "{:?}", pair.status(Side::One));
}

#[test]
fn a_proven_source_beyond_its_share_is_dropped_before_its_macs_are_looked_at() {
    let mut pair = Pair::new();
    pair.advance(seconds(1));
    let source = SocketAddr::from(([198, 51, 100, 1], 1000));
    let spoilt = |pair: &Pair| {
        let mut datagram = strangers_initiation(pair);
        *datagram.payload.last_mut().unwrap() ^= 1;
        datagram.payload[INITIATION_LEN - 2 * MAC_LEN] ^= 1;
        InFlight { from: source, ..datagram }
    };
    flood(&mut pair, HANDSHAKES_PER_SECOND_UNDER_LOAD + 10, spread);
    let datagram = spoilt(&pair);
    pair.deliver(datagram);
    assert_eq!(pair.refused.pop(), Some((Side::Two, DropReason::InvalidMac1)));
    let stranger = strangers_initiation(&pair);
    let proven = with_cookie(&mut pair, &stranger, source);
    (0..2 * HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE).for_each(|_| pair.deliver(proven.clone()));
    let datagram = spoilt(&pair);
    pair.deliver(datagram);
    assert_eq!(pair.refused.pop(), Some((Side::Two, DropReason::RateLimited)));
}

#[test]
fn one_flooding_source_does_not_put_the_others_under_load() {
    let mut pair = Pair::new();
    pair.advance(seconds(1));
    flood(&mut pair, HANDSHAKES_PER_SECOND_UNDER_LOAD * 10, |_| [198, 51, 100, 1]);
    pair.send(Side::One, b"x");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"x"]);
    assert_eq!(pair.refused, []);
}

#[test]
fn under_load_ends_when_the_flood_ends() {
    let mut pair = Pair::new();
    pair.advance(seconds(1));
    flood(&mut pair, HANDSHAKES_PER_SECOND_UNDER_LOAD * 2, spread);
    pair.advance(seconds(2));
    pair.send(Side::One, b"x");
    pair.settle();
    assert_eq!(pair.payloads(Side::Two), [b"x"]);
    assert_eq!(pair.refused, []);
}

#[test]
fn a_cookie_reply_moves_no_endpoint_and_is_bound_to_its_message() {
    let mut pair = Pair::new();
    pair.advance(seconds(1));
    flood(&mut pair, HANDSHAKES_PER_SECOND_UNDER_LOAD + 10, spread);
    pair.send(Side::One, b"x");
    let initiation = pair.wire.pop_front().unwrap();
    pair.deliver(initiation);
    let mut reply = pair.wire.pop_front().unwrap();
    assert!(matches!(Message::parse(&reply.payload), Ok(Message::CookieReply(_))));
    reply.from = "203.0.113.66:66".parse().unwrap();
    let mut forged = reply.clone();
    forged.payload[50] ^= 1;
    pair.refused.clear();
    pair.deliver(forged);
    assert_eq!(pair.refused, [(Side::One, DropReason::InvalidCookieReply)]);
    pair.deliver(reply.clone());
    assert_eq!(pair.refused.len(), 1);
    pair.deliver(reply);
    assert_eq!(pair.refused.len(), 2, "a reply is taken once");
    assert_eq!(pair.status(Side::One).endpoint.unwrap().remote, Side::Two.address());
}

#[test]
fn a_flood_leaves_no_state_behind() {
    let mut pair = Pair::new();
    pair.advance(seconds(1));
    let before = format!("{:?}", pair.two.router());
    flood(&mut pair, HANDSHAKES_PER_SECOND_AND_SOURCE * 50, spread);
    let after = format!("{:?}", pair.two.router());
    assert_eq!(after, before);
    assert!(pair.two.poll_timeout().is_none());
}

/// The same initiation, with the cookie that side two gives `from`.
fn with_cookie(pair: &mut Pair, datagram: &InFlight, from: SocketAddr) -> InFlight {
    let receiver = MacKeys::new(&Side::Two.public_key());
    let (mut jar, mut datagram) = (CookieJar::default(), InFlight { from, ..datagram.clone() });
    jar.write_macs(pair.now, &receiver, &mut datagram.payload);
    pair.deliver(datagram.clone());
    let (_, _, reply) = pair.sent.last().expect("it is under load");
    let Ok(Message::CookieReply(reply)) = Message::parse(reply) else { panic!("no cookie reply") };
    jar.consume_reply(pair.now, &receiver, &reply).unwrap();
    jar.write_macs(pair.now, &receiver, &mut datagram.payload);
    datagram
}

/// Side two's thread for handshakes: a queue before it, and what it spends on each message.
#[derive(Default)]
struct SlowPath {
    queue: VecDeque<InFlight>,
    spent: Duration,
}

impl SlowPath {
    const QUEUE: usize = 1024;
    const REFUSAL: Duration = Duration::from_micros(8);
    /// Two X25519 results, and what decrypting takes.
    const WORK: Duration = Duration::from_micros(150);

    fn offer(&mut self, datagram: InFlight) {
        if self.queue.len() < Self::QUEUE {
            self.queue.push_back(datagram);
        }
    }

    fn work_for(&mut self, pair: &mut Pair, time: Duration) {
        while self.spent < time
            && let Some(datagram) = self.queue.pop_front()
        {
            pair.refused.clear();
            pair.deliver(datagram);
            let is_cheap = matches!(pair.refused[..], [(_, DropReason::CookieDemanded | DropReason::RateLimited)]);
            self.spent += if is_cheap { Self::REFUSAL } else { Self::WORK };
        }
        self.spent = self.spent.saturating_sub(time);
    }
}

#[test]
fn re_pairing_under_a_flood_from_a_hundred_proven_sources_takes_three_seconds_at_most() {
    let mut pair = Pair::with(|two| two.watched = true, |one| one.endpoints = Vec::new());
    pair.advance(seconds(1));
    assert!(pair.is_up(Side::One));
    flood(&mut pair, HANDSHAKES_PER_SECOND_UNDER_LOAD + 10, spread);
    let datagram = strangers_initiation(&pair);
    // Every fifth of them behind side one's own address.
    let sources = (0..100_u16).map(|i| match i % 5 {
        0 => SocketAddr::new(Side::One.address().ip(), 1000 + i),
        _ => SocketAddr::from(([198, 51, 100, i as u8], 1000)),
    });
    let proven: Vec<InFlight> =
        sources.collect::<Vec<_>>().into_iter().map(|from| with_cookie(&mut pair, &datagram, from)).collect();

    let (mut slow_path, millisecond) = (SlowPath::default(), Duration::from_millis(1));
    let mut flooded = proven.iter().cycle();
    let mut floods_for = |pair: &mut Pair, time: Duration, done: &dyn Fn(&mut Pair) -> bool| {
        let start = pair.now;
        while pair.now - start < time && !done(pair) {
            // Twenty thousand a second: a twentieth of what a core of the attacker's can send.
            flooded.by_ref().take(20).cloned().for_each(|datagram| slow_path.offer(datagram));
            let soon = pair.now + millisecond;
            let is_arriving = |datagram: &InFlight| datagram.to == Side::Two && datagram.arrives_at <= soon;
            let (arriving, rest): (VecDeque<InFlight>, _) =
                std::mem::take(&mut pair.wire).into_iter().partition(is_arriving);
            pair.wire = rest;
            arriving.into_iter().for_each(|datagram| slow_path.offer(datagram));
            slow_path.work_for(pair, millisecond);
            pair.sent.clear();
            pair.advance(millisecond);
        }
        pair.now - start
    };
    floods_for(&mut pair, seconds(3), &|_| false);
    let now = pair.now;
    pair.restart(Side::One, UNIX_TIME + seconds(100));
    pair.one.upsert_peer(now, PeerConfig { watched: true, ..peer_config(Side::Two) });
    let took = floods_for(&mut pair, seconds(10), &|pair| pair.is_up(Side::One) && pair.is_up(Side::Two));
    assert!(took <= seconds(3), "{took:?}");
}
