//! Whole files: what the defaults are, what belongs together, and that size is no problem. The table of malformed files is
//! in `tests/daemon`, judged through the binary.

use std::fmt::Write as _;
use std::num::NonZero;
use std::time::Duration;

use zeroize::Zeroizing;

use super::super::key_file::KeyFileError;
use super::super::raw::{RawHealth, keys_of};
use super::super::{DeviceMode, Endpoint, Health, Mtu, Refuse, SuiteChoice, Workers, health, interface, peer};
use super::*;
use crate::keys::PrivateKey;
use crate::proto::policy::{Exposure, PortRange, Service};
use crate::proto::transmit::Dscp;

/// Key files that exist only here: `N.key` holds the private key of 32 bytes N.
struct Imagined;

impl KeyFiles for Imagined {
    fn read(&mut self, path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
        let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let Some(number) = name else { return Err(KeyFileError::NotFound) };
        Ok(private_key(number).to_base64())
    }
}

fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32]).unwrap()
}

pub(in crate::config) fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/underpass/underpass.toml"), &mut Imagined)
}

pub(in crate::config) fn minimal() -> String {
    format!(
        "role = \"proxy\"\n[interface]\naddresses = [\"10.77.0.1/24\"]\nprivate_key_file = \"1.key\"\n\
         [[backend]]\nname = \"app1\"\npublic_key = \"{}\"\naddresses = [\"10.77.0.11\"]\n",
        private_key(2).public_key()
    )
}

/// The one problem of `text`, as "key: what".
fn problem(text: &str) -> String {
    let error = parse(text).unwrap_err();
    assert_eq!(error.count(), 1, "{error}");
    format!("{}: {}", error.problems()[0].key, error.problems()[0].what)
}

#[test]
fn the_smallest_file_gets_the_documented_defaults() {
    let config = parse(&minimal()).unwrap();
    assert_eq!(config.role, Role::Proxy);
    let interface = config.interface;
    assert_eq!(interface.name, "underpass0");
    assert_eq!(interface.listen, ["0.0.0.0:51900".parse().unwrap(), "[::]:51900".parse().unwrap()]);
    assert!(interface.listen_is_default);
    assert_eq!((interface.mtu, interface.fwmark, interface.device), (Mtu::Auto, None, DeviceMode::Auto));
    assert_eq!((interface.workers, interface.suite), (Workers::Auto, SuiteChoice::Auto));
    assert!(!interface.pin_workers);
    assert!(interface.busy_poll);
    assert_eq!(interface.dscp, Dscp::Value(0));
    assert_eq!(interface.control_socket, Path::new("/run/underpass/underpass0.sock"));
    assert!(interface.drain_timeout.is_zero());
    assert_eq!(interface.private_key.public_key(), private_key(1).public_key());
    let peer = &config.peers[0];
    assert_eq!((peer.name.as_str(), peer.public_key), ("app1", private_key(2).public_key()));
    assert_eq!((peer.endpoints.len(), peer.persistent_keepalive), (0, None));
    assert_eq!(peer.allowed_ips, ["10.77.0.11/32".parse().unwrap()]);
    assert!(peer.preshared_key.is_none() && peer.next_public_key.is_none());
    assert_eq!((interface.expose.len(), peer.expose.len(), interface.refuse), (0, 0, Refuse::Drop));
}

