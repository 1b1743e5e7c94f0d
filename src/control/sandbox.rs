//! What the daemon gives up once everything is open and before the first packet: privileges, files, ports and system calls
//! that it does not need to go on, to read its configuration again and to start anew in its place.
//!
//! What takes a capability is done by its [privileged process](super::privileged), which is in a sandbox of its own.
//!
//! ```text
//! memory locked, no core ─▶ capabilities ─▶ no new privileges ─▶ files and ports ─▶ system calls
//!                                                                 (Landlock)         (seccomp)
//! ```
//!
//! All but the first belong to the thread that enters, to those that it starts later and to every program that takes the
//! process's place: nothing gives them back.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process;

use serde::{Deserialize, Serialize};

use super::api::SandboxReport;
use super::user::{DaemonUser, UserError, unreadable};
use crate::config::{Config, SandboxPolicy};

mod access;
mod allowed;
pub(super) mod capabilities;
mod memory;
mod proof;
mod system_calls;

pub use allowed::Allowed;

/// Which process is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The daemon.
    Daemon,
    /// Its [privileged process](super::privileged).
    Privileged,
}

/// The state of a daemon's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// `None` if there is none.
    entered: Option<Entered>,
    /// The names of the capabilities that are left.
    capabilities: Vec<String>,
}

/// Why a daemon can't give up what it is to give up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// It can't become its own user.
    #[error(transparent)]
    User(#[from] UserError),
    /// All of the sandbox is required, and the system does not give it.
    #[error(
        "interface.sandbox: the whole sandbox is required, and this system does not give it: {}. Give the service what it lacks, \
         or write sandbox = true to start with less", .lacks.join("; ")
    )]
    Incomplete {
        /// What is missing, each with the reason.
        lacks: Vec<String>,
    },
}

/// What a program that takes the process's place has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entered {
    /// Of the program that made the rules.
    version: String,
    allowed: Allowed,
    /// What could not be had, each with the reason.
    lacks: Vec<String>,
}

impl Sandbox {
    /// Becomes `user`, if one is given, and enters the sandbox that `config`, read from `file`, needs to go on with `program` on
    /// disk, unless it is turned off. Before the process has a second thread. What the kernel lacks is passed over and told,
    /// with what other processes of this daemon lack, unless all of it is required.
    pub fn enter(
        part: Part,
        config: &Config,
        file: &Path,
        program: &Path,
        user: Option<&DaemonUser>,
        others_lack: &[String],
    ) -> Result<Self, SandboxError> {
        let allowed = Allowed::new(part, config, file).and_programs_beside(program);
        if !config.interface.sandbox.is_on() {
            return Ok(Self::none(&allowed, config, file, user)?);
        }
        let mut lacks = Vec::new();
        // Root lifts the limit before it is nobody special. The kernel decides anew on dumps when the user changes. The
        // privileged process has no keys.
        if part == Part::Daemon {
            lacks.extend(memory::lock().err());
        }
        change_user(user, config, file)?;
        lacks.extend(memory::refuse_to_be_read().err());
        lacks.extend(capabilities::drop_all_but(&allowed).err());
        let entered = match inherited() {
            Some((pid, before)) if pid == process::id() && before.made_the_same(&allowed) && proof::is_inside() => {
                before
            }
            _ => {
                lacks.extend(allowed.enforce());
                Entered { version: VERSION.to_owned(), allowed, lacks }
            }
        };
        let mut sandbox = Self { entered: Some(entered), capabilities: capabilities::left() };
        if part == Part::Daemon {
            sandbox.judge(config.interface.sandbox, others_lack)?;
        }
        Ok(sandbox)
    }

    fn none(allowed: &Allowed, config: &Config, file: &Path, user: Option<&DaemonUser>) -> Result<Self, UserError> {
        change_user(user, config, file)?;
        if (user.is_some() || config.interface.drop_capabilities)
            && let Err(error) = capabilities::drop_all_but(allowed)
        {
            tracing::warn!(error);
        }
        Ok(Self { entered: None, capabilities: capabilities::left() })
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.entered.is_some()
    }

