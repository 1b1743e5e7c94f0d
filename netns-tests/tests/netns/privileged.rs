//! The privileged process: what it does for its daemon, and how it ends.

use std::fs;

use netns_tests::service::Service;
use netns_tests::underpass::{self, Daemon};
use netns_tests::{probe, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ends::{BACKEND, Ends};

const ENDPOINT: &str = "10.1.0.2:51900";

/// The number of the daemon's privileged process.
fn privileged_of(daemon: &Daemon) -> u32 {
    daemon.status().part("sandbox").part("privileged").number("pid").try_into().unwrap()
}

/// Set until it is gone, or only waits for its parent to notice.
fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The cable of [`Ends::wired`]; ports below 1024, a mark, and buffers beyond the system's limit.
#[test]
fn a_daemon_without_capabilities_is_given_what_a_changed_configuration_needs() {
    let ends = Ends::wired("privileged");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let at_first = ends.proxy_calling(ENDPOINT).set("listen", "443").health("http", "\"127.0.0.1:80\"");
    let proxy = Service::start(&ends.proxy, at_first.clone());
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let (privileged, number) = (privileged_of(&proxy.daemon), proxy.interface_number());
    // Where the other side has to learn a new port, a round trip is lost.
    let answers = || wait::until("the backend answers", || probe::answers(&ends.proxy, BACKEND[0]));
    let sockets = |options: &str| ends.proxy.command("ss").args(["-nH", "-m", "-e"]).arg(options).run();

    let moved = at_first.set("listen", "444");
    proxy.daemon.reload(&moved);
    answers();
    let listening = sockets("-ul");
    assert!(listening.contains(":444 ") && !listening.contains(":443 "), "{listening}");
    // The kernel counts twice what it was asked for.
    assert!(listening.contains("rb16777216") && listening.contains("rb2097152"), "{listening}");

    let marked = moved.set("fwmark", "7");
    proxy.daemon.reload(&marked);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(sockets("-ul").matches("fwmark:0x7").count(), 4, "{}", sockets("-ul"));

    marked.set("workers", "2").set("mtu", "1300").set("fwmark", "8").write(&ends.proxy);
    let restarted = proxy.daemon.ask(&["restart"]);
    assert_eq!(restarted.code(), 0, "{}", restarted.stderr);
    answers();
    assert_ne!(proxy.interface_number(), number, "the device is another one");
    let device = ends.proxy.command("ip").args(["link", "show", "dev", "underpass0"]).run();
    assert!(device.contains("mtu 1300"), "{device}");
    assert!(sockets("-ul").contains("fwmark:0x8"), "{}", sockets("-ul"));
    assert!(sockets("-tl").contains("127.0.0.1:80 "), "{}", sockets("-tl"));
    assert!(proxy.daemon.status().part("sandbox").texts("capabilities").is_empty());
    assert_eq!(privileged_of(&proxy.daemon), privileged, "it is the same, started anew");
}

/// The cable of [`Ends::wired`].
#[test]
fn a_daemon_goes_on_without_its_privileged_process_and_says_so() {
    let ends = Ends::wired("privileged-gone");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let mut proxy = Service::start(&ends.proxy, ends.proxy_calling(ENDPOINT));
    let privileged = privileged_of(&proxy.daemon);
    // It has no opinion on how to end, as long as its daemon is there.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(privileged.try_into().unwrap()), signal).unwrap();
    }
    let peer = || ends.backend_peer().endpoint(ENDPOINT);
    proxy.daemon.reload(&ends.proxy_interface().peer(peer().allowed_ips(["10.98.0.0/16"])));
    assert!(ends.proxy.routes("-4").contains("10.98.0.0/16"));

    kill(Pid::from_raw(privileged.try_into().unwrap()), Signal::SIGKILL).unwrap();
    wait::until("the daemon says so", || {
        proxy.daemon.process().log().contains("the privileged process has ended")
            && proxy.daemon.status().part("guard").text("state") == "unavailable"
    });
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let refused = proxy.daemon.try_reload(&ends.proxy_interface().peer(peer().allowed_ips(["10.99.0.0/16"])));
    assert_eq!(refused.code(), 1, "{}", refused.stderr);
    for words in ["the privileged process does not answer", "by its service manager", "nothing was changed"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    proxy.config.write(&ends.proxy);
    assert_eq!(proxy.daemon.ask(&["restart"]).code(), 0, "{}", proxy.daemon.process().log());
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    proxy.kill_and_restart();
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.daemon.status().part("guard").text("state"), "on");
}

/// One machine.
#[test]
fn the_privileged_process_ends_with_its_daemon_however_that_ends() {
    let ends = Ends::new("privileged-ends");
    let config = ends.proxy_calling(ENDPOINT);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut daemon = Daemon::start(&ends.proxy, &config);
        let privileged = privileged_of(&daemon);
        assert!(is_alive(privileged));
        daemon.process().signal(signal);
        wait::until("the privileged process has ended", || !is_alive(privileged));
        drop(daemon);
    }
    let by_hand = underpass::command(&ends.proxy).args(["privileged", "--config"]).arg(config.write(&ends.proxy));
    let output = by_hand.output();
    assert_eq!(output.code(), 2, "{}", output.stderr);
    assert!(output.stderr.contains("started by `underpass run`"), "{}", output.stderr);
}
