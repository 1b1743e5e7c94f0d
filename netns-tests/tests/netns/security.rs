//! What strangers, eavesdroppers and men in the middle get: nothing that they can read, change, or use.

use std::collections::HashSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use netns_tests::capture::TcpDump;
use netns_tests::frame::{self, Content};
use netns_tests::http::{Client, Extra};
use netns_tests::nginx::NginxApp;
use netns_tests::probe::{self, Ping};
use netns_tests::pump::Pump;
use netns_tests::random::Random;
use netns_tests::relay::{Mischief, Recorded, Relay, Way};
use netns_tests::spoofer::ArpSpoofer;
use netns_tests::underpass::{Config, Daemon, KeyPair, PORT, Peer, Role, quote};
use netns_tests::{Host, wait};
use ring::digest::{SHA256, digest};

use crate::carrier::{Carrier, Site};
use crate::ends::{BACKEND, Ends, PROXY};

const MARKERS: [&str; 4] =
    ["REQUEST-HEADER-MARKER", "REQUEST-BODY-MARKER", "ANSWER-HEADER-MARKER", "ANSWER-BODY-MARKER"];

/// Requests and answers with a marker in each part, many times over.
fn exchange_markers(client: &Host, server: &Host, address: SocketAddr) {
    let nginx = NginxApp::start(server, address, MARKERS[2]);
    fs::write(nginx.file("answer"), MARKERS[3].repeat(100)).unwrap();
    let headers: &[(&str, &str)] = &[("X-Marker", MARKERS[0])];
    let mut client = Client::connect(client, address).unwrap();
    for _ in 0..50 {
        let body = MARKERS[1].repeat(100);
        let stored = client.request("PUT", "/files/question", Extra { headers, body: body.as_bytes() }).unwrap();
        assert!(matches!(stored.status, 201 | 204));
        let fetched = client.request("GET", "/files/answer", Extra { headers, body: b"" }).unwrap();
        assert_eq!(fetched.header("x-app"), Some(MARKERS[2]));
        assert_eq!(fetched.text(), MARKERS[3].repeat(100));
    }
}

/// Whether a stranger may see this frame: a datagram of the protocol, or address resolution.
fn is_innocent(frame: &[u8]) -> bool {
    match frame::content(frame) {
        Content::Arp | Content::NeighbourDiscovery => true,
        Content::Udp(udp) => is_of_the_protocol(&udp, frame),
        Content::Ip(_) | Content::Other(_) => false,
    }
}

fn is_of_the_protocol(udp: &frame::Datagram, frame: &[u8]) -> bool {
    let ports = udp.source.port() == PORT && udp.destination.port() == PORT;
    // Several datagrams of one send are one frame here; the first byte is the first one's kind.
    ports && matches!(frame[udp.payload.clone()].first(), Some(1..=4))
}

/// The site of [`Site`], with tcpdump on the network's two cables.
#[test]
fn tcpdump_in_the_middle_finds_no_plaintext_and_no_packet_but_the_protocols() {
    let site = Site::new("sniffer", Carrier::Underpass("offload"));
    let sniffers = ["to-proxy", "to-backend1"].map(|interface| TcpDump::start(&site.network, interface));
    exchange_markers(&site.proxy, &site.backends[0], site.apps(8080)[0]);
    probe::ping(&site.proxy, &site.addresses[0].to_string()).assert_all_answered();
    for capture in sniffers.map(TcpDump::stop) {
        assert!(capture.datagrams(PORT).len() > 100, "the traffic did not come by here");
        for marker in MARKERS {
            assert_eq!(capture.count_containing(marker), 0, "{marker} is readable on the network");
        }
        let guilty = capture.frames.iter().find(|frame| !is_innocent(frame));
        assert_eq!(guilty.map(|frame| frame::content(frame)), None);
    }
}

