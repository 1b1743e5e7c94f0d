//! `underpass doctor` names the true cause first, from the side that can know it, and finds nothing where nothing is wrong.

use std::time::Duration;

use netns_tests::dns::{NameServer, use_name_server};
use netns_tests::underpass::{self, Config, Daemon, KeyPair};
use netns_tests::{Host, wait};
use serde_json::Value;

use crate::ends::Ends;

const ENDPOINT: &str = "10.1.0.2:51900";

/// The doctor's exit code and its causes for a link, the most likely first.
#[track_caller]
fn doctor(host: &Host, peer: &str) -> (i32, Vec<Value>) {
    let output =
        underpass::command(host).args(["doctor", peer, "--json", "--interface", underpass::INTERFACE]).output();
    let report: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr));
    (output.code(), report["causes"].as_array().expect("causes are a list").clone())
}

/// Waits until the doctor names this cause first.
#[track_caller]
fn wait_for_cause(host: &Host, peer: &str, cause: &str) -> Value {
    let mut last = Vec::new();
    let found = wait::try_value_within(wait::PATIENCE, || {
        let (code, causes) = doctor(host, peer);
        last = causes;
        last.first().filter(|first| first["cause"] == cause && code == 8).cloned()
    });
    found.unwrap_or_else(|| panic!("{cause} is not first: {last:#?}"))
}

#[track_caller]
fn assert_well(host: &Host, peer: &str) {
    let (code, causes) = doctor(host, peer);
    assert_eq!(code, 0, "{causes:#?}");
}

fn filter(host: &Host, rule: &str) {
    let rules = format!("table inet closed {{\nchain in {{\ntype filter hook input priority 0;\n{rule}\n}}\n}}\n");
    host.command("nft").args(["-f", "-"]).stdin(rules).run();
}

/// The cable of [`Ends::wired`].
#[test]
fn the_doctor_finds_nothing_wrong_with_a_sound_link() {
    let ends = Ends::wired("doctor-sound");
    let (proxy, backend) = ends.start_calling(ENDPOINT);
    proxy.wait_for_state("backend", "up");
    wait::until("the other side knows", || backend.status().peer("proxy").number("handshakes") > 0);
    assert_well(&ends.proxy, "backend");
    assert_well(&ends.backend, "proxy");
    let text = proxy.ask(&["doctor", "backend"]);
    assert!(
        text.stdout.contains("nothing is wrong") && text.stdout.contains(&ends.backend_keys.public),
        "{}",
        text.stdout
    );
    let unknown = proxy.ask(&["doctor", "nobody"]);
    assert_eq!(unknown.code(), 2, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("there are: backend"), "{}", unknown.stderr);
}

/// The cable of [`Ends::wired`].
#[test]
fn the_doctor_tells_a_drained_link_a_stopped_peer_and_a_missing_daemon() {
    let ends = Ends::wired("doctor-stopped");
    let (proxy, backend) = ends.start_calling(ENDPOINT);
    proxy.wait_for_state("backend", "up");
    assert_eq!(proxy.ask(&["drain", "backend"]).code(), 0);
    wait_for_cause(&ends.proxy, "backend", "drained");
    assert_eq!(proxy.ask(&["undrain", "backend"]).code(), 0);
    assert_eq!(backend.stop(), 0);
    wait_for_cause(&ends.proxy, "backend", "peer_stopped");
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    assert_eq!(proxy.stop(), 0);
    let output = underpass::command(&ends.proxy).args(["doctor", "backend", "--json", "--config"]).arg(&file).output();
    assert_eq!(output.code(), 8, "{}", output.stderr);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["causes"][0]["cause"], "daemon_not_running");
    std::fs::write(&file, "role = 1").unwrap();
    let output = underpass::command(&ends.proxy).args(["doctor", "backend", "--json", "--config"]).arg(&file).output();
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["causes"][0]["cause"], "config_refused");
}

/// The cable of [`Ends::wired`], with a firewall that drops.
#[test]
fn the_doctor_tells_silence_from_a_missing_route_a_name_and_an_address_family() {
    let ends = Ends::wired("doctor-silence");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    filter(&ends.backend, "udp dport 51900 drop");
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    let cause = wait_for_cause(&ends.proxy, "backend", "silence");
    assert!(cause["remedy"].as_str().unwrap().contains(&ends.proxy_keys.public), "{cause}");
    wait_for_cause(&ends.backend, "proxy", "not_called");

    proxy.reload(&ends.proxy_calling("198.51.100.1:51900"));
    wait_for_cause(&ends.proxy, "backend", "no_route");
    assert_eq!(proxy.stop(), 0);
    let only_v4 = ends.proxy_calling("[fd01::2]:51900").set("listen", "[\"0.0.0.0:51900\"]");
    let proxy = Daemon::start(&ends.proxy, &only_v4);
    wait_for_cause(&ends.proxy, "backend", "address_family");
    assert_eq!(proxy.stop(), 0);

    let _names = NameServer::start(&ends.backend, "10.1.0.2", 0);
    use_name_server(&ends.proxy, "10.1.0.2");
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("app1.example:51900"));
    wait_for_cause(&ends.proxy, "backend", "name_not_resolved");
}

