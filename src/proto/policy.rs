//! The ports and directions a peer may use: it reaches what is exposed to it, and otherwise answers what it was sent.
//!
//! | from the peer | passes |
//! |---|---|
//! | TCP | to an exposed port; from and to any, unless it opens a connection (SYN without ACK) |
//! | UDP | to an exposed port; as an answer, with exactly the addresses and ports of what was sent not long ago |
//! | ping | if anything is exposed; its answer, if that ping was sent |
//! | ICMP error | about a packet that could have been sent to this peer |
//! | fragment | the first, if the packet may; others, if the first did |
//! | other protocols | if exposed by number |
//!
//! TCP needs no table: a connection lives as long as its ends want, over restarts of this daemon, and what belongs to none
//! is answered with a reset by the kernel and reaches no application. What is judged is one packet's headers; which
//! addresses a peer may use was decided before.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{IpPacket, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::packet::tcp::{TCP_ACK, TCP_HEADER_LEN, TCP_SYN};

use super::constants::{FLOW_LIFETIME, FRAGMENT_LIFETIME, MAX_FLOWS, MAX_FRAGMENTED_PACKETS};
use super::error::DropReason;
use super::flow_table::{Flow, FlowTable};

/// Something that may be exposed to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Whatever there is: no packet is judged.
    Any,
    /// Nothing but answers to pings.
    Echo,
    /// TCP connections to these ports.
    Tcp(PortRange),
    /// UDP datagrams to these ports.
    Udp(PortRange),
    /// Every packet of an IP protocol, by its number.
    Protocol(u8),
}

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest, not below the first.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ports = |protocol, range: &PortRange| match (*range, range.first == range.last) {
            (PortRange::ALL, _) => f.write_str(protocol),
            (_, true) => write!(f, "{protocol}/{}", range.first),
            (_, false) => write!(f, "{protocol}/{}-{}", range.first, range.last),
        };
        match self {
            Self::Any => f.write_str("any"),
            Self::Echo => f.write_str("icmp-echo"),
            Self::Tcp(range) => ports("tcp", range),
            Self::Udp(range) => ports("udp", range),
            Self::Protocol(number) => write!(f, "ip/{number}"),
        }
    }
}

/// What one peer may send to this machine, and to what lies behind it. By default nothing but answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    tells_of_refusal: bool,
    any: bool,
    echo: bool,
    tcp: Ports,
    udp: Ports,
    /// A bit for each protocol number.
    protocols: [u64; 4],
}

/// Ranges in order that do not touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Ports(Box<[PortRange]>);

impl Ports {
    fn new(ranges: impl Iterator<Item = PortRange>) -> Self {
        let mut ranges: Vec<PortRange> = ranges.collect();
        ranges.sort_unstable();
        let mut joined: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before) if range.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Self(joined.into())
    }

    fn contains(&self, port: u16) -> bool {
        let at = self.0.partition_point(|range| range.last < port);
        self.0.get(at).is_some_and(|range| range.first <= port)
    }
}

/// What was sent to peers and may be answered, and which packets arrive in parts: of all peers, for all threads.
#[derive(Debug)]
pub(super) struct Flows {
    sent: FlowTable,
    /// Those whose first fragment was admitted.
    fragmented: FlowTable,
}

impl Flows {
    /// `key` must be nobody else's to know.
    pub(super) fn new(now: Instant, key: &[u8; 32]) -> Self {
        Self { sent: FlowTable::new(now, key, MAX_FLOWS), fragmented: FlowTable::new(now, key, MAX_FRAGMENTED_PACKETS) }
    }
}

impl Policy {
    /// A peer reaches `services`, and may ping if there are any.
    pub fn exposing(services: impl IntoIterator<Item = Service>) -> Self {
        let services: Vec<Service> = services.into_iter().collect();
        let ports = |of: fn(&Service) -> Option<PortRange>| Ports::new(services.iter().filter_map(of));
        let mut protocols = [0; 4];
        for service in &services {
            if let Service::Protocol(number) = service {
                protocols[usize::from(number / 64)] |= 1 << (number % 64);
            }
        }
        Self {
            tells_of_refusal: false,
            any: services.contains(&Service::Any),
            echo: !services.is_empty(),
            tcp: ports(|service| if let Service::Tcp(range) = service { Some(*range) } else { None }),
            udp: ports(|service| if let Service::Udp(range) = service { Some(*range) } else { None }),
            protocols,
        }
    }

