//! What a peer costs in memory: configured, and with a session. `cargo bench --bench memory`.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::fs;

use underpass::proto::noise::Suite;

#[expect(dead_code, reason = "the other benchmarks use more of it")]
#[path = "micro/hub.rs"]
mod hub;

const PEERS: usize = 1_000;

fn main() {
    let empty = resident();
    let mut device = hub::idle(Suite::Aes256Gcm, PEERS);
    let snapshot = device.poll_router();
    let idle = resident();
    let mut now = hub::now();
    for number in 0..PEERS {
        now += hub::INTERVAL;
        hub::call(now, Suite::Aes256Gcm, number, &mut device);
    }
    let snapshots = [snapshot, device.poll_router()];
    let active = resident();
    println!("{:?}, {} snapshots", device.footprint(), snapshots.iter().flatten().count());
    println!(
        "bytes for each of {PEERS} peers: {} idle, {} more with a session",
        (idle - empty) / PEERS,
        (active - idle) / PEERS
    );
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
