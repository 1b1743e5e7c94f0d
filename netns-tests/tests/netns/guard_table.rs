//! The nftables table that refuses tunnel addresses outside of the tunnel: how long it lives, whose it is, what it lets pass.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use netns_tests::underpass::{self, Config, Daemon};
use netns_tests::{Host, probe, wait};
use serde_json::Value;

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINT: &str = "10.1.0.2:51900";
const TABLE: &str = "inet underpass_underpass0";

fn nft(host: &Host, command: &str) {
    host.command("nft").arg(command).run();
}

/// Content of a table, without counts and numbers; nothing if there is none.
fn content(host: &Host, table: &str) -> String {
    let listed = host.command("nft").args(["-n", "-s", "list", "table"]).args(table.split(' ')).output();
    if listed.status.success() { listed.stdout } else { String::new() }
}

fn tables(host: &Host) -> Vec<String> {
    let listed = host.command("nft").args(["list", "tables"]).run();
    listed.lines().map(|line| line.trim_start_matches("table ").to_owned()).collect()
}

/// Findings of `verify` about tunnel addresses outside of the tunnel.
#[track_caller]
pub(crate) fn guard_findings(host: &Host, file: &Path) -> Vec<Value> {
    let output = underpass::command(host).args(["verify", "--json", "--timeout", "1", "--config"]).arg(file).output();
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stderr));
    let findings = report["findings"].as_array().expect("findings are a list").iter();
    findings.filter(|finding| finding["check"] == "guard").cloned().collect()
}

/// The cable of [`Ends::wired`].
#[test]
fn verify_tries_tunnel_addresses_from_outside_of_the_tunnel() {
    let ends = Ends::wired("guard-verify");
    for (fail_closed, expected) in [("true", "ok"), ("false", "warning")] {
        let config = ends.proxy_calling(ENDPOINT).set("fail_closed", fail_closed);
        let _proxy = Daemon::start(&ends.proxy, &config);
        let file = config.write(&ends.proxy);
        for strict in ["0", "1"] {
            ends.proxy.set_sysctl("ipv4/conf/all/rp_filter", strict);
            let found = guard_findings(&ends.proxy, &file);
            assert_eq!(found.len(), 2, "one for each version of IP");
            assert!(found.iter().all(|finding| finding["outcome"] == expected), "{found:#?}");
        }
        // Where nothing comes through, that says nothing.
        nft(&ends.proxy, "add table inet firewall");
        nft(&ends.proxy, "add chain inet firewall input { type filter hook input priority 0; }");
        nft(&ends.proxy, "add rule inet firewall input iifname upverify0 drop");
        let found = guard_findings(&ends.proxy, &file);
        assert!(found.len() == 2 && found.iter().all(|finding| finding["outcome"] == "skipped"), "{found:#?}");
        nft(&ends.proxy, "delete table inet firewall");
        assert!(!ends.proxy.has_interface("upverify0"));
    }
}

/// The cable of [`Ends::wired`].
#[test]
fn a_flushed_or_changed_table_is_back_within_a_second_and_others_are_left_alone() {
    let ends = Ends::wired("guard-flush");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    let before = content(&ends.proxy, TABLE);
    assert!(before.contains("10.77.0.0/24") && before.contains("ip6 daddr @addresses6 counter drop"), "{before}");
    let operators = "add table inet operators; add chain inet operators input { type filter hook input priority 0; }";
    let changes = [
        "flush ruleset".to_owned(),
        format!("delete table {TABLE}"),
        format!("flush chain {TABLE} prerouting"),
        format!("insert rule {TABLE} prerouting accept"),
        format!("delete element {TABLE} addresses4 {{ 10.77.0.1 }}"),
        format!("add element {TABLE} networks4 {{ 10.200.0.0/16 }}"),
        format!("add table {TABLE} {{ flags dormant; }}"),
    ];
    let mut times = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        nft(&ends.proxy, change);
        let changed = wait::now();
        nft(&ends.proxy, operators);
        wait::until(&format!("it is put back after {change}"), || {
            proxy.status().part("guard").number("restored") > number as u64 && content(&ends.proxy, TABLE) == before
        });
        times.push(changed.elapsed());
        assert!(tables(&ends.proxy).contains(&"inet operators".to_owned()));
    }
    times.sort();
    assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}");
    let log = proxy.process().log();
    assert!(log.contains("guard-restored") && log.contains("program=\"nft\""), "{log}");

    // Somebody else's changes are none of its business, and its own are no reason to look again.
    let restored = proxy.status().part("guard").number("restored");
    nft(&ends.proxy, "delete table inet operators");
    proxy.reload(&ends.proxy_calling(ENDPOINT).set("dscp", "1"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.status().part("guard").number("restored"), restored);
    // However often it is flushed, that is told once in a while.
    for _ in 0..20 {
        nft(&ends.proxy, "flush ruleset");
    }
    wait::until("it is put back at last", || content(&ends.proxy, TABLE) == before);
    let told = proxy.process().log().lines().filter(|line| line.contains("guard-restored")).count();
    assert!(told <= changes.len(), "{told} lines");
}

