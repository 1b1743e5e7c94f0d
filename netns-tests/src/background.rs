//! Threads that work until nobody needs them any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A thread that is told to end, and waited for, when this is dropped.
pub(crate) struct Background {
    end: End,
    thread: Option<JoinHandle<()>>,
}

/// What such a thread looks at between two pieces of work.
#[derive(Clone, Default)]
pub(crate) struct End(Arc<AtomicBool>);

impl Background {
    /// `spawn` starts the thread.
    pub(crate) fn new(spawn: impl FnOnce(End) -> JoinHandle<()>) -> Background {
        let end = End::default();
        let thread = Some(spawn(end.clone()));
        Background { end, thread }
    }
}

impl End {
    /// Whether the thread is to end.
    pub(crate) fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end.0.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already, and this may itself run in a panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
