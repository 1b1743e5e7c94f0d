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

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A policy with what it remembers, and a clock.
struct Judge {
    policy: Policy,
    flows: Flows,
    now: Instant,
}

impl Judge {
    fn exposing(services: &[Service]) -> Self {
        let now = start();
        Self { policy: Policy::exposing(services.iter().copied()), flows: Flows::new(now, &[7; 32]), now }
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
fn what_opens_no_tcp_connection_passes_between_any_ports() {
    let judge = Judge::exposing(&[]);
    for (inward, _) in ways() {
        for flags in [ACK, SYN | ACK, ACK | 0x08, 0x04, 0x01 | ACK, 0] {
            assert_eq!(judge.judge(&tcp(inward, 8080, 40_000, flags)), Ok(()), "{flags:#x}");
        }
        let [source, destination] = inward;
        let cut = packet([source, destination], PROTOCOL_TCP, &tcp(inward, 1, 2, ACK)[20..][..13]);
        assert_eq!(judge.judge(&cut), Err(DropReason::MalformedPacket));
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
fn any_means_any() {
    let judge = Judge::exposing(&[Service::Any]);
    for (inward, _) in ways() {
        for packet in [
            tcp(inward, 1, 22, SYN),
            udp(inward, 1, 22),
            echo_reply(inward, 1),
            icmp(inward, [5, 137], &[0; 60]),
            packet(inward, 47, &[]),
        ] {
            assert_eq!(judge.judge(&packet), Ok(()));
        }
    }
}

#[test]
fn ranges_may_touch_overlap_and_come_in_any_order() {
    let range = |first, last| PortRange { first, last };
    let ports =
        Ports::new([range(500, 600), range(1, 10), range(11, 20), range(550, 560), range(65_535, 65_535)].into_iter());
    assert_eq!(*ports.0, [range(1, 20), range(500, 600), range(65_535, 65_535)]);
    for (port, is_in) in [(0, false), (1, true), (20, true), (21, false), (500, true), (601, false), (65_535, true)] {
        assert_eq!(ports.contains(port), is_in, "{port}");
    }
}

/// What is sent and received, of few hosts, ports and protocols, so that much of it belongs together.
#[derive(Debug, Clone)]
enum Step {
    Send(u8, u16, u16),
    Receive(u8, u16, u16, u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let port = || 1_u16..5;
    prop_oneof![
        (0_u8..3, port(), port()).prop_map(|(kind, source, destination)| Step::Send(kind, source, destination)),
        (0_u8..4, port(), port(), 0_u8..32).prop_map(|(kind, source, destination, flags)| Step::Receive(
            kind,
            source,
            destination,
            flags
        )),
        (0_u64..100).prop_map(Step::Wait),
    ]
}

proptest! {
    /// The twin has a list of exposed ports, and a map of all that was sent.
    #[test]
    fn agrees_with_a_slow_twin(
        exposed in prop::collection::vec((any::<bool>(), 1_u16..5), 0..3),
        steps in prop::collection::vec(step(), 0..60),
        version in 0_usize..2,
    ) {
        let services: Vec<Service> = exposed
            .iter()
            .map(|(is_tcp, port)| if *is_tcp { Service::Tcp((*port).into()) } else { Service::Udp((*port).into()) })
            .collect();
        let mut judge = Judge::exposing(&services);
        let mut sent: HashMap<(u8, u16, u16), Instant> = HashMap::new();
        let (inward, outward) = ways()[version];
        for step in steps {
            match step {
                Step::Wait(seconds) => judge.wait(Duration::from_secs(seconds)),
                Step::Send(kind, source, destination) => {
                    judge.send(&match kind {
                        0 => tcp(outward, source, destination, SYN),
                        1 => udp(outward, source, destination),
                        _ => echo_request(outward, source),
                    });
                    let number = if kind == 2 { 0 } else { destination };
                    sent.insert((kind, source, number), judge.now);
                }
                Step::Receive(kind, source, destination, flags) => {
                    let packet = match kind {
                        0 => tcp(inward, source, destination, flags),
                        1 => udp(inward, source, destination),
                        2 => echo_reply(inward, source),
                        _ => echo_request(inward, source),
                    };
                    let was_sent = |key| sent.get(&key).is_some_and(|at: &Instant| judge.now - *at <= FLOW_LIFETIME);
                    let passes = match kind {
                        0 => exposed.contains(&(true, destination)) || flags & SYN == 0 || flags & ACK != 0,
                        1 => exposed.contains(&(false, destination)) || was_sent((1, destination, source)),
                        2 => was_sent((2, source, 0)),
                        _ => !exposed.is_empty(),
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
fn services_are_written_as_they_are_configured() {
    let written = |service: Service| service.to_string();
    assert_eq!([Service::Any, Service::Echo].map(written), ["any", "icmp-echo"]);
    assert_eq!(
        [PortRange::ALL, 53.into(), PortRange { first: 8000, last: 8080 }].map(Service::Udp).map(written),
        ["udp", "udp/53", "udp/8000-8080"]
    );
    assert_eq!([Service::Tcp(443.into()), Service::Protocol(47)].map(written), ["tcp/443", "ip/47"]);
}

#[test]
fn a_peer_that_is_told_of_refusals_reaches_what_it_reached_before() {
    let policy = Policy::exposing([Service::Echo]);
    assert_eq!(policy.clone().telling_of_refusal(), Policy { tells_of_refusal: true, ..policy });
}
