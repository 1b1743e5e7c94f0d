//! The user that a daemon becomes when root starts it: nobody special, so that one that is broken into reads and connects to
//! what is nobody's in particular.
//!
//! ```text
//! root: device, addresses, ports ─▶ control socket, made as the user ─▶ the user, with capabilities ─▶ sandbox
//! ```

use std::ffi::CString;
use std::fmt::Display;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setegid, seteuid, setgid, setuid};

use super::handover;
use crate::config::{CONTROL_SOCKET_DIRECTORY, Config};

/// The user of the daemon, where that is not who has started it.
#[derive(Debug, Clone)]
pub struct DaemonUser {
    name: String,
    uid: Uid,
    gid: Gid,
}

/// Why a daemon that root has started does not go on.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is nobody else to be.
    #[error(
        "root has started the daemon, and there is no user {USER} for it to become: make that user (systemd-sysusers with \
         config/sysusers.conf, or useradd --system --user-group --no-create-home {USER}), or run it with --allow-root as root"
    )]
    Missing,
    /// Root of a container without the capabilities, or of a namespace that does not know the user.
    #[error(
        "root has started the daemon, and it can't become the user {USER} ({reason}): give it CAP_SETUID and CAP_SETGID, start \
         it as that user, or run it with --allow-root as root"
    )]
    Refused {
        /// The system's error.
        reason: String,
    },
}

impl DaemonUser {
    /// The user to become, if root runs this and is not allowed to. A program that takes the place of a root's daemon goes on
    /// as root where it can't become anybody: it must not end.
    pub fn wanted(allow_root: bool) -> Result<Option<Self>, UserError> {
        if !geteuid().is_root() || allow_root {
            return Ok(None);
        }
        match Self::find() {
            Err(error) if handover::is_successor() => {
                tracing::warn!(%error, "goes on as root until the service is restarted");
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    fn find() -> Result<Self, UserError> {
        let user = Self::named(USER).ok_or(UserError::Missing)?;
        let lacks = |capability| !caps::has_cap(None, CapSet::Permitted, capability).unwrap_or_default();
        match [Capability::CAP_SETUID, Capability::CAP_SETGID].into_iter().find(|capability| lacks(*capability)) {
            Some(lacking) => Err(UserError::Refused { reason: format!("without {lacking}") }),
            None => Ok(user),
        }
    }

    /// The one of this name, if there is one here.
    pub(super) fn named(name: &str) -> Option<Self> {
        let user = User::from_name(name).ok()??;
        Some(Self { name: user.name, uid: user.uid, gid: user.gid })
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the directory of control sockets to the user, if it is the usual one: no other may be anybody's but who made it.
    pub fn own_directory(&self, control_socket: &Path) {
        let Some(directory) = control_socket.parent().filter(|path| *path == Path::new(CONTROL_SOCKET_DIRECTORY))
        else {
            return;
        };
        let is_roots = |file: fs::Metadata| file.is_dir() && file.uid() == 0;
        // Where it is there already, or can't be made, the socket's own error says more.
        let _ = DirBuilder::new().mode(0o755).create(directory);
        if fs::symlink_metadata(directory).is_ok_and(is_roots)
            && let Err(error) = chown(directory, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
        {
            tracing::warn!(%error, directory = %directory.display(), user = self.name, "does not become the user's");
        }
    }

    /// Calls `work` as this user, and is root again.
    pub fn act<T>(&self, work: impl FnOnce() -> T) -> Result<T, UserError> {
        setegid(self.gid).and_then(|()| seteuid(self.uid)).map_err(refused)?;
        let outcome = work();
        seteuid(Uid::from_raw(0)).and_then(|()| setegid(Gid::from_raw(0))).map_err(refused)?;
        Ok(outcome)
    }

    /// Is this user from here on, with the groups that the system gives to it and the capabilities that root has had.
    pub(super) fn become_for_good(&self) -> Result<(), UserError> {
        let name = CString::new(self.name.as_str()).expect("the system's names have no zero");
        let permitted = caps::read(None, CapSet::Permitted).map_err(refused)?;
        prctl::set_keepcaps(true).map_err(refused)?;
        initgroups(&name, self.gid).and_then(|()| setgid(self.gid)).and_then(|()| setuid(self.uid)).map_err(refused)?;
        caps::set(None, CapSet::Effective, &permitted).map_err(refused)
    }

    /// Files that `config`, read from `file`, needs for a reload or a restart and the user may not read.
    pub fn unreadable(&self, config: &Config, file: &Path) -> Result<Vec<PathBuf>, UserError> {
        let is_denied =
            |path: &&PathBuf| File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        let file = file.to_owned();
        let files: Vec<&PathBuf> = config.key_files().into_iter().chain([&file]).collect();
        self.act(|| files.into_iter().filter(is_denied).cloned().collect())
    }
}

/// Advice on `config`, read from `file`, for a daemon that root starts here. Nothing, if root does not ask.
pub fn advice(config: &Config, file: &Path) -> Vec<String> {
    if !geteuid().is_root() {
        return Vec::new();
    }
    let Some(user) = DaemonUser::named(USER) else { return Vec::new() };
    let files = user.unreadable(config, file).unwrap_or_default();
    files.iter().map(|file| unreadable(file, user.name())).collect()
}

/// The sentence for the log and `check`.
pub fn unreadable(file: &Path, user: &str) -> String {
    format!(
        "the user {user} may not read {0}, so that a running daemon can't read it again: `chown {user}: {0}`, and let that user \
         into its directory",
        file.display()
    )
}

fn refused(error: impl Display) -> UserError {
    UserError::Refused { reason: error.to_string() }
}

/// That of `config/sysusers.conf`.
const USER: &str = "underpass";
