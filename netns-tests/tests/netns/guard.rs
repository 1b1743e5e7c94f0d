//! Tunnel addresses are reached by the tunnel only: a host of the same network, without keys, reaches no app and is answered
//! nothing, whatever the daemon does.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use netns_tests::crafted::{Between, RawSockets, SYN};
use netns_tests::frame::{self, Content};
use netns_tests::packet_socket::PacketSocket;
use netns_tests::underpass::{self, Config, Daemon};
use netns_tests::{Host, probe, wait};
use nix::sys::signal::Signal;

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINT: &str = "192.0.2.10:51900";
const PROXY_LAN: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const BACKEND_LAN: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const STRANGER: [&str; 2] = ["192.0.2.66", "2001:db8::66"];
/// The app's, on tunnel addresses.
const PORT: u16 = 8080;
/// An app's that listens everywhere, and takes for a peer what has its address.
const OPEN_PORT: u16 = 7070;
const SOURCE_PORT: u16 = 40_000;
/// Longer than a packet takes from one namespace to the next.
const PATIENCE: Duration = Duration::from_millis(200);

/// A shared network with somebody on it who has no key:
///
/// ```text
///   proxy                     backend                   stranger
///     lan 192.0.2.1/24          lan 192.0.2.10/24         lan 192.0.2.66/24
///         2001:db8::1/64            2001:db8::10/64           2001:db8::66/64
///    └───────────────────────────┴─────────────────────────┘
/// ```
///
/// Both ends forward packets, as every host with containers does.
struct Site {
    ends: Ends,
    stranger: Host,
}

fn site(name: &str) -> Site {
    let ends = Ends::new(name);
    let stranger = ends.lab.host("stranger");
    let _switch = ends.lab.switch(
        "lan",
        [
            ends.proxy.port("lan", ["192.0.2.1/24", "2001:db8::1/64"]),
            ends.backend.port("lan", ["192.0.2.10/24", "2001:db8::10/64"]),
            stranger.port("lan", ["192.0.2.66/24", "2001:db8::66/64"]),
        ],
    );
    ends.proxy.forward_packets();
    ends.backend.forward_packets();
    Site { ends, stranger }
}

impl Site {
    fn start(&self, setting: impl Fn(Config) -> Config) -> (Daemon, Daemon) {
        let backend = Daemon::start(&self.ends.backend, &setting(self.ends.backend_waiting()));
        let proxy = Daemon::start(&self.ends.proxy, &setting(self.ends.proxy_calling(ENDPOINT)));
        proxy.wait_for_state("backend", "up");
        (proxy, backend)
    }

    fn targets(&self) -> [Target<'_>; 2] {
        let target = |host, lan, own, peer| Target { host, lan, own, peer };
        [target(&self.ends.backend, BACKEND_LAN, BACKEND, PROXY), target(&self.ends.proxy, PROXY_LAN, PROXY, BACKEND)]
    }
}

/// A machine with tunnel addresses.
#[derive(Clone, Copy)]
struct Target<'a> {
    host: &'a Host,
    lan: [&'static str; 2],
    own: [&'static str; 2],
    peer: [&'static str; 2],
}

impl Target<'_> {
    fn apps(&self) -> Apps {
        self.host.run(|| {
            let inside = self.own.map(|address| (address, PORT));
            let everywhere = ["0.0.0.0", self.lan[1]].map(|address| (address, OPEN_PORT));
            Apps {
                inside: inside.map(udp).into(),
                everywhere: everywhere.map(udp).into(),
                _listeners: inside.map(|at| wait::value("the port is free", || TcpListener::bind(at).ok())).into(),
            }
        })
    }
}

/// Sockets that listen on one machine.
struct Apps {
    inside: Vec<UdpSocket>,
    everywhere: Vec<UdpSocket>,
    _listeners: Vec<TcpListener>,
}

fn udp(at: (&str, u16)) -> UdpSocket {
    let socket = wait::value("the port is free", || UdpSocket::bind(at).ok());
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Datagrams that have arrived, without the last of an attack.
fn received(sockets: &[UdpSocket]) -> usize {
    let next = |socket: &UdpSocket| {
        let mut datagram = [0; 64];
        let length = socket.recv(&mut datagram).ok()?;
        Some(datagram[..length] == *LAST)
    };
    sockets.iter().flat_map(|socket| std::iter::from_fn(move || next(socket))).filter(|is_last| !is_last).count()
}

const LAST: &[u8] = b"LAST";

/// Harm that came of an attack.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Harm {
    /// Packets from tunnel addresses, or about them, that came back.
    answers: usize,
    /// Datagrams that an app at a tunnel address was given.
    delivered: usize,
    /// Datagrams that an app was given under a tunnel address that is not the sender's.
    forged: usize,
    /// TCP connections to an app at a tunnel address.
    connections: usize,
}

impl std::ops::Add for Harm {
    type Output = Harm;
    fn add(self, other: Harm) -> Harm {
        Harm {
            answers: self.answers + other.answers,
            delivered: self.delivered + other.delivered,
            forged: self.forged + other.forged,
            connections: self.connections + other.connections,
        }
    }
}

/// Somebody on the network who sends what they like.
struct Attacker<'a> {
    host: &'a Host,
    sockets: RawSockets,
    wire: PacketSocket,
}

