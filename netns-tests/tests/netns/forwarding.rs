//! Machines that forward packets, as every host of containers does: what lies behind them is reached where it is exposed, and
//! nowhere else; machines behind a gateway get their answers.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netns_tests::crafted::{self, ACK, Between, RawSockets, SYN};
use netns_tests::packet_socket::PacketSocket;
use netns_tests::probe::{self, Ping};
use netns_tests::underpass::{Daemon, INTERFACE, list};
use netns_tests::{Host, wait};

use crate::ends::{BACKEND, Ends, PROXY};

/// A second's patience for what must not happen.
const SOON: Duration = Duration::from_secs(1);
const ENDPOINT: &str = "10.1.0.2:51900";
/// A machine behind one of the ends, by IP version, and the network of both.
const BEHIND: [&str; 2] = ["10.30.0.5", "fd30::5"];
const NETWORKS: [&str; 2] = ["10.30.0.0/24", "fd30::/64"];
const FIN: u8 = 0x01;
const RST: u8 = 0x04;

/// The cable of [`Ends::wired`], and a machine behind one end, which forwards:
///
/// ```text
///   end ──────────────── machine
///     lan 10.30.0.1/24       10.30.0.5/24
///         fd30::1/64         fd30::5/64
/// ```
fn machine_behind(ends: &Ends, end: &Host) -> Host {
    let machine = ends.lab.host("machine");
    end.forward_packets();
    ends.lab.link(end.port("lan", ["10.30.0.1/24", "fd30::1/64"]), machine.port("lan", ["10.30.0.5/24", "fd30::5/64"]));
    machine.ip("route add default via 10.30.0.1");
    machine.ip("-6 route add default via fd30::1");
    machine.wait_for_ipv6_addresses();
    machine
}

/// The first byte of what is sent comes back, at every address.
fn tcp_echo_at(host: &Host, port: u16) {
    let listener = host.run(|| TcpListener::bind(SocketAddr::from(([0_u16; 8], port)))).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
            });
        }
    });
}

fn connect(host: &Host, address: &str, port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let stream = host.run(|| TcpStream::connect_timeout(&address, SOON))?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    Ok(stream)
}

fn echoes(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

/// Packets that this interface has received from one of these addresses.
fn heard_from(ear: &PacketSocket, sources: [&str; 2]) -> Vec<Vec<u8>> {
    let sources = sources.map(|source| source.parse::<IpAddr>().unwrap());
    let heard = std::iter::from_fn(|| ear.receive());
    heard.filter(|packet| crafted::addresses(packet).is_some_and(|way| sources.contains(&way.source))).collect()
}

#[test]
fn a_proxy_that_was_broken_into_reaches_nothing_behind_a_backend_that_forwards() {
    let ends = Ends::wired("jump-host");
    let machine = machine_behind(&ends, &ends.backend);
    for port in [8080, 22] {
        tcp_echo_at(&machine, port);
    }
    let exposed = ends.backend_waiting().set("expose", list(["tcp/8080", "udp/53"]));
    let backend = Daemon::start(&ends.backend, &exposed);
    // Its new owner has all of the network routed into the tunnel.
    let routed = ends.proxy_interface().peer(ends.backend_peer().endpoint(ENDPOINT).allowed_ips(NETWORKS));
    let _proxy = Daemon::start(&ends.proxy, &routed);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let ear = PacketSocket::open(&ends.backend, INTERFACE);
    let before = backend.drops("destination_not_exposed");
    let mut sent = 0;
    for (own, target) in PROXY.into_iter().zip(BEHIND) {
        for port in [8080, 22] {
            assert!(connect(&ends.proxy, target, port).is_err(), "{target} port {port} was reached");
        }
        Ping::to(target).patience(SOON).send(&ends.proxy).assert_none_answered();
        let way = Between::new(own, target);
        let tunnel = RawSockets::open(&ends.proxy);
        for flags in [SYN, ACK, SYN | ACK, FIN, RST, 0] {
            tunnel.send(&way.tcp(40_000, 8080, flags));
            sent += 1;
        }
        tunnel.send(&way.udp(40_000, 53, b"hello"));
        sent += 1;
    }
    wait::until("all are refused", || backend.drops("destination_not_exposed") >= before + sent);
    // Whatever was sent before this has come before it.
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let targets = BEHIND.map(|target| target.parse::<IpAddr>().unwrap());
    let passed = heard_from(&ear, PROXY)
        .into_iter()
        .filter(|packet| crafted::addresses(packet).is_some_and(|way| targets.contains(&way.destination)));
    assert_eq!(passed.collect::<Vec<_>>(), Vec::<Vec<u8>>::new(), "the kernel was given packets to forward");
}

#[test]
fn an_exposed_network_is_reached_at_its_ports_and_follows_a_reload() {
    let ends = Ends::wired("exposed-network");
    let machine = machine_behind(&ends, &ends.backend);
    for port in [8080, 8081] {
        tcp_echo_at(&machine, port);
    }
    let network = ["tcp/10.30.0.0/24:8080", "tcp/[fd30::]/64:8080"];
    let exposed = ends.backend_waiting().set("expose", list(network));
    let backend = Daemon::start(&ends.backend, &exposed);
    let routed = ends.proxy_interface().peer(ends.backend_peer().endpoint(ENDPOINT).allowed_ips(NETWORKS));
    let _proxy = Daemon::start(&ends.proxy, &routed);
    for (own, target) in BACKEND.into_iter().zip(BEHIND) {
        echoes(&mut connect(&ends.proxy, target, 8080).unwrap()).unwrap();
        probe::ping(&ends.proxy, target).assert_all_answered();
        let before = backend.drops("not_exposed");
        assert!(connect(&ends.proxy, target, 8081).is_err());
        assert!(backend.drops("not_exposed") > before);
        // The backend's own addresses lie in no network that is named.
        assert!(connect(&ends.proxy, own, 8080).is_err());
    }
    backend.reload(&exposed.set("expose", list(["tcp/8080"])));
    for target in BEHIND {
        let before = backend.drops("destination_not_exposed");
        assert!(connect(&ends.proxy, target, 8080).is_err());
        assert!(backend.drops("destination_not_exposed") > before);
    }
}

#[test]
fn what_is_exposed_follows_the_tunnels_addresses_and_no_others_of_the_machine() {
    const OTHER: &str = "10.77.0.21";
    let ends = Ends::wired("own-addresses");
    tcp_echo_at(&ends.backend, 8080);
    let exposed = ends.backend_waiting().set("expose", list(["tcp/8080"]));
    let backend = Daemon::start(&ends.backend, &exposed);
    let known = ends.backend_peer().set("addresses", list([BACKEND[0], OTHER])).endpoint(ENDPOINT);
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_interface().peer(known));
    echoes(&mut connect(&ends.proxy, BACKEND[0], 8080).unwrap()).unwrap();
    ends.backend.ip(&format!("address add {OTHER}/32 dev lo"));
    let before = backend.drops("destination_not_exposed");
    assert!(connect(&ends.proxy, OTHER, 8080).is_err());
    assert!(backend.drops("destination_not_exposed") > before);
    ends.backend.ip(&format!("address del {OTHER}/32 dev lo"));
    let addresses = ["10.77.0.11/24", "10.77.0.21/24", "fd77::11/64"];
    backend.reload(&exposed.set("addresses", list(addresses)));
    echoes(&mut connect(&ends.proxy, OTHER, 8080).unwrap()).unwrap();
}

