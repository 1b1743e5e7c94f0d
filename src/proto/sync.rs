//! What threads share: the standard library's, or in `make loom` that of loom, which tries every order in which threads may
//! meet and every value that they may then see.

#[cfg(underpass_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(underpass_loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
