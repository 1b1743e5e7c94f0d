//! The turn of a peer's other endpoints: which of them is tried next, and when at the earliest.
//!
//! Whatever a name's answer says, and however many addresses it has, datagrams to endpoints that have not answered stay few.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::pace::Pace;

/// The turn of one peer's endpoints other than the one in use.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Position from which the next is looked for.
    next: usize,
    /// The number of endpoints of the round under way that are still to be tried.
    left: usize,
    pace: Pace,
}

impl Candidates {
    /// Begins a round of all `endpoints` but `current`. Returns whether there are any.
    pub(super) fn start_round(&mut self, endpoints: &[Endpoint], current: SocketAddr) -> bool {
        self.left = endpoints.iter().filter(|endpoint| endpoint.remote != current).count();
        self.has_more()
    }

    /// Whether the round goes on.
    pub(super) fn has_more(&self) -> bool {
        self.left > 0
    }

    /// When the next may be tried.
    pub(super) fn next_at(&self, now: Instant, interval: Duration) -> Instant {
        self.pace.next_at(now, interval, BURST)
    }

    /// The next in turn: two at once, then one in each `interval`. None before its time.
    pub(super) fn take(
        &mut self,
        now: Instant,
        interval: Duration,
        endpoints: &[Endpoint],
        current: SocketAddr,
    ) -> Option<Endpoint> {
        let count = endpoints.len();
        let mut turn = (0..count).map(|step| (self.next + step) % count);
        let position = turn.find(|position| endpoints[*position].remote != current)?;
        if !self.pace.take(now, interval, BURST) {
            return None;
        }
        self.next = position + 1;
        self.left = self.left.saturating_sub(1);
        Some(endpoints[position])
    }
}

/// The two that a list mostly has beside the one in use need not wait for each other.
const BURST: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    const INTERVAL: Duration = Duration::from_millis(150);

    fn endpoints(count: u8) -> Vec<Endpoint> {
        (0..count).map(|number| Endpoint::new(SocketAddr::from(([192, 0, 2, number], 51900)))).collect()
    }

    fn last_byte(endpoint: Endpoint) -> u8 {
        let std::net::IpAddr::V4(address) = endpoint.remote.ip() else { panic!("they are IPv4") };
        address.octets()[3]
    }

    /// Endpoints taken when one is asked for every millisecond, with the times.
    fn taken(endpoints: &[Endpoint], milliseconds: u64) -> Vec<(u64, u8)> {
        let (mut candidates, start) = (Candidates::default(), start());
        let current = endpoints[1].remote;
        let take = |at| {
            let now = start + Duration::from_millis(at);
            candidates.take(now, INTERVAL, endpoints, current).map(|endpoint| (at, last_byte(endpoint)))
        };
        (0..milliseconds).filter_map(take).collect()
    }

    #[test]
    fn each_has_its_turn_but_the_one_in_use_and_the_pace_is_kept() {
        assert_eq!(taken(&endpoints(4), 600), [(0, 0), (1, 2), (150, 3), (300, 0), (450, 2)]);
    }

    #[test]
    fn a_peer_without_another_endpoint_has_no_candidates() {
        let one = endpoints(1);
        let mut candidates = Candidates::default();
        assert!(!candidates.start_round(&one, one[0].remote));
        assert_eq!(candidates.take(start(), INTERVAL, &one, one[0].remote), None);
        assert_eq!(candidates.take(start(), INTERVAL, &[], one[0].remote), None);
    }

    #[test]
    fn a_round_ends_when_each_was_tried_once() {
        let endpoints = endpoints(3);
        let (mut candidates, now) = (Candidates::default(), start());
        assert!(candidates.start_round(&endpoints, endpoints[0].remote));
        candidates.take(now, INTERVAL, &endpoints, endpoints[0].remote).unwrap();
        assert!(candidates.has_more());
        candidates.take(now, INTERVAL, &endpoints, endpoints[0].remote).unwrap();
        assert!(!candidates.has_more());
    }
}
