//! How many handshake messages are worked on: per source address, and in all.
//!
//! A source within its rate needs no cookie, whatever others do, until the total passes a tenth of a core. One flooding
//! address so exhausts only itself. Sources with a cookie share a total of their own evenly: among networks, and in each among
//! its addresses and ports, as behind a NAT. Sources can be forged, so the tables are bounded and only remember, never answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::constants::{
    HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE, HANDSHAKES_PER_SECOND_AND_SOURCE, HANDSHAKES_PER_SECOND_PROVEN,
    HANDSHAKES_PER_SECOND_UNDER_LOAD, MAX_HANDSHAKE_TIME, MAX_LIMITED_SOURCES, TIMES_PER_HANDSHAKE,
    TIMES_PER_HANDSHAKE_PROVEN,
};

const SECOND: Duration = Duration::from_secs(1);

/// Token buckets of sources, one for all without a cookie and one for all with one.
#[derive(Debug)]
pub struct RateLimiter {
    sources: BTreeMap<IpAddr, Bucket>,
    all: Bucket,
    proven: ProvenSources,
    /// Time that one message has taken lately.
    handshake_time: Duration,
    swept_at: Instant,
}

/// What to do with a handshake message whose mac1 is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Work on it.
    Admit,
    /// Work on it only if it carries a valid cookie, and [`RateLimiter::admit_with_cookie`] agrees.
    DemandCookie,
}

impl RateLimiter {
    /// With all buckets full.
    pub fn new(now: Instant) -> Self {
        Self {
            sources: BTreeMap::new(),
            all: Bucket::full(now),
            proven: ProvenSources {
                networks: BTreeMap::new(),
                all: Bucket::full(now),
                cost: SECOND / HANDSHAKES_PER_SECOND_PROVEN,
            },
            handshake_time: Duration::ZERO,
            swept_at: now,
        }
    }

    /// Learns how long a message was worked on. Where that is long, because the processor is slow or busy with other things,
    /// fewer are: else no time would be left for a look at the others, among them those of sources that have sent little.
    pub fn learn_time(&mut self, took: Duration) {
        self.handshake_time = (self.handshake_time * 7 + took.min(MAX_HANDSHAKE_TIME)) / 8;
        let cost = SECOND / HANDSHAKES_PER_SECOND_PROVEN;
        self.proven.cost = cost.max(self.handshake_time * TIMES_PER_HANDSHAKE_PROVEN);
    }

    /// Judges a handshake message from `source` by itself.
    pub fn admit(&mut self, now: Instant, source: IpAddr) -> Verdict {
        self.sweep(now);
        let source = network_of(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_LIMITED_SOURCES {
            return Verdict::DemandCookie;
        }
        let bucket = self.sources.entry(source).or_insert_with(|| Bucket::full(now));
        let cost = (SECOND / HANDSHAKES_PER_SECOND_UNDER_LOAD).max(self.handshake_time * TIMES_PER_HANDSHAKE);
        let admitted = bucket.take(now, SECOND / HANDSHAKES_PER_SECOND_AND_SOURCE) && self.all.take(now, cost);
        if admitted { Verdict::Admit } else { Verdict::DemandCookie }
    }

    /// Judges a message with a valid cookie: its source is real and has buckets of its own, so that forgers who spend the
    /// other in its name cannot shut it out.
    pub fn admit_with_cookie(&mut self, now: Instant, source: SocketAddr) -> bool {
        self.sweep(now);
        self.proven.admit(now, source)
    }

    /// Whether a source has shown a cookie and spent its share: what it sends is not worth a look at its MACs. Nobody else
    /// can spend it in its name.
    pub fn has_spent(&self, now: Instant, source: SocketAddr) -> bool {
        self.proven.has_spent(now, source)
    }

    /// How many source addresses are remembered.
    pub fn sources(&self) -> usize {
        self.sources.len() + self.proven.len()
    }

    /// Forgets sources whose buckets are full again, at most once a second.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept_at) >= SECOND {
            self.swept_at = now;
            self.sources.retain(|_, bucket| bucket.was_asked_within(now, SECOND));
            self.proven.sweep(now);
        }
    }
}