impl<'a> Attacker<'a> {
    fn new(host: &'a Host) -> Self {
        // Answers to what it has not asked are none of its kernel's business.
        Self { host, sockets: RawSockets::open(host), wire: PacketSocket::open(host, "lan") }
    }

    /// Sends to `target` all that there is, over both versions of IP, and looks what comes of it.
    fn attack(&self, target: Target<'_>, apps: &Apps, ports: &[u16]) -> Harm {
        for (network, gateway) in ["10.77.0.0/24", "fd77::/64"].into_iter().zip(target.lan) {
            self.host.ip(&format!("route replace {network} via {gateway}"));
        }
        while self.wire.receive().is_some() {}
        received(&apps.inside);
        received(&apps.everywhere);
        let mut harm = Harm::default();
        for version in [0, 1] {
            for source in [STRANGER[version], target.peer[version]] {
                self.send_all(Between::new(source, target.own[version]), ports);
            }
            for source in [target.peer[version], target.own[version]] {
                let between = Between::new(source, target.lan[version]);
                self.sockets.send(&between.udp(SOURCE_PORT, OPEN_PORT, b"FORGED"));
            }
            // What it sends in its own name arrives, and after all else.
            let last = Between::new(STRANGER[version], target.lan[version]);
            self.sockets.send(&last.udp(SOURCE_PORT, OPEN_PORT, LAST));
            wait::until("the last datagram of the attack arrives", || {
                let mut datagram = [0; 64];
                let peeked = apps.everywhere[version].recv(&mut datagram);
                let length = peeked.unwrap_or_default();
                harm.forged += usize::from(length > 0 && datagram[..length] != *LAST);
                datagram[..length] == *LAST
            });
            let at = SocketAddr::new(target.own[version].parse().unwrap(), PORT);
            let connected = self.host.run(|| TcpStream::connect_timeout(&at, PATIENCE));
            harm.connections += usize::from(connected.is_ok());
        }
        harm.delivered = received(&apps.inside);
        harm.answers = self.answers();
        harm
    }

    fn send_all(&self, between: Between, ports: &[u16]) {
        self.sockets.send(&between.echo_request(7));
        for port in ports {
            self.sockets.send(&between.tcp(SOURCE_PORT, *port, SYN));
            self.sockets.send(&between.udp(SOURCE_PORT, *port, b"HELLO"));
        }
    }

    /// IP packets that have come in and are none of the network's own.
    fn answers(&self) -> usize {
        let frames = std::iter::from_fn(|| self.wire.receive());
        frames.filter(|frame| matches!(frame::content(frame), Content::Udp(_) | Content::Ip(_))).count()
    }
}

fn attack_both(site: &Site, ports: &[u16]) -> Harm {
    let attacker = Attacker::new(&site.stranger);
    let harm = site.targets().map(|target| attacker.attack(target, &target.apps(), ports));
    harm[0] + harm[1]
}

/// App's, exposed and not, and one where nobody listens.
const PORTS: [u16; 4] = [PORT, OPEN_PORT, 22, 9];

/// The proof that the others in this file can fail: the same attacks on the same network, without the table.
#[test]
fn without_the_table_a_lan_host_reaches_tunnel_addresses_in_plaintext() {
    let site = site("guard-none");
    let _daemons = site.start(|config| config.set("fail_closed", "false"));
    let harm = attack_both(&site, &PORTS);
    assert!(harm.answers > 15 && harm.delivered >= 4 && harm.forged >= 4 && harm.connections == 4, "{harm:?}");
}

/// The network of [`Site`]. All ports of TCP and UDP.
#[test]
fn while_the_daemon_runs_a_lan_host_reaches_no_port_of_a_tunnel_address() {
    let site = site("guard-runs");
    let (proxy, _backend) = site.start(|config| config);
    let all: Vec<u16> = (1..=u16::MAX).filter(|port| *port != SOURCE_PORT).collect();
    assert_eq!(attack_both(&site, &all), Harm::default());
    // In all of that nothing was lost.
    probe::ping(&site.ends.proxy, BACKEND[0]).assert_all_answered();
    probe::ping(&site.ends.backend, PROXY[1]).assert_all_answered();
    assert_eq!(proxy.status().part("guard").text("state"), "on");
}

/// Tunnel addresses without a tunnel, as of an app that is started early.
fn add_early_addresses(host: &Host, own: [&str; 2]) {
    host.ip(&format!("address add {}/32 dev lo", own[0]));
    host.ip(&format!("address add {}/128 dev lo nodad", own[1]));
    host.wait_for_ipv6_addresses();
}

/// The network of [`Site`]. As an app would have it that has got its address before the daemon.
#[test]
fn a_daemon_that_was_killed_leaves_nothing_that_a_lan_host_could_reach() {
    let site = site("guard-killed");
    let (mut proxy, mut backend) = site.start(|config| config);
    for daemon in [&mut proxy, &mut backend] {
        daemon.process().signal(Signal::SIGKILL);
        daemon.process().wait_for_exit(wait::PATIENCE);
    }
    for target in site.targets() {
        wait::until("its interface is gone", || !target.host.has_interface("underpass0"));
        add_early_addresses(target.host, target.own);
    }
    assert_eq!(attack_both(&site, &PORTS), Harm::default());
}

