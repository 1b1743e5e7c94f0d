//! Paths that are narrower than the tunnel's interface, and say nothing of it.

use std::net::{Ipv4Addr, UdpSocket};
use std::ops::RangeInclusive;
use std::time::Duration;

use netns_tests::capture::TcpDump;
use netns_tests::ends::{BACKEND, Ends, PROXY};
use netns_tests::http::{Client, Extra};
use netns_tests::narrows::{ENDPOINTS, Narrows, wait_for_path_mtu};
use netns_tests::nginx::NginxApp;
use netns_tests::probe::{self, Iperf3, Ping};
use netns_tests::pump::Pump;
use netns_tests::random::Random;
use netns_tests::underpass::PORT;
use netns_tests::{Host, wait};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

fn transfer_both_ways(ends: &Ends, bytes: &str) {
    for (address, family) in BACKEND.iter().zip(["-4", "-6"]) {
        let server = Iperf3::at(&ends.backend, address);
        for direction in [&[][..], &["-R"]] {
            let sent = server.send(&ends.proxy, &[&[family, "-n", bytes], direction].concat());
            eprintln!("{address} {direction:?}: {sent:?}");
        }
    }
}

fn bulk_transfers_complete(name: &str, endpoint: &str, mtu: u32, found: RangeInclusive<u64>) {
    let narrows = Narrows::silent(name, mtu);
    let daemons = narrows.start(endpoint);
    probe::ping(&narrows.ends.proxy, BACKEND[0]).assert_all_answered();
    transfer_both_ways(&narrows.ends, "100M");
    wait_for_path_mtu(&daemons, found);
    for (daemon, peer) in &daemons {
        let peer = daemon.status().peer(peer);
        assert_eq!((peer.text("state"), peer.text("reason")), ("degraded".to_owned(), "mtu".to_owned()));
    }
}

/// [`Narrows`] of 1280 bytes, silent.
#[test]
fn bulk_transfers_complete_both_ways_on_a_path_of_1280_bytes_that_says_nothing() {
    // The outer headers are 28 bytes, ours 32; the search has steps of 8.
    bulk_transfers_complete("path-mtu-bulk-v4", ENDPOINTS[0], 1280, 1212..=1220);
}

/// [`Narrows`] of 1400 bytes, silent: handshakes need 1388 over IPv6, which routers don't fragment.
#[test]
fn bulk_transfers_complete_both_ways_on_a_narrow_ipv6_path_that_says_nothing() {
    bulk_transfers_complete("path-mtu-bulk-v6", ENDPOINTS[1], 1400, 1312..=1320);
}

/// [`Narrows`] of 1280 bytes, silent. What a load balancer's checks ask for is small; what users ask for is not.
#[test]
fn large_answers_pass_where_health_checks_do() {
    let narrows = Narrows::silent("path-mtu-http", 1280);
    let _daemons = narrows.start(ENDPOINTS[0]);
    let listen = format!("{}:8080", BACKEND[0]).parse().unwrap();
    let app = NginxApp::start(&narrows.ends.backend, listen, "app1");
    let file = Random::new(1).bytes(1 << 20);
    std::fs::write(app.file("large"), &file).unwrap();
    let mut client = Client::connect(&narrows.ends.proxy, listen).unwrap();
    assert_eq!(client.get("/").unwrap().text(), "app1");
    for _ in 0..3 {
        assert!(client.get("/files/large").unwrap().body == file, "over the first connection");
    }
    let mut client = Client::connect(&narrows.ends.proxy, listen).unwrap();
    assert!(client.get("/files/large").unwrap().body == file, "over one made when the path was known");
    let put = client.request("PUT", "/files/back", Extra { body: &file, ..Extra::default() }).unwrap();
    assert_eq!(put.status, 201);
    assert!(std::fs::read(app.file("back")).unwrap() == file);
}

/// [`Narrows`], silent, which become narrow while data passes, and wide again.
#[test]
fn a_path_that_shrinks_in_the_middle_of_a_flow_recovers_within_two_seconds() {
    for (endpoint, server) in ENDPOINTS.into_iter().zip(["10.77.0.11:7000", "[fd77::11]:7000"]) {
        let narrows = Narrows::silent("path-mtu-shrink", 1500);
        let daemons = narrows.start(endpoint);
        probe::ping(&narrows.ends.proxy, BACKEND[0]).assert_all_answered();
        wait_for_path_mtu(&daemons, 1420..=1420);
        let pump = Pump::start(&narrows.ends.proxy, &narrows.ends.backend, server.parse().unwrap(), 2);
        pump.wait_for_progress();
        narrows.set_mtu(1300);
        pump.wait_for_progress();
        wait_for_path_mtu(&daemons, 1212..=1240);
        pump.wait_for_progress();
        narrows.set_mtu(1500);
        let at = wait::now();
        wait_for_path_mtu(&daemons, 1420..=1420);
        assert!(at.elapsed() < Duration::from_secs(60), "growth was found after {:?}", at.elapsed());
        pump.wait_for_progress();
        let pumped = pump.stop();
        eprintln!("{endpoint}: {pumped:?}, growth found after {:?}", at.elapsed());
        assert!(pumped.longest_stall < Duration::from_secs(2), "{pumped:?}");
    }
}

