//! A peer that was broken into and writes another machine's address into its datagrams: that machine gets no more of us than
//! what came in its name, in datagrams and in bytes, whatever the datagrams say.

use std::net::SocketAddr;
use std::time::Duration;

use underpass::packet::frame::{Control, packet_header};
use underpass::packet::message::{Message, TAG_LEN, TRANSPORT_HEADER_LEN};
use underpass::packet::traffic_class::TrafficClass;
use underpass::proto::interface_mtu::MtuRange;

use crate::lane_paths::send_on;
use crate::pair::{InFlight, Pair, Side, inner_packet, seconds};
use crate::shares::encoded;

/// Whom the insider, side one, wants to harm.
const VICTIM: &str = "203.0.113.66:66";

/// With lanes and paths, bulk data towards the insider, and nothing under way.
fn pair() -> Pair {
    let mut pair = Pair::with_devices(|_, config| (config.send_lanes, config.mtu) = (2, Some(MtuRange::fixed(1400))));
    pair.connect(Side::One);
    pair.advance(seconds(1));
    pair
}

fn packet() -> Vec<u8> {
    let packet = inner_packet(Side::One.inner(), Side::Two.inner(), b"x");
    [&packet_header(0, packet.len() as u16)[..], &packet].concat()
}

/// Plaintexts that an insider may seal.
fn plaintexts() -> Vec<(&'static str, Vec<u8>)> {
    let controls = |controls: &[Control]| encoded(controls.iter().copied());
    let behind_packet = |controls: &[Control]| [packet(), encoded(controls.iter().copied())].concat();
    vec![
        ("keepalive", Vec::new()),
        ("padding", vec![0; 1000]),
        ("unknown frame", vec![9, 0, 2, 0, 1, 2]),
        ("malformed frame", vec![1, 0, 255, 255]),
        ("packet", packet()),
        ("packets", packet().repeat(20)),
        ("train", [packet(), [&[1, 3][..], &packet()[2..]].concat()].concat()),
        ("ping", controls(&[Control::Ping(1)])),
        ("pings", encoded((0..107).map(Control::Ping))),
        ("long ping", [controls(&[Control::Ping(1)]), vec![0; 1000]].concat()),
        ("probe", controls(&[Control::Probe(1)])),
        ("probes", encoded((0..107).map(Control::Probe))),
        ("long probe", [controls(&[Control::Probe(1)]), vec![0; 1000]].concat()),
        ("ping and probe", controls(&[Control::Ping(1), Control::Probe(2)])),
        ("probe and ping", controls(&[Control::Probe(1), Control::Ping(2)])),
        ("keepalive and probe", [vec![9, 0, 0, 0], controls(&[Control::Probe(1)])].concat()),
        ("packet and ping", behind_packet(&[Control::Ping(1)])),
        ("packet and probe", behind_packet(&[Control::Probe(1)])),
        ("pong", controls(&[Control::Pong(1)])),
        ("draining", controls(&[Control::Draining(true)])),
        ("unknown control frame", controls(&[Control::Unknown(200)])),
        ("goodbye", controls(&[Control::Goodbye])),
    ]
}

fn sealed(pair: &mut Pair, lane: u8, plaintext: &[u8]) -> Vec<u8> {
    let mut payload = [&[0; TRANSPORT_HEADER_LEN], plaintext, &[0; TAG_LEN]].concat();
    let now = pair.now;
    let router = pair.one.router();
    router.route(now, Side::Two.inner().into()).unwrap().seal(now, lane, &mut payload, &mut Vec::new()).unwrap();
    payload
}

fn in_the_victims_name(pair: &mut Pair, payload: Vec<u8>) -> usize {
    let length = payload.len();
    pair.deliver(InFlight {
        arrives_at: pair.now,
        to: Side::Two,
        from: VICTIM.parse().unwrap(),
        to_second: false,
        traffic_class: TrafficClass::default(),
        payload,
    });
    length
}

/// Two has bulk data for the insider, on all its lanes, who is otherwise honest for some seconds.
fn go_on(pair: &mut Pair, lanes: u8) {
    for _ in 0..100 {
        pair.send(Side::Two, &[0; 1000]);
        for lane in (1..lanes).filter(|_| pair.is_up(Side::Two)).collect::<Vec<u8>>() {
            send_on(pair, Side::Two, lane);
        }
        pair.advance(Duration::from_millis(50));
    }
}

