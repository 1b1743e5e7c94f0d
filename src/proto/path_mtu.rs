//! How long datagrams to a peer may be: found by probes of that length which the peer answers, after RFC 8899. What routers
//! say by ICMP counts for nothing, since anybody can forge it and many networks drop it.
//!
//! ```text
//!                 longest answered, or nothing left to try
//!              ┌───────────┐ ───────────────────────────▶ ┌──────────┐ ──┐ answered
//!  endpoint ──▶│ searching │                              │ complete │   │ again and again
//!              └───────────┘ ◀─────────────────────────── └──────────┘ ◀─┘
//!                    ▲         lost; or a longer answered      │
//!           answered │                                         │ lost, though no longer than the base
//!                    │            ┌─────────┐                  │
//!                    └─────────── │  error  │ ◀────────────────┘
//!                                 └─────────┘
//! ```
//!
//! A probe is lost only if small datagrams are answered meanwhile: else it is the link that is silent, which is for
//! [`liveness`](super::liveness) to judge. Holds state and answers questions about it; what is sent is decided in
//! [`device`](super::device).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::packet::frame::FRAME_HEADER_LEN;
use crate::packet::message::TRANSPORT_OVERHEAD;

use super::constants::{
    LIVENESS_DEAD_INTERVAL, PATH_BASE_LEN, PATH_FLOOR_LEN, PATH_IDLE_INTERVAL, PATH_PROBES_CONFIRMING,
    PATH_PROBES_SEARCHING, PATH_RAISE_INTERVAL, PATH_RETRY_INTERVAL, PATH_SEARCH_STEP,
};
use super::interface_mtu::{MtuRange, is_gain};

/// Probes that may still be answered, at most.
const MAX_IN_FLIGHT: usize = 32;
/// What a datagram adds to the one packet in it.
const OVERHEAD: u16 = (TRANSPORT_OVERHEAD + FRAME_HEADER_LEN) as u16;
/// The longest UDP payload of an IPv4 packet.
const MAX_DATAGRAM_LEN: u16 = 65_507;
/// A silent peer is asked so often at the pace of a search, before it is known to be silent.
const PAIRS_IN_VAIN: u32 = 4;

/// How long datagrams on a path may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathLimit {
    /// UDP payload in bytes that is known to pass.
    pub datagram: u16,
    width: Width,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    /// Whether longer datagrams pass is being found out.
    Unknown,
    /// All that there is use for passes.
    Full,
    /// Longer datagrams are known not to pass.
    Narrow,
}

impl PathLimit {
    /// Whatever is sent passes.
    pub const NONE: Self = Self { datagram: u16::MAX, width: Width::Full };

    /// Of a path that carries packets of `packet` bytes, and is known to carry no longer ones or not.
    #[cfg(test)]
    pub(crate) fn of_packets(packet: u16, is_final: bool) -> Self {
        Self { datagram: packet + OVERHEAD, width: if is_final { Width::Narrow } else { Width::Unknown } }
    }

    /// Longest packet in bytes that fits one datagram.
    pub fn packet(self) -> u16 {
        self.datagram - OVERHEAD
    }

    /// Whether longer ones are known not to pass. Until then they may as well be tried.
    pub fn is_final(self) -> bool {
        self.width != Width::Unknown
    }

    /// Whether packets of the interface's MTU are known not to fit.
    pub fn is_narrow(self) -> bool {
        self.width == Width::Narrow
    }
}

impl Default for PathLimit {
    fn default() -> Self {
        Self::NONE
    }
}

/// What is known of the path to one peer.
#[derive(Debug)]
pub(super) struct PathMtu {
    /// The interface's packets; `None` where paths are not tried.
    range: Option<MtuRange>,
    /// Longest packet that the peer has announced a use for; 0 while it has said nothing.
    announced: u16,
    /// Length of the longest datagrams that leave this machine for an address.
    ceiling: Option<(IpAddr, u16)>,
    /// Length of the longest datagrams that there is use for; `None` where paths are not tried.
    wanted: Option<u16>,
    /// Where the path leads; none before the first probe.
    remote: Option<IpAddr>,
    /// Length of datagrams that pass: the base until a probe has said more.
    length: u16,
    phase: Phase,
    /// When a probe of `length` was last answered, or of the base last lost.
    confirmed_at: Option<Instant>,
    series: Option<Series>,
    in_flight: VecDeque<Sent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The longest that passes lies from `length` up to, but without, `lost`.
    Searching { lost: u16 },
    /// It is `length`, or was when longer ones were last tried.
    Complete { raise_at: Instant },
    /// The path does not even carry the base.
    Error,
}

