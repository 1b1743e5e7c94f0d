//! Two peers and all that passes between them: both families outside and inside, both kinds of device, both suites, small
//! and large packets.

use netns_tests::probe::{self, Iperf3, Ping};
use netns_tests::underpass::{Config, Daemon, quote};
use netns_tests::wait;

use crate::ends::{BACKEND, Ends, PROXY};

/// One cell of the matrix.
#[derive(Clone, Copy)]
struct Cell {
    /// Where the backend side is reached.
    endpoint: &'static str,
    /// The device's kind: `plain` or `offload`.
    device: &'static str,
    /// The MTU of the cable, and of the tunnel.
    mtu: (u32, u16),
    suite: &'static str,
}

const V4: &str = "10.1.0.2:51900";
const V6: &str = "[fd01::2]:51900";
const CELL: Cell = Cell { endpoint: V4, device: "offload", mtu: (1500, 1420), suite: "auto" };

impl Cell {
    fn start(self, name: &str) -> (Ends, Daemon, Daemon) {
        let ends = Ends::new(name);
        ends.lab.link(ends.proxy_port().mtu(self.mtu.0), ends.backend_port().mtu(self.mtu.0));
        let finish = |config: Config| {
            let config = config.set("device", quote(self.device)).set("mtu", self.mtu.1.to_string());
            config.set("suite", quote(self.suite))
        };
        let backend = Daemon::start(&ends.backend, &finish(ends.backend_waiting()));
        let proxy = Daemon::start(&ends.proxy, &finish(ends.proxy_calling(self.endpoint)));
        assert_eq!(proxy.status().interface().flag("offload"), self.device == "offload");
        (ends, proxy, backend)
    }

    /// Flood pings from both sides, TCP both ways, UDP, full-size pings: over both families inside.
    fn carries_everything(self, name: &str) {
        let (ends, proxy, backend) = self.start(name);
        for (from, to) in [(&ends.proxy, BACKEND), (&ends.backend, PROXY)] {
            for target in to {
                probe::flood_ping(from, target).assert_all_answered();
            }
        }
        for (target, headers) in [(BACKEND[0], 28), (BACKEND[1], 48)] {
            let full = Ping::to(target).count(20).payload(usize::from(self.mtu.1 - headers));
            full.send(&ends.proxy).assert_all_answered();
            let server = Iperf3::at(&ends.backend, target);
            for direction in [&["-n", "32M"][..], &["-n", "32M", "-R"]] {
                let flow = server.send(&ends.proxy, direction);
                assert!(flow.bytes > 1 << 20, "{direction:?}: {flow:?}");
            }
            let length = (self.mtu.1 - headers).min(1400).to_string();
            // A busy machine loses some between iperf3 and the tunnel; that the tunnel loses none, other tests show.
            let flow = server.send(&ends.proxy, &["-u", "-b", "20M", "-t", "1", "-w", "4M", "-l", &length]);
            assert!(flow.packets > 200 && flow.lost < flow.packets, "{flow:?}");
        }
        for (status, peer) in [(proxy.status(), "backend"), (backend.status(), "proxy")] {
            for reason in ["malformed", "invalid_tag", "malformed_frame", "malformed_packet", "replayed", "too_old"] {
                assert_eq!(status.drops(reason), 0, "{reason} at the side of {peer}'s peer");
            }
            assert_eq!(status.peer(peer).text("state"), "up");
            assert!(status.peer(peer).number("latest_handshake") > 0);
        }
    }
}

/// The cable of [`Ends::wired`].
#[test]
fn two_peers_over_ipv4_with_offload_carry_both_families() {
    CELL.carries_everything("v4-offload");
}

/// The cable of [`Ends::wired`].
#[test]
fn two_peers_over_ipv4_with_a_plain_device_carry_both_families() {
    Cell { device: "plain", ..CELL }.carries_everything("v4-plain");
}

/// The cable of [`Ends::wired`].
#[test]
fn two_peers_over_ipv6_with_offload_carry_both_families() {
    Cell { endpoint: V6, ..CELL }.carries_everything("v6-offload");
}

/// The cable of [`Ends::wired`].
#[test]
fn two_peers_over_ipv6_with_a_plain_device_carry_both_families() {
    Cell { endpoint: V6, device: "plain", ..CELL }.carries_everything("v6-plain");
}

/// The cable of [`Ends::wired`], with jumbo frames.
#[test]
fn two_peers_with_jumbo_packets_carry_both_families() {
    Cell { mtu: (9000, 8920), ..CELL }.carries_everything("jumbo-v4-offload");
    Cell { endpoint: V6, device: "plain", mtu: (9000, 8920), ..CELL }.carries_everything("jumbo-v6-plain");
}

/// The cable of [`Ends::wired`], with the other suite than this machine's own choice.
#[test]
fn two_peers_with_chacha20_poly1305_carry_both_families() {
    Cell { suite: "chacha20-poly1305", ..CELL }.carries_everything("chacha");
}

