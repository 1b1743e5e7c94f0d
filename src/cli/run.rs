//! `underpass run`: the daemon, in the foreground.

use super::arguments::{LogArguments, RunArguments};
use super::{Exit, Failure};
use crate::config::Config;
use crate::control::daemon::{self, DaemonError, Invocation};
use crate::control::handover::{self, Received};
use crate::control::health::HealthError;
use crate::control::netlink::NetlinkError;
use crate::control::privileged::{PrivilegedError, RefusalKind};
use crate::control::socket::SocketError;
use crate::dataplane::{BindError, Failure as DataplaneFailure, StartError, TunError};
use crate::logging;

/// Runs until a signal ends it.
pub fn run(arguments: &RunArguments) -> Result<(), Failure> {
    let mut received = Received::all();
    let journal = received.take(handover::JOURNAL);
    let LogArguments { log_level, log_format } = &arguments.log;
    let log = logging::start(log_level.as_deref(), *log_format, journal);
    log.map_err(|error| Failure::new(Exit::Usage, error))?;
    let invocation = Invocation {
        file: &arguments.config,
        allow_root: arguments.allow_root,
        received,
        journal: logging::journal_socket(),
        log_arguments: arguments.log.words(),
    };
    Ok(daemon::run(Config::load(&arguments.config)?, invocation)?)
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        Self::new(exit(&error), error)
    }
}

fn exit(error: &DaemonError) -> Exit {
    match error {
        DaemonError::Runtime(_) => Exit::Other,
        DaemonError::Socket(error) => match error {
            SocketError::AlreadyRunning { .. } => Exit::Address,
            SocketError::NoPermission { .. } | SocketError::NotForUser { .. } => Exit::Permission,
            SocketError::NotASocket { .. } | SocketError::Refused { .. } => Exit::Other,
        },
        DaemonError::Health(error) => match error {
            HealthError::NoPermission { .. } => Exit::Permission,
            HealthError::Taken { .. } | HealthError::NoSuchAddress { .. } | HealthError::Refused { .. } => {
                Exit::Address
            }
        },
        DaemonError::Dataplane(error) => match error {
            StartError::Tun(TunError::NoPermission) | StartError::Bind(BindError::NoPermission { .. }) => {
                Exit::Permission
            }
            StartError::Tun(TunError::NameTaken(_)) | StartError::Bind(_) => Exit::Address,
            StartError::Tun(_) => Exit::Device,
            StartError::NoRandomness | StartError::Thread(_) => Exit::Other,
        },
        DaemonError::Privileged(error) => exit_of_privileged(error),
        DaemonError::User(_) | DaemonError::Sandbox(_) => Exit::Permission,
        DaemonError::Failed(DataplaneFailure::TunGone(_)) => Exit::Device,
        DaemonError::Failed(_) => Exit::Other,
        DaemonError::Netlink(error) => exit_of_netlink(error),
    }
}

fn exit_of_privileged(error: &PrivilegedError) -> Exit {
    match error {
        PrivilegedError::Refused(refusal) => exit_of_refusal(refusal.kind),
        PrivilegedError::NotStarted(_) | PrivilegedError::GivenUp | PrivilegedError::Gone(_) => Exit::Other,
    }
}

pub(super) fn exit_of_netlink(error: &NetlinkError) -> Exit {
    exit_of_refusal(error.into())
}

fn exit_of_refusal(kind: RefusalKind) -> Exit {
    match kind {
        RefusalKind::Configuration => Exit::Config,
        RefusalKind::Permission => Exit::Permission,
        RefusalKind::Address => Exit::Address,
        RefusalKind::Device => Exit::Device,
        RefusalKind::NotGranted => Exit::Other,
    }
}