/// Checks what went to the victim against what came from there.
#[track_caller]
fn check(pair: &Pair, kind: &str, sent: &[usize]) {
    let victim: SocketAddr = VICTIM.parse().unwrap();
    let reflected: Vec<usize> = pair.astray.iter().filter(|(to, _)| *to == victim).map(|(_, length)| *length).collect();
    let bytes = |lengths: &[usize]| lengths.iter().sum::<usize>();
    assert!(reflected.len() <= sent.len(), "{kind}: {} datagrams for {}", reflected.len(), sent.len());
    assert!(bytes(&reflected) <= bytes(sent), "{kind}: {} bytes for {}", bytes(&reflected), bytes(sent));
}

#[test]
fn transport_data_of_every_kind_draws_no_more_than_itself_to_an_address_that_has_not_proven_itself() {
    for (kind, plaintext) in plaintexts() {
        for (lane, interval) in [(0, 0), (0, 30), (1, 0), (1, 30)] {
            let mut pair = pair();
            let mut sent = Vec::new();
            for _ in 0..10 {
                if pair.is_up(Side::One) && pair.is_up(Side::Two) {
                    let payload = sealed(&mut pair, lane, &plaintext);
                    sent.push(in_the_victims_name(&mut pair, payload));
                }
                pair.advance(Duration::from_millis(interval));
            }
            go_on(&mut pair, 2);
            check(&pair, &format!("{kind} on lane {lane} every {interval} ms"), &sent);
        }
    }
}

#[test]
fn what_confirms_a_session_draws_no_more_than_itself_either() {
    for (kind, plaintext) in plaintexts() {
        let mut pair = pair();
        // The insider makes a session and confirms it in the victim's name.
        pair.restart_as(Side::One, seconds(1_700_000_100), |config| config.send_lanes = 2);
        pair.lose = Box::new(|side, payload| {
            side == Side::One && !matches!(Message::parse(payload), Ok(Message::Initiation(_)))
        });
        pair.send(Side::One, b"hello");
        pair.advance(Duration::from_millis(50));
        let payload = sealed(&mut pair, 0, &plaintext);
        let sent = in_the_victims_name(&mut pair, payload);
        go_on(&mut pair, 2);
        check(&pair, kind, &[sent]);
    }
}

#[test]
fn handshakes_draw_no_more_than_themselves() {
    // An initiation, again and again.
    let mut pair = pair();
    let mut sent = Vec::new();
    for attempt in 0..5 {
        pair.restart_as(Side::One, seconds(1_700_000_100 + attempt), |config| config.send_lanes = 2);
        pair.send(Side::One, b"hello");
        let initiation = pair.wire.pop_back().unwrap();
        pair.wire.clear();
        sent.push(in_the_victims_name(&mut pair, initiation.payload.clone()));
        sent.push(in_the_victims_name(&mut pair, initiation.payload));
        pair.advance(Duration::from_millis(100));
    }
    pair.lose = Box::new(|side, _| side == Side::One);
    go_on(&mut pair, 2);
    check(&pair, "initiation", &sent);

    // A response, to whoever called; nothing else is heard of the insider, who is looked for.
    let mut pair = Pair::with(|_| (), |one| one.watched = true);
    let now = pair.now;
    pair.two.handle_timeout(now);
    pair.collect();
    pair.advance(Duration::from_millis(10));
    let response =
        pair.wire.iter().position(|datagram| matches!(Message::parse(&datagram.payload), Ok(Message::Response(_))));
    let response = pair.wire.remove(response.expect("side two has called")).unwrap();
    pair.lose = Box::new(|side, _| side == Side::One);
    let sent = in_the_victims_name(&mut pair, response.payload);
    go_on(&mut pair, 1);
    check(&pair, "response", &[sent]);
    let cookie_reply = [&[3, 1][..], &[0; 62]].concat();
    let sent = [sent, in_the_victims_name(&mut pair, cookie_reply)];
    go_on(&mut pair, 1);
    check(&pair, "cookie reply", &sent);
}
