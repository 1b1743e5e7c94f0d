//! The control socket's language: one JSON object per line each way, with versions. `docs/operations.md` describes it.
//!
//! Only types, reading and writing them; the sockets are in [`socket`](super::socket) and [`client`](super::client).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The `version` of a request. Goes up when a request of the old form would be misunderstood.
pub const REQUEST_VERSION: u32 = 1;
/// The `schema_version` of every answer. Goes up when a field vanishes or changes its meaning; fields may be added without.
pub const SCHEMA_VERSION: u32 = 1;
/// Longest request line in bytes, with its newline.
pub const MAX_REQUEST_LEN: usize = 4096;

/// What a client may ask. One without arguments is written as its name, another as an object: `{"drain":{"peer":"app1"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The state of the interface and of every peer.
    Status,
    /// Read the configuration file again, and change what is different.
    Reload,
    /// Say what is different in the configuration file, and change nothing.
    Compare,
    /// Call a peer's link draining.
    Drain {
        /// Its name.
        peer: String,
    },
    /// Call it so no longer.
    Undrain {
        /// Its name.
        peer: String,
    },
    /// Refuse what an earlier configuration led into the tunnel no longer, as far as it lies in a network.
    Open {
        /// The network.
        prefix: IpNet,
    },
    /// The program on disk takes the running one's place. Answered only if it can't; else the connection ends.
    Restart,
}

/// One answer line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    /// The request was refused.
    Error(ErrorReport),
    /// The answer to [`Command::Status`].
    Status(Box<StatusReport>),
    /// The answer to [`Command::Reload`].
    Reload(ReloadReport),
    /// The answer to [`Command::Compare`].
    Compare(CompareReport),
    /// The answer to [`Command::Drain`] and [`Command::Undrain`].
    Drain(DrainReport),
    /// The answer to [`Command::Open`].
    Open(OpenReport),
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The reason.
    pub error: ApiError,
}

/// The reason for a refusal, for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// Stable, for programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not a JSON object with `version` and `command`.
    MalformedRequest,
    /// A request of another version than [`REQUEST_VERSION`].
    UnsupportedVersion,
    /// A command that this daemon does not know.
    UnknownCommand,
    /// The line is longer than [`MAX_REQUEST_LEN`].
    RequestTooLong,
    /// As many clients as the daemon serves are connected already.
    Busy,
    /// The configuration file cannot be used; nothing was changed. The message is what `underpass check` would say.
    ConfigRefused,
    /// The system did not let a change be made; the message says what is left of it.
    ReloadFailed,
    /// No peer has that name.
    UnknownPeer,
    /// The daemon is about to end.
    Stopping,
    /// The program on disk can't take the running one's place.
    RestartFailed,
    /// The system did not let a network be opened.
    OpenFailed,
    /// The daemon could not answer.
    Internal,
    /// A code of a newer daemon.
    #[serde(other)]
    Unknown,
}

/// What a reload has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was different.
    pub reload: Reload,
}

/// Effect that a reload would have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompareReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Differences between the file and the daemon. Nothing is `left`.
    pub compare: Reload,
}

/// What was different in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reload {
    /// The file that was read.
    pub config: PathBuf,
    /// Names of new peers.
    pub added: Vec<String>,
    /// Names of peers that are no more.
    pub removed: Vec<String>,
    /// Peers that were changed.
    pub changed: Vec<ChangedPeer>,
    /// Keys that were changed, as `interface.fwmark`.
    pub keys: Vec<String>,
    /// Keys whose new value is not used before a restart.
    pub needs_restart: Vec<String>,
    /// What is gone from the file and could not be removed from the system.
    pub left: Vec<String>,
    /// Warnings of what will go wrong later, with what to write instead. An older daemon gives none.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Networks that are refused though they are no longer configured, until somebody opens them.
    #[serde(default)]
    pub refused: Vec<IpNet>,
}

