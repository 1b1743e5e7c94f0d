//! What it costs that there are many peers: a proxy with 200 backends beside one with a single one.
//!
//! ```text
//!   proxy ── switch ── backend 0, 1, … 199
//! ```
//!
//! Each backend is a machine of its own with a daemon, an nginx and a TCP sink, and traffic goes to all of them in turn. The
//! proxy has two daemons: one knows all backends, the other only backend 0. All share this machine's cores, so that what 200
//! daemons at the far end cost is measured too, which in a real network they would not take from the proxy: beside each
//! figure stands what it is of the same number of backends without a tunnel.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role};
use netns_tests::{Host, Lab, Process, probe, tcp_load};

use crate::contender::{Kind, Service};
use crate::field::CUBIC;
use crate::http;
use crate::measurement::Measurement;
use crate::meter::Meter;
use crate::results::{Better, Table};
use crate::site::{Connections, Route, Site, start_nginx};
use crate::{Arguments, Note, caught};

/// What these are called on the command line.
pub(crate) const TESTS: [&str; 2] = [BULK, HTTP];
const BULK: &str = "peers-bulk";
const HTTP: &str = "peers-http";

const BACKENDS: usize = 200;
/// Enough to get up to speed, and little enough that all backends have had one after a second.
const TRANSFER: usize = 4 << 20;
const SINK_PORT: u16 = 7002;

/// Both tests, as far as they are chosen.
pub(crate) fn measure(arguments: &Arguments, chosen: &[&str], note: Note) -> Vec<Table> {
    let tables = [
        Table::new(BULK, "TCP, 4 MiB to each backend in turn, a new connection for each, Gb/s", Better::More),
        Table::new(
            HTTP,
            "HTTP, 1 KB, 64 clients, each backend in turn over kept connections, requests/s",
            Better::More,
        ),
    ];
    let mut tables: Vec<_> = tables.into_iter().filter(|table| chosen.contains(&table.name)).collect();
    if tables.is_empty() {
        return tables;
    }
    eprintln!("starting {BACKENDS} backends");
    match caught(Crowd::start) {
        Ok(crowd) => (0..arguments.rounds).for_each(|round| {
            tables.iter_mut().for_each(|table| crowd.measure_all(round, arguments.seconds, table));
        }),
        Err(reason) => note("peers", reason),
    }
    tables
}

/// The laboratory, standing.
struct Crowd {
    proxy: Host,
    ways: [Way; 5],
    site: Site,
    _far_daemons: Vec<Daemon>,
    _nginx: Vec<Process>,
    _lab: Lab,
}

/// From the proxy to some backends.
struct Way {
    name: &'static str,
    kind: Kind,
    backends: Vec<Ipv4Addr>,
    /// The proxy's.
    daemon: Option<Rc<Daemon>>,
}

/// One network that all are in: the cables', or that of one of the proxy's daemons.
#[derive(Clone, Copy)]
struct Network {
    interface: &'static str,
    /// The second byte of its addresses.
    number: u8,
}

const CABLES: Network = Network { interface: "wan", number: 2 };
const MANY: Network = Network { interface: "many", number: 77 };
const ONE: Network = Network { interface: "one", number: 78 };

impl Network {
    fn proxy(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 1)
    }

    fn backend(self, n: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 1 + (n / 250) as u8, 1 + (n % 250) as u8)
    }

    fn port(self) -> u16 {
        51_900 + u16::from(self.number)
    }

    /// Has all use the same congestion control in it.
    fn finish(self, proxy: &Host, backends: &[Host]) {
        let Network { interface, number } = self;
        proxy.ip(&format!("route replace 10.{number}.0.0/16 dev {interface} {CUBIC}"));
        let to_proxy = format!("route replace {}/32 dev {interface} {CUBIC}", self.proxy());
        backends.iter().for_each(|backend| backend.ip(&to_proxy));
    }

    /// Starts the proxy's daemon and one on each backend.
    fn start(self, proxy: &Host, backends: &[Host]) -> (Daemon, Vec<Daemon>) {
        let config = |role, keys: &KeyPair, address: Ipv4Addr| {
            let config = Config::new(role, keys, [format!("{address}/16").as_str()]);
            config.interface(self.interface, self.port())
        };
        let keys = KeyPair::generate(proxy);
        let (mut proxys, mut daemons) = (config(Role::Proxy, &keys, self.proxy()), vec![]);
        for (n, host) in backends.iter().enumerate() {
            let (far, address) = (KeyPair::generate(proxy), self.backend(n));
            let caller = Peer::new("proxy", &keys.public, [self.proxy().to_string().as_str()]);
            daemons.push(Daemon::start(host, &config(Role::Backend, &far, address).peer(caller)));
            let endpoint = SocketAddr::from((CABLES.backend(n), self.port())).to_string();
            let called = Peer::new(host.name(), &far.public, [address.to_string().as_str()]);
            proxys = proxys.peer(called.endpoint(&endpoint));
        }
        let daemon = Daemon::start(proxy, &proxys);
        self.finish(proxy, backends);
        (daemon, daemons)
    }
}

