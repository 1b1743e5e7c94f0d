//! A service manager as systemd is one to a daemon: it is told what the daemon does, keeps descriptors for it, and gives them
//! to the next daemon that it starts (sd_notify(3), sd_listen_fds(3)).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::host::Host;
use crate::process::Command;
use crate::wait;

/// One service's manager on one machine.
pub struct ServiceManager {
    host: Host,
    socket: PathBuf,
    watchdog: Option<Duration>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What it keeps, with the names.
    kept: Vec<(String, OwnedFd)>,
    /// How often it was told that the service is ready.
    ready: usize,
    /// How often the service has shown that it lives.
    beats: usize,
}

/// Ends the manager's thread; no service says so.
const END: &[u8] = b"END";

/// The first descriptor behind standard input, output and error.
const FIRST_GIVEN: i32 = 3;

impl ServiceManager {
    /// One that keeps nothing yet.
    #[track_caller]
    pub fn new(host: &Host) -> ServiceManager {
        let path = (0..).map(|n| host.directory().join(format!("notify-{n}"))).find(|path| !path.exists());
        let path = path.expect("some number is free");
        let socket = UnixDatagram::bind(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let state = Arc::new(Mutex::new(State::default()));
        let told = state.clone();
        thread::spawn(move || while listen(&socket, &told) {});
        ServiceManager { host: host.clone(), socket: path, watchdog: None, state }
    }

    /// The machine that it is on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Services are to show that they live at least so often.
    pub fn watchdog(mut self, interval: Duration) -> Self {
        self.watchdog = Some(interval);
        self
    }

    /// A program that is given what is kept and tells this manager what it does.
    #[track_caller]
    pub fn command(&self, program: &Path) -> Command {
        let state = self.state();
        let kept = &state.kept;
        let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
        let copies = kept.iter().map(|(_, descriptor)| descriptor.try_clone().expect("descriptors can be copied"));
        // The number of the process is known only in it.
        let set_pid = "export LISTEN_PID=$$; exec \"$@\"";
        let mut command =
            self.host.command("sh").args(["-c", set_pid, "sh"]).arg(program).env("NOTIFY_SOCKET", &self.socket);
        if let Some(interval) = self.watchdog {
            command = command.env("WATCHDOG_USEC", interval.as_micros().to_string());
        }
        command = command.env("LISTEN_FDS", kept.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        (FIRST_GIVEN..).zip(copies).fold(command, |command, (number, copy)| command.descriptor(number, copy))
    }

    /// The names of what it keeps, sorted.
    pub fn kept(&self) -> Vec<String> {
        let mut names: Vec<String> = self.state().kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Has it keep a descriptor that no service has sent.
    pub fn keep(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        self.state().kept.push((name.to_owned(), descriptor.into()));
    }

    /// How often the service has said that it is ready.
    pub fn ready(&self) -> usize {
        self.state().ready
    }

    /// How often the service has shown that it lives.
    pub fn beats(&self) -> usize {
        self.state().beats
    }

    /// Waits until the service has said that it is ready so many times, all of its starts together.
    #[track_caller]
    pub fn wait_until_ready(&self, times: usize) {
        wait::until(&format!("the service on {} is ready for the time {times}", self.host.name()), || {
            self.ready() >= times
        });
    }

    /// As when a service is stopped for good: it closes what it keeps.
    pub fn forget_everything(&self) {
        self.state().kept.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(END, &self.socket));
    }
}

/// Takes one message; false for the last.
fn listen(socket: &UnixDatagram, state: &Mutex<State>) -> bool {
    let mut message = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut message)];
    let received = recvmsg(socket.as_fd(), &mut parts, &mut rights, RecvFlags::CMSG_CLOEXEC);
    let length = received.unwrap_or_else(|e| panic!("a service manager's socket: {e}")).bytes;
    let descriptors = rights.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    if &message[..length] == END {
        return false;
    }
    let text = String::from_utf8_lossy(&message[..length]);
    let lines: Vec<&str> = text.lines().collect();
    let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    for line in &lines {
        match *line {
            "READY=1" => state.ready += 1,
            "WATCHDOG=1" => state.beats += 1,
            "FDSTOREREMOVE=1" => state.kept.retain(|(kept, _)| kept != name),
            _ => {}
        }
    }
    // A barrier's descriptor is closed here: then everything before it has been done.
    if lines.contains(&"FDSTORE=1") {
        state.kept.extend(descriptors.into_iter().map(|descriptor| (name.to_owned(), descriptor)));
    }
    true
}
