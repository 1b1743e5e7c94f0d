//! What a running daemon may do, seen from outside, and what its sandbox means for reloads and restarts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use netns_tests::service::Service;
use netns_tests::underpass::{self, Daemon, KeyPair, quote};
use netns_tests::{Host, probe, wait};

use crate::ends::{BACKEND, Ends};

const ENDPOINT: &str = "10.1.0.2:51900";
/// No capability, as `/proc` shows it.
const NONE: &str = "0000000000000000";
/// CAP_NET_ADMIN alone.
const NET_ADMIN: &str = "0000000000001000";
const CAPABILITIES: [&str; 5] = ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"];

/// A field of each thread's `/proc/PID/task/TID/status`.
fn of_threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let value = |status: String| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")).map(str::trim).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {field} in {status}"))
    };
    status.map(value).collect()
}

/// Every thread has these capabilities, no new privileges, and one filter.
#[track_caller]
fn assert_threads(pid: u32, capabilities: &str) {
    let threads = of_threads(pid, "Name").len();
    for set in CAPABILITIES {
        assert_eq!(of_threads(pid, set), vec![capabilities; threads], "{set}");
    }
    for (field, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Seccomp_filters", "1")] {
        assert_eq!(of_threads(pid, field), vec![value; threads], "{field}");
    }
}

#[track_caller]
fn assert_confined(daemon: &mut Daemon) {
    let pid = daemon.process().pid();
    let names = of_threads(pid, "Name");
    assert!(["slow-path", "worker-0"].iter().all(|name| names.iter().any(|other| other == name)), "{names:?}");
    assert_threads(pid, NONE);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(of_threads(pid, "VmLck")[0] != "0 kB", may_lock_memory());
    let sandbox = daemon.status().part("sandbox");
    let lacks = sandbox.texts("lacks");
    assert!(lacks.iter().all(|lack| lack.starts_with("memory is not locked")), "{lacks:?}");
    assert_eq!(lacks.is_empty(), may_lock_memory());
    assert!(sandbox.texts("capabilities").is_empty());
    let privileged = sandbox.part("privileged");
    assert_eq!(privileged.texts("capabilities"), ["CAP_NET_ADMIN"]);
    assert_threads(privileged.number("pid").try_into().unwrap(), NET_ADMIN);
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
fn a_running_daemon_has_no_capability_no_new_privileges_and_a_filter_in_every_thread() {
    let ends = Ends::wired("sandbox");
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let mut proxy = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).set("workers", "2"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_confined(&mut proxy);
    let sandbox = proxy.status().part("sandbox");
    assert!(sandbox.flag("on"));
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
    assert!(of_threads(proxy.process().pid(), "Seccomp").iter().all(|mode| mode == "0"));
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

/// The variable that tells a program, which a sandboxed daemon has started in its own place, that it is in the sandbox.
fn variable_of(daemon: &mut Daemon) -> String {
    let environment = fs::read(format!("/proc/{}/environ", daemon.process().pid())).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    environment.split('\0').find_map(|line| line.strip_prefix("UNDERPASS_SANDBOX=")).unwrap().to_owned()
}

/// One machine; the second daemon is process 1 of a container, whose environment says that process 1 is in the sandbox.
#[test]
fn an_environment_that_claims_the_sandbox_is_not_believed() {
    let ends = Ends::new("forged-sandbox");
    let config = ends.proxy_calling(ENDPOINT);
    let mut honest = Daemon::start(&ends.proxy, &config);
    assert_eq!(honest.ask(&["restart"]).code(), 0);
    wait::until("the restarted daemon answers", || honest.ask(&["status"]).code() == 0);
    let (_, claim) =
        variable_of(&mut honest).split_once(':').map(|(pid, claim)| (pid.to_owned(), claim.to_owned())).unwrap();
    assert_eq!(honest.stop(), 0);

    let command = ends.proxy.command("unshare").args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    let command =
        command.arg(underpass::program()).args(["run", "--allow-root", "--config"]).arg(config.write(&ends.proxy));
    let container = command.env("UNDERPASS_SANDBOX", format!("1:{claim}")).start("contained");
    wait::until("the contained daemon answers", || {
        let status = underpass::command(&ends.proxy).args(["status", "--json"]).output();
        status.status.success() && status.stdout.contains("\"pid\": 1,")
    });
    let children = format!("/proc/{0}/task/{0}/children", container.pid());
    let contained = fs::read_to_string(children).unwrap().trim().to_owned();
    let status = fs::read_to_string(format!("/proc/{contained}/status")).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", &format!("CapEff:\t{NONE}")] {
        assert!(status.lines().any(|found| found == line), "no {line:?} in\n{status}");
    }
}

/// One machine whose kernel counts as much memory as locked as it is allowed to: none.
#[test]
fn where_the_whole_sandbox_is_required_the_daemon_does_not_start_with_less() {
    let ends = Ends::new("required-sandbox");
    let file = ends.proxy_calling(ENDPOINT).set("sandbox", "\"required\"").write(&ends.proxy);
    let without =
        ends.proxy.command("setpriv").args(["--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"]);
    let without = without.args(["prlimit", "--memlock=65536:65536"]).arg(underpass::program());
    let output = without.args(["run", "--allow-root", "--config"]).arg(file).within(wait::PATIENCE).output();
    assert_eq!(output.code(), 4, "{}", output.stderr);
    for words in ["interface.sandbox: the whole sandbox is required", "memory is not locked", "sandbox = true"] {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
    if may_lock_memory() {
        let mut whole = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT).set("sandbox", "\"required\""));
        assert_confined(&mut whole);
    }
}

