//! Routes, addresses and rules that somebody changes while the daemon runs: what is the daemon's own comes back, what is an
//! operator's own is told.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use netns_tests::http::Client;
use netns_tests::nginx::NginxApp;
use netns_tests::underpass::{self, Config, Daemon, list};
use netns_tests::{Host, probe, wait};
use serde_json::Value;

use crate::ends::{BACKEND, Ends};

const ENDPOINT: &str = "10.1.0.2:51900";
/// Of a program that looks now and then, the median would lie at half of its interval, which is 10 s.
const SOON: Duration = Duration::from_secs(2);

/// Status code and body of the daemon's HTTP answer.
fn http(host: &Host, path: &str) -> (u16, String) {
    let mut client = Client::connect(host, "127.0.0.1:51902".parse().unwrap()).unwrap();
    let response = client.get(path).unwrap();
    (response.status, response.text())
}

fn agent(host: &Host) -> String {
    underpass::agent_check(host, "backend").unwrap_or_default()
}

/// The cable of [`Ends::wired`], the proxy side with what lies behind the backend side.
fn start(ends: &Ends, behind: &[&str], more: impl Fn(Config) -> Config) -> (Daemon, Daemon) {
    let backend = Daemon::start(&ends.backend, &ends.backend_waiting());
    let proxy = Daemon::start(&ends.proxy, &more(config(ends, behind)));
    proxy.wait_for_state("backend", "up");
    (proxy, backend)
}

fn config(ends: &Ends, behind: &[&str]) -> Config {
    ends.proxy_interface().peer(ends.backend_peer().endpoint(ENDPOINT).allowed_ips(behind.iter().copied()))
}

fn ip_all(host: &Host, commands: &[&str]) {
    commands.iter().for_each(|command| host.ip(command));
}

/// The cable of [`Ends::wired`]. An operator's own routes and rules are left alone, and told in all places.
#[test]
fn traffic_that_is_taken_around_the_tunnel_is_told_within_a_second_until_it_goes_into_it_again() {
    let ends = Ends::wired("diverted");
    let (proxy, _backend) = start(&ends, &[], |config| config);
    ends.proxy.ip("route add default via 10.1.0.2 table 100");
    ends.proxy.ip("-6 route add default via fd01::2 table 100");
    let mut times = Vec::new();
    for (divert, back, told) in [
        ("route add 10.77.0.11 via 10.1.0.2", "route del 10.77.0.11", "10.77.0.11 via 10.1.0.2 dev wan"),
        ("route add 10.77.0.8/29 via 10.1.0.2", "route del 10.77.0.8/29", "10.77.0.11 via 10.1.0.2 dev wan"),
        (
            "route prepend 10.77.0.0/24 via 10.1.0.2",
            "route del 10.77.0.0/24 via 10.1.0.2",
            "10.77.0.11 via 10.1.0.2 dev wan",
        ),
        (
            "rule add to 10.77.0.11 lookup 100",
            "rule del to 10.77.0.11 lookup 100",
            "10.77.0.11 via 10.1.0.2 dev wan table 100",
        ),
        (
            "rule add from 10.77.0.1 lookup 100",
            "rule del from 10.77.0.1 lookup 100",
            "10.77.0.11 from 10.77.0.1 via 10.1.0.2 dev wan table 100",
        ),
        (
            "address add 10.77.0.11/32 dev lo",
            "address del 10.77.0.11/32 dev lo",
            "10.77.0.11 is an address of this machine",
        ),
        ("route add unreachable 10.77.0.11", "route del unreachable 10.77.0.11", "10.77.0.11 is refused"),
        ("-6 route add fd77::11 via fd01::2", "-6 route del fd77::11 via fd01::2", "fd77::11 via fd01::2 dev wan"),
        (
            "-6 route add fd77::/64 via fd01::2 metric 1",
            "-6 route del fd77::/64 via fd01::2 metric 1",
            "fd77::11 via fd01::2 dev wan",
        ),
        (
            "-6 rule add to fd77::11 lookup 100",
            "-6 rule del to fd77::11 lookup 100",
            "fd77::11 via fd01::2 dev wan table 100",
        ),
    ] {
        assert_eq!(agent(&ends.proxy), "up ready 100%", "before: {divert}");
        ends.proxy.ip(divert);
        let since = wait::now();
        let took = wait::time_until(since, divert, || agent(&ends.proxy) == "down #route");
        println!("{took:?}: {divert}");
        times.push(took);
        assert_eq!(http(&ends.proxy, "/readyz").0, 503, "{divert}");
        let status = proxy.status().peer("backend");
        assert_eq!([status.text("state"), status.text("reason")], ["down", "route"], "{divert}");
        assert!(status.text("route").contains(told), "{divert}: {}", status.text("route"));
        let (code, body) = http(&ends.proxy, "/check/backend");
        let check: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((code, check["route"].as_str()), (503, Some(status.text("route").as_str())));
        assert!(http(&ends.proxy, "/metrics").1.contains("underpass_link_route_diverted{peer=\"backend\"} 1"));
        let shown = proxy.ask(&["status"]).stdout;
        assert!(shown.contains(&format!("backend: not into the tunnel: {}", status.text("route"))), "{shown}");
        ends.proxy.ip(back);
        wait::until(back, || agent(&ends.proxy) == "up ready 100%" && http(&ends.proxy, "/readyz").0 == 200);
        assert_eq!(proxy.status().peer("backend").text("route"), "", "{back}");
    }
    times.sort_unstable();
    assert!(times[times.len() / 2] < SOON, "{times:?}");
    let log = proxy.as_ref().log();
    assert!(log.contains("10.77.0.11 via 10.1.0.2 dev wan"), "the log does not name the route:\n{log}");
    BACKEND.iter().for_each(|address| probe::ping(&ends.proxy, address).assert_all_answered());
}

