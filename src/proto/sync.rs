//! What threads share: the standard library's, or in `make loom` that of loom, which tries every order in which threads may
//! meet and every value that they may then see.

#[cfg(underpass_loom)]
use loom::sync;
#[cfg(not(underpass_loom))]
use std::sync;

// The core alone names no guard.
#[cfg(feature = "daemon")]
pub(crate) use sync::MutexGuard;
pub(crate) use sync::{
    Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
