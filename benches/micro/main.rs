//! What each step of a packet's way costs by itself, and a handshake. `cargo bench`, or `cargo bench -- NAME`.
//!
//! `docs/performance.md` has the last numbers; `make bench` measures whole daemons.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

mod handshake;
mod hub;
mod packets;
mod peers;
mod session;

fn main() {
    divan::main();
}
