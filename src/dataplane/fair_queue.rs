//! Inputs from workers to the slow path: a short queue for each peer, which are read in turn.
//!
//! Whoever fills their own queue loses what they send themselves, and delays others by one input of each turn. The lock is
//! held for a push or a pop; what waits is bounded by the number of peers.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::proto::peer_table::PeerId;
use crate::proto::sync::{Mutex, MutexGuard};

/// Whose turn an input takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Anybody who reaches the ports.
    Strangers,
    /// Notices about a peer's datagrams.
    Notices(PeerId),
    /// This machine's packets to a peer.
    Packets(PeerId),
}

impl Class {
    fn index(self) -> usize {
        match self {
            Self::Strangers => 0,
            Self::Notices(peer) => 1 + 2 * peer.index(),
            Self::Packets(peer) => 2 + 2 * peer.index(),
        }
    }

    /// The number of inputs that may wait.
    fn share(self) -> usize {
        match self {
            Self::Strangers => 64,
            Self::Notices(_) => 32,
            // Those of one superpacket, and as many as may wait for a session.
            Self::Packets(_) => 128,
        }
    }
}

/// Inputs that wait, by class.
#[derive(Debug)]
pub(super) struct FairQueue<T>(Mutex<Waiting<T>>);

#[derive(Debug)]
struct Waiting<T> {
    /// By the index of their class. None is made before it has an input.
    queues: Vec<VecDeque<T>>,
    /// Queues with inputs, in the order of their turns.
    turns: VecDeque<usize>,
}

/// The fate of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// The input waits, and nothing else does: the reader may be asleep.
    First,
    /// The input waits behind others, or the same waits already.
    Behind,
    /// The share of its class is full.
    Refused,
}

impl<T> FairQueue<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Waiting { queues: Vec::new(), turns: VecDeque::new() }))
    }

    /// Adds an input at the end of its class, unless `is_same` finds it there.
    pub(super) fn push(&self, class: Class, input: T, is_same: impl Fn(&T, &T) -> bool) -> Pushed {
        let mut waiting = self.lock();
        let index = class.index();
        if waiting.queues.len() <= index {
            waiting.queues.resize_with(index + 1, VecDeque::new);
        }
        let Waiting { queues, turns } = &mut *waiting;
        let queue = &mut queues[index];
        if queue.iter().any(|other| is_same(other, &input)) {
            return Pushed::Behind;
        }
        if queue.len() >= class.share() {
            return Pushed::Refused;
        }
        let is_first = turns.is_empty();
        if queue.is_empty() {
            turns.push_back(index);
        }
        queue.push_back(input);
        if is_first { Pushed::First } else { Pushed::Behind }
    }

    /// Takes the oldest input of the class whose turn it is.
    pub(super) fn pop(&self) -> Option<T> {
        let mut waiting = self.lock();
        let Waiting { queues, turns } = &mut *waiting;
        let index = turns.pop_front()?;
        let input = queues[index].pop_front();
        if !queues[index].is_empty() {
            turns.push_back(index);
        }
        input
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, underpass_loom))]
mod interleavings {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    /// Whether a reader that sleeps has been woken: a thing of the kernel's, whose changes have one order for everybody.
    #[derive(Default)]
    struct Bell(Mutex<bool>);

    impl Bell {
        fn ring(&self) {
            *self.0.lock().unwrap() = true;
        }

        fn hear(&self) -> bool {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    /// The reader sleeps when it has found nothing, and is woken by whoever was first.
    #[test]
    fn loom_no_input_is_left_behind_by_a_reader_that_sleeps_when_it_finds_none() {
        loom::model(|| {
            let (queue, bell) = (Arc::new(FairQueue::new()), Arc::new(Bell::default()));
            let writers: Vec<_> = [Class::Strangers, Class::Notices(PeerId::from_index(0))]
                .into_iter()
                .map(|class| {
                    let (queue, bell) = (Arc::clone(&queue), Arc::clone(&bell));
                    thread::spawn(move || {
                        if queue.push(class, 1, |_, _| false) == Pushed::First {
                            bell.ring();
                        }
                    })
                })
                .collect();
            let mut read = 0;
            let drain = |read: &mut u32| {
                while let Some(input) = queue.pop() {
                    *read += input;
                }
            };
            drain(&mut read);
            if bell.hear() {
                drain(&mut read);
            }
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            if bell.hear() {
                drain(&mut read);
            }
            assert_eq!(read, 2);
        });
    }
}

#[cfg(all(test, not(underpass_loom)))]
mod tests {
    use super::*;

    const STRANGER: Class = Class::Strangers;

    fn notices(peer: u32) -> Class {
        Class::Notices(PeerId::from_index(peer))
    }

    fn push(queue: &FairQueue<u32>, class: Class, input: u32) -> Pushed {
        queue.push(class, input, |_, _| false)
    }

    fn drain(queue: &FairQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn whoever_fills_their_queue_delays_others_by_one_input() {
        let queue = FairQueue::new();
        (0..1000).for_each(|input| _ = push(&queue, notices(1), input));
        assert_eq!(push(&queue, notices(1), 1000), Pushed::Refused);
        assert_eq!(push(&queue, notices(0), 2000), Pushed::Behind);
        assert_eq!(push(&queue, STRANGER, 3000), Pushed::Behind);
        assert_eq!(push(&queue, Class::Packets(PeerId::from_index(1)), 4000), Pushed::Behind);
        let read = drain(&queue);
        assert_eq!(read[..5], [0, 2000, 3000, 4000, 1]);
        assert_eq!(read.len(), notices(1).share() + 3);
    }

    #[test]
    fn inputs_of_one_peer_stay_in_order_and_room_comes_back() {
        let queue = FairQueue::new();
        assert_eq!(push(&queue, notices(0), 1), Pushed::First);
        assert_eq!(push(&queue, notices(0), 2), Pushed::Behind);
        assert_eq!(queue.pop(), Some(1));
        push(&queue, notices(0), 3);
        assert_eq!(drain(&queue), [2, 3]);
        for round in 0..10 {
            (0..32).for_each(|input| assert_ne!(push(&queue, notices(0), input), Pushed::Refused, "{round}"));
            assert_eq!(drain(&queue).len(), 32);
        }
        assert_eq!(push(&queue, notices(0), 1), Pushed::First, "the reader may be asleep again");
    }

    #[test]
    fn what_waits_already_waits_once() {
        let queue = FairQueue::new();
        let same = |one: &u32, other: &u32| one == other;
        let pushed = [7, 7, 8, 7].map(|input| queue.push(notices(0), input, same));
        assert_eq!(pushed, [Pushed::First, Pushed::Behind, Pushed::Behind, Pushed::Behind]);
        assert_eq!(queue.push(notices(1), 7, same), Pushed::Behind, "another peer's is another");
        assert_eq!(drain(&queue), [7, 7, 8]);
    }
}
