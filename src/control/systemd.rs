//! The service manager: what it is told, what it keeps for us, what it has given to us at the start. The protocol is
//! sd_notify(3), which others than systemd speak too.
//!
//! Without a service manager nothing happens.

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process;
use std::sync::OnceLock;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, connect as connect_to, sendmsg};

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

/// Opens the way to the service manager, if there is one, or goes on with the socket that a predecessor has left. Before the
/// sandbox, in which no Unix socket can be made.
pub fn connect(inherited: Option<OwnedFd>) {
    MANAGER.get_or_init(|| {
        let address = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        let manager = ServiceManager::at(&address, inherited);
        manager.inspect_err(|error| tracing::warn!(%error, "no way to the service manager")).ok()
    });
}

/// The socket on that way, for a program that takes this one's place.
pub fn socket() -> Option<BorrowedFd<'static>> {
    ServiceManager::of_this_process().map(|manager| manager.socket.as_fd())
}

/// Tells the service manager, if there is one.
pub fn notify(readiness: Readiness) {
    tell(&message(readiness));
}

/// Tells it that we live.
pub fn show_life() {
    tell("WATCHDOG=1");
}

/// How often it wants to hear that we live, at least.
pub fn watchdog_interval() -> Option<Duration> {
    interval(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref())
}