/// The cable of [`Ends::wired`].
#[test]
fn the_doctor_tells_different_preshared_keys_from_both_sides_and_a_file_that_was_not_reloaded() {
    let ends = Ends::wired("doctor-psk");
    let secret = || underpass::command(&ends.proxy).arg("genpsk").run().trim().to_owned();
    let with_psk = |config: Config, peer: underpass::Peer| config.peer(peer.preshared_key(&secret()));
    let backend = with_psk(ends.backend_interface(), ends.proxy_peer());
    let _backend = Daemon::start(&ends.backend, &backend);
    let proxy = with_psk(ends.proxy_interface(), ends.backend_peer().endpoint(ENDPOINT));
    let _proxy = Daemon::start(&ends.proxy, &proxy);
    wait_for_cause(&ends.proxy, "backend", "preshared_key");
    wait_for_cause(&ends.backend, "proxy", "answer_not_taken");
    drop(_proxy);

    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("10.1.0.3:51900"));
    ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    let cause = wait_for_cause(&ends.proxy, "backend", "file_changed");
    assert_eq!(cause["remedy"], "underpass reload");
    drop(proxy);
}

/// The cable of [`Ends::wired`]: the backend's machine answers the proxy's questions for names, with 4,000 addresses.
#[test]
fn a_dns_answer_of_4000_addresses_makes_the_daemon_send_no_more_than_20_packets_a_second() {
    let ends = Ends::wired("dns-4000");
    let _names = NameServer::start(&ends.backend, "10.1.0.2", 4000);
    use_name_server(&ends.proxy, "10.1.0.2");
    ends.proxy.ip("route add 198.18.0.0/15 via 10.1.0.2");
    let rules = "table inet sent {
               counter datagrams { }
               chain out {
                 type filter hook output priority filter
                 ip daddr 198.18.0.0/15 counter name datagrams
               }
             }";
    ends.proxy.command("nft").args(["-f", "-"]).stdin(rules).run();
    let sent = || {
        let listed = ends.proxy.command("nft").args(["list", "counter", "inet", "sent", "datagrams"]).run();
        let words: Vec<&str> = listed.split_whitespace().collect();
        let packets = words.iter().position(|word| *word == "packets").expect("a counter has packets");
        words[packets + 1].parse::<u64>().expect("a counter is a number")
    };
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("app1.example:51900"));
    wait::until("the name is resolved", || sent() > 0);
    for _ in 0..5 {
        let (before, began) = (sent(), wait::now());
        wait::pass(Duration::from_secs(1));
        let (packets, took) = (sent() - before, began.elapsed().as_secs_f64());
        assert!(packets as f64 <= 20.0 * took + 1.0, "{packets} packets in {took:.2} s");
    }
    assert!(sent() > 20, "it still tries");
    assert_eq!(proxy.stop(), 0);
}

/// The cable of [`Ends::wired`]; the backend's machine says what it does not take.
#[test]
fn the_doctor_tells_what_the_network_says_of_a_wrong_port_and_of_a_firewall() {
    let ends = Ends::wired("doctor-icmp");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling("10.1.0.2:51999"));
    let cause = wait_for_cause(&ends.proxy, "backend", "port_unreachable");
    assert!(cause["what"].as_str().unwrap().contains("port unreachable from 10.1.0.2"), "{cause}");
    filter(&ends.backend, "udp dport 51999 reject with icmpx admin-prohibited");
    wait_for_cause(&ends.proxy, "backend", "rejected");
    proxy.reload(&ends.proxy_calling("[fd01::2]:51999"));
    wait_for_cause(&ends.proxy, "backend", "rejected");
    ends.backend.command("nft").args(["delete", "table", "inet", "closed"]).run();
    wait_for_cause(&ends.proxy, "backend", "port_unreachable");
    proxy.reload(&ends.proxy_calling(ENDPOINT));
    proxy.wait_for_state("backend", "up");
    assert_well(&ends.proxy, "backend");
}

/// The cable of [`Ends::wired`]. Each side once has another key of the other than that has.
#[test]
fn the_doctor_of_the_called_side_tells_which_key_is_wrong() {
    let ends = Ends::wired("doctor-keys");
    let other = KeyPair::generate(&ends.proxy);
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).private_key(&other));
    let cause = wait_for_cause(&ends.backend, "proxy", "unknown_key");
    assert!(cause["remedy"].as_str().unwrap().contains(&other.public), "{cause}");
    assert_eq!(proxy.stop(), 0);
    let stranger = underpass::Peer::new("backend", &other.public, crate::ends::BACKEND).endpoint(ENDPOINT);
    let _proxy = Daemon::start(&ends.proxy, &ends.proxy_interface().peer(stranger));
    let log = |daemon: &Daemon, text: &str| daemon.as_ref().log().contains(text);
    wait::until("the log tells of it", || log(&_backend, "unknown_peer") && log(&_backend, "invalid_mac1"));
}