/// Sources with a valid cookie, by their networks.
#[derive(Debug)]
struct ProvenSources {
    networks: BTreeMap<IpAddr, Network>,
    all: Bucket,
    /// Of one message.
    cost: Duration,
}

/// An address, or a /64, and who sends from it.
#[derive(Debug)]
struct Network {
    bucket: Bucket,
    places: BTreeMap<SocketAddr, Bucket>,
}

impl ProvenSources {
    /// From the source's bucket, its network's, and that of all.
    fn admit(&mut self, now: Instant, source: SocketAddr) -> bool {
        let network = network_of(source.ip());
        if !self.makes_room_for(network, source) {
            return false;
        }
        let all = &mut self.all;
        all.fill(now, SECOND);
        self.networks.entry(network).or_insert_with(|| Network { bucket: all.child(now), places: BTreeMap::new() });
        let cost = self.cost_of_network();
        let Network { bucket, places } = self.networks.get_mut(&network).expect("it is there, or was just added");
        bucket.fill(now, cost);
        places.entry(source).or_insert_with(|| bucket.child(now));
        let cost_of_place = cost * u32::try_from(places.len()).unwrap_or(u32::MAX);
        let place = places.get_mut(&source).expect("it is there, or was just added");
        place.fill(now, cost_of_place);
        let costs = [(place, cost_of_place), (bucket, cost), (&mut self.all, self.cost)];
        let suffices = costs.iter().all(|(bucket, cost)| bucket.credit >= *cost);
        if suffices {
            costs.into_iter().for_each(|(bucket, cost)| bucket.credit -= cost);
        }
        suffices
    }

    fn has_spent(&self, now: Instant, source: SocketAddr) -> bool {
        let Some(network) = self.networks.get(&network_of(source.ip())) else { return false };
        let Some(place) = network.places.get(&source) else { return false };
        let cost = self.cost_of_network() * u32::try_from(network.places.len()).unwrap_or(u32::MAX);
        place.credit_at(now, cost) < cost
    }

    /// The cost of one message to a network: its share of the total, but not more than one network may have.
    fn cost_of_network(&self) -> Duration {
        let networks = u32::try_from(self.networks.len()).unwrap_or(u32::MAX);
        let share = self.cost * networks;
        share.max(SECOND / HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE)
    }

    /// A full table gives up a place in the network that has most of them for one in a network that has fewer.
    fn makes_room_for(&mut self, network: IpAddr, source: SocketAddr) -> bool {
        let places_of = |network: Option<&Network>| network.map_or(0, |network| network.places.len());
        let own = self.networks.get(&network);
        if own.is_some_and(|network| network.places.contains_key(&source)) || self.len() < MAX_LIMITED_SOURCES {
            return true;
        }
        let own = places_of(own);
        let Some(largest) = self.networks.values_mut().max_by_key(|network| network.places.len()) else { return true };
        if largest.places.len() <= own.max(1) {
            return false;
        }
        largest.places.pop_first();
        true
    }

    fn len(&self) -> usize {
        self.networks.values().map(|network| network.places.len()).sum()
    }

    fn sweep(&mut self, now: Instant) {
        let cost = self.cost_of_network();
        for network in self.networks.values_mut() {
            let number = u32::try_from(network.places.len()).unwrap_or(u32::MAX);
            network.places.retain(|_, place| place.was_asked_within(now, SECOND.max(cost * number)));
        }
        self.networks.retain(|_, network| !network.places.is_empty());
    }
}

