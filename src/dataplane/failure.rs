//! How the data plane's threads end without being told to: by a failure that the daemon must hear of.

use std::io;

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
