//! `underpass verify` finds what is wrong with an installation, and nothing where nothing is.

use std::net::TcpListener;
use std::path::Path;

use netns_tests::process::Output;
use netns_tests::underpass::{self, Daemon, KeyPair, Peer};
use netns_tests::{Host, wait};
use serde_json::Value;

use crate::ends::{BACKEND, Ends};

const ENDPOINT: &str = "10.1.0.2:51900";
const PORT: u16 = 8080;

/// The app that is verified, listening at one address.
fn app(host: &Host, address: &str) -> TcpListener {
    // A process that was forked while the one before was open has a copy of it until it executes its program.
    wait::value("the port is free", || host.run(|| TcpListener::bind((address, PORT))).ok())
}

/// What is found of the proxy side, with the file that its daemon runs by or another one.
#[track_caller]
fn verify(host: &Host, file: &Path) -> (Output, Vec<Value>) {
    verify_port(host, file, &format!("backend:{PORT}"))
}

#[track_caller]
fn verify_port(host: &Host, file: &Path, port: &str) -> (Output, Vec<Value>) {
    let command = underpass::command(host).args(["verify", "--json", "--timeout", "1", "--port", port]);
    let output = command.arg("--config").arg(file).output();
    let report: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr));
    (output, report["findings"].as_array().expect("findings are a list").clone())
}

/// The checks that have failed, with what was found.
fn failed(findings: &[Value]) -> Vec<(String, String)> {
    with_outcome(findings, "failed")
}

/// The checks of the peer that are to be looked at: what the laboratory's clock is, is not the peer's.
fn warned(findings: &[Value]) -> Vec<(String, String)> {
    with_outcome(findings, "warning").into_iter().filter(|(check, _)| check != "clock").collect()
}

fn with_outcome(findings: &[Value], outcome: &str) -> Vec<(String, String)> {
    let found = findings.iter().filter(|finding| finding["outcome"] == outcome);
    found
        .map(|finding| (finding["check"].as_str().unwrap().to_owned(), finding["what"].as_str().unwrap().to_owned()))
        .collect()
}

/// The cable of [`Ends::wired`].
#[test]
fn verify_finds_an_app_that_can_be_reached_around_the_tunnel() {
    let ends = Ends::wired("verify-app");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    proxy.wait_for_state("backend", "up");
    wait::until("the path is known", || proxy.status().peer("backend").number("path_mtu") == 1420);
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);

    let inside = BACKEND.map(|address| app(&ends.backend, address));
    let (output, findings) = verify(&ends.proxy, &file);
    assert_eq!((failed(&findings), output.code()), (vec![], 0));
    let of =
        |check: &str| findings.iter().filter(|finding| finding["check"] == check && finding["outcome"] == "ok").count();
    assert_eq!(
        (of("port"), of("plaintext"), of("link"), of("path_mtu"), of("route"), of("endpoint"), of("daemon")),
        (2, 1, 1, 1, 2, 1, 1)
    );

    drop(inside);
    let everywhere = app(&ends.backend, "::");
    let (output, findings) = verify(&ends.proxy, &file);
    let expected = format!("10.1.0.2:{PORT} answers in the clear, around the tunnel");
    assert_eq!((failed(&findings), output.code()), (vec![("plaintext".to_owned(), expected)], 8));

    drop(everywhere);
    let (output, findings) = verify(&ends.proxy, &file);
    let checks: Vec<String> = failed(&findings).into_iter().map(|(check, _)| check).collect();
    assert_eq!((checks, output.code()), (vec!["port".to_owned(), "port".to_owned()], 8));
}