/// [`Narrows`] of 1300 bytes, silent.
#[test]
fn senders_of_other_packets_are_told_how_long_they_may_be() {
    let narrows = Narrows::silent("path-mtu-icmp", 1300);
    let daemons = narrows.start(ENDPOINTS[0]);
    let ends = &narrows.ends;
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    wait_for_path_mtu(&daemons, 1232..=1240);
    for (host, targets) in [(&ends.proxy, BACKEND), (&ends.backend, PROXY)] {
        let refused = probe::ping_program(host, targets[0], &["-M", "do", "-s", "1350", "-c", "2", "-W", "1"]);
        refused.assert_none_answered();
        assert!(refused.text.contains("Frag needed") || refused.text.contains("too long"), "{}", refused.text);
        // The kernel has learned it: it fragments by itself what it may.
        for target in targets {
            wait::until("long pings pass in fragments", || {
                Ping::to(target).payload(1350).patience(Duration::from_secs(1)).send(host).answered == 1
            });
        }
    }
    let dropped: u64 = daemons.iter().map(|(daemon, _)| daemon.drops("path_too_narrow")).sum();
    assert!(dropped >= 2, "{dropped}");
}

/// [`Narrows`] of 1300 bytes, silent. Nothing is sent that routers would have to fragment but handshakes.
#[test]
fn no_datagram_of_a_session_is_fragmented() {
    let narrows = Narrows::silent("path-mtu-fragments", 1300);
    let sniffer = TcpDump::start(&narrows.ends.backend, "wan");
    let daemons = narrows.start(ENDPOINTS[0]);
    probe::ping(&narrows.ends.proxy, BACKEND[0]).assert_all_answered();
    wait_for_path_mtu(&daemons, 1232..=1240);
    Iperf3::at(&narrows.ends.backend, BACKEND[0]).send(&narrows.ends.proxy, &["-n", "8M"]);
    let capture = sniffer.stop();
    // Behind the Ethernet header: flags and fragment offset of IPv4.
    let fragments = capture.frames.iter().filter(|frame| frame[12..14] == [8, 0] && frame[20] & 0x20 != 0).count();
    assert!(fragments <= 4, "{fragments} fragments");
    let longest = capture.datagrams(PORT).iter().map(|payload| payload.len()).max();
    assert!(longest > Some(1200), "{longest:?}");
}

/// [`Narrows`] of 1280 bytes over which everything of the inner network's smallest MTU must pass all the same. Routers say
/// what they should, or handshakes would not pass over IPv6.
#[test]
fn ipv6_packets_of_1280_bytes_pass_where_no_datagram_carries_them() {
    for (endpoint, found) in [(ENDPOINTS[0], 1212..=1220), (ENDPOINTS[1], 1192..=1200)] {
        let narrows = Narrows::honest("path-mtu-v6", 1280);
        let daemons = narrows.start(endpoint);
        wait::until("the link is up", || probe::answers(&narrows.ends.proxy, BACKEND[1]));
        Ping::to(BACKEND[1]).payload(1232).count(20).send(&narrows.ends.proxy).assert_all_answered();
        wait_for_path_mtu(&daemons, found);
        Ping::to(BACKEND[1]).payload(1232).count(20).send(&narrows.ends.proxy).assert_all_answered();
        Ping::to(PROXY[1]).payload(1232).count(20).send(&narrows.ends.backend).assert_all_answered();
    }
}

/// [`Narrows`] of 1500 bytes, and a router that lies: "fragmentation needed", to 600 bytes, for the daemons' own datagrams.
#[test]
fn a_forged_fragmentation_needed_changes_nothing() {
    let narrows = Narrows::honest("path-mtu-lie", 1500);
    let daemons = narrows.start(ENDPOINTS[0]);
    let proxy = &narrows.ends.proxy;
    probe::ping(proxy, BACKEND[0]).assert_all_answered();
    wait_for_path_mtu(&daemons, 1420..=1420);
    for _ in 0..5 {
        lie(&narrows.left, [10, 1, 0, 1], [10, 2, 0, 2]);
    }
    let believed = || proxy.command("ip").args(["route", "get", "10.2.0.2"]).run();
    wait::until("the kernel has believed it", || believed().contains("mtu 600"));
    let sniffer = TcpDump::start(proxy, "wan");
    Iperf3::at(&narrows.ends.backend, BACKEND[0]).send(proxy, &["-n", "8M"]);
    let capture = sniffer.stop();
    assert!(capture.frames.iter().all(|frame| frame[12..14] != [8, 0] || frame[20] & 0x20 == 0), "fragments");
    let longest = capture.datagrams(PORT).iter().map(|payload| payload.len()).max();
    assert!(longest >= Some(1452), "{longest:?}");
    for (daemon, peer) in &daemons {
        let peer = daemon.status().peer(peer);
        assert_eq!((peer.text("state"), peer.number("path_mtu")), ("up".to_owned(), 1420));
    }
}

/// Says to `to` that its datagram to `destination` must be no longer than 600 bytes.
fn lie(router: &Host, to: [u8; 4], destination: [u8; 4]) {
    let [high, low] = PORT.to_be_bytes();
    let mut message = vec![3, 4, 0, 0, 0, 0, 0x02, 0x58];
    message.extend([0x45, 0, 5, 0xc8, 0, 0, 0x40, 0, 63, 17, 0, 0]);
    message.extend([to, destination].concat());
    message.extend([high, low, high, low, 5, 0xb4, 0, 0]);
    let sum: u32 = message.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let sent = router.run(|| {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
        UdpSocket::from(raw).send_to(&message, (Ipv4Addr::from(to), 0))
    });
    assert_eq!(sent.unwrap(), message.len());
}
