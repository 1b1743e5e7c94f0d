//! A link whose backend side an attacker floods from the network in the middle.
//!
//! ```text
//!               proxy 10.1.0.2 ──┐                  ┌── attacker 10.3.0.2
//!                                ├── router (ISP) ──┤
//!    backend 10.2.0.2, 10.77.0.11 ┘                  └── newcomer 10.4.0.2
//! ```
//!
//! The attacker knows the backend side's public key. What is sent to addresses that nobody has is lost at the router.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::BitXorAssign as _;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use underpass::keys::{PrivateKey, PublicKey};
use underpass::packet::message::{INITIATION_LEN, KIND_TRANSPORT, MAC_LEN, Message};
use underpass::proto::constants::HANDSHAKES_PER_SECOND_AND_SOURCE;
use underpass::proto::cookie::{CookieJar, MacKeys};

use crate::background::Background;
use crate::crafted::Between;
use crate::flood::{Flood, Volley};
use crate::frame;
use crate::host::Host;
use crate::insider::{Insider, Malice, anywhere};
use crate::lab::Lab;
use crate::packet_socket::PacketSocket;
use crate::probe::{self, Ping};
use crate::random::Random;
use crate::underpass::{Config, Daemon, KeyPair, PORT, Peer, Role};
use crate::wait;

/// The machines, and the daemons of proxy and backend.
pub struct Siege {
    /// Where the transfers begin.
    pub proxy: Host,
    /// What is flooded.
    pub backend: Host,
    /// Its daemon.
    pub backend_side: Daemon,
    /// The proxy's.
    pub proxy_side: Daemon,
    attacker: Host,
    pub(crate) newcomer: Host,
    pub(crate) newcomers: Config,
    /// The backend side's, as long as it does not know the newcomer.
    pub(crate) without_newcomer: Config,
    /// The newcomer, as the backend side's peer.
    pub(crate) newcomer_peer: Peer,
    insider: Insider,
    backend_key: PublicKey,
    /// Transport data that the proxy has sent, with who sent it.
    recorded: Vec<(SocketAddr, Vec<u8>)>,
    _lab: Lab,
}

/// What the attacker sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Initiations that look right until a secret is computed, from random addresses.
    Initiations,
    /// Initiations of somebody who does not know the public key, from random addresses.
    WrongMac1,
    /// Noise of every length, from random addresses.
    Garbage,
    /// What the proxy has sent before, from its address.
    Replays,
    /// The same with a byte of the end changed.
    Forgeries,
    /// Initiations by a key of a peer, which go no further, from random addresses.
    HalfOpen,
    /// Initiations by a key of nobody, with cookies, from a hundred addresses of the attacker's own.
    Proven,
}

impl Attack {
    /// All of them.
    pub const ALL: [Attack; 7] = [
        Attack::Initiations,
        Attack::WrongMac1,
        Attack::Garbage,
        Attack::Replays,
        Attack::Forgeries,
        Attack::HalfOpen,
        Attack::Proven,
    ];
}

/// Where the backend is without a tunnel.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// Where it is through the tunnel.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);

/// Different packets of an attack.
const VOLLEY: usize = 4096;
/// Addresses of the attacker's that have cookies.
const PROVEN_SOURCES: u8 = 100;

