//! The daemon's end: starts the privileged process, asks it, and hears what it reports.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::future::pending;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::channel::{self, Received};
use super::{
    Configured, Device, Numbered, PrivilegedPlan, Refusal, RefusalKind, Repaired, Reply, Report, Request, Started,
};
use crate::control::api::{GuardReport, GuardState};
use crate::control::netlink::SuperpacketLimit;
use crate::control::{handover, systemd};
use crate::dataplane::{Privileges, SocketGrant};

/// The privileged process, as the daemon asks it. Clones ask the same.
#[derive(Debug, Clone)]
pub struct PrivilegedProcess {
    /// `None` once it is of no use, or gone.
    requests: Arc<Mutex<Option<Requests>>>,
    guard: watch::Sender<GuardReport>,
}

/// The socket that it reports by.
#[derive(Debug)]
pub struct Reports(Option<OwnedFd>);

#[derive(Debug)]
struct Requests {
    socket: OwnedFd,
    newest: u64,
    started: Started,
}

/// Why the privileged process has not done something.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegedError {
    /// A refusal.
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// A failed start.
    #[error("the privileged process can't be started: {0}")]
    NotStarted(#[source] io::Error),
    /// No such process: it was given up, as the configuration wants it.
    #[error("no capability is left to do this (interface.drop_capabilities, or none was there at the start)")]
    GivenUp,
    /// Silence: it has ended, or hangs.
    #[error("the privileged process does not answer ({0}): restart the daemon by its service manager")]
    Gone(io::Error),
}

impl PrivilegedProcess {
    /// Starts one for the configuration in `file`, or goes on with the one that a predecessor has left, which then starts its
    /// program anew. Whoever has lost it starts one that is as unprivileged as this process.
    pub fn start(
        file: &Path,
        options: &[OsString],
        inherited: [Option<OwnedFd>; 2],
    ) -> Result<(Self, Reports), PrivilegedError> {
        if let [Some(requests), Some(reports)] = inherited {
            match Requests::resume(requests) {
                Ok(requests) => return Ok(Self::with(requests, reports)),
                Err(error) => tracing::error!(%error, "routes and rules can't be changed any more"),
            }
        }
        let (requests, reports) = spawn(file, options).map_err(PrivilegedError::NotStarted)?;
        let requests = Requests::greet(requests).map_err(PrivilegedError::NotStarted)?;
        Ok(Self::with(requests, reports))
    }

    fn with(requests: Requests, reports: OwnedFd) -> (Self, Reports) {
        let (guard, _) = watch::channel(GuardReport::default());
        (Self { requests: Arc::new(Mutex::new(Some(requests))), guard }, Reports(Some(reports)))
    }

    /// The process, while it is there.
    pub fn started(&self) -> Option<Started> {
        self.lock().as_ref().map(|requests| requests.started.clone())
    }

    /// Has it end: nothing that takes a capability can be done from here on.
    pub fn give_up(&self) {
        self.lock().take();
    }

    /// The state of the nftables table, now and later.
    pub fn guard(&self) -> watch::Receiver<GuardReport> {
        self.guard.subscribe()
    }

    /// Another descriptor of the socket that it is asked by, for a program that takes this one's place.
    pub fn socket(&self) -> Option<OwnedFd> {
        self.lock().as_ref()?.socket.try_clone().ok()
    }

