//! Interfaces whose MTU is found from the paths, which is the default.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use netns_tests::narrows::{ENDPOINTS, Narrows, wait_for_path_mtu};
use netns_tests::probe::{self, Iperf3, Ping};
use netns_tests::pump::Pump;
use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role};
use netns_tests::{Host, wait};
use nix::sys::socket::{getsockopt, sockopt};

use crate::ends::{BACKEND, Ends, PROXY};

const V4: &str = "10.1.0.2:51900";
const V6: &str = "[fd01::2]:51900";
/// Time that docs/configuration.md promises for a path that is there when the link comes up.
const GROWS_WITHIN: Duration = Duration::from_secs(5);
/// Inside, of 9000 bytes outside over IPv4: 28 of headers and 32 of ours.
const JUMBO: u64 = 8940;
const LEAST: u64 = 1420;

/// A cable of 9000 bytes.
fn jumbo(name: &str) -> Ends {
    let ends = Ends::new(name);
    ends.lab.link(ends.proxy_port().mtu(9000), ends.backend_port().mtu(9000));
    ends
}

fn mtu(daemon: &Daemon) -> u64 {
    daemon.status().interface().number("mtu")
}

/// Until the interface takes so much, by the daemon's word and by the kernel's.
#[track_caller]
fn wait_for_mtu(within: Duration, daemon: &Daemon, host: &Host, expected: u64) {
    wait::until_within(within, &format!("an MTU of {expected}"), || mtu(daemon) == expected);
    let device = host.command("ip").args(["-d", "link", "show", "dev", "underpass0"]).run();
    assert!(device.contains(&format!("mtu {expected} ")), "{device}");
}

/// Payload of the segments that a new connection sends.
fn segment(ends: &Ends, address: &str) -> u32 {
    let listener = ends.backend.run(|| TcpListener::bind((address, 7070)).unwrap());
    let stream = ends.proxy.run(|| TcpStream::connect((address, 7070)).unwrap());
    drop(listener);
    getsockopt(&stream, sockopt::TcpMaxSeg).unwrap()
}

/// A cable of 9000 bytes between two sides with the default configuration.
#[test]
fn both_sides_grow_on_a_jumbo_path_and_tcp_follows() {
    for (endpoint, expected) in [(V4, JUMBO), (V6, JUMBO - 20)] {
        let ends = jumbo("auto-mtu");
        let (proxy, backend) = ends.start_calling(endpoint);
        for (daemon, host) in [(&proxy, &ends.proxy), (&backend, &ends.backend)] {
            wait_for_mtu(GROWS_WITHIN, daemon, host, expected);
            assert_eq!(daemon.status().interface().text("mtu_source"), "auto");
        }
        let headers = [20 + 20 + 12, 40 + 20 + 12];
        for (address, headers) in BACKEND.iter().zip(headers) {
            assert_eq!(u64::from(segment(&ends, address)), expected - headers);
            let server = Iperf3::at(&ends.backend, address);
            for direction in [&["-n", "64M"][..], &["-n", "64M", "-R"]] {
                assert!(server.send(&ends.proxy, direction).bytes > 1 << 20);
            }
        }
        let full = usize::try_from(expected).unwrap() - 28;
        Ping::to(BACKEND[0]).payload(full).count(20).send(&ends.proxy).assert_all_answered();
        Ping::to(PROXY[0]).payload(full).count(20).send(&ends.backend).assert_all_answered();
        for (daemon, peer) in [(&proxy, "backend"), (&backend, "proxy")] {
            let status = daemon.status();
            assert_eq!((status.peer(peer).text("state"), status.drops("too_large")), ("up".to_owned(), 0));
        }
    }
}

/// The cable of [`Ends::wired`].
#[test]
fn on_a_path_of_1500_bytes_nothing_grows() {
    let ends = Ends::wired("auto-mtu-usual");
    let (proxy, backend) = ends.start_calling(V4);
    proxy.wait_for_state("backend", "up");
    wait::holds_during(Duration::from_secs(3), "the MTU is the usual one", || {
        [&proxy, &backend].iter().all(|daemon| mtu(daemon) == LEAST)
    });
}