#[test]
fn every_key_reaches_its_value() {
    let text = format!(
        "role = \"backend\"\n[interface]\nname = \"up1\"\naddresses = [\"10.77.0.11/24\", \"fd77::11/64\"]\n\
         listen = [\"192.0.2.1:7000\"]\nprivate_key_file = \"1.key\"\nprevious_private_key_file = \"/old/3.key\"\nmtu = 9000\n\
         fwmark = 0xca6c\ndscp = 63\ndevice = \"plain\"\nworkers = 4\npin_workers = true\nbusy_poll = false\nsuite = \"chacha20-poly1305\"\nexpose = [\"tcp/8080\", \"udp/53\"]\nrefuse = \"reset\"\ncontrol_socket = \"s.sock\"\ndrain_timeout = 30\n\
         [[proxy]]\nname = \"lb\"\npublic_key = \"{}\"\nnext_public_key = \"{}\"\nendpoint = \"lb.example.com:7001\"\n\
         addresses = [\"10.77.0.1\"]\nallowed_ips = [\"192.168.0.0/16\", \"10.77.0.1/32\"]\npreshared_key_file = \"9.key\"\n\
         persistent_keepalive = 25\nsuite = \"aes-256-gcm\"\nexpose = [\"tcp/8000-8099\", \"any/10.30.0.0/24\"]\n",
        private_key(2).public_key(),
        private_key(4).public_key()
    );
    let Config { role, interface, peers, .. } = parse(&text).unwrap();
    assert_eq!((role, interface.name.as_str(), interface.mtu), (Role::Backend, "up1", Mtu::Bytes(9000)));
    assert_eq!(interface.addresses.len(), 2);
    assert_eq!((interface.listen, interface.listen_is_default), (vec!["192.0.2.1:7000".parse().unwrap()], false));
    assert_eq!(interface.previous_private_key.unwrap().public_key(), private_key(3).public_key());
    assert_eq!((interface.fwmark, interface.workers), (Some(0xca6c), Workers::Number(NonZero::new(4).unwrap())));
    assert_eq!(interface.dscp, Dscp::Value(63));
    assert!(interface.pin_workers);
    assert!(!interface.busy_poll);
    assert_eq!((interface.device, interface.suite), (DeviceMode::Plain, SuiteChoice::ChaCha20Poly1305));
    assert_eq!(interface.expose, [Service::Tcp(8080.into()), Service::Udp(53.into())].map(Exposure::from));
    assert_eq!(interface.refuse, Refuse::Reset);
    assert_eq!(interface.control_socket, Path::new("/etc/underpass/s.sock"));
    assert_eq!(interface.drain_timeout, Duration::from_secs(30));
    let peer = &peers[0];
    assert_eq!(peer.next_public_key, Some(private_key(4).public_key()));
    assert_eq!(peer.endpoints, [Endpoint::Name { host: "lb.example.com".to_owned(), port: 7001 }]);
    assert_eq!(peer.allowed_ips, ["10.77.0.1/32".parse().unwrap(), "192.168.0.0/16".parse().unwrap()]);
    assert_eq!((peer.persistent_keepalive, peer.suite), (Some(Duration::from_secs(25)), SuiteChoice::Aes256Gcm));
    let ports = Service::Tcp(PortRange { first: 8000, last: 8099 });
    assert_eq!(peer.expose, [ports.into(), Service::Any.within("10.30.0.0/24".parse().unwrap())]);
    assert!(peer.preshared_key.is_some());
}

/// `[health]` with these lines, of a file of this role.
fn with_health(role: Role, lines: &str) -> String {
    let text = minimal().replace("[[backend]]", &format!("expose = []\n[health]\n{lines}\n[[backend]]"));
    text.replace("\"proxy\"", &format!("\"{role}\"")).replace("[[backend]]", &format!("[[{}]]", role.peer_table()))
}

fn addresses(texts: &[&str]) -> Vec<std::net::SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn health_is_on_beside_the_load_balancer_and_off_elsewhere() {
    let proxy = parse(&minimal()).unwrap().health;
    assert_eq!((proxy.agent_check, proxy.http), (addresses(&["127.0.0.1:51901"]), addresses(&["127.0.0.1:51902"])));
    assert_eq!(proxy.degraded_weight, 100);
    let backend = parse(&with_health(Role::Backend, "")).unwrap().health;
    assert!(!backend.is_on());
    let one = parse(&with_health(Role::Backend, "http = \"[::1]:9000\"")).unwrap().health;
    assert_eq!((one.agent_check, one.http), (vec![], addresses(&["[::1]:9000"])));
}

#[test]
fn health_addresses_are_one_or_several_or_off() {
    let lines = "agent_check = [\"127.0.0.1:1\", \"[::1]:1\"]\nhttp = \"off\"\ndegraded_weight = 40";
    let agent_check = addresses(&["127.0.0.1:1", "[::1]:1"]);
    let health = parse(&with_health(Role::Proxy, lines)).unwrap().health;
    assert_eq!(health, Health { agent_check, http: vec![], degraded_weight: 40 });
}

