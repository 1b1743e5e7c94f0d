//! What peers reach: the ports that are exposed to them, and nothing else, whoever has root at the other end.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netns_tests::crafted::{self, ACK, Between, RawSockets, SYN, fragments};
use netns_tests::packet_socket::PacketSocket;
use netns_tests::probe::Ping;
use netns_tests::underpass::{Config, Daemon, INTERFACE, KeyPair, Peer, Role, list, quote};
use netns_tests::{Host, Lab, wait};

use crate::ends::{BACKEND, Ends, PROXY};

/// A second's patience for what must not happen.
const SOON: Duration = Duration::from_secs(1);

/// ```text
///              ┌── backend1   has been broken into
///   proxy ─────┤
///   forwards   └── backend2
/// ```
struct BrokenInto {
    proxy: Host,
    backends: [Host; 2],
    daemons: [Daemon; 3],
    _lab: Lab,
}

/// Tunnel addresses by machine and IP version.
const SITE: [[&str; 2]; 3] = [PROXY, BACKEND, ["10.77.0.12", "fd77::12"]];

impl BrokenInto {
    /// The proxy side exposes `services`; backends expose TCP port 8080 and UDP port 53. The first backend's daemon routes all
    /// addresses of the site to the proxy side, as its new owner wants it, and the proxy forwards packets.
    fn new(name: &str, services: &[&str]) -> BrokenInto {
        let lab = Lab::new(name);
        let proxy = lab.router("proxy");
        let backends = [lab.host("backend1"), lab.host("backend2")];
        lab.link(proxy.port("lan1", ["10.1.1.1/24"]), backends[0].port("wan", ["10.1.1.2/24"]));
        lab.link(proxy.port("lan2", ["10.1.2.1/24"]), backends[1].port("wan", ["10.1.2.2/24"]));
        let keys = [(); 3].map(|()| KeyPair::generate(&proxy));
        let interface = |role, machine: usize| {
            let addresses = [format!("{}/24", SITE[machine][0]), format!("{}/64", SITE[machine][1])];
            Config::new(role, &keys[machine], addresses.each_ref().map(String::as_str))
        };
        let lb = || Peer::new("lb", &keys[0].public, SITE[0]);
        let app = |machine: usize| {
            let peer = Peer::new(&format!("app{machine}"), &keys[machine].public, SITE[machine]);
            peer.endpoint(&format!("10.1.{machine}.2:51900"))
        };
        let configs = [
            interface(Role::Proxy, 0).set("expose", list(services.iter().copied())).peer(app(1)).peer(app(2)),
            interface(Role::Backend, 1)
                .set("expose", list(["tcp/8080", "udp/53"]))
                .peer(lb().allowed_ips(["10.77.0.0/24", "fd77::/64"])),
            interface(Role::Backend, 2).set("expose", list(["tcp/8080", "udp/53"])).peer(lb()),
        ];
        let hosts = [&proxy, &backends[0], &backends[1]];
        let daemons = [0, 1, 2].map(|machine| Daemon::start(hosts[machine], &configs[machine]));
        for app in ["app1", "app2"] {
            daemons[0].wait_for_state(app, "up");
        }
        BrokenInto { proxy, backends, daemons, _lab: lab }
    }

    /// Sends packets from the first backend into the tunnel, and waits until the proxy side has counted all that `refused`
    /// names. Returns what came out at the proxy and at the second backend.
    fn attack(&self, packets: &[Vec<u8>], refused: &[(&str, u64)]) -> [Vec<Vec<u8>>; 2] {
        let ears = [&self.proxy, &self.backends[1]].map(|host| PacketSocket::open(host, INTERFACE));
        let before: Vec<u64> = refused.iter().map(|(reason, _)| self.daemons[0].drops(reason)).collect();
        let tunnel = RawSockets::open(&self.backends[0]);
        packets.iter().for_each(|packet| tunnel.send(packet));
        let counted = || {
            let now = refused.iter().map(|(reason, _)| self.daemons[0].drops(reason));
            now.zip(&before).map(|(now, before)| now - before).collect::<Vec<_>>()
        };
        let expected: Vec<u64> = refused.iter().map(|(_, number)| *number).collect();
        let all = wait::try_value_within(wait::PATIENCE, || (counted() == expected).then_some(()));
        assert!(all.is_some(), "{refused:?}, and not {:?}: {:?}", counted(), self.daemons[0].status());
        let attacker = SITE[1].map(|address| address.parse::<IpAddr>().unwrap());
        ears.map(|ear| {
            let heard = std::iter::from_fn(|| ear.receive());
            heard
                .filter(|packet| crafted::addresses(packet).is_some_and(|way| attacker.contains(&way.source)))
                .collect()
        })
    }
}

