//! What networks do to a link: addresses that change, NATs, several homes, routes that loop, tunnels in tunnels.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netns_tests::capture::TcpDump;
use netns_tests::frame;
use netns_tests::nat::Nat;
use netns_tests::probe::{self, Iperf3, Ping};
use netns_tests::pump::Pump;
use netns_tests::two_ways::{self, ENDPOINTS, INSIDE, TwoWays};
use netns_tests::underpass::{Daemon, PORT};
use netns_tests::wireguard::{self, End};
use netns_tests::{Host, wait};

use crate::ends::{BACKEND, Ends, PROXY};

/// Where the daemon sends what is for a peer.
fn endpoint_ip(daemon: &Daemon, peer: &str) -> Option<IpAddr> {
    daemon.status().peer(peer).endpoint().map(|endpoint| endpoint.ip())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Bytes that left by an interface.
fn sent_bytes(host: &Host, interface: &str) -> u64 {
    let table = host.read("/proc/thread-self/net/dev");
    let line =
        table.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{interface}:")).map(str::to_owned));
    line.unwrap().split_whitespace().nth(8).unwrap().parse().unwrap()
}

/// The cable of [`Ends::wired`]; the proxy's address and port change in the middle of a conversation.
fn the_backend_follows(name: &str, endpoint: &str, old: &str, new: &str, prefix: u8) {
    let ends = Ends::wired(name);
    let (proxy, backend) = ends.start_calling(endpoint);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(endpoint_ip(&backend, "proxy"), Some(ip(old)));
    ends.proxy.ip(&format!("address del {old}/{prefix} dev wan"));
    ends.proxy.ip(&format!("address add {new}/{prefix} dev wan nodad"));
    // What is answered before the new address has proven itself goes to the old one.
    wait::until("the proxy is answered where it is", || probe::answers(&ends.proxy, BACKEND[0]));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(endpoint_ip(&backend, "proxy"), Some(ip(new)));
    probe::ping(&ends.backend, PROXY[1]).assert_all_answered();
    assert_eq!(endpoint_ip(&proxy, "backend"), Some(endpoint.parse::<SocketAddr>().unwrap().ip()));
}

/// The cable of [`Ends::wired`].
#[test]
fn a_peer_whose_ipv4_address_changes_is_followed() {
    the_backend_follows("roaming-v4", "10.1.0.2:51900", "10.1.0.1", "10.1.0.77", 24);
}

/// The cable of [`Ends::wired`].
#[test]
fn a_peer_whose_ipv6_address_changes_is_followed() {
    the_backend_follows("roaming-v6", "[fd01::2]:51900", "fd01::1", "fd01::77", 64);
}

/// The cable of [`Ends::wired`]; the proxy side changes the family in the middle, by the way in which it is called back.
#[test]
fn a_peer_that_changes_the_family_is_followed() {
    let ends = Ends::wired("roaming-family");
    let (proxy, backend) = ends.start_calling("10.1.0.2:51900");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.stop(), 0);
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("[fd01::2]:51900"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(endpoint_ip(&backend, "proxy"), Some(ip("fd01::1")));
    assert_eq!(endpoint_ip(&proxy, "backend"), Some(ip("fd01::2")));
}

/// ```text
///   backend ── router(NAT, forgets UDP after 2 s) ── proxy
///   192.168.0.2   192.168.0.1   10.1.0.254        10.1.0.1
/// ```
#[test]
fn keepalives_hold_a_nat_open_so_that_the_other_side_can_call() {
    let ends = Ends::new("nat");
    let router = ends.lab.router("router");
    ends.lab.link(ends.backend.port("wan", ["192.168.0.2/24"]), router.port("lan", ["192.168.0.1/24"]));
    ends.lab.link(router.port("wan", ["10.1.0.254/24"]), ends.proxy_port());
    ends.backend.ip("route add default via 192.168.0.1");
    Nat::masquerade(&router, "wan").forget_udp_after(Duration::from_secs(2));
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_interface().peer(ends.backend_peer()));
    let calling = ends.proxy_peer().endpoint("10.1.0.1:51900").persistent_keepalive(1);
    let _backend = Daemon::start(&ends.backend, &ends.backend_interface().peer(calling));
    wait::until("the backend side has called", || endpoint_ip(&proxy, "backend") == Some(ip("10.1.0.254")));
    proxy.wait_for_state("backend", "up");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    // Nothing but keepalives for longer than the NAT remembers: each is 32 bytes or a little more.
    let before = proxy.status().peer("backend").number("received_bytes");
    wait::until("four keepalives have come", || {
        proxy.status().peer("backend").number("received_bytes") >= before + 4 * 28
    });
    let sniffer = TcpDump::start(&ends.proxy, "wan");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let datagrams = sniffer.stop();
    assert!(datagrams.datagrams(PORT).iter().all(|payload| payload[0] == 4), "a new handshake was needed");
}

