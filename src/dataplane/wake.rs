//! What wakes a thread that waits in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Readable from the time it is rung until that is heard.
#[derive(Debug)]
pub(super) struct Wake(EventFd);

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?))
    }

    /// Has the thread look for what there is to do.
    pub(super) fn ring(&self) {
        // It can fail only where it is readable already.
        let _ = self.0.write(1);
    }

    /// The thread's part, before it looks: what comes afterwards rings again.
    pub(super) fn hear(&self) {
        // It can fail only where it was not rung.
        let _ = self.0.read();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