#[test]
fn a_peer_without_a_suite_has_the_interface_s() {
    let text = minimal().replace("[[backend]]", "suite = \"aes-256-gcm\"\n[[backend]]");
    assert_eq!(parse(&text).unwrap().peers[0].suite, SuiteChoice::Aes256Gcm);
}

#[test]
fn a_peer_without_a_list_of_its_own_reaches_what_the_interface_exposes() {
    let text = |line| minimal().replace("[[backend]]", &format!("expose = [\"tcp/9100\"]\n[[backend]]\n{line}"));
    assert_eq!(parse(&text("")).unwrap().peers[0].expose, [Service::Tcp(9100.into()).into()]);
    assert_eq!(parse(&text("expose = []\n")).unwrap().peers[0].expose, []);
}

#[test]
fn a_backend_has_to_say_what_it_exposes() {
    let text = minimal().replace("\"proxy\"", "\"backend\"").replace("[[backend]]", "[[proxy]]");
    assert!(problem(&text).starts_with("interface.expose: this key is missing"));
    assert!(parse(&text.replace("[[proxy]]", "expose = []\n[[proxy]]")).is_ok());
}

#[test]
fn a_port_alone_listens_on_both_families() {
    let text = minimal().replace("[[backend]]", "listen = 7000\n[[backend]]");
    let interface = parse(&text).unwrap().interface;
    assert_eq!(interface.listen, ["0.0.0.0:7000".parse().unwrap(), "[::]:7000".parse().unwrap()]);
    assert!(interface.listen_is_default);
}

#[test]
fn a_zero_turns_mark_and_keepalive_off() {
    let text = minimal().replace("[[backend]]", "fwmark = 0\n[[backend]]\npersistent_keepalive = 0");
    let config = parse(&text).unwrap();
    assert_eq!((config.interface.fwmark, config.peers[0].persistent_keepalive), (None, None));
}

#[test]
fn prefixes_may_overlap_but_not_be_equal() {
    let second = |prefix: &str| {
        format!(
            "{}allowed_ips = [\"10.0.0.0/8\"]\n[[backend]]\nname = \"app2\"\npublic_key = \"{}\"\nallowed_ips = [\"{prefix}\"]\n",
            minimal(),
            private_key(3).public_key()
        )
    };
    assert_eq!(parse(&second("10.1.0.0/16")).unwrap().peers.len(), 2);
    assert_eq!(
        problem(&second("10.0.0.0/8")),
        "backend \"app2\".allowed_ips: backend \"app1\" has 10.0.0.0/8 too, line 9"
    );
    assert_eq!(
        problem(&second("10.77.0.11")),
        "backend \"app2\".allowed_ips: backend \"app1\" has 10.77.0.11/32 too, line 8"
    );
}

#[test]
fn an_endpoint_that_is_routed_into_the_tunnel_is_refused_unless_marked() {
    let text = |endpoint: &str, allowed: &str| {
        format!("{}endpoint = \"{endpoint}\"\nallowed_ips = [\"{allowed}\"]\n", minimal())
    };
    for (endpoint, allowed, prefix) in [
        ("192.0.2.1", "192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.1:7000", "192.0.2.1", "192.0.2.1/32"),
        ("10.77.0.99", "192.0.2.0/24", "10.77.0.0/24"),
        ("[2001:db8::1]", "2001:db8::/32", "2001:db8::/32"),
    ] {
        let text = text(endpoint, allowed);
        assert!(problem(&text).contains(&format!("lies in {prefix}, which is routed into the tunnel")), "{endpoint}");
        assert!(parse(&text.replace("[[backend]]", "fwmark = 1\n[[backend]]")).is_ok());
    }
    // No route is added for these: see "All traffic".
    assert!(parse(&text("192.0.2.1", "0.0.0.0/0")).is_ok());
    assert!(parse(&text("198.51.100.1", "192.0.2.0/24")).is_ok());
}