/// The cable of [`Ends::wired`].
#[test]
fn each_interface_has_a_table_of_its_own_which_goes_with_fail_closed_or_with_its_name() {
    let ends = Ends::wired("guard-tables");
    let first = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    let elsewhere = |name: &str| {
        let config = ends.proxy_interface().peer(ends.backend_peer().allowed_ips(["10.99.0.0/16"]));
        let config = config.set("addresses", "[\"10.78.0.1/24\"]").interface(name, 51910);
        config.set("expose", "[]")
    };
    let second = Daemon::start(&ends.proxy, &elsewhere("other-0"));
    assert_eq!(tables(&ends.proxy), [TABLE, "inet underpass_other_2d0"]);
    assert!(content(&ends.proxy, "inet underpass_other_2d0").contains("iifname \"other-0\" accept"));
    nft(&ends.proxy, "flush ruleset");
    wait::until("both are put back", || tables(&ends.proxy).len() == 2);

    // The same addresses under another name: what the old one would refuse is not to be refused.
    assert_eq!(second.stop(), 0);
    assert_eq!(tables(&ends.proxy).len(), 2, "it outlives its daemon");
    let second = Daemon::start(&ends.proxy, &elsewhere("other1"));
    let mut names = tables(&ends.proxy);
    names.sort();
    assert_eq!(names, ["inet underpass_other1", TABLE]);

    let open = ends.proxy_calling(ENDPOINT).set("fail_closed", "false");
    first.reload(&open);
    assert_eq!(tables(&ends.proxy), ["inet underpass_other1"]);
    assert_eq!(first.status().part("guard").text("state"), "off");
    first.reload(&ends.proxy_calling(ENDPOINT));
    assert_eq!(first.status().part("guard").text("state"), "on");
    assert_eq!((first.stop(), second.stop()), (0, 0));
    assert_eq!(tables(&ends.proxy).len(), 2);
    assert_eq!(Daemon::start(&ends.proxy, &open).stop(), 0);
    underpass::command(&ends.proxy).args(["close", "--undo"]).run();
    assert_eq!(tables(&ends.proxy), Vec::<String>::new());
}

/// The cable of [`Ends::wired`].
#[test]
fn a_table_follows_reloads_and_stays_as_it_was_after_one_that_fails() {
    let ends = Ends::wired("guard-reload");
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    let before = content(&ends.proxy, TABLE);
    let wider = |addresses: &str, prefix: &str| {
        let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips([prefix]);
        ends.proxy_interface().set("addresses", addresses).peer(peer)
    };
    let addresses = "[\"10.77.0.1/24\", \"fd77::1/64\", \"10.78.0.1/24\"]";
    ends.proxy.ip("route add 10.98.0.0/16 dev wan");
    for refused in [wider("[\"10.1.0.1/24\"]", "10.99.0.0/16"), wider(addresses, "10.98.0.0/16")] {
        assert_ne!(proxy.try_reload(&refused).code(), 0);
        assert_eq!(content(&ends.proxy, TABLE), before);
    }
    proxy.reload(&wider(addresses, "10.99.0.0/16"));
    let after = content(&ends.proxy, TABLE);
    assert!(["10.78.0.1", "10.78.0.0/24", "10.99.0.0/16"].iter().all(|added| after.contains(added)), "{after}");
    proxy.reload(&ends.proxy_calling(ENDPOINT));
    assert_eq!(content(&ends.proxy, TABLE), before);
    assert_eq!(proxy.status().part("guard").number("restored"), 0);
}

