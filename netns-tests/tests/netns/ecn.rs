//! What the IP headers outside say, and what becomes of it inside: marks of congestion (ECN) and classes of service (DSCP).

use std::collections::BTreeSet;
use std::time::Duration;

use netns_tests::capture::{Capture, TcpDump};
use netns_tests::crafted::{self, Between, RawSockets};
use netns_tests::packet_socket::PacketSocket;
use netns_tests::probe::{self, Iperf3, Ping};
use netns_tests::underpass::{Daemon, PORT};
use netns_tests::{Host, wait};

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINTS: [&str; 2] = ["10.2.0.2:51900", "[fd02::2]:51900"];
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;
/// The DSCP of expedited forwarding.
const EF: u8 = 46 << 2;

/// Two ends and a router that can mark what it forwards:
///
/// ```text
///   proxy ──────────────────── router ──────────────────── backend
///     wan 10.1.0.1/24   10.1.0.254  10.2.0.254   wan 10.2.0.2/24
///         fd01::1/64    fd01::fe    fd02::fe         fd02::2/64
/// ```
struct Marked {
    ends: Ends,
    router: Host,
}

impl Marked {
    /// The cables carry one datagram after the other.
    fn new(name: &str) -> Marked {
        let ends = Ends::new(name);
        let router = ends.lab.router("router");
        ends.lab.link(ends.proxy_port().wire(), router.port("left", ["10.1.0.254/24", "fd01::fe/64"]).wire());
        ends.lab.link(
            ends.backend.port("wan", ["10.2.0.2/24", "fd02::2/64"]).wire(),
            router.port("right", ["10.2.0.254/24", "fd02::fe/64"]).wire(),
        );
        for (host, routers) in [(&ends.proxy, ["10.1.0.254", "fd01::fe"]), (&ends.backend, ["10.2.0.254", "fd02::fe"])]
        {
            host.ip(&format!("route add default via {}", routers[0]));
            host.ip(&format!("-6 route add default via {}", routers[1]));
        }
        Marked { ends, router }
    }

    /// The router marks datagrams of this field on their way to the backend side.
    fn mark(&self, ecn: &str) {
        let rules = format!(
            "table inet marks {{
                chain forward {{
                    type filter hook forward priority 0;
                    iifname left ip ecn {ecn} ip ecn set ce
                    iifname left ip6 ecn {ecn} ip6 ecn set ce
                }}
            }}
            "
        );
        self.router.command("nft").args(["-f", "-"]).stdin(rules).run();
    }

    /// Starts both sides and waits until packets pass; returns proxy side and backend side.
    fn start(&self, endpoint: &str) -> (Daemon, Daemon) {
        let daemons = self.ends.start_calling(endpoint);
        daemons.0.wait_for_state("backend", "up");
        daemons
    }

    /// Sends datagrams of these traffic classes from the proxy side, by IPv4 and IPv6, one by one; returns those that came
    /// out at the backend side, in order.
    fn send(&self, classes: &[u8], wanted: usize) -> Vec<Vec<u8>> {
        let ear = PacketSocket::open(&self.ends.backend, "underpass0");
        let tunnel = RawSockets::open(&self.ends.proxy);
        for (from, to) in PROXY.iter().zip(BACKEND) {
            for class in classes {
                tunnel.send(&with_class(Between::new(from, to).udp(40_000, SINK, &[*class; 700]), *class));
            }
        }
        let mut heard = Vec::new();
        wait::until(&format!("{wanted} packets come out"), || {
            heard.extend(std::iter::from_fn(|| ear.receive()).filter(|packet| payload(packet).is_some()));
            heard.len() >= wanted
        });
        heard
    }
}

/// Nothing listens there.
const SINK: u16 = 40_001;

/// The same packet with another traffic class. The kernel computes an IPv4 header's checksum.
fn with_class(mut packet: Vec<u8>, class: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[1] = class;
    } else {
        packet[0] = 0x60 | class >> 4;
        packet[1] = class << 4;
    }
    packet
}

/// The traffic class of an IP packet.
fn class(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 }
}

/// The payload of a datagram that [`Marked::send`] has sent.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    let header_len = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let udp = packet.get(header_len..).filter(|udp| udp.len() > 8 && udp[2..4] == SINK.to_be_bytes())?;
    crafted::addresses(packet).map(|_| &udp[8..])
}

