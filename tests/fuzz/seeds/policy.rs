//! Where the fuzzer of policies begins, and what is to come of it.

use crate::policy::{EXPOSE, EXTENDED, FRAGMENT, LONG, Outcome, QUOTES, RAW, RECEIVE, SEND, SPOILT, V6, WAIT};

const NOTHING: &[u8] = &[0];
const TCP_80: &[u8] = &[1, 0, 80, 80];
/// In the first of the networks behind us.
const TCP_80_BEHIND: &[u8] = &[1, 8, 80, 80];
const UDP_53: &[u8] = &[1, 3, 53, 53];
const ECHO: &[u8] = &[1, 6, 0, 0];
const PROTOCOL_47: &[u8] = &[1, 7, 0, 47];

const TCP: u8 = 0;
const UDP: u8 = 1;
const ICMP: u8 = 2;
const ICMP_V6: u8 = 3;
const GRE: u8 = 6;
const ESP: u8 = 50;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Between us and the first peer: shape, protocol, two ports or type and identifier, flags, and what the shape asks for.
fn packet(step: u8, shape: u8, protocol: u8, numbers: [u8; 3], rest: &[u8]) -> Vec<u8> {
    [&[step, 0], body(shape, protocol, numbers).as_slice(), rest].concat()
}

fn body(shape: u8, protocol: u8, [one, two, flags]: [u8; 3]) -> Vec<u8> {
    vec![shape, 1, protocol, one, two, flags]
}

/// TCP between the first peer and a host behind us: two ports and flags.
fn tcp_behind(step: u8, host: u8, [one, two, flags]: [u8; 3]) -> Vec<u8> {
    vec![step, 0, 0, 0x80 | host << 2 | 1, TCP, one, two, flags]
}

fn seed(exposed: &[u8], steps: &[Vec<u8>]) -> Vec<u8> {
    [exposed, NOTHING, &steps.concat()].concat()
}

/// The first three bits are the packet's identification.
fn fragment(more: u8, offset: u8, identification: u8) -> [u8; 1] {
    [offset << 4 | more << 3 | identification]
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let receive = |protocol, numbers| packet(RECEIVE, 0, protocol, numbers, &[]);
    let receive_v6 = |protocol, numbers| packet(RECEIVE, V6, protocol, numbers, &[]);
    let passed = |passed, refused| Outcome { passed, refused };
    let tcp = [receive(TCP, [40, 80, SYN]), receive(TCP, [40, 81, SYN]), receive(TCP, [40, 81, ACK])];
    let query = packet(SEND, 0, UDP, [40, 53, 0], &[]);
    let (answer, late) = (receive(UDP, [53, 40, 0]), vec![WAIT, 121]);
    let answers = [query.clone(), answer.clone(), receive(UDP, [53, 41, 0]), late, answer];
    let ping = packet(SEND, V6, ICMP_V6, [128, 7, 0], &[]);
    let pong = receive_v6(ICMP_V6, [129, 7, 0]);
    let pings = [receive_v6(ICMP_V6, [128, 7, 0]), pong.clone(), ping, pong];
    let part = |more, offset, identification| {
        packet(RECEIVE, FRAGMENT | LONG, UDP, [40, 53, 0], &fragment(more, offset, identification))
    };
    let fragments = [part(1, 0, 1), part(0, 8, 1), part(0, 1, 1), part(0, 8, 2)];
    let about = |port| {
        let quoted = [body(0, UDP, [40, port, 0]), vec![28]].concat();
        packet(RECEIVE, QUOTES, ICMP, [3, 0, 0], &quoted)
    };
    let behind = |headers| packet(RECEIVE, V6 | EXTENDED, TCP, [80, 40, ACK], &[headers]);
    let reload = [receive(TCP, [40, 80, SYN]), [&[EXPOSE, 0], UDP_53].concat(), receive(TCP, [40, 80, SYN])];
    let spoilt = packet(SPOILT, 0, TCP, [80, 40, ACK], &[1, 33, ACK | SYN]);
    let raw = [&[RAW, 0, 20][..], &[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 47, 0, 0, 10, 77, 0, 1, 10, 77, 0, 9]].concat();
    let network = [
        tcp_behind(RECEIVE, 12, [40, 80, SYN]),
        tcp_behind(RECEIVE, 12, [40, 81, SYN]),
        tcp_behind(RECEIVE, 5, [40, 80, SYN]),
        receive(TCP, [40, 80, SYN]),
    ];
    let gateway = [
        tcp_behind(SEND, 12, [40, 80, SYN]),
        tcp_behind(RECEIVE, 12, [80, 40, ACK]),
        tcp_behind(RECEIVE, 12, [80, 40, 0]),
        tcp_behind(RECEIVE, 12, [80, 41, ACK]),
        tcp_behind(RECEIVE, 13, [80, 40, ACK]),
    ];
    vec![
        ("network", seed(TCP_80_BEHIND, &network), passed(1, 3)),
        ("gateway", seed(NOTHING, &gateway), passed(1, 3)),
        ("tcp", seed(TCP_80, &tcp), passed(2, 1)),
        ("udp-answers", seed(NOTHING, &answers), passed(1, 2)),
        ("pings", seed(ECHO, &pings), passed(2, 1)),
        ("fragments", seed(UDP_53, &fragments), passed(2, 2)),
        ("errors", seed(NOTHING, &[query, about(53), about(54)]), passed(1, 1)),
        ("protocols", seed(PROTOCOL_47, &[receive(GRE, [0; 3]), receive(ESP, [0; 3])]), passed(1, 1)),
        ("extension-headers", seed(NOTHING, &[behind(0x01), behind(0x41)]), passed(1, 1)),
        ("reload", seed(TCP_80, &reload), passed(1, 1)),
        ("spoilt-and-raw", seed(NOTHING, &[spoilt, raw]), passed(0, 2)),
    ]
}
