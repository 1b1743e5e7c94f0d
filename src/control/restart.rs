//! Starting the daemon anew in its own process: the program as it lies on disk takes the place of the running one, and is
//! left its TUN and sockets. No peer is told, and no inner connection notices more than a moment's silence.

use std::cell::RefCell;
use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::unistd::execve;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::api::{ApiError, ErrorCode};
use super::audit;
use super::handover;
use super::privileged::{PrivilegedProcess, Reports};
use super::remembered::RememberedPeers;
use super::running::stopping;
use super::sandbox::{REMEDY, Sandbox};
use super::socket::ControlSocket;
use super::systemd;
use crate::dataplane::Dataplane;

/// Restarts as they are asked for, by SIGUSR2 or by clients.
#[derive(Debug)]
pub struct Restarts {
    program: Program,
    signal: Signal,
    requests: Receiver<Requester>,
    /// The socket that log entries leave by, if they go to the journal.
    journal: Option<BorrowedFd<'static>>,
    privileged: PrivilegedProcess,
}

/// A client's way to ask for one.
#[derive(Debug, Clone)]
pub struct RestartRequests(Sender<Requester>);

/// Who is told if there is no restart. After one, nobody is left to be told: the connection ends with the old program.
type Requester = oneshot::Sender<RestartError>;

/// What to start.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    configuration: PathBuf,
    /// By which it knows the sandbox that it is started in, if there is one.
    sandbox: Option<(OsString, OsString)>,
}

