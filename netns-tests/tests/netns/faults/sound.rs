//! Installations as operators build them, with nothing wrong: none may be called so.

use netns_tests::nat::Nat;
use netns_tests::underpass::{Config, KeyPair, Peer, list, quote};

use super::case::{APP, Case, Side};
use super::{is_alarm, is_fault, on_benches};

/// A name, and what is different from the plainest one.
type Sound = (&'static str, fn(&mut Case<'_>));

fn both(case: &mut Case<'_>, change: impl Fn(Config) -> Config) {
    case.proxy.interface = change(case.proxy.interface.clone());
    case.backend.interface = change(case.backend.interface.clone());
}

fn peers(case: &mut Case<'_>, change: impl Fn(Peer) -> Peer) {
    case.proxy.peer = change(case.proxy.peer.clone());
    case.backend.peer = change(case.backend.peer.clone());
}

fn addresses(case: &mut Case<'_>, proxy: [&str; 2], backend: [&str; 2]) {
    case.proxy.interface = case.proxy.interface.clone().set("addresses", list([proxy[0]]));
    case.backend.interface = case.backend.interface.clone().set("addresses", list([backend[0]]));
    case.proxy.peer = case.proxy.peer.clone().set("addresses", list([backend[1]]));
    case.backend.peer = case.backend.peer.clone().set("addresses", list([proxy[1]]));
    case.app = vec![(backend[1].to_owned(), APP)];
}

const SOUND: &[Sound] = &[
    ("IPv4 and IPv6", |_| {}),
    ("IPv4 only", |case| addresses(case, ["10.77.0.1/24", "10.77.0.1"], ["10.77.0.11/24", "10.77.0.11"])),
    ("IPv6 only, outside too", |case| {
        addresses(case, ["fd77::1/64", "fd77::1"], ["fd77::11/64", "fd77::11"]);
        case.proxy.peer = case.proxy.peer.clone().endpoint("[fd02::2]:51900");
    }),
    ("one route for each peer", |case| {
        addresses(case, ["10.77.0.1/32", "10.77.0.1"], ["10.77.0.11/32", "10.77.0.11"]);
    }),
    ("an app at its existing address, by marks", |case| {
        let proxy = &case.bench.proxy;
        case.ip(proxy, "route add default via 10.1.0.1 table 100");
        case.ip(proxy, "rule add fwmark 7 table 100 priority 100");
        addresses(case, ["10.77.0.1/24", "10.77.0.1"], ["10.77.0.11/24", "10.77.0.11"]);
        case.proxy.interface = case.proxy.interface.clone().set("fwmark", "7");
        case.proxy.peer = case.proxy.peer.clone().allowed_ips(["10.1.1.2/32"]);
        case.app = vec![("10.1.1.2".to_owned(), APP)];
    }),
    ("a gateway, and an app behind it", |case| {
        case.proxy.peer = case.proxy.peer.clone().allowed_ips(["10.30.0.0/24"]);
        case.app = vec![("10.30.0.5".to_owned(), APP)];
        case.port = format!("10.30.0.5:{APP}");
    }),
    ("a gateway without an app of its own", |case| {
        case.proxy.peer = case.proxy.peer.clone().allowed_ips(["10.30.0.0/24"]);
        case.app = vec![];
    }),
    ("the backend connects, behind a NAT", |case| {
        let network = &case.bench.network;
        Nat::masquerade(network, "to-proxy");
        case.undo_by(network, "nft delete table inet nat");
        let key = case.bench.backend_keys.public.clone();
        case.proxy.peer = Peer::new("backend", &key, ["10.77.0.11", "fd77::11"]);
        case.backend.peer = case.backend.peer.clone().endpoint("10.1.0.2:51900").persistent_keepalive(1);
    }),
    ("a second address that moves between machines", |case| {
        case.ip(&case.bench.backend, "address add 10.1.1.100/24 dev wan");
        case.proxy.peer = case.proxy.peer.clone().endpoint("10.1.1.100:51900");
    }),
    ("two workers", |case| both(case, |config| config.set("workers", "2"))),
    ("a plain device", |case| both(case, |config| config.set("device", quote("plain")))),
    ("no capability, on a device that was made for the daemon", |case| case.is_prepared = true),
    ("another port", |case| {
        case.backend.interface = case.backend.interface.clone().set("listen", "40000");
        case.proxy.peer = case.proxy.peer.clone().endpoint("10.1.1.2:40000");
    }),
    ("a preshared key", |case| {
        let key = KeyPair::generate(&case.bench.proxy).private;
        peers(case, |peer| peer.preshared_key(&key));
    }),
    ("several endpoints, of which the first does not answer", |case| {
        let endpoints = list(["10.1.1.77:51900", "10.1.1.2:51900"]);
        case.proxy.peer = case.proxy.peer.clone().set("endpoint", endpoints);
    }),
    ("several peers, one of which is not asked for", |case| {
        let idle = Peer::new("another", &case.bench.strangers.public, ["10.77.0.2", "fd77::2"]);
        case.backend.interface = case.backend.interface.clone().peer(idle);
    }),
    ("everything through the tunnel, by a mark", |case| {
        let backend = &case.bench.backend;
        case.ip(backend, "rule add not fwmark 7 table 7 priority 200");
        case.ip(backend, "rule add table main suppress_prefixlength 0 priority 100");
        case.backend.interface = case.backend.interface.clone().set("fwmark", "7");
        case.backend.peer = case.backend.peer.clone().allowed_ips(["0.0.0.0/0"]);
    }),
    ("both sides have the other's endpoint", |case| {
        case.backend.peer = case.backend.peer.clone().endpoint("10.1.0.2:51900");
    }),
    ("firewalls that let in what is needed", |case| {
        let rule = "policy drop; ct state established,related accept; iif lo accept; iifname underpass0 accept; \
                    meta l4proto { icmp, ipv6-icmp } accept; udp dport 51900 accept;";
        for host in [&case.bench.proxy, &case.bench.backend] {
            case.nft(host, "input", rule);
        }
    }),
    ("a smaller MTU", |case| both(case, |config| config.set("mtu", "1300"))),
];

/// Benches of [`super::case::Bench`].
#[test]
fn nothing_is_found_wrong_with_sound_installations() {
    let alarms: Vec<_> = on_benches("sound", SOUND, |bench, (name, change)| {
        let mut case = Case::sound(bench);
        change(&mut case);
        case.start();
        case.wait_for(Side::Proxy, "up");
        let sides = [Side::Proxy, Side::Backend];
        let findings = sides.map(|side| case.verify(side)).concat();
        let causes = sides.map(|side| case.doctor(side)).concat();
        case.end();
        let alarms =
            findings.iter().filter(|found| is_alarm(found)).chain(causes.iter().filter(|cause| is_fault(cause)));
        let alarms: Vec<String> = alarms.map(|alarm| format!("{name}: {alarm}")).collect();
        println!("{name}: {} checks, {} alarms", findings.len(), alarms.len());
        alarms
    });
    assert!(alarms.len() >= 15, "{} installations", alarms.len());
    let alarms = alarms.concat();
    assert!(alarms.is_empty(), "{alarms:#?}");
}
