//! The daemon's end of the control socket: who may connect, for how long, and one answer per request line.
//!
//! It knows nothing of what is asked: the answers come from a function.

use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::api::{ApiError, Command, ErrorCode, MAX_REQUEST_LEN, Response};
use super::audit;
use crate::config::CONTROL_SOCKET_DIRECTORY;

/// The bound socket. Its file vanishes when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that no other daemon's is removed.
    file: (u64, u64),
    /// For a request to come and for an answer to be taken.
    client_timeout: Duration,
}

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A daemon answers there.
    #[error(
        "underpass is already running: a daemon answers on {path} (see underpass status). To run a second one, give it \
         another interface.name or interface.control_socket"
    )]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies at the path.
    #[error(
        "interface.control_socket: {path} exists and is not a socket; it was left alone. Remove it or name another path"
    )]
    NotASocket {
        /// What lies in the way.
        path: PathBuf,
    },
    /// Not root, usually.
    #[error(
        "no permission to create the control socket {path}: run as root, or set interface.control_socket to a path you may write"
    )]
    NoPermission {
        /// The socket.
        path: PathBuf,
    },
    /// A socket that is made as the daemon's own user.
    #[error(
        "the user {user}, which a daemon that root starts becomes, may not create the control socket {path}: let that user write \
         to its directory (chown {user}:), or set interface.control_socket to another path"
    )]
    NotForUser {
        /// The socket.
        path: PathBuf,
        /// The user.
        user: String,
    },
    /// The system refused for a reason that has no variant of its own.
    #[error("interface.control_socket: could not create {path}")]
    Refused {
        /// The socket or its directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl ControlSocket {
    /// Fails if a daemon answers at `path`. Looked at before the device is made, for the clearest message.
    pub fn check_free(path: &Path) -> Result<(), SocketError> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => Err(SocketError::NotASocket { path: path.to_owned() }),
            Ok(_) if BlockingStream::connect(path).is_ok() => {
                Err(SocketError::AlreadyRunning { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Binds `path`, in the place of a socket that a dead daemon left. Only root and its group may connect. Must be called
    /// inside a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::check_free(path)?;
        create_directory(path).map_err(|error| SocketError::new(path, error))?;
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(SocketError::new(path, error));
        }
        let listener = bind_private(path).map_err(|error| SocketError::new(path, error))?;
        let file = file_identity(path).map_err(|error| SocketError::new(path, error))?;
        Ok(Self { listener, path: path.to_owned(), file, client_timeout: CLIENT_TIMEOUT })
    }

    /// Goes on with a socket that a predecessor in this process has bound at `before` and left open, under the name `path`. A
    /// socket cannot be bound in the sandbox, and clients that connect meanwhile wait. Where it can't be renamed, it keeps its
    /// name. Must be called inside a tokio runtime.
    pub fn adopt(listener: OwnedFd, before: Option<PathBuf>, path: &Path) -> Result<Self, SocketError> {
        let refused = |error| SocketError::new(path, error);
        let listener = BlockingListener::from(listener);
        listener.set_nonblocking(true).map_err(refused)?;
        let listener = UnixListener::from_std(listener).map_err(refused)?;
        let path = match before.filter(|before| before != path) {
            Some(before) => renamed(before, path),
            None => path.to_owned(),
        };
        let file = file_identity(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "nobody reaches the control socket: restart the service");
            (0, 0)
        });
        Ok(Self { listener, path, file, client_timeout: CLIENT_TIMEOUT })
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers clients until dropped.
    pub async fn serve<A, F>(&self, answer: A) -> Infallible
    where
        A: Fn(Command) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send,
    {
        let seats = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, usually: accepting again at once would spin.
                    tracing::warn!(%error, "control socket: could not accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let seat = Arc::clone(&seats).try_acquire_owned();
            let (answer, client_timeout) = (answer.clone(), self.client_timeout);
            tokio::spawn(async move {
                let served = match seat {
                    Ok(_seat) => serve_client(stream, client_timeout, answer).await,
                    Err(_) => turn_away(stream, client_timeout).await,
                };
                if let Err(error) = served {
                    tracing::debug!(%error, "control socket: lost a client");
                }
            });
        }
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if file_identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl SocketError {
    fn new(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NoPermission { path },
            // Lost the race against another daemon that bound between the look and the bind.
            io::ErrorKind::AddrInUse => Self::AlreadyRunning { path },
            _ => Self::Refused { path, source: error },
        }
    }
}

/// By the mask and not by chmod: there is no moment at which others could connect.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    /// The mask is the whole process's.
    static MASK: Mutex<()> = Mutex::new(());
    let _guard = MASK.lock().unwrap_or_else(PoisonError::into_inner);
    let mask = umask(Mode::from_bits_truncate(0o117));
    let bound = UnixListener::bind(path);
    umask(mask);
    bound
}

/// Only the directory of the default path: others are the operator's to make.
fn create_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) if directory.starts_with(CONTROL_SOCKET_DIRECTORY) => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)
        }
        _ => Ok(()),
    }
}

/// The path of the socket at `before` from here on: `wanted`, if nothing lies there.
fn renamed(before: PathBuf, wanted: &Path) -> PathBuf {
    let moved = match fs::symlink_metadata(wanted) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(&before, wanted),
    };
    match moved {
        Ok(()) => wanted.to_owned(),
        Err(error) => {
            tracing::warn!(%error, wanted = %wanted.display(), path = %before.display(), "the control socket keeps its name");
            before
        }
    }
}

fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// One answer per line until the client closes, sends a line that is too long, or waits too long.
async fn serve_client<A, F>(mut stream: UnixStream, client_timeout: Duration, answer: A) -> io::Result<()>
where
    A: Fn(Command) -> F,
    F: Future<Output = Response>,
{
    let client = stream.peer_cred();
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut request = (&mut reader).take(MAX_REQUEST_LEN as u64);
        if within(client_timeout, request.read_until(b'\n', &mut line)).await? == 0 {
            return Ok(());
        }
        let too_long = line.last() != Some(&b'\n') && line.len() == MAX_REQUEST_LEN;
        let response = if too_long {
            let message = format!("a request has at most {MAX_REQUEST_LEN} bytes");
            ApiError::new(ErrorCode::RequestTooLong, message).into()
        } else {
            match Command::decode(&line) {
                Ok(command) => {
                    if let Ok(client) = &client {
                        audit::asked(&command, client.uid(), client.pid());
                    }
                    answer(command).await
                }
                Err(error) => error.into(),
            }
        };
        within(client_timeout, writer.write_all(&response.encode())).await?;
        if too_long {
            return Ok(());
        }
    }
}

async fn turn_away(mut stream: UnixStream, client_timeout: Duration) -> io::Result<()> {
    let message = format!("{MAX_CLIENTS} clients are connected already");
    let response = Response::from(ApiError::new(ErrorCode::Busy, message));
    within(client_timeout, stream.write_all(&response.encode())).await
}

async fn within<T>(limit: Duration, operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, operation).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Far more than operators and scrapers have; bounds the memory that clients can take.
const MAX_CLIENTS: usize = 32;
/// Nobody types the requests.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
