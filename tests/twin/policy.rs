//! What a peer may send (`docs/configuration.md`, "Exposed ports"): with lists of what is exposed, and of all that was sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use underpass::proto::error::DropReason;

use crate::twin::packet::{TCP, UDP, addresses, field, is_v4};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// What is exposed.
#[derive(Debug, Default)]
pub(crate) struct Exposed {
    pub any: bool,
    pub echo: bool,
    pub tcp: Vec<RangeInclusive<u16>>,
    pub udp: Vec<RangeInclusive<u16>>,
    pub protocols: Vec<u8>,
}

/// An exchange: our address, the peer's, and what tells it from others.
type Exchange = (IpAddr, IpAddr, &'static str, usize);

/// What one peer may send, and what it was sent.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    exposed: Exposed,
    sent: BTreeMap<Exchange, Duration>,
    /// Packets whose first fragment passed: addresses, protocol in IPv4, identification.
    begun: BTreeMap<(IpAddr, IpAddr, u8, usize), Duration>,
}

/// A packet's upper layer.
struct Upper<'p> {
    protocol: u8,
    /// Identification, and offset in bytes.
    fragment: Option<(usize, usize)>,
    message: &'p [u8],
}

impl Policy {
    pub(crate) fn new(exposed: Exposed) -> Self {
        Self { exposed, ..Self::default() }
    }

    /// The same that was sent before, with what `other` exposes.
    pub(crate) fn exposing_as(self, other: Self) -> Self {
        Self { exposed: other.exposed, ..self }
    }

    /// A whole packet goes to the peer. Answers to what is exposed need none themselves.
    pub(crate) fn on_sent(&mut self, now: Duration, packet: &[u8]) {
        let [near, far] = addresses(packet);
        let is_of_exposed = |upper: &Upper<'_>| {
            self.exposed.any || (upper.protocol == UDP && reaches(&self.exposed.udp, field(upper.message, 0)))
        };
        let Some(upper) = upper(packet) else { return };
        if let Some(exchange) = exchange(near, far, &upper, is_v4(packet)).filter(|_| !is_of_exposed(&upper)) {
            self.sent.insert(exchange, now);
        }
    }

    /// A whole packet comes from the peer, from an address of its own.
    pub(crate) fn judge(
        &mut self,
        now: Duration,
        packet: &[u8],
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        if self.exposed.any {
            return Ok(());
        }
        let upper = upper(packet).ok_or(DropReason::ProtocolNotExposed)?;
        let [source, destination] = addresses(packet);
        let Some((identification, offset)) = upper.fragment else {
            return self.judge_upper(now, packet, &upper, is_peers);
        };
        let name = (source, destination, if is_v4(packet) { upper.protocol } else { 0 }, identification);
        if offset == 0 {
            self.judge_upper(now, packet, &upper, is_peers)?;
            self.begun.insert(name, now);
            return Ok(());
        }
        let is_begun = self.begun.get(&name).is_some_and(|at| now - *at <= Duration::from_secs(30));
        if is_begun && offset >= 64 { Ok(()) } else { Err(DropReason::StrayFragment) }
    }

    fn judge_upper(
        &self,
        now: Duration,
        packet: &[u8],
        upper: &Upper<'_>,
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        let exposed = &self.exposed;
        let message = upper.message;
        if exposed.protocols.contains(&upper.protocol) {
            return Ok(());
        }
        let [source, destination] = addresses(packet);
        let icmp = if is_v4(packet) { 1 } else { 58 };
        let needed = match upper.protocol {
            TCP => 20,
            UDP => 8,
            protocol if protocol == icmp => 8,
            _ => return Err(DropReason::ProtocolNotExposed),
        };
        if message.len() < needed {
            let is_fragment = upper.fragment.is_some();
            return Err(if is_fragment { DropReason::StrayFragment } else { DropReason::MalformedPacket });
        }
        if upper.protocol == TCP {
            let opens = message[13] & SYN != 0 && message[13] & ACK == 0;
            let passes = !opens || reaches(&exposed.tcp, field(message, 2));
            return passes.then_some(()).ok_or(DropReason::NotExposed);
        }
        if upper.protocol == UDP {
            let answered = (destination, source, "udp", field(message, 2) << 16 | field(message, 0));
            let passes = reaches(&exposed.udp, field(message, 2)) || self.was_sent(now, &answered);
            return passes.then_some(()).ok_or(DropReason::NotExposed);
        }
        match (is_v4(packet), message[0]) {
            (true, 8) | (false, 128) => {
                let is_any =
                    exposed.echo || !exposed.tcp.is_empty() || !exposed.udp.is_empty() || !exposed.protocols.is_empty();
                is_any.then_some(()).ok_or(DropReason::NotExposed)
            }
            (true, 0) | (false, 129) => {
                let asked = (destination, source, "ping", field(message, 4));
                self.was_sent(now, &asked).then_some(()).ok_or(DropReason::Unsolicited)
            }
            (true, 3 | 11 | 12) | (false, 1..=4) => self.judge_error(now, destination, &message[8..], is_peers),
            _ => Err(DropReason::ProtocolNotExposed),
        }
    }

    /// An ICMP error to `destination` quotes the beginning of a packet.
    fn judge_error(
        &self,
        now: Duration,
        destination: IpAddr,
        quoted: &[u8],
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        let header_len = match quoted.first().map(|byte| byte >> 4) {
            Some(4) => 20,
            Some(6) => 40,
            _ => return Err(DropReason::ProtocolNotExposed),
        };
        if quoted.len() < header_len {
            return Err(DropReason::ProtocolNotExposed);
        }
        let upper = upper(quoted).ok_or(DropReason::ProtocolNotExposed)?;
        let [near, far] = addresses(quoted);
        let is_later = upper.fragment.is_some_and(|(_, offset)| offset > 0);
        if near != destination || !is_peers(far) || is_later {
            return Err(DropReason::Unsolicited);
        }
        let icmp = if is_v4(quoted) { 1 } else { 58 };
        let is_long = upper.message.len() >= 8;
        let may_have_been_sent = match upper.protocol {
            TCP if is_long => true,
            UDP if is_long && reaches(&self.exposed.udp, field(upper.message, 0)) => true,
            // An answer to a ping.
            protocol if protocol == icmp && is_long && upper.message[0] == if is_v4(quoted) { 0 } else { 129 } => {
                let Exposed { echo, tcp, udp, protocols, .. } = &self.exposed;
                *echo || !tcp.is_empty() || !udp.is_empty() || !protocols.is_empty()
            }
            protocol if matches!(protocol, TCP | UDP) || protocol == icmp => {
                let exchange = exchange(near, far, &upper, is_v4(quoted));
                let was_sent = exchange.is_some_and(|exchange| self.was_sent(now, &exchange));
                was_sent || (!is_exchange(&upper, is_v4(quoted)) && self.exposed.protocols.contains(&protocol))
            }
            protocol => self.exposed.protocols.contains(&protocol),
        };
        may_have_been_sent.then_some(()).ok_or(DropReason::Unsolicited)
    }

    fn was_sent(&self, now: Duration, exchange: &Exchange) -> bool {
        self.sent.get(exchange).is_some_and(|at| now - *at <= Duration::from_secs(120))
    }
}

