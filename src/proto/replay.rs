//! The replay window of one lane: each counter is accepted once, and none that is too far behind the newest.
//!
//! A ring of 64-bit blocks as in RFC 6479 §2: moving the window forward clears whole blocks and shifts nothing.

use super::constants::REPLAY_WINDOW;
use super::error::DropReason;

const BLOCK_BITS: u64 = 64;
/// One block more than the window, since the block of the newest counter is only partly used.
const BLOCKS: u64 = REPLAY_WINDOW / BLOCK_BITS + 1;

/// Which counters of a lane were received.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// The next counter after the newest received; 0 while nothing was.
    next: u64,
    blocks: Box<[u64; BLOCKS as usize]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, blocks: Box::new([0; BLOCKS as usize]) }
    }
}

impl ReplayWindow {
    /// Whether `counter` would be accepted. Call before opening: it spares the AEAD.
    pub fn check(&self, counter: u64) -> Result<(), DropReason> {
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > REPLAY_WINDOW {
            return Err(DropReason::TooOld);
        }
        if self.blocks[block(counter)] & bit(counter) != 0 { Err(DropReason::Replayed) } else { Ok(()) }
    }

    /// Marks `counter` as received, which [`check`](Self::check) allowed and the AEAD verified. Returns whether it is
    /// the newest of its lane.
    pub fn accept(&mut self, counter: u64) -> bool {
        let newest = counter >= self.next;
        if newest {
            self.advance_to(counter);
        }
        self.blocks[block(counter)] |= bit(counter);
        newest
    }

    fn advance_to(&mut self, counter: u64) {
        let current = self.next.saturating_sub(1) / BLOCK_BITS;
        let skipped = (counter / BLOCK_BITS - current).min(BLOCKS);
        for block in 1..=skipped {
            self.blocks[((current + block) % BLOCKS) as usize] = 0;
        }
        self.next = counter + 1;
    }
}

fn block(counter: u64) -> usize {
    (counter / BLOCK_BITS % BLOCKS) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % BLOCK_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::message::MAX_COUNTER;

    fn receive(window: &mut ReplayWindow, counter: u64) -> Result<(), DropReason> {
        window.check(counter).map(|()| {
            window.accept(counter);
        })
    }

    /// The slow, obvious twin: a set of everything received.
    #[derive(Default)]
    struct Twin(BTreeSet<u64>);

    impl Twin {
        fn receive(&mut self, counter: u64) -> Result<(), DropReason> {
            let newest = self.0.last().copied();
            if newest.is_some_and(|newest| newest >= counter && newest - counter >= REPLAY_WINDOW) {
                return Err(DropReason::TooOld);
            }
            if self.0.insert(counter) { Ok(()) } else { Err(DropReason::Replayed) }
        }
    }

    #[test]
    fn the_edges_of_the_window() {
        const W: u64 = REPLAY_WINDOW;
        let mut window = ReplayWindow::default();
        let steps = [
            (0, Ok(())),
            (0, Err(DropReason::Replayed)),
            (1, Ok(())),
            (1, Err(DropReason::Replayed)),
            (9, Ok(())),
            (8, Ok(())),
            (7, Ok(())),
            (7, Err(DropReason::Replayed)),
            (W, Ok(())),
            (W - 1, Ok(())),
            (W - 1, Err(DropReason::Replayed)),
            (W - 2, Ok(())),
            (2, Ok(())),
            (2, Err(DropReason::Replayed)),
            (W + 16, Ok(())),
            (3, Err(DropReason::TooOld)),
            (W + 16, Err(DropReason::Replayed)),
            (W * 4, Ok(())),
            (W * 4 - (W - 1), Ok(())),
            (10, Err(DropReason::TooOld)),
            (W * 4 - W, Err(DropReason::TooOld)),
            (W * 4 - (W + 1), Err(DropReason::TooOld)),
            (W * 4 - (W - 2), Ok(())),
            (W * 4 + 1 - W, Err(DropReason::Replayed)),
            (0, Err(DropReason::TooOld)),
            (MAX_COUNTER, Ok(())),
            (MAX_COUNTER - 1, Ok(())),
            (MAX_COUNTER, Err(DropReason::Replayed)),
            (MAX_COUNTER - W + 1, Ok(())),
            (MAX_COUNTER - W, Err(DropReason::TooOld)),
        ];
        for (step, (counter, expected)) in steps.into_iter().enumerate() {
            assert_eq!(receive(&mut window, counter), expected, "step {step}: {counter}");
        }
    }

    #[test]
    fn a_lane_that_starts_in_the_middle_accepts_what_is_within_the_window() {
        let mut window = ReplayWindow::default();
        assert_eq!(receive(&mut window, 3 * REPLAY_WINDOW), Ok(()));
        assert_eq!(receive(&mut window, 2 * REPLAY_WINDOW + 1), Ok(()));
        assert_eq!(receive(&mut window, 2 * REPLAY_WINDOW), Err(DropReason::TooOld));
    }

    #[test]
    fn a_window_takes_a_bit_for_each_counter_and_one_block_more() {
        assert_eq!(ReplayWindow::default().blocks.len() as u64 * 64, REPLAY_WINDOW + 64);
    }

    #[test]
    fn only_a_counter_beyond_all_others_is_the_newest() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(5));
        assert!(!window.accept(4));
        assert!(window.accept(6));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_everything_received(
            jumps in prop::collection::vec(prop_oneof![
                8 => -70i64..70, 2 => -9000i64..9000, 1 => 8000i64..20_000
            ], 1..400)
        ) {
            let (mut window, mut twin, mut at) = (ReplayWindow::default(), Twin::default(), 0i64);
            for jump in jumps {
                at = (at + jump).max(0);
                prop_assert_eq!(receive(&mut window, at as u64), twin.receive(at as u64));
            }
        }
    }
}