/// The cable of [`Ends::wired`]; two networks lie behind the backend side.
#[test]
fn a_part_of_a_prefix_that_is_taken_around_the_tunnel_degrades_the_link() {
    let ends = Ends::wired("diverted-part");
    let behind = ["10.99.0.0/16", "fd99::/48"];
    let (proxy, _backend) = start(&ends, &behind, |config| config);
    let degraded = |told: &str| {
        wait::until(told, || {
            let status = proxy.status().peer("backend");
            status.text("state") == "degraded" && status.text("reason") == "route" && status.text("route") == told
        });
        assert_eq!(http(&ends.proxy, "/readyz").0, 200);
    };
    for (divert, back, told) in [
        ("route add 10.99.5.0/24 via 10.1.0.2", "route del 10.99.5.0/24", "10.99.5.0/24 via 10.1.0.2 dev wan"),
        ("route replace 10.99.0.0/16 via 10.1.0.2", "route del 10.99.0.0/16", "10.99.0.0/16 via 10.1.0.2 dev wan"),
        (
            "-6 route add fd99:0:0:5::/64 via fd01::2",
            "-6 route del fd99:0:0:5::/64",
            "fd99:0:0:5::/64 via fd01::2 dev wan",
        ),
    ] {
        ends.proxy.ip(divert);
        degraded(told);
        ends.proxy.ip(back);
        proxy.wait_for_state("backend", "up");
    }
    wait::until("the replaced route is back", || set_up(&ends.proxy).contains("10.99.0.0/16"));
    // What the operator means is no fault.
    ends.proxy.ip("route add 10.99.5.0/24 via 10.1.0.2");
    degraded("10.99.5.0/24 via 10.1.0.2 dev wan");
    proxy.reload(&config(&ends, &behind).set("open", list(["10.99.5.0/24"])));
    proxy.wait_for_state("backend", "up");
}

