//! What a service manager is told: that packets flow, that the end has begun.
//!
//! Without a service manager nothing happens.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What has become of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Packets flow.
    Ready,
    /// The end has begun.
    Stopping,
}

/// Tells the service manager, if there is one (sd_notify(3)).
pub fn notify(readiness: Readiness) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    let message = match readiness {
        Readiness::Ready => "READY=1\nSTATUS=Packets flow",
        Readiness::Stopping => "STOPPING=1\nSTATUS=Saying goodbye to peers",
    };
    if let Err(error) = send(&socket, message.as_bytes()) {
        tracing::warn!(%error, socket = %socket.display(), "could not notify the service manager");
    }
}

/// An address that starts with @ is abstract: not in the file system.
fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_a_service_manager_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("underpass-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(path.as_os_str(), b"READY=1").unwrap();
        send(OsStr::new(&format!("@{name}")), b"READY=1").unwrap();
        for socket in [by_path, by_name] {
            let mut message = [0; 16];
            let length = socket.recv(&mut message).unwrap();
            assert_eq!(&message[..length], b"READY=1");
        }
    }
}
