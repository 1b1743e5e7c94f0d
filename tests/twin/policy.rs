//! What a peer may send (`docs/configuration.md`, "Exposed ports"): with lists of what is exposed, and of all that was sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use underpass::proto::error::DropReason;

use crate::twin::packet::{TCP, UDP, addresses, field, is_of_one, is_v4};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Seconds for which an answer may pass, by what it answers.
const EXCHANGE: u64 = 120;
const CONNECTION: u64 = 2 * 3600 + 240;

/// A list of what is exposed, of our own or in a network.
#[derive(Debug, Default)]
pub(crate) struct Exposed {
    pub any: bool,
    pub echo: bool,
    pub tcp: Vec<RangeInclusive<u16>>,
    pub udp: Vec<RangeInclusive<u16>>,
    pub protocols: Vec<u8>,
}

impl Exposed {
    fn is_pingable(&self) -> bool {
        self.echo || !self.tcp.is_empty() || !self.udp.is_empty() || !self.protocols.is_empty()
    }
}

/// An address with the number of its bits that count.
pub(crate) type Network = (IpAddr, usize);

fn is_within(address: IpAddr, (network, bits): Network) -> bool {
    let differ = |a: &[u8], b: &[u8]| (0..bits).any(|bit| (a[bit / 8] ^ b[bit / 8]) & 0x80 >> (bit % 8) != 0);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => !differ(&a.octets(), &b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => !differ(&a.octets(), &b.octets()),
        _ => false,
    }
}