fn assert_header_checksum(packet: &[u8]) {
    if packet[0] >> 4 == 4 {
        let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{:02x?}", &packet[..20]);
    }
}

/// The traffic classes of the outer datagrams of a kind of message.
fn outer_classes(capture: &Capture, kinds: &[u8]) -> BTreeSet<u8> {
    let of_kind = |frame: &&Vec<u8>| {
        let datagram = netns_tests::frame::datagram(frame).filter(|udp| udp.destination.port() == PORT);
        datagram.is_some_and(|udp| kinds.contains(&frame[udp.payload.start]))
    };
    capture.frames.iter().filter(of_kind).map(|frame| class(&frame[14..])).collect()
}

const HANDSHAKE: &[u8] = &[1, 2, 3];
const DATA: &[u8] = &[4];

/// [`Marked`], without marks: each datagram says what its packet says, and nothing else is ECN-capable.
#[test]
fn a_packets_ecn_field_is_its_datagrams() {
    for endpoint in ENDPOINTS {
        let marked = Marked::new("ecn-copied");
        let sniffer = TcpDump::start(&marked.router, "left");
        let _daemons = marked.start(endpoint);
        let sent = [NOT_ECT, ECT_0, ECT_1, CE, ECT_0];
        let received = marked.send(&sent, 2 * sent.len());
        assert_eq!(received.iter().map(|packet| class(packet)).collect::<Vec<_>>(), [sent, sent].concat());
        let capture = sniffer.stop();
        assert_eq!(outer_classes(&capture, DATA), [NOT_ECT, ECT_1, ECT_0, CE].into());
        assert_eq!(outer_classes(&capture, HANDSHAKE), [NOT_ECT].into());
    }
}

/// [`Marked`], with marks where ECN allows them.
#[test]
fn a_mark_of_the_network_reaches_the_packets_that_understand_it() {
    for endpoint in ENDPOINTS {
        let marked = Marked::new("ecn-marked");
        marked.mark("ect0");
        let (_proxy, backend) = marked.start(endpoint);
        let sent = [EF | ECT_0, EF | NOT_ECT, EF | ECT_1, EF | CE];
        let received = marked.send(&sent, 2 * sent.len());
        let expected = [EF | CE, EF | NOT_ECT, EF | ECT_1, EF | CE];
        assert_eq!(received.iter().map(|packet| class(packet)).collect::<Vec<_>>(), [expected, expected].concat());
        received.iter().for_each(|packet| assert_header_checksum(packet));
        assert_eq!(backend.drops("congestion_experienced"), 0);
    }
}

/// [`Marked`], with marks where ECN allows them: TCP inside learns of them, and every byte arrives.
#[test]
fn a_tcp_connection_inside_slows_down_for_marks_of_the_network() {
    let marked = Marked::new("ecn-tcp");
    for host in [&marked.ends.proxy, &marked.ends.backend] {
        host.set_sysctl("ipv4/tcp_ecn", "1");
    }
    let _daemons = marked.start(ENDPOINTS[0]);
    let delivered = || tcp_counter(&marked.ends.proxy, "TCPDeliveredCE");
    marked.mark("ect0");
    for (address, family) in BACKEND.iter().zip(["-4", "-6"]) {
        let server = Iperf3::at(&marked.ends.backend, address);
        let before = delivered();
        server.send(&marked.ends.proxy, &[family, "-n", "1M"]);
        // More than a hundred on their way here. The daemons mark too, but only when a queue stands, and then one packet.
        let told = delivered() - before;
        assert!(told > 50, "the receiver has told of {told} marks only");
    }
}

/// A counter of `/proc/net/netstat`, whose lines come in pairs: the names, and the values.
fn tcp_counter(host: &Host, name: &str) -> u64 {
    let netstat = host.read("/proc/thread-self/net/netstat");
    let [names, values] = netstat.lines().filter(|line| line.starts_with("TcpExt:")).collect::<Vec<_>>()[..] else {
        panic!("{netstat}")
    };
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    counters.find_map(|(counter, value)| (counter == name).then(|| value.parse().unwrap())).unwrap()
}