/// The cable of [`Ends::wired`].
#[test]
fn verify_finds_another_route_another_configuration_and_a_daemon_that_is_gone() {
    let ends = Ends::wired("verify-route");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    proxy.wait_for_state("backend", "up");
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    let _app = BACKEND.map(|address| app(&ends.backend, address));

    ends.proxy.ip(&format!("route add {}/32 via 10.1.0.2", BACKEND[0]));
    let (_, findings) = verify(&ends.proxy, &file);
    let (check, what) = &failed(&findings)[0];
    assert!(check == "route" && what.contains("leads to wan, not into underpass0"), "{check}: {what}");
    ends.proxy.ip(&format!("route del {}/32 via 10.1.0.2", BACKEND[0]));

    let other = ends.proxy_calling(ENDPOINT).private_key(&KeyPair::generate(&ends.proxy)).write(&ends.proxy);
    let (_, findings) = verify(&ends.proxy, &other);
    let expected = "the daemon runs by something else than this file: its private key".to_owned();
    assert_eq!(failed(&findings), [("configuration".to_owned(), expected)]);

    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    assert_eq!(proxy.stop(), 0);
    let (output, findings) = verify(&ends.proxy, &file);
    assert_eq!((failed(&findings)[0].0.as_str(), output.code()), ("daemon", 8));
}

/// The cable of [`Ends::wired`].
#[test]
fn verify_says_what_to_do() {
    let ends = Ends::wired("verify-text");
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    proxy.wait_for_state("backend", "down");
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    let ask =
        |more: &[&str]| underpass::command(&ends.proxy).args(["verify", "--config"]).arg(&file).args(more).output();
    let output = ask(&[]);
    assert_eq!(output.code(), 8, "{}", output.stdout);
    assert!(
        output.stdout.contains("FAILED   down: no-handshake\n           → is its daemon running"),
        "{}",
        output.stdout
    );
    let output = ask(&["--port", "nobody:80"]);
    assert_eq!(output.code(), 2);
    assert!(output.stderr.contains("has no peer of that name"), "{}", output.stderr);
}

/// The cable of [`Ends::wired`], with nobody at its other end.
#[test]
fn verify_does_not_call_the_path_of_a_dead_link_narrow() {
    let ends = Ends::wired("verify-dead");
    let proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    proxy.wait_for_state("backend", "down");
    assert!((1..1420).contains(&proxy.status().peer("backend").number("path_mtu")), "{:?}", proxy.status());
    let (_, findings) = verify(&ends.proxy, &ends.proxy_calling(ENDPOINT).write(&ends.proxy));
    assert_eq!(warned(&findings), []);
    assert_eq!(failed(&findings)[0], ("link".to_owned(), "down: no-handshake".to_owned()));
}

/// The cable of [`Ends::wired`].
#[test]
fn verify_tells_a_refusal_from_a_leak() {
    let ends = Ends::wired("verify-refused");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    proxy.wait_for_state("backend", "up");
    let file = ends.proxy_calling(ENDPOINT).write(&ends.proxy);
    let _app = BACKEND.map(|address| app(&ends.backend, address));
    ends.proxy.ip(&format!("route add unreachable {}/32", BACKEND[0]));
    let (_, findings) = verify(&ends.proxy, &file);
    let (check, what) = &failed(&findings)[0];
    assert!(
        check == "route" && what.contains("refused here") && what.contains("nothing goes around"),
        "{check}: {what}"
    );
}

/// The cable of [`Ends::wired`], where datagrams to the backend side are routed into the tunnel that they carry.
#[test]
fn verify_calls_a_routing_loop_by_its_name() {
    let ends = Ends::wired("verify-loop");
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    proxy.wait_for_state("backend", "up");
    ends.proxy.ip("route add 10.1.0.2/32 dev underpass0");
    proxy.wait_for_state("backend", "down");
    let (_, findings) = verify(&ends.proxy, &ends.proxy_calling(ENDPOINT).write(&ends.proxy));
    let (check, what) = &failed(&findings)[0];
    assert!(check == "endpoint" && what.starts_with("a routing loop"), "{check}: {what}");
    assert!(findings.iter().all(|finding| !finding["remedy"].to_string().contains("network between")), "{findings:?}");
}