/// A peer that a reload has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedPeer {
    /// Its name, the new one if that is what changed.
    pub name: String,
    /// The keys that have another value, as `endpoint`.
    pub keys: Vec<String>,
}

/// What a link is called from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Which link, and whether it is draining.
    pub drain: Drain,
}

/// Whether a link is draining by command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Its name.
    pub peer: String,
    /// Set if it is.
    pub draining: bool,
}

/// The network that was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Which networks.
    pub open: Opened,
}

/// Outcome of opening a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Opened {
    /// Networks that are refused no longer.
    pub opened: Vec<IpNet>,
    /// Networks that overlap with it and stay as they are, since they are configured.
    pub configured: Vec<IpNet>,
    /// Networks that are still refused though they are no longer configured.
    pub refused: Vec<IpNet>,
}

/// The state of a daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The daemon's wall clock, in seconds since 1970: what `latest_handshake` is to be compared with.
    pub unix_time: u64,
    /// This machine's end.
    pub interface: InterfaceReport,
    /// What the daemon has given up. Without, of a daemon that does not tell.
    #[serde(default)]
    pub sandbox: SandboxReport,
    /// Whether tunnel addresses are refused on other interfaces. Without, of a daemon that does not tell.
    #[serde(default)]
    pub guard: GuardReport,
    /// Whether this machine's routes are as they should be. Without, of a daemon that does not watch them.
    #[serde(default)]
    pub routes: RoutesReport,
    /// The other ends, in the configuration's order.
    pub peers: Vec<PeerReport>,
    /// Refused packets and datagrams since the start, by reason; every reason is present.
    pub drops: BTreeMap<String, u64>,
    /// Initiations that were refused, by key and reason, the newest first: a bounded number.
    #[serde(default)]
    pub refused_initiations: Vec<RefusedReport>,
}

/// Initiations of one key that were refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedReport {
    /// The peer that has the key, by its name. Null for a stranger.
    pub peer: Option<String>,
    /// The static key that initiated, in base64. Null where it is not known.
    pub public_key: Option<String>,
    /// Apparent source of the newest: an address that anyone can write.
    pub from: SocketAddr,
    /// A reason as in `drops`.
    pub reason: String,
    /// Their number.
    pub count: u64,
    /// When the newest came, in seconds since 1970.
    pub latest: u64,
}

/// An error that the network sent by ICMP about datagrams to an endpoint. Nobody vouches for it: it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkErrorReport {
    /// Destination of the datagrams.
    pub endpoint: SocketAddr,
    /// The error, as `port unreachable`.
    pub what: String,
    /// The machine that says so.
    pub from: IpAddr,
    /// Number of errors about this endpoint.
    pub count: u64,
    /// When the newest came, in seconds since 1970.
    pub latest: u64,
}

/// What a daemon has given up, and what it has left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxReport {
    /// Set if it is in one.
    pub on: bool,
    /// What of it could not be had, with the reasons.
    pub lacks: Vec<String>,
    /// The capabilities that are left.
    pub capabilities: Vec<String>,
    /// Directories whose files may be read, beside the system's own.
    pub reads: Vec<PathBuf>,
    /// Directories whose files may be written.
    pub writes: Vec<PathBuf>,
    /// The process that does what takes a capability. Null where there is none.
    #[serde(default)]
    pub privileged: Option<PrivilegedReport>,
}

/// The process that does for a daemon what takes a capability, as far as the configuration file says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivilegedReport {
    /// Its number.
    pub pid: u32,
    /// Its capabilities.
    pub capabilities: Vec<String>,
}

/// Whether this machine's kernel takes packets to and from tunnel addresses from the tunnel only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuardReport {
    /// Whether it does.
    pub state: GuardState,
    /// Why the table could not be set.
    pub lacks: Option<String>,
    /// Networks behind the tunnel that are let in by other interfaces as well, with the reasons.
    pub left_out: Vec<String>,
    /// Times that the table had to be put back since the start.
    pub restored: u64,
}

