//! Flows of one peer that were seen not long ago, so that what belongs to them may pass: a table of bounded size that
//! many threads share without locks.
//!
//! The table keeps no flow, only a keyed hash of each and when it was seen. There are levels, each several times as
//! large as the one before, and made when that has no room for a flow: most peers need the first at most. When the last
//! has none either, a new flow takes the place of the one in its bucket that was seen longest ago. Who does not know
//! the key can't aim at a place, nor find a flow that is taken for another but by trying some 2^49 of them.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// What is remembered: an exchange, or the packet that fragments belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    /// This machine's end, or where fragments come from.
    pub(super) near: IpAddr,
    /// The other.
    pub(super) far: IpAddr,
    /// The IP protocol number.
    pub(super) protocol: u8,
    /// Its ports, near and far, or its number.
    pub(super) discriminator: u32,
}

/// Flows and when they were seen.
pub(super) struct FlowTable {
    /// Times are seconds since, from 1 on.
    origin: Instant,
    /// Has taken in the key.
    hasher: DefaultHasher,
    lifetime: Duration,
    /// The smallest first.
    levels: Box<[Level]>,
}

/// A power of two of buckets.
struct Level {
    number_of_buckets: usize,
    /// Made when there is something to remember here.
    buckets: OnceLock<Box<[Bucket]>>,
}

/// What one look brings into the cache.
#[derive(Default)]
#[repr(align(64))]
struct Bucket([Slot; SLOTS]);

#[derive(Default)]
struct Slot {
    /// The flow's hash, or [`NONE`].
    flow: AtomicU64,
    /// When it was seen; 0 is never.
    seen_at: AtomicU32,
}

const SLOTS: usize = 4;
/// Slots of the smallest level, unless the whole table has fewer.
const FIRST_LEVEL: usize = 64;
/// The factor by which the next level is larger.
const GROWTH: usize = 8;
/// No flow's hash.
const NONE: u64 = 0;

impl Slot {
    /// Remembers `flow`, in the place of another if need be.
    fn take(&self, flow: u64, seen_at: u32) {
        let is_known = self.flow.load(Ordering::Relaxed) == flow;
        // A line that nobody writes to stays in every processor's cache.
        if is_known && self.seen_at.load(Ordering::Relaxed) == seen_at {
            return;
        }
        // In this order, so that neither flow is found with the time of the other.
        if !is_known {
            self.flow.store(NONE, Ordering::Relaxed);
        }
        self.seen_at.store(seen_at, Ordering::Release);
        if !is_known {
            self.flow.store(flow, Ordering::Release);
        }
    }

    /// When `flow` was seen, if it is here before and after that is read.
    fn seen_at_of(&self, flow: u64) -> Option<u32> {
        let is_here = || self.flow.load(Ordering::Acquire) == flow;
        if !is_here() {
            return None;
        }
        let seen_at = self.seen_at.load(Ordering::Acquire);
        is_here().then_some(seen_at)
    }
}

