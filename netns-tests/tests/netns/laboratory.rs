//! The laboratory itself: that its attackers attack, its sniffers hear, and that nothing of it is left behind. A test that
//! says "the man in the middle changed nothing" is worth as much as the proof that he could have.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use netns_tests::capture::TcpDump;
use netns_tests::frame::{self, Content};
use netns_tests::http::Client;
use netns_tests::nat::Nat;
use netns_tests::nginx::NginxApp;
use netns_tests::probe::{self, Iperf3};
use netns_tests::relay::{Mischief, Relay, Way};
use netns_tests::spoofer::ArpSpoofer;
use netns_tests::{Host, Lab, wait};

/// ```text
///   a ── router ── b
/// ```
#[test]
fn hosts_reach_each_other_through_a_router_over_both_families() {
    let lab = Lab::new("router");
    let (a, router, b) = (lab.host("a"), lab.router("router"), lab.host("b"));
    lab.link(a.port("wan", ["10.1.0.2/24", "fd01::2/64"]), router.port("a", ["10.1.0.1/24", "fd01::1/64"]));
    lab.link(b.port("wan", ["10.2.0.2/24", "fd02::2/64"]), router.port("b", ["10.2.0.1/24", "fd02::1/64"]));
    for (host, n) in [(&a, 1), (&b, 2)] {
        host.ip(&format!("route add default via 10.{n}.0.1"));
        host.ip(&format!("-6 route add default via fd0{n}::1"));
    }
    for target in ["10.2.0.2", "fd02::2"] {
        probe::flood_ping(&a, target).assert_all_answered();
        let server = Iperf3::at(&b, target);
        assert!(server.send(&a, &["-n", "32M"]).bytes > 1 << 20);
        assert!(server.send(&a, &["-n", "32M", "-R"]).bytes > 1 << 20);
        let datagrams = server.send(&a, &["-t", "1", "-u", "-b", "10M", "-w", "4M"]);
        assert!(datagrams.packets > 200 && datagrams.lost < datagrams.packets, "{datagrams:?}");
    }
    assert!(!probe::answers(&a, "10.2.0.9"));
}

#[test]
fn nothing_is_left_of_a_laboratory_whose_test_panicked() {
    let mut remains = None;
    let test = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("panic");
        let host = lab.host("host");
        let process = host.command("iperf3").arg("-s").start("iperf3");
        remains = Some((process.pid(), host.netns(), host.directory().to_owned()));
        panic!("as a failing test does");
    }));
    assert!(test.is_err());
    let (pid, netns, directory) = remains.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "its program still runs");
    wait::until("its namespace is gone", || !netns.exists());
    assert!(!directory.exists(), "its files are still there");
}

#[test]
fn two_laboratories_with_the_same_names_do_not_meet() {
    let lab = Lab::new("twin");
    let labs = [lab.beside("twin"), lab];
    let hosts = labs.each_ref().map(|lab| {
        let (a, b) = (lab.host("a"), lab.host("b"));
        lab.link(a.port("wan", ["10.1.0.1/24"]), b.port("wan", ["10.1.0.2/24"]));
        (a, b)
    });
    probe::ping(&hosts[0].0, "10.1.0.2").assert_all_answered();
    hosts[1].1.ip("link set wan down");
    probe::ping(&hosts[0].0, "10.1.0.2").assert_all_answered();
    assert!(!probe::answers(&hosts[1].0, "10.1.0.2"));
    assert_ne!(hosts[0].0.directory(), hosts[1].0.directory());
}

