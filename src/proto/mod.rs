//! The sans-IO core: no clock, no sockets, no threads, no randomness of its own.
//!
//! # The contract
//!
//! A [`Device`](device::Device) is the protocol state of one tunnel interface. Everything that it does follows from calls
//! of four kinds:
//!
//! - **inputs** `handle_datagram`, `handle_packet`, `handle_notice`, `handle_timeout`;
//! - **commands** `upsert_peer`, `remove_peer`, `set_endpoints`, `set_draining`, `set_route_fault`, `set_private_key`,
//!   `set_unix_time`, `set_accepted_suites`, `renew_sessions`, `shutdown`;
//! - **outputs** `poll_transmit`, `poll_event`, `poll_router`, each called until it has no more;
//! - **`poll_timeout`**, after the outputs: when to call `handle_timeout` if nothing else happens.
//!
//! **After every input or command, poll all outputs until they are empty, then the timeout.** Time comes in as `now`, which
//! must not go back, and entropy as the source that the device is made with. After `handle_timeout(now)`, `poll_timeout` lies after `now`.
//!
//! The [`Router`](router::Router) is the other half: what packets need, as an immutable snapshot that many threads may
//! share. A device can do all that its router does, more slowly, so that tests and simulations need only a device.
//!
//! Input from the network is dropped with a [`DropReason`](error::DropReason) when it is not right: it never panics and
//! never allocates without bound.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use underpass::keys::PrivateKey;
//! use underpass::proto::device::{Device, DeviceConfig};
//! use underpass::proto::endpoint::Endpoint;
//! use underpass::proto::noise::Suite;
//! use underpass::proto::peer::PeerConfig;
//! use underpass::proto::randomness::Entropy;
//!
//! let now = Instant::now();
//! let [alice, bob] = [[1; 32], [2; 32]].map(|bytes| PrivateKey::from_bytes(bytes).unwrap());
//! let [at_alice, at_bob] = ["192.0.2.1:51900", "192.0.2.2:51900"].map(|at| Endpoint::new(at.parse().unwrap()));
//! let device = |private_key: &PrivateKey, seed| {
//!     let config = DeviceConfig {
//!         private_key: private_key.clone(),
//!         previous_private_key: None,
//!         suite: Suite::Aes256Gcm,
//!         send_lanes: 1,
//!         lane_paths: false,
//!         mtu: None,
//!     };
//!     Device::new(now, Duration::from_secs(1_700_000_000), config, Entropy::seeded(seed))
//! };
//! let peer = |private_key: &PrivateKey, endpoint| PeerConfig {
//!     endpoints: Vec::from_iter(endpoint),
//!     persistent_keepalive: Some(Duration::from_secs(25)),
//!     ..PeerConfig::new(private_key.public_key())
//! };
//! let mut one = device(&alice, [3; 32]);
//! let mut two = device(&bob, [4; 32]);
//! one.upsert_peer(now, peer(&bob, Some(at_bob)));
//! two.upsert_peer(now, peer(&alice, None));
//!
//! // The loop: timeouts when due, and each side's datagrams to the other until both are quiet.
//! one.handle_timeout(now);
//! let mut quiet = false;
//! while !quiet {
//!     quiet = true;
//!     while let Some(mut transmit) = one.poll_transmit() {
//!         two.handle_datagram(now, at_alice, transmit.traffic_class.ecn(), &mut transmit.payload).unwrap();
//!         quiet = false;
//!     }
//!     while let Some(mut transmit) = two.poll_transmit() {
//!         one.handle_datagram(now, at_bob, transmit.traffic_class.ecn(), &mut transmit.payload).unwrap();
//!         quiet = false;
//!     }
//! }
//! assert!(one.status(now).peers[0].latest_handshake.is_some());
//! assert!(two.status(now).peers[0].latest_handshake.is_some());
//! assert!(one.poll_timeout().is_some_and(|(deadline, _)| deadline > now));
//! ```

mod aead;
pub mod allowed_ips;
mod candidates;
pub mod constants;
pub mod cookie;
pub mod device;
pub mod endpoint;
pub mod error;
pub mod event;
mod flow_table;
pub mod handshake;
pub mod interface_mtu;
mod lane_paths;
mod liveness;
pub mod noise;
pub mod pace;
pub mod path_mtu;
pub mod peer;
pub mod peer_table;
pub mod policy;
pub mod randomness;
pub mod rate_limiter;
mod refused;
pub mod replay;
pub mod router;
pub mod session;
mod session_slots;
pub mod share;
pub mod staged;
pub mod stats;
pub(crate) mod sync;
pub mod tai64n;
pub mod timers;
pub mod traffic;
pub mod transmit;
mod wiped;

#[cfg(test)]
mod tests;