impl Siege {
    /// Builds it, with the link up.
    #[track_caller]
    pub fn start(name: &str) -> Siege {
        let lab = Lab::new(name);
        let router = lab.router("router");
        let [proxy, backend, attacker, newcomer] = [("proxy", 1), ("backend", 2), ("attacker", 3), ("newcomer", 4)]
            .map(|(name, number)| {
                let host = lab.host(name);
                let [near, far] = [2, 1].map(|end| format!("10.{number}.0.{end}/24"));
                lab.link(host.port("wan", [&*near]), router.port(name, [&*far]));
                host.ip(&format!("route add default via 10.{number}.0.1"));
                host
            });
        router.ip("route add blackhole default");
        let [proxy_keys, backend_keys, newcomer_keys, insider_keys] = [(); 4].map(|()| KeyPair::generate(&proxy));

        let peer = |name, keys: &KeyPair, address| Peer::new(name, &keys.public, [address]);
        let newcomer_peer = peer("newcomer", &newcomer_keys, "10.77.0.2");
        let without_newcomer = Config::new(Role::Backend, &backend_keys, ["10.77.0.11/24"])
            .peer(peer("proxy", &proxy_keys, "10.77.0.1"))
            .peer(peer("insider", &insider_keys, "10.77.0.3"));
        let called = || peer("backend", &backend_keys, "10.77.0.11").endpoint(&format!("{OUTSIDE}:{PORT}"));
        let backend_side = Daemon::start(&backend, &without_newcomer.clone().peer(newcomer_peer.clone()));
        let calling = |keys, address| Config::new(Role::Proxy, keys, [address]).peer(called());
        let proxy_side = Daemon::start(&proxy, &calling(&proxy_keys, "10.77.0.1/24"));
        proxy_side.wait_for_state("backend", "up");
        let recorded = record(&router, &proxy);
        let newcomers = calling(&newcomer_keys, "10.77.0.2/24");
        let backend_key = backend_keys.public.parse().expect("a key of our own making");
        let insider = Insider {
            private: insider_keys.private.parse().expect("a key of our own making"),
            victim: backend_key,
            endpoint: SocketAddrV4::new(OUTSIDE, PORT),
            inner: Between::new("10.77.0.3", &INSIDE.to_string()),
        };
        Siege {
            proxy,
            backend,
            backend_side,
            proxy_side,
            attacker,
            newcomer,
            newcomers,
            without_newcomer,
            newcomer_peer,
            insider,
            backend_key,
            recorded,
            _lab: lab,
        }
    }

    /// Has the insider do harm, as much as a core can.
    #[track_caller]
    pub fn betray(&self, malice: Malice) -> Flood {
        self.insider.attack(&self.attacker, malice)
    }

    /// Begins an attack on a port of the backend: the daemon's, or another to compare with.
    #[track_caller]
    pub fn attack(&self, attack: Attack, port: u16) -> Flood {
        let victim = SocketAddrV4::new(OUTSIDE, port);
        if attack == Attack::HalfOpen {
            // As many as the attacker's core can make.
            let (insider, mut random, mut made) = (self.insider.clone(), Random::new(1), 0_u32);
            let volleys = std::iter::repeat_with(move || {
                made += 1;
                let mut seed = [7; 32];
                seed[..4].copy_from_slice(&made.to_le_bytes());
                let initiation =
                    insider.calling(1, seed).poll_transmit().expect("whoever connects sends an initiation");
                Volley::from([from_anywhere(&mut random, victim, &initiation.payload)])
            });
            return Flood::start(&self.attacker, victim, volleys);
        }
        if attack == Attack::Proven {
            let volley: Volley = (0..PROVEN_SOURCES).map(|number| self.proven(number, victim)).collect();
            return Flood::start(&self.attacker, victim, std::iter::repeat(volley));
        }
        let volley: Volley = self.packets(attack, victim).into();
        Flood::start(&self.attacker, victim, std::iter::repeat(volley))
    }

    fn packets(&self, attack: Attack, victim: SocketAddrV4) -> Vec<Vec<u8>> {
        let mut random = Random::new(1);
        let mac_keys = MacKeys::new(&self.backend_key);
        let mut seen = self.recorded.iter().cycle();
        let mut packet = |number: usize| match attack {
            Attack::Initiations => {
                let mut message = initiation(&mut random);
                mac_keys.write(&mut message, None);
                from_anywhere(&mut random, victim, &message)
            }
            Attack::WrongMac1 => {
                let message = initiation(&mut random);
                from_anywhere(&mut random, victim, &message)
            }
            Attack::Garbage => {
                let message = random.bytes(number % 1473);
                from_anywhere(&mut random, victim, &message)
            }
            Attack::Replays | Attack::Forgeries => {
                let (sender, payload) = seen.next().expect("something was recorded");
                let mut payload = payload.clone();
                if attack == Attack::Forgeries {
                    payload.last_mut().expect("it has a tag").bitxor_assign(1 + random.below(255) as u8);
                }
                let between = Between { source: sender.ip(), destination: (*victim.ip()).into() };
                between.udp(sender.port(), victim.port(), &payload)
            }
            Attack::HalfOpen | Attack::Proven => unreachable!("they are made otherwise"),
        };
        (0..VOLLEY).map(&mut packet).collect()
    }

