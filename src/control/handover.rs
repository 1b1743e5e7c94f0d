//! Descriptors from one process to the next, so that the TUN and the UDP sockets stay and queue packets meanwhile.
//!
//! ```text
//!   killed, restarted     daemon ── FDSTORE=1 ──▶ service manager ── LISTEN_FDS ──────────▶ daemon
//!   restarted in place    daemon ── UNDERPASS_DESCRIPTORS, by exec ─────────────────────▶ the same process
//! ```
//!
//! The second way is not LISTEN_FDS too, which numbers descriptors from 3 on: others have these numbers in a process that
//! must be able to go on if the exec fails.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use nix::net::if_::if_nametoindex;

use super::{sandbox, systemd};
use crate::dataplane::DataplaneConfig;
use crate::dataplane::inheritance::{Inheritance, Inherited};

/// Descriptors that an earlier process has left for this one.
#[derive(Debug, Default)]
pub struct Received {
    /// The TUN queues and UDP sockets.
    pub dataplane: Vec<Inherited>,
    /// Unix sockets, which a daemon in its sandbox can't make anew.
    unix: Vec<Inherited>,
}

impl Received {
    /// Everything that was left. Before this process opens anything.
    pub fn all() -> Self {
        let handed_on = env::var(DESCRIPTORS).map(|value| decode(&value, process::id())).unwrap_or_default();
        let take = |(number, name)| Inherited::take(number, name);
        let is_unix = |inherited: &Inherited| UNIX_SOCKETS.contains(&inherited.name());
        let (unix, mut dataplane): (Vec<_>, Vec<_>) = handed_on.into_iter().filter_map(take).partition(is_unix);
        dataplane.extend(systemd::given_descriptors().into_iter().filter_map(take));
        Self { dataplane, unix }
    }

    /// The Unix socket of that name, if it was left.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let position = self.unix.iter().position(|inherited| inherited.name() == name)?;
        Some(self.unix.swap_remove(position).into())
    }
}

/// Whether this program has taken a daemon's place in its process.
pub fn is_successor() -> bool {
    env::var(DESCRIPTORS).is_ok_and(|value| value.starts_with(&prefix(process::id())))
}

/// The path of the control socket of the daemon whose place this one has taken, if it has taken one's.
pub fn control_socket_before() -> Option<PathBuf> {
    env::var_os(CONTROL_SOCKET).map(PathBuf::from).filter(|_| is_successor())
}

