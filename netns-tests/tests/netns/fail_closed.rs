//! What becomes of packets for peers while no daemon runs: they are refused, and do not go around the tunnel in the clear.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use netns_tests::capture::{Capture, TcpDump};
use netns_tests::frame::Content;
use netns_tests::nginx::NginxApp;
use netns_tests::underpass::{self, Config, Daemon, KeyPair, Peer, list};
use netns_tests::{Host, probe, wait};
use nix::sys::signal::Signal;

use crate::ends::{BACKEND, Ends};

const ENDPOINT: &str = "10.1.0.2:51900";
const QUESTION: &str = "QUESTION-IN-THE-CLEAR";
const ANSWER: &str = "ANSWER-IN-THE-CLEAR";
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// For an answer that a killed daemon may have taken along.
const PATIENCE: Duration = Duration::from_millis(500);

/// The cable of [`Ends::wired`] as a trap: each side is the other's default route, so what is for a tunnel address and does
/// not go into the tunnel arrives all the same, and is answered.
fn trap(name: &str) -> Ends {
    let ends = Ends::wired(name);
    ends.proxy.ip("route add default via 10.1.0.2");
    ends.backend.ip("route add default via 10.1.0.1");
    ends
}

fn app() -> SocketAddr {
    SocketAddr::new(BACKEND[0].parse().unwrap(), 80)
}