/// Every packet that is no answer, with the reason for which it is to be refused.
fn scans(target: &str, version: usize) -> Vec<(&'static str, Vec<u8>)> {
    let way = Between::new(SITE[1][version], target);
    let mut scans = vec![];
    for port in [22, 53, 80, 179, 443, 8080, 51901, 51902, 65535] {
        for flags in [SYN, SYN | 0x01, SYN | 0x04, SYN | 0x08, SYN | 0x29, SYN | 0xc0] {
            scans.push(("not_exposed", way.tcp(40_000, port, flags)));
        }
        // Also from the port that is exposed, as if it were an answer.
        scans.push(("not_exposed", way.tcp(8080, port, SYN)));
        scans.push(("not_exposed", way.udp(40_000, port, b"hello")));
        scans.push(("not_exposed", way.udp(53, port, b"hello")));
    }
    scans.push(("not_exposed", way.echo_request(1)));
    scans.push(("unsolicited", way.echo_reply(0x7777)));
    // About what was never sent: by UDP, to another backend, by another.
    let back = way.reversed();
    scans.push(("unsolicited", way.unreachable(&back.udp(40_000, 53, b"")[..])));
    scans.push(("unsolicited", way.unreachable(&Between::new(target, SITE[2][version]).tcp(1, 2, ACK))));
    scans.push(("unsolicited", way.unreachable(&way.tcp(1, 2, ACK))));
    // Redirect, router advertisement, neighbour advertisement, timestamp.
    for types in [[5, 137], [9, 134], [10, 136], [13, 141]] {
        scans.push(("protocol_not_exposed", way.icmp(types, &[0; 40])));
    }
    // Tunnels of several kinds, encryption, SCTP, and what is reserved.
    for protocol in [2, 4, 41, 47, 50, 51, 97, 115, 132, 253] {
        scans.push(("protocol_not_exposed", way.packet(protocol, &[0; 40])));
    }
    // A connection's beginning whose ports or flags are in the second fragment, and one that is whole in the first.
    let opening = [way.tcp(40_000, 22, SYN), vec![0; 200]].concat();
    let opening = resized(opening);
    for part in fragments(&opening, 8) {
        scans.push(("stray_fragment", part));
    }
    let halves = fragments(&opening, 128);
    scans.push(("not_exposed", halves[0].clone()));
    scans.push(("stray_fragment", halves[1].clone()));
    if version == 0 {
        scans.push(("protocol_not_exposed", crafted::behind_header(&way.tcp(40_000, 22, ACK), 0)));
    } else {
        for header in [0, 60] {
            scans.push(("not_exposed", crafted::behind_header(&way.tcp(40_000, 22, SYN), header)));
        }
        scans.push(("protocol_not_exposed", crafted::behind_header(&way.tcp(40_000, 22, ACK), 43)));
    }
    scans
}

/// With lengths that say how long it is.
fn resized(mut packet: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(packet.len()).unwrap();
    match packet[0] >> 4 {
        4 => packet[2..4].copy_from_slice(&length.to_be_bytes()),
        _ => packet[4..6].copy_from_slice(&(length - 40).to_be_bytes()),
    }
    packet
}

