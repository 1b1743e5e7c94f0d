use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::super::tests::start;
use super::*;
use crate::packet::ip::{PROTOCOL_ICMP, PROTOCOL_ICMPV6};

/// This machine, and the peer's.
const HERE: [&str; 2] = ["10.77.0.1", "fd77::1"];
const PEER: [&str; 2] = ["10.77.0.11", "fd77::11"];
const STRANGER: [&str; 2] = ["10.77.0.12", "fd77::12"];

/// In a network behind this machine, and in none that is exposed.
const BEHIND: [&str; 2] = ["10.30.0.5", "fd30::5"];
const ELSEWHERE: [&str; 2] = ["10.31.0.5", "fd31::5"];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A policy with what it remembers, and a clock.
struct Judge {
    policy: Policy,
    flows: Flows,
    now: Instant,
}

impl Judge {
    fn exposing(services: &[Service]) -> Self {
        Self::with_policy(Policy::exposing(services.iter().copied()))
    }

    /// Of this machine nothing is exposed, and `services` are in the networks of [`BEHIND`].
    fn exposing_behind(services: &[Service]) -> Self {
        let networks = ["10.30.0.0/24", "fd30::/64"].map(|network| network.parse().unwrap());
        let within = |service: &Service| networks.map(|network| service.within(network));
        Self::with_policy(Policy::exposing(services.iter().flat_map(within)))
    }

    fn with_policy(policy: Policy) -> Self {
        let now = start();
        let policy = policy.with_own_addresses(HERE.map(|address| address.parse().unwrap()));
        Self { policy, flows: Flows::new(now, &[7; 32]), now }
    }

    fn send(&self, packet: &[u8]) {
        self.policy.on_sent(self.now, &self.flows, &IpPacket::parse(packet).unwrap());
    }

    fn judge(&self, packet: &[u8]) -> Result<(), DropReason> {
        let is_peers = |address: IpAddr| PEER.contains(&address.to_string().as_str());
        self.policy.judge(self.now, &self.flows, &IpPacket::parse(packet).unwrap(), is_peers)
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }
}

fn packet([source, destination]: [&str; 2], protocol: u8, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    let mut packet = match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0, 0, 0, 0xab, 0xcd, 0, 0, 64, protocol, 0, 0];
            packet[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            packet.extend([source.octets(), destination.octets()].concat());
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet.extend([source.octets(), destination.octets()].concat());
            packet
        }
        _ => unreachable!("both are of one version"),
    };
    packet.extend(message);
    packet
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn tcp(way: [&str; 2], source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    packet(way, PROTOCOL_TCP, &header)
}

fn udp(way: [&str; 2], source: u16, destination: u16) -> Vec<u8> {
    packet(way, PROTOCOL_UDP, &[ports(source, destination), vec![0, 12, 0, 0], b"data".to_vec()].concat())
}

fn icmp(way: [&str; 2], kinds: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let is_v4 = way[0].contains('.');
    let (protocol, kind) = if is_v4 { (PROTOCOL_ICMP, kinds[0]) } else { (PROTOCOL_ICMPV6, kinds[1]) };
    packet(way, protocol, &[&[kind, 0, 0, 0], rest].concat())
}

fn echo_request(way: [&str; 2], identifier: u16) -> Vec<u8> {
    icmp(way, [8, 128], &[&identifier.to_be_bytes()[..], &[0, 1]].concat())
}

fn echo_reply(way: [&str; 2], identifier: u16) -> Vec<u8> {
    icmp(way, [0, 129], &[&identifier.to_be_bytes()[..], &[0, 1]].concat())
}

/// An error about `quoted`, cut to what RFC 792 has quoted at least.
fn unreachable(way: [&str; 2], quoted: &[u8]) -> Vec<u8> {
    let header_len = if way[0].contains('.') { 20 } else { 40 };
    icmp(way, [3, 1], &[&[0; 4], &quoted[..header_len + 8]].concat())
}