impl FlowTable {
    /// Has room for `flows`, each of which is remembered for `lifetime`.
    pub(super) fn new(now: Instant, key: &[u8], flows: usize, lifetime: Duration) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(key);
        let smaller = std::iter::successors(Some(FIRST_LEVEL), |slots| Some(slots * GROWTH));
        let levels = smaller.take_while(|slots| *slots < flows).chain([flows]).map(Level::new).collect();
        Self { origin: now, hasher, lifetime, levels }
    }

    /// Notes that `flow` was seen.
    pub(super) fn insert(&self, now: Instant, flow: &Flow) {
        let (hash, now) = (self.hash(flow), self.seconds(now));
        let mut victim = None;
        for level in &self.levels {
            let Bucket(slots) = level.bucket(hash);
            // The oldest, unless the flow is there. Another thread may do the same: then one of two flows is not remembered.
            let is_here = |slot: &&Slot| slot.flow.load(Ordering::Relaxed) == hash;
            let seen_at = |slot: &&Slot| slot.seen_at.load(Ordering::Relaxed);
            let oldest = slots.iter().min_by_key(seen_at).expect("a bucket has slots");
            let place =
                slots.iter().find(is_here).or(Some(oldest).filter(|oldest| !self.is_fresh(now, seen_at(oldest))));
            victim = Some(place.unwrap_or(oldest));
            if place.is_some() {
                break;
            }
        }
        if let Some(slot) = victim {
            slot.take(hash, now);
        }
    }

    /// Whether `flow` was seen within its lifetime, to a second, and has not given way to others.
    pub(super) fn contains(&self, now: Instant, flow: &Flow) -> bool {
        let (hash, now) = (self.hash(flow), self.seconds(now));
        let buckets =
            self.levels.iter().map_while(|level| level.buckets.get().map(|buckets| &buckets[level.place(hash)]));
        buckets.flat_map(|Bucket(slots)| slots).any(|slot| {
            let seen_at = slot.seen_at_of(hash);
            seen_at.is_some_and(|seen_at| self.is_fresh(now, seen_at))
        })
    }

    /// Whether what was seen then is still remembered. 0 is never.
    fn is_fresh(&self, now: u32, seen_at: u32) -> bool {
        seen_at > 0 && u64::from(now.saturating_sub(seen_at)) <= self.lifetime.as_secs()
    }

    fn hash(&self, flow: &Flow) -> u64 {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&octets(flow.near));
        bytes[16..32].copy_from_slice(&octets(flow.far));
        bytes[32..36].copy_from_slice(&flow.discriminator.to_ne_bytes());
        bytes[36] = flow.protocol;
        bytes[37] = flow.near.is_ipv4().into();
        let mut hasher = self.hasher.clone();
        hasher.write(&bytes);
        hasher.finish().max(NONE + 1)
    }

    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.origin).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX - 1) + 1
    }
}

impl Level {
    fn new(slots: usize) -> Self {
        Self { number_of_buckets: (slots / SLOTS).next_power_of_two(), buckets: OnceLock::new() }
    }

    fn bucket(&self, hash: u64) -> &Bucket {
        let buckets = self.buckets.get_or_init(|| (0..self.number_of_buckets).map(|_| Bucket::default()).collect());
        &buckets[self.place(hash)]
    }

    fn place(&self, hash: u64) -> usize {
        let mask = self.number_of_buckets - 1;
        usize::try_from(hash & mask as u64).expect("below the number of buckets")
    }
}

impl fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable").field("levels", &self.levels.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, underpass_loom))]
mod interleavings {
    use std::sync::Arc;

    use loom::thread;

    use super::*;

    const OLD: u64 = 1;
    const NEW: u64 = 2;
    const OTHER: u64 = 3;

