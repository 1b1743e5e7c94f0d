//! What a daemon costs beside traffic: idle, and with a thousand peers.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use netns_tests::random::Random;
use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role};
use netns_tests::{Lab, probe, wait};
use serde_json::{Value, json};

use crate::meter::mebibytes;
use crate::{Note, caught};

/// What these are called on the command line.
pub(crate) const TESTS: [&str; 2] = [IDLE, CROWD];
const IDLE: &str = "idle";
const CROWD: &str = "crowd";

/// One number, with the bar that it must stay below.
pub(crate) struct Cost {
    pub(crate) title: &'static str,
    pub(crate) measured: f64,
    pub(crate) below: f64,
}

impl Cost {
    pub(crate) fn is_met(&self) -> bool {
        self.measured < self.below
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "what": self.title, "measured": self.measured, "below": self.below, "met": self.is_met() })
    }
}

type Measure = fn() -> [Cost; 2];

/// All of them, as far as they are chosen.
pub(crate) fn measure(chosen: &[&str], note: Note) -> Vec<Cost> {
    let tests: [(&str, Measure); 2] = [(IDLE, idle), (CROWD, crowd)];
    let mut costs = vec![];
    for (name, measure) in tests.into_iter().filter(|(name, _)| chosen.contains(name)) {
        eprintln!("measuring {name}");
        match caught(measure) {
            Ok(measured) => costs.extend(measured),
            Err(reason) => note(name, reason),
        }
    }
    costs
}

/// A daemon with a session and nothing to do.
fn idle() -> [Cost; 2] {
    const WINDOW: Duration = Duration::from_secs(10);
    let lab = Lab::new("idle");
    let (proxy, backend) = (lab.host("proxy"), lab.host("backend"));
    lab.link(proxy.port("wan", ["10.2.0.1/24"]), backend.port("wan", ["10.2.0.2/24"]));
    let [near, far] = [(); 2].map(|()| KeyPair::generate(&proxy));
    let called = Peer::new("backend", &far.public, ["10.77.0.2"]).endpoint("10.2.0.2:51900");
    let caller = Peer::new("proxy", &near.public, ["10.77.0.1"]);
    let answerer = Config::new(Role::Backend, &far, ["10.77.0.2/24"]).peer(caller);
    let _answerer = Daemon::start(&backend, &answerer);
    let mut daemon = Daemon::start(&proxy, &Config::new(Role::Proxy, &near, ["10.77.0.1/24"]).peer(called));
    probe::ping(&proxy, "10.77.0.2").assert_all_answered();
    let before = daemon.process().cpu_time();
    wait::pass(WINDOW);
    let busy = daemon.process().cpu_time() - before;
    [
        cost("Idle daemon, one link, resident MiB", mebibytes(daemon.process().resident_bytes()), 15.0),
        cost("Idle daemon, one link, % of a core", 100.0 * busy.as_secs_f64() / WINDOW.as_secs_f64(), 0.5),
    ]
}

/// A daemon with a thousand peers that are not there.
fn crowd() -> [Cost; 2] {
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
    let seconds = start.elapsed().as_secs_f64();
    [
        cost("1,000 idle peers, seconds until up", seconds, 1.0),
        cost("1,000 idle peers, resident MiB", mebibytes(daemon.process().resident_bytes()), 64.0),
    ]
}

fn cost(title: &'static str, measured: f64, below: f64) -> Cost {
    Cost { title, measured, below }
}
