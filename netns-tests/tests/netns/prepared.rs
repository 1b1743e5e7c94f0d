//! A daemon without any privilege, on a TUN that was made for its user beforehand.

use std::fs;
use std::path::Path;

use netns_tests::process::{Command, Process};
use netns_tests::underpass::{self, Config, Daemon};
use netns_tests::{Host, probe, wait};

use crate::ends::{BACKEND, Ends, PROXY};
use crate::guard_table::guard_findings;

const ENDPOINT: &str = "10.1.0.2:51900";
const USER: &str = "nobody";
/// What that user may reach: the laboratory's own directories are root's.
pub(crate) const DIRECTORY: &str = "/run/underpass";
const PROGRAM: &str = "/run/underpass-program";
const SOCKET: &str = "/run/underpass/underpass0.sock";

/// Puts the program, the configuration, the keys and the way to TUN devices where the user can reach them.
pub(crate) fn hand_over(host: &Host, config: &Config) {
    let file = config.write(host);
    let text = fs::read_to_string(file).unwrap().replace(host.directory().to_str().unwrap(), DIRECTORY);
    let file = host.write_file("handed-over.toml", text);
    host.command("install").args(["-d", "-m", "700", "-o", USER, DIRECTORY]).run();
    let key = host.directory().join("underpass0.key");
    host.command("install").args(["-m", "600", "-o", USER]).args([&file, &key]).arg(DIRECTORY).run();
    if !host.command("test").args(["-e", PROGRAM]).output().status.success() {
        host.command("mount").args(["-t", "tmpfs", "none", "/dev/net"]).run();
        host.command("mknod").args(["-m", "666", "/dev/net/tun", "c", "10", "200"]).run();
        host.command("touch").arg(PROGRAM).run();
        host.command("mount").arg("--bind").arg(underpass::program()).arg(PROGRAM).run();
    }
}

/// `underpass run` as a user without a capability, now or ever.
fn unprivileged(host: &Host) -> Command {
    let command = host.command("setpriv").args(["--reuid", USER, "--regid", "nogroup", "--clear-groups"]);
    let command =
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", PROGRAM, "run", "--config"]);
    command.arg(Path::new(DIRECTORY).join("handed-over.toml"))
}

fn ask(host: &Host, command: &str) -> bool {
    host.command(PROGRAM).args([command, "--socket", SOCKET]).output().status.success()
}

pub(crate) fn start(host: &Host) -> Process {
    let mut daemon = unprivileged(host).start("unprivileged");
    wait::until("it answers", || {
        daemon.assert_running();
        ask(host, "status")
    });
    daemon
}

fn capabilities(daemon: &Process) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let lines = status.lines().filter(|line| line.starts_with("Cap") || line.starts_with("Uid"));
    lines.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// As an operator or a container runtime does, for the daemon of [`unprivileged`].
pub(crate) fn prepare(host: &Host, options: &str) {
    host.ip(&format!("tuntap add dev underpass0 mode tun user {USER} {options}"));
    host.ip("link set dev underpass0 mtu 1420 up");
    host.ip("address add 10.77.0.1/24 dev underpass0");
    host.ip("address add fd77::1/64 dev underpass0 nodad");
}

/// The cable of [`Ends::wired`]; the proxy side's daemon is nobody.
#[test]
fn a_daemon_without_any_capability_runs_on_a_device_that_was_made_for_it() {
    for (name, options, settings) in [
        ("prepared", "", [("workers", "1"), ("device", "\"auto\"")]),
        ("prepared-queues", "multi_queue", [("workers", "2"), ("device", "\"offload\"")]),
        ("prepared-plain", "", [("workers", "1"), ("device", "\"plain\"")]),
    ] {
        let ends = Ends::wired(name);
        let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
        prepare(&ends.proxy, options);
        let config = settings.iter().fold(ends.proxy_calling(ENDPOINT), |config, (key, value)| config.set(key, *value));
        hand_over(&ends.proxy, &config);
        for _ in 0..2 {
            let mut daemon = start(&ends.proxy);
            probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
            probe::ping(&ends.backend, PROXY[1]).assert_all_answered();
            let none = "0000000000000000";
            let expected =
                format!("Uid: 65534\nCapInh: {none}\nCapPrm: {none}\nCapEff: {none}\nCapBnd: {none}\nCapAmb: {none}\n");
            assert_eq!(capabilities(&daemon), expected);
            let status = ends.proxy.command(PROGRAM).args(["status", "--json", "--socket", SOCKET]).run();
            assert!(status.contains("\"missing\": null") && status.contains("\"repairs\": 0"), "{status}");
            assert!(ask(&ends.proxy, "reload"), "{}", daemon.log());
            assert!(ask(&ends.proxy, "restart"), "{}", daemon.log());
            probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
            assert_eq!(daemon.stop().code(), Some(0));
            assert!(ends.proxy.has_interface("underpass0"), "it is not the daemon's to take away");
            assert!(!probe::answers(&ends.proxy, BACKEND[0]));
        }
    }
}

