//! Whether the threads live: each answers when it is asked, between two turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::orders::Orders;
use super::slow_path::{Command, CommandQueue};

/// Tells whether the threads of a data plane live.
#[derive(Debug, Clone)]
pub struct Pulse {
    workers: Arc<Orders>,
    slow_path: Arc<Beat>,
    commands: CommandQueue,
}

impl Pulse {
    pub(super) fn new(workers: Arc<Orders>, commands: CommandQueue) -> Self {
        Self { workers, slow_path: Arc::default(), commands }
    }

    /// Asks every thread to show that it lives.
    pub fn ask(&self) {
        self.workers.ask_for_life();
        self.slow_path.ask();
        self.commands.send(Command::ShowLife(self.slow_path.clone()));
    }

    /// Whether all of them have, since they were asked last.
    pub fn is_felt(&self) -> bool {
        self.slow_path.is_answered() && self.workers.have_shown_life()
    }
}

/// One thread's.
#[derive(Debug, Default)]
pub(super) struct Beat {
    is_owed: AtomicBool,
}

impl Beat {
    pub(super) fn ask(&self) {
        self.is_owed.store(true, Ordering::Release);
    }

    pub(super) fn answer(&self) {
        self.is_owed.store(false, Ordering::Release);
    }

    pub(super) fn is_answered(&self) -> bool {
        !self.is_owed.load(Ordering::Acquire)
    }
}