/// ```text
///   proxy ───┐
///            ├─ switch ── attacker (ARP spoofer)
///   backend ─┘
/// ```
#[test]
fn an_arp_spoofer_reads_only_ciphertext_and_changes_nothing() {
    let ends = Ends::new("spoofer");
    let attacker = ends.lab.host("attacker");
    let ports = [ends.proxy_port().wire(), ends.backend_port().wire(), attacker.port("lan", ["10.1.0.66/24"])];
    let _switch = ends.lab.switch("switch", ports);
    let victims = ["10.1.0.1", "10.1.0.2"].map(|victim| victim.parse().unwrap());
    // Datagrams of transport data (kind 4) differ in their last byte, so one in eight is changed, somewhere.
    let spoofer = ArpSpoofer::start(&attacker, "lan", victims, |frame| {
        let Some(udp) = frame::datagram(frame) else { return false };
        let payload = &mut frame[udp.payload];
        let chosen = payload[0] == 4 && payload.last().is_some_and(|last| last % 8 == 0);
        if chosen {
            let victim = payload.len() / 2;
            payload[victim] ^= 0x10;
        }
        chosen
    });
    let (proxy, backend) = ends.start_calling("10.1.0.2:51900");
    wait::until("the traffic goes by the attacker", || {
        probe::answers(&ends.proxy, BACKEND[0]);
        spoofer.loot().frames.iter().filter(|frame| frame::datagram(frame).is_some()).count() > 10
    });
    exchange_markers(&ends.proxy, &ends.backend, "10.77.0.11:80".parse().unwrap());
    a_bulk_of_each_way_is_unchanged(&ends, 2 << 20);
    let loot = spoofer.loot();
    assert!(loot.tampered > 20, "only {} datagrams were changed", loot.tampered);
    for frame in &loot.frames {
        assert!(is_innocent(frame), "the attacker got {:?}", frame::content(frame));
        assert!(MARKERS.iter().all(|marker| !frame::contains(frame, marker.as_bytes())), "the attacker read a marker");
    }
    wait::until("what was changed is refused and counted", || {
        proxy.drops("invalid_tag") + backend.drops("invalid_tag") >= loot.tampered
    });
}

/// A body up and one down, compared by their hashes. The port is free of other servers.
fn a_bulk_of_each_way_is_unchanged(ends: &Ends, size: usize) {
    let address: SocketAddr = "10.77.0.11:8000".parse().unwrap();
    let nginx = NginxApp::start(&ends.backend, address, "bulk");
    let body = Random::new(3).bytes(size);
    let hash = digest(&SHA256, &body);
    let mut client = Client::connect(&ends.proxy, address).unwrap();
    let stored = client.request("PUT", "/files/bulk", Extra { body: &body, ..Extra::default() }).unwrap();
    assert_eq!(stored.status, 201);
    assert_eq!(digest(&SHA256, &fs::read(nginx.file("bulk")).unwrap()).as_ref(), hash.as_ref());
    assert_eq!(digest(&SHA256, &client.get("/files/bulk").unwrap().body).as_ref(), hash.as_ref());
}

/// ```text
///   proxy ── relay ── backend
/// ```
struct Middle {
    ends: Ends,
    relay: Relay,
    proxy: Daemon,
    backend: Daemon,
}

impl Middle {
    fn new(name: &str, device: &str) -> Middle {
        let ends = Ends::new(name);
        let relay = Relay::between(&ends.lab, ends.proxy_port(), ends.backend_port());
        let finish = |config: Config| config.set("device", quote(device));
        let backend = Daemon::start(&ends.backend, &finish(ends.backend_waiting()));
        let proxy = Daemon::start(&ends.proxy, &finish(ends.proxy_calling("10.1.0.2:51900")));
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        Middle { ends, relay, proxy, backend }
    }

    fn drops(&self, reasons: &[&str]) -> u64 {
        let statuses = [self.proxy.status(), self.backend.status()];
        statuses.iter().map(|status| reasons.iter().map(|reason| status.drops(reason)).sum::<u64>()).sum()
    }

    fn all_drops(&self) -> u64 {
        self.proxy.status().all_drops() + self.backend.status().all_drops()
    }
}

/// The path of [`Middle`].
#[test]
fn a_man_in_the_middle_who_tampers_duplicates_reorders_and_replays_changes_nothing() {
    mischief_changes_nothing(&Middle::new("mischief-offload", "offload"));
}

/// The path of [`Middle`].
#[test]
fn a_man_in_the_middle_changes_nothing_of_what_goes_to_plain_devices() {
    mischief_changes_nothing(&Middle::new("mischief-plain", "plain"));
}

fn mischief_changes_nothing(middle: &Middle) {
    let mischief =
        Mischief { tamper: 100, forge: 50, duplicate: 20, reorder: 30, replay: 50, drop: 200, ..Default::default() };
    middle.relay.set(mischief);
    a_bulk_of_each_way_is_unchanged(&middle.ends, 4 << 20);
    middle.relay.set(Mischief::default());
    let did = middle.relay.counts();
    for count in [did.tampered, did.forged, did.duplicated, did.reordered, did.replayed, did.dropped] {
        assert!(count > 5, "too little mischief to prove anything: {did:?}");
    }
    // A bit flipped in the header makes it some other refusal than an invalid tag. A tampered original may have had a good
    // duplicate, and the other way round, so only the sums are comparable.
    wait::until("every changed datagram is refused and counted", || middle.all_drops() >= did.tampered + did.forged);
    wait::until("every repeated datagram is refused and counted", || {
        middle.all_drops() + did.dropped >= did.tampered + did.forged + did.duplicated + did.replayed
    });
    assert!(middle.drops(&["invalid_tag"]) > 0 && middle.drops(&["replayed"]) > 0);
    probe::flood_ping(&middle.ends.proxy, BACKEND[0]).assert_all_answered();
}

