//! What the operator wrote, as values that are valid by construction.
//!
//! Owns the configuration file: its keys, its defaults, what is refused and the words of the refusal. It opens no device
//! or socket and starts nothing: `control` translates these values for the core and the data plane.

mod advice;
mod diff;
mod error;
mod exposure;
mod health;
mod interface;
mod key_change;
mod key_file;
mod key_source;
mod parse;
mod peer;
mod raw;
mod scope;
mod unknown;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use diff::{Diff, PeerDiff};
pub use error::{ConfigError, Position, Problem};
pub use key_file::{Disk, KeyFileError, KeyFiles, written};

use crate::keys::{PresharedKey, PrivateKey, PublicKey};
use crate::proto::noise::Suite;
use crate::proto::policy::Exposure;
use crate::proto::transmit::Dscp;

/// UDP port where none is named.
pub const DEFAULT_PORT: u16 = 51900;
/// Interface name where none is named.
pub const DEFAULT_INTERFACE_NAME: &str = "underpass0";
/// 1,500 outside, less 40 of IPv6, 8 of UDP and 32 of the protocol: fits every common path (`docs/protocol.md`). An MTU that
/// is found begins here.
pub const LEAST_MTU: u16 = 1420;
/// Where HAProxy's agent checks are answered on the proxy side, where nothing is said.
pub const DEFAULT_AGENT_CHECK: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 51901));
/// Where HTTP checks and metrics are answered on the proxy side, where nothing is said.
pub const DEFAULT_HEALTH_HTTP: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 51902));
/// Degraded links keep their whole weight where nothing is said: fewer backends would have to carry the same load.
pub const DEFAULT_DEGRADED_WEIGHT: u8 = 100;
/// Where the control sockets lie, one per interface.
pub const CONTROL_SOCKET_DIRECTORY: &str = "/run/underpass";

/// One daemon's whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which side of the link this machine is.
    pub role: Role,
    /// This machine's end: its device, sockets and keys.
    pub interface: Interface,
    /// Where load balancers may ask how the links are.
    pub health: Health,
    /// The other ends, in the file's order. Never empty. No two share a name, a key or an allowed prefix.
    pub peers: Vec<Peer>,
    /// The directories that key files were read from.
    pub key_directories: BTreeSet<PathBuf>,
}

/// The side of a link that this machine is. The core knows no difference: both are peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Beside the load balancer; its peers are `[[backend]]` tables.
    Proxy,
    /// Beside an app server; its peers are `[[proxy]]` tables.
    Backend,
}

impl Role {
    const ALL: [Self; 2] = [Self::Proxy, Self::Backend];

    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Backend => "backend",
        }
    }

    /// The name of the tables that describe this role's peers: the other role's name.
    pub fn peer_table(self) -> &'static str {
        match self {
            Self::Proxy => "backend",
            Self::Backend => "proxy",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The `[interface]` table: this machine's end of every link.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Name of the TUN device: at most 15 bytes, as the kernel allows.
    pub name: String,
    /// The tunnel addresses of this machine with their prefix lengths. Never empty.
    pub addresses: Vec<IpNet>,
    /// The UDP addresses to receive on. Never empty, no port is 0.
    pub listen: Vec<SocketAddr>,
    /// Set when the file names no address (only a port, or nothing): `listen` is then "any IPv4 and any IPv6", and a host
    /// without one of the two families is no error.
    pub listen_is_default: bool,
    /// The key that says who this machine is.
    pub private_key: PrivateKey,
    /// Where that was read.
    pub private_key_file: PathBuf,
    /// The key before, while peers change over: peers may still address it, this machine initiates with the new one.
    pub previous_private_key: Option<PrivateKey>,
    /// Where that was read.
    pub previous_private_key_file: Option<PathBuf>,
    /// Largest packet inside the tunnel.
    pub mtu: Mtu,
    /// Mark on the outer datagrams for policy routing. Never `Some(0)`.
    pub fwmark: Option<u32>,
    /// DSCP of the outer datagrams.
    pub dscp: Dscp,
    /// How the TUN device is opened.
    pub device: DeviceMode,
    /// Fast-path threads.
    pub workers: Workers,
    /// Whether each of them stays on one CPU.
    pub pin_workers: bool,
    /// Whether they stay awake for the next packet for a moment where processors have nothing else to do.
    pub busy_poll: bool,
    /// What to propose to peers that name no suite of their own.
    pub suite: SuiteChoice,
    /// Suites that peers may propose. Never empty, each once.
    pub suites: Vec<Suite>,
    /// What peers that have no list of their own may reach of this machine, and of what lies behind it.
    pub expose: Vec<Exposure>,
    /// What becomes of what peers may not reach.
    pub refuse: Refuse,
    /// Where `underpass status` reaches the daemon. Absolute, and short enough for a socket address.
    pub control_socket: PathBuf,
    /// How long links are called draining, at most, before the daemon ends. Zero: it ends at once.
    pub drain_timeout: Duration,
    /// Whether the daemon gives up, once it is set up, what it does not need to go on.
    pub sandbox: SandboxPolicy,
    /// Whether it keeps no capability at all then, so that addresses, routes and marks change with its next start only.
    pub drop_capabilities: bool,
    /// Whether packets for peers are refused while the interface is not there.
    pub fail_closed: bool,
    /// Networks that may be reached in the clear: what earlier configurations had refused of them is not refused any longer,
    /// and more specific routes to them are no fault.
    pub open: Vec<IpNet>,
}

