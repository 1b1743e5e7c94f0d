//! Daemons that are killed, restarted and replaced under load. The test plays the service manager.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use netns_tests::pump::Pump;
use netns_tests::service::Service;
use netns_tests::service_manager::ServiceManager;
use netns_tests::underpass::{self, Config, Daemon};
use netns_tests::{Host, probe, wait};
use nix::sys::signal::Signal;

use crate::ends::{BACKEND, Ends, PROXY};

const ENDPOINT: &str = "10.1.0.2:51900";
/// Where the load goes: to the backend side, through the tunnel.
const SERVER: &str = "10.77.0.11:7000";
/// Nothing is to stand still for longer, on a machine however busy: there a call of the new daemon may be lost, the next comes a
/// second later, and TCP doubles its waits. The benchmark has the bar.
const LONGEST_STALL: Duration = Duration::from_secs(8);

fn start_both(ends: &Ends, settings: &[(&str, &str)]) -> [Service; 2] {
    let set = |config: Config| settings.iter().fold(config, |config, (key, value)| config.set(key, *value));
    let backend = Service::start(&ends.backend, set(ends.backend_waiting()));
    let proxy = Service::start(&ends.proxy, set(ends.proxy_calling(ENDPOINT)));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    [proxy, backend]
}

fn kill_under_load(name: &str, settings: &[(&str, &str)], kept: &[&str]) {
    let ends = Ends::wired(name);
    let mut sides = start_both(&ends, settings);
    let pump = Pump::start(&ends.proxy, &ends.backend, SERVER.parse().unwrap(), 4);
    pump.wait_for_progress();
    for round in 0..2 {
        for side in &mut sides {
            let number = side.interface_number();
            assert_eq!(side.manager.kept(), kept, "round {round}");
            let at = wait::now();
            side.kill_and_restart();
            eprintln!("  ready after {:?}", at.elapsed());
            pump.wait_for_progress();
            eprintln!("  progress after {:?} {:?}", at.elapsed(), side.daemon.status());
            assert_eq!(side.interface_number(), number, "the interface is the same");
        }
    }
    let pumped = pump.stop();
    eprintln!("{name}: {pumped:?}");
    assert!(pumped.longest_stall < LONGEST_STALL, "{pumped:?}");
}

/// The cable of [`Ends::wired`]; load both ways through the tunnel.
#[test]
fn a_daemon_killed_under_load_comes_back_and_no_connection_breaks() {
    kill_under_load(
        "restart-killed",
        &[("workers", "1")],
        &["handshakes", "handshakes", "listen-0", "listen-0", "tun-0"],
    );
}

/// The cable of [`Ends::wired`]; load both ways through the tunnel.
#[test]
fn a_daemon_of_two_workers_killed_under_load_comes_back_and_no_connection_breaks() {
    let kept = [
        "handshakes",
        "handshakes",
        "lane-1",
        "lane-1",
        "listen-0",
        "listen-0",
        "listen-1",
        "listen-1",
        "tun-0",
        "tun-1",
    ];
    kill_under_load("restart-workers", &[("workers", "2")], &kept);
}

/// The cable of [`Ends::wired`]; load both ways through the tunnel, without offload.
#[test]
fn a_daemon_with_a_plain_device_killed_under_load_comes_back_and_no_connection_breaks() {
    kill_under_load(
        "restart-plain",
        &[("device", "\"plain\"")],
        &["handshakes", "handshakes", "listen-0", "listen-0", "tun-0"],
    );
}

/// A program that can be replaced, beside the configuration.
fn own_program(host: &Host) -> PathBuf {
    let path = host.directory().join("underpass");
    underpass::install(&path);
    path
}

/// Whether a process runs the program that lies on disk.
fn runs(pid: u32, path: &PathBuf) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap() == *path
}

