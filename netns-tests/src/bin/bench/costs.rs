//! What a daemon costs beside traffic: idle, and with a thousand peers.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use netns_tests::random::Random;
use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role};
use netns_tests::{Host, Lab, probe, wait};
use serde_json::{Value, json};

use crate::bars::verdict;
use crate::meter::mebibytes;

/// What these are called on the command line.
pub(crate) const IDLE: &str = "idle";
pub(crate) const CROWD: &str = "crowd";

/// What a daemon costs that has nothing to do.
pub(crate) struct Idle {
    resident_mebibytes: f64,
    cpu_percent: f64,
}

const IDLE_WINDOW: Duration = Duration::from_secs(10);

pub(crate) fn measure_idle() -> Idle {
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

    pub(crate) fn print(&self) {
        let Idle { resident_mebibytes, cpu_percent } = self;
        println!(
            "Idle daemon with one link up: {resident_mebibytes:.1} MiB resident (bar: under 15), {cpu_percent:.2} % of a core"
        );
        println!("  {}", verdict(self.met()));
    }

    pub(crate) fn report(&self) -> Value {
        json!({ "resident_mebibytes": self.resident_mebibytes, "cpu_percent": self.cpu_percent, "met": self.met() })
    }
}

/// What a daemon with a thousand peers costs.
pub(crate) struct Crowd {
    start_seconds: f64,
    resident_mebibytes: f64,
}

pub(crate) fn measure_crowd() -> Crowd {
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

    pub(crate) fn print(&self) {
        let Crowd { start_seconds, resident_mebibytes } = self;
        println!(
            "1,000 idle peers: up after {start_seconds:.2} s (bar: 1), {resident_mebibytes:.1} MiB resident (bar: under 64)"
        );
        println!("  {}", verdict(self.met()));
    }

    pub(crate) fn report(&self) -> Value {
        json!({ "start_seconds": self.start_seconds, "resident_mebibytes": self.resident_mebibytes, "met": self.met() })
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