/// The path of [`Middle`]: more than 100,000 datagrams that are not as they were sent, or not when, while TCP goes both ways.
#[test]
fn a_hundred_thousand_altered_datagrams_change_no_byte_and_no_link() {
    let middle = Middle::new("hundred-thousand", "offload");
    let link = || {
        let peers = [middle.proxy.status().peer("backend"), middle.backend.status().peer("proxy")];
        peers.map(|peer| (peer.text("state"), peer.seconds("state_since"), peer.number("handshakes"), peer.endpoint()))
    };
    let before = link();
    let pump = Pump::start(&middle.ends.proxy, &middle.ends.backend, "10.77.0.11:7000".parse().unwrap(), 2);
    pump.wait_for_progress();
    let rates =
        Mischief { forge: 1, truncate: 1, duplicate: 2, replay: 2, tamper: 500, reorder: 100, ..Mischief::default() };
    middle.relay.set(rates);
    // What a busy kernel has no room for is not among them.
    wait::until_within(Duration::from_secs(120), "100,000 altered datagrams are refused and counted", || {
        middle.all_drops() >= 100_000
    });
    pump.wait_for_progress();
    middle.relay.set(Mischief::default());
    pump.wait_for_progress();
    let pumped = pump.stop();
    let did = middle.relay.counts();
    let by_reason = ["invalid_tag", "malformed", "unknown_session", "unknown_lane", "replayed", "too_old"];
    let by_reason = by_reason.map(|reason| (reason, middle.drops(&[reason])));
    eprintln!("{did:?}, {by_reason:?}, {pumped:?}");
    assert!(by_reason.iter().all(|(_, count)| *count > 0), "{by_reason:?}");
    assert_eq!(link(), before);
}

/// The path of [`Middle`].
#[test]
fn every_packet_is_delivered_once_and_unchanged() {
    every_packet_is_delivered_once(&Middle::new("once-offload", "offload"));
    every_packet_is_delivered_once(&Middle::new("once-plain", "plain"));
}

fn every_packet_is_delivered_once(middle: &Middle) {
    const BATCH: usize = 20;
    let bind = |host: &Host, address: &str| host.run(|| UdpSocket::bind(address)).unwrap();
    let (sender, receiver) =
        (bind(&middle.ends.proxy, "10.77.0.1:1000"), bind(&middle.ends.backend, "10.77.0.11:2000"));
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    middle.relay.set(Mischief { forge: 3, duplicate: 2, reorder: 3, replay: 3, ..Mischief::default() });
    let mut buffer = [0; 2000];
    for batch in 0..100 {
        let mut expected: HashSet<Vec<u8>> = (0..BATCH).map(|n| payload(batch * BATCH + n)).collect();
        for packet in &expected {
            sender.send_to(packet, "10.77.0.11:2000").unwrap();
        }
        while !expected.is_empty() {
            let length = receiver.recv(&mut buffer).unwrap();
            assert!(expected.remove(&buffer[..length]), "this was not sent, or has come before");
        }
    }
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(receiver.recv(&mut buffer).is_err(), "a packet was delivered twice");
    assert!(middle.drops(&["replayed"]) > 100 && middle.drops(&["invalid_tag"]) > 100);
}

/// Noise whose first bytes say which it is.
fn payload(n: usize) -> Vec<u8> {
    let mut payload = Random::new(n as u64).bytes(40 + n % 1000);
    payload[..8].copy_from_slice(&n.to_le_bytes());
    payload
}