/// [`Narrows`] of 9000 bytes, silent, which become narrow while data passes, and wide again.
#[test]
fn a_jumbo_path_that_shrinks_under_tcp_keeps_its_connections() {
    let narrows = Narrows::jumbo("auto-mtu-shrink");
    let daemons = narrows.start(ENDPOINTS[0]);
    let sides = [(&daemons[0].0, &narrows.ends.proxy), (&daemons[1].0, &narrows.ends.backend)];
    for (daemon, host) in sides {
        wait_for_mtu(GROWS_WITHIN, daemon, host, JUMBO);
    }
    let server = format!("{}:7000", BACKEND[0]).parse().unwrap();
    let pump = Pump::start(&narrows.ends.proxy, &narrows.ends.backend, server, 2);
    pump.wait_for_progress();
    narrows.set_mtu(1500);
    pump.wait_for_progress();
    wait_for_path_mtu(&daemons, 1432..=1440);
    wait::until("new connections know", || (1380..=1388).contains(&segment(&narrows.ends, BACKEND[0])));
    for (daemon, host) in sides {
        wait::until_within(Duration::from_secs(90), "the interface is as narrow as the path", || mtu(daemon) < 1500);
        let found = mtu(daemon);
        assert!((1432..=1440).contains(&found), "{found}");
        wait_for_mtu(GROWS_WITHIN, daemon, host, found);
    }
    pump.wait_for_progress();
    narrows.set_mtu(9000);
    for (daemon, host) in sides {
        wait_for_mtu(Duration::from_secs(60), daemon, host, JUMBO);
    }
    pump.wait_for_progress();
    let pumped = pump.stop();
    eprintln!("{pumped:?}");
    assert!(pumped.longest_stall < Duration::from_secs(2), "{pumped:?}");
}

/// A cable of 9000 bytes; one side has a number.
#[test]
fn a_number_stays_what_it_is_and_the_other_side_grows_no_further() {
    for (fixed, expected) in [(1420, LEAST), (8000, 8000)] {
        let ends = jumbo("auto-mtu-fixed");
        let backend = Daemon::start(&ends.backend, &ends.backend_waiting().set("mtu", fixed.to_string()));
        let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(V4));
        proxy.wait_for_state("backend", "up");
        wait_for_mtu(GROWS_WITHIN, &proxy, &ends.proxy, expected);
        wait::holds_during(Duration::from_secs(2), "both stay", || mtu(&proxy) == expected && mtu(&backend) == fixed);
        assert_eq!(backend.status().interface().text("mtu_source"), "configured");
        assert_eq!(u64::from(segment(&ends, BACKEND[0])), expected - 52);
    }
}

/// ```text
///   proxy ─── switch, 9000 bytes ─┬─ wide      default configuration
///                                 └─ narrow    mtu = 1420
/// ```
#[test]
fn peers_with_different_paths_each_get_what_theirs_carries() {
    let ends = Ends::new("auto-mtu-mixed");
    let narrow = ends.lab.host("narrow");
    let narrow_keys = KeyPair::generate(&narrow);
    let port = narrow.port("wan", ["10.1.0.3/24"]).mtu(9000);
    let _switch = ends.lab.switch("switch", [ends.proxy_port().mtu(9000), ends.backend_port().mtu(9000), port]);
    let _wide = Daemon::start(&ends.backend, &ends.backend_waiting());
    let config = Config::new(Role::Backend, &narrow_keys, ["10.77.0.12/24"]).peer(ends.proxy_peer());
    let _narrow = Daemon::start(&narrow, &config.set("mtu", "1420"));
    let peer = Peer::new("narrow", &narrow_keys.public, ["10.77.0.12"]).endpoint("10.1.0.3:51900");
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(V4).peer(peer));
    proxy.wait_for_state("narrow", "up");
    wait_for_mtu(GROWS_WITHIN, &proxy, &ends.proxy, JUMBO);
    let status = proxy.status();
    assert_eq!(["backend", "narrow"].map(|peer| status.peer(peer).number("path_mtu")), [JUMBO, LEAST]);
    assert_eq!(["backend", "narrow"].map(|peer| status.peer(peer).text("state")), ["up", "up"]);
    for (host, address) in [(&ends.backend, BACKEND[0]), (&narrow, "10.77.0.12")] {
        let server = Iperf3::at(host, address);
        for direction in [&["-n", "32M"][..], &["-n", "32M", "-R"]] {
            assert!(server.send(&ends.proxy, direction).bytes > 1 << 20);
        }
    }
    let told = probe::ping_program(&ends.proxy, "10.77.0.12", &["-M", "do", "-s", "5000", "-c", "1", "-W", "1"]);
    told.assert_none_answered();
    assert!(told.text.contains("mtu = 1420") || told.text.contains("mtu=1420"), "{}", told.text);
}