/// Number of the user that the tests of this file make.
const OWN_USER: &str = "4711";

/// Gives the machine the user that daemons become, by files of its own in the place of the system's.
fn make_user(host: &Host) {
    for (file, line) in [("passwd", "underpass:x:4711:4711::/:/usr/sbin/nologin"), ("group", "underpass:x:4711:")] {
        let system = fs::read_to_string(format!("/etc/{file}")).unwrap();
        let others = system.lines().filter(|line| !line.starts_with("underpass:"));
        let own = host.write_file(file, others.chain([line]).map(|line| format!("{line}\n")).collect::<String>());
        host.command("mount").arg("--bind").arg(own).arg(format!("/etc/{file}")).run();
    }
}

/// Has others find the way to the machine's files, and the configuration and key be the user's.
fn give_files(host: &Host, config: &underpass::Config) {
    let file = config.write(host);
    for directory in host.directory().ancestors().take(2) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).unwrap();
    }
    let key = host.directory().join("underpass0.key");
    host.command("chown").arg("underpass:").args([host.directory(), &file, &key]).run();
}

/// The cable of [`Ends::wired`].
#[test]
fn a_daemon_that_root_starts_becomes_its_own_user() {
    let ends = Ends::wired("own-user");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    make_user(&ends.proxy);
    let config = ends.proxy_calling(ENDPOINT).own_user();
    give_files(&ends.proxy, &config);
    let mut proxy = Daemon::start(&ends.proxy, &config);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let own = [OWN_USER; 4].join("\t");
    for round in 0..2 {
        assert_confined(&mut proxy);
        for field in ["Uid", "Gid"] {
            assert!(of_threads(proxy.process().pid(), field).iter().all(|ids| *ids == own), "{field} in round {round}");
        }
        assert!(of_threads(proxy.process().pid(), "Groups").iter().all(|groups| groups == OWN_USER));
        assert!(!proxy.process().log().contains("may not read"), "{}", proxy.process().log());
        let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.99.0.0/16"]);
        proxy.reload(&ends.proxy_interface().own_user().peer(peer));
        assert_eq!(proxy.ask(&["restart"]).code(), 0, "{}", proxy.process().log());
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    }
    let socket = ends.proxy.command("stat").args(["-c", "%a %u %g", "/run/underpass/underpass0.sock"]).run();
    assert_eq!(socket.trim(), format!("660 {OWN_USER} {OWN_USER}"));
    assert_eq!(proxy.stop(), 0);
    let left = ends.proxy.command("ls").arg("/run/underpass").run();
    assert!(!left.contains("underpass0.sock"), "{left}");
}