/// The state of the nftables table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardState {
    /// The table is set.
    On,
    /// The table is not wanted: `interface.fail_closed = false`.
    Off,
    /// The table could not be set.
    Unavailable,
    /// A state of a newer daemon, or of one that does not tell.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Whether this machine's routes are as they should be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutesReport {
    /// Times that something of the daemon's own was put back that somebody had taken away.
    pub repairs: u64,
    /// The daemon's own settings that are missing, in the words of `ip`. Null if none is.
    pub missing: Option<String>,
    /// Networks that are refused though they are no longer configured, until somebody opens them.
    pub refused: Vec<IpNet>,
}

/// This machine's end of its links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterfaceReport {
    /// The TUN device.
    pub name: String,
    /// `proxy` or `backend`.
    pub role: String,
    /// Base64.
    pub public_key: String,
    /// Tunnel addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
    /// UDP addresses that are bound.
    pub listen: Vec<SocketAddr>,
    /// Largest inner packet in bytes.
    pub mtu: u16,
    /// Source of the MTU.
    #[serde(default)]
    pub mtu_source: MtuSource,
    /// Why the MTU does not follow the paths, though it is to. Null if it does.
    #[serde(default)]
    pub mtu_problem: Option<String>,
    /// Set while the kernel hands over superpackets.
    pub offload: bool,
    /// Also of superpackets in UDP tunnels.
    #[serde(default)]
    pub tunnel_offload: bool,
    /// Threads that carry traffic. Null of a daemon that does not tell.
    #[serde(default)]
    pub workers: Option<WorkersReport>,
    /// Since the daemon's start.
    pub uptime_seconds: u64,
    /// The daemon's process.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// When the file of the private key in use was written, in seconds since 1970.
    #[serde(default)]
    pub private_key_written: Option<u64>,
    /// Set while something keeps the machine's clock right. Null where the system does not say.
    #[serde(default)]
    pub clock_synchronized: Option<bool>,
    /// The configuration file that it reads. Null of a daemon that does not tell.
    #[serde(default)]
    pub config: Option<PathBuf>,
}

/// Threads that carry traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkersReport {
    /// Workers.
    pub number: usize,
    /// Lanes that they serve: as many as workers there can be without a restart.
    pub lanes: usize,
    /// Set while the daemon chooses the number.
    pub chosen: bool,
    /// Reason of the number, in a few words.
    pub reason: String,
}

/// Source of the interface's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MtuSource {
    /// A number in the configuration.
    Configured,
    /// The paths to peers: as much as some of them has proven to carry, and 1420 at least.
    Auto,
    /// A source of a newer daemon, or of one that does not tell.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One peer and its link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its name in the configuration.
    pub name: String,
    /// Base64.
    pub public_key: String,
    /// What the link is doing.
    pub state: LinkState,
    /// Why: a word such as `unanswered`. Null of a link that is up.
    pub reason: Option<String>,
    /// Since when it is in this state, in seconds since 1970, with a fraction.
    pub state_since: f64,
    /// Which of its packets do not go into the tunnel, and by which routes. Null if all do.
    #[serde(default)]
    pub route: Option<String>,
    /// Where datagrams to it go, once known.
    pub endpoint: Option<SocketAddr>,
    /// Source of the endpoint. Null without an endpoint, or of a daemon that does not tell.
    #[serde(default)]
    pub endpoint_source: Option<EndpointSource>,
    /// Prefixes it may use.
    pub allowed_ips: Vec<IpNet>,
    /// When the newest session was agreed, in seconds since 1970.
    pub latest_handshake: Option<u64>,
    /// UDP payload received and authenticated.
    pub received_bytes: u64,
    /// UDP payload sent.
    pub sent_bytes: u64,
    /// The newest session's cipher.
    pub suite: Option<String>,
    /// Smoothed round trip of pings.
    pub rtt_microseconds: Option<u64>,
    /// How much it varies.
    pub rtt_variation_microseconds: Option<u64>,
    /// Share of recent pings that were lost, 0 to 1.
    pub loss: f64,
    /// Longest packet in bytes that the path carries in one datagram, as far as is known.
    pub path_mtu: Option<u16>,
    /// Sessions that were agreed since the start.
    pub handshakes: u64,
    /// Pings sent to watch the link.
    pub pings: u64,
    /// Those of them that were lost.
    pub pings_lost: u64,
    /// The newest error that the network sent about datagrams to its endpoint.
    #[serde(default)]
    pub network_error: Option<NetworkErrorReport>,
}