/// A cable of 9000 bytes. Without anybody who may change the interface, it stays, and says why.
#[test]
fn without_capabilities_the_mtu_stays_and_the_status_says_why() {
    let ends = jumbo("auto-mtu-dropped");
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(V4).set("drop_capabilities", "true"));
    proxy.wait_for_state("backend", "up");
    wait::holds_during(Duration::from_secs(3), "both stay", || mtu(&proxy) == LEAST && mtu(&backend) == LEAST);
    let problem = proxy.status().interface().text("mtu_problem");
    assert!(problem.contains("drop_capabilities"), "{problem}");
    let text = proxy.ask(&["status"]).stdout;
    assert!(text.contains("MTU 1420 (auto)") && text.contains("stays: no capability"), "{text}");
}

/// A cable of 9000 bytes. The interface stays what it has become over a restart in place and a reload, and if somebody changes it.
#[test]
fn an_mtu_that_was_found_outlasts_a_restart_a_reload_and_a_meddler() {
    let ends = jumbo("auto-mtu-kept");
    let (proxy, _backend) = ends.start_calling(V4);
    wait_for_mtu(GROWS_WITHIN, &proxy, &ends.proxy, JUMBO);
    let server = format!("{}:7000", BACKEND[0]).parse().unwrap();
    let pump = Pump::start(&ends.proxy, &ends.backend, server, 2);
    pump.wait_for_progress();
    assert_eq!(proxy.ask(&["restart"]).code(), 0);
    wait_for_mtu(Duration::ZERO, &proxy, &ends.proxy, JUMBO);
    pump.wait_for_progress();
    let peer = ends.backend_peer().endpoint(V4).allowed_ips(["10.99.0.0/16"]);
    proxy.reload(&ends.proxy_interface().peer(peer));
    wait_for_mtu(Duration::ZERO, &proxy, &ends.proxy, JUMBO);
    let said = proxy.reload(&ends.proxy_calling(V4).set("mtu", "1400"));
    assert!(said.contains("interface.mtu"), "{said}");
    let repairs = || proxy.status().part("routes").number("repairs");
    let before = repairs();
    ends.proxy.ip("link set dev underpass0 mtu 1300");
    wait::until("it is put back", || repairs() > before);
    wait_for_mtu(Duration::ZERO, &proxy, &ends.proxy, JUMBO);
    pump.wait_for_progress();
    pump.stop();
    assert_eq!(proxy.ask(&["restart"]).code(), 0);
    wait_for_mtu(Duration::ZERO, &proxy, &ends.proxy, 1400);
    assert_eq!(proxy.ask(&["status"]).stdout.matches("(auto)").count(), 0);
    proxy.reload(&ends.proxy_calling(V4));
    assert_eq!(proxy.ask(&["restart"]).code(), 0);
    wait_for_mtu(GROWS_WITHIN, &proxy, &ends.proxy, JUMBO);
}
