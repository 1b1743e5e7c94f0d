//! Deterministic draws: everything random in a run follows from its seed.

use std::time::Duration;

use underpass::proto::randomness::Randomness;

/// A source of draws.
pub(crate) struct Random(Randomness);

impl Random {
    /// The draws that `seed` has for one `purpose`: a run's setup, its transitions and its world do not shift each other.
    pub(crate) fn new(seed: u64, purpose: u8) -> Self {
        let mut bytes = [purpose; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(Randomness::new(bytes))
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.u64()
    }

    pub(crate) fn seed(&mut self) -> [u8; 32] {
        *self.0.array()
    }

    /// From zero up to, not including, `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.u64() % bound.max(1) as u64) as usize
    }

    /// True in `percent` of a hundred draws.
    pub(crate) fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < usize::from(percent)
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// From zero up to, not including, `bound`.
    pub(crate) fn duration(&mut self, bound: Duration) -> Duration {
        self.0.duration_below(bound)
    }
}
