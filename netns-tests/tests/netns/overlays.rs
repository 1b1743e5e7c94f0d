//! Overlay networks inside the tunnel: VXLAN and Geneve of the kernel, in superpackets where it gives and takes them.

use std::net::SocketAddr;

use netns_tests::overlay::{Carried, Overlay, VXLAN};
use netns_tests::probe;
use netns_tests::pump::Pump;
use netns_tests::underpass::{self, Config, Daemon, quote};
use netns_tests::{Host, wait};

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINT: &str = "10.1.0.2:51900";
const INSIDE: [[&str; 2]; 2] = [["10.99.0.1/24", "fd99::1/64"], ["10.99.0.2/24", "fd99::2/64"]];
/// Servers on the backend side, inside the overlay.
const SERVERS: [&str; 2] = ["10.99.0.2:7000", "[fd99::2]:7000"];
/// Several times the longest packet that the tunnel carries: only superpackets make such a mean, of which every other is an
/// acknowledgement.
const LONG: u64 = 5000;

fn overlay(kind: &str, family: usize) -> Overlay<'_> {
    let outside = [PROXY[family], BACKEND[family]];
    Overlay { kind, mtu: if family == 0 { 1370 } else { 1350 }, outside, inside: INSIDE }
}

/// Load both ways, of which every byte is checked; returns with the means of packets' lengths at both sides once `enough`
/// says that they are as they should be.
fn pump(ends: &Ends, server: &str, what: &str, mut enough: impl FnMut([[u64; 2]; 2]) -> bool) {
    let sides = [&ends.proxy, &ends.backend];
    let carried = || sides.map(|host| Carried::by(host, "underpass0"));
    let pump = Pump::start(&ends.proxy, &ends.backend, server.parse::<SocketAddr>().unwrap(), 1);
    wait::until_within(wait::PATIENCE, what, || {
        let before = carried();
        pump.wait_for_progress();
        pump.wait_for_progress();
        let now = carried();
        let means = [0, 1].map(|side: usize| now[side].mean_lengths_since(&before[side]));
        eprintln!("  {what}: bytes of a packet, received and sent, at both sides: {means:?}");
        enough(means)
    });
    pump.stop();
}

fn all_are_long(means: [[u64; 2]; 2]) -> bool {
    means.as_flattened().iter().all(|mean| *mean > LONG)
}

fn start(name: &str, finish: impl Fn(Config) -> Config) -> (Ends, [Daemon; 2]) {
    let ends = Ends::wired(name);
    let backend = Daemon::start(&ends.backend, &finish(ends.backend_waiting()));
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    (ends, [proxy, backend])
}

/// Linux 6.17 and newer: what a TUN does not understand it does not take.
fn kernel_gives_tunnel_offload(daemon: &Daemon) -> bool {
    let gives = daemon.status().interface().flag("tunnel_offload");
    if !gives {
        eprintln!("  not on this kernel: its TUN devices give no superpackets in tunnels");
    }
    gives
}

fn hosts(ends: &Ends) -> [&Host; 2] {
    [&ends.proxy, &ends.backend]
}

/// The cable of [`Ends::wired`]; load both ways through overlays in the tunnel.
#[test]
fn overlays_of_every_kind_travel_in_superpackets_both_ways() {
    let (ends, [proxy, _backend]) = start("overlays", |config| config);
    if !kernel_gives_tunnel_offload(&proxy) {
        return;
    }
    let kinds = ["vxlan dstport 8472 udpcsum", "geneve dstport 6081 noudpcsum", "geneve dstport 6081 udpcsum"];
    for (family, kind) in
        [(0, VXLAN), (0, kinds[0]), (0, kinds[1]), (0, kinds[2]), (1, kinds[0]), (1, "geneve dstport 6081")]
    {
        let overlay = overlay(kind, family);
        if !overlay.is_known_to(&ends.proxy) {
            eprintln!("  this kernel has no {kind}");
            continue;
        }
        overlay.connect(hosts(&ends));
        for server in SERVERS {
            pump(&ends, server, &format!("{kind} over {}, {server}", overlay.outside[0]), all_are_long);
        }
        overlay.remove(hosts(&ends));
    }
    assert_eq!(proxy.drops("malformed_packet"), 0);
    assert_eq!(proxy.drops("tun_write_failed"), 0);
}

/// The cable of [`Ends::wired`]; load both ways through an overlay in the tunnel.
#[test]
fn an_overlay_between_an_offload_device_and_a_plain_one_loses_nothing() {
    let (ends, [proxy, backend]) = start("overlays-plain", |config| config.set("device", quote("plain")));
    for (kind, server) in [(VXLAN, SERVERS[0]), ("vxlan dstport 8472 udpcsum", SERVERS[1])] {
        let overlay = overlay(kind, 0);
        overlay.connect(hosts(&ends));
        let are_short_there = |means: [[u64; 2]; 2]| means[1].iter().all(|mean| *mean <= 1420);
        pump(&ends, server, &format!("{kind}, {server}"), are_short_there);
        overlay.remove(hosts(&ends));
    }
    for daemon in [proxy, backend] {
        assert_eq!(daemon.drops("malformed_packet"), 0);
    }
}

/// The cable of [`Ends::wired`]; load both ways through an overlay in the tunnel.
#[test]
fn an_overlay_goes_on_across_a_restart_in_place() {
    let (ends, [proxy, _backend]) = start("overlays-restart", |config| config);
    if !kernel_gives_tunnel_offload(&proxy) {
        return;
    }
    let overlay = overlay(VXLAN, 0);
    overlay.connect(hosts(&ends));
    let pumping = Pump::start(&ends.proxy, &ends.backend, SERVERS[0].parse().unwrap(), 1);
    pumping.wait_for_progress();
    underpass::command(&ends.proxy).arg("restart").run();
    pumping.wait_for_progress();
    pumping.stop();
    pump(&ends, SERVERS[1], "after the restart", all_are_long);
}
