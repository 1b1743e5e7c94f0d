//! Changing the configuration of a daemon that runs, and taking links out of service.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netns_tests::probe::{self, Ping, Pings};
use netns_tests::pump::Pump;
use netns_tests::underpass::{self, Config, Daemon, KeyPair, Peer};
use netns_tests::wait;
use nix::sys::signal::Signal;

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINT: &str = "10.1.0.2:51900";

/// Reloads `times`, with other peers and prefixes around each time; the peer "backend" stays as it is.
fn reload_around(ends: &Ends, proxy: &Daemon, times: usize) {
    let keys: Vec<KeyPair> = (0..4).map(|_| KeyPair::generate(&ends.proxy)).collect();
    for number in 0..times {
        let mut config = ends.proxy_calling(ENDPOINT).set("drain_timeout", format!("{}", number % 3));
        let mut expected = vec!["backend".to_owned()];
        for (other, keys) in keys.iter().enumerate().filter(|(other, _)| (number >> other) & 1 == 0) {
            let (name, address) = (format!("app{other}"), format!("10.77.0.{}", 20 + other));
            let behind = format!("10.{}.{}.0/24", 90 + other, number % 7);
            config = config.peer(Peer::new(&name, &keys.public, [&*address]).allowed_ips([&*behind]));
            expected.push(name);
        }
        proxy.reload(&config);
        assert_eq!(proxy.status().peers(), expected);
    }
}

/// The cable of [`Ends::wired`]; eight TCP connections are full both ways, and every byte is checked.
#[test]
fn fifty_reloads_under_load_break_no_connection_and_change_no_byte() {
    let ends = Ends::wired("reload-load");
    let (proxy, backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let handshakes = [&proxy, &backend].map(|daemon| daemon.status());
    let pump = Pump::start(&ends.proxy, &ends.backend, format!("{}:7000", BACKEND[0]).parse().unwrap(), 8);
    pump.wait_for_progress();
    reload_around(&ends, &proxy, 50);
    pump.wait_for_progress();
    let pumped = pump.stop();
    assert!(pumped.longest_stall < Duration::from_secs(1), "{pumped:?}");
    let after = [proxy.status().peer("backend"), backend.status().peer("proxy")];
    let before = [handshakes[0].peer("backend"), handshakes[1].peer("proxy")];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.number("handshakes"), after.number("handshakes"), "the session did not go on");
        assert_eq!(before.number("latest_handshake"), after.number("latest_handshake"));
    }
}

/// The cable of [`Ends::wired`]; a packet that is lost is not sent again.
#[test]
fn fifty_reloads_lose_not_one_packet() {
    let ends = Ends::wired("reload-loss");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let (done, mut rounds) = (AtomicBool::new(false), vec![]);
    thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let mut rounds: Vec<Pings> = vec![];
            while !done.load(Ordering::Relaxed) {
                rounds.push(Ping::to(BACKEND[0]).count(200).at_once(4).send(&ends.proxy));
            }
            rounds
        });
        reload_around(&ends, &proxy, 50);
        done.store(true, Ordering::Relaxed);
        rounds = pings.join().unwrap();
    });
    assert!(rounds.len() > 3, "{} rounds of pings", rounds.len());
    rounds.iter().for_each(Pings::assert_all_answered);
}