fn by_reason(scans: &[(&'static str, Vec<u8>)]) -> Vec<(&'static str, u64)> {
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    scans.iter().for_each(|(reason, _)| *reasons.entry(reason).or_default() += 1);
    reasons.into_iter().collect()
}

fn packets(scans: &[(&'static str, Vec<u8>)]) -> Vec<Vec<u8>> {
    scans.iter().map(|(_, packet)| packet.clone()).collect()
}

#[test]
fn nothing_but_answers_of_a_backend_that_was_broken_into_reaches_the_proxy_or_another_backend() {
    let site = BrokenInto::new("broken-into", &[]);
    for version in [0, 1] {
        for target in [SITE[0][version], SITE[2][version]] {
            let mut scans = scans(target, version);
            if target != SITE[0][version] {
                scans.iter_mut().for_each(|(reason, _)| *reason = "destination_not_exposed");
            }
            let heard = site.attack(&packets(&scans), &by_reason(&scans));
            assert_eq!(heard.concat(), Vec::<Vec<u8>>::new(), "{target} was reached");
        }
        // What may belong to a connection is answered with a reset at the proxy, and goes no further.
        let ear = PacketSocket::open(&site.proxy, INTERFACE);
        let tunnel = RawSockets::open(&site.backends[0]);
        let stray = Between::new(SITE[1][version], SITE[0][version]).tcp(8080, 22, ACK);
        tunnel.send(&stray);
        wait::until("it comes in", || std::iter::from_fn(|| ear.receive()).any(|heard| heard == stray));
        let onward = Between::new(SITE[1][version], SITE[2][version]).tcp(8080, 8080, ACK);
        let heard = site.attack(&[onward], &[("destination_not_exposed", 1)]);
        assert_eq!(heard.concat(), Vec::<Vec<u8>>::new());
        // With the address of another.
        let forged = Between::new(SITE[2][version], SITE[0][version]).tcp(8080, 22, SYN);
        site.attack(&[forged], &[("source_not_allowed", 1)]);
    }
}

#[test]
fn with_everything_exposed_the_same_packets_do_reach_the_proxy() {
    let site = BrokenInto::new("any", &["any"]);
    for version in [0, 1] {
        let scans = scans(SITE[0][version], version);
        let ear = PacketSocket::open(&site.proxy, INTERFACE);
        let tunnel = RawSockets::open(&site.backends[0]);
        packets(&scans).iter().for_each(|packet| tunnel.send(packet));
        let mut heard = 0;
        wait::until("all have come through", || {
            let attacker: IpAddr = SITE[1][version].parse().unwrap();
            let is_one = |packet: &Vec<u8>| crafted::addresses(packet).is_some_and(|way| way.source == attacker);
            heard += std::iter::from_fn(|| ear.receive()).filter(is_one).count();
            heard >= scans.len()
        });
    }
}

/// The first byte of what is sent comes back.
fn tcp_echo_at(host: &Host, address: &str, port: u16) {
    let listener = host.run(|| TcpListener::bind(SocketAddr::new(address.parse().unwrap(), port))).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut byte = [0];
            let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
        }
    });
}

fn tcp_answers(host: &Host, address: &str, port: u16) -> io::Result<()> {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let mut stream = host.run(|| TcpStream::connect_timeout(&address, SOON))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

/// Answers every datagram with one of so many bytes.
fn udp_answers_of(host: &Host, address: &str, port: u16, length: usize) {
    let socket = host.run(|| UdpSocket::bind((address, port))).unwrap();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 2048]) {
            let _ = socket.send_to(&vec![7; length], from);
        }
    });
}

fn udp_answer(host: &Host, own: &str, address: &str, port: u16) -> io::Result<usize> {
    let socket = host.run(|| UdpSocket::bind((own, 0)))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.connect((address, port))?;
    socket.send(b"?")?;
    socket.recv(&mut [0; 65_536])
}