/// ```text
///           wan 10.1.0.1/24, fd01::1/64     wan 10.1.0.2/24, 10.1.0.3/24, fd01::2/64, fd01::3/64
///   proxy ─────────────────────────────────── backend
///                                            other (no cable) 10.9.0.9/32, fd09::9/128
/// ```
#[test]
fn answers_come_from_the_address_that_was_called() {
    let ends = Ends::wired("multi-homed");
    ends.backend.ip("address add 10.1.0.3/24 dev wan");
    ends.backend.ip("address add fd01::3/64 dev wan");
    ends.backend.ip("link add name other type bridge");
    ends.backend.ip("link set dev other up");
    ends.backend.ip("address add 10.9.0.9/32 dev other");
    ends.backend.ip("address add fd09::9/128 dev other nodad");
    ends.proxy.ip("route add 10.9.0.9/32 via 10.1.0.2");
    ends.proxy.ip("-6 route add fd09::9/128 via fd01::2");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    for address in ["10.1.0.2", "10.1.0.3", "10.9.0.9", "fd01::2", "fd01::3", "fd09::9"] {
        let endpoint = SocketAddr::new(ip(address), PORT);
        let sniffer = TcpDump::start(&ends.proxy, "wan");
        let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(&endpoint.to_string()));
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        probe::ping(&ends.backend, PROXY[0]).assert_all_answered();
        assert_eq!(endpoint_ip(&proxy, "backend"), Some(ip(address)));
        assert_eq!(proxy.stop(), 0);
        let capture = sniffer.stop();
        let udp: Vec<_> = capture.frames.iter().filter_map(|frame| frame::datagram(frame)).collect();
        assert!(udp.iter().any(|udp| udp.source.ip() == ip(address)));
        let stray = udp.iter().find(|udp| ![udp.source, udp.destination].contains(&endpoint));
        assert_eq!(stray, None, "called {address}");
    }
}

/// The cable of [`Ends::wired`]; the address that the backend side was called at is taken away.
#[test]
fn a_local_address_that_is_deleted_is_left() {
    for (name, old, prefix, rest) in
        [("sticky-v4", "10.1.0.3", 24, "10.1.0.2"), ("sticky-v6", "fd01::3", 64, "fd01::2")]
    {
        let ends = Ends::wired(name);
        ends.backend.ip(&format!("address add {old}/{prefix} dev wan"));
        let endpoint = SocketAddr::new(ip(old), PORT).to_string();
        let (proxy, _backend) = ends.start_calling(&endpoint);
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        ends.backend.ip(&format!("address del {old}/{prefix} dev wan"));
        // The proxy side can't know until the backend side sends: its own packets go to nobody.
        wait::until("the backend side sends from its other address", || probe::answers(&ends.backend, PROXY[0]));
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        assert_eq!(endpoint_ip(&proxy, "backend"), Some(ip(rest)));
    }
}