/// The same, in fragments of these bytes of the message.
fn fragments(whole: &[u8], length: usize) -> Vec<Vec<u8>> {
    let is_v4 = whole[0] >> 4 == 4;
    let (header, message) = whole.split_at(if is_v4 { 20 } else { 40 });
    let count = message.len().div_ceil(length);
    let fragment = |(index, part): (usize, &[u8])| {
        let offset = u16::try_from(index * length / 8).unwrap();
        let more = u16::from(index + 1 < count);
        let mut header = header.to_vec();
        if is_v4 {
            header[2..4].copy_from_slice(&u16::try_from(20 + part.len()).unwrap().to_be_bytes());
            header[6..8].copy_from_slice(&(more << 13 | offset).to_be_bytes());
            return [header, part.to_vec()].concat();
        }
        let extension = [&[header[6], 0][..], &(offset << 3 | more).to_be_bytes(), &[0, 0, 0xab, 0xcd]].concat();
        header[4..6].copy_from_slice(&u16::try_from(8 + part.len()).unwrap().to_be_bytes());
        header[6] = 44;
        [header, extension, part.to_vec()].concat()
    };
    message.chunks(length).enumerate().map(fragment).collect()
}

/// The way in and out, of both versions.
fn ways() -> [([&'static str; 2], [&'static str; 2]); 2] {
    [0, 1].map(|version| ([PEER[version], HERE[version]], [HERE[version], PEER[version]]))
}

#[test]
fn tcp_connections_are_opened_to_exposed_ports_only() {
    let judge = Judge::exposing(&[Service::Tcp(8080.into()), Service::Udp(9000.into())]);
    for (inward, _) in ways() {
        for opening in [SYN, SYN | 0xc0, SYN | 0x01, SYN | 0x04, SYN | 0x08] {
            assert_eq!(judge.judge(&tcp(inward, 40_000, 8080, opening)), Ok(()));
            assert_eq!(judge.judge(&tcp(inward, 8080, 9000, opening)), Err(DropReason::NotExposed), "{opening:#x}");
        }
    }
}

#[test]
fn what_may_belong_to_a_tcp_connection_passes_between_any_ports() {
    let judge = Judge::exposing(&[]);
    for (inward, _) in ways() {
        for flags in [ACK, SYN | ACK, ACK | 0x08, RST, RST | ACK, FIN | ACK] {
            assert_eq!(judge.judge(&tcp(inward, 8080, 40_000, flags)), Ok(()), "{flags:#x}");
        }
        let cut = packet(inward, PROTOCOL_TCP, &tcp(inward, 1, 2, ACK)[tcp(inward, 1, 2, ACK).len() - 20..][..13]);
        assert_eq!(judge.judge(&cut), Err(DropReason::MalformedPacket));
    }
}

#[test]
fn no_scan_by_flags_that_answer_nothing_passes() {
    const URG: u8 = 0x20;
    let [nothing, port] = [&[][..], &[Service::Tcp(80.into())]].map(Judge::exposing);
    for (inward, _) in ways() {
        for (scan, flags) in
            [("FIN", FIN), ("NULL", 0), ("XMAS", FIN | 0x08 | URG), ("URG", URG), ("SYN FIN", SYN | FIN)]
        {
            assert_eq!(nothing.judge(&tcp(inward, 40_000, 80, flags)), Err(DropReason::NotExposed), "{scan}");
            assert_eq!(port.judge(&tcp(inward, 40_000, 81, flags)), Err(DropReason::NotExposed), "{scan}");
        }
        for flags in 0..=u8::MAX {
            let may_be_known = flags & ACK != 0 || flags & (RST | SYN) == RST;
            assert_eq!(nothing.judge(&tcp(inward, 40_000, 80, flags)).is_ok(), may_be_known, "{flags:#x}");
        }
    }
}

