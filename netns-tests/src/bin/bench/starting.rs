//! Starting each contender.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use netns_tests::probe::Ping;
use netns_tests::stunnel;
use netns_tests::underpass::{Config, Daemon, KeyPair, Peer, Role, quote};
use netns_tests::wireguard::{self, End};
use netns_tests::{Process, quincy, wait};

use crate::contender::{BACKEND, Contender, Kind, PROXY, Reach, Service};
use crate::field::{Field, NAME, tunnel_addresses};

/// All there are, in the order of the tables.
pub(crate) const NAMES: [&str; 13] = [
    "plain",
    "underpass",
    CHACHA,
    AGAINST,
    "wireguard-go",
    NEWEST_WIREGUARD,
    "boringtun",
    "gotatun",
    "quincy",
    TLS,
    NEWEST_TLS,
    "haproxy-tls-full",
    "stunnel",
];

/// A wireguard-go that is no part of the system.
pub(crate) const NEWEST_WIREGUARD: &str = "wireguard-go-newest";
/// The system's HAProxy, which re-encrypts and resumes its sessions.
pub(crate) const TLS: &str = "haproxy-tls";
/// A HAProxy that is no part of the system, re-encrypting as `haproxy-tls` does.
pub(crate) const NEWEST_TLS: &str = "haproxy-tls-newest";

/// underpass with the suite that it does not choose by itself on a processor that has AES.
pub(crate) const CHACHA: &str = "underpass-chacha";

/// Another build of underpass.
pub(crate) const AGAINST: &str = "underpass-against";

/// Where programs lie that are no part of the system.
pub(crate) struct Programs {
    /// For [`AGAINST`].
    pub(crate) against: Option<PathBuf>,
    /// What `cargo install` has put there.
    pub(crate) peers: PathBuf,
    /// For [`NEWEST_TLS`].
    pub(crate) haproxy: Option<PathBuf>,
    /// For [`NEWEST_WIREGUARD`].
    pub(crate) wireguard_go: Option<PathBuf>,
}

impl Programs {
    /// Whether everything is said that a contender needs.
    pub(crate) fn suffice_for(&self, contender: &str) -> bool {
        match contender {
            AGAINST => self.against.is_some(),
            NEWEST_WIREGUARD => self.wireguard_go.is_some(),
            NEWEST_TLS => self.haproxy.is_some(),
            _ => true,
        }
    }

    /// The load balancer in front of a contender.
    pub(crate) fn haproxy(&self, contender: &str) -> &Path {
        let given = self.haproxy.as_deref().filter(|_| contender == NEWEST_TLS);
        given.unwrap_or(Path::new("haproxy"))
    }

    /// A contender's version, as its program says it in its first line with a number.
    fn version(&self, field: &Field, contender: &str) -> String {
        let (program, option) = match contender {
            "plain" => return field.proxy.command("uname").args(["-sr"]).run().trim().to_owned(),
            AGAINST => (self.against.clone().unwrap_or_default(), "--version"),
            "wireguard-go" => ("wireguard-go".into(), "--version"),
            NEWEST_WIREGUARD => (self.wireguard_go.clone().unwrap_or_default(), "--version"),
            "boringtun" => (self.peers.join("boringtun-cli"), "--version"),
            "gotatun" => (self.peers.join("gotatun"), "--version"),
            "quincy" => (self.peers.join("quincy-server"), "--version"),
            "stunnel" => ("stunnel".into(), "-version"),
            name if name.starts_with("haproxy") => (self.haproxy(name).to_owned(), "-v"),
            _ => (netns_tests::underpass::program(), "--version"),
        };
        let said = field.proxy.command(program).arg(option).output();
        let is_version = |line: &&str| line.contains(|character: char| character.is_ascii_digit());
        [said.stdout, said.stderr].concat().lines().find(is_version).unwrap_or_default().trim().to_owned()
    }
}

/// Starts a contender and waits until it carries something.
pub(crate) fn start(field: &Field, programs: &Programs, name: &'static str) -> Contender {
    let number = NAMES.iter().position(|candidate| *candidate == name).expect("one of the names") as u8;
    let near = Near { field, number };
    let peer = |program: &str| installed(programs.peers.join(program));
    let (kind, reach, daemons) = match name {
        "plain" => (Kind::Plain, Reach::Packets(BACKEND), vec![]),
        "underpass" => near.underpass("aes-256-gcm", None),
        CHACHA => near.underpass("chacha20-poly1305", None),
        AGAINST => near.underpass("aes-256-gcm", programs.against.as_deref()),
        "wireguard-go" => near.wireguard("wireguard-go".as_ref(), &[]),
        NEWEST_WIREGUARD => near.wireguard(programs.wireguard_go.as_ref().expect("it is said"), &[]),
        "boringtun" => near.wireguard(&peer("boringtun-cli"), &["--disable-drop-privileges"]),
        "gotatun" => near.wireguard(&peer("gotatun"), &["--disable-drop-privileges"]),
        "quincy" => near.quincy(peer("quincy-server").parent().expect("it lies in a directory")),
        TLS | NEWEST_TLS => (Kind::Tls, Reach::Tls { resumed: true }, vec![]),
        "haproxy-tls-full" => (Kind::Tls, Reach::Tls { resumed: false }, vec![]),
        "stunnel" => near.stunnel(),
        _ => unreachable!("one of the names"),
    };
    let contender = Contender { name, kind, reach, daemons, version: programs.version(field, name) };
    if let Some(address) = contender.address() {
        if kind != Kind::Plain {
            near.finish(address);
        }
        let carries = || Ping::to(&address.to_string()).patience(wait::PATIENCE / 20).send(&field.proxy).answered == 1;
        wait::until(&format!("{name} carries a ping"), carries);
    }
    contender
}

