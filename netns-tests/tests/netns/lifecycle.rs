//! How daemons start, fail to start, change their keys and end.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use netns_tests::probe;
use netns_tests::process::Output;
use netns_tests::underpass::{self, Config, Daemon, KeyPair, Peer};
use netns_tests::wait;
use nix::sys::signal::Signal;

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINT: &str = "10.1.0.2:51900";

/// The cable of [`Ends::wired`].
#[test]
fn a_daemon_that_is_told_to_end_leaves_nothing_and_says_goodbye() {
    let ends = Ends::wired("goodbye");
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let routes = || ["-4", "-6"].map(|family| ends.proxy.routes(family));
    let before = routes();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.99.0.0/16", "fd99::/32"]);
        let config = ends.proxy_interface().set("fail_closed", "false").peer(peer);
        let mut proxy = Daemon::start(&ends.proxy, &config);
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        assert!(routes()[0].contains("10.99.0.0/16") && routes()[1].contains("fd99::/32"));
        backend.wait_for_state("proxy", "up");
        proxy.process().signal(signal);
        assert_eq!(proxy.process().wait_for_exit(Duration::from_secs(5)).code(), Some(0));
        // Without a goodbye this would take the length of a session.
        wait::until_within(Duration::from_secs(2), "the peer knows at once", || {
            backend.status().peer("proxy").text("state") == "down"
        });
        assert!(!ends.proxy.has_interface("underpass0"));
        assert_eq!(routes(), before);
    }
}

/// The cable of [`Ends::wired`].
#[test]
fn a_daemon_that_is_killed_can_be_started_again_at_once() {
    let ends = Ends::wired("kill");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    for _ in 0..3 {
        let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        proxy.process().signal(Signal::SIGKILL);
        proxy.process().wait_for_exit(wait::PATIENCE);
        wait::until("the kernel has taken the device away", || !ends.proxy.has_interface("underpass0"));
    }
}

/// The cable of [`Ends::wired`]; the side that is called restarts, and the caller finds it again by itself.
#[test]
fn a_peer_that_restarts_is_found_again() {
    let ends = Ends::wired("restart");
    let (_proxy, backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(backend.stop(), 0);
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    wait::until("the caller has found it again", || probe::answers(&ends.proxy, BACKEND[0]));
    probe::ping(&ends.backend, PROXY[0]).assert_all_answered();
}

/// The cable of [`Ends::wired`].
#[test]
fn the_tun_device_vanishing_ends_the_daemon_cleanly() {
    for device in ["offload", "plain"] {
        let ends = Ends::wired("tun-vanishes");
        let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
        let config = ends.proxy_calling(ENDPOINT).set("device", underpass::quote(device));
        let mut proxy = Daemon::start(&ends.proxy, &config);
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        ends.proxy.ip("link del underpass0");
        let status = proxy.process().wait_for_exit(Duration::from_secs(5));
        assert_eq!(status.code(), Some(6), "{device}:\n{}", proxy.process().log());
        assert!(proxy.process().log().contains("underpass0"), "{}", proxy.process().log());
        backend.wait_for_state("proxy", "down");
    }
}

/// The cable of [`Ends::wired`]; the proxy side gets a new key, which the backend side has been told of before.
#[test]
fn a_peer_changes_to_the_key_that_was_announced() {
    let ends = Ends::wired("next-key");
    let new = KeyPair::generate(&ends.proxy);
    let peer = ends.proxy_peer().next_public_key(&new.public);
    let backend = Daemon::start(&ends.backend, &ends.backend_interface().peer(peer));
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.stop(), 0);
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).private_key(&new));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    probe::ping(&ends.backend, PROXY[0]).assert_all_answered();
    backend.wait_for_state("proxy", "up");
}

