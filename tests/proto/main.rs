//! The core's behaviour over time: two devices, one virtual clock, no real seconds.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod auto_mtu;
mod clock_jump;
mod cookie;
mod cryptokey_routing;
mod draining;
mod ecn;
mod expiry;
mod fork;
mod goodbye;
mod handshake;
mod keepalive;
mod key_change;
mod lane_paths;
mod liveness;
mod many_peers;
mod pair;
mod path_mtu;
mod policy;
mod reflection;
mod rekey;
mod roaming;
mod shares;
mod staged;
mod status;