/// The tunnel as `ip` shows it: addresses, destinations of routes to it and of refusals, flags and MTU.
fn set_up(host: &Host) -> BTreeSet<String> {
    let routes = ["-4", "-6"].map(|family| host.routes(family)).concat();
    let ours = routes.lines().filter(|line| line.contains("dev underpass0") || line.contains("proto 151"));
    let destination = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_address = words[0].contains(['.', ':']) || words[0] == "default";
        if is_address { words[0].to_owned() } else { words[..2].join(" ") }
    };
    let mut found: BTreeSet<String> = ours.map(destination).collect();
    let command = || host.command("ip");
    let addresses = command().args(["-oneline", "address", "show", "dev", "underpass0"]).run();
    found.extend(addresses.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned));
    let link = command().args(["-oneline", "link", "show", "dev", "underpass0"]).run();
    found.extend(link.split_whitespace().filter(|word| word.starts_with('<') || *word == "1420").map(str::to_owned));
    found
}

/// The cable of [`Ends::wired`]; two networks lie behind the backend side.
#[test]
fn what_is_the_daemons_own_is_put_back() {
    let ends = Ends::wired("put-back");
    let (proxy, _backend) = start(&ends, &["10.99.0.0/16", "fd99::/48"], |config| config);
    let whole = set_up(&ends.proxy);
    for expected in
        ["10.77.0.1/24", "fd77::1/64", "10.99.0.0/16", "fd99::/48", "unreachable 10.99.0.0/16", "unreachable fd77::/64"]
    {
        assert!(whole.contains(expected), "{expected} is not in {whole:?}");
    }
    let mut repairs = 0;
    for taken in [
        &["route del 10.99.0.0/16 dev underpass0"][..],
        &["-6 route del fd99::/48 dev underpass0"],
        &["route del 10.77.0.0/24 dev underpass0"],
        &["address del 10.77.0.1/24 dev underpass0"],
        &["-6 address del fd77::1/64 dev underpass0"],
        &["link set dev underpass0 down"],
        &["link set dev underpass0 down", "link set dev underpass0 up"],
        &["link set dev underpass0 mtu 1300"],
        &["-4 route flush table all proto 151", "-6 route flush table all proto 151"],
    ] {
        ip_all(&ends.proxy, taken);
        let since = wait::now();
        let took = wait::time_until(since, &taken.join("; "), || set_up(&ends.proxy) == whole);
        println!("{took:?}: {}", taken.join("; "));
        wait::until("it is counted", || proxy.status().part("routes").number("repairs") > repairs);
        repairs = proxy.status().part("routes").number("repairs");
        wait::until("the link is up", || agent(&ends.proxy) == "up ready 100%");
        BACKEND.iter().for_each(|address| probe::ping(&ends.proxy, address).assert_all_answered());
    }
    assert_eq!(proxy.status().part("routes").text("missing"), "");
    let log = proxy.as_ref().log();
    assert!(log.contains("route 10.99.0.0/16"), "the log does not say what was missing:\n{log}");
}

/// The cable of [`Ends::wired`]; somebody removes a route again and again.
#[test]
fn a_fight_over_a_route_is_not_fought_without_end() {
    let ends = Ends::wired("fight");
    let (proxy, _backend) = start(&ends, &["10.99.0.0/16"], |config| config);
    let began = wait::now();
    let fight = "for i in $(seq 400); do ip route del 10.99.0.0/16 dev underpass0 2> /dev/null; done";
    let removed = ends.proxy.command("sh").args(["-c", fight]).output();
    assert!(removed.stderr.is_empty(), "{}", removed.stderr);
    let status = proxy.status().part("routes");
    let allowed = 10 + began.elapsed().as_secs() + 2;
    assert!(
        (1..=allowed).contains(&status.number("repairs")),
        "{} repairs, {allowed} allowed",
        status.number("repairs")
    );
    let lines = proxy.as_ref().log().matches("put back").count() as u64;
    assert!(lines <= allowed, "{lines} lines");
    wait::until("it is there once it is left alone", || set_up(&ends.proxy).contains("10.99.0.0/16"));
    proxy.wait_for_state("backend", "up");
}