    /// The same, and the peer is told when it may not reach a port, so that it need not wait.
    pub fn telling_of_refusal(self) -> Self {
        Self { tells_of_refusal: true, ..self }
    }

    pub(super) fn tells_of_refusal(&self) -> bool {
        self.tells_of_refusal
    }

    /// Called for every packet that is sent to the peer, before it leaves. It may be a superpacket.
    pub(super) fn on_sent(&self, now: Instant, flows: &Flows, packet: &IpPacket<'_>) {
        // TCP tells by itself what it answers.
        if packet.protocol() == PROTOCOL_TCP || self.any {
            return;
        }
        let Some(headers) = Headers::of(packet).ok().filter(|headers| !headers.is_later_fragment()) else { return };
        let flow = match Kind::of(&headers) {
            // Whoever may ask needs no answer to do so again.
            Some(Kind::Udp { source, destination }) if !self.udp.contains(source) => {
                udp_flow(&headers, source, destination)
            }
            Some(Kind::EchoRequest(identifier)) => echo_flow(&headers, identifier),
            _ => return,
        };
        flows.sent.insert(now, &flow);
    }

    /// Whether `packet`, from an address that the peer may use, may pass. `is_peers` says which other addresses it may use.
    pub(super) fn judge(
        &self,
        now: Instant,
        flows: &Flows,
        packet: &IpPacket<'_>,
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        if self.any {
            return Ok(());
        }
        let headers = Headers::of(packet).map_err(|_| DropReason::ProtocolNotExposed)?;
        let Some(fragment) = headers.fragment else { return self.judge_message(now, flows, &headers, is_peers) };
        let flow = fragment_flow(&headers, fragment);
        if headers.is_later_fragment() {
            let is_expected =
                fragment.offset >= LONGEST_JUDGED_HEADER && flows.fragmented.contains(now, &flow, FRAGMENT_LIFETIME);
            return if is_expected { Ok(()) } else { Err(DropReason::StrayFragment) };
        }
        self.judge_message(now, flows, &headers, is_peers)?;
        flows.fragmented.insert(now, &flow);
        Ok(())
    }

    /// Judges what has an upper-layer header.
    fn judge_message(
        &self,
        now: Instant,
        flows: &Flows,
        headers: &Headers<'_>,
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        if self.exposes_protocol(headers.protocol) {
            return Ok(());
        }
        let was_sent = |flow: Flow| flows.sent.contains(now, &flow, FLOW_LIFETIME);
        let pass_if = |passes: bool, reason| if passes { Ok(()) } else { Err(reason) };
        match Kind::of(headers) {
            Some(Kind::Tcp { opens, destination }) => {
                pass_if(!opens || self.tcp.contains(destination), DropReason::NotExposed)
            }
            Some(Kind::Udp { source, destination }) => {
                let answers = || was_sent(udp_flow(&headers.reversed(), destination, source));
                pass_if(self.udp.contains(destination) || answers(), DropReason::NotExposed)
            }
            Some(Kind::EchoRequest(_)) => pass_if(self.echo, DropReason::NotExposed),
            Some(Kind::EchoReply(identifier)) => {
                pass_if(was_sent(echo_flow(&headers.reversed(), identifier)), DropReason::Unsolicited)
            }
            Some(Kind::Error(quoted)) => {
                let is_ours = quoted.source == headers.destination && is_peers(quoted.destination);
                pass_if(is_ours && self.may_have_sent(was_sent, &quoted), DropReason::Unsolicited)
            }
            Some(Kind::Other) => Err(DropReason::ProtocolNotExposed),
            None if headers.fragment.is_some() => Err(DropReason::StrayFragment),
            None => Err(DropReason::MalformedPacket),
        }
    }