fn installed(program: PathBuf) -> PathBuf {
    assert!(program.is_file(), "{} is missing: make peers builds it", program.display());
    program
}

type Started = (Kind, Reach, Vec<Box<dyn AsRef<Process>>>);

/// A contender with a number of its own, from which its addresses, ports and interface names follow.
struct Near<'a> {
    field: &'a Field,
    number: u8,
}

impl Near<'_> {
    fn port(&self) -> u16 {
        51_900 + u16::from(self.number)
    }

    fn interface(&self) -> String {
        format!("tun{}", self.number)
    }

    fn packets(&self) -> Reach {
        Reach::Packets(tunnel_addresses(self.number)[1])
    }

    fn finish(&self, address: Ipv4Addr) {
        let [one, other] = tunnel_addresses(self.number);
        let proxys = if address == one { other } else { one };
        self.field.finish_tunnel(&self.interface(), [proxys, address]);
    }

    fn underpass(&self, suite: &str, program: Option<&Path>) -> Started {
        let Field { proxy, backend, .. } = self.field;
        let [near, far] = [(); 2].map(|()| KeyPair::generate(proxy));
        let [near_address, far_address] = tunnel_addresses(self.number).map(|address| address.to_string());
        let config = |role, keys, address: &str| {
            let config = Config::new(role, keys, [format!("{address}/24").as_str()]);
            let config = config.interface(&self.interface(), self.port()).set("suite", quote(suite));
            program.iter().fold(config, |config, program| config.program(program.to_path_buf()))
        };
        let called = Peer::new("backend", &far.public, [far_address.as_str()]);
        let called = called.endpoint(&SocketAddr::from((BACKEND, self.port())).to_string());
        let caller = Peer::new("proxy", &near.public, [near_address.as_str()]);
        let daemons = [
            Daemon::start(backend, &config(Role::Backend, &far, &far_address).peer(caller)),
            Daemon::start(proxy, &config(Role::Proxy, &near, &near_address).peer(called)),
        ];
        (Kind::Underpass, self.packets(), boxed(daemons))
    }

    fn wireguard(&self, program: &Path, options: &[&str]) -> Started {
        let Field { proxy, backend, .. } = self.field;
        let interface = self.interface();
        let addresses = tunnel_addresses(self.number).map(|address| format!("{address}/24"));
        let end = |host, address, outer| End {
            host,
            interface: &interface,
            address,
            endpoint: SocketAddr::from((outer, self.port())),
        };
        let ends = [end(proxy, &addresses[0], PROXY), end(backend, &addresses[1], BACKEND)];
        (Kind::Peer, self.packets(), boxed(wireguard::connect_with(program.as_os_str(), options, ends)))
    }

    fn quincy(&self, programs: &Path) -> Started {
        let [servers, _clients] = tunnel_addresses(self.number);
        let daemons = quincy::connect(
            programs,
            quincy::Ends {
                client: &self.field.proxy,
                server: &self.field.backend,
                endpoint: SocketAddr::from((BACKEND, self.port())),
                address: &format!("{servers}/24"),
                interface: &self.interface(),
            },
        );
        (Kind::Peer, Reach::Packets(servers), boxed(daemons))
    }

    fn stunnel(&self) -> Started {
        let Field { proxy, backend, certificate, .. } = self.field;
        let services = Service::ALL.map(|service| stunnel::Service {
            near: service.near(),
            far: SocketAddr::from((BACKEND, service.port() + 20_000)),
            server: SocketAddr::from((BACKEND, service.port())),
        });
        (Kind::Tls, Reach::Connections, boxed(stunnel::connect(proxy, backend, &services, NAME, certificate)))
    }
}

fn boxed<T: AsRef<Process> + 'static>(daemons: [T; 2]) -> Vec<Box<dyn AsRef<Process>>> {
    daemons.into_iter().map(|daemon| Box::new(daemon) as Box<dyn AsRef<Process>>).collect()
}