/// Has it keep `descriptors`, to give them to our successor under these names, in the place of all that it keeps under them.
pub fn store(descriptors: &[(String, BorrowedFd<'_>)]) {
    let Some(manager) = ServiceManager::of_this_process() else { return };
    let forgotten = descriptors.iter().try_for_each(|(name, _)| manager.forget(name));
    let store = |(name, descriptor): &(String, BorrowedFd<'_>)| {
        // It is not to watch them, and to drop a socket for an error that the next send or receive clears.
        manager.send(format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}").as_bytes(), Some(*descriptor))
    };
    if let Err(error) = forgotten.and_then(|()| descriptors.iter().try_for_each(store)) {
        tracing::warn!(%error, "the service manager keeps no descriptors: a restart will interrupt traffic");
    }
}

/// Has it close what it keeps under these names, and waits until it has.
pub fn forget<'n>(names: impl IntoIterator<Item = &'n str>) {
    let Some(manager) = ServiceManager::of_this_process() else { return };
    if let Err(error) = names.into_iter().try_for_each(|name| manager.forget(name)).and_then(|()| manager.wait()) {
        tracing::warn!(%error, "the service manager may still keep descriptors that are of no use");
    }
}

/// The descriptors that it gave us, with their names: first those that it has kept (sd_listen_fds(3)).
pub fn given_descriptors() -> Vec<(RawFd, String)> {
    let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(variable);
    given(pid.as_deref(), count.as_deref(), names.as_deref())
}

/// The variables that say so. They are about this process, not about a program that takes its place.
pub const GIVEN_VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// All variables that are for this process, not for those that it starts.
pub const OWN_VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

fn tell(message: &str) {
    let Some(manager) = ServiceManager::of_this_process() else { return };
    if let Err(error) = manager.send(message.as_bytes(), None) {
        tracing::warn!(%error, "could not notify the service manager");
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

fn interval(microseconds: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(process::id()));
    let microseconds = microseconds?.parse().ok().filter(|&microseconds| microseconds > 0 && is_ours)?;
    Some(Duration::from_micros(microseconds))
}

fn given(pid: Option<&str>, count: Option<&str>, names: Option<&str>) -> Vec<(RawFd, String)> {
    if pid.and_then(|pid| pid.parse().ok()) != Some(process::id()) {
        return Vec::new();
    }
    let count: usize = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = names.unwrap_or_default().split(':');
    let names = names.chain(std::iter::repeat("")).map(str::to_owned);
    (FIRST_GIVEN..).zip(names).take(count.min(MAX_GIVEN)).collect()
}

/// A way to it.
struct ServiceManager {
    socket: UnixDatagram,
    /// None if the socket is connected.
    address: Option<UnixAddr>,
}

/// That of this process, once it was looked for.
static MANAGER: OnceLock<Option<ServiceManager>> = OnceLock::new();

impl ServiceManager {
    fn of_this_process() -> Option<&'static Self> {
        MANAGER.get()?.as_ref()
    }

    /// An address that starts with @ is abstract: not in the file system. The sandbox then lets messages pass only if the socket
    /// was connected before. One with a path is not connected: the service manager may be restarted.
    fn at(address: &OsStr, inherited: Option<OwnedFd>) -> io::Result<Self> {
        let is_new = inherited.is_none();
        let socket = inherited.map_or_else(UnixDatagram::unbound, |inherited| Ok(inherited.into()))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let [b'@', name @ ..] = address.as_bytes() else {
            return Ok(Self { socket, address: Some(UnixAddr::new(Path::new(address))?) });
        };
        if is_new {
            connect_to(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
        }
        Ok(Self { socket, address: None })
    }

    fn send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let numbers: Vec<RawFd> = descriptor.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[] } else { &rights[..] };
        let parts = [IoSlice::new(message)];
        sendmsg(self.socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, self.address.as_ref())?;
        Ok(())
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.send(format!("FDSTOREREMOVE=1\nFDNAME={name}").as_bytes(), None)
    }

    /// Until it has read all that was sent: it closes the descriptor that comes with a barrier then.
    fn wait(&self) -> io::Result<()> {
        let (ours, theirs) = nix::unistd::pipe()?;
        self.send(b"BARRIER=1", Some(theirs.as_fd()))?;
        drop(theirs);
        let timeout = PollTimeout::try_from(PATIENCE).expect("a second fits");
        let closed = poll(&mut [PollFd::new(ours.as_fd(), PollFlags::empty())], timeout)?;
        if closed == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// What the end takes at most once links have drained, and some more.
const AFTER_DRAINING: Duration = Duration::from_secs(10);
/// `SD_LISTEN_FDS_START`: behind standard input, output and error.
const FIRST_GIVEN: RawFd = 3;
/// More than the largest configuration has.
const MAX_GIVEN: usize = 4096;
/// It reads at once, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};

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
        let name = format!("underpass-test-{}", process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (address, socket) in [(path.as_os_str(), by_path), (OsStr::new(&format!("@{name}")), by_name)] {
            ServiceManager::at(address, None).unwrap().send(b"READY=1", None).unwrap();
            let mut message = [0; 16];
            let length = socket.recv(&mut message).unwrap();
            assert_eq!(&message[..length], b"READY=1");
        }
    }

    #[test]
    fn a_descriptor_goes_with_its_message() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(path.as_os_str(), None).unwrap();
        manager.send(b"FDSTORE=1", Some(File::open("/dev/null").unwrap().as_fd())).unwrap();
        let (mut message, mut control) = ([0; 16], cmsg_space!([RawFd; 1]));
        let mut parts = [IoSliceMut::new(&mut message)];
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()).unwrap();
        let rights: Vec<_> = received.cmsgs().unwrap().collect();
        assert!(matches!(&rights[..], [ControlMessageOwned::ScmRights(numbers)] if numbers.len() == 1));
    }

    #[test]
    fn what_is_given_to_another_process_is_not_ours() {
        let own = process::id().to_string();
        let expected = vec![(3, "tun-0".to_owned()), (4, "listen-0".to_owned()), (5, String::new())];
        assert_eq!(given(Some(&own), Some("3"), Some("tun-0:listen-0")), expected);
        assert_eq!(given(Some("1"), Some("3"), Some("tun-0:listen-0")), []);
        assert_eq!(given(None, Some("3"), None), []);
        assert_eq!(given(Some(&own), Some("many"), None), []);
        assert_eq!(given(Some(&own), Some(&u32::MAX.to_string()), None).len(), MAX_GIVEN);
    }

    #[test]
    fn a_watchdog_is_for_the_process_that_it_names() {
        let own = process::id().to_string();
        assert_eq!(interval(Some("30000000"), Some(&own)), Some(Duration::from_secs(30)));
        assert_eq!(interval(Some("30000000"), None), Some(Duration::from_secs(30)));
        assert_eq!(interval(Some("30000000"), Some("1")), None);
        assert_eq!(interval(Some("0"), None), None);
        assert_eq!(interval(None, None), None);
    }
}
