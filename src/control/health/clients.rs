//! At most so many clients at once: past that, the one that has been there longest gives way to the newest.
//!
//! So a client that is stuck never keeps others out, and nobody can take more memory or descriptors than there are places.

use std::collections::VecDeque;
use std::future::Future;

use tokio::task::AbortHandle;

/// Those that are being served, the oldest first.
#[derive(Debug)]
pub(super) struct Clients {
    serving: VecDeque<AbortHandle>,
    max: usize,
}

impl Clients {
    pub(super) fn new(max: usize) -> Self {
        Self { serving: VecDeque::new(), max }
    }

    /// Serves one more.
    pub(super) fn admit(&mut self, client: impl Future<Output = ()> + Send + 'static) {
        self.serving.retain(|client| !client.is_finished());
        if self.serving.len() >= self.max
            && let Some(oldest) = self.serving.pop_front()
        {
            oldest.abort();
        }
        self.serving.push_back(tokio::spawn(client).abort_handle());
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.serving.iter().for_each(AbortHandle::abort);
    }
}