/// Probes of one length in a row, none of them answered yet.
#[derive(Debug, Clone, Copy)]
struct Series {
    purpose: Purpose,
    length: u16,
    sent: u32,
    last_at: Instant,
    /// A small probe that was sent beside one of these was answered.
    is_pair_answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Whether what is in use still passes.
    Confirm,
    Search,
    /// Whether all that there is use for passes.
    RaiseFully,
    /// Whether anything more does.
    RaiseByStep,
}

/// A probe on its way.
#[derive(Debug, Clone, Copy)]
struct Sent {
    token: u64,
    /// That of the series.
    length: u16,
    /// A small one beside it.
    is_pair: bool,
}

/// What the owner knows of the link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// How long an answer may take.
    pub(super) patience: Duration,
    /// How often the length in use is to be confirmed.
    pub(super) confirm_interval: Duration,
}

/// A probe to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    /// Of this length in bytes of UDP payload.
    pub(super) length: u16,
    /// With a small one beside it, whose answer shows that a loss is one of length.
    pub(super) is_paired: bool,
}

impl PathMtu {
    /// For packets of an interface; without, nothing is tried.
    pub(super) fn new(range: Option<MtuRange>) -> Self {
        Self::towards(None, range, 0, None)
    }

    fn towards(
        remote: Option<IpAddr>,
        range: Option<MtuRange>,
        announced: u16,
        ceiling: Option<(IpAddr, u16)>,
    ) -> Self {
        let wanted = range.map(|range| wanted(remote, range, announced, ceiling));
        let length = wanted.map_or(u16::MAX, base);
        Self {
            range,
            announced,
            ceiling,
            wanted,
            remote,
            length,
            phase: Phase::Searching { lost: wanted.map_or(u16::MAX, |wanted| wanted + 1) },
            confirmed_at: None,
            series: None,
            in_flight: VecDeque::new(),
        }
    }

    /// How long datagrams to `remote` may be: of another place than what was tried, nothing is known.
    pub(super) fn limit(&self, remote: IpAddr) -> PathLimit {
        let Some(wanted) = self.wanted else { return PathLimit::NONE };
        if self.remote.is_some_and(|tried| tried != remote) {
            return PathLimit { datagram: base(wanted), width: Width::Unknown };
        }
        let width = match self.is_searching() {
            true => Width::Unknown,
            false if self.range.is_some_and(|range| self.length < datagram(range.current)) => Width::Narrow,
            false => Width::Full,
        };
        PathLimit { datagram: self.length, width }
    }

    /// Whether the path is known not to carry the packets that every interface begins with.
    pub(super) fn is_narrow(&self) -> bool {
        self.least().is_some_and(|least| match self.phase {
            Phase::Searching { lost } => lost <= least,
            Phase::Complete { .. } => self.length < least,
            Phase::Error => true,
        })
    }

    /// Longest packet that the path carries, once that is known.
    pub(super) fn proven(&self) -> Option<u16> {
        let is_proven = self.wanted.is_some() && matches!(self.phase, Phase::Complete { .. });
        is_proven.then(|| self.length - OVERHEAD)
    }

    /// Learns how long packets are that the interface takes.
    pub(super) fn set_current(&mut self, mtu: u16) {
        if let Some(range) = &mut self.range {
            range.current = mtu;
        }
    }

    /// Learns what the peer has announced.
    pub(super) fn set_announced(&mut self, now: Instant, mtu: u16) {
        self.announced = mtu;
        self.want(now);
    }

    /// Learns of the longest datagrams that leave this machine for `remote`.
    pub(super) fn set_ceiling(&mut self, now: Instant, remote: IpAddr, length: u16) {
        self.ceiling = Some((remote, length));
        self.want(now);
    }

    /// There may be use for longer datagrams than before, or for shorter ones only.
    fn want(&mut self, now: Instant) {
        let Some((range, before)) = self.range.zip(self.wanted) else { return };
        let wanted = wanted(self.remote, range, self.announced, self.ceiling);
        if wanted == before {
            return;
        }
        self.wanted = Some(wanted);
        self.series.take_if(|series| series.length > wanted || series.purpose.is_raise());
        self.in_flight.retain(|sent| sent.length <= wanted);
        let is_narrow = self.is_narrow();
        self.phase = match self.phase {
            Phase::Complete { .. } if wanted > before && is_narrow => Phase::Complete { raise_at: now },
            Phase::Complete { .. } if wanted > before => Phase::Searching { lost: wanted + 1 },
            Phase::Searching { lost } if lost > before || lost > wanted => Phase::Searching { lost: wanted + 1 },
            phase => phase,
        };
        if self.length >= wanted {
            self.length = wanted;
            self.complete(now);
        }
    }