    /// Directories whose files it lets be read, if it is not just any.
    pub fn readable(&self) -> Option<Vec<PathBuf>> {
        self.entered.as_ref().map(|entered| entered.allowed.readable())
    }

    /// What it looks like from outside.
    pub fn report(&self) -> SandboxReport {
        let entered = self.entered.as_ref();
        SandboxReport {
            on: self.is_on(),
            lacks: entered.map(|entered| entered.lacks.clone()).unwrap_or_default(),
            capabilities: self.capabilities.clone(),
            reads: entered.map(|entered| entered.allowed.readable()).unwrap_or_default(),
            writes: entered.map(|entered| entered.allowed.write.iter().cloned().collect()).unwrap_or_default(),
            privileged: None,
        }
    }

    /// The variable by which a program that is started in it knows it.
    pub fn variable(&self) -> Option<(OsString, OsString)> {
        let entered = serde_json::to_string(self.entered.as_ref()?).ok()?;
        Some((VARIABLE.into(), format!("{}:{entered}", process::id()).into()))
    }

    fn judge(&mut self, policy: SandboxPolicy, others_lack: &[String]) -> Result<(), SandboxError> {
        let Some(Entered { lacks, .. }) = &mut self.entered else { return Ok(()) };
        for lack in others_lack {
            if !lacks.contains(lack) {
                lacks.push(lack.clone());
            }
        }
        match lacks.as_slice() {
            [] => Ok(()),
            lacks if policy == SandboxPolicy::Required => Err(SandboxError::Incomplete { lacks: lacks.to_vec() }),
            lacks => {
                tracing::warn!(lacks = lacks.join("; "), "the sandbox is not complete");
                Ok(())
            }
        }
    }
}

impl Entered {
    fn made_the_same(&self, allowed: &Allowed) -> bool {
        self.version == VERSION && self.allowed == *allowed
    }
}

/// After a look at what it won't be able to read again.
fn change_user(user: Option<&DaemonUser>, config: &Config, file: &Path) -> Result<(), UserError> {
    let Some(user) = user else { return Ok(()) };
    for file in user.unreadable(config, file)? {
        tracing::warn!("{}", unreadable(&file, user.name()));
    }
    user.become_for_good()
}

/// The directories that this program may read, if a sandboxed daemon has started it.
pub fn readable_here() -> Option<Vec<PathBuf>> {
    inherited().map(|(_, entered)| entered.allowed.readable())
}

/// What `config`, read from `file`, needs and the sandbox does not let the daemon have that asks this program whether it
/// could take its place. Empty if no daemon asks.
pub fn missing_here(config: &Config, file: &Path) -> Vec<String> {
    let Some((_, entered)) = inherited() else { return Vec::new() };
    if !config.interface.sandbox.is_on() {
        return vec!["interface.sandbox: what the sandbox has taken, a restart in place can't give back".to_owned()];
    }
    let mut missing = entered.allowed.missing_for(&Allowed::new(Part::Daemon, config, file));
    if config.interface.sandbox == SandboxPolicy::Required && !entered.lacks.is_empty() {
        missing.push(SandboxError::Incomplete { lacks: entered.lacks }.to_string());
    }
    missing
}

/// What has to be done where a sandbox is in the way.
pub const REMEDY: &str = "have the service manager restart it: systemctl restart";

/// The process that has entered, and what.
fn inherited() -> Option<(u32, Entered)> {
    decode(&env::var(VARIABLE).ok()?)
}

fn decode(value: &str) -> Option<(u32, Entered)> {
    let (pid, entered) = value.split_once(':')?;
    Some((pid.parse().ok()?, serde_json::from_str(entered).ok()?))
}

/// Holds the number of the process that has entered, and what: `1234:{"version":…}`.
pub const VARIABLE: &str = "UNDERPASS_SANDBOX";
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod tests;
