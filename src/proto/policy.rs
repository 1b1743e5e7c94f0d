//! Services that a peer may reach, at this machine's own tunnel addresses or in networks behind it.
//! Otherwise it answers what it was sent.
//!
//! | from the peer | passes to a tunnel address of this machine | to any other address |
//! |---|---|---|
//! | TCP | to an exposed port; to any, if it opens no connection and has ACK or RST | to a port exposed there; as an answer |
//! | UDP | to an exposed port; as an answer | to a port exposed there; as an answer |
//! | ping | if anything is exposed; its answer, if that ping was sent | the same, of what is exposed there |
//! | ICMP error | about a packet that could have been sent to this peer | about a packet that was |
//! | fragment | the first, if the packet may; others, if the first did | the same |
//! | other protocols | if exposed by number | if exposed there by number |
//!
//! An answer has exactly the addresses and ports of what was sent not long ago.
//!
//! TCP to this machine needs no table: a connection lives as long as its ends want, over restarts of this daemon, and what
//! belongs to none is answered with a reset by the kernel and reaches no application. Behind this machine stand others, who
//! would tell by their resets that they are there; so there TCP, too, has to answer something. What is judged is one packet's
//! headers; which addresses a peer may use as a source was decided before.

mod service;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;

use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{IpPacket, PROTOCOL_TCP, PROTOCOL_UDP, is_unicast};
use crate::packet::tcp::{TCP_ACK, TCP_DATA_OFFSET, TCP_FLAGS, TCP_HEADER_LEN, TCP_RST, TCP_SYN};

use super::constants::{
    CONNECTION_LIFETIME, FLOW_LIFETIME, FRAGMENT_LIFETIME, MAX_CONNECTIONS, MAX_FLOWS, MAX_FRAGMENTED_PACKETS,
};
use super::error::DropReason;
use super::flow_table::{Flow, FlowTable};

use service::Services;
pub use service::{Destination, Exposure, PortRange, Service};

/// Everything that one peer may send to this machine, and to what lies behind it. By default nothing but answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    tells_of_refusal: bool,
    /// This machine's tunnel addresses.
    own: Box<[IpAddr]>,
    /// Services that are exposed at these.
    here: Services,
    /// Services that are exposed in networks, this machine's own addresses among them. They may overlap: then each
    /// counts.
    networks: Box<[(IpNet, Services)]>,
}

/// Flows to one peer that may be answered, and packets of its that arrive in parts: for all threads.
#[derive(Debug)]
pub(super) struct Flows {
    /// Exchanges by UDP, and pings.
    sent: FlowTable,
    /// TCP connections of machines behind this one.
    connections: FlowTable,
    /// Packets whose first fragment was admitted.
    fragmented: FlowTable,
}

impl Flows {
    /// `key` must be nobody else's to know.
    pub(super) fn new(now: Instant, key: &[u8; 32]) -> Self {
        let table = |flows, lifetime| FlowTable::new(now, key, flows, lifetime);
        Self {
            sent: table(MAX_FLOWS, FLOW_LIFETIME),
            connections: table(MAX_CONNECTIONS, CONNECTION_LIFETIME),
            fragmented: table(MAX_FRAGMENTED_PACKETS, FRAGMENT_LIFETIME),
        }
    }
}

impl Policy {
    /// A peer reaches what `exposures` name. Where it reaches anything it may ping as well, and this machine in any case.
    pub fn exposing(exposures: impl IntoIterator<Item = impl Into<Exposure>>) -> Self {
        let mut here = Vec::new();
        let mut networks: BTreeMap<IpNet, Vec<Service>> = BTreeMap::new();
        for Exposure { service, destination } in exposures.into_iter().map(Into::into) {
            match destination {
                Destination::Own => here.push(service),
                Destination::Network(network) => networks.entry(network).or_default().push(service),
            }
        }
        if !networks.is_empty() {
            here.push(Service::Echo);
        }
        let networks = networks.into_iter().map(|(network, services)| (network, Services::new(&services)));
        Self { here: Services::new(&here), networks: networks.collect(), ..Self::default() }
    }

    /// The same, of a machine with these tunnel addresses.
    pub fn with_own_addresses(self, own: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { own: own.into_iter().collect(), ..self }
    }

    /// The same, and the peer is told when it may not reach a port, so that it need not wait.
    pub fn telling_of_refusal(self) -> Self {
        Self { tells_of_refusal: true, ..self }
    }

    pub(super) fn tells_of_refusal(&self) -> bool {
        self.tells_of_refusal
    }