/// The path of [`Middle`]. Packed, padded or cut: what leaves is never longer than the MTU and one datagram's overhead, so
/// that a path which carries that much carries everything.
#[test]
fn no_datagram_is_longer_than_the_mtu_and_its_overhead() {
    for device in ["offload", "plain"] {
        let middle = Middle::new("longest", device);
        probe::flood_ping(&middle.ends.proxy, BACKEND[0]).assert_all_answered();
        Ping::to(BACKEND[0]).count(20).payload(1420 - 28).send(&middle.ends.proxy).assert_all_answered();
        Ping::to(BACKEND[1]).count(20).payload(1420 - 48).send(&middle.ends.proxy).assert_all_answered();
        a_bulk_of_each_way_is_unchanged(&middle.ends, 1 << 20);
        let records = middle.relay.records();
        let longest = records.iter().map(|record| record.payload().len()).max();
        assert_eq!(longest, Some(1420 + 32), "{device}");
        let fragments = |frame: &[u8]| frame[12..14] == [0x08, 0x00] && (frame[20] & 0x3f, frame[21]) != (0, 0);
        assert!(!records.iter().any(|record| fragments(&record.frame)), "an outer datagram was cut by IP");
    }
}

/// The path of [`Middle`]: an hour-old conversation, played again from its first datagram to its last, is refused whole.
#[test]
fn a_replayed_conversation_has_no_effect() {
    let middle = Middle::new("replay", "offload");
    exchange_markers(&middle.ends.proxy, &middle.ends.backend, "10.77.0.11:80".parse().unwrap());
    let records = middle.relay.records();
    let kinds = |kind: u8| records.iter().filter(|record| record.payload()[0] == kind).count();
    assert!(kinds(1) > 0 && kinds(2) > 0 && kinds(4) > 100);
    let before = (middle.all_drops(), middle.ends.backend.read("/proc/thread-self/net/dev"));
    let played: Vec<_> = records.into_iter().filter(|record| record.way == Way::There).collect();
    let count = played.len() as u64;
    middle.relay.clear_records();
    played.into_iter().for_each(|record| middle.relay.inject(Way::There, record.frame));
    wait::until("every replayed datagram is refused and counted", || middle.all_drops() >= before.0 + count);
    let received = |table: &str| {
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix("underpass0:").map(str::to_owned));
        line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    let after = middle.ends.backend.read("/proc/thread-self/net/dev");
    assert_eq!(received(&after), received(&before.1), "a replayed packet reached the app server's kernel");
    // Transport data of the living session may come at any time; a handshake message would be an answer.
    let answered = |record: &Recorded| record.way == Way::Back && record.payload()[0] != 4;
    assert!(!middle.relay.records().iter().any(answered), "a replayed datagram was answered");
}

/// ```text
///   stranger ──┐
///              router ── backend
///   proxy ─────┘
/// ```
#[test]
fn an_unknown_key_gets_not_one_packet_back() {
    let ends = Ends::new("stranger");
    let (router, stranger) = (ends.lab.router("router"), ends.lab.host("stranger"));
    ends.lab.link(ends.proxy_port(), router.port("proxy", ["10.1.0.2/24"]));
    ends.lab.link(ends.backend.port("wan", ["10.2.0.2/24"]), router.port("backend", ["10.2.0.1/24"]));
    ends.lab.link(stranger.port("wan", ["10.3.0.2/24"]), router.port("stranger", ["10.3.0.1/24"]));
    ends.proxy.ip("route add default via 10.1.0.2");
    ends.backend.ip("route add default via 10.2.0.1");
    stranger.ip("route add default via 10.3.0.1");
    let sniffers = [TcpDump::start(&router, "proxy"), TcpDump::start(&router, "stranger")];
    let (_proxy, backend) = ends.start_calling("10.2.0.2:51900");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let [recorded, silence] = sniffers;
    let recorded = recorded.stop();

    // A whole daemon, which knows the backend side's public key but is not known there.
    let keys = KeyPair::generate(&stranger);
    let config = Config::new(Role::Proxy, &keys, ["10.77.0.1/24"]);
    let peer = Peer::new("backend", &ends.backend_keys.public, [BACKEND[0]]).endpoint("10.2.0.2:51900");
    let daemon = Daemon::start(&stranger, &config.peer(peer));
    assert!(!probe::answers(&stranger, BACKEND[0]));
    wait::until("the stranger's handshake is refused", || backend.drops("unknown_peer") > 0);
    assert_eq!(daemon.stop(), 0);

    // Everything that was said by those who are known, and noise of every length and kind.
    let socket = stranger.run(|| UdpSocket::bind("10.3.0.2:51900")).unwrap();
    let before = backend.status().all_drops();
    let mut sent = 0;
    let mut send = |payload: &[u8]| {
        sent += u64::from(socket.send_to(payload, "10.2.0.2:51900").is_ok());
    };
    let mut initiations = 0;
    for datagram in recorded.datagrams(PORT) {
        // Not so many handshakes that the backend side is under load and demands cookies of whoever knows its key.
        initiations += u32::from(datagram[0] == 1);
        if datagram[0] != 1 || initiations < 5 {
            send(datagram);
        }
    }
    let mut random = Random::new(9);
    for length in (0..1400).step_by(7).chain([1452, 9000, 65_507]) {
        let mut noise = random.bytes(length);
        for kind in 0..6 {
            noise.iter_mut().take(1).for_each(|first| *first = kind);
            send(&noise);
        }
    }
    wait::until("all of it is refused and counted", || backend.status().all_drops() >= before + sent);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let answers = silence.stop();
    let to_stranger = |frame: &Vec<u8>| match frame::content(frame) {
        Content::Udp(udp) => udp.destination.ip().to_string() == "10.3.0.2",
        Content::Arp | Content::NeighbourDiscovery => false,
        // The destination in the IPv4 header: the stranger's own longer datagrams came in fragments.
        Content::Ip(_) | Content::Other(_) => frame[30..34] == [10, 3, 0, 2],
    };
    assert_eq!(answers.frames.iter().filter(|frame| to_stranger(frame)).count(), 0, "the stranger was answered");
    assert!(answers.frames.len() as u64 > sent, "the stranger's datagrams did not come by here");
}