    /// Whether an error may be about the packet of which `quoted` is the beginning, from here to the peer.
    fn may_have_sent(&self, was_sent: impl Fn(Flow) -> bool, quoted: &Headers<'_>) -> bool {
        if quoted.is_later_fragment() {
            return false;
        }
        match Kind::of_quoted(quoted) {
            Some(Kind::Tcp { .. }) => true,
            Some(Kind::Udp { source, destination }) => {
                self.udp.contains(source) || was_sent(udp_flow(quoted, source, destination))
            }
            Some(Kind::EchoRequest(identifier)) => was_sent(echo_flow(quoted, identifier)),
            Some(Kind::EchoReply(_)) => self.echo,
            Some(Kind::Error(_) | Kind::Other) | None => self.exposes_protocol(quoted.protocol),
        }
    }

    fn exposes_protocol(&self, number: u8) -> bool {
        self.protocols[usize::from(number / 64)] & 1 << (number % 64) != 0
    }
}

/// What a packet is, as far as that decides.
enum Kind<'a> {
    Tcp {
        opens: bool,
        destination: u16,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    EchoRequest(u16),
    EchoReply(u16),
    /// An ICMP error, about the packet that it quotes.
    Error(Headers<'a>),
    Other,
}

impl<'a> Kind<'a> {
    /// `None` where the upper-layer header is cut short.
    fn of(headers: &Headers<'a>) -> Option<Self> {
        if headers.protocol == PROTOCOL_TCP && headers.message.len() < TCP_HEADER_LEN {
            return None;
        }
        Self::of_quoted(headers)
    }

    /// The same where eight bytes of a header are enough, which ICMP errors quote at least (RFC 792).
    fn of_quoted(headers: &Headers<'a>) -> Option<Self> {
        let message = headers.message;
        let is_known = matches!(headers.protocol, PROTOCOL_TCP | PROTOCOL_UDP) || headers.is_icmp();
        if !is_known {
            return Some(Self::Other);
        }
        let header: &[u8; QUOTED_HEADER_LEN] = message.first_chunk()?;
        let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(match headers.protocol {
            PROTOCOL_TCP => {
                let flags = message.get(13).copied().unwrap_or_default();
                Self::Tcp { opens: flags & (TCP_SYN | TCP_ACK) == TCP_SYN, destination: field(2) }
            }
            PROTOCOL_UDP => Self::Udp { source: field(0), destination: field(2) },
            _ => match (headers.source.is_ipv4(), header[0]) {
                (true, 8) | (false, 128) => Self::EchoRequest(field(4)),
                (true, 0) | (false, 129) => Self::EchoReply(field(4)),
                // Destination unreachable, time exceeded, parameter problem; in IPv6 also packet too big.
                (true, 3 | 11 | 12) | (false, 1..=4) => Headers::quoted(&message[8..]).map_or(Self::Other, Self::Error),
                _ => Self::Other,
            },
        })
    }
}

const QUOTED_HEADER_LEN: usize = 8;
/// No later fragment may begin before the end of what the first was judged by, or it might overwrite that (RFC 1858 §4):
/// the longest TCP header, in whole units.
const LONGEST_JUDGED_HEADER: usize = 64;

fn udp_flow(headers: &Headers<'_>, near: u16, far: u16) -> Flow {
    flow(headers, PROTOCOL_UDP, u32::from(near) << 16 | u32::from(far))
}

/// Of either direction's protocol number, which ICMP and ICMPv6 do not share with UDP.
fn echo_flow(headers: &Headers<'_>, identifier: u16) -> Flow {
    flow(headers, headers.protocol, identifier.into())
}

fn fragment_flow(headers: &Headers<'_>, fragment: Fragment) -> Flow {
    // Only in IPv4 is the protocol a part of a packet's name, and known of every fragment.
    let protocol = if headers.source.is_ipv4() { headers.protocol } else { 0 };
    flow(headers, protocol, fragment.identification)
}

fn flow(headers: &Headers<'_>, protocol: u8, discriminator: u32) -> Flow {
    Flow { near: headers.source, far: headers.destination, protocol, discriminator }
}

#[cfg(test)]
mod tests;