    /// Whether `address` is a tunnel address of this machine.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// Called for every packet that is sent to the peer, before it leaves. It may be a superpacket.
    pub(super) fn on_sent(&self, now: Instant, flows: &Flows, packet: &IpPacket<'_>) {
        let near = self.at(packet.source());
        // TCP of this machine's tells by itself what it answers.
        if (near.is_own && packet.protocol() == PROTOCOL_TCP) || near.exposes(|services| services.any) {
            return;
        }
        let Some(headers) = Headers::of(packet).ok().filter(|headers| !headers.is_later_fragment()) else { return };
        match Kind::of(&headers) {
            // Whoever may ask needs no answer to do so again.
            Some(Kind::Udp { source, destination }) if !near.exposes(|services| services.udp.contains(source)) => {
                flows.sent.insert(now, &ports_flow(&headers, source, destination));
            }
            // Nothing answers a reset. What is exposed is left out, so that a peer can't fill the table by asking.
            Some(Kind::Tcp { source, destination, flags })
                if !near.is_own && flags & TCP_RST == 0 && !near.exposes(|services| services.tcp.contains(source)) =>
            {
                flows.connections.insert(now, &ports_flow(&headers, source, destination));
            }
            Some(Kind::EchoRequest(identifier)) => flows.sent.insert(now, &echo_flow(&headers, identifier)),
            _ => {}
        }
    }

    /// Whether `packet`, from an address that the peer may use, may pass. `is_peers` says which other addresses it may use.
    pub(super) fn judge(
        &self,
        now: Instant,
        flows: &Flows,
        packet: &IpPacket<'_>,
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        let target = self.at(packet.destination());
        if target.exposes(|services| services.any) {
            return Ok(());
        }
        let judged = target.judge_packet(Remembered { now, flows }, packet, is_peers);
        judged.map_err(|reason| if target.is_out_of_reach() { DropReason::DestinationNotExposed } else { reason })
    }

    /// The services exposed at `address`.
    fn at(&self, address: IpAddr) -> Target<'_> {
        let is_own = self.is_own(address);
        // What is for many machines, or for none, is in no network that an operator has in mind.
        let networks = if is_own || is_unicast(address) { &self.networks[..] } else { &[] };
        Target { here: is_own.then_some(&self.here), networks, address, is_own }
    }
}

/// An address, and what may be reached there.
#[derive(Clone, Copy)]
struct Target<'p> {
    address: IpAddr,
    is_own: bool,
    here: Option<&'p Services>,
    networks: &'p [(IpNet, Services)],
}

/// All that was sent and may be answered now.
#[derive(Clone, Copy)]
struct Remembered<'f> {
    now: Instant,
    flows: &'f Flows,
}

impl Remembered<'_> {
    fn was_sent(&self, flow: &Flow) -> bool {
        self.flows.sent.contains(self.now, flow)
    }

    fn is_connection(&self, flow: &Flow) -> bool {
        self.flows.connections.contains(self.now, flow)
    }
}