/// The cable of [`Ends::wired`]; the proxy side has a new key, and the backend side, which calls, still knows the old one only.
#[test]
fn a_peer_that_knows_only_the_previous_key_is_answered() {
    let ends = Ends::wired("previous-key");
    let new = KeyPair::generate(&ends.proxy);
    let config = ends.proxy_interface().peer(ends.backend_peer());
    let config = config.private_key(&new).previous_private_key(&ends.proxy, &ends.proxy_keys);
    let _proxy = Daemon::start(&ends.proxy, &config);
    let _backend = Daemon::start(&ends.backend, &ends.backend_calling("10.1.0.1:51900"));
    probe::ping(&ends.backend, PROXY[0]).assert_all_answered();
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}

/// The cable of [`Ends::wired`]; a new key that the other side was not told of is a stranger's.
#[test]
fn a_key_that_was_not_announced_is_refused() {
    let ends = Ends::wired("unannounced-key");
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let new = KeyPair::generate(&ends.proxy);
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).private_key(&new));
    assert!(!probe::answers(&ends.proxy, BACKEND[0]));
    wait::until("it is refused and counted", || backend.drops("unknown_peer") > 0);
}

/// Two machines that call each other at the same moment, again and again.
///
/// The cable of [`Ends::wired`].
#[test]
fn two_sides_that_call_each_other_at_once_find_one_session() {
    let ends = Ends::wired("simultaneous");
    for _ in 0..5 {
        let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
        let backend = Daemon::start(&ends.backend, &ends.backend_calling("10.1.0.1:51900"));
        let pings = std::thread::scope(|scope| {
            let there = scope.spawn(|| probe::ping(&ends.proxy, BACKEND[0]));
            let back = scope.spawn(|| probe::ping(&ends.backend, PROXY[0]));
            [there.join().unwrap(), back.join().unwrap()]
        });
        pings.iter().for_each(probe::Pings::assert_all_answered);
        assert_eq!((proxy.stop(), backend.stop()), (0, 0));
    }
}