/// ```text
///   proxy ───────── backend   exposes tcp/8080, udp/53
/// ```
#[test]
fn exposed_ports_are_reached_and_no_others() {
    let ends = Ends::wired("exposed");
    let exposed = ends.backend_waiting().set("expose", list(["tcp/8080", "udp/53"]));
    let backend = Daemon::start(&ends.backend, &exposed);
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("10.1.0.2:51900").set("expose", "[]"));
    for (own, address) in PROXY.into_iter().zip(BACKEND) {
        for port in [8080, 8081] {
            tcp_echo_at(&ends.backend, address, port);
        }
        for port in [53, 54] {
            // Longer than the tunnel's packets: the answer comes in fragments.
            udp_answers_of(&ends.backend, address, port, 6000);
        }
        tcp_answers(&ends.proxy, address, 8080).unwrap();
        let before = backend.drops("not_exposed");
        assert!(tcp_answers(&ends.proxy, address, 8081).is_err());
        assert!(backend.drops("not_exposed") > before);
        assert_eq!(udp_answer(&ends.proxy, own, address, 53).unwrap(), 6000);
        let before = backend.drops("not_exposed");
        assert!(udp_answer(&ends.proxy, own, address, 54).is_err());
        assert!(backend.drops("not_exposed") > before);
        // Large pings go in fragments, too.
        Ping::to(address).count(3).payload(4000).send(&ends.proxy).assert_all_answered();
        Ping::to(own).patience(SOON).send(&ends.backend).assert_none_answered();
        tcp_echo_at(&ends.proxy, own, 9100);
        assert!(tcp_answers(&ends.backend, own, 9100).is_err());
    }
    assert_eq!(proxy.drops("stray_fragment") + proxy.drops("unsolicited"), 0);

    // Both lists are changed while a connection is open, which goes on.
    let mut kept = ends.proxy.run(|| TcpStream::connect("10.77.0.11:8080")).unwrap();
    backend.reload(&exposed.set("expose", list(["tcp/8081"])));
    proxy.reload(
        &ends
            .proxy_interface()
            .set("expose", "[]")
            .peer(ends.backend_peer().endpoint("10.1.0.2:51900").set("expose", list(["tcp/9100"]))),
    );
    kept.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    kept.write_all(b"?").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    assert!(tcp_answers(&ends.proxy, BACKEND[0], 8080).is_err());
    tcp_answers(&ends.proxy, BACKEND[0], 8081).unwrap();
    tcp_answers(&ends.backend, PROXY[0], 9100).unwrap();
}

#[test]
fn who_is_to_be_told_need_not_wait_where_nothing_is_exposed() {
    let ends = Ends::wired("told");
    let told = ends.backend_waiting().set("expose", list(["tcp/8080"])).set("refuse", quote("reset"));
    let backend = Daemon::start(&ends.backend, &told);
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("10.1.0.2:51900").set("expose", "[]"));
    for (own, address) in PROXY.into_iter().zip(BACKEND) {
        let before = backend.drops("not_exposed");
        let [tcp, udp] =
            [tcp_answers(&ends.proxy, address, 8081), udp_answer(&ends.proxy, own, address, 8080).map(drop)];
        for refused in [tcp, udp] {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(backend.drops("not_exposed"), before + 2);
    }
}

#[test]
fn errors_about_what_was_sent_come_back_and_others_do_not() {
    let ends = Ends::wired("errors");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting().set("expose", list(["udp/5000"])));
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("10.1.0.2:51900").set("expose", "[]"));
    for (own, address) in PROXY.into_iter().zip(BACKEND) {
        // Nobody listens there, says the backend's kernel.
        let refused = udp_answer(&ends.proxy, own, address, 5000).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let way = Between::new(address, own);
        let tunnel = RawSockets::open(&ends.backend);
        let before = proxy.drops("unsolicited");
        tunnel.send(&way.unreachable(&way.reversed().udp(1, 5000, b"")));
        wait::until("an error about nothing is refused", || proxy.drops("unsolicited") == before + 1);
        let ear = PacketSocket::open(&ends.proxy, INTERFACE);
        let about_tcp = way.unreachable(&way.reversed().tcp(1, 2, ACK));
        tunnel.send(&about_tcp);
        wait::until("an error about TCP comes in", || {
            std::iter::from_fn(|| ear.receive()).any(|heard| heard == about_tcp)
        });
    }
}
