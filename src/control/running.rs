//! What commands change of a daemon that runs, and the one owner of it: the configuration, the names of peers, and which of
//! their links are draining.
//!
//! One command is carried out after the other. How, is in [`reload`](super::reload),
//! [`drain`](super::drain) and [`open`](super::open).

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{oneshot, watch};

use super::api::{ApiError, Command, ErrorCode, Response};
use super::audit;
use super::drain::Drained;
use super::privileged::PrivilegedProcess;
use super::report::Identity;
use super::resolver::Resolver;
use super::routes::Routes;
use super::signals::{Asked, Signals};
use crate::config::Config;
use crate::dataplane::{Dataplane, Handle};

/// A daemon that runs.
#[derive(Debug)]
pub struct Running<'a> {
    pub(super) file: PathBuf,
    /// What holds: of a changed file, what needs a restart is as it was at the start.
    pub(super) config: Config,
    pub(super) identity: watch::Sender<Arc<Identity>>,
    pub(super) drained: Drained,
    pub(super) dataplane: &'a RefCell<Dataplane>,
    pub(super) handle: Handle,
    pub(super) resolver: &'a RefCell<Resolver>,
    pub(super) privileged: PrivilegedProcess,
    pub(super) routes: &'a Routes,
}

/// A command, and who waits for the answer.
#[derive(Debug)]
pub struct Request {
    command: Command,
    reply: oneshot::Sender<Response>,
}

impl<'a> Running<'a> {
    /// `file` is where `config` was read. Whoever has to know what a reload changes follows `identity`.
    pub fn new(
        file: PathBuf,
        config: Config,
        identity: watch::Sender<Arc<Identity>>,
        (dataplane, resolver): (&'a RefCell<Dataplane>, &'a RefCell<Resolver>),
        (privileged, routes): (PrivilegedProcess, &'a Routes),
    ) -> Self {
        let handle = dataplane.borrow().handle();
        Self { file, config, identity, drained: Drained::default(), dataplane, handle, resolver, privileged, routes }
    }

    /// Does what signals and requests ask for, until the daemon is to end. Returns whether its links may drain before.
    pub async fn serve(&mut self, signals: &mut Signals, requests: &mut Receiver<Request>) -> bool {
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Reload => drop(self.reload_and_tell().await),
                    Asked::Terminate => {
                        audit::stopping("SIGTERM");
                        return true;
                    }
                    Asked::Interrupt => {
                        audit::stopping("SIGINT");
                        return false;
                    }
                },
                Some(Request { command, reply }) = requests.recv() => {
                    // Who asked may have left.
                    let _ = reply.send(self.answer(command).await);
                }
            }
        }
    }

    async fn answer(&mut self, command: Command) -> Response {
        let answer = match command {
            Command::Status | Command::Restart => Err(ApiError::new(ErrorCode::Internal, "this is not asked here")),
            Command::Reload => self.reload_and_tell().await.map(Response::Reload),
            Command::Compare => self.compare().await.map(Response::Compare),
            Command::Drain { peer } => self.set_draining(peer, true).map(Response::Drain),
            Command::Undrain { peer } => self.set_draining(peer, false).map(Response::Drain),
            Command::Open { prefix } => self.open(prefix).await.map(Response::Open),
        };
        answer.unwrap_or_else(Response::from)
    }
}

impl Request {
    /// Hands `command` to who owns the daemon, and waits for what comes of it.
    pub async fn make(command: Command, requests: Sender<Self>) -> Response {
        let (reply, answer) = oneshot::channel();
        // Neither fails but at the end.
        let _ = requests.send(Self { command, reply }).await;
        answer.await.unwrap_or_else(|_| stopping().into())
    }

    /// Nothing is changed any more.
    pub(super) fn refuse(self) {
        let _ = self.reply.send(stopping().into());
    }
}

pub(super) fn stopping() -> ApiError {
    ApiError::new(ErrorCode::Stopping, "the daemon is about to end")
}