/// The network of [`Site`], as after a boot: nothing was ever started but `underpass close`, which reads no key.
#[test]
fn before_the_first_start_close_leaves_nothing_that_a_lan_host_could_reach() {
    let site = site("guard-close");
    let configs = [site.ends.backend_waiting(), site.ends.proxy_calling(ENDPOINT)];
    for (target, config) in site.targets().into_iter().zip(configs) {
        let file = config.write(target.host);
        target.host.command("find").arg(target.host.directory()).args(["-name", "*.key", "-delete"]).run();
        for _ in 0..2 {
            let said = underpass::command(target.host).args(["close", "--config"]).arg(&file).run();
            assert!(said.contains("underpass0 is closed"), "{said}");
        }
        assert!(target.host.routes("-4").contains("unreachable 10.77.0.0/24 proto 151"));
        add_early_addresses(target.host, target.own);
    }
    assert_eq!(attack_both(&site, &PORTS), Harm::default());
    for target in site.targets() {
        let said = underpass::command(target.host).args(["close", "--undo"]).run();
        assert!(said.contains("1 nftables tables"), "{said}");
        assert!(!target.host.routes("-4").contains("proto 151") && !target.host.routes("-6").contains("proto 151"));
    }
    assert_ne!(attack_both(&site, &PORTS), Harm::default());
}

/// The network of [`Site`]. Each reload changes addresses, prefixes and peers; pings go through the tunnel all the time.
#[test]
fn fifty_reloads_under_load_open_no_gap() {
    let site = site("guard-reloads");
    let (proxy, backend) = site.start(|config| config);
    let other = |config: Config, addresses: &str, prefix: &str| {
        let peer = site.ends.proxy_peer().allowed_ips([prefix]);
        config.set("addresses", addresses).peer(peer)
    };
    let configs = [
        site.ends.backend_waiting(),
        other(site.ends.backend_interface(), "[\"10.77.0.11/24\", \"fd77::11/64\", \"10.78.0.11/24\"]", "10.99.0.0/16"),
    ];
    let apps = site.targets()[0].apps();
    let (done, pings) = (AtomicBool::new(false), AtomicU64::new(0));
    let harm = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                probe::Ping::to(BACKEND[0]).count(20).at_once(4).send(&site.ends.proxy).assert_all_answered();
                pings.fetch_add(20, Ordering::Relaxed);
            }
        });
        let attacks = scope.spawn(|| {
            let attacker = Attacker::new(&site.stranger);
            let (mut harm, mut rounds) = (Harm::default(), 0);
            while !done.load(Ordering::Relaxed) || rounds < 10 {
                harm = harm + attacker.attack(site.targets()[0], &apps, &[PORT, 9]);
                rounds += 1;
            }
            harm
        });
        for round in 0..50 {
            backend.reload(&configs[(round + 1) % 2]);
        }
        done.store(true, Ordering::Relaxed);
        attacks.join().unwrap()
    });
    assert_eq!(harm, Harm::default());
    assert!(pings.load(Ordering::Relaxed) > 100, "{pings:?}");
    drop(proxy);
}

/// Somebody's packets by way of the proxy, as their router: forged ones would have been sent on into the tunnel.
#[test]
fn a_forwarding_proxy_sends_no_forged_packet_of_a_lan_host_into_the_tunnel() {
    for (fail_closed, expected) in [("false", 1), ("true", 0)] {
        let site = site(&format!("guard-forward-{fail_closed}"));
        let _daemons = site.start(|config| config.set("fail_closed", fail_closed));
        let apps = site.targets()[0].apps();
        let attacker = Attacker::new(&site.stranger);
        site.stranger.ip(&format!("route add fd77::/64 via {}", PROXY_LAN[1]));
        site.stranger.ip(&format!("route add 10.77.0.0/24 via {}", PROXY_LAN[0]));
        for (version, source) in [(0, STRANGER[0]), (1, STRANGER[1]), (0, PROXY[0]), (1, PROXY[1])] {
            attacker.sockets.send(&Between::new(source, BACKEND[version]).udp(SOURCE_PORT, PORT, b"FORGED"));
        }
        // Behind them through the same tunnel.
        site.ends
            .proxy
            .run(|| -> io::Result<_> {
                let socket = UdpSocket::bind((PROXY[1], 0))?;
                socket.send_to(LAST, (BACKEND[1], PORT))
            })
            .unwrap();
        let mut forged = 0;
        wait::until("what was sent behind them arrives", || {
            let mut datagram = [0; 64];
            let length = apps.inside[1].recv(&mut datagram).unwrap_or_default();
            forged += usize::from(datagram[..length] == *b"FORGED");
            datagram[..length] == *LAST
        });
        assert_eq!((forged, received(&apps.inside[..1])), (expected, 0), "fail_closed = {fail_closed}");
    }
}