impl Config {
    /// The files of its keys.
    pub fn key_files(&self) -> Vec<&PathBuf> {
        let interface = &self.interface;
        let preshared = self.peers.iter().filter_map(|peer| peer.preshared_key_file.as_ref());
        preshared.chain([&interface.private_key_file]).chain(&interface.previous_private_key_file).collect()
    }
}

/// The `[health]` table: where load balancers and monitors may ask how the links are. Whoever reaches an address there may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// TCP addresses for HAProxy's agent checks. Empty: none. No port is 0.
    pub agent_check: Vec<SocketAddr>,
    /// TCP addresses for HTTP checks and metrics. Empty: none. No port is 0, and none is among `agent_check`.
    pub http: Vec<SocketAddr>,
    /// Percent of its weight that an agent check gives a degraded link: 1 to 100.
    pub degraded_weight: u8,
}

impl Health {
    /// Whether anybody may ask, so that the answer has to be known at any time.
    pub fn is_on(&self) -> bool {
        !(self.agent_check.is_empty() && self.http.is_empty())
    }
}

/// How many fast-path threads there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Workers {
    /// As many as help, on as many lanes as the machine's CPUs suggest.
    #[default]
    Auto,
    /// So many.
    Number(NonZero<u8>),
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// Largest packet inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mtu {
    /// The longest packet that some peer's path has proven to carry, [`LEAST_MTU`] at first.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(u16),
}

impl Mtu {
    /// The MTU that the interface begins with.
    pub fn first(self) -> u16 {
        match self {
            Self::Auto => LEAST_MTU,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// How the TUN device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceMode {
    /// Offload where the kernel gives it, else plain.
    #[default]
    Auto,
    /// With segmentation and checksum offload, or not at all.
    Offload,
    /// One packet per read and write.
    Plain,
}

impl DeviceMode {
    const ALL: [Self; 3] = [Self::Auto, Self::Offload, Self::Plain];

    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Offload => "offload",
            Self::Plain => "plain",
        }
    }
}

/// What becomes of packets to ports that are not exposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Refuse {
    /// They are dropped without a word.
    #[default]
    Drop,
    /// They are answered as a host answers where nobody listens.
    Reset,
}

impl Refuse {
    const ALL: [Self; 2] = [Self::Drop, Self::Reset];

    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reset => "reset",
        }
    }
}

/// The extent of the sandbox with which a daemon starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SandboxPolicy {
    /// None of it.
    Off,
    /// As much as the kernel and the container give.
    #[default]
    BestEffort,
    /// All of it, or the daemon does not start.
    Required,
}

impl SandboxPolicy {
    /// Whether there is one at all.
    pub fn is_on(self) -> bool {
        self != Self::Off
    }

    /// For people: "on", "off" or "required".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::BestEffort => "on",
            Self::Required => "required",
        }
    }
}

/// The suite to propose as initiator. A responder takes the initiator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SuiteChoice {
    /// AES-256-GCM where this CPU has AES instructions, else ChaCha20-Poly1305.
    #[default]
    Auto,
    /// `Noise_IKpsk2_25519_AESGCM_SHA256`.
    Aes256Gcm,
    /// `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`.
    ChaCha20Poly1305,
}

impl SuiteChoice {
    const ALL: [Self; 3] = [Self::Auto, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// Whether this is what `suite` is called, or leaves it open.
    pub fn admits(self, suite: Suite) -> bool {
        self == Self::Auto || self.as_str() == suite.as_str()
    }

    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }
}

/// One `[[backend]]` or `[[proxy]]` table: the other end of a link.
#[derive(Debug, Clone)]
pub struct Peer {
    /// How people call it: `[A-Za-z0-9._-]{1,63}`, unique.
    pub name: String,
    /// The key that says who it is. Unique, never this machine's own.
    pub public_key: PublicKey,
    /// The key it will change to, accepted already. Unique as `public_key` is.
    pub next_public_key: Option<PublicKey>,
    /// Where to reach it, in the order of preference, each once. Empty: it must call first.
    pub endpoints: Vec<Endpoint>,
    /// Its tunnel addresses.
    pub addresses: Vec<IpAddr>,
    /// All prefixes that it may use and that are routed to it: `addresses` as host prefixes, then the further ones. No
    /// prefix occurs twice in the whole configuration; the longest match wins. Never empty.
    pub allowed_ips: Vec<IpNet>,
    /// A secret shared beside the key pairs.
    pub preshared_key: Option<PresharedKey>,
    /// Where that was read.
    pub preshared_key_file: Option<PathBuf>,
    /// How long a silence lasts before a keepalive fills it. `None`: for ever. Never zero.
    pub persistent_keepalive: Option<Duration>,
    /// What to propose to this peer: its own choice, else the interface's.
    pub suite: SuiteChoice,
    /// What it may reach of this machine, and of what lies behind it: its own list, else the interface's.
    pub expose: Vec<Exposure>,
}

/// Where a peer is reached over UDP, as the file names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An IP address and port.
    Address(SocketAddr),
    /// A DNS name, to be resolved again when the peer falls silent.
    Name {
        /// The name: letters, digits, hyphens, underscores and dots.
        host: String,
        /// The UDP port, never 0.
        port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