/// The cable of [`Ends::wired`]. What `nft` would load is what the daemon sets.
#[test]
fn what_close_prints_is_the_table_that_it_sets() {
    let ends = Ends::wired("guard-print");
    let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.99.0.0/16", "10.99.0.0/24", "fd99::/32"]);
    let config = ends.proxy_interface().set("fwmark", "7").peer(peer).write(&ends.proxy);
    let close = || underpass::command(&ends.proxy).args(["close", "--config"]).arg(&config);
    close().run();
    let set = content(&ends.proxy, TABLE);
    let printed = close().arg("--print").run();
    assert!(printed.contains("unreachable 10.99.0.0/16 table 254"), "{printed}");
    nft(&ends.proxy, "flush ruleset");
    ends.proxy.command("nft").args(["-f", "-"]).stdin(printed).run();
    let loaded = content(&ends.proxy, TABLE).replace("\t\tauto-merge\n", "");
    assert_eq!(loaded, set);
}

/// Clients behind the proxy whose source it translates, as containers' are, and existing addresses by marks.
///
/// ```text
///   client ──────────────── proxy ──────────── backend
///     eth0 172.18.0.2/24      br0 172.18.0.1/24
/// ```
#[test]
fn forwarded_clients_with_a_translated_source_and_existing_addresses_by_marks_still_pass() {
    let ends = Ends::wired("guard-pass");
    let client = ends.lab.host("client");
    ends.lab.link(client.port("eth0", ["172.18.0.2/24"]), ends.proxy.port("br0", ["172.18.0.1/24"]));
    client.ip("route add default via 172.18.0.1");
    ends.proxy.forward_packets();
    nft(&ends.proxy, "add table ip nat");
    nft(&ends.proxy, "add chain ip nat postrouting { type nat hook postrouting priority 100; }");
    nft(&ends.proxy, "add rule ip nat postrouting ip saddr 172.18.0.0/24 masquerade");
    // The backend's existing address, which the proxy is to use through the tunnel.
    let marked = |config: Config| config.set("fwmark", "7");
    let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.1.0.2/32"]);
    for host in [&ends.proxy, &ends.backend] {
        host.ip("route add 10.1.0.0/24 dev wan table 7");
        host.ip("rule add fwmark 7 table 7");
    }
    let proxy_peer = ends.proxy_peer().allowed_ips(["10.1.0.1/32"]);
    let backend = Daemon::start(&ends.backend, &marked(ends.backend_interface().peer(proxy_peer)));
    let proxy = Daemon::start(&ends.proxy, &marked(ends.proxy_interface().peer(peer)));
    proxy.wait_for_state("backend", "up");
    probe::ping(&client, BACKEND[0]).assert_all_answered();
    let left_out = proxy.status().part("guard").texts("left_out");
    assert_eq!(left_out, ["10.1.0.2/32: the endpoint 10.1.0.2 of a peer lies in it"]);
    drop(backend);

    // What would go around the tunnel by a route of somebody else's is dropped.
    ends.proxy.ip(&format!("route add {}/32 via 10.1.0.2 dev wan onlink", BACKEND[0]));
    let app = ends.backend.run(|| UdpSocket::bind(("0.0.0.0", 7070)).unwrap());
    app.set_nonblocking(true).unwrap();
    let sender = ends.proxy.run(|| UdpSocket::bind((PROXY[0], 0)).unwrap());
    let sent = sender.send_to(b"?", (BACKEND[0], 7070));
    assert!(sent.is_err() && app.recv(&mut [0; 8]).is_err(), "{sent:?}");
}
