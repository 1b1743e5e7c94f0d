//! Initiations that were refused, by key and reason: a bounded number of them, the newest.
//!
//! Refusals are remembered for an operator who asks why nobody gets in; nothing is decided by them.

use std::net::SocketAddr;
use std::time::Instant;

use crate::keys::PublicKey;

use super::error::DropReason;

/// Keys and reasons that are remembered, at most.
const MAX_ENTRIES: usize = 32;

/// Initiations that were refused.
#[derive(Debug, Default)]
pub(super) struct RefusedInitiations(Vec<Entry>);

/// Those of one key that were refused for one reason.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// The static key that they came from; none if they did not get that far.
    pub(super) key: Option<PublicKey>,
    /// A peer has the key.
    pub(super) is_peer: bool,
    /// The reason for the refusal.
    pub(super) reason: DropReason,
    /// Apparent source of the newest.
    pub(super) from: SocketAddr,
    /// Their number.
    pub(super) count: u64,
    /// When the newest came.
    pub(super) latest: Instant,
}

impl RefusedInitiations {
    /// Remembers one. Strangers take the place of strangers: they don't drive out what is known of peers.
    pub(super) fn note(&mut self, new: Entry) {
        let same = |known: &&mut Entry| (known.key, known.reason) == (new.key, new.reason);
        if let Some(known) = self.0.iter_mut().find(same) {
            *known = Entry { count: known.count + new.count, ..new };
            return;
        }
        if self.0.len() >= MAX_ENTRIES {
            let least = (0..self.0.len()).min_by_key(|index| (self.0[*index].is_peer, self.0[*index].latest));
            let Some(least) = least.filter(|least| new.is_peer || !self.0[*least].is_peer) else { return };
            self.0.swap_remove(least);
        }
        self.0.push(new);
    }

    /// All, the newest first.
    pub(super) fn newest_first(&self) -> Vec<Entry> {
        let mut entries = self.0.clone();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.latest));
        entries
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keys::PrivateKey;
    use crate::proto::tests::start;

    fn entry(number: u32, is_peer: bool, latest: Instant) -> Entry {
        let mut bytes = [1; 32];
        bytes[4..8].copy_from_slice(&number.to_le_bytes());
        Entry {
            key: Some(PrivateKey::from_bytes(bytes).unwrap().public_key()),
            is_peer,
            reason: DropReason::UnknownPeer,
            from: SocketAddr::from(([192, 0, 2, 1], 51900)),
            count: 1,
            latest,
        }
    }

    #[test]
    fn a_flood_of_strangers_is_bounded_and_does_not_hide_a_peer() {
        let (mut refused, start) = (RefusedInitiations::default(), start());
        let at = |millisecond: u32| start + Duration::from_millis(millisecond.into());
        refused.note(entry(0, true, at(0)));
        (1..500).for_each(|number| refused.note(entry(number, false, at(number))));
        let known = refused.newest_first();
        assert_eq!(known.len(), MAX_ENTRIES);
        assert_eq!(known[0].key, entry(499, false, start).key, "the newest");
        assert!(known.iter().any(|entry| entry.is_peer));
        (500..600).for_each(|number| refused.note(entry(number, true, at(number))));
        refused.note(entry(1000, false, at(1000)));
        assert!(refused.newest_first().iter().all(|entry| entry.is_peer), "peers come first");
    }

    #[test]
    fn the_same_key_and_reason_are_counted_together() {
        let (mut refused, start) = (RefusedInitiations::default(), start());
        let later = start + Duration::from_secs(9);
        refused.note(entry(1, false, start));
        refused.note(entry(1, false, later));
        refused.note(Entry { reason: DropReason::UnknownSuite, ..entry(1, false, start) });
        let known: Vec<_> = refused.newest_first().iter().map(|entry| (entry.count, entry.latest)).collect();
        assert_eq!(known, [(2, later), (1, start)]);
    }
}