impl Target<'_> {
    /// Whether it is among the services that are exposed here, by any of the lists that name this address.
    fn exposes(&self, is_among: impl Fn(&Services) -> bool) -> bool {
        self.here.is_some_and(&is_among) || self.networks().any(is_among)
    }

    fn networks(&self) -> impl Iterator<Item = &Services> {
        let contain = |(network, _): &&(IpNet, Services)| network.contains(&self.address);
        self.networks.iter().filter(contain).map(|(_, services)| services)
    }

    /// Whether nothing is exposed here, and never could be of this machine.
    fn is_out_of_reach(&self) -> bool {
        !self.is_own && self.networks().next().is_none()
    }

    fn judge_packet(
        &self,
        remembered: Remembered<'_>,
        packet: &IpPacket<'_>,
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        let headers = Headers::of(packet).map_err(|_| DropReason::ProtocolNotExposed)?;
        let Some(fragment) = headers.fragment else { return self.judge_message(remembered, &headers, is_peers) };
        let Remembered { now, flows } = remembered;
        let flow = fragment_flow(&headers, fragment);
        if headers.is_later_fragment() {
            let is_expected = fragment.offset >= LONGEST_JUDGED_HEADER && flows.fragmented.contains(now, &flow);
            return if is_expected { Ok(()) } else { Err(DropReason::StrayFragment) };
        }
        self.judge_message(remembered, &headers, is_peers)?;
        flows.fragmented.insert(now, &flow);
        Ok(())
    }

    /// Judges what has an upper-layer header.
    fn judge_message(
        &self,
        remembered: Remembered<'_>,
        headers: &Headers<'_>,
        is_peers: impl Fn(IpAddr) -> bool,
    ) -> Result<(), DropReason> {
        if self.exposes(|services| services.has_protocol(headers.protocol)) {
            return Ok(());
        }
        let pass_if = |passes: bool, reason| if passes { Ok(()) } else { Err(reason) };
        match Kind::of(headers) {
            Some(Kind::Tcp { source, destination, flags }) => {
                let answers = || may_answer(flags) && self.has_connection(remembered, headers, source, destination);
                let is_exposed = || self.exposes(|services| services.tcp.contains(destination));
                pass_if(answers() || is_exposed(), DropReason::NotExposed)
            }
            Some(Kind::Udp { source, destination }) => {
                let answers = || remembered.was_sent(&ports_flow(&headers.reversed(), destination, source));
                let is_exposed = self.exposes(|services| services.udp.contains(destination));
                pass_if(is_exposed || answers(), DropReason::NotExposed)
            }
            Some(Kind::EchoRequest(_)) => pass_if(self.exposes(|services| services.echo), DropReason::NotExposed),
            Some(Kind::EchoReply(identifier)) => {
                let answers = remembered.was_sent(&echo_flow(&headers.reversed(), identifier));
                pass_if(answers, DropReason::Unsolicited)
            }
            Some(Kind::Error(quoted)) => {
                let is_from_here = quoted.source == headers.destination && is_peers(quoted.destination);
                pass_if(is_from_here && self.may_have_sent(remembered, &quoted), DropReason::Unsolicited)
            }
            Some(Kind::Other) => Err(DropReason::ProtocolNotExposed),
            None if headers.fragment.is_some() => Err(DropReason::StrayFragment),
            None => Err(DropReason::MalformedPacket),
        }
    }

    /// Whether a segment that opens nothing may belong to a connection. Of this machine's own, its kernel knows.
    fn has_connection(&self, remembered: Remembered<'_>, headers: &Headers<'_>, source: u16, destination: u16) -> bool {
        self.is_own || remembered.is_connection(&ports_flow(&headers.reversed(), destination, source))
    }

    /// Whether an error may be about the packet of which `quoted` is the beginning, from here to the peer.
    fn may_have_sent(&self, remembered: Remembered<'_>, quoted: &Headers<'_>) -> bool {
        if quoted.is_later_fragment() {
            return false;
        }
        match Kind::of_quoted(quoted) {
            Some(Kind::Tcp { source, destination, .. }) => {
                let is_known = || remembered.is_connection(&ports_flow(quoted, source, destination));
                self.is_own || self.exposes(|services| services.tcp.contains(source)) || is_known()
            }
            Some(Kind::Udp { source, destination }) => {
                let was_sent = || remembered.was_sent(&ports_flow(quoted, source, destination));
                self.exposes(|services| services.udp.contains(source)) || was_sent()
            }
            Some(Kind::EchoRequest(identifier)) => remembered.was_sent(&echo_flow(quoted, identifier)),
            Some(Kind::EchoReply(_)) => self.exposes(|services| services.echo),
            Some(Kind::Error(_) | Kind::Other) | None => {
                self.exposes(|services| services.has_protocol(quoted.protocol))
            }
        }
    }
}

/// Whether a segment with these flags may belong to a connection that is open already: every one has ACK, but for some
/// resets (RFC 9293 §3.10.7). Without either, a kernel tells by what it answers and what not which ports are open.
fn may_answer(flags: u8) -> bool {
    flags & TCP_ACK != 0 || flags & (TCP_RST | TCP_SYN) == TCP_RST
}

/// What a packet is, as far as that decides.
enum Kind<'a> {
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
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
    /// `None` where the upper-layer header is cut short, or says that it is.
    fn of(headers: &Headers<'a>) -> Option<Self> {
        if headers.protocol == PROTOCOL_TCP {
            let header: &[u8; TCP_HEADER_LEN] = headers.message.first_chunk()?;
            let length = usize::from(header[TCP_DATA_OFFSET] >> 4) * 4;
            if !(TCP_HEADER_LEN..=headers.message.len()).contains(&length) {
                return None;
            }
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
                let flags = message.get(TCP_FLAGS).copied().unwrap_or_default();
                Self::Tcp { source: field(0), destination: field(2), flags }
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

/// An exchange by UDP, or a TCP connection.
fn ports_flow(headers: &Headers<'_>, near: u16, far: u16) -> Flow {
    flow(headers, headers.protocol, u32::from(near) << 16 | u32::from(far))
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