/// The site of [`Site`].
#[test]
fn a_backend_cannot_use_the_address_of_another() {
    let site = Site::new("source-spoof", Carrier::Underpass("offload"));
    let [victim, thief] = &site.backends;
    let stolen = site.addresses[0].to_string();
    probe::ping(&site.proxy, &stolen).assert_all_answered();
    probe::ping(&site.proxy, &site.addresses[1].to_string()).assert_all_answered();
    let socket = site.proxy.run(|| UdpSocket::bind("10.77.0.1:7000")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    thief.ip(&format!("address add {stolen}/32 dev lo"));
    let liar = thief.run(|| UdpSocket::bind(format!("{stolen}:1000"))).unwrap();
    let daemon = site.proxy_daemon();
    for _ in 0..10 {
        liar.send_to(b"I am another", "10.77.0.1:7000").unwrap();
    }
    wait::until("the lies are refused and counted", || daemon.drops("source_not_allowed") == 10);
    assert!(socket.recv_from(&mut [0; 100]).is_err(), "a lie was delivered");
    let honest = victim.run(|| UdpSocket::bind(format!("{stolen}:1000"))).unwrap();
    honest.send_to(b"I am myself", "10.77.0.1:7000").unwrap();
    assert_eq!(socket.recv_from(&mut [0; 100]).unwrap().1.ip(), site.addresses[0]);
    probe::ping(&site.proxy, &site.addresses[1].to_string()).assert_all_answered();
}

/// ```text
///   proxy ── router ── backend1   allowed: 10.77.0.11, 10.88.0.0/16 and fd88::/32
///               └───── backend2   allowed: 10.77.0.12, 10.88.7.0/24 and fd88:0:7::/48, inside the first one's
/// ```
#[test]
fn a_source_inside_another_peers_narrower_prefix_is_refused() {
    let site = Site::with_proxy_peers("narrower", |peers| {
        let [first, second] = peers;
        [first.allowed_ips(["10.88.0.0/16", "fd88::/32"]), second.allowed_ips(["10.88.7.0/24", "fd88:0:7::/48"])]
    });
    let daemon = site.proxy_daemon();
    for address in site.addresses {
        probe::ping(&site.proxy, &address.to_string()).assert_all_answered();
    }
    let socket = site.proxy.run(|| UdpSocket::bind("[::]:7000")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let addresses = ["10.88.6.1", "10.88.7.1", "fd88:0:6::1", "fd88:0:7::1"];
    for backend in &site.backends {
        addresses.iter().for_each(|address| backend.ip(&format!("address add {address} dev lo")));
    }
    let say = |backend: usize, address: &str| {
        let host = &site.backends[backend];
        let target = if address.contains(':') { (PROXY[1], 7000) } else { (PROXY[0], 7000) };
        let socket = host.run(|| UdpSocket::bind((address, 1000))).unwrap();
        socket.send_to(address.as_bytes(), target).unwrap();
    };
    let hear = || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    for (owner, thief, address) in
        [(0, 1, addresses[0]), (1, 0, addresses[1]), (0, 1, addresses[2]), (1, 0, addresses[3])]
    {
        let before = daemon.drops("source_not_allowed");
        say(thief, address);
        wait::until(&format!("{address} from the wrong peer is refused"), || {
            daemon.drops("source_not_allowed") == before + 1
        });
        say(owner, address);
        assert_eq!(hear(), address);
    }
}