impl Crowd {
    fn start() -> Crowd {
        let lab = Lab::new("peers");
        let (proxy, backends) = plug_in(&lab);
        let (many, mut far_daemons) = MANY.start(&proxy, &backends);
        let (one, far_daemon) = ONE.start(&proxy, &backends[..1]);
        far_daemons.extend(far_daemon);
        let many = Rc::new(many);
        let nginx = backends.iter().map(|backend| start_nginx(backend, None)).collect();
        backends.iter().for_each(|backend| tcp_load::sink(backend, SINK_PORT));
        let ways = [
            Way::new("plain-1", Kind::Plain, CABLES, 1, None),
            Way::new("underpass-1", Kind::Underpass, ONE, 1, Some(Rc::new(one))),
            Way::new("underpass-1-of-200", Kind::Underpass, MANY, 1, Some(many.clone())),
            Way::new("plain-200", Kind::Plain, CABLES, BACKENDS, None),
            Way::new("underpass-200", Kind::Underpass, MANY, BACKENDS, Some(many)),
        ];
        for backend in ways.iter().flat_map(|way| &way.backends) {
            probe::ping(&proxy, &backend.to_string()).assert_all_answered();
        }
        let site = Site::start(&proxy, &ways.each_ref().map(Way::route));
        Crowd { proxy, ways, site, _far_daemons: far_daemons, _nginx: nginx, _lab: lab }
    }

    fn measure_all(&self, round: usize, seconds: u32, table: &mut Table) {
        let name = table.name;
        let measure = |way| if name == BULK { self.bulk(way, seconds) } else { self.http(way, seconds) };
        // Each number of backends without a tunnel first, then with one.
        let mut plain = f64::NAN;
        for way in &self.ways {
            let mut outcome = caught(|| measure(way));
            match (way.kind, &outcome) {
                (Kind::Plain, measured) => plain = measured.as_ref().map_or(f64::NAN, |measured| measured.value),
                _ => outcome = outcome.map(|measured| measured.of_plain(plain)),
            }
            table.add(round, way.name, way.kind, outcome);
        }
    }

    fn bulk(&self, way: &Way, seconds: u32) -> Measurement {
        let meter = Meter::start(way.process());
        let sinks: Vec<_> = way.backends.iter().map(|backend| SocketAddr::from((*backend, SINK_PORT))).collect();
        let during = Duration::from_secs(seconds.into());
        let transfers = tcp_load::send_in_turn(&self.proxy, &sinks, TRANSFER, during);
        let measured = Measurement::new(transfers.bytes_per_second * 8.0 / 1e9);
        measured.with_usage_per_gigabyte(meter.read(), transfers.bytes as f64)
    }

    fn http(&self, way: &Way, seconds: u32) -> Measurement {
        http::requests_at(&self.proxy, self.site.frontend(way.name, Connections::Kept), seconds, way.process())
    }
}

/// The proxy and all backends on one switch.
fn plug_in(lab: &Lab) -> (Host, Vec<Host>) {
    let proxy = lab.host("proxy");
    let backends: Vec<Host> = (0..BACKENDS).map(|n| lab.host(&format!("backend{n}"))).collect();
    let addresses: Vec<String> = (0..BACKENDS).map(|n| format!("{}/16", CABLES.backend(n))).collect();
    let ports = backends.iter().zip(&addresses).map(|(host, address)| host.port(CABLES.interface, [address.as_str()]));
    let own = format!("{}/16", CABLES.proxy());
    lab.switch("switch", [proxy.port(CABLES.interface, [own.as_str()])].into_iter().chain(ports));
    CABLES.finish(&proxy, &backends);
    (proxy, backends)
}

impl Way {
    fn new(name: &'static str, kind: Kind, network: Network, count: usize, daemon: Option<Rc<Daemon>>) -> Way {
        Way { name, kind, backends: (0..count).map(|n| network.backend(n)).collect(), daemon }
    }

    fn process(&self) -> Option<&Process> {
        self.daemon.as_deref().map(AsRef::as_ref)
    }

    fn route(&self) -> Route {
        let servers =
            self.backends.iter().map(|backend| SocketAddr::from((*backend, Service::Http.port())).to_string());
        Route { name: self.name, program: "haproxy".into(), servers: servers.collect() }
    }
}