/// One machine. What can't be refused for want of a privilege is said, and refused by root beforehand or afterwards.
#[test]
fn what_a_daemon_without_the_privilege_cannot_refuse_is_said_and_close_refuses_it() {
    let ends = Ends::wired("prepared-guard");
    prepare(&ends.proxy, "");
    let config = ends.proxy_calling(ENDPOINT).set("workers", "1");
    hand_over(&ends.proxy, &config);
    let daemon = start(&ends.proxy);
    let status = ends.proxy.command(PROGRAM).args(["status", "--json", "--socket", SOCKET]).run();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["guard"]["state"], "unavailable", "{status}");
    let told = ends.proxy.command(PROGRAM).args(["status", "--socket", SOCKET]).run();
    for text in [&told, &daemon.log()] {
        assert!(text.contains("CAP_NET_ADMIN") && text.contains("underpass close --config"), "{text}");
    }
    let file = config.write(&ends.proxy);
    let found = |outcome: &str| {
        let guard = guard_findings(&ends.proxy, &file);
        assert_eq!(guard.len(), 2, "one for each version of IP");
        assert!(guard.iter().all(|finding| finding["outcome"] == outcome), "{guard:#?}");
        guard.iter().map(|finding| finding["what"].to_string()).collect::<String>()
    };
    assert!(found("failed").contains("a UDP datagram to 10.77.0.1 arrived by another interface"));
    assert!(!ends.proxy.command("nft").args(["list", "tables"]).run().contains("underpass"));
    underpass::command(&ends.proxy).args(["close", "--config"]).arg(&file).run();
    assert!(ends.proxy.command("nft").args(["list", "tables"]).run().contains("inet underpass_underpass0"));
    probe::ping(&ends.proxy, PROXY[0]).assert_all_answered();
    assert!(found("ok").contains("10.77.0.1"));
    assert!(!ends.proxy.has_interface("upverify0"));
}

/// One machine.
#[test]
fn what_the_device_lacks_is_named_with_the_commands_that_add_it() {
    let ends = Ends::new("unprepared");
    ends.proxy.ip(&format!("tuntap add dev underpass0 mode tun user {USER}"));
    let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.99.0.0/16"]);
    hand_over(&ends.proxy, &ends.proxy_interface().peer(peer));
    let output = unprivileged(&ends.proxy).output();
    assert_eq!(output.code(), 4, "{}", output.stderr);
    for command in [
        "ip link set dev underpass0 mtu 1420",
        "ip address add 10.77.0.1/24 dev underpass0",
        "ip address add fd77::1/64 dev underpass0",
        "ip link set dev underpass0 up",
        "ip route add 10.99.0.0/16 dev underpass0 table 254",
    ] {
        assert!(output.stderr.contains(command), "{command}:\n{}", output.stderr);
    }
}

/// One machine, with a device that was made for another user, and one that somebody has open.
#[test]
fn a_device_of_somebody_else_is_left_alone() {
    let ends = Ends::new("others-device");
    ends.proxy.ip("tuntap add dev underpass0 mode tun user daemon");
    hand_over(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    let output = unprivileged(&ends.proxy).output();
    assert_eq!(output.code(), 5, "{}", output.stderr);
    assert!(output.stderr.contains("underpass0 exists already"), "{}", output.stderr);
}