/// How a daemon that can't start ends: its exit code, and words that it must say.
#[track_caller]
fn ends_with(output: &Output, code: i32, words: &[&str]) {
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code(), code, "{said}");
    for word in words {
        assert!(said.to_lowercase().contains(&word.to_lowercase()), "it does not say {word:?}:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// One machine.
#[test]
fn a_port_that_is_taken_is_named() {
    let ends = Ends::new("port-taken");
    let config = ends.proxy_calling(ENDPOINT);
    let taken = ends.proxy.run(|| UdpSocket::bind("0.0.0.0:51900")).unwrap();
    ends_with(&underpass::run_to_the_end(&ends.proxy, &config), 5, &["port 51900 of 0.0.0.0 is taken"]);
    drop(taken);
    assert!(!ends.proxy.has_interface("underpass0"));
    // On IPv6 only. A socket bound to [::] takes IPv4 as well unless it says otherwise, so an address of its own.
    ends.proxy.ip("address add fd01::1/64 dev lo");
    ends.proxy.wait_for_ipv6_addresses();
    let _taken = ends.proxy.run(|| UdpSocket::bind("[fd01::1]:51900")).unwrap();
    let listen = "[\"0.0.0.0:51900\", \"[fd01::1]:51900\"]";
    ends_with(
        &underpass::run_to_the_end(&ends.proxy, &config.set("listen", listen)),
        5,
        &["port 51900 of fd01::1 is taken"],
    );
}

/// One machine.
#[test]
fn an_address_that_the_host_does_not_have_is_named() {
    let ends = Ends::new("no-address");
    let config = ends.proxy_calling(ENDPOINT).set("listen", "[\"192.0.2.55:51900\"]");
    ends_with(&underpass::run_to_the_end(&ends.proxy, &config), 5, &["192.0.2.55:51900"]);
}

/// One machine, two daemons.
#[test]
fn an_interface_name_that_is_taken_is_named() {
    let ends = Ends::new("name-taken");
    let _first = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    let config = ends.proxy_calling(ENDPOINT).set("listen", "51999");
    let output = underpass::run_to_the_end(&ends.proxy, &config);
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("underpass0"), "{}", output.stderr);
}

/// The cable of [`Ends::wired`]; the tunnel's address is the cable's.
#[test]
fn a_tunnel_address_that_the_host_has_already_is_named() {
    let ends = Ends::wired("address-taken");
    let config = ends.proxy_calling(ENDPOINT).set("addresses", "[\"10.1.0.1/32\"]");
    let output = underpass::run_to_the_end(&ends.proxy, &config);
    ends_with(&output, 5, &["10.1.0.1", "wan"]);
    assert!(!ends.proxy.has_interface("underpass0"));
}

/// One machine, without the capability to make interfaces.
#[test]
fn without_permission_it_says_what_it_needs() {
    let ends = Ends::new("no-permission");
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    let command = ends.proxy.command("setpriv").args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
    let output = command.arg(underpass::program()).args(["run", "--allow-root", "--config"]).arg(file).output();
    ends_with(&output, 4, &["CAP_NET_ADMIN"]);
}

/// One machine, whose `/dev/net/tun` is hidden.
#[test]
fn without_a_tun_device_it_says_what_to_do() {
    let ends = Ends::new("no-tun");
    ends.proxy.command("mount").args(["-t", "tmpfs", "none", "/dev/net"]).run();
    let output = underpass::run_to_the_end(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    ends_with(&output, 6, &["/dev/net/tun"]);
}

/// One machine.
#[test]
fn status_of_a_daemon_that_does_not_run_has_its_own_exit_code() {
    let ends = Ends::new("no-daemon");
    let output = underpass::command(&ends.proxy).args(["status", "--interface", "underpass0"]).output();
    ends_with(&output, 7, &["underpass0"]);
}

/// One machine with a peer behind which there are very many networks, and many peers with some each.
#[test]
fn long_lists_of_peers_and_prefixes_read_back_whole() {
    let ends = Ends::wired("long-lists");
    let prefixes = |peer: usize, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("10.{}.{}.{}/32", 100 + peer, n / 256, n % 256)).collect()
    };
    let mut config = ends.proxy_interface();
    let mut expected = vec![];
    for (peer, count) in std::iter::once(5000).chain([52; 40]).enumerate() {
        let keys = KeyPair::generate(&ends.proxy);
        let (name, list) = (format!("app{peer}"), prefixes(peer, count));
        let table = Peer::new(&name, &keys.public, []).allowed_ips(list.iter().map(String::as_str));
        config = config.peer(table.endpoint(ENDPOINT));
        expected.push((name, list));
    }
    let proxy = Daemon::start(&ends.proxy, &config);
    let (status, routes) = (proxy.status(), ends.proxy.routes("-4"));
    for (name, mut list) in expected {
        let mut told = status.peer(&name).texts("allowed_ips");
        told.sort();
        list.sort();
        assert_eq!(told, list, "{name}");
    }
    let to_peers = |line: &&str| line.starts_with("10.1") && line.contains("dev underpass0");
    assert_eq!(routes.lines().filter(to_peers).count(), 5000 + 40 * 52);
}

/// One machine: starts and ends leave no file descriptor's trace, no socket and no device.
#[test]
fn many_starts_and_ends_leave_nothing() {
    let ends = Ends::wired("again");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let config: Config = ends.proxy_calling(ENDPOINT);
    for _ in 0..10 {
        assert_eq!(Daemon::start(&ends.proxy, &config).stop(), 0);
        let output = ends.proxy.command("find").args(["/run", "-type", "s"]).run();
        assert_eq!(output, "", "a socket is left");
    }
    assert!(!Path::new("/run/underpass/underpass0.sock").exists(), "a laboratory's socket lies outside of it");
    assert!(fs::read_dir(ends.proxy.directory()).unwrap().count() > 0);
}

/// The cable of [`Ends::wired`]: a daemon under load neither grows nor opens more files.
#[test]
fn traffic_leaves_no_file_open() {
    let ends = Ends::wired("files");
    let (mut proxy, _backend) = ends.start_calling(ENDPOINT);
    probe::flood_ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let before = proxy.process().held_at_rest().descriptors;
    for _ in 0..5 {
        proxy.status();
        probe::flood_ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    }
    wait::until("as many files are open as before", || proxy.process().held().descriptors <= before);
}