/// An exchange: our address, the peer's, and what tells it from others.
type Exchange = (IpAddr, IpAddr, &'static str, usize);

/// What one peer may send, and what it was sent.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    own: Vec<IpAddr>,
    here: Exposed,
    networks: Vec<(Network, Exposed)>,
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
    /// We have the addresses `own`, and expose `here` at these; each network counts for all addresses in it, ours too.
    pub(crate) fn new(own: &[&str], here: Exposed, networks: Vec<(Network, Exposed)>) -> Self {
        let own = own.iter().map(|address| address.parse().expect("an address")).collect();
        Self { own, here, networks, ..Self::default() }
    }

    /// The same that was sent before, with what `other` exposes.
    pub(crate) fn exposing_as(self, other: Self) -> Self {
        Self { here: other.here, networks: other.networks, ..self }
    }

    /// Whether any list that counts for `address` says so.
    fn exposes(&self, address: IpAddr, says_so: impl Fn(&Exposed) -> bool) -> bool {
        let is_own = self.own.contains(&address);
        let within = self.networks.iter().filter(|(network, _)| is_within(address, *network));
        is_own && says_so(&self.here) || (is_own || is_of_one(address)) && within.map(|(_, list)| list).any(says_so)
    }

    fn is_pingable(&self, address: IpAddr) -> bool {
        let is_known = self.own.contains(&address) && !self.networks.is_empty();
        is_known || self.exposes(address, Exposed::is_pingable)
    }

    /// A whole packet goes to the peer. Answers to what is exposed need none themselves.
    pub(crate) fn on_sent(&mut self, now: Duration, packet: &[u8]) {
        let [near, far] = addresses(packet);
        let Some(upper) = upper(packet) else { return };
        let is_of_exposed = |list: &Exposed| {
            list.any
                || (upper.protocol == UDP && reaches(&list.udp, field(upper.message, 0)))
                || (upper.protocol == TCP && reaches(&list.tcp, field(upper.message, 0)))
        };
        let Some(exchange) = exchange(near, far, &upper, is_v4(packet)) else { return };
        if upper.protocol == TCP {
            let is_whole = !is_cut(upper.message);
            if self.own.contains(&near) || !is_whole || upper.message[13] & RST != 0 {
                return;
            }
        }
        if !self.exposes(near, is_of_exposed) {
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
        let [_, destination] = addresses(packet);
        if self.exposes(destination, |list| list.any) {
            return Ok(());
        }
        let is_ours = self.own.contains(&destination) || self.exposes(destination, |_| true);
        self.judge_here(now, packet, is_peers)
            .map_err(|why| if is_ours { why } else { DropReason::DestinationNotExposed })
    }

    fn judge_here(
        &mut self,
        now: Duration,
        packet: &[u8],
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
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
        let message = upper.message;
        let [source, destination] = addresses(packet);
        if self.exposes(destination, |list| list.protocols.contains(&upper.protocol)) {
            return Ok(());
        }
        let icmp = if is_v4(packet) { 1 } else { 58 };
        let is_short = match upper.protocol {
            TCP => is_cut(message),
            UDP => message.len() < 8,
            protocol if protocol == icmp => message.len() < 8,
            _ => return Err(DropReason::ProtocolNotExposed),
        };
        if is_short {
            let is_fragment = upper.fragment.is_some();
            return Err(if is_fragment { DropReason::StrayFragment } else { DropReason::MalformedPacket });
        }
        if upper.protocol == TCP {
            let flags = message[13];
            let is_of_a_connection = match (flags & SYN != 0, flags & RST != 0, flags & ACK != 0) {
                (_, _, true) | (false, true, false) => true,
                (true, _, false) | (false, false, false) => false,
            };
            let sent = (destination, source, "tcp", field(message, 2) << 16 | field(message, 0));
            let is_known = self.own.contains(&destination) || self.was_sent(now, &sent);
            let passes = self.exposes(destination, |list| reaches(&list.tcp, field(message, 2)))
                || (is_of_a_connection && is_known);
            return passes.then_some(()).ok_or(DropReason::NotExposed);
        }
        if upper.protocol == UDP {
            let answered = (destination, source, "udp", field(message, 2) << 16 | field(message, 0));
            let passes = self.exposes(destination, |list| reaches(&list.udp, field(message, 2)))
                || self.was_sent(now, &answered);
            return passes.then_some(()).ok_or(DropReason::NotExposed);
        }
        match (is_v4(packet), message[0]) {
            (true, 8) | (false, 128) => self.is_pingable(destination).then_some(()).ok_or(DropReason::NotExposed),
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
        let port = if is_long { field(upper.message, 0) } else { 0 };
        let may_have_been_sent = match upper.protocol {
            TCP if is_long && (self.own.contains(&near) || self.exposes(near, |list| reaches(&list.tcp, port))) => true,
            UDP if is_long && self.exposes(near, |list| reaches(&list.udp, port)) => true,
            // An answer to a ping.
            protocol if protocol == icmp && is_long && upper.message[0] == if is_v4(quoted) { 0 } else { 129 } => {
                self.is_pingable(near)
            }
            protocol => {
                let exchange = exchange(near, far, &upper, is_v4(quoted));
                let is_known = exchange.as_ref().is_some_and(|exchange| self.was_sent(now, exchange));
                is_known || (exchange.is_none() && self.exposes(near, |list| list.protocols.contains(&protocol)))
            }
        };
        may_have_been_sent.then_some(()).ok_or(DropReason::Unsolicited)
    }

    fn was_sent(&self, now: Duration, exchange: &Exchange) -> bool {
        let lifetime = if exchange.2 == "tcp" { CONNECTION } else { EXCHANGE };
        self.sent.get(exchange).is_some_and(|at| now - *at <= Duration::from_secs(lifetime))
    }
}

/// Whether a TCP header is shorter than any, or ends behind its packet.
fn is_cut(message: &[u8]) -> bool {
    message.len() < 20 || !(20..=message.len()).contains(&(usize::from(message[12] >> 4) * 4))
}

/// Whether a whole packet is a part of another.
pub(crate) fn is_fragment(packet: &[u8]) -> bool {
    upper(packet).is_some_and(|upper| upper.fragment.is_some())
}

fn reaches(ranges: &[RangeInclusive<u16>], port: usize) -> bool {
    ranges.iter().any(|range| range.contains(&(port as u16)))
}

/// The exchange that `upper` belongs to, if it is TCP, UDP or a ping, and whole enough to tell.
fn exchange(near: IpAddr, far: IpAddr, upper: &Upper<'_>, v4: bool) -> Option<Exchange> {
    let message = upper.message;
    if message.len() < 8 || upper.fragment.is_some_and(|(_, offset)| offset > 0) {
        return None;
    }
    let ports = field(message, 0) << 16 | field(message, 2);
    match (upper.protocol, message[0]) {
        (TCP, _) => Some((near, far, "tcp", ports)),
        (UDP, _) => Some((near, far, "udp", ports)),
        (1, 8) if v4 => Some((near, far, "ping", field(message, 4))),
        (58, 128) if !v4 => Some((near, far, "ping", field(message, 4))),
        _ => None,
    }
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
