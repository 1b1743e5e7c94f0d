//! The privileged process: does for the daemon what takes a capability, so that the daemon, which reads what anybody on the
//! network sends, has none.
//!
//! ```text
//!                        requests (numbered), a socket that needs something
//!   daemon ──────────────────────────────────────────────────────────────────▶ privileged process ──▶ routes, addresses
//!   no capability ◀────────────────────────────────────────────────────────── CAP_NET_ADMIN     └──▶ nftables
//!     │                  done or refused, the queues of a device                 │
//!     └─▶ configuration file, keys                                               └─▶ configuration file, without keys
//! ```
//!
//! The list of requests is closed ([`Request`]). None carries an address, a route or a rule: the privileged process reads the
//! configuration file itself and does what that says, so that whoever has taken over the daemon gets nothing that the file
//! does not have. It holds no key, sees no packet, and ends with the daemon.
//!
//! The program is the daemon's own, started anew: its memory has never held what the daemon's has. A daemon that is restarted in place
//! hands it on, and it starts its own program anew, too.

mod channel;
mod client;
mod plan;
mod process;

use std::io::{self, ErrorKind};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::api::GuardReport;
use super::netlink::{NetlinkError, SuperpacketLimit};
use crate::dataplane::SocketGrant;

pub use client::{PrivilegedError, PrivilegedProcess, Reports};
pub use plan::PrivilegedPlan;
pub use process::{ProcessError, run};

/// A request of the daemon's. `expects` is the [digest](PrivilegedPlan::digest) of what the file says, as the daemon has
/// read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Request {
    /// Reads the file again, for what comes next.
    Load { expects: String },
    /// Sets up the interface, its routes, and the nftables table.
    Configure { device: Device },
    /// Adds what the file has that was not there before, and lets nothing of it pass elsewhere.
    Prepare,
    /// Removes what was there before and the file has no longer.
    Commit,
    /// Undoes [`Prepare`](Self::Prepare), and goes on with the file as it was before.
    Rollback,
    /// Puts back what of the interface and its routes is missing.
    Repair,
    /// Has the interface take packets of this length, as far as the file leaves that to the daemon.
    SetMtu { mtu: u16 },
    /// Changes how long superpackets may be.
    LimitSuperpackets(SuperpacketLimit),
    /// Refuses nothing in `prefix` any longer but what is configured.
    Open { prefix: IpNet },
    /// Gives something to the UDP or TCP socket that comes with it, as far as the file says so.
    Grant(SocketGrant),
    /// Creates the configured device. Its queues come back.
    CreateDevice,
    /// Starts the program anew that lies on disk.
    Renew,
}

/// The device, as far as the daemon knows it and the file does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Set when it takes superpackets.
    pub offload: bool,
    /// Set if an earlier daemon has set it up.
    pub is_kept: bool,
    /// Set if it was made beforehand.
    pub is_prepared: bool,
}

/// A request with its number, by which the answer is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    content: T,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Reply {
    /// The process has started. Number 0.
    Started(Started),
    /// Success.
    Done,
    /// The interface is set up.
    Configured(Configured),
    /// Success, but for the things that are named here.
    Left(Vec<String>),
    /// So much was put back, and what was not.
    Repaired(Repaired),
    /// Failure.
    Refused(Refusal),
}

/// The privileged process, as it is after its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Of the program.
    pub version: String,
    /// The process's number.
    pub pid: u32,
    /// The names of its capabilities.
    pub capabilities: Vec<String>,
    /// The parts that its sandbox lacks, each with the reason.
    pub lacks: Vec<String>,
}

/// An interface that is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// Set for an interface that was set up beforehand, and that nobody here has the privilege to change.
    pub is_prepared: bool,
    /// Set if the privileged process is of use: it may change addresses and routes.
    pub may_configure: bool,
    /// Largest packet that the interface takes.
    pub mtu: u16,
    /// The nftables table.
    pub guard: GuardReport,
}

/// The outcome of a repair.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Repaired {
    /// How much was put back.
    pub done: u64,
    /// The rest, with the kernel's answers.
    pub failed: Vec<String>,
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Of which kind the reason is.
    pub kind: RefusalKind,
    /// The reason, with its causes.
    pub text: String,
    /// The system's number of the reason, if it has one.
    pub errno: Option<i32>,
    /// Things that had been done before and could not be taken back.
    pub left: Vec<String>,
}

/// By which the daemon picks its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The file was refused, or says something else by now.
    Configuration,
    /// A capability is missing.
    Permission,
    /// An address or route is somebody else's.
    Address,
    /// The kernel refuses it.
    Device,
    /// It is not on the list, or not in the file.
    NotGranted,
}

/// A message of the privileged process that nobody has asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Report {
    /// The state of the nftables table.
    Guard(GuardReport),
}

impl From<NetlinkError> for Refusal {
    fn from(error: NetlinkError) -> Self {
        Self { kind: (&error).into(), text: chain(&error), errno: None, left: Vec::new() }
    }
}

impl From<&NetlinkError> for RefusalKind {
    fn from(error: &NetlinkError) -> Self {
        match error {
            NetlinkError::NoPermission { .. } | NetlinkError::Unprepared { .. } => Self::Permission,
            NetlinkError::AddressInUse { .. }
            | NetlinkError::NetworkInUse { .. }
            | NetlinkError::RouteExists { .. }
            | NetlinkError::Ipv6Disabled { .. } => Self::Address,
            NetlinkError::Open(_) | NetlinkError::Refused { .. } => Self::Device,
        }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        refusal.errno.map_or_else(|| Self::new(ErrorKind::PermissionDenied, refusal.text), Self::from_raw_os_error)
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