/// ```text
///           wan1 10.1.0.1 ── 10.1.0.2 wan1
///   proxy                                  backend (10.9.0.9 on loopback)
///           wan2 10.2.0.1 ── 10.2.0.2 wan2
/// ```
#[test]
fn a_better_route_by_another_interface_is_taken() {
    let ends = Ends::new("better-route");
    ends.lab.link(ends.proxy.port("wan1", ["10.1.0.1/24"]), ends.backend.port("wan1", ["10.1.0.2/24"]));
    ends.lab.link(ends.proxy.port("wan2", ["10.2.0.1/24"]), ends.backend.port("wan2", ["10.2.0.2/24"]));
    ends.backend.ip("address add 10.9.0.9/32 dev lo");
    ends.proxy.ip("route add 10.9.0.0/16 via 10.1.0.2");
    let (_proxy, backend) = ends.start_calling("10.9.0.9:51900");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(endpoint_ip(&backend, "proxy"), Some(ip("10.1.0.1")));
    ends.proxy.ip("route add 10.9.0.9/32 via 10.2.0.2");
    ends.proxy.ip("link set dev wan1 down");
    // What is lost is noticed when data has gone unanswered for 15 s.
    wait::until_within(Duration::from_secs(30), "the link has moved to the other interface", || {
        probe::answers(&ends.proxy, BACKEND[0])
    });
    assert_eq!(endpoint_ip(&backend, "proxy"), Some(ip("10.2.0.1")));
}

/// The cable of [`Ends::wired`].
#[test]
fn a_socket_bound_to_the_tunnel_interface_works() {
    let ends = Ends::wired("bindtodevice");
    let _daemons = ends.start_calling("10.1.0.2:51900");
    for target in BACKEND {
        Ping::to(target).count(3).device("underpass0").send(&ends.proxy).assert_all_answered();
    }
}

/// The cable of [`Ends::wired`]; a firewall marks the packets, so that the kernel looks up their route again.
#[test]
fn a_socket_bound_to_the_tunnel_interface_works_when_a_mark_makes_it_look_again() {
    let ends = Ends::wired("bindtodevice-mark");
    let _daemons = ends.start_calling("10.1.0.2:51900");
    let rules = "table inet marks {
        chain output {
            type route hook output priority mangle
            meta l4proto { icmp, icmpv6 } meta mark set 1
        }
    }
    ";
    ends.proxy.command("nft").args(["-f", "-"]).stdin(rules).run();
    for target in BACKEND {
        Ping::to(target).count(3).device("underpass0").send(&ends.proxy).assert_all_answered();
    }
}

/// The cable of [`Ends::wired`]; the backend side is known by its name, of which `/etc/hosts` knows the address.
#[test]
fn an_endpoint_that_is_a_name_is_looked_up() {
    let ends = Ends::wired("name");
    let hosts = ends.proxy.write_file("hosts", "10.1.0.2 app1.test\n");
    ends.proxy.command("mount").args(["--bind"]).arg(hosts).arg("/etc/hosts").run();
    let (proxy, _backend) = ends.start_calling("app1.test:51900");
    wait::until("the name is looked up and the link comes up", || probe::answers(&ends.proxy, BACKEND[0]));
    assert_eq!(endpoint_ip(&proxy, "backend"), Some(ip("10.1.0.2")));
}

/// The cable of [`Ends::wired`]; all of the proxy's traffic goes into the tunnel, and the daemon's own is told from it by its
/// mark.
#[test]
fn a_default_route_into_the_tunnel_works_with_a_firewall_mark() {
    let ends = Ends::wired("fwmark");
    let peer = ends.backend_peer().endpoint("10.1.0.2:51900").allowed_ips(["0.0.0.0/0", "::/0"]);
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_interface().set("fwmark", "51900").peer(peer));
    for family in ["-4", "-6"] {
        ends.proxy.ip(&format!("{family} rule add not fwmark 51900 table 51900"));
        ends.proxy.ip(&format!("{family} rule add table main suppress_prefixlength 0"));
    }
    ends.backend.ip("address add 198.51.100.1/32 dev lo");
    ends.backend.ip("address add 2001:db8:9::1/128 dev lo");
    for target in ["198.51.100.1", "2001:db8:9::1"] {
        probe::flood_ping(&ends.proxy, target).assert_all_answered();
    }
}