/// Time saved up: what a message costs is a time, too. It holds a second, or one message's worth where that is more.
#[derive(Debug)]
struct Bucket {
    credit: Duration,
    at: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { credit: SECOND, at: now }
    }

    /// For someone new who draws on this one too: full while there is enough for all, else empty, so that nobody gains by
    /// being new.
    fn child(&self, now: Instant) -> Self {
        let credit = if self.credit >= SECOND / 2 { SECOND } else { Duration::ZERO };
        Self { credit, at: now }
    }

    fn credit_at(&self, now: Instant, cost: Duration) -> Duration {
        (self.credit + now.saturating_duration_since(self.at)).min(SECOND.max(cost))
    }

    fn fill(&mut self, now: Instant, cost: Duration) {
        self.credit = self.credit_at(now, cost);
        self.at = self.at.max(now);
    }

    fn take(&mut self, now: Instant, cost: Duration) -> bool {
        self.fill(now, cost);
        let rest = self.credit.checked_sub(cost);
        self.credit = rest.unwrap_or(self.credit);
        rest.is_some()
    }

    fn was_asked_within(&self, now: Instant, time: Duration) -> bool {
        now.saturating_duration_since(self.at) < time
    }
}

/// An IPv4 address, or the /64 of an IPv6 address: what one host can send from without effort.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::start;
    use super::*;

    fn source(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn one_flooding_source_does_not_put_the_others_under_load() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        let admitted = (0..100_000).filter(|_| limiter.admit(now, source(1)) == Verdict::Admit).count();
        assert_eq!(admitted, HANDSHAKES_PER_SECOND_AND_SOURCE as usize);
        assert_eq!(limiter.admit(now, source(2)), Verdict::Admit);
    }

    #[test]
    fn many_sources_together_put_all_under_load_and_it_ends_when_the_flood_ends() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        let admitted = (0..2000).filter(|number| limiter.admit(now, source(*number)) == Verdict::Admit).count();
        assert_eq!(admitted, HANDSHAKES_PER_SECOND_UNDER_LOAD as usize);
        assert_eq!(limiter.admit(now, source(9999)), Verdict::DemandCookie);
        assert_eq!(limiter.admit(now + SECOND, source(9999)), Verdict::Admit);
    }

    #[test]
    fn the_table_is_bounded_and_a_proven_source_still_gets_in() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        for number in 0..MAX_LIMITED_SOURCES as u32 * 2 {
            limiter.admit(now, source(number));
        }
        assert_eq!(limiter.sources(), MAX_LIMITED_SOURCES);
        assert_eq!(limiter.admit(now, source(1 << 20)), Verdict::DemandCookie);
        assert!(limiter.admit_with_cookie(now, place(1 << 20, 1)));
        assert_eq!(limiter.sources(), MAX_LIMITED_SOURCES + 1);
        limiter.admit(now + SECOND, source(1));
        assert_eq!(limiter.sources(), 1, "quiet sources are forgotten");
    }

    #[test]
    fn a_source_that_goes_on_flooding_is_not_forgotten() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        let mut flood = |at| (0..1000).filter(|_| limiter.admit(at, source(1)) == Verdict::Admit).count();
        let admitted = [now, now + SECOND / 2, now + SECOND].map(&mut flood);
        let rate = HANDSHAKES_PER_SECOND_AND_SOURCE as usize;
        assert_eq!(admitted, [rate, rate / 2, rate / 2]);
    }

    fn place(number: u32, port: u16) -> SocketAddr {
        SocketAddr::new(source(number), port)
    }

    /// The time that a newcomer at `newcomer`, which asks ten times a second, waits while the others have been asking
    /// for a second and go on.
    fn wait_beside(others: &[SocketAddr], newcomer: SocketAddr) -> (Duration, usize) {
        let (start, mut admitted) = (start(), 0);
        let mut limiter = RateLimiter::new(start);
        for millis in 0..30_000 {
            let now = start + Duration::from_millis(millis);
            // Each of them twenty thousand times a second together.
            for turn in 0..20 {
                let other = others[(millis as usize * 20 + turn) % others.len()];
                admitted += usize::from(limiter.admit_with_cookie(now, other));
            }
            let asks = millis >= 1000 && millis % 100 == 0;
            if asks && limiter.admit_with_cookie(now, newcomer) {
                return (Duration::from_millis(millis - 1000), admitted * 1000 / millis.max(1) as usize);
            }
        }
        panic!("it never gets through");
    }

    #[test]
    fn a_proven_source_is_limited_too() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        let admitted = (0..1000).filter(|_| limiter.admit_with_cookie(now, place(1, 1))).count();
        assert_eq!(admitted, HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE as usize);
        assert!(limiter.admit_with_cookie(now + SECOND / HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE, place(1, 1)));
    }

    /// Messages a second, with a cookie and without, of which one takes so long.
    fn admitted(took: Duration) -> [usize; 2] {
        let start = start();
        let (mut limiter, mut admitted) = (RateLimiter::new(start), [0, 0]);
        (0..100).for_each(|_| limiter.learn_time(took));
        for number in 0..360_000 {
            let now = start + SECOND / 20_000 * number;
            let is_admitted = [
                limiter.admit_with_cookie(now, place(number % 1000, 1)),
                limiter.admit(now, source(number % 4000)) == Verdict::Admit,
            ];
            // Once the buckets that were full at first are empty, for as long as sources wait for the next one several times.
            let is_counted = number >= 120_000;
            (0..2).for_each(|kind| admitted[kind] += usize::from(is_counted && is_admitted[kind]));
        }
        admitted.map(|admitted| admitted / 12)
    }

    #[test]
    fn on_a_busy_processor_messages_are_worked_on_for_half_of_the_time() {
        let [proven, others] = admitted(Duration::from_micros(170));
        assert!((950..=1000).contains(&proven) && (480..=500).contains(&others), "{proven} {others}");
        let [proven, others] = admitted(Duration::from_millis(2));
        assert!((150..=167).contains(&proven) && (75..=84).contains(&others), "{proven} {others}");
    }

    #[test]
    fn a_proven_source_that_has_spent_its_share_is_known_by_its_address() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        assert!(!limiter.has_spent(now, place(1, 1)), "nobody knows it");
        while limiter.admit_with_cookie(now, place(1, 1)) {}
        assert!(limiter.has_spent(now, place(1, 1)));
        assert!(!limiter.has_spent(now, place(1, 2)) && !limiter.has_spent(now, place(2, 1)));
        assert!(!limiter.has_spent(now + SECOND / 10, place(1, 1)));
        while limiter.admit(now, source(3)) == Verdict::Admit {}
        assert!(!limiter.has_spent(now, place(3, 1)), "whoever forges its address has spent that");
    }

    #[test]
    fn proven_sources_share_a_total_evenly_and_a_newcomer_gets_through() {
        let others: Vec<SocketAddr> = (0..100).map(|number| place(number, 1)).collect();
        let (wait, rate) = wait_beside(&others, place(1000, 1));
        assert!(wait <= Duration::from_millis(300), "{wait:?}");
        assert!(rate <= 2 * HANDSHAKES_PER_SECOND_PROVEN as usize, "{rate} in the first second, with a full bucket");
    }

    #[test]
    fn proven_sources_behind_one_address_share_it_evenly() {
        let others: Vec<SocketAddr> = (1..=100).map(|port| place(1, port)).collect();
        let (wait, _) = wait_beside(&others, place(1, 1000));
        assert!(wait <= SECOND, "{wait:?}");
        // Nor does it help to send from another port each time.
        let others: Vec<SocketAddr> = (1..=60_000).map(|port| place(1, port)).collect();
        let (wait, _) = wait_beside(&others, place(2, 1));
        assert!(wait <= Duration::from_millis(300), "{wait:?}");
    }

    #[test]
    fn a_full_table_makes_room_for_networks_with_few_places() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        for port in 0..=u16::MAX {
            limiter.admit_with_cookie(now, place(1, port));
        }
        assert_eq!(limiter.sources(), MAX_LIMITED_SOURCES);
        limiter.admit_with_cookie(now, place(2, 1));
        assert!(limiter.proven.networks.contains_key(&source(2)));
        assert_eq!(limiter.sources(), MAX_LIMITED_SOURCES);
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_a_bucket() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        for host in 0..1000u128 {
            limiter.admit(now, Ipv6Addr::from((0x2001_0db8 << 96) + host).into());
        }
        assert_eq!(limiter.sources(), 1);
    }
}
