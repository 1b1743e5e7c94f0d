//! The client's end of the control socket: finding the daemon, asking it, waiting for its answer.
//!
//! Blocking, and without the daemon's runtime: the command line asks one question and ends.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;

use super::api::{Command, Drain, ErrorCode, Opened, Reload, Response, StatusReport};
use crate::config::CONTROL_SOCKET_DIRECTORY;

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket anywhere.
    #[error(
        "no daemon is running: there is no control socket in {directory}. Start one (underpass run --config FILE, or \
         systemctl start underpass@NAME), or name its socket with --socket if the configuration sets \
         interface.control_socket"
    )]
    NoneRunning {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// More than one socket, and none was named.
    #[error("several daemons are running: name one with --interface: {}", .interfaces.join(", "))]
    SeveralRunning {
        /// Their interfaces.
        interfaces: Vec<String>,
    },
    /// Nothing at the path.
    #[error("no daemon is running: {path} does not exist. Start it (underpass run --config FILE), or check the name")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// A socket with nobody behind it.
    #[error(
        "the daemon of {path} is dead: it left its socket behind. Its log says why; starting it again replaces the socket"
    )]
    Dead {
        /// The socket.
        path: PathBuf,
    },
    /// Not root.
    #[error("no permission to ask the daemon on {path}: run as root")]
    NoPermission {
        /// The socket.
        path: PathBuf,
    },
    /// Connected, then silence or a broken connection.
    #[error("the daemon on {path} does not answer")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither gone over to the new program nor an error.
    #[error("the daemon on {path} has not restarted: its log says why")]
    NoRestart {
        /// The socket.
        path: PathBuf,
    },
    /// An answer that is none of ours.
    #[error("the answer from {path} cannot be read, is that an underpass daemon of another version?")]
    BadAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An answer to another question.
    #[error("the daemon on {path} answered something else than it was asked, is it of another version?")]
    OtherAnswer {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon refused.
    #[error("{}: {message}", refusal(*.code))]
    Refused {
        /// Its code.
        code: ErrorCode,
        /// Its reason.
        message: String,
    },
}

/// The socket that the operator means: the path, else the interface's default, else the only one there is.
pub fn find_socket(path: Option<PathBuf>, interface: Option<&str>) -> Result<PathBuf, ClientError> {
    match (path, interface) {
        (Some(path), _) => Ok(path),
        (None, Some(interface)) => Ok(Path::new(CONTROL_SOCKET_DIRECTORY).join(format!("{interface}.sock"))),
        (None, None) => only_socket(Path::new(CONTROL_SOCKET_DIRECTORY)),
    }
}

/// Asks for the status of the daemon behind `socket`.
pub fn status(socket: &Path) -> Result<StatusReport, ClientError> {
    match ask(socket, &Command::Status, ANSWER_TIMEOUT)? {
        Response::Status(status) => Ok(*status),
        other => Err(ClientError::of(socket, other)),
    }
}

/// Has the daemon behind `socket` read its configuration file again.
pub fn reload(socket: &Path) -> Result<Reload, ClientError> {
    match ask(socket, &Command::Reload, RELOAD_TIMEOUT)? {
        Response::Reload(report) => Ok(report.reload),
        other => Err(ClientError::of(socket, other)),
    }
}

/// Asks the daemon behind `socket` what is different in its configuration file.
pub fn compare(socket: &Path) -> Result<Reload, ClientError> {
    match ask(socket, &Command::Compare, RELOAD_TIMEOUT)? {
        Response::Compare(report) => Ok(report.compare),
        other => Err(ClientError::of(socket, other)),
    }
}

/// Has a peer's link called draining by the daemon behind `socket`, or no longer.
pub fn set_draining(socket: &Path, peer: String, draining: bool) -> Result<Drain, ClientError> {
    let command = if draining { Command::Drain { peer } } else { Command::Undrain { peer } };
    match ask(socket, &command, ANSWER_TIMEOUT)? {
        Response::Drain(report) => Ok(report.drain),
        other => Err(ClientError::of(socket, other)),
    }
}

/// Has the daemon behind `socket` refuse nothing of `prefix` any longer that is not configured.
pub fn open(socket: &Path, prefix: IpNet) -> Result<Opened, ClientError> {
    match ask(socket, &Command::Open { prefix }, RELOAD_TIMEOUT)? {
        Response::Open(report) => Ok(report.open),
        other => Err(ClientError::of(socket, other)),
    }
}

