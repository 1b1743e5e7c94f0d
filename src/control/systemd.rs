//! What a service manager is told: that packets flow, that the configuration is being read again, that the end has begun.
//!
//! Without a service manager nothing happens.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::dataplane::clock;

/// What has become of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Packets flow.
    Ready,
    /// They do, and the configuration is being read again.
    Reloading,
    /// They do, by the configuration as it was before.
    ReloadRefused,
    /// They do for so long at most, while links are called draining.
    Draining(Duration),
    /// The end has begun.
    Stopping,
}

/// Tells the service manager, if there is one (sd_notify(3)).
pub fn notify(readiness: Readiness) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    let message = message(readiness);
    if let Err(error) = send(&socket, message.as_bytes()) {
        tracing::warn!(%error, socket = %socket.display(), "could not notify the service manager");
    }
}

fn message(readiness: Readiness) -> String {
    match readiness {
        Readiness::Ready => "READY=1\nSTATUS=Packets flow".to_owned(),
        Readiness::Reloading => {
            // By which it tells the answer to its signal from an earlier one.
            let time = clock::monotonic_time().as_micros();
            format!("RELOADING=1\nMONOTONIC_USEC={time}\nSTATUS=Reading the configuration")
        }
        Readiness::ReloadRefused => "READY=1\nSTATUS=Packets flow; the last reload was refused, see the log".to_owned(),
        Readiness::Draining(time) => {
            let time = (time + AFTER_DRAINING).as_micros();
            format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={time}\nSTATUS=Links are draining")
        }
        Readiness::Stopping => "STOPPING=1\nSTATUS=Saying goodbye to peers".to_owned(),
    }
}

/// What the end takes at most once links have drained, and some more.
const AFTER_DRAINING: Duration = Duration::from_secs(10);

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
    fn a_reload_bears_the_time_of_the_service_manager_s_clock() {
        let before = clock::monotonic_time().as_micros();
        let message = message(Readiness::Reloading);
        let time = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!(message.starts_with("RELOADING=1\n") && time.parse::<u128>().unwrap() >= before, "{message}");
    }

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