/// Asks the app over a connection of its own. Whether it has answered.
fn ask(host: &Host) -> bool {
    let answer = host.run(|| -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&app(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET / HTTP/1.0\r\nX-Marker: {QUESTION}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    answer.is_ok_and(|answer| answer.contains(ANSWER))
}

fn kill(daemon: &mut Daemon, host: &Host) {
    daemon.process().signal(Signal::SIGKILL);
    daemon.process().wait_for_exit(wait::PATIENCE);
    wait::until("its interface is gone", || !host.has_interface("underpass0"));
}

/// A packet that went around the tunnel. A daemon's datagrams to one that is killed are answered by ICMP.
fn around(capture: &Capture) -> Option<Content> {
    capture.contents().find(|content| {
        !matches!(content, Content::Arp | Content::NeighbourDiscovery | Content::Udp(_) | Content::Ip(ICMP | ICMP_V6))
    })
}

fn assert_nothing_readable(capture: &Capture) {
    for marker in [QUESTION, ANSWER] {
        assert_eq!(capture.count_containing(marker), 0, "{marker} is readable on the wire");
    }
    assert_eq!(around(capture), None, "a packet went around the tunnel");
}

/// The trap of [`trap`], and that it is one.
#[test]
fn without_refusals_the_traffic_would_go_around_the_tunnel() {
    let ends = trap("open");
    let open = |config: Config| config.set("fail_closed", "false");
    let _backend = Daemon::start(&ends.backend, &open(ends.backend_waiting()));
    let mut proxy = Daemon::start(&ends.proxy, &open(ends.proxy_calling(ENDPOINT)));
    let _app = NginxApp::start(&ends.backend, app(), ANSWER);
    assert!(ask(&ends.proxy));
    let sniffer = TcpDump::start(&ends.proxy, "wan");
    kill(&mut proxy, &ends.proxy);
    assert!(ask(&ends.proxy), "the trap is none");
    let capture = sniffer.stop();
    assert!(capture.count_containing(QUESTION) > 0 && capture.count_containing(ANSWER) > 0);
}

/// The trap of [`trap`]. Clients connect and ask all the time; first the proxy side's daemon is killed, then the backend
/// side's.
#[test]
fn a_daemon_killed_under_load_lets_not_one_byte_around_the_tunnel() {
    let ends = trap("closed");
    let mut backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    let _app = NginxApp::start(&ends.backend, app(), ANSWER);
    assert!(ask(&ends.proxy));
    let sniffer = TcpDump::start(&ends.proxy, "wan");
    let done = AtomicBool::new(false);
    let [answered, refused] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let counted = |counter: &AtomicUsize, more: usize| {
        let before = counter.load(Ordering::Relaxed);
        wait::until("the clients go on", || counter.load(Ordering::Relaxed) >= before + more);
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let counter = if ask(&ends.proxy) { &answered } else { &refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        counted(&answered, 100);
        kill(&mut proxy, &ends.proxy);
        counted(&refused, 100);
        proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
        counted(&answered, 100);
        kill(&mut backend, &ends.backend);
        kill(&mut proxy, &ends.proxy);
        counted(&refused, 100);
        done.store(true, Ordering::Relaxed);
    });
    let capture = sniffer.stop();
    assert!(!capture.datagrams(51900).is_empty(), "the traffic did not come by here");
    assert_nothing_readable(&capture);
}

/// The lines of `ip route` that refuse packets.
fn refusals(host: &Host) -> Vec<String> {
    let routes = ["-4", "-6"].map(|family| host.routes(family)).concat();
    let ours = routes.lines().filter(|line| line.starts_with("unreachable") && line.contains("proto 151"));
    let mut networks: Vec<_> = ours.filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect();
    networks.sort();
    networks
}

/// The cable of [`Ends::wired`].
#[test]
fn refusals_outlive_the_daemon_are_its_own_again_and_follow_the_configuration() {
    let ends = Ends::wired("refusals");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let networks = ["10.77.0.0/24", "fd77::/64"];
    for _ in 0..2 {
        let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        assert_eq!(refusals(&ends.proxy), networks);
        assert_eq!(proxy.stop(), 0);
        assert_eq!(refusals(&ends.proxy), networks);
        assert!(!probe::answers(&ends.proxy, BACKEND[0]));
    }
    ends.proxy.ip("route add unreachable 10.66.0.0/16 metric 1000");

    let behind = |config: Config| {
        let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.99.0.0/16", "0.0.0.0/0"]);
        config.peer(peer)
    };
    let proxy = Daemon::start(&ends.proxy, &behind(ends.proxy_interface().set("fwmark", "7")));
    assert_eq!(refusals(&ends.proxy), ["10.77.0.0/24", "10.99.0.0/16", "default", "fd77::/64"]);
    proxy.reload(&ends.proxy_calling(ENDPOINT).set("fwmark", "7"));
    assert_eq!(refusals(&ends.proxy), ["10.77.0.0/24", "10.99.0.0/16", "default", "fd77::/64"]);
    assert_eq!(proxy.ask(&["open", "0.0.0.0/0"]).code(), 0);
    assert_eq!(refusals(&ends.proxy), networks);
    assert!(proxy.reload(&ends.proxy_calling(ENDPOINT).set("fail_closed", "false")).contains("interface.fail_closed"));
    assert_eq!(refusals(&ends.proxy), Vec::<String>::new());
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    proxy.reload(&ends.proxy_calling(ENDPOINT));
    assert_eq!(proxy.stop(), 0);
    assert_eq!(refusals(&ends.proxy), networks);

    // Of another interface: not this daemon's, whose own are gone with the key.
    let other = ends.proxy_calling(ENDPOINT).set("addresses", "[\"10.78.0.1/24\"]").interface("other0", 51900);
    assert_eq!(Daemon::start(&ends.proxy, &other).stop(), 0);
    assert_eq!(refusals(&ends.proxy), ["10.77.0.0/24", "10.77.0.11", "10.78.0.0/24", "fd77::/64", "fd77::11"]);
    let open = ends.proxy_calling(ENDPOINT).set("fail_closed", "false");
    assert_eq!(Daemon::start(&ends.proxy, &open).stop(), 0);
    assert_eq!(refusals(&ends.proxy), ["10.77.0.11", "10.78.0.0/24", "fd77::11"]);
    assert!(ends.proxy.routes("-4").contains("unreachable 10.66.0.0/16"), "an operator's own");
}

/// Routes for each peer's addresses alone, since a network of the interface would be refused for all of them.
fn hosts(config: Config) -> Config {
    config.set("addresses", list(["10.77.0.1/32", "fd77::1/128"]))
}

/// The trap of [`trap`]. The peer is removed from the configuration, and another takes its place.
#[test]
fn a_reload_that_removes_a_peer_sends_nothing_in_the_clear_until_its_address_is_opened() {
    let ends = trap("removed-peer");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &hosts(ends.proxy_calling(ENDPOINT)));
    let _app = NginxApp::start(&ends.backend, app(), ANSWER);
    assert!(ask(&ends.proxy));
    let sniffer = TcpDump::start(&ends.proxy, "wan");
    let other = KeyPair::generate(&ends.proxy);
    let without = hosts(ends.proxy_interface().peer(Peer::new("other", &other.public, ["10.77.0.12"])));
    let said = proxy.reload(&without);
    assert!(!ask(&ends.proxy));
    assert!(said.contains("still refused  10.77.0.11/32; `underpass open 10.77.0.11/32`"), "{said}");
    assert_eq!(proxy.stop(), 0);
    assert!(!ask(&ends.proxy));
    let proxy = Daemon::start(&ends.proxy, &without);
    assert!(!ask(&ends.proxy));
    assert_eq!(refusals(&ends.proxy), ["10.77.0.11", "10.77.0.12", "fd77::11"]);
    assert_nothing_readable(&sniffer.stop());

    assert_eq!(proxy.status().part("routes").texts("refused"), ["10.77.0.11/32", "fd77::11/128"]);
    assert!(proxy.ask(&["status"]).stdout.contains("still refused, no longer configured: 10.77.0.11/32, fd77::11/128"));
    let check = underpass::command(&ends.proxy).args(["check", "--config"]).arg(without.write(&ends.proxy)).run();
    assert!(check.contains("10.77.0.11/32 is still refused"), "{check}");
    let sniffer = TcpDump::start(&ends.proxy, "wan");
    let opened = proxy.ask(&["open", "10.77.0.0/24"]);
    let expected = "open: 10.77.0.11/32\n\
                    still configured, so refused without the tunnel: 10.77.0.12/32\nstill refused: fd77::11/128\n";
    assert_eq!((opened.code(), opened.stdout.as_str()), (0, expected));
    assert_eq!(refusals(&ends.proxy), ["10.77.0.12", "fd77::11"]);
    ask(&ends.proxy);
    assert!(around(&sniffer.stop()).is_some(), "what was opened does not pass");
}

/// The cable of [`Ends::wired`].
#[test]
fn what_stays_refused_follows_prefixes_restarts_and_the_configuration() {
    let ends = Ends::wired("still-refused");
    let behind = |prefixes: &[&str]| {
        let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(prefixes.iter().copied());
        ends.proxy_interface().peer(peer)
    };
    let own = ["10.77.0.0/24", "fd77::/64"];
    let with = |more: &[&str]| {
        let mut all: Vec<String> = own.iter().chain(more).map(|&network| network.to_owned()).collect();
        all.sort();
        all
    };
    let proxy = Daemon::start(&ends.proxy, &behind(&["10.66.0.0/16", "fd66::/48"]));
    assert_eq!(refusals(&ends.proxy), with(&["10.66.0.0/16", "fd66::/48"]));
    proxy.reload(&behind(&["10.66.1.0/24"]));
    assert_eq!(refusals(&ends.proxy), with(&["10.66.0.0/16", "10.66.1.0/24", "fd66::/48"]));
    let wider = proxy.reload(&behind(&["10.66.0.0/15"]));
    assert!(wider.contains("still refused  fd66::/48;") && !wider.contains("10.66.1.0/24"), "{wider}");
    assert_eq!(refusals(&ends.proxy), with(&["10.66.0.0/15", "fd66::/48"]));
    // Nothing of it stands in the way of what is routed again.
    let routed = ends.proxy.command("ip").args(["route", "get", "10.66.1.1"]).run();
    assert!(routed.contains("dev underpass0"), "{routed}");

    proxy.reload(&behind(&[]).set("open", list(["10.66.0.0/16"])));
    assert_eq!(refusals(&ends.proxy), with(&["10.67.0.0/16", "fd66::/48"]));
    let moved = behind(&[]).set("addresses", list(["10.78.0.1/24", "fd77::1/64"]));
    proxy.reload(&moved);
    let after = ["10.67.0.0/16", "10.77.0.0/24", "10.77.0.11", "10.78.0.0/24", "fd66::/48", "fd77::/64"];
    assert!(
        refusals(&ends.proxy).iter().all(|network| after.contains(&network.as_str())),
        "{:?}",
        refusals(&ends.proxy)
    );
    assert!(refusals(&ends.proxy).contains(&"10.77.0.0/24".to_owned()), "its network was another before");
    assert_eq!(proxy.stop(), 0);
    let open = |network: &str| underpass::command(&ends.proxy).args(["open", network]).run();
    assert_eq!(open("fd66::/32"), "open: fd66::/48\n");
    assert_eq!(open("10.67.128.0/17"), "open: 10.67.128.0/17\n");
    assert!(refusals(&ends.proxy).contains(&"10.67.0.0/17".to_owned()));
    assert_eq!(open("10.200.0.0/16"), "nothing in 10.200.0.0/16 was refused beside what is configured\n");
    open("0.0.0.0/0");
    open("::/0");
    assert_eq!(refusals(&ends.proxy), Vec::<String>::new());
}

/// The cable of [`Ends::wired`]; the backend side's address outside was led into the tunnel, too.
#[test]
fn nothing_stays_refused_where_a_peer_is_reached_unless_a_mark_leads_there() {
    let ends = Ends::wired("refused-endpoint");
    ends.proxy.ip("route add 10.1.0.0/24 dev wan table 100");
    ends.proxy.ip("rule add fwmark 7 lookup 100");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let inside = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.1.0.2/32"]);
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_interface().set("fwmark", "7").peer(inside));
    proxy.wait_for_state("backend", "up");
    let is_refused = || refusals(&ends.proxy).contains(&"10.1.0.2".to_owned());
    proxy.reload(&ends.proxy_calling(ENDPOINT).set("fwmark", "7"));
    assert!(is_refused());
    proxy.wait_for_state("backend", "up");
    proxy.reload(&ends.proxy_calling(ENDPOINT));
    assert!(!is_refused());
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}
