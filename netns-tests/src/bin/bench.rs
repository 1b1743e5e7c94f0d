//! `make bench`: the speed and the cost of underpass beside wireguard-go's and no tunnel's, in one laboratory and one run.
//!
//! ```text
//!   proxy ── router ── backend
//! ```
//!
//! All three paths stand at the same time and are measured in turn, since machines differ and drift: only ratios inside one
//! run mean anything.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Parser;
use netns_tests::probe::{self, Iperf3};
use netns_tests::random::Random;
use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role};
use netns_tests::wireguard::{self, End, WireguardGo};
use netns_tests::{Host, Lab, wait};
use serde_json::{Value, json};

/// Measures underpass, wireguard-go and no tunnel in network namespaces. Needs root.
#[derive(Parser)]
struct Arguments {
    /// How often each path is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement takes, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Prints one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let flows = measure_flows(&arguments);
    let idle = measure_idle();
    let crowd = measure_crowd();
    if arguments.json {
        let report = json!({
            "schema_version": 1,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "tcp_flow": flows.report(),
            "idle_daemon": idle.report(),
            "thousand_peers": crowd.report(),
        });
        println!("{report:#}");
    } else {
        flows.print(&arguments);
        idle.print();
        crowd.print();
    }
}

/// What carries a flow. The order is the order in the table.
const PATHS: [&str; 3] = ["plain", "wireguard-go", "underpass"];

/// Gigabits per second of one TCP flow: one row per path, one column per round.
struct Flows([Vec<f64>; 3]);

/// The three paths between two hosts, standing.
struct Paths {
    proxy: Host,
    servers: [Iperf3; 3],
    _wireguard: [WireguardGo; 2],
    _underpass: [Daemon; 2],
    _lab: Lab,
}

impl Paths {
    fn build() -> Paths {
        let lab = Lab::new("bench");
        let (proxy, router, backend) = (lab.host("proxy"), lab.router("router"), lab.host("backend"));
        lab.link(proxy.port("wan", ["10.1.0.2/24"]), router.port("proxy", ["10.1.0.1/24"]));
        lab.link(backend.port("wan", ["10.2.0.2/24"]), router.port("backend", ["10.2.0.1/24"]));
        proxy.ip("route add default via 10.1.0.1");
        backend.ip("route add default via 10.2.0.1");
        let end = |host, address, endpoint: &str| {
            let endpoint = endpoint.parse().expect("an address and a port");
            End { host, interface: "wg0", address, endpoint }
        };
        let ends = [end(&proxy, "10.78.0.1/24", "10.1.0.2:51820"), end(&backend, "10.78.0.2/24", "10.2.0.2:51820")];
        let wireguard = wireguard::connect(ends);
        let underpass = start_underpass(&proxy, &backend);
        let servers = ["10.2.0.2", "10.78.0.2", "10.77.0.2"].map(|address| Iperf3::at(&backend, address));
        for address in ["10.2.0.2", "10.78.0.2", "10.77.0.2"] {
            probe::ping(&proxy, address).assert_all_answered();
        }
        Paths { proxy, servers, _wireguard: wireguard, _underpass: underpass, _lab: lab }
    }
}

fn start_underpass(proxy: &Host, backend: &Host) -> [Daemon; 2] {
    let [near, far] = [(); 2].map(|()| KeyPair::generate(proxy));
    let caller = Config::new(Role::Proxy, &near, ["10.77.0.1/24"]);
    let called = Peer::new("backend", &far.public, ["10.77.0.2"]).endpoint("10.2.0.2:51900");
    let answerer = Config::new(Role::Backend, &far, ["10.77.0.2/24"]);
    let answerer = answerer.peer(Peer::new("proxy", &near.public, ["10.77.0.1"]));
    [Daemon::start(backend, &answerer), Daemon::start(proxy, &caller.peer(called))]
}

fn measure_flows(arguments: &Arguments) -> Flows {
    let paths = Paths::build();
    let seconds = arguments.seconds.to_string();
    let mut flows = Flows(Default::default());
    for round in 1..=arguments.rounds {
        for ((path, server), measured) in PATHS.iter().zip(&paths.servers).zip(&mut flows.0) {
            let flow = server.send(&paths.proxy, &["-t", &seconds, "-O", "1"]);
            eprintln!("round {round}: {path:13} {:6.2} Gb/s", flow.bits_per_second / 1e9);
            measured.push(flow.bits_per_second / 1e9);
        }
    }
    flows
}

impl Flows {
    fn medians(&self) -> [f64; 3] {
        self.0.each_ref().map(|measured| median(measured))
    }

    /// The bar: at least 1.
    fn ratio_to_wireguard(&self) -> f64 {
        let [_, wireguard, underpass] = self.medians();
        underpass / wireguard
    }