/// The cable of [`Ends::wired`].
#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let ends = Ends::wired("reload-refused");
    let (mut proxy, _backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    let good = fs::read_to_string(&file).unwrap();
    let routes = ends.proxy.routes("-4");
    fs::write(&file, good.replace("[[backend]]", "mtuu = 1400\nworkers = 0\n[[backend]]")).unwrap();

    let output = proxy.ask(&["reload"]);
    let checked = underpass::command(&ends.proxy).args(["check", "--config"]).arg(&file).output();
    assert_eq!((output.code(), checked.code(), output.stdout.as_str()), (3, 3, ""));
    let (said, judged) = (output.stderr, checked.stderr);
    assert_eq!(said.strip_prefix("error: nothing was changed: "), judged.strip_prefix("error: "));
    assert!(said.contains("interface.mtuu") && said.contains("did you mean `mtu`?"), "{said}");

    proxy.process().signal(Signal::SIGHUP);
    let refusals = |proxy: &mut Daemon| proxy.process().log().matches("nothing was changed").count();
    wait::until("the log says it for each of the two", || refusals(&mut proxy) == 2);
    assert!(proxy.process().log().contains("did you mean `mtu`?"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!((proxy.status().peers(), ends.proxy.routes("-4")), (vec!["backend".to_owned()], routes));

    fs::write(&file, good).unwrap();
    let output = proxy.ask(&["reload"]);
    assert_eq!(output.stdout, format!("{} is in effect, nothing was changed\n", file.display()));
}

/// The cable of [`Ends::wired`]; the backend side gets another key, other networks behind it, and another address outside.
#[test]
fn what_has_changed_of_a_peer_takes_effect() {
    let ends = Ends::wired("reload-peer");
    let (proxy, backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    // Networks behind it come and go.
    ends.backend.ip("address add 10.99.0.1/32 dev lo");
    let behind = ["10.99.0.0/16", "fd99::/32"];
    let said = proxy.reload(&ends.proxy_interface().peer(ends.backend_peer().endpoint(ENDPOINT).allowed_ips(behind)));
    assert!(said.contains("backend: allowed_ips"), "{said}");
    probe::ping(&ends.proxy, "10.99.0.1").assert_all_answered();
    assert!(ends.proxy.routes("-6").contains("fd99::/32 dev underpass0"));
    proxy.reload(&ends.proxy_calling(ENDPOINT));
    let (v4, v6) = (ends.proxy.routes("-4"), ends.proxy.routes("-6"));
    assert!(!v4.contains("10.99.0.0/16 dev underpass0") && !v6.contains("fd99::/32 dev underpass0"), "{v4}{v6}");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    // It is found at another address.
    ends.backend.ip("address add 10.1.0.3/24 dev wan");
    let said = proxy.reload(&ends.proxy_calling("10.1.0.3:51900"));
    assert!(said.contains("backend: endpoint"), "{said}");
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let endpoint = proxy.status().peer("backend").endpoint();
    assert_eq!(endpoint, Some("10.1.0.3:51900".parse().unwrap()));

    // It has another key, of which nobody was told before.
    let new = KeyPair::generate(&ends.backend);
    backend.reload(&ends.backend_waiting().private_key(&new));
    assert_eq!(backend.status().interface().text("public_key"), new.public);
    let peer = Peer::new("backend", &new.public, BACKEND).endpoint(ENDPOINT);
    let said = proxy.reload(&ends.proxy_interface().peer(peer));
    assert!(said.contains("backend: public_key"), "{said}");
    wait::until("it is met by its new key", || probe::answers(&ends.proxy, BACKEND[0]));
    assert_eq!(proxy.status().peer("backend").text("public_key"), new.public);
}

/// The cable of [`Ends::wired`]; both sides switch to another key of the proxy side's at once, and sessions hide it still.
#[test]
fn a_reload_that_cuts_peers_off_says_so() {
    let ends = Ends::wired("reload-cut-off");
    let (mut proxy, mut backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let new = KeyPair::generate(&ends.proxy);
    let said = proxy.reload(&ends.proxy_calling(ENDPOINT).private_key(&new));
    assert!(said.contains("look again") && said.contains("previous_private_key_file = "), "{said}");
    assert!(said.contains(&ends.proxy_keys.public) && said.contains(&new.public), "{said}");
    assert!(proxy.process().log().contains("previous_private_key_file = "));
    let said = backend.reload(&ends.backend_interface().peer(Peer::new("proxy", &new.public, PROXY)));
    assert!(said.contains(&format!("next_public_key = \"{}\"", new.public)), "{said}");
    assert!(backend.process().log().contains("next_public_key = "));
}

/// The cable of [`Ends::wired`]; the steps of docs/configuration.md, "Changing keys", without a restart.
#[test]
fn a_key_is_changed_without_a_new_session_while_all_are_told_in_turn() {
    let ends = Ends::wired("reload-keys");
    let (proxy, backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let new = KeyPair::generate(&ends.proxy);
    backend.reload(&ends.backend_interface().peer(ends.proxy_peer().next_public_key(&new.public)));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let changed = ends.proxy_calling(ENDPOINT).private_key(&new);
    proxy.reload(&changed.clone().previous_private_key(&ends.proxy, &ends.proxy_keys));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    backend.reload(&ends.backend_interface().peer(Peer::new("proxy", &new.public, PROXY)));
    probe::ping(&ends.backend, PROXY[0]).assert_all_answered();
    proxy.reload(&changed);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.status().interface().text("public_key"), new.public);
    assert_eq!(backend.status().peer("proxy").text("public_key"), new.public);
    assert_eq!(proxy.status().peer("backend").number("handshakes"), 1);
}

/// The cable of [`Ends::wired`]; the proxy side gets other tunnel addresses, and a firewall mark.
#[test]
fn what_has_changed_of_the_interface_takes_effect() {
    let ends = Ends::wired("reload-interface");
    let (proxy, backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    // Of the same networks as before, which the kernel would take away with the first address.
    let addresses = ["10.77.0.2", "fd77::2"];
    let moved = ends.proxy_calling(ENDPOINT).set("addresses", "[\"10.77.0.2/24\", \"fd77::2/64\"]");
    assert!(proxy.reload(&moved).contains("interface.addresses"));
    backend.reload(&ends.backend_interface().peer(Peer::new("proxy", &ends.proxy_keys.public, addresses)));
    ends.proxy.wait_for_ipv6_addresses();
    for (proxy, backend) in addresses.iter().zip(BACKEND) {
        probe::ping(&ends.proxy, backend).assert_all_answered();
        probe::ping(&ends.backend, proxy).assert_all_answered();
    }
    assert_eq!(proxy.status().interface().texts("addresses"), ["10.77.0.2/24", "fd77::2/64"]);
    let list = ends.proxy.command("ip").args(["address", "show", "dev", "underpass0"]).run();
    assert!(!list.contains("10.77.0.1/") && !list.contains("fd77::1/"), "{list}");

    // One address alone, so that each peer needs a route of its own.
    let alone = ends.proxy_calling(ENDPOINT).set("addresses", "[\"10.77.0.2/32\", \"fd77::2/128\"]");
    proxy.reload(&alone);
    assert!(ends.proxy.routes("-4").contains("10.77.0.11 dev underpass0"), "{}", ends.proxy.routes("-4"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    // Marked datagrams go nowhere here.
    ends.proxy.ip("rule add fwmark 7 blackhole");
    assert!(proxy.reload(&alone.clone().set("fwmark", "7")).contains("interface.fwmark"));
    assert!(!probe::answers(&ends.proxy, BACKEND[0]));
    proxy.reload(&alone);
    wait::until("datagrams pass again", || probe::answers(&ends.proxy, BACKEND[0]));
}

/// The cable of [`Ends::wired`].
#[test]
fn what_needs_a_restart_is_named_each_time_and_left_as_it_is() {
    let ends = Ends::wired("reload-restart");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    let config = ends.proxy_calling(ENDPOINT).set("pin_workers", "true").set("mtu", "1400");
    for _ in 0..2 {
        let said = proxy.reload(&config);
        assert_eq!(needs_restart(&said), ["interface.mtu", "interface.pin_workers"], "{said}");
    }
    assert_eq!(proxy.status().interface().number("mtu"), 1420);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}

/// Keys that need a restart, by what a reload has said.
fn needs_restart(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| line.trim().strip_prefix("needs restart  ")).collect()
}

/// The cable of [`Ends::wired`].
#[test]
fn a_reload_that_needs_more_lanes_says_so_and_changes_nothing() {
    let ends = Ends::wired("reload-lanes");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let with_workers = |workers: &str| ends.proxy_calling(ENDPOINT).set("workers", workers);
    let proxy = Daemon::start(&ends.proxy, &with_workers("1"));
    let workers = || {
        let workers = proxy.status().interface().part("workers");
        (workers.number("number"), workers.number("lanes"), workers.flag("chosen"), workers.text("reason"))
    };
    let before = (1, 1, false, "configured".to_owned());
    assert_eq!(workers(), before);
    for _ in 0..2 {
        assert_eq!(needs_restart(&proxy.reload(&with_workers("2"))), ["interface.workers"]);
        assert_eq!(workers(), before);
    }
    let said = proxy.reload(&with_workers("\"auto\""));
    assert!(said.contains("interface.workers") && needs_restart(&said).is_empty(), "{said}");
    assert_eq!(workers(), (1, 1, true, "there is one lane".to_owned()));
    with_workers("2").write(&ends.proxy);
    assert_eq!(proxy.ask(&["restart"]).code(), 0);
    assert_eq!(workers(), (2, 2, false, "configured".to_owned()));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}

/// The cable of [`Ends::wired`]. The side that calls moves from port to port while four TCP connections are full both ways,
/// with one worker and with two; then the side that is called is called elsewhere.
#[test]
fn where_a_daemon_listens_is_changed_and_no_connection_breaks() {
    for workers in ["1", "2"] {
        let ends = Ends::wired("reload-listen");
        let backend = Daemon::start(&ends.backend, &ends.backend_waiting().set("workers", workers));
        let calling = |listen: &str| ends.proxy_calling(ENDPOINT).set("workers", workers).set("listen", listen);
        let proxy = Daemon::start(&ends.proxy, &calling("51900"));
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        let pump = Pump::start(&ends.proxy, &ends.backend, format!("{}:7000", BACKEND[0]).parse().unwrap(), 4);
        pump.wait_for_progress();
        for port in 51910..51915 {
            let said = proxy.reload(&calling(&format!("[\"10.1.0.1:{port}\", \"[::]:51900\"]")));
            assert!(said.contains("interface.listen"), "{said}");
            let expected = [format!("10.1.0.1:{port}"), "[::]:51900".to_owned()];
            assert_eq!(proxy.status().interface().texts("listen"), expected);
            let seen = format!("10.1.0.1:{port}");
            wait::until("the backend side has followed", || backend.status().peer("proxy").text("endpoint") == seen);
            pump.wait_for_progress();
        }
        let pumped = pump.stop();
        assert!(pumped.longest_stall < Duration::from_secs(1), "{pumped:?}");
        assert_eq!(proxy.status().peer("backend").number("handshakes"), 1, "the session did not go on");

        backend.reload(&ends.backend_waiting().set("workers", workers).set("listen", "[\"10.1.0.2:51950\"]"));
        proxy.reload(&ends.proxy_calling("10.1.0.2:51950").set("workers", workers).set("listen", "51900"));
        wait::until("the link is up again", || probe::answers(&ends.proxy, BACKEND[0]));
        assert!(!ends.backend.command("ss").args(["-Huln"]).run().contains(":51900"), "the old port is closed");
    }
}

/// The cable of [`Ends::wired`].
#[test]
fn an_address_that_cannot_be_listened_on_changes_nothing() {
    let ends = Ends::wired("reload-taken");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let _other = ends.proxy.run(|| UdpSocket::bind("10.1.0.1:51999").unwrap());
    for (listen, reason) in [
        ("51999", "UDP port 51999 of 0.0.0.0 is taken"),
        ("[\"10.9.9.9:51900\"]", "10.9.9.9:51900 can't be opened beside 0.0.0.0:51900"),
        ("[\"10.9.9.9:51999\"]", "this host does not have the address that it is to listen on, 10.9.9.9"),
    ] {
        let output = proxy.try_reload(&ends.proxy_calling(ENDPOINT).set("listen", listen).set("fwmark", "7"));
        assert_eq!(output.code(), 1, "{output:?}");
        let said = output.stderr;
        assert!(said.contains(&format!("interface.listen: {reason}")), "{said}");
        assert!(said.trim_end().ends_with("nothing was changed"), "{said}");
        assert_eq!(proxy.status().interface().texts("listen"), ["0.0.0.0:51900", "[::]:51900"]);
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    }
}

/// The cable of [`Ends::wired`]; somebody else's route stands in the way of the last of several changes.
#[test]
fn what_the_kernel_refuses_is_taken_back() {
    let ends = Ends::wired("reload-conflict");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    ends.proxy.ip("route add 10.99.0.0/16 dev wan");
    let addresses = || ends.proxy.command("ip").args(["address", "show", "dev", "underpass0"]).run();
    let before = (ends.proxy.routes("-4"), ends.proxy.routes("-6"), addresses());
    let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.98.0.0/16", "fd98::/32", "10.99.0.0/16"]);
    let config = ends.proxy_interface().set("addresses", "[\"10.77.0.1/24\", \"fd77::1/64\", \"10.66.0.1/24\"]");
    let output = proxy.try_reload(&config.peer(peer));
    assert_eq!(output.code(), 1, "{output:?}");
    let said = output.stderr;
    assert!(said.contains("10.99.0.0/16 exists already through interface wan"), "{said}");
    assert!(said.trim_end().ends_with("nothing was changed"), "{said}");
    assert_eq!((ends.proxy.routes("-4"), ends.proxy.routes("-6"), addresses()), before);
    assert_eq!(proxy.status().peer("backend").texts("allowed_ips"), ["10.77.0.11/32", "fd77::11/128"]);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}

/// The cable of [`Ends::wired`].
#[test]
fn a_link_drains_until_that_is_taken_back_whatever_is_reloaded() {
    let ends = Ends::wired("drain");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.ask(&["drain", "backend"]).stdout, "backend: draining\n");
    let status = proxy.status().peer("backend");
    assert_eq!((status.text("state").as_str(), status.text("reason").as_str()), ("draining", "drained"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    let renamed = Peer::new("app1", &ends.backend_keys.public, BACKEND).endpoint(ENDPOINT);
    let said = proxy.reload(&ends.proxy_interface().peer(renamed.clone().persistent_keepalive(25)));
    assert!(said.contains("app1: name, persistent_keepalive"), "{said}");
    assert_eq!(proxy.status().peer("app1").text("state"), "draining");

    let unknown = proxy.ask(&["undrain", "backend"]);
    assert_eq!(unknown.code(), 2);
    assert!(unknown.stderr.contains("no peer \"backend\": the peers are app1"), "{}", unknown.stderr);
    assert_eq!(proxy.ask(&["undrain", "app1"]).stdout, "app1: no longer draining\n");
    assert_eq!(proxy.status().peer("app1").text("state"), "up");

    // Who is removed is forgotten.
    proxy.ask(&["drain", "app1"]);
    let other = Peer::new("other", &KeyPair::generate(&ends.proxy).public, ["10.77.0.12"]);
    proxy.reload(&ends.proxy_interface().peer(other));
    proxy.reload(&ends.proxy_interface().peer(renamed));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.status().peer("app1").text("state"), "up");
}

/// A proxy side that is to drain for a minute before it ends, and a backend side.
fn about_to_drain(name: &str) -> (Ends, Daemon, Daemon) {
    let ends = Ends::wired(name);
    let config: Config = ends.proxy_calling(ENDPOINT).set("drain_timeout", "60");
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &config);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    (ends, proxy, backend)
}

/// The cable of [`Ends::wired`].
#[test]
fn told_to_end_it_drains_while_packets_pass_and_ends_when_none_do() {
    let (ends, mut proxy, backend) = about_to_drain("drain-end");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pings = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
                wait::pass(Duration::from_millis(100));
            }
        });
        proxy.process().signal(Signal::SIGTERM);
        proxy.wait_for_state("backend", "draining");
        let refused = proxy.ask(&["reload"]);
        assert!(refused.code() == 1 && refused.stderr.contains("about to end"), "{refused:?}");
        wait::holds_during(Duration::from_secs(4), "it goes on while packets pass", || {
            proxy.process().exit_status().is_none()
        });
        done.store(true, Ordering::Relaxed);
        pings.join().unwrap();
    });
    assert_eq!(proxy.process().wait_for_exit(Duration::from_secs(10)).code(), Some(0));
    wait::until("the backend side was told", || backend.status().peer("proxy").text("reason") == "goodbye");
}