/// The cable of [`Ends::wired`]; load both ways through the tunnel. No service manager: the daemons hand their descriptors on
/// to themselves.
#[test]
fn a_daemon_is_upgraded_in_place_under_load_and_no_connection_breaks() {
    let ends = Ends::wired("upgrade");
    let programs = [&ends.proxy, &ends.backend].map(own_program);
    let set = |config: Config, side: usize| config.set("workers", "2").program(programs[side].clone());
    let mut backend = Daemon::start(&ends.backend, &set(ends.backend_waiting(), 1));
    let mut proxy = Daemon::start(&ends.proxy, &set(ends.proxy_calling(ENDPOINT), 0));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let pump = Pump::start(&ends.proxy, &ends.backend, SERVER.parse().unwrap(), 4);
    for (daemon, program) in [&mut proxy, &mut backend].into_iter().zip(&programs) {
        let (host, pid) = (daemon.process().host().clone(), daemon.process().pid());
        pump.wait_for_progress();
        underpass::install(program);
        assert!(!runs(pid, program));
        let said = host.command(program).arg("restart").run();
        assert!(said.contains(&format!("process {pid}")), "{said}");
        assert!(runs(pid, program));
        pump.wait_for_progress();

        underpass::install(program);
        daemon.process().signal(Signal::SIGUSR2);
        wait::until("the signal does the same", || runs(pid, program));
        pump.wait_for_progress();
    }
    let pumped = pump.stop();
    eprintln!("upgrade: {pumped:?}");
    assert!(pumped.longest_stall < LONGEST_STALL, "{pumped:?}");
}

/// The cable of [`Ends::wired`].
#[test]
fn a_program_or_configuration_that_is_no_good_does_not_end_the_running_daemon() {
    let ends = Ends::wired("restart-refused");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let program = own_program(&ends.proxy);
    let config = ends.proxy_calling(ENDPOINT).program(program.clone());
    let mut proxy = Daemon::start(&ends.proxy, &config);
    let pid = proxy.process().pid();
    let restart = || underpass::command(&ends.proxy).arg("restart").output();
    let goes_on = |proxy: &mut Daemon| {
        probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
        proxy.process().assert_running();
    };

    config.clone().set("mtu", "3").write(&ends.proxy);
    let output = restart();
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("refuses the configuration") && output.stderr.contains("mtu"), "{output:?}");
    goes_on(&mut proxy);
    proxy.process().signal(Signal::SIGUSR2);
    wait::until("the log says why", || proxy.process().log().matches("no restart").count() == 2);
    goes_on(&mut proxy);

    config.write(&ends.proxy);
    fs::remove_file(&program).unwrap();
    let output = restart();
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("can't be started"), "{output:?}");
    goes_on(&mut proxy);

    underpass::install(&program);
    assert_eq!(restart().code(), 0);
    assert!(runs(pid, &program));
    goes_on(&mut proxy);
    assert_eq!(proxy.stop(), 0);
    assert!(!ends.proxy.has_interface("underpass0"));
}

