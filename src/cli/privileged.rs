//! `underpass privileged`: what a daemon starts for what takes a capability.

use super::arguments::{LogArguments, RunArguments};
use super::{Exit, Failure};
use crate::control::handover::{self, Received};
use crate::control::privileged::{self, ProcessError};
use crate::logging;

/// Serves the daemon that has started it, until that ends.
pub fn run(arguments: &RunArguments) -> Result<(), Failure> {
    let journal = Received::all().take(handover::JOURNAL);
    let LogArguments { log_level, log_format } = &arguments.log;
    let log = logging::start(log_level.as_deref(), *log_format, journal);
    log.map_err(|error| Failure::new(Exit::Usage, error))?;
    Ok(privileged::run(&arguments.config, arguments.allow_root, logging::journal_socket())?)
}

impl From<ProcessError> for Failure {
    fn from(error: ProcessError) -> Self {
        let exit = match &error {
            ProcessError::NoDaemon => Exit::Usage,
            ProcessError::Config(_) => Exit::Config,
            ProcessError::User(_) | ProcessError::Sandbox(_) => Exit::Permission,
            ProcessError::Io(_) => Exit::Other,
        };
        Self::new(exit, error)
    }
}