/// Why there is no new daemon; the old one goes on.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// The file is missing, or no program.
    #[error("{path} can't be started: {source}", path = .path.display())]
    NoProgram {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It lies where none may be started.
    #[error("the sandbox does not let the running daemon start {path}: {}", REMEDY, path = .path.display())]
    OutsideSandbox {
        /// The program.
        path: PathBuf,
    },
    /// It starts and does not like what it sees.
    #[error("{path} refuses the configuration: {said}", path = .path.display())]
    Refused {
        /// The program.
        path: PathBuf,
        /// What it printed.
        said: String,
    },
    /// It starts and does not end.
    #[error("{path} does not say what it thinks of the configuration", path = .path.display())]
    NoAnswer {
        /// The program.
        path: PathBuf,
    },
    /// The last step failed.
    #[error("{path} could not take this daemon's place: {source}", path = .path.display())]
    Exec {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Restarts {
    /// Of this daemon, to `program`, which is left the ways to the `journal` and to the privileged process too. Must be called
    /// inside a tokio runtime.
    pub fn new(
        program: Program,
        journal: Option<BorrowedFd<'static>>,
        privileged: PrivilegedProcess,
    ) -> io::Result<(Self, RestartRequests)> {
        let (sender, requests) = channel(1);
        let signal = signal(SignalKind::user_defined2())?;
        Ok((Self { program, signal, requests, journal, privileged }, RestartRequests(sender)))
    }

    /// The daemon is in `sandbox` from here on, and so is what comes after it.
    pub fn enter(&mut self, sandbox: &Sandbox) {
        self.program.enter(sandbox);
    }

    /// What is started.
    pub fn program(&self) -> &Path {
        &self.program.path
    }

    /// Restarts whenever that is asked for, which ends this program; what stands against it is told, and all goes on.
    pub async fn serve(
        mut self,
        dataplane: &RefCell<Dataplane>,
        control_socket: &ControlSocket,
        reports: &Reports,
        remembered: &RefCell<RememberedPeers>,
    ) -> Infallible {
        loop {
            let requester = self.wanted().await;
            remembered.borrow_mut().write();
            self.restart(&dataplane.borrow(), (control_socket, reports), requester);
        }
    }

    /// Waits until a restart is asked for and the program on disk is fit for it. Returns who has asked, if not a signal.
    async fn wanted(&mut self) -> Option<Requester> {
        loop {
            let requester = tokio::select! {
                _ = self.signal.recv() => None,
                Some(requester) = self.requests.recv() => Some(requester),
            };
            match self.program.check().await {
                Ok(()) => return requester,
                Err(error) => refuse(requester, error),
            }
        }
    }

    /// Gives this process's place to the program on disk. Returns only if that can't be, and all goes on as before.
    fn restart(
        &self,
        dataplane: &Dataplane,
        (control_socket, reports): (&ControlSocket, &Reports),
        requester: Option<Requester>,
    ) {
        audit::restarting();
        if !dataplane.pause() {
            tracing::warn!("a worker does not pause: what it has in hand is lost");
        }
        let privileged = self.privileged.socket();
        let unix = [
            (handover::LISTENER, Some(control_socket.as_fd())),
            (handover::MANAGER, systemd::socket()),
            (handover::JOURNAL, self.journal),
            (handover::PRIVILEGED, privileged.as_ref().map(AsFd::as_fd)),
            (handover::REPORTS, reports.socket()),
        ];
        let mut descriptors = dataplane.descriptors();
        descriptors.extend(unix.into_iter().filter_map(|(name, socket)| Some((name.to_owned(), socket?))));
        let error = self.program.take_over(&descriptors, Some(control_socket.path()));
        dataplane.resume();
        refuse(requester, error);
    }
}

fn refuse(requester: Option<Requester>, error: RestartError) {
    audit::restart_refused(&error);
    // Nobody is told if it was a signal, or the client has left.
    requester.map(|requester| requester.send(error));
}

impl RestartRequests {
    /// Asks, and waits for the end of this program, or the reason why there is none.
    pub async fn request(&self) -> ApiError {
        let (requester, refusal) = oneshot::channel();
        match self.0.try_send(requester) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return ApiError::new(ErrorCode::Busy, "a restart is under way"),
            Err(TrySendError::Closed(_)) => return stopping(),
        }
        match refusal.await {
            Ok(error) => ApiError::new(ErrorCode::RestartFailed, error.to_string()),
            Err(_) => stopping(),
        }
    }
}

impl Program {
    /// This one, which runs with `configuration`, by the path by which it was started: whatever lies there when it is
    /// started again.
    pub fn of_this_process(configuration: &Path) -> Self {
        let arguments: Vec<OsString> = env::args_os().collect();
        let path = path_of(arguments.first().map_or(Path::new(""), Path::new));
        Self { path, arguments, configuration: configuration.to_owned(), sandbox: None }
    }

    /// Whether it starts, and accepts its configuration.
    pub async fn check(&self) -> Result<(), RestartError> {
        let path = || self.path.clone();
        let mut check = Command::new(&self.path);
        check.envs(self.sandbox.clone());
        check.args(["check", "--config"]).arg(&self.configuration).stdin(Stdio::null()).kill_on_drop(true);
        let output =
            timeout(CHECK_TIMEOUT, check.output()).await.map_err(|_| RestartError::NoAnswer { path: path() })?;
        let output = output.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied if self.sandbox.is_some() => RestartError::OutsideSandbox { path: path() },
            _ => RestartError::NoProgram { path: path(), source },
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(RestartError::Refused {
            path: path(),
            said: if said.is_empty() { output.status.to_string() } else { said },
        })
    }

    /// The program is started in `sandbox` from here on.
    pub fn enter(&mut self, sandbox: &Sandbox) {
        self.sandbox = sandbox.variable();
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes this process's place, with `descriptors`. Returns only if it can't: then nothing has changed.
    pub fn take_over(&self, descriptors: &[(String, BorrowedFd<'_>)], control_socket: Option<&Path>) -> RestartError {
        let mut environment = handover::environment(descriptors, control_socket);
        environment.extend(self.sandbox.clone());
        let errno = self.exec(descriptors, environment).unwrap_or_else(|errno| errno);
        RestartError::Exec { path: self.path.clone(), source: errno.into() }
    }

    fn exec(
        &self,
        descriptors: &[(String, BorrowedFd<'_>)],
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Errno, Errno> {
        let path = c_string(self.path.clone().into())?;
        let arguments = self.arguments.iter().cloned().map(c_string).collect::<Result<Vec<_>, _>>()?;
        let assign = |(mut name, value): (OsString, OsString)| {
            name.push("=");
            name.push(value);
            c_string(name)
        };
        let environment = environment.into_iter().map(assign).collect::<Result<Vec<_>, _>>()?;
        let leave = |flags: FdFlag| {
            let mut descriptors = descriptors.iter();
            descriptors.try_for_each(|(_, descriptor)| fcntl(descriptor, FcntlArg::F_SETFD(flags)).map(drop))
        };
        leave(FdFlag::empty())?;
        // One that comes from here on waits for the new program, which else it would end before it has handlers.
        let blocked = SigSet::thread_get_mask()?;
        handled_signals().thread_block()?;
        let Err(errno) = execve(&path, &arguments, &environment);
        blocked.thread_set_mask()?;
        leave(FdFlag::FD_CLOEXEC)?;
        Ok(errno)
    }
}

/// Lets signals in that a predecessor has held back for this program, now that it has handlers.
pub fn admit_signals() -> io::Result<()> {
    Ok(handled_signals().thread_unblock()?)
}

fn handled_signals() -> SigSet {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
    SigSet::from_iter([SIGTERM, SIGINT, SIGHUP, SIGUSR2])
}

fn c_string(text: OsString) -> Result<CString, Errno> {
    CString::new(text.into_vec()).map_err(|_| Errno::EINVAL)
}

/// The path that leads to the running program by the name that it was started under: a link there may lead elsewhere
/// later. Where that can't be told, the program's own path.
fn path_of(name: &Path) -> PathBuf {
    let running = env::current_exe().unwrap_or_else(|_| name.to_owned());
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let candidates: Vec<PathBuf> = if name.as_os_str().as_bytes().contains(&b'/') {
        std::path::absolute(name).into_iter().collect()
    } else {
        let search = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&search).map(|directory| directory.join(name)).collect()
    };
    let running_identity = identity(&running);
    let is_running = |path: &PathBuf| running_identity.is_some() && identity(path) == running_identity;
    candidates.into_iter().find(is_running).unwrap_or(running)
}

/// A program that hangs is no successor.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program that does what a shell script says.
    fn program(directory: &Path, script: &str) -> Program {
        let path = directory.join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let configuration = "/etc/underpass/blue.toml".into();
        Program { path, arguments: vec!["program".into()], configuration, sandbox: None }
    }

    fn check(program: &Program) -> Result<(), RestartError> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(program.check())
    }

    #[test]
    fn a_program_that_accepts_the_configuration_is_one_to_start() {
        let directory = tempfile::tempdir().unwrap();
        let accepts = program(directory.path(), r#"[ "$*" = "check --config /etc/underpass/blue.toml" ]"#);
        check(&accepts).unwrap();
    }

    #[test]
    fn a_program_that_refuses_the_configuration_or_does_not_start_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let refuses = program(directory.path(), "echo 'line 3: no such key' >&2; exit 3");
        assert!(check(&refuses).unwrap_err().to_string().ends_with("refuses the configuration: line 3: no such key"));
        let crashes = program(directory.path(), "kill -SEGV $$");
        assert!(check(&crashes).unwrap_err().to_string().contains("signal: 11"));
        fs::write(&crashes.path, "no program").unwrap();
        fs::remove_file(&crashes.path).unwrap();
        assert!(matches!(check(&crashes), Err(RestartError::NoProgram { .. })));
    }

    #[test]
    fn an_exec_that_fails_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Program { path: directory.path().join("missing"), ..program(directory.path(), "") };
        let file = fs::File::open("/dev/null").unwrap();
        let error = missing.take_over(&[("tun-0".into(), std::os::fd::AsFd::as_fd(&file))], None);
        assert!(error.to_string().contains("could not take this daemon's place"), "{error}");
        let flags = FdFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        assert!(!SigSet::thread_get_mask().unwrap().contains(nix::sys::signal::Signal::SIGTERM));
    }

    #[test]
    fn the_path_is_the_one_by_which_the_program_was_started() {
        let running = env::current_exe().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("underpass");
        std::os::unix::fs::symlink(&running, &link).unwrap();
        assert_eq!(path_of(&link), link);
        assert_eq!(path_of(Path::new("underpass-of-nobody")), running);
        assert_eq!(path_of(Path::new("/bin/sh")), running);
    }
}