/// The cable of [`Ends::wired`]. The app keeps the address that it has on the network between; what is for that address goes into
/// the tunnel, and the tunnel's own datagrams, which are marked, go out.
#[test]
fn verify_does_not_take_an_existing_address_for_a_leak() {
    let ends = Ends::wired("verify-existing");
    ends.proxy.ip("route add 10.1.0.0/24 dev wan table 100");
    ends.proxy.ip("rule add fwmark 7 table 100 priority 100");
    let backend = Peer::new("backend", &ends.backend_keys.public, [BACKEND[0]]).endpoint(ENDPOINT);
    let config = ends.proxy_interface().set("fwmark", "7").peer(backend.allowed_ips(["10.1.0.2/32"]));
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &config);
    proxy.wait_for_state("backend", "up");
    wait::until("the path is known", || proxy.status().peer("backend").number("path_mtu") == 1420);
    let _app = app(&ends.backend, "10.1.0.2");
    let (output, findings) = verify(&ends.proxy, &config.write(&ends.proxy));
    assert_eq!((failed(&findings), warned(&findings), output.code()), (vec![], vec![], 0));
    let answers = format!("10.1.0.2:{PORT} answers through the tunnel");
    assert!(findings.iter().any(|finding| finding["what"] == answers.as_str()), "{findings:?}");
}

/// ```text
///   proxy ───── backend ───── app 10.30.0.5
/// ```
#[test]
fn verify_finds_an_app_behind_a_gateway() {
    let ends = Ends::wired("verify-gateway");
    let behind = ends.lab.host("app");
    ends.lab.link(ends.backend.port("lan", ["10.30.0.1/24"]), behind.port("lan", ["10.30.0.5/24"]));
    ends.backend.forward_packets();
    behind.ip("route add default via 10.30.0.1");
    let config = ends.proxy_interface().peer(ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.30.0.0/24"]));
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &config);
    proxy.wait_for_state("backend", "up");
    wait::until("the path is known", || proxy.status().peer("backend").number("path_mtu") == 1420);
    let _app = app(&behind, "10.30.0.5");
    let file = config.write(&ends.proxy);
    for (port, answers) in [(format!("10.30.0.5:{PORT}"), 1), (PORT.to_string(), 0)] {
        let (output, findings) = verify_port(&ends.proxy, &file, &port);
        assert_eq!((failed(&findings), warned(&findings), output.code()), (vec![], vec![], 0), "{port}");
        let ok = findings.iter().filter(|finding| finding["check"] == "port" && finding["outcome"] == "ok");
        assert_eq!(ok.count(), answers, "{port}");
    }
    let (output, findings) = verify_port(&ends.proxy, &file, "10.30.0.6:8080");
    assert_eq!((failed(&findings)[0].0.as_str(), output.code()), ("port", 8));
}

/// The cable of [`Ends::wired`]. The proxy side has a wrong endpoint, and the backend side finds it all the same.
#[test]
fn an_endpoint_that_is_wrong_and_works_until_the_next_boot_is_told() {
    let ends = Ends::wired("verify-hidden");
    let right = ends.proxy_calling(ENDPOINT);
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &right);
    proxy.wait_for_state("backend", "up");
    let _app = BACKEND.map(|address| app(&ends.backend, address));
    // Each knows where the other was, and the backend side tells.
    assert_eq!(proxy.stop(), 0);
    let wrong = ends.proxy_calling("10.1.0.77:51900");
    let mut proxy = Daemon::start(&ends.proxy, &wrong);
    assert!(
        proxy.process().log().contains("before the restart the peer was at another endpoint"),
        "{}",
        proxy.process().log()
    );
    assert_eq!(backend.stop(), 0);
    let mut backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    assert!(backend.process().log().contains("no endpoint is configured"), "{}", backend.process().log());
    proxy.wait_for_state("backend", "up");
    wait::until("the path is known", || proxy.status().peer("backend").number("path_mtu") == 1420);
    let (_, findings) = verify(&ends.proxy, &wrong.write(&ends.proxy));
    let warned = warned(&findings);
    assert_eq!((warned.len(), warned[0].0.as_str()), (1, "endpoint"), "{warned:?}");
    assert!(
        warned[0].1.starts_with("10.1.0.2:51900 is in use") && warned[0].1.contains("10.1.0.77:51900"),
        "{warned:?}"
    );
    assert!(proxy.ask(&["status"]).stdout.contains("10.1.0.2:51900 is no configured endpoint"));
    assert_eq!(proxy.status().peer("backend").text("endpoint_source"), "roamed");
    assert_eq!(backend.status().peer("proxy").text("endpoint_source"), "remembered");
}