/// Whether a whole packet is a part of another.
pub(crate) fn is_fragment(packet: &[u8]) -> bool {
    upper(packet).is_some_and(|upper| upper.fragment.is_some())
}

fn reaches(ranges: &[RangeInclusive<u16>], port: usize) -> bool {
    ranges.iter().any(|range| range.contains(&(port as u16)))
}

/// Whether it is UDP or a ping, whole enough to tell which.
fn is_exchange(upper: &Upper<'_>, v4: bool) -> bool {
    let ping = if v4 { (1, 8) } else { (58, 128) };
    upper.message.len() >= 8 && (upper.protocol == UDP || (upper.protocol, upper.message[0]) == ping)
}

fn exchange(near: IpAddr, far: IpAddr, upper: &Upper<'_>, v4: bool) -> Option<Exchange> {
    if !is_exchange(upper, v4) || upper.fragment.is_some_and(|(_, offset)| offset > 0) {
        return None;
    }
    let message = upper.message;
    Some(match upper.protocol {
        UDP => (near, far, "udp", field(message, 0) << 16 | field(message, 2)),
        _ => (near, far, "ping", field(message, 4)),
    })
}

/// `packet` has at least an IP header without options.
fn upper(packet: &[u8]) -> Option<Upper<'_>> {
    if is_v4(packet) {
        let fragment = field(packet, 6) & 0x3fff;
        let place = (field(packet, 4), (fragment & 0x1fff) * 8);
        let upper = Upper { protocol: packet[9], fragment: (fragment != 0).then_some(place), message: &packet[20..] };
        return (packet[0] & 15 == 5).then_some(upper);
    }
    let mut upper = Upper { protocol: packet[6], fragment: None, message: &packet[40..] };
    let mut headers = 0;
    while let 0 | 43 | 44 | 60 = upper.protocol {
        headers += 1;
        if upper.protocol == 43 || upper.fragment.is_some() || headers > 4 || upper.message.len() < 8 {
            return None;
        }
        let header = upper.message;
        let length = if upper.protocol == 44 { 8 } else { 8 + 8 * usize::from(header[1]) };
        upper.message = header.get(length..)?;
        if upper.protocol == 44 {
            let offset = field(header, 2) & 0xfff8;
            upper.fragment = Some((field(header, 4) << 16 | field(header, 6), offset));
            if offset > 0 {
                upper.protocol = 44;
                return Some(upper);
            }
        }
        upper.protocol = header[0];
    }
    Some(upper)
}