/// The cable of [`Ends::wired`]: the proxy waits for the backend, which finds it again after a restart too; and with an
/// endpoint at both sides there is one session.
#[test]
fn only_the_backend_has_an_endpoint_and_the_link_comes_up() {
    let ends = Ends::wired("backend-connects");
    let waiting = ends.proxy_interface().peer(ends.backend_peer());
    let proxy = Daemon::start(&ends.proxy, &waiting);
    let backend = Daemon::start(&ends.backend, &ends.backend_calling("10.1.0.1:51900"));
    for daemon in [&proxy, &backend] {
        let peer = if std::ptr::eq(daemon, &proxy) { "backend" } else { "proxy" };
        daemon.wait_for_state(peer, "up");
    }
    probe::flood_ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.stop(), 0);
    let proxy = Daemon::start(&ends.proxy, &waiting);
    proxy.wait_for_state("backend", "up");
    assert_eq!(proxy.stop(), 0);
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(V4));
    proxy.wait_for_state("backend", "up");
    backend.wait_for_state("proxy", "up");
    probe::flood_ping(&ends.backend, PROXY[0]).assert_all_answered();
    assert!(proxy.status().peer("backend").number("handshakes") <= 2);
}

/// The cable of [`Ends::wired`], with an offload device at one side and a plain one at the other.
#[test]
fn an_offload_device_and_a_plain_one_understand_each_other() {
    let ends = Ends::wired("mixed");
    let config = ends.backend_waiting().set("device", quote("plain"));
    let _backend = Daemon::start(&ends.backend, &config);
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(V4).set("device", quote("offload")));
    for target in BACKEND {
        probe::flood_ping(&ends.proxy, target).assert_all_answered();
        let server = Iperf3::at(&ends.backend, target);
        assert!(server.send(&ends.proxy, &["-n", "32M"]).bytes > 1 << 20);
        assert!(server.send(&ends.proxy, &["-n", "32M", "-R"]).bytes > 1 << 20);
    }
}

/// The cable of [`Ends::wired`], with eight TCP flows at once and nothing reordered: a datagram that came late would be
/// counted as a retransmission by TCP.
#[test]
fn parallel_flows_arrive_in_order() {
    let (ends, proxy, backend) = CELL.start("parallel");
    let server = Iperf3::at(&ends.backend, BACKEND[0]);
    let flow = server.send(&ends.proxy, &["-n", "128M", "-P", "8"]);
    assert!(flow.bytes > 1 << 20, "{flow:?}");
    assert_eq!(proxy.drops("too_old") + backend.drops("too_old") + backend.drops("replayed"), 0);
}

/// The cable of [`Ends::wired`], with two workers.
#[test]
fn several_workers_carry_parallel_flows() {
    let ends = Ends::wired("workers");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting().set("workers", "2"));
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(V4).set("workers", "2"));
    probe::flood_ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let server = Iperf3::at(&ends.backend, BACKEND[0]);
    for direction in [&["-n", "64M", "-P", "4"][..], &["-n", "64M", "-P", "4", "-R"]] {
        assert!(server.send(&ends.proxy, direction).bytes > 1 << 20);
    }
    assert_eq!(proxy.drops("invalid_tag") + proxy.drops("unknown_lane"), 0);
}

/// The cable of [`Ends::wired`], with a key shared beside the key pairs: the same, another, and none.
#[test]
fn a_preshared_key_must_be_the_same_at_both_sides() {
    let ends = Ends::wired("psk");
    let psk = [0, 1].map(|_| netns_tests::underpass::command(&ends.proxy).arg("genpsk").run().trim().to_owned());
    let backend_with = ends.proxy_peer().preshared_key(&psk[0]);
    let backend = Daemon::start(&ends.backend, &ends.backend_interface().peer(backend_with));
    let proxy_with = |peer| Daemon::start(&ends.proxy, &ends.proxy_interface().peer(peer));
    let peer = || ends.backend_peer().endpoint(V4);
    for wrong in [peer(), peer().preshared_key(&psk[1])] {
        let proxy = proxy_with(wrong);
        assert!(!probe::answers(&ends.proxy, BACKEND[0]));
        assert_ne!(proxy.status().peer("backend").text("state"), "up");
    }
    assert_ne!(backend.status().peer("proxy").text("state"), "up");
    let _proxy = proxy_with(peer().preshared_key(&psk[0]));
    probe::flood_ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}

/// The cable of [`Ends::wired`]. A packet inside has one frame's and one datagram's overhead, and every byte of UDP payload is
/// counted at both sides.
#[test]
fn both_sides_count_the_same_bytes() {
    let (ends, proxy, backend) = CELL.start("bytes");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let counters = || {
        let (there, back) = (proxy.status().peer("backend"), backend.status().peer("proxy"));
        [
            there.number("sent_bytes"),
            there.number("received_bytes"),
            back.number("sent_bytes"),
            back.number("received_bytes"),
        ]
    };
    // 84 bytes of packet and 32 of overhead, ten times each way. Now and then one of the link's own pings comes between.
    wait::until("both sides count the bytes of ten pings and their answers", || {
        let before = counters();
        Ping::to(BACKEND[0]).count(10).payload(56).send(&ends.proxy).assert_all_answered();
        let sent: Vec<u64> = counters().iter().zip(before).map(|(after, before)| after - before).collect();
        eprintln!("{sent:?}");
        sent == [1160; 4]
    });
}
