//! Anonymous network namespaces: a machine of its own for a closure or a thread.
//!
//! A namespace lives as long as something holds it: our handle, a thread or process in it, a socket made in it. Nothing
//! is mounted under `/run/netns`, so nothing can be left behind. Interfaces and addresses are the business of `network`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};

/// One network namespace. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    handle: Arc<File>,
}

impl Namespace {
    /// Makes an empty namespace: no address, and a loopback interface that is down.
    pub(super) fn new() -> io::Result<Self> {
        // A thread of its own is unshared and ends, so that the caller's stays where it is.
        let handle = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        Ok(Self { handle: Arc::new(handle.join().expect("unsharing a namespace does not panic")?) })
    }

    /// The file descriptor by which netlink names this namespace.
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.handle.as_raw_fd()
    }

    /// Runs `work` inside and waits for it. Sockets it makes stay inside, and so do processes and threads it starts.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().expect("a panic in the demo ends the process in its hook")
        })
    }

    /// Starts a thread inside.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.enter()?;
            work()
        })
    }

    fn enter(&self) -> Result<()> {
        setns(&*self.handle, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }
}