/// Has the daemon behind `socket` restart in place, and asks the new one for its status once it answers.
pub fn restart(socket: &Path) -> Result<StatusReport, ClientError> {
    match ask(socket, &Command::Restart, RESTART_TIMEOUT) {
        // The old program, and its end of the connection, are gone: so it was done.
        Err(ClientError::NoAnswer { source, .. }) if is_closed(&source) => {}
        Err(ClientError::NoAnswer { .. }) => return Err(ClientError::NoRestart { path: socket.to_owned() }),
        Ok(answer) => return Err(ClientError::of(socket, answer)),
        Err(error) => return Err(error),
    }
    for _ in 0..NEW_DAEMON_TRIES {
        match status(socket) {
            Err(ClientError::NotRunning { .. } | ClientError::Dead { .. } | ClientError::NoAnswer { .. }) => {}
            answer => return answer,
        }
        thread::sleep(NEW_DAEMON_PAUSE);
    }
    status(socket)
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

impl ClientError {
    /// The error that an answer other than the expected one is.
    fn of(socket: &Path, answer: Response) -> Self {
        match answer {
            Response::Error(report) => Self::Refused { code: report.error.code, message: report.error.message },
            _ => Self::OtherAnswer { path: socket.to_owned() },
        }
    }
}

/// What a message of the daemon's is about.
fn refusal(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::ConfigRefused => "nothing was changed",
        ErrorCode::ReloadFailed => "the configuration could not be applied",
        ErrorCode::UnknownPeer => "nothing to do",
        ErrorCode::OpenFailed => "not all of it could be opened",
        _ => "the daemon refused the request",
    }
}

fn ask(socket: &Path, command: &Command, patience: Duration) -> Result<Response, ClientError> {
    let no_answer = |source| ClientError::NoAnswer { path: socket.to_owned(), source };
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(patience)).map_err(no_answer)?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(no_answer)?;
    // A daemon that is busy answers and closes without reading, so a failed write is not yet the end.
    let written = stream.write_all(&command.encode());
    let mut line = Vec::new();
    BufReader::new(stream).take(MAX_ANSWER_LEN).read_until(b'\n', &mut line).map_err(no_answer)?;
    if line.is_empty() {
        written.map_err(no_answer)?;
        return Err(no_answer(io::ErrorKind::UnexpectedEof.into()));
    }
    Response::decode(&line).map_err(|source| ClientError::BadAnswer { path: socket.to_owned(), source })
}

fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    let path = socket.to_owned();
    UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ClientError::NotRunning { path },
        io::ErrorKind::ConnectionRefused => ClientError::Dead { path },
        io::ErrorKind::PermissionDenied => ClientError::NoPermission { path },
        _ => ClientError::NoAnswer { path, source: error },
    })
}

fn only_socket(directory: &Path) -> Result<PathBuf, ClientError> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut sockets: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    sockets.sort();
    match sockets.as_slice() {
        [] => Err(ClientError::NoneRunning { directory: directory.to_owned() }),
        [_] => Ok(sockets.remove(0)),
        _ => {
            let name = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            Err(ClientError::SeveralRunning { interfaces: sockets.iter().filter_map(name).collect() })
        }
    }
}

/// A daemon answers within milliseconds; one that is stopped or hangs should not hang its operator too.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a daemon waits for its files, and sets ten thousand routes.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than the daemon waits for its successor's opinion of the configuration.
const RESTART_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the new daemon is asked, and the pause after each try: ten seconds, of which a few hundredths are needed.
const NEW_DAEMON_TRIES: usize = 500;
const NEW_DAEMON_PAUSE: Duration = Duration::from_millis(20);
/// 100,000 peers fit.
const MAX_ANSWER_LEN: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn takes_the_only_socket_there_is() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(only_socket(directory.path()), Err(ClientError::NoneRunning { .. })));
        assert!(matches!(only_socket(&directory.path().join("missing")), Err(ClientError::NoneRunning { .. })));
        let path = directory.path().join("blue.sock");
        let _blue = UnixListener::bind(&path).unwrap();
        std::fs::write(directory.path().join("note.sock"), "a file, not a socket").unwrap();
        assert_eq!(only_socket(directory.path()).unwrap(), path);
        let _red = UnixListener::bind(directory.path().join("red.sock")).unwrap();
        let error = only_socket(directory.path()).unwrap_err().to_string();
        assert!(error.ends_with("--interface: blue, red"), "{error}");
    }

    #[test]
    fn a_named_socket_or_interface_is_not_looked_for() {
        assert_eq!(find_socket(Some("/x.sock".into()), Some("blue")).unwrap(), Path::new("/x.sock"));
        assert_eq!(find_socket(None, Some("blue")).unwrap(), Path::new("/run/underpass/blue.sock"));
    }

    #[test]
    fn tells_a_missing_daemon_from_a_dead_one_and_from_a_stranger() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        assert!(matches!(status(&path), Err(ClientError::NotRunning { .. })));
        let listener = UnixListener::bind(&path).unwrap();
        let stranger = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"220 hello\n").unwrap());
        assert!(matches!(status(&path), Err(ClientError::BadAnswer { .. })));
        stranger.join().unwrap();
        assert!(matches!(status(&path), Err(ClientError::Dead { .. })));
    }
}
