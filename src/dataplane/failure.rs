//! How the data plane's threads end: because they are told to, or by a failure that the daemon must hear of.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Why a running data plane can't go on. There is at most one report per thread.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Somebody deleted the interface, or its network namespace.
    #[error("the interface has vanished: something deleted it ({0})")]
    TunGone(io::Error),
    /// Waiting for packets failed.
    #[error("waiting for packets failed: {0}")]
    Poll(io::Error),
    /// A bug.
    #[error("the thread {0} panicked: this is a bug, please report it with the log")]
    Panicked(String),
}

/// Tells the workers to end, and wakes them for it.
#[derive(Debug)]
pub(super) struct Stop {
    requested: AtomicBool,
    /// Readable for ever once written, so it wakes every worker.
    wake: EventFd,
}

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { requested: AtomicBool::new(false), wake })
    }

    pub(super) fn request(&self) {
        self.requested.store(true, Ordering::Release);
        self.wake.write(1).expect("one write does not fill an event counter");
    }

    pub(super) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
