//! How many handshake messages are worked on: per source address, and in all.
//!
//! A source within its rate needs no cookie, whatever others do, until the total passes a tenth of a core. One flooding
//! address so exhausts only itself. Sources can be forged, so the table is bounded and only remembers, never answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::constants::{
    HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE, HANDSHAKES_PER_SECOND_AND_SOURCE, HANDSHAKES_PER_SECOND_UNDER_LOAD,
    MAX_LIMITED_SOURCES,
};

const SECOND: Duration = Duration::from_secs(1);

/// Token buckets of sources, and one for all. A bucket holds one second's worth.
#[derive(Debug)]
pub struct RateLimiter {
    sources: BTreeMap<IpAddr, Source>,
    all: Bucket,
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
        Self { sources: BTreeMap::new(), all: Bucket::full(now), swept_at: now }
    }

    /// Judges a handshake message from `source` by itself.
    pub fn admit(&mut self, now: Instant, source: IpAddr) -> Verdict {
        self.sweep(now);
        let source = network_of(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_LIMITED_SOURCES {
            return Verdict::DemandCookie;
        }
        let bucket = &mut self.sources.entry(source).or_insert_with(|| Source::new(now)).unproven;
        let admitted =
            bucket.take(now, HANDSHAKES_PER_SECOND_AND_SOURCE) && self.all.take(now, HANDSHAKES_PER_SECOND_UNDER_LOAD);
        if admitted { Verdict::Admit } else { Verdict::DemandCookie }
    }

    /// Judges a message with a valid cookie: its source is real and has a second bucket, so that forgers who spend the
    /// first in its name cannot shut it out.
    pub fn admit_with_cookie(&mut self, now: Instant, source: IpAddr) -> bool {
        let source = network_of(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_LIMITED_SOURCES {
            // A proven source may take the place of one that is not.
            let Some(unproven) = self.sources.iter().find(|(_, source)| !source.is_proven).map(|(source, _)| *source)
            else {
                return false;
            };
            self.sources.remove(&unproven);
        }
        let source = self.sources.entry(source).or_insert_with(|| Source::new(now));
        source.is_proven = true;
        source.proven.take(now, HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE)
    }

    /// How many source addresses are remembered.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Forgets sources whose buckets are full again, at most once a second.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept_at) >= SECOND {
            self.swept_at = now;
            self.sources
                .retain(|_, source| now.saturating_duration_since(source.unproven.at.max(source.proven.at)) < SECOND);
        }
    }
}

#[derive(Debug)]
struct Source {
    unproven: Bucket,
    proven: Bucket,
    /// Set once a message with a valid cookie came.
    is_proven: bool,
}

impl Source {
    fn new(now: Instant) -> Self {
        Self { unproven: Bucket::full(now), proven: Bucket::full(now), is_proven: false }
    }
}

#[derive(Debug)]
struct Bucket {
    /// Time saved up, at most a second: one token costs `SECOND / rate`.
    credit: Duration,
    at: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { credit: SECOND, at: now }
    }

    fn take(&mut self, now: Instant, rate: u32) -> bool {
        self.credit = (self.credit + now.saturating_duration_since(self.at)).min(SECOND);
        self.at = self.at.max(now);
        let rest = self.credit.checked_sub(SECOND / rate);
        self.credit = rest.unwrap_or(self.credit);
        rest.is_some()
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
        assert!(limiter.admit_with_cookie(now, source(1 << 20)));
        assert_eq!(limiter.sources(), MAX_LIMITED_SOURCES);
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

    #[test]
    fn a_proven_source_is_limited_too() {
        let now = start();
        let mut limiter = RateLimiter::new(now);
        let admitted = (0..1000).filter(|_| limiter.admit_with_cookie(now, source(1))).count();
        assert_eq!(admitted, HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE as usize);
        assert!(limiter.admit_with_cookie(now + SECOND / HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE, source(1)));
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
