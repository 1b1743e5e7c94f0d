//! Lanes of several workers, each with a path of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use netns_tests::capture::{Capture, TcpDump};
use netns_tests::nat::Nat;
use netns_tests::numbered::NumberedFlows;
use netns_tests::probe::{self, Iperf3};
use netns_tests::underpass::{Config, Daemon, PORT};
use netns_tests::{Host, frame, wait};

use crate::ends::{BACKEND, Ends, PROXY};

/// The kind of a datagram of transport data; its lane follows.
const TRANSPORT: u8 = 4;
/// Datagrams of a transfer, where pings of a path would be far fewer.
const MANY: usize = 50;
/// A path that falls silent is left after so long: three pings, and some patience with a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_millis(2_500);

/// With two workers.
fn two_workers(config: Config) -> Config {
    config.set("workers", "2")
}

/// The UDP port of a daemon's lane 1: the one that is not listened on.
fn lane_port(host: &Host) -> u16 {
    let table = host.read("/proc/thread-self/net/udp");
    let ports = table.lines().skip(1).filter_map(|line| {
        let (_, port) = line.split_whitespace().nth(1)?.split_once(':')?;
        u16::from_str_radix(port, 16).ok()
    });
    let own: Vec<u16> = ports.filter(|port| *port != PORT).collect();
    assert_eq!(own.len(), 1, "{table}");
    own[0]
}

/// How many datagrams of each lane went from where to where.
fn ways(capture: &Capture) -> BTreeMap<(SocketAddr, SocketAddr, u8), usize> {
    let mut ways = BTreeMap::new();
    for (frame, datagram) in capture.frames.iter().filter_map(|frame| Some((frame, frame::datagram(frame)?))) {
        if let [TRANSPORT, lane, ..] = frame[datagram.payload] {
            *ways.entry((datagram.source, datagram.destination, lane)).or_default() += 1;
        }
    }
    ways
}

/// What many flows in both directions look like on the wire.
fn ways_of_a_transfer(ends: &Ends, watched: &Host) -> BTreeMap<(SocketAddr, SocketAddr, u8), usize> {
    let server = Iperf3::at(&ends.backend, BACKEND[0]);
    let sniffer = TcpDump::start(watched, "wan");
    server.send(&ends.proxy, &["-P", "16", "-n", "32M"]);
    server.send(&ends.proxy, &["-P", "16", "-n", "32M", "-R"]);
    ways(&sniffer.stop())
}

/// The cable of [`Ends::wired`], with two workers at each side.
#[test]
fn each_of_two_workers_has_a_path_of_its_own() {
    let ends = Ends::wired("lanes");
    let _backend = Daemon::start(&ends.backend, &two_workers(ends.backend_waiting()));
    let _proxy = Daemon::start(&ends.proxy, &two_workers(ends.proxy_calling("10.1.0.2:51900")));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let ways = ways_of_a_transfer(&ends, &ends.proxy);
    let backend: SocketAddr = "10.1.0.2:51900".parse().unwrap();
    for (lane, port) in [(0, PORT), (1, lane_port(&ends.proxy))] {
        let proxy = SocketAddr::new("10.1.0.1".parse().unwrap(), port);
        for (from, to) in [(proxy, backend), (backend, proxy)] {
            let sent = ways.get(&(from, to, lane)).copied().unwrap_or_default();
            assert!(sent > MANY, "lane {lane} from {from} to {to}: {ways:?}");
        }
    }
    assert!(ways.keys().all(|(from, to, _)| [*from, *to].contains(&backend)), "{ways:?}");
}

/// ```text
///   proxy ── router(NAT) ── backend
///   192.168.0.2   10.1.0.254  10.1.0.2
/// ```
#[test]
fn each_of_two_workers_has_a_path_of_its_own_through_a_nat() {
    let ends = Ends::new("lanes-nat");
    let router = ends.lab.router("router");
    ends.lab.link(ends.proxy.port("wan", ["192.168.0.2/24"]), router.port("lan", ["192.168.0.1/24"]));
    ends.lab.link(router.port("wan", ["10.1.0.254/24"]), ends.backend.port("wan", ["10.1.0.2/24"]));
    ends.proxy.ip("route add default via 192.168.0.1");
    let _nat = Nat::masquerade(&router, "wan");
    let _backend = Daemon::start(&ends.backend, &two_workers(ends.backend_waiting()));
    let _proxy = Daemon::start(&ends.proxy, &two_workers(ends.proxy_calling("10.1.0.2:51900")));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let ways = ways_of_a_transfer(&ends, &ends.backend);
    let backend: SocketAddr = "10.1.0.2:51900".parse().unwrap();
    let busy = |from_backend: bool, lane: u8| {
        let matching = ways
            .iter()
            .filter(|((from, _, of), sent)| (*from == backend) == from_backend && *of == lane && **sent > MANY);
        let remotes = matching.map(|((from, to, _), _)| if from_backend { *to } else { *from });
        remotes.collect::<Vec<_>>()
    };
    for lane in [0, 1] {
        assert_eq!(busy(true, lane), busy(false, lane), "lane {lane}: {ways:?}");
        assert_eq!(busy(true, lane).len(), 1, "lane {lane}: {ways:?}");
    }
    assert_ne!(busy(true, 0), busy(true, 1), "{ways:?}");
}