#[test]
fn no_peer_has_an_address_of_this_machine_or_of_the_whole_network() {
    for address in ["10.77.0.1", "10.77.0.0", "10.77.0.255"] {
        for line in [format!("addresses = [\"{address}\"]"), format!("allowed_ips = [\"{address}/32\"]")] {
            let text = minimal().replace("addresses = [\"10.77.0.11\"]", &line);
            let key = line.split(' ').next().unwrap();
            assert!(problem(&text).starts_with(&format!("backend \"app1\".{key}: {address} is ")), "{line}");
        }
    }
}

#[test]
fn ipv6_anywhere_raises_the_smallest_mtu() {
    let small = minimal().replace("[[backend]]", "mtu = 600\n[[backend]]");
    assert_eq!(parse(&small).unwrap().interface.mtu, Mtu::Bytes(600));
    let text = format!("{small}allowed_ips = [\"fd00::/8\"]\n");
    assert!(problem(&text).starts_with("interface.mtu: 600 is too small: IPv6 needs 1280"));
}

#[test]
fn several_mistakes_are_reported_at_once_in_the_file_s_order() {
    let text = "role = \"proxy\"\n[interface]\nmtuu = 1420\nmtu = \"x\"\naddresses = [\"10.0.0.1\", \"10.0.0.2\"]\n[[backend]]\nname = \"a b\"\n";
    let error = parse(text).unwrap_err();
    let found: Vec<_> =
        error.problems().iter().map(|problem| (problem.position.unwrap().line, problem.key.as_str())).collect();
    assert_eq!(
        found,
        [
            (2, "interface.private_key_file"),
            (3, "interface.mtuu"),
            (4, "interface.mtu"),
            (5, "interface.addresses"),
            (5, "interface.addresses"),
            (6, "backend 1.public_key"),
            (6, "backend 1.addresses"),
            (7, "backend 1.name"),
        ],
        "{error}"
    );
}

#[test]
fn ten_thousand_peers_are_no_trouble() {
    let mut text = minimal();
    for number in 0..10_000_u32 {
        let mut secret = [1; 32];
        secret[4..8].copy_from_slice(&number.to_be_bytes());
        let key = PrivateKey::from_bytes(secret).unwrap().public_key();
        let [_, _, high, low] = number.to_be_bytes();
        write!(
            text,
            "[[backend]]\nname = \"n{number}\"\npublic_key = \"{key}\"\naddresses = [\"10.1.{high}.{low}\"]\n"
        )
        .unwrap();
    }
    assert_eq!(parse(&text).unwrap().peers.len(), 10_001);
}