/// The cable of [`Ends::wired`]; an operator routes the backend side's endpoint into the tunnel, once the daemon has started.
#[test]
fn a_route_that_loops_into_the_tunnel_does_not_flood() {
    let ends = Ends::wired("loop");
    let peer = ends.backend_peer().endpoint("10.5.0.1:51900").allowed_ips(["10.6.0.0/16"]);
    let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_interface().peer(peer));
    ends.proxy.ip("route add 10.5.0.0/16 dev underpass0");
    let before = sent_bytes(&ends.proxy, "wan") + sent_bytes(&ends.proxy, "underpass0");
    probe::ping_program(&ends.proxy, BACKEND[0], &["-c", "10", "-i", "0.1", "-W", "1"]).assert_none_answered();
    let sent = sent_bytes(&ends.proxy, "wan") + sent_bytes(&ends.proxy, "underpass0") - before;
    assert!(sent < 70_000, "{sent} bytes in two seconds");
    proxy.process().assert_running();
}

/// The cable of [`Ends::wired`]; two links whose endpoints lie in each other.
#[test]
fn two_peers_reached_through_each_other_do_not_flood() {
    let ends = Ends::wired("onion");
    let third = netns_tests::underpass::KeyPair::generate(&ends.proxy);
    let first = ends.backend_peer().endpoint("10.6.0.1:51900").allowed_ips(["10.5.0.0/16"]);
    let second = netns_tests::underpass::Peer::new("second", &third.public, ["10.77.0.12"]);
    let second = second.endpoint("10.5.0.1:51900").allowed_ips(["10.6.0.0/16"]);
    let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_interface().peer(first).peer(second));
    let before = sent_bytes(&ends.proxy, "underpass0");
    probe::ping_program(&ends.proxy, BACKEND[0], &["-c", "10", "-i", "0.1", "-W", "1"]).assert_none_answered();
    let sent = sent_bytes(&ends.proxy, "underpass0") - before;
    assert!(sent < 70_000, "{sent} bytes in two seconds");
    proxy.process().assert_running();
}

/// The cable of [`Ends::wired`]; the outer tunnel has 10.77.0.0/24, the inner one 10.78.0.0/24.
#[test]
fn a_tunnel_in_a_tunnel_works() {
    let ends = Ends::wired("tunnel-in-tunnel");
    let _outer = ends.start_calling("10.1.0.2:51900");
    let inner = |config: netns_tests::underpass::Config, address: &str| {
        let addresses = format!("[\"{address}/24\"]");
        config.interface("underpass1", 51901).set("addresses", addresses).set("mtu", "1340")
    };
    let proxy_peer = ends.proxy_peer().set("addresses", "[\"10.78.0.1\"]");
    let backend_peer = ends.backend_peer().set("addresses", "[\"10.78.0.11\"]").endpoint("10.77.0.11:51901");
    let _backend = Daemon::start(&ends.backend, &inner(ends.backend_interface().peer(proxy_peer), "10.78.0.11"));
    let _proxy = Daemon::start(&ends.proxy, &inner(ends.proxy_interface().peer(backend_peer), "10.78.0.1"));
    probe::flood_ping(&ends.proxy, "10.78.0.11").assert_all_answered();
    let server = Iperf3::at(&ends.backend, "10.78.0.11");
    assert!(server.send(&ends.proxy, &["-n", "32M"]).bytes > 1 << 20);
    assert!(server.send(&ends.proxy, &["-n", "32M", "-R"]).bytes > 1 << 20);
}

/// The cable of [`Ends::wired`]; inside, wireguard-go with 10.79.0.0/24.
#[test]
fn wireguard_in_our_tunnel_works() {
    let ends = Ends::wired("wireguard-inside");
    let _outer = ends.start_calling("10.1.0.2:51900");
    let end =
        |host, address, endpoint: &str| End { host, interface: "wg0", address, endpoint: endpoint.parse().unwrap() };
    let _inner = wireguard::connect([
        end(&ends.proxy, "10.79.0.1/24", "10.77.0.1:51820"),
        end(&ends.backend, "10.79.0.2/24", "10.77.0.11:51820"),
    ]);
    for host in [&ends.proxy, &ends.backend] {
        host.ip("link set dev wg0 mtu 1340");
    }
    probe::flood_ping(&ends.proxy, "10.79.0.2").assert_all_answered();
    let server = Iperf3::at(&ends.backend, "10.79.0.2");
    assert!(server.send(&ends.proxy, &["-n", "32M"]).bytes > 1 << 20);
}