/// Removes the control socket of the daemon whose place this one has taken, if it is not `own`: nobody is behind it any more.
pub fn remove_stale_socket(own: &Path) {
    let Some(path) = control_socket_before().filter(|path| path != own) else { return };
    if fs::symlink_metadata(&path).is_ok_and(|file| file.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

/// What of `inherited` this configuration can use, and how many descriptors that is. The rest is closed, here and by the
/// service manager, so that what it stands for can be made anew.
pub fn choose(config: &DataplaneConfig, inherited: Vec<Inherited>) -> (Inheritance, Kept) {
    let given = inherited.len();
    let (inheritance, refused) = Inheritance::choose(config, inherited);
    for refused in &refused {
        tracing::warn!(name = refused.name, reason = %refused.reason, "an inherited descriptor is closed and made anew");
    }
    if !refused.is_empty() {
        systemd::forget(refused.iter().map(|refused| refused.name.as_str()));
        if !inheritance.has_interface() {
            wait_until_gone(&config.interface_name);
            wait_until_free(&config.listen);
        }
        // Under the same name as another, one may have been forgotten that is used.
        return (inheritance, Kept(0));
    }
    (inheritance, Kept(given))
}

/// A process that was forked meanwhile may have copies until it executes its program.
fn wait_until_gone(interface: &str) {
    wait_while(|| if_nametoindex(interface).is_ok());
}

/// The same of ports.
fn wait_until_free(listen: &[SocketAddr]) {
    wait_while(|| listen.iter().any(is_taken));
}

/// Whether a socket has the port. To bind it would tell nothing where that takes a capability: it is refused before.
fn is_taken(address: &SocketAddr) -> bool {
    let sockets = [procfs::net::udp(), procfs::net::udp6()].into_iter().flatten().flatten();
    let mut locals = sockets.map(|socket| socket.local_address);
    let overlaps = |ip: IpAddr| ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
    locals.any(|local| local.port() == address.port() && address.port() != 0 && overlaps(local.ip()))
}

fn wait_while(is_left: impl Fn() -> bool) {
    for _ in 0..GONE_TRIES {
        if !is_left() {
            return;
        }
        thread::sleep(GONE_PAUSE);
    }
}

/// How many descriptors the service manager still has of those it was given, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct Kept(usize);

/// Has the service manager keep `descriptors` for the next daemon, unless it has them all.
pub fn leave(descriptors: &[(String, BorrowedFd<'_>)], Kept(kept): Kept) {
    if descriptors.len() != kept {
        systemd::store(descriptors);
    }
}

/// This process's environment for a program that takes its place and is left `descriptors`, if it is a daemon beside the path
/// of its control socket.
pub fn environment(
    descriptors: &[(String, BorrowedFd<'_>)],
    control_socket: Option<&Path>,
) -> Vec<(OsString, OsString)> {
    let about_us = |name: &OsString| {
        let names = systemd::GIVEN_VARIABLES.into_iter().chain(OWN_VARIABLES).chain([sandbox::VARIABLE]);
        names.into_iter().any(|known| name == known)
    };
    let mut variables: Vec<_> = env::vars_os().filter(|(name, _)| !about_us(name)).collect();
    variables.push((DESCRIPTORS.into(), encode(descriptors, process::id()).into()));
    variables.extend(control_socket.map(|path| (CONTROL_SOCKET.into(), path.into())));
    variables
}

fn encode(descriptors: &[(String, BorrowedFd<'_>)], pid: u32) -> String {
    let entries: Vec<_> = descriptors.iter().map(|(name, fd)| format!("{}={name}", fd.as_raw_fd())).collect();
    prefix(pid) + &entries.join(",")
}

/// Nothing, of a value that was meant for another process and came down to this one.
fn decode(value: &str, pid: u32) -> Vec<(RawFd, String)> {
    let entry = |entry: &str| {
        let (number, name) = entry.split_once('=')?;
        Some((number.parse().ok()?, name.to_owned()))
    };
    let entries = value.strip_prefix(&prefix(pid)).unwrap_or_default();
    entries.split(',').filter_map(entry).collect()
}

fn prefix(pid: u32) -> String {
    format!("{pid}:")
}

/// A second in all, of which a few thousandths are needed. After that, whoever makes the interface or
/// binds the port says that it is taken.
const GONE_TRIES: usize = 100;
const GONE_PAUSE: Duration = Duration::from_millis(10);
/// Holds the process's number and, for each descriptor, its number and name: `1234:7=tun-0,9=listen-0`.
const DESCRIPTORS: &str = "UNDERPASS_DESCRIPTORS";
/// The name of the control socket that listens.
pub const LISTENER: &str = "control";
/// The name of the socket to the service manager.
pub const MANAGER: &str = "service-manager";
/// The name of the socket to the journal.
pub const JOURNAL: &str = "journal";
/// The name of the socket that the privileged process is asked by.
pub const PRIVILEGED: &str = "privileged";
/// The name of the socket that it reports by.
pub const REPORTS: &str = "privileged-reports";
const UNIX_SOCKETS: [&str; 5] = [LISTENER, MANAGER, JOURNAL, PRIVILEGED, REPORTS];
/// Variables that are about this process, not about those that it starts.
pub const OWN_VARIABLES: [&str; 2] = [DESCRIPTORS, CONTROL_SOCKET];
/// Holds the path of the control socket of the daemon before.
const CONTROL_SOCKET: &str = "UNDERPASS_CONTROL_SOCKET";

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_port_is_taken_as_long_as_any_copy_of_its_socket_is_left() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let socket = UdpSocket::bind(address).unwrap();
            let (local, copy) = (socket.local_addr().unwrap(), socket.try_clone().unwrap());
            drop(socket);
            assert!(is_taken(&local), "{local}");
            drop(copy);
            // Another test may have got the same port meanwhile.
            wait_while(|| is_taken(&local));
            assert!(!is_taken(&local), "{local}");
        }
        assert!(!is_taken(&"0.0.0.0:0".parse().unwrap()), "any port will do");
    }

    #[test]
    fn the_next_program_reads_what_this_one_has_written() {
        let file = File::open("/dev/null").unwrap();
        let value = encode(&[("tun-0".into(), file.as_fd()), ("lane-1".into(), file.as_fd())], 1234);
        let number = file.as_raw_fd();
        assert_eq!(decode(&value, 1234), [(number, "tun-0".to_owned()), (number, "lane-1".to_owned())]);
    }

    #[test]
    fn what_another_process_was_left_is_not_taken() {
        assert_eq!(decode("1234:7=tun-0", 123), []);
        assert_eq!(decode("1234:7=tun-0", 4321), []);
        assert_eq!(decode("nonsense", 1234), []);
        assert_eq!(decode("1234:nonsense,x=tun-0,8", 1234), []);
    }

    #[test]
    fn the_environment_of_the_next_program_is_ours_but_for_what_was_only_for_us() {
        let variables = environment(&[], Some(Path::new("/run/underpass/blue.sock")));
        let names = |name: &str| variables.iter().filter(|(known, _)| known == name).count();
        assert_eq!((names(DESCRIPTORS), names(CONTROL_SOCKET), names("PATH")), (1, 1, 1));
        assert!(systemd::GIVEN_VARIABLES.iter().all(|name| names(name) == 0));
    }
}