#[test]
fn every_key_has_an_example_for_messages() {
    let of = |examples: &[(&'static str, &str)]| examples.iter().map(|(key, _)| *key).collect::<Vec<_>>();
    assert_eq!(of(interface::EXAMPLES), keys_of::<RawInterface>());
    assert_eq!(of(health::EXAMPLES), keys_of::<RawHealth>());
    assert_eq!(of(peer::EXAMPLES), keys_of::<RawPeer>());
}

/// The examples in `config/` with real keys in place of the words that stand for them.
fn example(role: Role) -> String {
    let text = match role {
        Role::Proxy => include_str!("../../../config/proxy.example.toml"),
        Role::Backend => include_str!("../../../config/backend.example.toml"),
    };
    let key = |number| format!("\"{}\"", private_key(number).public_key());
    let next = ["\"NEXT_PUBLIC_KEY_OF_APP1\"", "\"NEXT_PUBLIC_KEY_OF_LB1\""];
    let present = ["\"PUBLIC_KEY_OF_APP1\"", "\"PUBLIC_KEY_OF_LB1\""];
    let text = next.iter().fold(text.to_owned(), |text, word| text.replace(word, &key(3)));
    let text = present.iter().fold(text, |text, word| text.replace(word, &key(2)));
    text.replace("private.key", "1.key")
        .replace("previous.key", "4.key")
        .replace(".psk", ".5.psk")
        .replace("app1.5", "5")
        .replace("lb1.5", "5")
}

/// `text` with the key of each commented line that `wanted` accepts. A key is commented as `#key = `, prose as `# `.
fn uncommented(text: &str, wanted: impl Fn(bool) -> bool) -> String {
    let mut unset = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(prose) = line.strip_prefix("# ") {
            unset |= prose.starts_with("Unset.") || prose.contains(" Unset, ");
            lines.push(line);
        } else {
            lines.push(line.strip_prefix('#').filter(|_| wanted(unset)).unwrap_or(line));
            unset = false;
        }
    }
    lines.join("\n")
}

#[test]
fn every_key_stands_in_the_examples() {
    for role in Role::ALL {
        let all = uncommented(&example(role), |_| true);
        let table = format!("[[{}]]", role.peer_table());
        let (top, rest) = all.split_once("[interface]").unwrap();
        let (interface, rest) = rest.split_once("[health]").unwrap();
        let (health, peer) = rest.split_once(&table).unwrap();
        let has = |section: &str, key: &str| section.lines().any(|line| line.starts_with(&format!("{key} = ")));
        assert!(has(top, "role"));
        let sections = [(interface, keys_of::<RawInterface>()), (health, keys_of::<RawHealth>())];
        for (section, keys) in sections.into_iter().chain([(peer, keys_of::<RawPeer>())]) {
            for key in keys {
                assert!(has(section, key), "config/{role}.example.toml lacks {key}");
            }
        }
        parse(&all).unwrap();
    }
}

#[test]
fn the_examples_comment_every_key_at_its_default() {
    for role in Role::ALL {
        let as_it_stands = parse(&example(role)).unwrap();
        let defaults_written_out = parse(&uncommented(&example(role), |unset| !unset)).unwrap();
        assert_eq!(format!("{as_it_stands:?}"), format!("{defaults_written_out:?}"));
    }
}

#[test]
fn every_key_is_documented() {
    let text = include_str!("../../../docs/configuration.md");
    let (_, interface) = text.split_once("## `[interface]`").unwrap();
    let (interface, peer) = interface.split_once("## `[[backend]]` and `[[proxy]]`").unwrap();
    let (peer, health) = peer.split_once("## `[health]`").unwrap();
    let sections = [(interface, keys_of::<RawInterface>()), (health, keys_of::<RawHealth>())];
    for (section, keys) in sections.into_iter().chain([(peer, keys_of::<RawPeer>())]) {
        for key in keys {
            assert!(section.contains(&format!("\n| `{key}` |")), "docs/configuration.md lacks {key}");
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(
        cuts in proptest::collection::vec((0.0..1.0_f64, 0.0..1.0_f64, ".{0,8}"), 1..6),
        role in 0..2_usize,
    ) {
        let mut text = uncommented(&example(Role::ALL[role]), |_| true);
        for (from, len, inserted) in cuts {
            let from = text.floor_char_boundary((from * text.len() as f64) as usize);
            let to = text.floor_char_boundary(from + (len * 40.0) as usize).max(from);
            text.replace_range(from..to, &inserted);
        }
        if let Err(error) = parse(&text) {
            proptest::prop_assert!(error.problems().iter().all(|problem| !problem.remedy.is_empty()));
            proptest::prop_assert!(!error.to_string().contains(private_key(1).to_base64().as_str()));
        }
    }
}

#[test]
fn endpoints_are_one_or_several_each_once() {
    let endpoints = |text: &str| parse(&format!("{}endpoint = {text}\n", minimal()));
    let several = endpoints("[\"192.0.2.1\", \"app1.example.com:7000\"]").unwrap();
    let expected = [
        Endpoint::Address("192.0.2.1:51900".parse().unwrap()),
        Endpoint::Name { host: "app1.example.com".to_owned(), port: 7000 },
    ];
    assert_eq!(several.peers[0].endpoints, expected);
    for (text, what) in [
        ("[]", "the list is empty"),
        ("[\"192.0.2.1\", \"192.0.2.1:51900\"]", "192.0.2.1:51900 stands there twice"),
        ("[\"192.0.2.1\", \"10.77.0.11\"]", "10.77.0.11 is the peer's address inside the tunnel"),
        ("7", "a string, or a list of strings"),
    ] {
        let error = endpoints(text).unwrap_err().to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn without_a_look_at_keys_those_of_one_file_are_still_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.toml");
    let text = minimal().replacen("private_key_file", "previous_private_key_file = \"old.key\"\nprivate_key_file", 1);
    std::fs::write(&path, text).unwrap();
    Config::load_without_keys(&path).unwrap();
}
