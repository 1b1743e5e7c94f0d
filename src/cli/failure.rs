//! Why a command failed, and the exit code that says so to scripts.

use std::io;

use crate::config::ConfigError;

/// The exit codes other than 0. `--help` and `docs/operations.md` list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Any failure that has no code of its own.
    Other = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration or a key file was refused.
    Config = 3,
    /// The system refuses what root or CAP_NET_ADMIN may do.
    Permission = 4,
    /// An address or port is in use or cannot be bound.
    Address = 5,
    /// There is no TUN device, or it reports an error.
    Device = 6,
    /// The daemon cannot be reached.
    Unreachable = 7,
    /// A check of a running installation has failed, or something is wrong with a link.
    Unverified = 8,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Other,
        Self::Usage,
        Self::Config,
        Self::Permission,
        Self::Address,
        Self::Device,
        Self::Unreachable,
        Self::Unverified,
    ];
}

/// A failed command: its exit code and what to tell the user.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong, as a chain of causes.
    pub error: anyhow::Error,
}

impl Failure {
    /// `error` with the exit code `exit`.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }

    /// The same failure with what was being done in front of it.
    pub fn context(self, doing: String) -> Self {
        Self { exit: self.exit, error: self.error.context(doing) }
    }

    /// Set when standard output was closed by its reader, as in `underpass man | head -1`: no failure of ours.
    pub fn is_closed_pipe(&self) -> bool {
        let causes = &mut self.error.chain();
        causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::Permission } else { Exit::Other };
        Self::new(exit, error)
    }
}