/// ```text
///   inside ── router(NAT) ── outside
/// ```
#[test]
fn a_nat_hides_who_is_behind_it_and_forgets_a_silent_flow() {
    let lab = Lab::new("nat");
    let (inside, router, outside) = (lab.host("inside"), lab.router("router"), lab.host("outside"));
    lab.link(inside.port("wan", ["192.168.0.2/24"]), router.port("lan", ["192.168.0.1/24"]));
    lab.link(router.port("wan", ["203.0.113.1/24"]), outside.port("wan", ["203.0.113.2/24"]));
    inside.ip("route add default via 192.168.0.1");
    let nat = Nat::masquerade(&router, "wan");
    nat.forget_udp_after(Duration::from_secs(1));
    let server = udp_socket(&outside, "203.0.113.2:7");
    let client = udp_socket(&inside, "192.168.0.2:1234");
    client.send_to(b"hello", "203.0.113.2:7").unwrap();
    let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from.ip(), Ipv4Addr::new(203, 0, 113, 1));
    server.send_to(b"hello", from).unwrap();
    client.recv_from(&mut [0; 16]).unwrap();
    let flows = || router.read("/proc/thread-self/net/nf_conntrack");
    if !flows().is_empty() {
        wait::until("the silent flow is forgotten", || !flows().contains("udp"));
    }
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    wait::until("nothing comes in from outside any more", || {
        server.send_to(b"again", from).unwrap();
        client.recv_from(&mut [0; 16]).is_err()
    });
}

/// ```text
///   a ── relay ── b
/// ```
struct Middle {
    relay: Relay,
    sender: UdpSocket,
    receiver: UdpSocket,
    a: Host,
    b: Host,
    _lab: Lab,
}

impl Middle {
    fn new(name: &str) -> Middle {
        let lab = Lab::new(name);
        let (a, b) = (lab.host("a"), lab.host("b"));
        let relay = Relay::between(&lab, a.port("wan", ["10.1.0.1/24"]), b.port("wan", ["10.1.0.2/24"]));
        let (sender, receiver) = (udp_socket(&a, "10.1.0.1:1000"), udp_socket(&b, "10.1.0.2:2000"));
        // Packets that wait for address resolution are sent beside later ones, so out of order.
        probe::ping(&a, "10.1.0.2").assert_all_answered();
        Middle { relay, sender, receiver, a, b, _lab: lab }
    }

