//! `underpass verify` finds what is wrong with an installation, and nothing where nothing is.

use std::net::TcpListener;
use std::path::Path;

use netns_tests::process::Output;
use netns_tests::underpass::{self, Daemon, KeyPair};
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
    let command =
        underpass::command(host).args(["verify", "--json", "--timeout", "1", "--port"]).arg(format!("backend:{PORT}"));
    let output = command.arg("--config").arg(file).output();
    let report: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr));
    (output, report["findings"].as_array().expect("findings are a list").clone())
}

/// The checks that have failed, with what was found.
fn failed(findings: &[Value]) -> Vec<(String, String)> {
    let failed = findings.iter().filter(|finding| finding["outcome"] == "failed");
    failed
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
        (of("port"), of("plaintext"), of("link"), of("path_mtu"), of("route"), of("configuration"), of("daemon")),
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
