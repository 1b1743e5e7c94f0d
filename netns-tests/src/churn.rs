//! A link's life in fast motion: peers come and go by reloads, addresses change, floods come in bursts, while datagrams with
//! the name of whom they are for pass all the time.
//!
//! The machines are those of [`Siege`]; its newcomer is there from the beginning.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::host::Host;
use crate::process::Held;
use crate::random::Random;
use crate::siege::{Attack, INSIDE, Siege};
use crate::underpass::{Daemon, KeyPair, PORT, Peer};
use crate::wait;

/// What came of it.
#[derive(Debug)]
pub struct Churned {
    /// What the daemon in the middle of it held after each event.
    pub held: Vec<Held>,
    /// Datagrams that arrived where they should.
    pub delivered: u64,
    /// Datagrams that arrived elsewhere, or came back from another address than that of whom they were for.
    pub strays: u64,
}

/// Addresses in the tunnel of those who are spoken to.
const PEERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];
const TAG_PORT: u16 = 7000;
const OTHERS: usize = 12;
const BURST: Duration = Duration::from_millis(300);

/// Goes on for so long.
#[track_caller]
pub fn churn(name: &str, during: Duration) -> Churned {
    let siege = Siege::start(name);
    let newcomer = Daemon::start(&siege.newcomer, &siege.newcomers);
    newcomer.wait_for_state("backend", "up");
    let tagged = Tagged::start(&siege);
    let others: Vec<KeyPair> = (0..OTHERS).map(|_| KeyPair::generate(&siege.backend)).collect();
    let (start, mut random, mut held) = (wait::now(), Random::new(4), vec![]);
    let mut roamers = [(&siege.proxy, 1), (&siege.newcomer, 4)].map(|(host, network)| Roamer::new(host, network));
    for event in 0.. {
        if start.elapsed() >= during {
            break;
        }
        match event % 4 {
            0 => reload(&siege, &others, &mut random),
            1 | 2 => roamers[event % 2].roam(),
            _ => burst(&siege, Attack::ALL[event / 4 % Attack::ALL.len()]),
        }
        tagged.wait_for_progress();
        held.push(siege.backend_side.as_ref().held());
    }
    let (delivered, strays) = tagged.stop();
    Churned { held, delivered, strays }
}

impl Churned {
    /// How much more was held in the last tenth of the time than in a tenth after the first fifth, by their medians.
    pub fn growth(&self, of: impl Fn(&Held) -> u64) -> i64 {
        let (length, tenth) = (self.held.len(), (self.held.len() / 10).max(1));
        let median = |from: usize| {
            let mut values: Vec<u64> = self.held[from..from + tenth].iter().map(&of).collect();
            values.sort_unstable();
            values[tenth / 2].cast_signed()
        };
        median(length - tenth) - median(length / 5)
    }
}

/// Some of the others, and not always the newcomer.
fn reload(siege: &Siege, others: &[KeyPair], random: &mut Random) {
    let mut config = siege.without_newcomer.clone();
    if !random.one_in(3) {
        config = config.peer(siege.newcomer_peer.clone());
    }
    for (number, keys) in others.iter().enumerate().filter(|_| random.one_in(2)).collect::<Vec<_>>() {
        let address = format!("10.77.0.{}", 20 + number);
        config = config.peer(Peer::new(&format!("other{number}"), &keys.public, [&*address]));
    }
    siege.backend_side.reload(&config);
}

fn burst(siege: &Siege, attack: Attack) {
    let flood = siege.attack(attack, PORT);
    wait::pass(BURST);
    flood.stop();
}

/// A machine that has one of two addresses in turn.
struct Roamer {
    host: Host,
    addresses: [String; 2],
}

impl Roamer {
    fn new(host: &Host, network: u8) -> Roamer {
        // Or the second address would go with the first.
        host.set_sysctl("ipv4/conf/all/promote_secondaries", "1");
        Roamer { host: host.clone(), addresses: [2, 3].map(|end| format!("10.{network}.0.{end}/24")) }
    }

    fn roam(&mut self) {
        let [old, new] = &self.addresses;
        self.host.ip(&format!("address add {new} dev wan"));
        self.host.ip(&format!("address del {old} dev wan"));
        self.addresses.swap(0, 1);
    }
}

/// Datagrams that say whom they are for, from the backend to both others, which send them back.
struct Tagged {
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    arrived: [AtomicU64; 2],
    returned: AtomicU64,
    strays: AtomicU64,
}

impl Tagged {
    #[track_caller]
    fn start(siege: &Siege) -> Tagged {
        let counts = Arc::<Counts>::default();
        let bind = |host: &Host, address: Ipv4Addr, port| {
            let socket = host.run(|| UdpSocket::bind((address, port))).expect("a free UDP port");
            socket.set_read_timeout(Some(Duration::from_millis(1))).expect("any socket may have one");
            socket
        };
        let mut threads: Vec<_> = [&siege.proxy, &siege.newcomer]
            .into_iter()
            .enumerate()
            .map(|(own, host)| {
                // On all addresses: also what is not for this one would be heard.
                let (socket, counts) = (bind(host, Ipv4Addr::UNSPECIFIED, TAG_PORT), counts.clone());
                host.spawn(move || counts.answer(own, &socket))
            })
            .collect();
        let (socket, theirs) = (bind(&siege.backend, INSIDE, 0), counts.clone());
        threads.push(siege.backend.spawn(move || theirs.ask(&socket)));
        Tagged { counts, threads }
    }

    /// Until the proxy, which always stays, has got more.
    #[track_caller]
    fn wait_for_progress(&self) {
        let arrived = || self.counts.arrived[0].load(Ordering::Relaxed);
        let before = arrived();
        wait::until("what is for the proxy arrives there", || arrived() > before + 5);
    }

    fn stop(self) -> (u64, u64) {
        self.counts.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no panic there"));
        (self.counts.returned.load(Ordering::Relaxed), self.counts.strays.load(Ordering::Relaxed))
    }
}

impl Counts {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Tags are the peers' numbers.
    fn answer(&self, own: usize, socket: &UdpSocket) {
        let mut tag = [0; 2];
        while self.goes_on() {
            let Ok((1, from)) = socket.recv_from(&mut tag) else { continue };
            let counter = if usize::from(tag[0]) == own { &self.arrived[own] } else { &self.strays };
            counter.fetch_add(1, Ordering::Relaxed);
            let _ = socket.send_to(&tag[..1], from);
        }
    }

    fn ask(&self, socket: &UdpSocket) {
        let mut tag = [0; 2];
        while self.goes_on() {
            for (number, peer) in (0..).zip(PEERS) {
                // While a peer is away, nothing can be sent to it.
                let _ = socket.send_to(&[number], SocketAddr::from((peer, TAG_PORT)));
            }
            while let Ok((1, from)) = socket.recv_from(&mut tag) {
                let is_right = PEERS.get(usize::from(tag[0])).is_some_and(|peer| from.ip() == *peer);
                let counter = if is_right { &self.returned } else { &self.strays };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