#[test]
fn a_tcp_header_that_says_that_it_is_cut_is_refused() {
    let judge = Judge::exposing(&[]);
    for (inward, _) in ways() {
        let whole = tcp(inward, 8080, 40_000, ACK);
        let at = whole.len() - 8;
        for (words, expected) in [(0, false), (4, false), (5, true), (6, false), (15, false)] {
            let mut packet = whole.clone();
            packet[at] = words << 4;
            let expected = if expected { Ok(()) } else { Err(DropReason::MalformedPacket) };
            assert_eq!(judge.judge(&packet), expected, "{words}");
        }
    }
}

/// The way to each of these addresses, and back.
fn ways_to(targets: [&'static str; 2]) -> [([&'static str; 2], [&'static str; 2]); 2] {
    [0, 1].map(|version| ([PEER[version], targets[version]], [targets[version], PEER[version]]))
}

#[test]
fn what_is_exposed_of_this_machine_is_exposed_nowhere_else() {
    let services = [Service::Tcp(80.into()), Service::Udp(53.into()), Service::Protocol(47), Service::Echo];
    for judge in [Judge::exposing(&services), Judge::exposing(&[Service::Any]), Judge::exposing(&[])] {
        for (inward, _) in [ways_to(BEHIND), ways_to(ELSEWHERE)].concat() {
            for packet in [
                tcp(inward, 40_000, 80, SYN),
                tcp(inward, 40_000, 80, ACK),
                tcp(inward, 40_000, 80, RST),
                tcp(inward, 40_000, 80, SYN | ACK),
                udp(inward, 40_000, 53),
                echo_request(inward, 1),
                echo_reply(inward, 1),
                icmp(inward, [5, 137], &[0; 60]),
                packet(inward, 47, &[]),
                unreachable(inward, &tcp([inward[1], inward[0]], 1, 2, ACK)),
            ] {
                assert_eq!(judge.judge(&packet), Err(DropReason::DestinationNotExposed), "{inward:?}");
            }
        }
    }
}

#[test]
fn a_network_is_exposed_as_far_as_it_goes_and_this_machine_answers_pings() {
    let judge = Judge::exposing_behind(&[Service::Tcp(80.into()), Service::Udp(53.into())]);
    for (inward, _) in ways_to(BEHIND) {
        assert_eq!(judge.judge(&tcp(inward, 40_000, 80, SYN)), Ok(()));
        assert_eq!(judge.judge(&tcp(inward, 40_000, 80, ACK)), Ok(()));
        assert_eq!(judge.judge(&udp(inward, 40_000, 53)), Ok(()));
        assert_eq!(judge.judge(&echo_request(inward, 1)), Ok(()));
        for packet in [tcp(inward, 40_000, 81, SYN), tcp(inward, 40_000, 81, ACK), udp(inward, 40_000, 54)] {
            assert_eq!(judge.judge(&packet), Err(DropReason::NotExposed));
        }
    }
    for (inward, _) in ways_to(ELSEWHERE) {
        assert_eq!(judge.judge(&tcp(inward, 40_000, 80, SYN)), Err(DropReason::DestinationNotExposed));
    }
    for (inward, _) in ways() {
        assert_eq!(judge.judge(&tcp(inward, 40_000, 80, SYN)), Err(DropReason::NotExposed));
        assert_eq!(judge.judge(&echo_request(inward, 1)), Ok(()));
    }
}

#[test]
fn networks_that_overlap_each_count_and_this_machine_lies_in_those_around_it() {
    let within = |service: Service, network: &str| service.within(network.parse().unwrap());
    let judge = Judge::with_policy(Policy::exposing([
        within(Service::Tcp(80.into()), "10.0.0.0/8"),
        within(Service::Tcp(81.into()), "10.30.0.0/24"),
    ]));
    for (target, ports) in [(BEHIND[0], &[80, 81][..]), (ELSEWHERE[0], &[80]), (HERE[0], &[80])] {
        for port in [80, 81, 82] {
            let passes = judge.judge(&tcp([PEER[0], target], 40_000, port, SYN)).is_ok();
            assert_eq!(passes, ports.contains(&port), "{target} {port}");
        }
    }
}

#[test]
fn nothing_for_many_machines_or_for_none_is_exposed() {
    let judge = Judge::with_policy(Policy::exposing(Exposure::everything()));
    for target in ["224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0", "127.0.0.1"] {
        let refused = judge.judge(&udp([PEER[0], target], 1, 53));
        assert_eq!(refused, Err(DropReason::DestinationNotExposed), "{target}");
    }
    for target in ["ff02::1", "::", "::1"] {
        let refused = judge.judge(&udp([PEER[1], target], 1, 53));
        assert_eq!(refused, Err(DropReason::DestinationNotExposed), "{target}");
    }
    for (inward, _) in [ways(), ways_to(BEHIND)].concat() {
        assert_eq!(judge.judge(&tcp(inward, 1, 2, SYN)), Ok(()));
    }
}

#[test]
fn connections_of_machines_behind_this_one_are_answered() {
    let mut judge = Judge::exposing(&[]);
    for (inward, outward) in ways_to(BEHIND) {
        let answers = [SYN | ACK, ACK, FIN | ACK, RST, RST | ACK];
        for flags in answers {
            let refused = judge.judge(&tcp(inward, 8080, 40_000, flags));
            assert_eq!(refused, Err(DropReason::DestinationNotExposed), "nothing was sent");
        }
        judge.send(&tcp(outward, 40_000, 8080, SYN));
        for flags in answers {
            assert_eq!(judge.judge(&tcp(inward, 8080, 40_000, flags)), Ok(()), "{flags:#x}");
        }
        for packet in [
            tcp(inward, 8080, 40_000, SYN),
            tcp(inward, 8080, 40_000, FIN),
            tcp(inward, 8081, 40_000, ACK),
            tcp(inward, 8080, 40_001, ACK),
            tcp(inward, 40_000, 8080, ACK),
            udp(inward, 8080, 40_000),
        ] {
            assert_eq!(judge.judge(&packet), Err(DropReason::DestinationNotExposed));
        }
        assert_eq!(judge.judge(&unreachable(inward, &tcp(outward, 40_000, 8080, SYN))), Ok(()));
        let other = judge.judge(&unreachable(inward, &tcp(outward, 40_001, 8080, SYN)));
        assert_eq!(other, Err(DropReason::DestinationNotExposed));
    }
    judge.wait(CONNECTION_LIFETIME);
    let (inward, outward) = ways_to(BEHIND)[0];
    assert_eq!(judge.judge(&tcp(inward, 8080, 40_000, ACK)), Ok(()), "it has been silent for as long as it may");
    judge.send(&tcp(outward, 40_000, 8080, ACK));
    judge.wait(CONNECTION_LIFETIME);
    assert_eq!(judge.judge(&tcp(inward, 8080, 40_000, ACK)), Ok(()));
    judge.wait(Duration::from_secs(1));
    assert_eq!(judge.judge(&tcp(inward, 8080, 40_000, ACK)), Err(DropReason::DestinationNotExposed));
}

#[test]
fn a_reset_and_an_answer_of_what_is_exposed_open_no_way_back() {
    let judge = Judge::exposing_behind(&[Service::Tcp(80.into())]);
    for (inward, outward) in ways_to(BEHIND) {
        judge.send(&tcp(outward, 80, 40_000, SYN | ACK));
        judge.send(&tcp(outward, 81, 40_000, RST | ACK));
        assert!(!judge.flows.connections.contains(judge.now, &of_ports(outward, 80, 40_000)));
        assert_eq!(judge.judge(&tcp(inward, 40_000, 81, ACK)), Err(DropReason::NotExposed));
    }
}

fn of_ports([near, far]: [&str; 2], near_port: u16, far_port: u16) -> Flow {
    let discriminator = u32::from(near_port) << 16 | u32::from(far_port);
    Flow { near: near.parse().unwrap(), far: far.parse().unwrap(), protocol: PROTOCOL_TCP, discriminator }
}

#[test]
fn udp_and_pings_of_machines_behind_this_one_are_answered() {
    let judge = Judge::exposing(&[]);
    for (inward, outward) in ways_to(BEHIND) {
        judge.send(&udp(outward, 40_000, 53));
        judge.send(&echo_request(outward, 5));
        assert_eq!(judge.judge(&udp(inward, 53, 40_000)), Ok(()));
        assert_eq!(judge.judge(&echo_reply(inward, 5)), Ok(()));
        assert_eq!(judge.judge(&unreachable(inward, &udp(outward, 40_000, 53))), Ok(()));
        assert_eq!(judge.judge(&udp(inward, 54, 40_000)), Err(DropReason::DestinationNotExposed));
    }
}

#[test]
fn fragments_for_a_network_pass_behind_the_first_and_nowhere_else() {
    let judge = Judge::exposing_behind(&[Service::Udp(53.into())]);
    for ((inward, _), (elsewhere, _)) in ways_to(BEHIND).into_iter().zip(ways_to(ELSEWHERE)) {
        let long = |way| packet(way, PROTOCOL_UDP, &[ports(40_000, 53), vec![0; 300]].concat());
        assert!(fragments(&long(inward), 128).iter().all(|part| judge.judge(part).is_ok()));
        for part in fragments(&long(elsewhere), 128) {
            assert_eq!(judge.judge(&part), Err(DropReason::DestinationNotExposed));
        }
    }
}

#[test]
fn udp_passes_to_exposed_ports_and_as_an_answer_for_a_while() {
    let mut judge = Judge::exposing(&[Service::Udp(53.into())]);
    for (inward, outward) in ways() {
        assert_eq!(judge.judge(&udp(inward, 40_000, 53)), Ok(()));
        assert_eq!(judge.judge(&udp(inward, 53, 40_000)), Err(DropReason::NotExposed));
        judge.send(&udp(outward, 40_000, 5353));
        assert_eq!(judge.judge(&udp(inward, 5353, 40_000)), Ok(()));
        for (source, destination) in [(5354, 40_000), (5353, 40_001), (40_000, 5353)] {
            assert_eq!(judge.judge(&udp(inward, source, destination)), Err(DropReason::NotExposed));
        }
    }
    judge.wait(FLOW_LIFETIME);
    assert_eq!(judge.judge(&udp(ways()[0].0, 5353, 40_000)), Ok(()));
    judge.wait(Duration::from_secs(1));
    assert_eq!(judge.judge(&udp(ways()[0].0, 5353, 40_000)), Err(DropReason::NotExposed));
}

#[test]
fn an_answer_does_not_keep_its_exchange_open() {
    let mut judge = Judge::exposing(&[]);
    let (inward, outward) = ways()[0];
    judge.send(&udp(outward, 40_000, 53));
    judge.wait(FLOW_LIFETIME);
    assert_eq!(judge.judge(&udp(inward, 53, 40_000)), Ok(()));
    judge.wait(Duration::from_secs(1));
    assert_eq!(judge.judge(&udp(inward, 53, 40_000)), Err(DropReason::NotExposed));
}

#[test]
fn pings_pass_where_anything_is_exposed_and_their_answers_to_who_sent_them() {
    for (inward, outward) in ways() {
        for (services, answer) in
            [(&[][..], Err(DropReason::NotExposed)), (&[Service::Echo], Ok(())), (&[Service::Tcp(80.into())], Ok(()))]
        {
            assert_eq!(Judge::exposing(services).judge(&echo_request(inward, 5)), answer);
        }
        let judge = Judge::exposing(&[Service::Echo]);
        assert_eq!(judge.judge(&echo_reply(inward, 5)), Err(DropReason::Unsolicited));
        judge.send(&echo_request(outward, 5));
        assert_eq!(judge.judge(&echo_reply(inward, 5)), Ok(()));
        assert_eq!(judge.judge(&echo_reply(inward, 6)), Err(DropReason::Unsolicited));
    }
}

#[test]
fn an_error_passes_if_it_is_about_what_was_sent_to_this_peer() {
    let judge = Judge::exposing(&[Service::Udp(53.into())]);
    for (version, (inward, outward)) in ways().into_iter().enumerate() {
        judge.send(&udp(outward, 40_000, 5353));
        judge.send(&echo_request(outward, 5));
        let [elsewhere, from_elsewhere] = [[HERE[version], STRANGER[version]], [STRANGER[version], PEER[version]]];
        for (what, quoted, passes) in [
            ("TCP", tcp(outward, 40_000, 8080, SYN), true),
            ("what was sent by UDP", udp(outward, 40_000, 5353), true),
            ("an answer by UDP", udp(outward, 53, 33_333), true),
            ("UDP that was not sent", udp(outward, 40_001, 5353), false),
            ("a ping that was sent", echo_request(outward, 5), true),
            ("a ping that was not", echo_request(outward, 6), false),
            ("an answer to a ping", echo_reply(outward, 9), true),
            ("the peer's own", udp(inward, 5353, 40_000), false),
            ("what was sent to another", tcp(elsewhere, 40_000, 8080, ACK), false),
            ("what another sent", tcp(from_elsewhere, 40_000, 8080, ACK), false),
            ("an error", unreachable(outward, &tcp(inward, 1, 2, ACK)), false),
            ("another protocol", packet(outward, 47, &[0; 8]), false),
        ] {
            let expected = if passes { Ok(()) } else { Err(DropReason::Unsolicited) };
            assert_eq!(judge.judge(&unreachable(inward, &quoted)), expected, "{what}");
        }
    }
}

#[test]
fn a_hop_behind_the_peer_may_report_an_error_and_a_later_fragment_is_not_enough_to_report() {
    let judge = Judge::exposing(&[]);
    let quoted = tcp([HERE[0], PEER[0]], 40_000, 8080, ACK);
    assert_eq!(judge.judge(&unreachable([STRANGER[0], HERE[0]], &quoted)), Ok(()));
    let mut later = quoted;
    later[7] = 64;
    assert_eq!(judge.judge(&unreachable([PEER[0], HERE[0]], &later)), Err(DropReason::Unsolicited));
}

#[test]
fn other_icmp_and_other_protocols_pass_only_by_their_number() {
    let [nothing, gre] = [&[][..], &[Service::Protocol(47)]].map(Judge::exposing);
    for (inward, _) in ways() {
        // Redirect; router advertisement; neighbour solicitation; timestamp; source quench.
        for kinds in [[5, 137], [9, 134], [10, 135], [13, 130], [4, 0]] {
            let refused = gre.judge(&icmp(inward, kinds, &[0; 60]));
            assert_eq!(refused, Err(DropReason::ProtocolNotExposed), "{kinds:?}");
        }
        for protocol in [0_u8, 2, 4, 41, 47, 50, 51, 59, 132, 255] {
            let packet = packet(inward, protocol, &[0; 60]);
            let expected = if protocol == 47 { Ok(()) } else { Err(DropReason::ProtocolNotExposed) };
            assert!(nothing.judge(&packet).is_err(), "{protocol}");
            // In IPv6 number 0 is a header of options, behind which another follows.
            assert_eq!(gre.judge(&packet).is_ok(), expected.is_ok(), "{protocol}");
        }
    }
    // ICMP of the other IP version.
    let request = packet([PEER[0], HERE[0]], PROTOCOL_ICMPV6, &[128, 0, 0, 0, 0, 5, 0, 1]);
    assert_eq!(gre.judge(&request), Err(DropReason::ProtocolNotExposed));
}

#[test]
fn source_routes_and_what_hides_the_protocol_are_refused() {
    let judge = Judge::exposing(&[Service::Tcp(PortRange::ALL)]);
    let mut options = tcp([PEER[0], HERE[0]], 40_000, 8080, ACK);
    options[0] = 0x46;
    options[20..24].copy_from_slice(&[0x83, 3, 4, 0]);
    assert_eq!(judge.judge(&options), Err(DropReason::ProtocolNotExposed));
    let routing = packet([PEER[1], HERE[1]], 43, &[PROTOCOL_TCP, 0, 0, 0, 0, 0, 0, 0, 0, 80]);
    assert_eq!(judge.judge(&routing), Err(DropReason::ProtocolNotExposed));
}

#[test]
fn fragments_pass_behind_the_first_if_that_may() {
    for (inward, outward) in ways() {
        let mut judge = Judge::exposing(&[]);
        judge.send(&udp(outward, 40_000, 53));
        let mut answer = udp(inward, 53, 40_000);
        answer.extend([0; 4000]);
        let length = answer.len();
        match inward[0].contains('.') {
            true => answer[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes()),
            false => answer[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes()),
        }
        let parts = fragments(&answer, 1208);
        assert_eq!(judge.judge(&parts[1]), Err(DropReason::StrayFragment), "nobody has seen the first");
        assert!(parts.iter().all(|part| judge.judge(part).is_ok()));
        judge.wait(FRAGMENT_LIFETIME + Duration::from_secs(1));
        assert_eq!(judge.judge(&parts[1]), Err(DropReason::StrayFragment), "nobody waits for it");

        // The source port's.
        let at = length - 4012;
        answer[at + 1] ^= 1;
        let parts = fragments(&answer, 1208);
        assert_eq!(judge.judge(&parts[0]), Err(DropReason::NotExposed));
        assert_eq!(judge.judge(&parts[1]), Err(DropReason::StrayFragment));
    }
}

#[test]
fn what_is_sent_in_later_fragments_opens_no_way_back() {
    for (inward, outward) in ways() {
        let judge = Judge::exposing(&[]);
        // The payload of what is sent may be a stranger's: here it looks like the header of a datagram.
        let sent = packet(outward, PROTOCOL_UDP, &[vec![0; 64], ports(40_000, 53), vec![0; 60]].concat());
        fragments(&sent, 64).iter().for_each(|part| judge.send(part));
        assert_eq!(judge.judge(&udp(inward, 53, 40_000)), Err(DropReason::NotExposed));
    }
}

#[test]
fn no_fragment_may_overwrite_what_another_was_judged_by() {
    for (inward, _) in ways() {
        let judge = Judge::exposing(&[]);
        let parts = fragments(&tcp(inward, 80, 22, ACK), 16);
        assert_eq!(judge.judge(&parts[0]), Err(DropReason::StrayFragment), "its header is cut");
        let mut whole = tcp(inward, 80, 22, ACK);
        whole.extend([0; 100]);
        let length = whole.len();
        match inward[0].contains('.') {
            true => whole[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes()),
            false => whole[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes()),
        }
        assert_eq!(judge.judge(&fragments(&whole, 56)[0]), Ok(()));
        for (offset, passes) in [(8, false), (16, false), (56, false), (64, true)] {
            let later = &fragments(&whole, offset)[1];
            assert_eq!(judge.judge(later).is_ok(), passes, "{offset}");
        }
    }
}

#[test]
fn any_means_any_of_this_machine() {
    let judge = Judge::exposing(&[Service::Any]);
    for (inward, _) in ways() {
        for packet in [
            tcp(inward, 1, 22, SYN),
            tcp(inward, 1, 22, 0),
            udp(inward, 1, 22),
            echo_reply(inward, 1),
            icmp(inward, [5, 137], &[0; 60]),
            packet(inward, 47, &[]),
        ] {
            assert_eq!(judge.judge(&packet), Ok(()));
        }
    }
}

/// A packet that is sent or received, of few hosts, ports and protocols, so that much of it belongs together. The first
/// number says whose: this machine's, or that of one in an exposed network or in none.
#[derive(Debug, Clone)]
enum Step {
    Send(usize, u8, u16, u16, u8),
    Receive(usize, u8, u16, u16, u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let port = || 1_u16..5;
    prop_oneof![
        (0_usize..3, 0_u8..3, port(), port(), 0_u8..32)
            .prop_map(|(host, kind, source, target, flags)| Step::Send(host, kind, source, target, flags)),
        (0_usize..3, 0_u8..4, port(), port(), 0_u8..32)
            .prop_map(|(host, kind, source, target, flags)| Step::Receive(host, kind, source, target, flags)),
        (0_u64..100).prop_map(Step::Wait),
        Just(Step::Wait(CONNECTION_LIFETIME.as_secs() - 100)),
    ]
}

proptest! {
    /// The twin has lists of exposed ports, and a map of all that was sent.
    #[test]
    fn agrees_with_a_slow_twin(
        exposed in prop::collection::vec((any::<bool>(), any::<bool>(), 1_u16..5), 0..4),
        steps in prop::collection::vec(step(), 0..60),
        version in 0_usize..2,
    ) {
        let network = [["10.30.0.0/24", "fd30::/64"][version]].map(|network| network.parse().unwrap());
        let exposures = exposed.iter().map(|(is_tcp, is_behind, port)| {
            let service = if *is_tcp { Service::Tcp((*port).into()) } else { Service::Udp((*port).into()) };
            if *is_behind { service.within(network[0]) } else { service.into() }
        });
        let mut judge = Judge::with_policy(Policy::exposing(exposures));
        let mut sent: HashMap<(usize, u8, u16, u16), Instant> = HashMap::new();
        let hosts = [HERE[version], BEHIND[version], ELSEWHERE[version]];
        let exposes = |host: usize, is_tcp, port| host < 2 && exposed.contains(&(is_tcp, host == 1, port));
        for step in steps {
            match step {
                Step::Wait(seconds) => judge.wait(Duration::from_secs(seconds)),
                Step::Send(host, kind, source, target, flags) => {
                    let outward = [hosts[host], PEER[version]];
                    judge.send(&match kind {
                        0 => tcp(outward, source, target, flags),
                        1 => udp(outward, source, target),
                        _ => echo_request(outward, source),
                    });
                    let number = if kind == 2 { 0 } else { target };
                    if kind > 0 || flags & RST == 0 && !exposes(host, true, source) {
                        sent.insert((host, kind, source, number), judge.now);
                    }
                }
                Step::Receive(host, kind, source, target, flags) => {
                    let inward = [PEER[version], hosts[host]];
                    let packet = match kind {
                        0 => tcp(inward, source, target, flags),
                        1 => udp(inward, source, target),
                        2 => echo_reply(inward, source),
                        _ => echo_request(inward, source),
                    };
                    let within = |key, lifetime| sent.get(&key).is_some_and(|at: &Instant| judge.now - *at <= lifetime);
                    let is_established = flags & ACK != 0 || flags & (SYN | RST) == RST;
                    let passes = match kind {
                        0 => exposes(host, true, target)
                            || is_established && (host == 0 || within((host, 0, target, source), CONNECTION_LIFETIME)),
                        1 => exposes(host, false, target) || within((host, 1, target, source), FLOW_LIFETIME),
                        2 => within((host, 2, source, 0), FLOW_LIFETIME),
                        _ => match host {
                            0 => !exposed.is_empty(),
                            1 => exposed.iter().any(|(_, is_behind, _)| *is_behind),
                            _ => false,
                        },
                    };
                    prop_assert_eq!(judge.judge(&packet).is_ok(), passes);
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), v6: bool) {
        let judge = Judge::exposing(&[Service::Udp(53.into())]);
        let [source, destination] = if v6 { [PEER[1], HERE[1]] } else { [PEER[0], HERE[0]] };
        for protocol in [0, 1, 6, 17, 43, 44, 58, 60] {
            let packet = packet([source, destination], protocol, &bytes);
            let _ = judge.judge(&packet);
            judge.send(&packet);
        }
    }
}

#[test]
fn a_peer_that_is_told_of_refusals_reaches_what_it_reached_before() {
    let policy = Policy::exposing([Service::Echo]);
    assert_eq!(policy.clone().telling_of_refusal(), Policy { tells_of_refusal: true, ..policy });
}