    /// Has it read the file, and agree with `plan`. Waits for the answer on this thread, which is the only one: another that is
    /// there before the sandbox would stay outside of it.
    pub fn load_at_start(&self, plan: &PrivilegedPlan) -> Result<(), PrivilegedError> {
        match self.ask_and_wait(Request::Load { expects: plan.digest() }, None)?.0 {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Has it set up the device, its routes and the nftables table. Waits, too.
    pub fn configure_at_start(&self, device: Device) -> Result<Configured, PrivilegedError> {
        match self.ask_and_wait(Request::Configure { device }, None)?.0 {
            Reply::Configured(configured) => {
                self.guard.send_replace(configured.guard.clone());
                Ok(configured)
            }
            reply => Err(unexpected(&reply)),
        }
    }

    /// Has it read the file again, and agree with `plan`. What follows is about that.
    pub async fn load(&self, plan: &PrivilegedPlan) -> Result<(), PrivilegedError> {
        self.do_it(Request::Load { expects: plan.digest() }).await
    }

    /// Adds what the file that was loaded has and the one before has not.
    pub async fn prepare(&self) -> Result<(), PrivilegedError> {
        self.do_it(Request::Prepare).await
    }

    /// Removes what the file before had, and returns what could not be removed.
    pub async fn commit(&self) -> Result<Vec<String>, PrivilegedError> {
        self.left(Request::Commit).await
    }

    /// Undoes [`prepare`](Self::prepare) and [`load`](Self::load), and returns what could not be undone.
    pub async fn rollback(&self) -> Vec<String> {
        self.left(Request::Rollback).await.unwrap_or_else(|error| vec![error.to_string()])
    }

    /// Puts back what is missing.
    pub async fn repair(&self) -> Repaired {
        match self.ask(Request::Repair).await {
            Ok(Reply::Repaired(repaired)) => repaired,
            Ok(reply) => Repaired { done: 0, failed: vec![unexpected(&reply).to_string()] },
            Err(error) => Repaired { done: 0, failed: vec![error.to_string()] },
        }
    }

    /// Has the interface take packets of up to `mtu` bytes.
    pub async fn set_mtu(&self, mtu: u16) -> Result<(), PrivilegedError> {
        self.do_it(Request::SetMtu { mtu }).await
    }

    /// Changes how long superpackets may be that the kernel hands over.
    pub async fn limit_superpackets(&self, limit: SuperpacketLimit) -> Result<(), PrivilegedError> {
        self.do_it(Request::LimitSuperpackets(limit)).await
    }

    /// Refuses nothing in `prefix` any longer but what is configured.
    pub async fn open(&self, prefix: IpNet) -> Result<(), PrivilegedError> {
        self.do_it(Request::Open { prefix }).await
    }

    async fn do_it(&self, request: Request) -> Result<(), PrivilegedError> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn left(&self, request: Request) -> Result<Vec<String>, PrivilegedError> {
        match self.ask(request).await? {
            Reply::Left(left) => Ok(left),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Not on the runtime's own thread, which has others to answer meanwhile.
    async fn ask(&self, request: Request) -> Result<Reply, PrivilegedError> {
        let this = self.clone();
        let asked = spawn_blocking(move || this.ask_and_wait(request, None));
        let (reply, _) = asked.await.map_err(|error| PrivilegedError::Gone(io::Error::other(error)))??;
        Ok(reply)
    }

    fn ask_and_wait(
        &self,
        request: Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Vec<OwnedFd>), PrivilegedError> {
        let mut requests = self.lock();
        let Some(open) = requests.as_mut() else { return Err(PrivilegedError::GivenUp) };
        match open.ask(request, descriptor) {
            Ok((Reply::Refused(refusal), _)) => Err(PrivilegedError::Refused(refusal)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(PrivilegedError::Gone(error)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Requests>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what it reports, for ever.
    pub async fn follow(&self, reports: &Reports) -> Infallible {
        let Reports(Some(socket)) = reports else { return pending().await };
        let error = match self.try_follow(socket.as_fd()).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if self.lock().is_some() {
            tracing::error!(%error, "the privileged process has ended: routes and rules are looked after no longer, restart the service");
            self.guard.send_modify(|report| {
                report.state = GuardState::Unavailable;
                report.lacks = Some("the privileged process has ended".to_owned());
            });
        }
        pending().await
    }

    async fn try_follow(&self, socket: BorrowedFd<'_>) -> io::Result<Infallible> {
        let socket = channel::with_events(socket)?;
        loop {
            let Received { content: Report::Guard(report), .. } = channel::receive_next(&socket).await?;
            self.guard.send_replace(report);
        }
    }
}

impl Reports {
    /// The socket, for a program that takes this one's place.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}

impl Requests {
    /// Waits until it has started: the program on disk may be another one, and takes its time.
    fn greet(socket: OwnedFd) -> io::Result<Self> {
        channel::set_patience(socket.as_fd(), PATIENCE)?;
        loop {
            let received = channel::receive::<Numbered<Reply>>(socket.as_fd())?;
            match received.content {
                // What a predecessor has not waited for.
                Numbered { number: 1.., .. } => {}
                Numbered { content: Reply::Started(started), .. } if started.version == VERSION => {
                    return Ok(Self { socket, newest: 0, started });
                }
                Numbered { content: Reply::Started(started), .. } => {
                    return Err(io::Error::other(format!("it is of version {}", started.version)));
                }
                Numbered { content: Reply::Refused(refusal), .. } => return Err(io::Error::other(refusal.text)),
                Numbered { .. } => return Err(ErrorKind::InvalidData.into()),
            }
        }
    }

    fn resume(socket: OwnedFd) -> io::Result<Self> {
        let renew = Numbered { number: 0, content: Request::Renew };
        channel::send(socket.as_fd(), &renew, &[])?;
        Self::greet(socket)
    }

    fn ask(&mut self, request: Request, descriptor: Option<BorrowedFd<'_>>) -> io::Result<(Reply, Vec<OwnedFd>)> {
        self.newest += 1;
        let request = Numbered { number: self.newest, content: request };
        channel::send(self.socket.as_fd(), &request, descriptor.as_slice())?;
        loop {
            let Received { content, descriptors } = channel::receive::<Numbered<Reply>>(self.socket.as_fd())?;
            // An earlier one may come late.
            if content.number == self.newest {
                return Ok((content.content, descriptors));
            }
        }
    }
}

/// Starts this program anew, with the requests' socket for its standard input and the reports' for its output.
fn spawn(file: &Path, options: &[OsString]) -> io::Result<(OwnedFd, OwnedFd)> {
    let (requests, theirs) = channel::pair()?;
    let (reports, their_reports) = channel::pair()?;
    let mut command = Command::new("/proc/self/exe");
    let name = env::args_os().next().unwrap_or_else(|| "underpass".into());
    command.arg0(name).args(["privileged", "--config"]).arg(file).args(options);
    for variable in handover::OWN_VARIABLES.into_iter().chain(systemd::OWN_VARIABLES) {
        command.env_remove(variable);
    }
    command.stdin(Stdio::from(theirs)).stdout(Stdio::from(their_reports)).spawn()?;
    Ok((requests, reports))
}

fn unexpected(reply: &Reply) -> PrivilegedError {
    PrivilegedError::Gone(io::Error::other(format!("it answers with {reply:?}")))
}

impl Privileges for PrivilegedProcess {
    fn grant(&self, socket: BorrowedFd<'_>, grant: SocketGrant) -> io::Result<()> {
        match self.ask_and_wait(Request::Grant(grant), Some(socket)) {
            Ok(_) => Ok(()),
            Err(PrivilegedError::Refused(refusal)) => Err(refusal.into()),
            Err(error) => Err(io::Error::new(ErrorKind::PermissionDenied, error)),
        }
    }

    fn create_device(&self) -> io::Result<Vec<OwnedFd>> {
        match self.ask_and_wait(Request::CreateDevice, None) {
            Ok((_, queues)) => Ok(queues),
            Err(PrivilegedError::Refused(refusal)) if refusal.kind != RefusalKind::Permission => {
                Err(io::Error::other(refusal.text))
            }
            Err(error) => Err(io::Error::new(ErrorKind::PermissionDenied, error)),
        }
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// An interface with ten thousand routes is set up within it.
const PATIENCE: Duration = Duration::from_secs(60);