/// The cable of [`Ends::wired`]; one direction of the path of the proxy's lane 1 is cut while TCP flows on both lanes.
fn flows_move(name: &str, cut_at: impl Fn(&Ends) -> Host, what: &str) {
    let ends = Ends::wired(name);
    let backend = Daemon::start(&ends.backend, &two_workers(ends.backend_waiting()));
    let proxy = Daemon::start(&ends.proxy, &two_workers(ends.proxy_calling("10.1.0.2:51900")));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let port = lane_port(&ends.proxy);
    let at = cut_at(&ends);
    let flows = NumberedFlows::between((&ends.proxy, PROXY[0]), (&ends.backend, BACKEND[0]), 16);
    let all_pass = || flows.all_pass(Duration::from_millis(100));
    assert!(all_pass());
    let server = Iperf3::at(&ends.backend, BACKEND[0]);
    thread::scope(|scope| {
        let transfer = scope.spawn(|| server.send(&ends.proxy, &["-P", "16", "-t", "12", "--bidir"]));
        wait::until("TCP flows both ways", || {
            let sent = |daemon: &Daemon, peer: &str| daemon.status().peer(peer).number("sent_bytes");
            sent(&proxy, "backend") > 8 << 20 && sent(&backend, "proxy") > 8 << 20
        });
        for host in [&ends.proxy, &ends.backend] {
            let cut = if host.name() == at.name() { format!("{what} {port} drop") } else { String::new() };
            // At offset 64 from the UDP header's begin: transport data of lane 1.
            let rules = format!(
                "table inet hole {{
                   counter moved {{ }}
                   chain input {{
                     type filter hook input priority filter
                     {cut}
                     udp sport {PORT} udp dport {PORT} @th,64,16 0x0401 counter name moved
                   }}
                 }}"
            );
            host.command("nft").args(["-f", "-"]).stdin(rules).run();
        }
        assert!(!all_pass(), "nothing is lost");
        wait::until_within(NOTICED_WITHIN, "all flows pass again", all_pass);
        // TCP tries again when its timer says so.
        let moved = |host: &Host| {
            let listed = host.command("nft").args(["list", "counter", "inet", "hole", "moved"]).run();
            let packets = listed.split_whitespace().skip_while(|word| *word != "packets").nth(1);
            packets.and_then(|packets| packets.parse::<usize>().ok()).unwrap()
        };
        wait::until("TCP goes on by the path of lane 0", || {
            [&ends.proxy, &ends.backend].iter().all(|host| moved(host) > 10 * MANY)
        });
        let flow = transfer.join().unwrap();
        assert!(flow.bytes > 64 << 20, "{flow:?}");
    });
    at.command("nft").args(["delete", "table", "inet", "hole"]).run();
    // Probes grow apart while the path gives no answer.
    wait::until_within(Duration::from_secs(30), "the lane returns to its path", || {
        let sniffer = TcpDump::start(&ends.proxy, "wan");
        for _ in 0..10 {
            all_pass();
        }
        let ways = ways(&sniffer.stop());
        let by_own_port = |way: &(SocketAddr, SocketAddr, u8)| way.0.port() == port || way.1.port() == port;
        let busy = ways.iter().filter(|(way, sent)| way.2 == 1 && by_own_port(way) && **sent > 10);
        busy.count() == 2
    });
}

/// The cable of [`Ends::wired`].
#[test]
fn flows_of_a_lane_whose_datagrams_are_lost_on_the_way_there_move() {
    flows_move("hole-there", |ends| ends.backend.clone(), "udp sport");
}

/// The cable of [`Ends::wired`].
#[test]
fn flows_of_a_lane_whose_datagrams_are_lost_on_the_way_back_move() {
    flows_move("hole-back", |ends| ends.proxy.clone(), "udp dport");
}