/// Source of a peer's endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointSource {
    /// The configuration names it.
    Configured,
    /// The peer's own datagrams came from there, and the configuration names others.
    Roamed,
    /// The peer's own datagrams came from there, and the configuration names none.
    Learned,
    /// The peer was there before the daemon's start, and the configuration names none.
    Remembered,
    /// A way of a newer daemon.
    #[serde(other)]
    Unknown,
}

/// What a link is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It carries traffic.
    Up,
    /// It carries traffic, badly.
    Degraded,
    /// It carries traffic and is to get no new connections.
    Draining,
    /// It carries nothing.
    Down,
    /// Nobody knows and nobody asks: no session and no traffic.
    Idle,
    /// A state of a newer daemon.
    #[serde(other)]
    Unknown,
}

impl LinkState {
    /// As in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Idle => "idle",
            Self::Unknown => "unknown",
        }
    }
}

impl Command {
    /// Reads one request line.
    pub fn decode(line: &[u8]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Request {
            version: u32,
            command: serde_json::Value,
        }
        let request: Request = serde_json::from_slice(line).map_err(|error| {
            let example = r#"{"version":1,"command":"status"}"#;
            ApiError::new(ErrorCode::MalformedRequest, format!("a request is one line such as {example}: {error}"))
        })?;
        if request.version != REQUEST_VERSION {
            let message = format!("this daemon speaks version {REQUEST_VERSION}, the request has {}", request.version);
            return Err(ApiError::new(ErrorCode::UnsupportedVersion, message));
        }
        serde_json::from_value(request.command).map_err(|error| {
            ApiError::new(ErrorCode::UnknownCommand, format!("this daemon does not know the command: {error}"))
        })
    }

    /// Writes the request with its newline.
    pub fn encode(&self) -> Vec<u8> {
        line(&serde_json::json!({ "version": REQUEST_VERSION, "command": self }))
    }
}

impl Response {
    /// Reads one answer line.
    pub fn decode(line: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line)
    }

    /// Writes the answer with its newline.
    pub fn encode(&self) -> Vec<u8> {
        line(self)
    }
}

