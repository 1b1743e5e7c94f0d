//! A path of 9,000 bytes, as in data centres and clouds: what the default configuration makes of it, beside an MTU that
//! somebody set by hand. Packets cross one by one, and nobody merges them.
//!
//! ```text
//!   proxy ── backend
//! ```

use std::net::SocketAddr;

use netns_tests::probe::{self, IPERF3_PORT, Iperf3};
use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role};
use netns_tests::{Host, Lab, wait};

use crate::contender::Kind;
use crate::measurement::{Figure, Measurement};
use crate::meter::Meter;
use crate::results::{Better, Table};
use crate::{Arguments, Note, caught};

/// Its name on the command line.
pub(crate) const TESTS: [&str; 1] = [JUMBO];
const JUMBO: &str = "tcp-jumbo";

/// With an MTU that fits the path, set by hand.
pub(crate) const BY_HAND: &str = "underpass-8900";

/// Measures it, if it is chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str], note: Note) -> Option<Table> {
    if !chosen.contains(&JUMBO) {
        return None;
    }
    let title = "TCP, one flow over a path of 9000 bytes that passes packets one by one, Gb/s";
    let mut table = Table::new(JUMBO, title, Better::More);
    match caught(Path::build) {
        Ok(path) => (0..arguments.rounds).for_each(|round| path.measure_all(round, arguments.seconds, &mut table)),
        Err(reason) => note(JUMBO, reason),
    }
    Some(table)
}

struct Path {
    proxy: Host,
    backend: Host,
    ways: [Way; 3],
    _lab: Lab,
}

/// A way for packets between the two.
struct Way {
    name: &'static str,
    kind: Kind,
    /// The backend's address.
    address: String,
    daemons: Vec<Daemon>,
}

impl Path {
    fn build() -> Path {
        let lab = Lab::new("jumbo");
        let (proxy, backend) = (lab.host("proxy"), lab.host("backend"));
        lab.link(proxy.port("wan", ["10.1.0.1/24"]).mtu(9000), backend.port("wan", ["10.1.0.2/24"]).mtu(9000));
        for host in [&proxy, &backend] {
            let features = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "off"];
            host.command("ethtool").args(["-K", "wan"]).args(features).run();
        }
        let plain = Way { name: "plain", kind: Kind::Plain, address: "10.1.0.2".to_owned(), daemons: vec![] };
        let by_default = Way::underpass("underpass", 77, &proxy, &backend, |config| config);
        let by_hand = Way::underpass(BY_HAND, 78, &proxy, &backend, |config| config.set("mtu", "8900"));
        let ways = [plain, by_default, by_hand];
        ways.iter().for_each(|way| probe::ping(&proxy, &way.address).assert_all_answered());
        wait::until("interfaces grow with the path", || {
            ways.iter().flat_map(|way| &way.daemons).all(|daemon| daemon.status().interface().number("mtu") > 8000)
        });
        Path { proxy, backend, ways, _lab: lab }
    }

    fn measure_all(&self, round: usize, seconds: u32, table: &mut Table) {
        let order = self.ways.iter().cycle().skip(round % self.ways.len()).take(self.ways.len());
        self.ways.iter().for_each(|way| _ = table.series_of(way.name, way.kind));
        for way in order {
            table.add(round, way.name, way.kind, caught(|| self.send(way, seconds)));
        }
    }

    fn send(&self, way: &Way, seconds: u32) -> Measurement {
        let meter = Meter::start(way.daemons.iter().map(AsRef::as_ref));
        let target = SocketAddr::new(way.address.parse().expect("an address"), IPERF3_PORT);
        let options = ["-C", "cubic", "-t", &seconds.to_string()];
        let flow = Iperf3::behind(&self.backend, target).send(&self.proxy, &options);
        Measurement::new(flow.bits_per_second / 1e9)
            .with(Figure::Retransmits, flow.retransmits as f64 / f64::from(seconds))
            .with_usage_per_gigabyte(meter.read(), flow.bytes as f64)
    }
}

impl Way {
    fn underpass(
        name: &'static str,
        number: u16,
        proxy: &Host,
        backend: &Host,
        change: impl Fn(Config) -> Config,
    ) -> Way {
        let [near, far] = [(); 2].map(|()| KeyPair::generate(proxy));
        let [near_address, far_address] = [1, 2].map(|end| format!("10.{number}.0.{end}"));
        let config = |role, keys, address: &str| {
            let config = Config::new(role, keys, [format!("{address}/24").as_str()]);
            change(config.interface(&format!("tun{number}"), 51_900 + number))
        };
        let called = Peer::new("backend", &far.public, [far_address.as_str()]);
        let called = called.endpoint(&format!("10.1.0.2:{}", 51_900 + number));
        let caller = Peer::new("proxy", &near.public, [near_address.as_str()]);
        let daemons = vec![
            Daemon::start(backend, &config(Role::Backend, &far, &far_address).peer(caller)),
            Daemon::start(proxy, &config(Role::Proxy, &near, &near_address).peer(called)),
        ];
        Way { name, kind: Kind::Underpass, address: far_address, daemons }
    }
}