    fn print(&self, arguments: &Arguments) {
        let Arguments { rounds, seconds, .. } = arguments;
        println!("One TCP flow of iperf3 through two daemons, {rounds} rounds of {seconds} s in turn, Gb/s:");
        println!("  {:13} {:>7} {:>9}   rounds", "path", "median", "of plain");
        let medians = self.medians();
        for ((path, measured), median) in PATHS.iter().zip(&self.0).zip(medians) {
            let rounds: Vec<String> = measured.iter().map(|flow| format!("{flow:.2}")).collect();
            println!("  {path:13} {median:7.2} {:9.3}   {}", median / medians[0], rounds.join(" "));
        }
        let ratio = self.ratio_to_wireguard();
        println!("  underpass / wireguard-go = {ratio:.2} (bar: at least 1): {}", verdict(ratio >= 1.0));
    }

    fn report(&self) -> Value {
        let paths = PATHS.iter().zip(&self.0).zip(self.medians());
        let paths = paths.map(|((path, measured), median)| {
            ((*path).to_owned(), json!({ "gigabits_per_second": measured, "median": median }))
        });
        let ratio = self.ratio_to_wireguard();
        json!({ "paths": paths.collect::<serde_json::Map<_, _>>(), "ratio_to_wireguard_go": ratio, "met": ratio >= 1.0 })
    }
}

/// What a daemon costs that has nothing to do.
struct Idle {
    resident_mebibytes: f64,
    cpu_percent: f64,
}

const IDLE_WINDOW: Duration = Duration::from_secs(10);

fn measure_idle() -> Idle {
    let lab = Lab::new("idle");
    let (proxy, backend) = (lab.host("proxy"), lab.host("backend"));
    lab.link(proxy.port("wan", ["10.2.0.1/24"]), backend.port("wan", ["10.2.0.2/24"]));
    let [_called, mut caller] = start_underpass(&proxy, &backend);
    probe::ping(&proxy, "10.77.0.2").assert_all_answered();
    let (process, start) = (caller.process(), wait::now());
    let before = process.cpu_time();
    wait::until_within(IDLE_WINDOW * 2, "the daemon has been idle for a while", || start.elapsed() >= IDLE_WINDOW);
    let busy = process.cpu_time() - before;
    Idle {
        resident_mebibytes: mebibytes(process.resident_bytes()),
        cpu_percent: 100.0 * busy.as_secs_f64() / start.elapsed().as_secs_f64(),
    }
}

impl Idle {
    fn met(&self) -> bool {
        self.resident_mebibytes < 15.0 && self.cpu_percent < 0.5
    }

    fn print(&self) {
        let Idle { resident_mebibytes, cpu_percent } = self;
        println!(
            "Idle daemon with one link up: {resident_mebibytes:.1} MiB resident (bar: under 15), {cpu_percent:.2} % of a core"
        );
        println!("  {}", verdict(self.met()));
    }

    fn report(&self) -> Value {
        json!({ "resident_mebibytes": self.resident_mebibytes, "cpu_percent": self.cpu_percent, "met": self.met() })
    }
}

/// What a daemon with a thousand peers costs.
struct Crowd {
    start_seconds: f64,
    resident_mebibytes: f64,
}

fn measure_crowd() -> Crowd {
    const PEERS: usize = 1000;
    let lab = Lab::new("crowd");
    let proxy = lab.host("proxy");
    proxy.ip("address add 10.2.0.1/24 dev lo");
    let mut random = Random::new(1000);
    let mut config = Config::new(Role::Proxy, &KeyPair::generate(&proxy), ["10.77.0.1/16"]);
    for n in 0..PEERS {
        let address = format!("10.77.{}.{}", 1 + n / 250, 1 + n % 250);
        let key = BASE64_STANDARD.encode(random.bytes(32));
        let peer = Peer::new(&format!("app{n}"), &key, [address.as_str()]);
        config = config.peer(peer.endpoint(&format!("10.2.0.2:{}", 20_000 + n)));
    }
    let start = wait::now();
    let mut daemon = Daemon::start(&proxy, &config);
    let start_seconds = start.elapsed().as_secs_f64();
    Crowd { start_seconds, resident_mebibytes: mebibytes(daemon.process().resident_bytes()) }
}

impl Crowd {
    fn met(&self) -> bool {
        self.start_seconds < 1.0 && self.resident_mebibytes < 64.0
    }

    fn print(&self) {
        let Crowd { start_seconds, resident_mebibytes } = self;
        println!(
            "1,000 idle peers: up after {start_seconds:.2} s (bar: 1), {resident_mebibytes:.1} MiB resident (bar: under 64)"
        );
        println!("  {}", verdict(self.met()));
    }

    fn report(&self) -> Value {
        json!({ "start_seconds": self.start_seconds, "resident_mebibytes": self.resident_mebibytes, "met": self.met() })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