    /// Length of datagrams with the packets that every interface begins with.
    fn least(&self) -> Option<u16> {
        self.range.map(|range| datagram(range.least))
    }

    fn is_searching(&self) -> bool {
        self.wanted.is_some() && matches!(self.phase, Phase::Searching { .. })
    }

    /// Whether a search is under way that need not wait for data: it gets its answers, long ones or small ones.
    pub(super) fn seeks(&self) -> bool {
        self.is_searching() && !self.series.is_some_and(Series::is_in_vain)
    }

    /// Looks at what time has brought to the path to `remote`.
    pub(super) fn tend(&mut self, now: Instant, remote: IpAddr, link: Link) -> Option<Probe> {
        self.wanted?;
        if self.remote.replace(remote).is_some_and(|tried| tried != remote) {
            *self = Self::towards(Some(remote), self.range, self.announced, self.ceiling);
        } else {
            self.want(now);
        }
        if let Some(series) = self.series {
            if now < series.due_at(link.patience) {
                return None;
            }
            if series.is_at_its_end() && series.is_pair_answered {
                self.series = None;
                self.on_lost(now, series);
            }
        }
        if self.series.is_none() {
            let (purpose, length) = self.due(now, link.confirm_interval)?;
            self.series = Some(Series::new(now, purpose, length));
        }
        let series = self.series?;
        Some(Probe { length: series.length, is_paired: series.sent + 1 >= series.purpose.probes() })
    }

    /// When to look again.
    pub(super) fn next_at(&self, now: Instant, link: Link) -> Option<Instant> {
        self.wanted?;
        if let Some(series) = self.series {
            return Some(series.due_at(link.patience));
        }
        let confirm_at = self.confirmed_at.map_or(now, |at| at + link.confirm_interval);
        Some(match self.phase {
            Phase::Searching { .. } => now,
            // More is tried then too, if it is time.
            Phase::Complete { .. } => confirm_at,
            Phase::Error => self.confirmed_at.map_or(now, |at| at + PATH_IDLE_INTERVAL),
        })
    }

    /// The probe that [`tend`](Self::tend) asked for was sent, maybe with a `pair`.
    pub(super) fn on_probe_sent(&mut self, now: Instant, token: u64, pair: Option<u64>) {
        let Some(series) = &mut self.series else { return };
        *series = Series { sent: series.sent.saturating_add(1), last_at: now, ..*series };
        let length = series.length;
        let pair = pair.map(|token| Sent { token, length, is_pair: true });
        self.in_flight.extend([Sent { token, length, is_pair: false }].into_iter().chain(pair));
        let surplus = self.in_flight.len().saturating_sub(MAX_IN_FLIGHT);
        self.in_flight.drain(..surplus);
    }

    /// A pong came. Returns whether it answers a probe of ours.
    pub(super) fn on_pong(&mut self, now: Instant, token: u64) -> bool {
        let Some(position) = self.in_flight.iter().position(|sent| sent.token == token) else { return false };
        let Some(Sent { length, is_pair, .. }) = self.in_flight.remove(position) else { return false };
        let asked = self.series.take_if(|series| series.length == length);
        if is_pair {
            self.series = asked.map(|series| Series { is_pair_answered: true, ..series }).or(self.series);
            return true;
        }
        if length < self.length {
            return true;
        }
        let has_grown = length > self.length;
        self.length = length;
        // What is shorter passes too: a late answer may come while less is tried.
        self.series.take_if(|series| series.length <= length);
        self.confirmed_at = Some(now);
        let wanted = self.wanted.unwrap_or(length);
        if length >= wanted {
            self.phase = Phase::Complete { raise_at: now };
        } else if has_grown || self.phase == Phase::Error {
            // What was lost before may have been lost by chance, or the path has changed.
            let lost = match self.phase {
                Phase::Searching { lost } if lost > length => lost,
                _ => wanted + 1,
            };
            self.search(now, lost);
        }
        true
    }