impl ApiError {
    /// With a message for people.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Self {
        Self::Error(ErrorReport { schema_version: SCHEMA_VERSION, error })
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("strings, numbers and string-keyed maps are JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A status with one peer of each kind.
    pub(crate) fn status() -> StatusReport {
        let peer = |name: &str, state| PeerReport {
            name: name.into(),
            public_key: "AAAA".into(),
            state,
            reason: (state != LinkState::Up).then(|| "no-traffic".into()),
            state_since: 1_800_000_000.5,
            route: None,
            endpoint: None,
            endpoint_source: None,
            allowed_ips: vec!["10.77.0.11/32".parse().unwrap()],
            latest_handshake: None,
            received_bytes: 0,
            sent_bytes: 0,
            suite: None,
            rtt_microseconds: None,
            rtt_variation_microseconds: None,
            loss: 0.0,
            path_mtu: None,
            handshakes: 0,
            pings: 0,
            pings_lost: 0,
            network_error: None,
        };
        StatusReport {
            schema_version: SCHEMA_VERSION,
            unix_time: 1_800_000_012,
            interface: InterfaceReport {
                name: "underpass0".into(),
                role: "proxy".into(),
                public_key: "BBBB".into(),
                addresses: vec!["10.77.0.1/24".parse().unwrap()],
                listen: vec!["0.0.0.0:51900".parse().unwrap()],
                mtu: 1420,
                mtu_source: MtuSource::Auto,
                mtu_problem: None,
                offload: true,
                tunnel_offload: true,
                workers: Some(WorkersReport {
                    number: 2,
                    lanes: 4,
                    chosen: true,
                    reason: "one was busy for 3 s, 1.4 CPUs idle".into(),
                }),
                uptime_seconds: 3600,
                pid: 7,
                version: "0.1.0".into(),
                private_key_written: Some(1_700_000_000),
                clock_synchronized: Some(false),
                config: None,
            },
            sandbox: SandboxReport::default(),
            guard: GuardReport::default(),
            routes: RoutesReport::default(),
            peers: vec![
                PeerReport {
                    endpoint: Some("192.0.2.10:51900".parse().unwrap()),
                    latest_handshake: Some(1_800_000_000),
                    received_bytes: 2048,
                    sent_bytes: 3 << 20,
                    suite: Some("aes-256-gcm".into()),
                    rtt_microseconds: Some(412),
                    ..peer("app1", LinkState::Up)
                },
                peer("app2", LinkState::Idle),
            ],
            drops: BTreeMap::from([("malformed".to_owned(), 3)]),
            refused_initiations: Vec::new(),
        }
    }

    fn code(line: &str) -> ErrorCode {
        Command::decode(line.as_bytes()).unwrap_err().code
    }

    #[test]
    fn a_request_goes_there_and_back() {
        let [drain, undrain] = ["app1", "app2"].map(str::to_owned);
        let draining = [Command::Drain { peer: drain }, Command::Undrain { peer: undrain }];
        let open = Command::Open { prefix: "10.1.0.0/16".parse().unwrap() };
        let others = [Command::Status, Command::Reload, Command::Compare, Command::Restart, open];
        for command in others.into_iter().chain(draining) {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
        assert_eq!(Command::decode(br#"{"version":1,"command":"status","later":true}"#), Ok(Command::Status));
    }

    #[test]
    fn says_what_is_wrong_with_a_request() {
        for malformed in
            ["", "status", "[]", "{}", r#"{"version":1}"#, r#"{"version":"1","command":"status"}"#, "\u{0}"]
        {
            assert_eq!(code(malformed), ErrorCode::MalformedRequest, "{malformed}");
        }
        assert_eq!(code(r#"{"version":2,"command":{"anything":0}}"#), ErrorCode::UnsupportedVersion);
        assert_eq!(code(r#"{"version":1,"command":"reboot"}"#), ErrorCode::UnknownCommand);
        assert_eq!(code(r#"{"version":1,"command":3}"#), ErrorCode::UnknownCommand);
        assert_eq!(code(r#"{"version":1,"command":"drain"}"#), ErrorCode::UnknownCommand);
        assert_eq!(code(r#"{"version":1,"command":{"drain":{"name":"app1"}}}"#), ErrorCode::UnknownCommand);
    }

    #[test]
    fn an_answer_is_one_line_and_goes_there_and_back() {
        let error = Response::from(ApiError::new(ErrorCode::Busy, "line\nbreak"));
        let open = Response::Open(OpenReport { schema_version: SCHEMA_VERSION, open: Opened::default() });
        for response in [Response::Status(Box::new(status())), error, open] {
            let line = response.encode();
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            assert_eq!(Response::decode(&line).unwrap(), response);
        }
    }

    #[test]
    fn a_client_understands_a_newer_daemon_that_added_fields_and_states() {
        let mut json = serde_json::to_value(status()).unwrap();
        json["interface"]["colour"] = "green".into();
        json["peers"][0]["state"] = "levitating".into();
        let Response::Status(status) = Response::decode(json.to_string().as_bytes()).unwrap() else { panic!() };
        assert_eq!(status.peers[0].state, LinkState::Unknown);
    }

    #[test]
    fn states_are_spelt_as_in_the_json() {
        for state in [LinkState::Up, LinkState::Degraded, LinkState::Draining, LinkState::Down, LinkState::Idle] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