/// The cable of [`Ends::wired`]; the proxy side's configuration changes while its interface stays.
#[test]
fn what_no_longer_fits_the_configuration_is_made_anew() {
    let ends = Ends::wired("restart-changed");
    let [mut proxy, _backend] = start_both(&ends, &[("workers", "2")]);
    let number = proxy.interface_number();
    let peer = || ends.backend_peer().endpoint(ENDPOINT);
    let base = |peer| ends.proxy_interface().set("workers", "2").peer(peer);

    // Other addresses and routes, and another port: the device stays.
    proxy.config = base(peer().allowed_ips(["10.99.0.0/16", "fd99::/32"])).set("listen", "51999");
    proxy.kill_and_restart();
    assert_eq!(proxy.interface_number(), number);
    let log = proxy.daemon.process().log();
    assert!(log.contains("listen-0") && log.contains("is bound to 0.0.0.0:51900"), "{log}");
    assert!(ends.proxy.routes("-4").contains("10.99.0.0/16") && ends.proxy.routes("-6").contains("fd99::/32"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    ends.proxy.ip("route add 10.98.0.0/16 dev underpass0");

    // Without the routes of before. What an operator has added stays.
    proxy.config = base(peer()).set("listen", "51999");
    proxy.kill_and_restart();
    let (v4, v6) = (ends.proxy.routes("-4"), ends.proxy.routes("-6"));
    assert!(!v4.contains("10.99.0.0/16 dev underpass0") && !v6.contains("fd99::/32 dev underpass0"), "{v4}{v6}");
    assert!(v4.contains("10.98.0.0/16"), "{v4}");

    // Other addresses.
    proxy.config = proxy.config.set("addresses", "[\"10.77.0.1/16\"]");
    proxy.kill_and_restart();
    assert_eq!(proxy.interface_number(), number);
    let (v4, v6) = (ends.proxy.routes("-4"), ends.proxy.routes("-6"));
    assert!(
        v4.contains("10.77.0.0/16") && !v4.contains("10.77.0.0/24") && !v6.contains("fd77::/64 dev underpass0"),
        "{v4}{v6}"
    );
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    // Fewer workers serve the lanes that there are.
    proxy.config = base(peer()).set("workers", "1");
    proxy.kill_and_restart();
    assert_eq!(proxy.interface_number(), number);
    let workers = proxy.daemon.status().interface().part("workers");
    assert_eq!((workers.number("number"), workers.number("lanes")), (1, 2));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    // More need another device.
    proxy.config = base(peer()).set("workers", "3");
    proxy.kill_and_restart();
    assert_ne!(proxy.interface_number(), number);
    let queues = proxy.manager.kept().into_iter().filter(|name| name.starts_with("tun-"));
    assert_eq!(queues.collect::<Vec<_>>(), ["tun-0", "tun-1", "tun-2"]);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    assert_eq!(proxy.daemon.drops("unknown_peer"), 0);
}

/// The cable of [`Ends::wired`]; the manager gives the proxy side what no daemon of ours has left.
#[test]
fn a_strangers_descriptors_are_refused_by_name() {
    let ends = Ends::wired("restart-strangers");
    let _backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let manager = ServiceManager::new(&ends.proxy);
    manager.keep("tun-0", File::open("/dev/null").unwrap());
    manager.keep("listen-0", ends.proxy.run(|| TcpListener::bind("127.0.0.1:0")).unwrap());
    manager.keep("stored", File::open("/dev/null").unwrap());
    let mut proxy = Service::start_under(manager, ends.proxy_calling(ENDPOINT));
    let log = proxy.daemon.process().log();
    for reason in ["it is no TUN queue", "the interface that it belongs to is made anew", "nothing has that name"] {
        assert!(log.contains(reason), "{reason}:\n{log}");
    }
    assert_eq!(proxy.manager.kept(), ["handshakes", "handshakes", "listen-0", "listen-0", "tun-0"]);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    // And a device that somebody deleted while no daemon ran.
    proxy.kill();
    ends.proxy.ip("link del underpass0");
    proxy.start_again();
    assert!(proxy.daemon.process().log().contains("its interface has vanished"));
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
}

/// The cable of [`Ends::wired`]; only the proxy side knows where the other is, and sends nothing.
#[test]
fn a_restarted_backend_calls_the_proxy_side_where_it_was() {
    let ends = Ends::wired("restart-memory");
    let (proxy, mut backend) = ends.start_calling(ENDPOINT);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();
    let memory = "/run/underpass/underpass0.peers";
    let remembered = || ends.backend.command("cat").arg(memory).output().stdout.contains("10.1.0.1:51900");
    wait::until("the endpoint is on disk", remembered);
    assert_eq!(ends.backend.command("stat").args(["-c", "%a %u", memory]).run().trim(), "600 0");

    backend.process().signal(Signal::SIGKILL);
    backend.process().wait_for_exit(wait::PATIENCE);
    wait::until("its device is gone", || !ends.backend.has_interface("underpass0"));
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    backend.wait_for_state("proxy", "up");
    probe::ping(&ends.backend, PROXY[0]).assert_all_answered();

    // The same after an end in order, which the proxy side has heard of.
    assert_eq!(backend.stop(), 0);
    wait::until("the proxy side knows", || proxy.status().peer("backend").text("state") == "down");
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    backend.wait_for_state("proxy", "up");
    proxy.wait_for_state("backend", "up");
}

/// The cable of [`Ends::wired`].
#[test]
fn an_interface_outlives_its_daemon_for_as_long_as_the_manager_keeps_it() {
    let ends = Ends::wired("restart-stopped");
    let [mut proxy, backend] = start_both(&ends, &[]);
    let number = proxy.interface_number();
    assert_eq!(proxy.daemon.process().stop().code(), Some(0));
    wait::until("the peer knows", || backend.daemon.status().peer("proxy").text("state") == "down");
    assert_eq!(proxy.interface_number(), number);
    proxy.start_again();
    assert_eq!(proxy.interface_number(), number);
    probe::ping(&ends.proxy, BACKEND[0]).assert_all_answered();

    assert_eq!(proxy.daemon.process().stop().code(), Some(0));
    proxy.manager.forget_everything();
    wait::until("the interface is gone", || !ends.proxy.has_interface("underpass0"));
}

/// One machine: a daemon without traffic.
#[test]
fn an_idle_daemon_shows_that_it_lives() {
    let ends = Ends::wired("watchdog");
    let manager = ServiceManager::new(&ends.proxy).watchdog(Duration::from_millis(200));
    let proxy = Service::start_under(manager, ends.proxy_calling(ENDPOINT).set("workers", "2"));
    wait::until("it has said so several times", || proxy.manager.beats() > 5);
}