    /// Sends so many numbered datagrams and returns the payloads that arrive.
    fn send(&self, count: u8) -> Vec<String> {
        for n in 0..count {
            self.sender.send_to(payload(n).as_bytes(), "10.1.0.2:2000").unwrap();
        }
        let mut arrived = vec![];
        let mut buffer = [0; 2000];
        self.receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        while let Ok(length) = self.receiver.recv(&mut buffer) {
            arrived.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        arrived
    }
}

fn payload(n: u8) -> String {
    // Twice, so that one changed bit never makes it another number.
    format!("{n:02}, again {n:02}")
}

fn udp_socket(host: &Host, address: &str) -> UdpSocket {
    let socket = host.run(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// The path of [`Middle`].
#[test]
fn a_relay_without_mischief_is_a_cable() {
    let middle = Middle::new("relay-cable");
    let sent: Vec<_> = (0..50).map(payload).collect();
    assert_eq!(middle.send(50), sent);
    let records = middle.relay.records();
    assert_eq!(records.iter().map(|record| String::from_utf8_lossy(record.payload())).collect::<Vec<_>>(), sent);
    assert!(records.iter().all(|record| record.way == Way::There));
    probe::flood_ping(&middle.a, "10.1.0.2").assert_all_answered();
    let server = Iperf3::at(&middle.b, "10.1.0.2");
    assert!(server.send(&middle.a, &["-n", "32M"]).bytes > 1 << 20);
}

/// The path of [`Middle`].
#[test]
fn a_relay_tampers_with_datagrams_so_that_they_still_arrive() {
    let middle = Middle::new("relay-tamper");
    middle.relay.set(Mischief { tamper: 2, ..Mischief::default() });
    let arrived = middle.send(50);
    assert_eq!(arrived.len(), 50);
    let sent: HashSet<_> = (0..50).map(payload).collect();
    let changed = arrived.iter().filter(|payload| !sent.contains(*payload)).count();
    assert_eq!(changed as u64, middle.relay.counts().tampered);
    assert!(changed > 5, "{changed}");
}

/// The path of [`Middle`].
#[test]
fn a_relay_duplicates_reorders_replays_forges_and_drops() {
    let middle = Middle::new("relay-mischief");
    let sent: Vec<_> = (0..50).map(payload).collect();
    let with = |mischief| {
        middle.relay.set(mischief);
        middle.send(50)
    };
    assert_eq!(with(Mischief { duplicate: 1, ..Mischief::default() }).len(), 100);
    assert_eq!(with(Mischief::cut()).len(), 0);
    assert!(with(Mischief { replay: 1, ..Mischief::default() }).len() > 90);
    assert_eq!(with(Mischief { longer_than: Some(5), ..Mischief::default() }).len(), 0);
    let forged = with(Mischief { forge: 1, ..Mischief::default() });
    assert_eq!(forged.len(), 100);
    assert_eq!(forged.iter().filter(|payload| !sent.contains(payload)).count(), 50);
    let mut reordered = with(Mischief { reorder: 2, ..Mischief::default() });
    assert_ne!(reordered, sent);
    reordered.sort();
    assert_eq!(reordered, sent);
    assert_eq!(with(Mischief { delay: Duration::from_millis(50), ..Mischief::default() }), sent);
}

/// ```text
///   proxy ─┐
///          ├─ switch ── attacker (ARP spoofer)
///   app ───┘
/// ```
#[test]
fn in_the_plain_an_arp_spoofer_reads_and_changes_what_an_app_says() {
    let lab = Lab::new("spoofer");
    let (proxy, app, attacker) = (lab.host("proxy"), lab.host("app"), lab.host("attacker"));
    let _switch = lab.switch(
        "switch",
        [
            proxy.port("lan", ["10.1.0.1/24"]).wire(),
            app.port("lan", ["10.1.0.2/24"]).wire(),
            attacker.port("lan", ["10.1.0.66/24"]),
        ],
    );
    let address: SocketAddr = "10.1.0.2:80".parse().unwrap();
    let _nginx = NginxApp::start(&app, address, "truth");
    let victims = ["10.1.0.1", "10.1.0.2"].map(|victim| victim.parse().unwrap());
    let spoofer = ArpSpoofer::start(&attacker, "lan", victims, |frame| {
        let at = frame.windows(5).rposition(|window| window == b"truth");
        at.map(|at| frame[at..at + 5].copy_from_slice(b"a lie")).is_some()
    });
    let lied_to = || Client::connect(&proxy, address).and_then(|mut client| client.get("/"));
    wait::until("the app's answer is a lie", || lied_to().is_ok_and(|response| response.text() == "a lie"));
    assert!(spoofer.loot().tampered > 0);
    // Each victim is deceived by itself, so the app's answers may come by here before the proxy's requests do.
    let has_read = || spoofer.loot().frames.iter().any(|frame| frame::contains(frame, b"GET / HTTP/1.1"));
    wait::until("a request is read", || lied_to().is_ok() && has_read());
}

/// ```text
///   proxy ── network ── app
///            tcpdump
/// ```
#[test]
fn in_the_plain_tcpdump_reads_requests_and_answers() {
    let lab = Lab::new("tcpdump");
    let (proxy, network, app) = (lab.host("proxy"), lab.router("network"), lab.host("app"));
    lab.link(proxy.port("wan", ["10.1.0.2/24"]), network.port("proxy", ["10.1.0.1/24"]));
    lab.link(app.port("wan", ["10.2.0.2/24"]), network.port("app", ["10.2.0.1/24"]));
    proxy.ip("route add default via 10.1.0.1");
    app.ip("route add default via 10.2.0.1");
    let address: SocketAddr = "10.2.0.2:80".parse().unwrap();
    let nginx = NginxApp::start(&app, address, "app");
    fs::write(nginx.file("answer"), "ANSWER-MARKER").unwrap();
    let sniffer = TcpDump::start(&network, "proxy");
    let response = Client::connect(&proxy, address).unwrap().get("/files/answer?REQUEST-MARKER").unwrap();
    assert_eq!(response.text(), "ANSWER-MARKER");
    let capture = sniffer.stop();
    assert!(capture.count_containing("REQUEST-MARKER") > 0);
    assert!(capture.count_containing("ANSWER-MARKER") > 0);
    assert!(capture.contents().any(|content| content == Content::Ip(6)), "TCP is seen as TCP");
}
