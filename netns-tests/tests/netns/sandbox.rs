//! What a running daemon may do, seen from outside, and what its sandbox means for reloads and restarts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use netns_tests::service::Service;
use netns_tests::underpass::{self, Daemon, KeyPair, quote};
use netns_tests::{Host, probe};

use crate::ends::{BACKEND, Ends};

const ENDPOINT: &str = "10.1.0.2:51900";
/// CAP_NET_ADMIN alone, as `/proc` shows it.
const NET_ADMIN: &str = "0000000000001000";

/// A field of each thread's `/proc/PID/task/TID/status`.
fn of_threads(daemon: &mut Daemon, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process().pid())).unwrap();
    let status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let value = |status: String| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")).map(str::trim).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {field} in {status}"))
    };
    status.map(value).collect()
}

#[track_caller]
fn assert_confined(daemon: &mut Daemon) {
    let threads = of_threads(daemon, "Name").len();
    assert!(threads >= 4, "{threads} threads");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(of_threads(daemon, set), vec![NET_ADMIN; threads], "{set}");
    }
    assert_eq!(of_threads(daemon, "NoNewPrivs"), vec!["1"; threads]);
    assert_eq!(of_threads(daemon, "Seccomp"), vec!["2"; threads]);
    assert_eq!(of_threads(daemon, "Seccomp_filters"), vec!["1"; threads]);
    let pid = daemon.process().pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(of_threads(daemon, "VmLck")[0] != "0 kB", may_lock_memory());
    let lacks = daemon.status().part("sandbox").texts("lacks");
    assert!(lacks.iter().all(|lack| lack.starts_with("memory is not locked")), "{lacks:?}");
    assert_eq!(lacks.is_empty(), may_lock_memory());
}

/// Root may where it has CAP_SYS_RESOURCE, which root of a container or a small machine may lack.
fn may_lock_memory() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() >> 24 & 1 == 1 || limit.matches("unlimited").count() == 2
}

/// The cable of [`Ends::wired`].
#[test]
fn a_running_daemon_has_one_capability_no_new_privileges_and_a_filter_in_every_thread() {
    let ends = Ends::wired("sandbox");
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).set("workers", "2"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_confined(&mut proxy);
    let sandbox = proxy.status().part("sandbox");
    assert!(sandbox.flag("on"));
    assert_eq!(sandbox.texts("capabilities"), ["CAP_NET_ADMIN"]);
    assert_eq!(sandbox.texts("writes"), ["/run/underpass"]);
    assert_eq!(sandbox.texts("reads"), [ends.proxy.directory().to_str().unwrap()]);

    // Reloads and restarts find all that they need, however many: the kernel takes only sixteen sandboxes in one another.
    for round in 0..20 {
        assert_eq!(proxy.ask(&["restart"]).code(), 0, "round {round}:\n{}", proxy.process().log());
    }
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.99.0.0/16"]);
    proxy.reload(&ends.proxy_interface().set("workers", "2").peer(peer));
    assert_confined(&mut proxy);
    drop(backend);
}

/// One machine.
#[test]
fn without_a_sandbox_the_daemon_says_so() {
    let ends = Ends::new("no-sandbox");
    let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).set("sandbox", "false"));
    let sandbox = proxy.status().part("sandbox");
    assert!(!sandbox.flag("on") && sandbox.texts("capabilities").len() > 1);
    assert!(of_threads(&mut proxy, "Seccomp").iter().all(|mode| mode == "0"));
}

/// A key file in a directory that no configuration has named yet.
fn key_elsewhere(host: &Host, key: &str) -> PathBuf {
    let directory = host.directory().join("elsewhere");
    fs::create_dir(&directory).unwrap();
    let file = directory.join("previous.key");
    fs::write(&file, key).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

/// The cable of [`Ends::wired`]; the configuration comes to need what the running daemon has given up.
#[test]
fn what_the_sandbox_does_not_allow_is_refused_by_name_until_the_service_manager_starts_the_daemon_anew() {
    let ends = Ends::wired("sandbox-refuses");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let mut proxy = Service::start(&ends.proxy, ends.proxy_calling(ENDPOINT));
    let key = key_elsewhere(&ends.backend, &KeyPair::generate(&ends.proxy).private);
    let base = proxy.config.clone();
    let elsewhere = base.clone().set("previous_private_key_file", quote(key.to_str().unwrap()));

    let reloaded = proxy.daemon.try_reload(&elsewhere);
    assert_eq!(reloaded.code(), 3);
    let restarted = proxy.daemon.ask(&["restart"]);
    assert_eq!(restarted.code(), 1);
    for said in [&reloaded.stderr, &restarted.stderr] {
        assert!(said.contains(key.to_str().unwrap()) && said.contains("systemctl restart"), "{said}");
    }
    let refused = |config: &underpass::Config, words: &[&str]| {
        config.write(&ends.proxy);
        let output = proxy.daemon.ask(&["restart"]);
        assert_eq!(output.code(), 1, "{}", output.stdout);
        assert!(words.iter().all(|word| output.stderr.contains(word)), "{}", output.stderr);
    };
    let socket = quote(ends.backend.directory().join("control.sock").to_str().unwrap());
    refused(&base.clone().set("control_socket", socket), &["interface.control_socket", "systemctl restart"]);
    refused(&base.clone().health("http", quote("127.0.0.1:8080")), &["TCP port 8080", "systemctl restart"]);
    refused(&base.clone().set("listen", "443"), &["CAP_NET_BIND_SERVICE", "systemctl restart"]);
    refused(&base.set("sandbox", "false"), &["interface.sandbox"]);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    proxy.config = elsewhere;
    proxy.kill_and_restart();
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let directory = key.parent().unwrap().to_str().unwrap().to_owned();
    assert!(proxy.daemon.status().part("sandbox").texts("reads").contains(&directory));
}
