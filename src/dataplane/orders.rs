//! What a worker is told between two turns: to go on, to wait, to end, to use other sockets; and that it is to show that it
//! lives.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::pulse::Beat;
use super::sockets::Sockets;
use super::wake::Wake;

/// What a worker is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Carry packets.
    #[default]
    Run,
    /// Carry none, until there is another order.
    Pause,
    /// End.
    Stop,
}

/// One worker's.
#[derive(Debug)]
pub(super) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable while there is something to [heed](Self::heed).
    wake: Wake,
    beat: Beat,
}

#[derive(Debug, Default)]
struct State {
    order: Order,
    /// Set while the worker waits by order.
    is_paused: bool,
    /// Those to use from here on, until the worker has taken them.
    sockets: Option<Sockets>,
}

impl Orders {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), changed: Condvar::new(), wake: Wake::new()?, beat: Beat::default() })
    }

    /// Has the worker end.
    pub(super) fn stop(&self) {
        self.give(Order::Stop);
    }

    /// Has the worker wait.
    pub(super) fn pause(&self) {
        self.give(Order::Pause);
    }

    /// Has the worker go on.
    pub(super) fn resume(&self) {
        self.give(Order::Run);
    }

    /// Has the worker use `sockets` in the place of those that it has.
    pub(super) fn use_sockets(&self, sockets: Sockets) {
        self.state().sockets = Some(sockets);
        self.wake.ring();
    }

    /// The worker's part, after it has heeded: what it is to use from here on, if that is new.
    pub(super) fn take_sockets(&self) -> Option<Sockets> {
        self.state().sockets.take()
    }

    /// Returns whether the worker waits, which takes it one turn.
    pub(super) fn wait_until_paused(&self) -> bool {
        let waiting = self.changed.wait_timeout_while(self.state(), TURN, |state| !state.is_paused);
        waiting.is_ok_and(|(state, _)| state.is_paused)
    }

    /// Has the worker show that it lives.
    pub(super) fn ask_for_life(&self) {
        self.beat.ask();
        self.wake.ring();
    }

    /// Whether it has since it was asked.
    pub(super) fn has_shown_life(&self) -> bool {
        self.beat.is_answered()
    }

    /// The worker's part, when the descriptor is readable: shows life, waits while it is to wait, and returns what to do.
    pub(super) fn heed(&self) -> Order {
        self.wake.hear();
        self.beat.answer();
        let mut state = self.state();
        while state.order == Order::Pause {
            state.is_paused = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_paused = false;
        state.order
    }

    fn give(&self, order: Order) {
        self.state().order = order;
        self.changed.notify_all();
        self.wake.ring();
    }

    /// A worker that panics between two turns leaves nothing half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Far more than a worker's turn takes: 10 ms if a send buffer is full.
const TURN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// A worker without packets.
    fn worker(orders: &Arc<Orders>) -> thread::JoinHandle<()> {
        let orders = orders.clone();
        thread::spawn(move || {
            let mut descriptors = [nix::poll::PollFd::new(orders.as_fd(), nix::poll::PollFlags::POLLIN)];
            while nix::poll::poll(&mut descriptors, nix::poll::PollTimeout::NONE).is_ok() {
                if orders.heed() == Order::Stop {
                    return;
                }
            }
        })
    }

    #[test]
    fn a_worker_waits_goes_on_shows_life_and_ends_by_order() {
        let orders = Arc::new(Orders::new().unwrap());
        let thread = worker(&orders);
        for _ in 0..100 {
            orders.pause();
            assert!(orders.wait_until_paused());
            orders.resume();
        }
        orders.ask_for_life();
        while !orders.has_shown_life() {
            thread::yield_now();
        }
        orders.pause();
        assert!(orders.wait_until_paused());
        orders.ask_for_life();
        assert!(!orders.has_shown_life(), "it waits");
        orders.stop();
        thread.join().unwrap();
    }
}
