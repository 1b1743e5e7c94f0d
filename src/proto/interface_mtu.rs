//! The MTU of the interface: as large as some peer's path has proven to carry, within a range.
//!
//! It grows at once, when that is a gain, and shrinks when no path has carried it for a while: what is too long for one
//! peer's path is cut or answered meanwhile, as where peers' paths differ. Holds no path; what they carry comes in.

use std::time::Instant;

use super::constants::{MTU_LOWER_AFTER, MTU_MIN_GAIN};

/// How long packets of an interface may be, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MtuRange {
    /// Taken to pass everywhere.
    pub least: u16,
    /// The largest MTU that the interface may take, where paths carry it.
    pub most: u16,
    /// The MTU that it has.
    pub current: u16,
}

impl MtuRange {
    /// Always `mtu`.
    pub fn fixed(mtu: u16) -> Self {
        Self { least: mtu, most: mtu, current: mtu }
    }
}

/// The interface's MTU, and what is to become of it.
#[derive(Debug)]
pub(super) struct InterfaceMtu {
    /// `None` where paths are not tried.
    range: Option<MtuRange>,
    /// When it shrinks, unless a path carries it by then.
    lower_at: Option<Instant>,
    /// A path is no more.
    is_stale: bool,
}

impl InterfaceMtu {
    /// An earlier process may have left one that is larger than the least.
    pub(super) fn new(now: Instant, range: Option<MtuRange>) -> Self {
        let is_raised = range.is_some_and(|range| range.current > range.least);
        Self { range, lower_at: is_raised.then(|| now + MTU_LOWER_AFTER), is_stale: false }
    }

    /// As it is.
    pub(super) fn range(&self) -> Option<MtuRange> {
        self.range
    }

    /// The longest packet that peers are told there is a use for; 0 says nothing.
    pub(super) fn announced(&self) -> u16 {
        self.range.map_or(0, |range| range.most)
    }

    /// Whether it is time to [weigh](Self::weigh) it though no path has changed.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.is_stale || self.lower_at.is_some_and(|at| now >= at)
    }

    /// A peer is no more, whose path may have been the widest.
    pub(super) fn look_again(&mut self) {
        self.is_stale = true;
    }

    /// Takes the longest packet that any path has proven to carry. Returns the MTU, if it is another from here on.
    pub(super) fn weigh(&mut self, now: Instant, proven: Option<u16>) -> Option<u16> {
        self.is_stale = false;
        let range = self.range.as_mut()?;
        let best = proven.unwrap_or(0).clamp(range.least, range.most);
        let is_less = best < range.current;
        if is_gain(range.current, best) || (is_less && self.lower_at.is_some_and(|at| now >= at)) {
            range.current = best;
            self.lower_at = None;
            return Some(best);
        }
        self.lower_at = is_less.then(|| self.lower_at.unwrap_or(now + MTU_LOWER_AFTER));
        None
    }
}

/// Whether `larger` is so much more that a change is worth it.
pub(super) fn is_gain(mtu: u16, larger: u16) -> bool {
    u32::from(larger) >= u32::from(mtu) + u32::from(mtu) / MTU_MIN_GAIN
}

#[cfg(test)]
mod tests {
    use super::super::tests::start;
    use super::*;
    use std::time::Duration;

    const RANGE: MtuRange = MtuRange { least: 1420, most: 9156, current: 1420 };

    #[test]
    fn it_grows_at_once_but_not_for_little() {
        let now = start();
        let mut mtu = InterfaceMtu::new(now, Some(RANGE));
        assert_eq!([None, Some(1168), Some(1440), Some(1596)].map(|proven| mtu.weigh(now, proven)), [None; 4]);
        assert_eq!(mtu.weigh(now, Some(1597)), Some(1597));
        assert_eq!(mtu.weigh(now, Some(u16::MAX)), Some(9156), "no more than the most");
        assert_eq!(mtu.range().map(|range| range.current), Some(9156));
    }

    #[test]
    fn it_shrinks_when_no_path_has_carried_it_for_a_while() {
        let mut now = start();
        let mut mtu = InterfaceMtu::new(now, Some(RANGE));
        assert_eq!(mtu.weigh(now, Some(8940)), Some(8940));
        for _ in 0..10 {
            assert_eq!(mtu.weigh(now, None), None);
            now += MTU_LOWER_AFTER - Duration::from_millis(1);
            assert!(!mtu.is_due(now));
            assert_eq!(mtu.weigh(now, Some(8940)), None, "it has come back in time");
        }
        assert_eq!(mtu.weigh(now, Some(1440)), None);
        now += MTU_LOWER_AFTER;
        assert!(mtu.is_due(now));
        assert_eq!(mtu.weigh(now, Some(1440)), Some(1440));
        assert_eq!(mtu.weigh(now, None), None);
        assert_eq!(mtu.weigh(now + MTU_LOWER_AFTER, None), Some(1420), "no less than the least");
        assert!(!mtu.is_due(now + MTU_LOWER_AFTER * 2));
    }

    #[test]
    fn what_a_process_before_has_left_is_kept_for_a_while() {
        let now = start();
        let mut mtu = InterfaceMtu::new(now, Some(MtuRange { current: 8940, ..RANGE }));
        assert_eq!(mtu.weigh(now, None), None);
        assert_eq!(mtu.weigh(now + MTU_LOWER_AFTER, None), Some(1420));
    }

    #[test]
    fn a_fixed_one_stays() {
        let now = start();
        let mut mtu = InterfaceMtu::new(now, Some(MtuRange::fixed(1420)));
        assert_eq!(mtu.weigh(now, Some(8940)), None);
        assert_eq!(mtu.weigh(now, None), None);
        assert!(!mtu.is_due(now + MTU_LOWER_AFTER));
        assert_eq!(mtu.announced(), 1420);
        assert_eq!(InterfaceMtu::new(now, None).announced(), 0);
    }
}
