//! Limits on the log's lines about links: some of each kind and peer, few in all, and a count of the rest.
//!
//! Whoever makes a peer's port change, with its keys or without, writes no more than that. The audit trail has its own way.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::keys::PublicKey;
use crate::proto::error::DropReason;
use crate::proto::pace::Pace;

/// The subject of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Line {
    /// A link is in another state, and carries traffic as before, or none as before.
    Link,
    /// A peer does not answer.
    Silent,
    /// A peer has another endpoint.
    Moved,
    /// A session took the place of another.
    Renewed,
    /// An initiation was refused.
    Refused(DropReason),
}

/// Lines that were written lately, and the number of those that were not.
#[derive(Debug, Default)]
pub(super) struct LineLimits {
    lines: HashMap<(Option<PublicKey>, Line), Counted>,
    all: Pace,
}

#[derive(Debug, Default)]
struct Counted {
    pace: Pace,
    withheld: u64,
}

impl Line {
    /// As the log calls it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Silent => "silent",
            Self::Moved => "endpoint",
            Self::Renewed => "session",
            Self::Refused(reason) => reason.as_str(),
        }
    }
}

impl LineLimits {
    /// Whether a line may be written: if so, how many of its peer and kind were withheld before it. `skipped` are lines that
    /// nobody asked for any more.
    pub(super) fn take(&mut self, now: Instant, peer: Option<PublicKey>, line: Line, skipped: u64) -> Option<u64> {
        let counted = self.lines.entry((peer, line)).or_default();
        counted.withheld += skipped;
        if counted.pace.take(now, LINE_INTERVAL, LINE_BURST) && self.all.take(now, ALL_INTERVAL, ALL_BURST) {
            return Some(std::mem::take(&mut counted.withheld));
        }
        counted.withheld += 1;
        None
    }

    /// Whether there are lines that were withheld and not counted in any.
    pub(super) fn withhold(&self) -> bool {
        self.lines.values().any(|counted| counted.withheld > 0)
    }

    /// Peers and kinds of which lines were withheld and one may be written, with their number.
    pub(super) fn take_withheld(&mut self, now: Instant) -> Vec<(Option<PublicKey>, Line, u64)> {
        let Self { lines, all } = self;
        let mut due: Vec<_> = lines.iter_mut().filter(|(_, counted)| counted.withheld > 0).collect();
        due.sort_unstable_by_key(|(key, _)| **key);
        due.into_iter()
            .filter_map(|((peer, line), counted)| {
                let may = counted.pace.take(now, LINE_INTERVAL, LINE_BURST) && all.take(now, ALL_INTERVAL, ALL_BURST);
                may.then(|| (*peer, *line, std::mem::take(&mut counted.withheld)))
            })
            .collect()
    }

    /// Forgets peers that are no more.
    pub(super) fn retain(&mut self, is_known: impl Fn(&PublicKey) -> bool) {
        self.lines.retain(|(peer, _), _| peer.is_none_or(|peer| is_known(&peer)));
    }
}

/// Of one peer and kind: so many at once, then one in so long.
const LINE_BURST: u32 = 5;
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Of all together: no more than ten within any second.
const ALL_BURST: u32 = 5;
const ALL_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PrivateKey;

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes([byte; 32]).unwrap().public_key()
    }

    #[test]
    fn a_peer_that_flaps_a_thousand_times_a_second_writes_few_lines_and_each_is_counted() {
        let (mut limits, start) = (LineLimits::default(), crate::dataplane::clock::now());
        let mut written = Vec::new();
        for millisecond in 0..60_000 {
            let now = start + Duration::from_millis(millisecond);
            written.extend(limits.take(now, Some(key(1)), Line::Moved, 0));
        }
        assert_eq!(written.len(), 10, "five at once and one every ten seconds");
        let later = limits.take_withheld(start + Duration::from_secs(90));
        let [(_, Line::Moved, rest)] = later[..] else { panic!("{later:?}") };
        assert_eq!(written.iter().sum::<u64>() + written.len() as u64 + rest, 60_000);
    }

    #[test]
    fn many_peers_write_no_more_than_ten_lines_a_second_together() {
        let (mut limits, start) = (LineLimits::default(), crate::dataplane::clock::now());
        let lines = |limits: &mut LineLimits, at: u64| {
            let now = start + Duration::from_millis(at);
            (1..100).filter(|peer| limits.take(now, Some(key(*peer)), Line::Silent, 0).is_some()).count()
        };
        let first: usize = (0..1000).step_by(10).map(|at| lines(&mut limits, at)).sum();
        assert!((5..=10).contains(&first), "{first}");
    }

    #[test]
    fn one_kind_does_not_hide_another() {
        let (mut limits, now) = (LineLimits::default(), crate::dataplane::clock::now());
        (0..100).for_each(|_| _ = limits.take(now, Some(key(1)), Line::Moved, 0));
        let now = now + Duration::from_secs(1);
        assert_eq!(limits.take(now, Some(key(1)), Line::Silent, 0), Some(0));
        assert_eq!(limits.take(now, Some(key(2)), Line::Moved, 7), Some(7));
        limits.retain(|peer| *peer == key(2));
        assert!(limits.take_withheld(now + Duration::from_secs(60)).is_empty());
    }
}