#[test]
fn machines_behind_a_gateway_are_answered_and_not_called() {
    let ends = Ends::wired("gateway");
    let machine = machine_behind(&ends, &ends.proxy);
    tcp_echo_at(&ends.backend, 8080);
    tcp_echo_at(&machine, 8080);
    let known = ends.proxy_peer().allowed_ips(NETWORKS);
    let _backend = Daemon::start(&ends.backend, &ends.backend_interface().peer(known));
    let gateway = ends.proxy_calling(ENDPOINT).set("expose", "[]");
    let proxy = Daemon::start(&ends.proxy, &gateway);
    proxy.wait_for_state("backend", "up");
    let udp = ends.backend.run(|| UdpSocket::bind("[::]:5353")).unwrap();
    std::thread::spawn(move || {
        while let Ok((length, from)) = udp.recv_from(&mut [0; 2048]) {
            let _ = udp.send_to(&vec![7; length], from);
        }
    });
    let mut kept = Vec::new();
    for (own, target) in BEHIND.into_iter().zip(BACKEND) {
        let mut stream = connect(&machine, target, 8080).unwrap();
        echoes(&mut stream).unwrap();
        kept.push(stream);
        probe::ping(&machine, target).assert_all_answered();
        let socket = machine.run(|| UdpSocket::bind((own, 0))).unwrap();
        socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        socket.connect((target, 5353)).unwrap();
        socket.send(b"?").unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 1);
        // Nobody calls it, though it would answer.
        let before = proxy.drops("destination_not_exposed");
        assert!(connect(&ends.backend, own, 8080).is_err());
        assert!(proxy.drops("destination_not_exposed") > before);
    }
    // A gateway that starts anew knows no connection until the machine that opened it speaks.
    assert_eq!(proxy.stop(), 0);
    let proxy = Daemon::start(&ends.proxy, &gateway);
    proxy.wait_for_state("backend", "up");
    kept.iter_mut().for_each(|stream| echoes(stream).unwrap());
}

#[test]
fn scans_of_who_reaches_nothing_get_no_answer() {
    let ends = Ends::wired("scans");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).set("expose", "[]"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    tcp_echo_at(&ends.proxy, 8080);
    let ear = PacketSocket::open(&ends.backend, INTERFACE);
    let tunnel = RawSockets::open(&ends.backend);
    let before = proxy.drops("not_exposed");
    let mut refused = 0;
    for (own, target) in BACKEND.into_iter().zip(PROXY) {
        let way = Between::new(own, target);
        for port in [22, 443, 8080, 51_901] {
            // FIN, NULL, XMAS and all others without ACK.
            for flags in (0..=u8::MAX).filter(|flags| flags & ACK == 0) {
                tunnel.send(&way.tcp(40_000, port, flags));
                // A reset passes: nobody answers it.
                refused += u64::from(flags & (RST | SYN) != RST);
            }
            // A TUN's queue holds a few hundred.
            wait::until("they have come to the proxy side", || proxy.drops("not_exposed") >= before + refused);
        }
    }
    // Whatever was answered before this has come back before it.
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let is_tcp = |packet: &&Vec<u8>| packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == crafted::TCP;
    let answers = heard_from(&ear, PROXY);
    assert_eq!(answers.iter().filter(is_tcp).count(), 0, "answers to {refused} scans");
}