    /// A stranger's initiation from an address of the attacker's, with the cookie that it was given there.
    fn proven(&self, number: u8, victim: SocketAddrV4) -> Vec<u8> {
        let source = Ipv4Addr::new(10, 3, 0, 100 + number);
        self.attacker.ip(&format!("address replace {source}/24 dev wan"));
        let socket = self.attacker.run(|| UdpSocket::bind((source, 0))).expect("an address of its own");
        socket.connect((OUTSIDE, PORT)).expect("there is a route");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("any socket may have one");
        let stranger = PrivateKey::from_bytes([66; 32]).expect("not all zeros");
        let mut device = Insider { private: stranger, ..self.insider.clone() }.calling(1, [number; 32]);
        let mut message = device.poll_transmit().expect("whoever connects sends an initiation").payload;
        let (receiver, mut jar, mut buffer) = (MacKeys::new(&self.backend_key), CookieJar::default(), [0; 2048]);
        wait::until("a cookie is demanded of the attacker, and given", || {
            let now = wait::now();
            jar.write_macs(now, &receiver, &mut message);
            // More at once than one source may without a cookie.
            (0..2 * HANDSHAKES_PER_SECOND_AND_SOURCE).for_each(|_| drop(socket.send(&message)));
            let Ok(length) = socket.recv(&mut buffer) else { return false };
            let Ok(Message::CookieReply(reply)) = Message::parse(&buffer[..length]) else { return false };
            jar.consume_reply(now, &receiver, &reply).is_some()
        });
        jar.write_macs(wait::now(), &receiver, &mut message);
        let from = socket.local_addr().expect("it is bound").port();
        Between { source: source.into(), destination: (*victim.ip()).into() }.udp(from, victim.port(), &message)
    }

    /// Starts a daemon that the backend side knows and has not heard of yet, and ends it again. Returns how long it took from
    /// the start of the program until its link was up.
    #[track_caller]
    pub fn newcomer_pairs(&self) -> Duration {
        let at = wait::now();
        let daemon = Daemon::start(&self.newcomer, &self.newcomers);
        daemon.wait_for_state("backend", "up");
        let elapsed = at.elapsed();
        assert_eq!(daemon.stop(), 0);
        elapsed
    }
}

/// Has the proxy say something, and listens at the router.
#[track_caller]
fn record(router: &Host, proxy: &Host) -> Vec<(SocketAddr, Vec<u8>)> {
    let socket = PacketSocket::open(router, "proxy");
    // As long as a TCP segment.
    Ping::to(&INSIDE.to_string()).count(500).at_once(8).payload(1300).send(proxy).assert_all_answered();
    probe::flood_ping(proxy, &INSIDE.to_string()).assert_all_answered();
    let frames = std::iter::from_fn(|| socket.receive());
    let recorded = frames.filter_map(|frame| {
        let udp = frame::datagram(&frame)?;
        let payload = &frame[udp.payload];
        // Several datagrams of one send are one frame here.
        let is_one = payload.first() == Some(&KIND_TRANSPORT) && payload.len() <= 1472;
        is_one.then(|| (udp.source, payload.to_vec()))
    });
    recorded.collect()
}

/// From an address and a port that nobody has chosen.
fn from_anywhere(random: &mut Random, victim: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let source = anywhere(random);
    Between { source: IpAddr::V4(*source.ip()), destination: IpAddr::V4(*victim.ip()) }.udp(
        source.port(),
        victim.port(),
        payload,
    )
}

/// One whose secrets are noise, without MACs.
fn initiation(random: &mut Random) -> Vec<u8> {
    let mut message = random.bytes(INITIATION_LEN);
    message[..4].copy_from_slice(&[1, 1, 1, 0]);
    message[INITIATION_LEN - MAC_LEN..].fill(0);
    message
}

/// A program without encryption that takes in whatever comes to its port.
pub struct Sink {
    _receiver: Background,
}

/// Where it listens.
pub const SINK_PORT: u16 = 7999;

impl Sink {
    /// On the backend, with as large a buffer as the daemon's.
    #[track_caller]
    pub fn start(siege: &Siege) -> Sink {
        let socket = siege.backend.run(|| UdpSocket::bind((OUTSIDE, SINK_PORT))).expect("a free UDP port");
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).expect("the laboratory is root's");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("any socket may have one");
        let receiver = Background::new(|end| {
            siege.backend.spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while !end.has_come() {
                    let _ = socket.recv_from(&mut buffer);
                }
            })
        });
        Sink { _receiver: receiver }
    }
}
