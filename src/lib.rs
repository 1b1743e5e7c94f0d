//! underpass carries the plaintext between a load balancer and its app servers under the untrusted network.
//!
//! Layers, an arrow goes down only (`tests/layers.rs` checks it):
//!
//! ```text
//! cli → control → { config, dataplane } → proto → { keys, packet }
//! ```
//!
//! `keys`, `packet` and `proto` are the sans-IO core: no clock, socket, thread or randomness of their own. They build
//! without the `daemon` feature. `docs/architecture.md` is the map, `docs/protocol.md` the normative wire format.

pub mod keys;
pub mod packet;
pub mod proto;

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod dataplane;
#[cfg(feature = "daemon")]
pub mod logging;