/// The cable of [`Ends::wired`]. Who sends to a tunnel address that no peer has, hears at once that it can't be reached.
#[test]
fn a_destination_without_a_peer_is_reported_unreachable() {
    let ends = Ends::wired("no-peer");
    let (proxy, _backend) = ends.start_calling("10.1.0.2:51900");
    for target in ["10.77.0.99", "fd77::99"] {
        let pings = probe::ping_program(&ends.proxy, target, &["-c", "2", "-i", "0.2", "-W", "2"]);
        pings.assert_none_answered();
        assert!(pings.text.contains("nreachable"), "{}", pings.text);
    }
    assert!(proxy.drops("no_peer_for_destination") >= 4);
}

/// ```text
///   client ── proxy ── backend
/// ```
/// The proxy is the client's router, with a NAT in front of the tunnel: the error must find its way back to the client.
#[test]
fn a_host_behind_a_nat_hears_that_a_destination_has_no_peer() {
    let ends = Ends::wired("no-peer-nat");
    let client = ends.lab.host("client");
    ends.lab.link(client.port("lan", ["192.168.0.2/24"]), ends.proxy.port("lan", ["192.168.0.1/24"]));
    client.ip("route add default via 192.168.0.1");
    ends.proxy.forward_packets();
    let _daemons = ends.start_calling("10.1.0.2:51900");
    let _nat = Nat::masquerade(&ends.proxy, "underpass0");
    probe::ping(&client, BACKEND[0]).assert_all_answered();
    let pings = probe::ping_program(&client, "10.77.0.99", &["-c", "2", "-i", "0.2", "-W", "2"]);
    assert!(pings.text.contains("nreachable"), "{}", pings.text);
}

/// The cable of [`Ends::wired`], on machines without IPv6.
#[test]
fn without_ipv6_on_the_host_ipv4_goes_on() {
    let ends = Ends::new("no-ipv6");
    for host in [&ends.proxy, &ends.backend] {
        host.set_sysctl("ipv6/conf/all/disable_ipv6", "1");
        host.set_sysctl("ipv6/conf/default/disable_ipv6", "1");
    }
    ends.lab.link(ends.proxy.port("wan", ["10.1.0.1/24"]), ends.backend.port("wan", ["10.1.0.2/24"]));
    let proxy_peer = ends.proxy_peer().set("addresses", "[\"10.77.0.1\"]");
    let backend_peer = ends.backend_peer().set("addresses", "[\"10.77.0.11\"]").endpoint("10.1.0.2:51900");
    let only_v4 =
        |config: netns_tests::underpass::Config, address: &str| config.set("addresses", format!("[\"{address}/24\"]"));
    let _backend = Daemon::start(&ends.backend, &only_v4(ends.backend_interface().peer(proxy_peer), "10.77.0.11"));
    let _proxy = Daemon::start(&ends.proxy, &only_v4(ends.proxy_interface().peer(backend_peer), "10.77.0.1"));
    probe::flood_ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}

/// The laboratory of [`TwoWays`], under load both ways of which every byte is checked.
#[test]
fn a_preferred_endpoint_that_is_cut_off_breaks_no_connection_and_is_used_again_when_it_is_back() {
    let ways = TwoWays::start("two-ways");
    let proxy_side = ways.start_proxy_side();
    assert!(two_ways::uses(&proxy_side, ENDPOINTS[0]));
    let pump = Pump::start(&ways.proxy, &ways.backend, format!("{INSIDE}:7000").parse().unwrap(), 4);
    pump.wait_for_progress();
    let handshakes = proxy_side.status().peer("backend").number("handshakes");
    let outage = ways.cut_first();
    wait::until_within(Duration::from_secs(3), "traffic takes the second way", || {
        two_ways::uses(&proxy_side, ENDPOINTS[1])
    });
    pump.wait_for_progress();
    outage.heal();
    wait::until("the first is used again", || two_ways::uses(&proxy_side, ENDPOINTS[0]));
    pump.wait_for_progress();
    println!("{:?}", pump.stop());
    assert_eq!(proxy_side.status().peer("backend").number("handshakes"), handshakes, "the session did not go on");
}