/// The cable of [`Ends::wired`].
#[test]
fn told_to_end_a_second_time_it_does_not_wait() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let (_ends, mut proxy, _backend) = about_to_drain("drain-twice");
        proxy.process().signal(Signal::SIGTERM);
        proxy.wait_for_state("backend", "draining");
        proxy.process().signal(second);
        assert_eq!(proxy.process().wait_for_exit(Duration::from_secs(1)).code(), Some(0));
    }
}

/// One machine, with a service manager's socket.
#[test]
fn a_service_manager_is_told_of_a_reload_and_of_its_end() {
    let ends = Ends::new("reload-notify");
    let manager = ends.proxy.directory().join("notify");
    let socket = UnixDatagram::bind(&manager).unwrap();
    socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let next = || {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).expect("a message in time");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let until = |line: &str| while !next().starts_with(line) {};
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    let command = underpass::command(&ends.proxy)
        .args(["run", "--allow-root", "--config"])
        .arg(&file)
        .env("NOTIFY_SOCKET", &manager);
    let daemon = command.start("underpass");
    until("READY=1\n");
    for outcome in ["Packets flow", "Packets flow; the last reload was refused, see the log"] {
        daemon.signal(Signal::SIGHUP);
        let message = next();
        assert!(message.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{message}");
        assert_eq!(next(), format!("READY=1\nSTATUS={outcome}"));
        fs::write(&file, "role = 1").unwrap();
    }
    daemon.signal(Signal::SIGTERM);
    until("STOPPING=1\n");
}