    fn due(&self, now: Instant, confirm_interval: Duration) -> Option<(Purpose, u16)> {
        let (wanted, least) = (self.wanted?, self.least()?);
        let is_due = |interval| self.confirmed_at.is_none_or(|at| now >= at + interval);
        match self.phase {
            // Most paths carry this, and traffic should not wait for what few do.
            Phase::Searching { lost } if self.length < least && lost > least => Some((Purpose::Search, least)),
            Phase::Searching { lost } if lost > wanted => Some((Purpose::Search, wanted)),
            Phase::Searching { lost } => Some((Purpose::Search, self.length + (lost - self.length) / 2)),
            Phase::Complete { .. } if is_due(confirm_interval) => Some((Purpose::Confirm, self.length)),
            Phase::Complete { raise_at } if self.length < wanted && now >= raise_at => {
                Some((Purpose::RaiseFully, wanted))
            }
            Phase::Complete { .. } => None,
            Phase::Error => is_due(PATH_IDLE_INTERVAL).then(|| (Purpose::Search, base(wanted))),
        }
    }

    fn on_lost(&mut self, now: Instant, series: Series) {
        let wanted = self.wanted.unwrap_or(series.length);
        match series.purpose {
            Purpose::Confirm if self.length > base(wanted) => {
                self.length = base(wanted);
                self.search(now, series.length);
            }
            Purpose::Search if self.phase != Phase::Error => self.search(now, series.length),
            Purpose::Confirm | Purpose::Search => {
                self.length = self.length.min(PATH_FLOOR_LEN);
                self.confirmed_at = Some(now);
                self.phase = Phase::Error;
            }
            Purpose::RaiseFully if wanted - self.length > PATH_SEARCH_STEP => {
                let length = self.length + PATH_SEARCH_STEP;
                self.series = Some(Series::new(now, Purpose::RaiseByStep, length));
            }
            Purpose::RaiseFully | Purpose::RaiseByStep => self.complete(now),
        }
    }

    fn search(&mut self, now: Instant, lost: u16) {
        self.phase = Phase::Searching { lost };
        if lost.saturating_sub(self.length) <= PATH_SEARCH_STEP {
            self.complete(now);
        }
    }

    fn complete(&mut self, now: Instant) {
        self.phase = Phase::Complete { raise_at: now + PATH_RAISE_INTERVAL };
    }
}

impl Series {
    fn new(now: Instant, purpose: Purpose, length: u16) -> Self {
        Self { purpose, length, sent: 0, last_at: now, is_pair_answered: false }
    }

    fn is_at_its_end(self) -> bool {
        self.sent >= self.purpose.probes()
    }

    /// Not even the small ones beside the last of them were answered.
    fn is_in_vain(self) -> bool {
        self.sent >= self.purpose.probes() + PAIRS_IN_VAIN
    }

    /// When the next probe is sent, or the last one lost.
    fn due_at(self, patience: Duration) -> Instant {
        let wait = match self.sent {
            1 => patience,
            _ if self.is_in_vain() => LIVENESS_DEAD_INTERVAL,
            _ if self.is_at_its_end() => patience,
            _ => PATH_RETRY_INTERVAL,
        };
        self.last_at + wait
    }
}

impl Purpose {
    fn probes(self) -> u32 {
        match self {
            Self::Confirm => PATH_PROBES_CONFIRMING,
            Self::Search | Self::RaiseFully | Self::RaiseByStep => PATH_PROBES_SEARCHING,
        }
    }

    fn is_raise(self) -> bool {
        matches!(self, Self::RaiseFully | Self::RaiseByStep)
    }
}

/// Length of the longest datagrams that there is use for on the way to `remote`: what this machine sends there and the peer
/// wants, unless that is hardly more than what is sent anyway.
fn wanted(remote: Option<IpAddr>, range: MtuRange, announced: u16, ceiling: Option<(IpAddr, u16)>) -> u16 {
    let ceiling = ceiling.filter(|(address, _)| remote.is_some_and(|remote| remote == *address));
    let most = ceiling.map_or(0, |(_, length)| length.saturating_sub(OVERHEAD)).min(announced).min(range.most);
    datagram(if is_gain(range.least, most) { most } else { range.least })
}

/// Length of a datagram with one packet of `packet` bytes.
fn datagram(packet: u16) -> u16 {
    packet.min(MAX_DATAGRAM_LEN - OVERHEAD) + OVERHEAD
}

/// What every path is taken to carry, of what there is use for.
fn base(wanted: u16) -> u16 {
    PATH_BASE_LEN.min(wanted)
}

#[cfg(test)]
mod tests;