/// The cable of [`Ends::wired`]; each of them is an installation that works.
#[test]
fn sound_installations_raise_no_alarm() {
    let mark = |config: Config| config.set("fwmark", "51900");
    let plain = |config: Config| config;
    type Change = fn(Config) -> Config;
    for (number, (behind, more, commands)) in [
        // All traffic, by the guide.
        (
            &["0.0.0.0/0", "::/0"][..],
            mark as Change,
            &[
                "rule add not fwmark 51900 table 51900",
                "rule add table main suppress_prefixlength 0",
                "-6 rule add not fwmark 51900 table 51900",
                "-6 rule add table main suppress_prefixlength 0",
            ][..],
        ),
        // An address of the backend's own network, and a mark that leads its datagrams there.
        (&["10.1.0.2/32"], mark, &["route add 10.1.0.0/24 dev wan table 100", "rule add fwmark 51900 lookup 100"]),
        // The network in which the endpoint lies, inside a wider one.
        (&["10.0.0.0/8"], mark, &[]),
        // What an operator refuses is on nobody's wire; what lies beside a prefix, or is wider, does not matter.
        (
            &["10.99.0.0/16", "10.98.0.0/16"],
            plain,
            &[
                "route add blackhole 10.99.7.0/24",
                "route add 192.168.0.0/16 via 10.1.0.2",
                "route add 10.96.0.0/11 via 10.1.0.2",
                "-6 route add fd00::/8 via fd01::2",
            ],
        ),
        // Other programs' rules and tables.
        (
            &["10.99.0.0/16"],
            plain,
            &[
                "route add default via 10.1.0.2 table 100",
                "route add 10.99.3.0/24 via 10.1.0.2 table 100",
                "rule add fwmark 7 lookup 100",
                "rule add from 172.16.0.0/12 lookup 100",
                "rule add iif lo to 203.0.113.0/24 lookup 100",
            ],
        ),
        // Routes of an operator's own that lead into the tunnel.
        (&["10.99.0.0/16"], plain, &["route add 10.99.3.0/24 dev underpass0", "route add 10.77.0.11 dev underpass0"]),
    ]
    .into_iter()
    .enumerate()
    {
        let ends = Ends::wired(&format!("sound-{number}"));
        let (into_it, beside): (Vec<&str>, Vec<&str>) =
            commands.iter().partition(|command| command.ends_with("underpass0"));
        ip_all(&ends.proxy, &beside);
        let (proxy, _backend) = start(&ends, behind, more);
        ip_all(&ends.proxy, &into_it);
        // Has it look once more, after all of them.
        ends.proxy.ip("route add 203.0.113.0/24 via 10.1.0.2");
        wait::holds_during(Duration::from_millis(500), &format!("installation {number} is sound"), || {
            let status = proxy.status();
            let peer = status.peer("backend");
            peer.text("state") == "up" && peer.text("route").is_empty() && status.part("routes").number("repairs") == 0
        });
        BACKEND.iter().for_each(|address| probe::ping(&ends.proxy, address).assert_all_answered());
    }
}

/// The cable of [`Ends::wired`], with the recipe of `docs/operations.md` for apps that are started first.
#[test]
fn an_app_that_binds_its_tunnel_address_before_the_daemon_starts_serves_through_the_tunnel() {
    let ends = Ends::wired("early-app");
    let addresses: [SocketAddr; 2] =
        [format!("{}:8080", BACKEND[0]), format!("[{}]:8081", BACKEND[1])].map(|at| at.parse().unwrap());
    for address in addresses {
        let bound = ends.backend.run(|| TcpListener::bind(address));
        assert_eq!(bound.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable, "the recipe is not needed");
    }
    ends.backend.set_sysctl("ipv4/ip_nonlocal_bind", "1");
    ends.backend.set_sysctl("ipv6/ip_nonlocal_bind", "1");
    let _apps = addresses.map(|address| NginxApp::start(&ends.backend, address, &format!("early-{}", address.port())));
    let (proxy, _backend) = ends.start_calling(ENDPOINT);
    proxy.wait_for_state("backend", "up");
    for address in addresses {
        let answer = Client::connect(&ends.proxy, address).and_then(|mut client| client.get("/")).unwrap();
        assert_eq!(answer.text(), format!("early-{}", address.port()));
    }
}