/// [`Marked`], by a router that marks whatever it should have dropped.
#[test]
fn a_packet_that_does_not_understand_marks_is_lost_to_one_and_counted() {
    for endpoint in ENDPOINTS {
        let marked = Marked::new("ecn-lost");
        let (proxy, backend) = marked.start(endpoint);
        marked.mark("not-ect");
        for target in BACKEND {
            let pings = Ping::to(target).count(3).at_once(3).patience(Duration::from_secs(1));
            pings.send(&marked.ends.proxy).assert_none_answered();
        }
        wait::until("the losses are counted", || backend.drops("congestion_experienced") == 6);
        // What the daemons say to each other is marked too, and understood.
        assert_eq!(proxy.status().peer("backend").text("state"), "up");
        assert_eq!(marked.send(&[ECT_1], 2).len(), 2);
        assert_eq!(backend.drops("congestion_experienced"), 6);
    }
}

/// [`Marked`]; the backend side's network card joins datagrams that come in a row, but not of two fields: a mark does not
/// spill over to the datagrams beside it, and none gets lost.
#[test]
fn a_mark_stays_with_its_datagram_where_the_kernel_joins_them() {
    for endpoint in ENDPOINTS {
        let marked = Marked::new("ecn-joined");
        marked.mark("ect0");
        marked.ends.backend.command("ethtool").args(["-K", "wan", "gro", "on"]).run();
        let (_proxy, backend) = marked.start(endpoint);
        // As many at a time as a veth takes in a burst.
        let sent: Vec<u8> = (0..30).map(|index| if index / 3 % 2 == 0 { ECT_0 } else { NOT_ECT }).collect();
        for _ in 0..10 {
            for packet in marked.send(&sent, 2 * sent.len()) {
                let was = payload(&packet).unwrap()[0];
                assert_eq!(class(&packet), if was == ECT_0 { CE } else { was });
            }
        }
        assert_eq!(backend.drops("congestion_experienced"), 0);
    }
}

/// [`Marked`], without marks.
#[test]
fn the_dscp_outside_is_what_was_configured_and_inside_it_stays() {
    for endpoint in ENDPOINTS {
        let marked = Marked::new("dscp");
        let (proxy, _backend) = marked.start(endpoint);
        let config = marked.ends.proxy_calling(endpoint);
        // What is configured, then what data with and without a class of its own is sent as.
        for (dscp, with, without) in
            [(None, 0, 0), (Some("\"copy\""), EF, 0), (Some("\"af41\""), 34 << 2, 34 << 2), (Some("5"), 5 << 2, 5 << 2)]
        {
            if let Some(dscp) = dscp {
                let said = proxy.reload(&config.clone().set("dscp", dscp));
                assert!(said.contains("interface.dscp"), "{said}");
                wait::until("the reload has been carried out", || probe::answers(&marked.ends.proxy, BACKEND[0]));
            }
            let sniffer = TcpDump::start(&marked.router, "left");
            let received = marked.send(&[EF | ECT_0, NOT_ECT], 4);
            let inside: BTreeSet<u8> = received.iter().map(|packet| class(packet)).collect();
            assert_eq!(inside, [EF | ECT_0, NOT_ECT].into());
            let mut capture = sniffer.stop();
            capture.frames.retain(|frame| is_from_proxy(frame));
            assert_eq!(outer_classes(&capture, DATA), [with | ECT_0, without].into(), "{dscp:?}");
        }
    }
}

/// [`Marked`], without marks.
#[test]
fn a_fixed_dscp_is_that_of_handshakes_too() {
    let marked = Marked::new("dscp-handshakes");
    let sniffer = TcpDump::start(&marked.router, "left");
    let _backend = Daemon::start(&marked.ends.backend, &marked.ends.backend_waiting().set("dscp", "\"ef\""));
    let proxy = Daemon::start(&marked.ends.proxy, &marked.ends.proxy_calling(ENDPOINTS[0]).set("dscp", "\"ef\""));
    proxy.wait_for_state("backend", "up");
    let capture = sniffer.stop();
    assert_eq!(outer_classes(&capture, HANDSHAKE), [EF].into());
    assert_eq!(outer_classes(&capture, DATA), [EF].into());
}

fn is_from_proxy(frame: &[u8]) -> bool {
    let from = ["10.1.0.1", "fd01::1"].map(|address| address.parse().unwrap());
    netns_tests::frame::datagram(frame).is_some_and(|udp| from.contains(&udp.source.ip()))
}
