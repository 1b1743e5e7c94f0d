//! What the man in the middle does with what he carries, and what a stranger sends.
//!
//! The same tools against both halves of the demo. `relay` is how he comes between; whether he succeeded is judged by
//! `story` from the apps' books and the daemons' counters.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::daemon::{self, TUNNEL_PORT};
use super::frame::{Layout, Transport};
use super::network::{APPS, Network, PROXY};
use super::relay::Meddler;
use super::shop::AMOUNT;
use super::sniffer::Recording;

/// What the thief wants charged instead of `AMOUNT`: as long, so that nothing else must change.
pub(super) const STOLEN: &str = "999.00";

/// Smaller datagrams carry no payment and no receipt.
const PAYMENT_DATAGRAM: usize = 128;
/// The bit flipper changes one in so many. The rest lets the connections inside recover quickly.
const FLIP_EVERY: usize = 4;
/// A prime: the changed byte wanders over the whole datagram, header and ciphertext.
const STRIDE: usize = 7919;

/// How long a stranger waits for an answer: a thousand round trips of this network.
const ANSWER: Duration = Duration::from_millis(250);
/// How many datagrams of noise a stranger sends to each daemon.
const NOISE: usize = 16;
/// First bytes that look like a message: the four kinds, and one that is none.
const KINDS: [u8; 5] = [1, 2, 3, 4, 0xff];

/// Changes amounts on the way to the app, and receipts on the way back, so that the customer notices nothing.
#[derive(Debug, Default)]
pub(super) struct Thief {
    /// How many words he found to change.
    pub(super) changed: usize,
}

impl Meddler for Thief {
    fn meddle(&mut self, _layout: &Layout, payload: &mut [u8]) {
        self.changed += replace(payload, &format!("sum={AMOUNT}"), &format!("sum={STOLEN}"));
        self.changed += replace(payload, &format!("charged={STOLEN}"), &format!("charged={AMOUNT}"));
    }
}

/// Flips single bits of the tunnel's datagrams, blindly, after looking for something to steal.
#[derive(Debug, Default)]
pub(super) struct BitFlipper {
    /// Set when he may begin. Before that, connections are made, whose first packets TCP waits seconds for.
    armed: Arc<AtomicBool>,
    /// Looks first.
    pub(super) thief: Thief,
    /// How many datagrams he changed.
    pub(super) flipped: usize,
    seen: usize,
}

impl BitFlipper {
    /// Begins when `armed` is set.
    pub(super) fn new(armed: Arc<AtomicBool>) -> Self {
        Self { armed, ..Self::default() }
    }
}

impl Meddler for BitFlipper {
    fn meddle(&mut self, layout: &Layout, payload: &mut [u8]) {
        self.thief.meddle(layout, payload);
        let armed = self.armed.load(Ordering::Relaxed);
        if !armed || layout.transport != Transport::Udp || payload.len() < PAYMENT_DATAGRAM {
            return;
        }
        self.seen += 1;
        if self.seen.is_multiple_of(FLIP_EVERY) {
            let place = self.seen * STRIDE % payload.len();
            payload[place] ^= 1 << (self.seen % 8);
            self.flipped += 1;
        }
    }
}

fn replace(payload: &mut [u8], old: &str, new: &str) -> usize {
    assert_eq!(old.len(), new.len(), "a TCP stream keeps its length");
    let places: Vec<usize> = payload
        .windows(old.len())
        .enumerate()
        .filter_map(|(place, window)| (window == old.as_bytes()).then_some(place))
        .collect();
    for place in &places {
        payload[*place..*place + new.len()].copy_from_slice(new.as_bytes());
    }
    places.len()
}

/// How a stranger fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Knocking {
    /// Datagrams sent.
    pub(super) sent: usize,
    /// Datagrams that came back.
    pub(super) answers: usize,
}

/// From an address of his own a stranger sends noise to the daemons, and the handshakes that he has recorded.
pub(super) fn knock(network: &Network, recording: &Recording) -> Result<Knocking> {
    network.untrusted.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        let mut sent = 0;
        for address in [PROXY, APPS[0], APPS[1]] {
            for index in 0..NOISE {
                let mut noise = vec![0; 64 * (index + 1)];
                daemon::fill(&mut noise)?;
                noise[0] = KINDS[index % KINDS.len()];
                socket.send_to(&noise, (address, TUNNEL_PORT))?;
                sent += 1;
            }
        }
        for (destination, payload) in handshakes(recording) {
            socket.send_to(payload, destination)?;
            sent += 1;
        }
        Ok(Knocking { sent, answers: count_answers(&socket)? })
    })
}

/// The recorded handshake messages and cookie replies: everything that is not transport data.
fn handshakes(recording: &Recording) -> impl Iterator<Item = (SocketAddr, &[u8])> {
    const TRANSPORT_DATA: u8 = 4;
    let is_handshake = |payload: &[u8]| payload.first().is_some_and(|kind| *kind < TRANSPORT_DATA);
    let at_the_port = |address: SocketAddrV4| SocketAddr::from((*address.ip(), TUNNEL_PORT));
    recording
        .payloads()
        .filter(move |(layout, payload)| layout.transport == Transport::Udp && is_handshake(payload))
        .map(move |(layout, payload)| (at_the_port(layout.destination), payload))
}

fn count_answers(socket: &UdpSocket) -> Result<usize> {
    socket.set_read_timeout(Some(ANSWER))?;
    let mut answers = 0;
    let mut buffer = [0; 2048];
    while socket.recv_from(&mut buffer).is_ok() {
        answers += 1;
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thief_changes_every_amount_and_nothing_else() {
        let mut payload = *b"sum=120.00&sum=120.00&order=120.00";
        assert_eq!(replace(&mut payload, "sum=120.00", "sum=999.00"), 2);
        assert_eq!(&payload, b"sum=999.00&sum=999.00&order=120.00");
    }
}