/// One machine; the keys are root's.
#[test]
fn what_the_own_user_cannot_read_again_is_named_with_the_command() {
    let ends = Ends::new("own-user-keys");
    make_user(&ends.proxy);
    let config = ends.proxy_calling(ENDPOINT).own_user();
    let mut proxy = Daemon::start(&ends.proxy, &config);
    let key = ends.proxy.directory().join("underpass0.key");
    let command = format!("`chown underpass: {}`", key.display());
    assert!(proxy.process().log().contains(&command), "{}", proxy.process().log());
    let check = underpass::command(&ends.proxy).args(["check", "--config"]).arg(config.write(&ends.proxy)).run();
    assert!(check.contains(&command), "{check}");
    assert_eq!(proxy.try_reload(&config).code(), 3);
}

/// One machine without that user.
#[test]
fn a_daemon_that_root_starts_where_there_is_no_user_for_it_does_not_start_unless_told() {
    let ends = Ends::new("no-user");
    for file in ["passwd", "group"] {
        let system = fs::read_to_string(format!("/etc/{file}")).unwrap();
        let others = system.lines().filter(|line| !line.starts_with("underpass:")).map(|line| format!("{line}\n"));
        let own = ends.proxy.write_file(file, others.collect::<String>());
        ends.proxy.command("mount").arg("--bind").arg(own).arg(format!("/etc/{file}")).run();
    }
    let output = underpass::run_to_the_end(&ends.proxy, &ends.proxy_calling(ENDPOINT).own_user());
    assert_eq!(output.code(), 4, "{}", output.stderr);
    assert!(output.stderr.contains("no user underpass") && output.stderr.contains("--allow-root"), "{}", output.stderr);
    assert!(!ends.proxy.has_interface("underpass0"));
    let mut root = Daemon::start(&ends.proxy, &ends.proxy_calling(ENDPOINT));
    assert!(of_threads(root.process().pid(), "Uid").iter().all(|ids| ids.starts_with('0')));
}

/// The cable of [`Ends::wired`].
#[test]
fn a_daemon_that_drops_its_capabilities_reloads_and_restarts_and_refuses_what_would_need_them() {
    let ends = Ends::wired("no-capabilities");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let config = ends.proxy_calling(ENDPOINT).set("drop_capabilities", "true").set("workers", "2");
    let mut proxy = Daemon::start(&ends.proxy, &config);
    for round in 0..3 {
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        let pid = proxy.process().pid();
        for set in CAPABILITIES {
            let found = of_threads(pid, set);
            assert!(found.iter().all(|found| found == NONE), "{set} in round {round}: {found:?}");
        }
        assert_eq!(proxy.status().part("sandbox").text("privileged"), "");
        proxy.reload(&config.clone().set("refuse", "\"reset\""));
        assert_eq!(proxy.ask(&["restart"]).code(), 0, "{}", proxy.process().log());
    }
    // Fewer workers serve the same device, and as many as before.
    for workers in ["1", "2"] {
        proxy.reload(&config.clone().set("workers", workers));
        assert_eq!(proxy.status().interface().part("workers").number("number").to_string(), workers);
        if workers == "1" {
            assert_eq!(proxy.ask(&["restart"]).code(), 0, "{}", proxy.process().log());
        }
    }
    let peer = ends.backend_peer().endpoint(ENDPOINT).allowed_ips(["10.99.0.0/16"]);
    let interface = ends.proxy_interface().set("drop_capabilities", "true").set("workers", "2");
    let more = interface.peer(peer);
    let reloaded = proxy.try_reload(&more);
    assert_eq!(reloaded.code(), 1, "{}", reloaded.stderr);
    assert!(reloaded.stderr.contains("10.99.0.0/16"), "{}", reloaded.stderr);
    let restarted = proxy.ask(&["restart"]);
    assert_eq!(restarted.code(), 1, "{}", restarted.stdout);
    for words in ["interface.drop_capabilities", "systemctl restart"] {
        assert!(restarted.stderr.contains(words), "{}", restarted.stderr);
    }
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}
