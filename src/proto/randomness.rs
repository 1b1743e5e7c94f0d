//! The device's only source of random bytes: a ratchet, into which fresh entropy goes before each handshake.
//!
//! Each draw replaces the key before its bytes are used (fast key erasure), so that reading the process's memory
//! reveals no ephemeral key of the past. The fresh entropy keeps a copy of the memory from revealing those of the future.
//! Equal entropy gives equal bytes: tests and the simulation are deterministic.

use std::time::Duration;

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// Fresh random bytes, as the operating system gives them.
pub struct Entropy(Box<dyn FnMut() -> [u8; 32] + Send + Sync>);

impl Entropy {
    /// Has `source` asked for 32 bytes at a time.
    pub fn new(source: impl FnMut() -> [u8; 32] + Send + Sync + 'static) -> Self {
        Self(Box::new(source))
    }

    /// Not fresh at all: bytes that follow from `seed`, for tests and simulations.
    pub fn seeded(seed: [u8; 32]) -> Self {
        let mut randomness = Randomness::new(seed);
        Self::new(move || *randomness.array())
    }

    /// The next 32 bytes.
    pub(super) fn draw(&mut self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new((self.0)())
    }
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy(redacted)")
    }
}

/// A deterministic generator with forward secrecy.
#[derive(ZeroizeOnDrop)]
pub struct Randomness {
    key: [u8; 32],
}

impl Randomness {
    /// Starts from 32 bytes of entropy.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: seed }
    }

    /// Mixes fresh entropy into the key: whoever knew the key before knows it no longer, and whoever knows `fresh` learns
    /// nothing.
    pub fn refresh(&mut self, fresh: &[u8; 32]) {
        // No block has an input of this length.
        self.key = self.keyed_hash(fresh);
    }

    /// Draws `N` bytes, in memory that is zeroed.
    pub fn array<const N: usize>(&mut self) -> Zeroizing<[u8; N]> {
        let mut drawn = Zeroizing::new([0; N]);
        for (block, part) in drawn.chunks_mut(32).enumerate() {
            let mut bytes = self.block(1 + block as u64);
            part.copy_from_slice(&bytes[..part.len()]);
            bytes.zeroize();
        }
        self.key = self.block(0);
        drawn
    }

    /// Draws a 32-bit number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(*self.array())
    }

    /// Draws a 64-bit number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(*self.array())
    }

    /// Draws a duration from zero up to, not including, `bound`, in steps of a microsecond.
    pub fn duration_below(&mut self, bound: Duration) -> Duration {
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.u64() % micros)
    }

    fn block(&self, number: u64) -> [u8; 32] {
        self.keyed_hash(&number.to_le_bytes())
    }

    fn keyed_hash(&self, input: &[u8]) -> [u8; 32] {
        let mut mac = Blake2sMac256::new_from_slice(&self.key).expect("BLAKE2s takes keys of 32 bytes");
        mac.update(input);
        mac.finalize_fixed().into()
    }
}

impl std::fmt::Debug for Randomness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Randomness(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_and_are_repeatable() {
        let (mut one, mut two) = (Randomness::new([1; 32]), Randomness::new([1; 32]));
        let first = one.array::<80>();
        assert_eq!(first, two.array::<80>());
        assert_ne!(first[..32], first[32..64]);
        assert_ne!(first, one.array::<80>());
    }

    #[test]
    fn a_draw_replaces_the_key() {
        let mut randomness = Randomness::new([1; 32]);
        randomness.u32();
        assert_ne!(randomness.key, [1; 32]);
    }

    #[test]
    fn what_was_drawn_is_not_what_is_drawn_from_next() {
        let mut randomness = Randomness::new([1; 32]);
        let drawn = randomness.array::<96>();
        assert!(drawn.chunks(32).all(|block| block != randomness.key));
    }

    #[test]
    fn fresh_entropy_and_the_key_before_it_both_count() {
        let drawn = |seed: u8, fresh: u8| {
            let mut randomness = Randomness::new([seed; 32]);
            randomness.refresh(&[fresh; 32]);
            *randomness.array::<32>()
        };
        assert_eq!(drawn(1, 1), drawn(1, 1));
        assert_ne!(drawn(1, 1), drawn(1, 2));
        assert_ne!(drawn(1, 1), drawn(2, 1));
        assert_ne!(drawn(1, 1), *Randomness::new([1; 32]).array::<32>());
    }

    #[test]
    fn durations_stay_below_their_bound() {
        let mut randomness = Randomness::new([2; 32]);
        for _ in 0..1000 {
            assert!(randomness.duration_below(Duration::from_millis(3)) < Duration::from_millis(3));
        }
        assert_eq!(randomness.duration_below(Duration::ZERO), Duration::ZERO);
    }
}