    /// Remembers `flows` at the time 100, each by a thread of its own, in a slot that remembers [`OLD`] of the time 1.
    /// Meanwhile each flow is either not found or found with a time at which it was seen.
    fn remember(flows: &'static [u64]) {
        loom::model(move || {
            let slot = Arc::new(Slot::default());
            slot.take(OLD, 1);
            let threads: Vec<_> = flows
                .iter()
                .map(|flow| {
                    let slot = Arc::clone(&slot);
                    thread::spawn(move || slot.take(*flow, 100))
                })
                .collect();
            let is_right = |flow, seen_at| seen_at == 100 && flows.contains(&flow) || seen_at == 1 && flow == OLD;
            for flow in [OLD, NEW] {
                assert!(slot.seen_at_of(flow).is_none_or(|seen_at| is_right(flow, seen_at)));
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn loom_a_flow_that_takes_the_place_of_another_does_not_lend_it_its_time() {
        remember(&[NEW]);
    }

    #[test]
    fn loom_two_flows_that_take_one_place_lend_it_to_no_third() {
        remember(&[NEW, OTHER]);
    }

    #[test]
    fn loom_a_flow_that_is_seen_while_it_gives_way_is_remembered_rightly_or_not_at_all() {
        remember(&[OLD, NEW]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::tests::start;
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(10);

    fn flow(number: u32) -> Flow {
        let [near, far] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        Flow { near, far, protocol: 17, discriminator: number }
    }

    #[test]
    fn a_flow_is_remembered_for_its_lifetime_after_it_was_seen_last() {
        let now = start();
        let table = FlowTable::new(now, b"key", 64, LIFETIME);
        assert!(!table.contains(now, &flow(1)));
        table.insert(now, &flow(1));
        table.insert(now + LIFETIME, &flow(1));
        assert!(table.contains(now + 2 * LIFETIME, &flow(1)));
        assert!(!table.contains(now + 2 * LIFETIME + Duration::from_secs(1), &flow(1)));
    }

    #[test]
    fn a_flow_is_no_other_that_differs_in_anything() {
        let now = start();
        let table = FlowTable::new(now, b"key", 64, LIFETIME);
        let known = flow(1);
        table.insert(now, &known);
        let mapped = |address: IpAddr| match address {
            IpAddr::V4(address) => IpAddr::V6(address.to_ipv6_mapped()),
            IpAddr::V6(_) => address,
        };
        for other in [
            flow(2),
            Flow { near: known.far, far: known.near, ..known },
            Flow { far: known.near, ..known },
            Flow { protocol: 1, ..known },
            Flow { near: mapped(known.near), far: mapped(known.far), ..known },
        ] {
            assert!(!table.contains(now, &other), "{other:?}");
        }
    }

    #[test]
    fn the_oldest_of_a_bucket_gives_way() {
        let now = start();
        let table = FlowTable::new(now, b"key", SLOTS, LIFETIME);
        let at = |number: u32| now + Duration::from_secs(number.into());
        (0..5).for_each(|number| table.insert(at(number), &flow(number)));
        let known = (0..5).filter(|number| table.contains(at(5), &flow(*number)));
        assert_eq!(known.collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_full_table_remembers_most_of_as_many_flows_as_it_has_room_for() {
        let now = start();
        let table = FlowTable::new(now, b"key", 1 << 10, LIFETIME);
        (0..1 << 10).for_each(|number| table.insert(now, &flow(number)));
        let known = (0..1 << 10).filter(|number| table.contains(now, &flow(*number))).count();
        assert!(known > 700, "only {known}");
        let strangers = (1 << 10..1 << 20).filter(|number| table.contains(now, &flow(*number))).count();
        assert_eq!(strangers, 0);
    }

    #[test]
    fn a_table_grows_as_it_fills_and_not_before() {
        let now = start();
        let table = FlowTable::new(now, b"key", 1 << 12, LIFETIME);
        let made = || table.levels.iter().filter(|level| level.buckets.get().is_some()).count();
        assert!(!table.contains(now, &flow(1)));
        assert_eq!((made(), table.levels.len()), (0, 3));
        table.insert(now, &flow(1));
        assert_eq!(made(), 1);
        (0..1000).for_each(|number| table.insert(now, &flow(number)));
        assert_eq!(made(), 3);
        assert!((0..1000).filter(|number| table.contains(now, &flow(*number))).count() > 950);
        let later = now + 2 * LIFETIME;
        (1000..1020).for_each(|number| table.insert(later, &flow(number)));
        let first = &table.levels[0];
        let in_first = |number: &u32| {
            let hash = table.hash(&flow(*number));
            first.bucket(hash).0.iter().any(|slot| slot.seen_at_of(hash).is_some())
        };
        assert!((1000..1020).filter(in_first).count() >= 15, "what is over gives way first");
    }

    #[test]
    fn two_threads_may_use_it_at_once() {
        let now = start();
        let table = FlowTable::new(now, b"key", 1 << 12, LIFETIME);
        std::thread::scope(|scope| {
            for first in [0, 1] {
                let table = &table;
                scope.spawn(move || {
                    for number in (first..1000).step_by(2) {
                        table.insert(now, &flow(number));
                        assert!(!table.contains(now, &flow(number + 1_000_000)));
                    }
                });
            }
        });
        assert!((0..1000).filter(|number| table.contains(now, &flow(*number))).count() > 990);
    }

    proptest! {
        /// Few enough that none gives way: what remains is a map.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0_u32..8, 0_u64..5, any::<bool>()), 0..200)) {
            let mut now = start();
            let table = FlowTable::new(now, b"key", 1 << 12, LIFETIME);
            let mut slow: HashMap<u32, Instant> = HashMap::new();
            for (number, seconds, is_seen) in steps {
                now += Duration::from_secs(seconds);
                if is_seen {
                    table.insert(now, &flow(number));
                    slow.insert(number, now);
                }
                let is_known = slow.get(&number).is_some_and(|seen_at| now - *seen_at <= LIFETIME);
                prop_assert_eq!(table.contains(now, &flow(number)), is_known);
            }
        }
    }
}
