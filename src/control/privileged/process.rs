//! The privileged process itself: reads requests from its standard input until that ends.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use nix::sys::signal::SigSet;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Protocol, SockRef, Type};
use tokio::runtime::Builder;
use tokio::sync::Notify;

use super::channel::{self, Received};
use super::plan::Transport;
use super::{
    Configured, Device, Numbered, PrivilegedPlan, Refusal, RefusalKind, Repaired, Reply, Report, Request, Started,
    chain,
};
use crate::config::{Config, ConfigError};
use crate::control::api::GuardReport;
use crate::control::handover;
use crate::control::netlink::{
    Drift, Failed, InterfaceChanges, InterfaceSettings, Netlink, NetlinkError, Route, SuperpacketLimit,
};
use crate::control::nftables::Guard;
use crate::control::restart::Program;
use crate::control::sandbox::capabilities::may_configure;
use crate::control::sandbox::{Part, Sandbox, SandboxError};
use crate::control::user::{DaemonUser, UserError};
use crate::dataplane::{self, SocketGrant, TunError};

/// Why there is no privileged process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It was started by hand.
    #[error("this is started by `underpass run`, which it does for what takes a capability; nobody else needs it")]
    NoDaemon,
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The user that it is to become.
    #[error(transparent)]
    User(#[from] UserError),
    /// Its sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system gave no event queue, or no socket.
    #[error("the privileged process can't go on")]
    Io(#[from] io::Error),
}

/// Serves the daemon that has started this, for the configuration in `file`, until that ends.
pub fn run(file: &Path, allow_root: bool, journal: Option<BorrowedFd<'static>>) -> Result<(), ProcessError> {
    // It ends with the daemon, which may have things to do when both are told to end.
    ending_signals().thread_block().map_err(io::Error::from)?;
    let requests = io::stdin().as_fd().try_clone_to_owned()?;
    if SockRef::from(&requests).r#type().ok() != Some(Type::SEQPACKET) {
        return Err(ProcessError::NoDaemon);
    }
    let config = Config::load_without_keys(file)?;
    let user = DaemonUser::wanted(allow_root)?;
    let mut program = Program::of_this_process(file);
    let sandbox = Sandbox::enter(Part::Privileged, &config, file, program.path(), user.as_ref(), &[])?;
    program.enter(&sandbox);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let server = Server::new(file, &config, program, journal)?;
        let report = sandbox.report();
        let started = Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            capabilities: report.capabilities,
            lacks: report.lacks,
        };
        channel::send(requests.as_fd(), &Numbered { number: 0, content: Reply::Started(started) }, &[])?;
        server.serve(&requests).await
    });
    let error = match served {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // The daemon has ended, perhaps while it was answered.
    let is_over = [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind());
    if is_over { Ok(()) } else { Err(error.into()) }
}

fn ending_signals() -> SigSet {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
    SigSet::from_iter([SIGTERM, SIGINT, SIGHUP, SIGUSR2])
}

/// Everything that requests change. They are answered one after the other.
struct Server {
    file: PathBuf,
    program: Program,
    journal: Option<BorrowedFd<'static>>,
    netlink: Netlink,
    guard: RefCell<Guard>,
    plans: RefCell<Plans>,
    is_configured: Notify,
}

#[derive(Debug, Default)]
struct Plans {
    /// What holds.
    current: Option<PrivilegedPlan>,
    /// What was read from the file last, and is to hold once it is asked for.
    loaded: Option<PrivilegedPlan>,
    /// What [`Request::Prepare`] has added of it.
    prepared: Option<InterfaceChanges>,
    /// The MTU of the interface, if it is not the one in the file.
    mtu: Option<u16>,
    /// How long superpackets may be.
    superpackets: SuperpacketLimit,
    /// What earlier configurations have had refused, beside the current one's.
    refused: Vec<Route>,
}

/// What a request gives.
type Answer = Result<(Reply, Vec<OwnedFd>), Refusal>;

impl Server {
    fn new(file: &Path, config: &Config, program: Program, journal: Option<BorrowedFd<'static>>) -> io::Result<Self> {
        Ok(Self {
            file: file.to_owned(),
            program,
            journal,
            netlink: Netlink::open().map_err(io::Error::other)?,
            guard: RefCell::new(Guard::new(&config.interface.name)),
            plans: RefCell::default(),
            is_configured: Notify::new(),
        })
    }

    async fn serve(&self, requests: &OwnedFd) -> io::Result<Infallible> {
        tokio::select! {
            ended = self.answer_all(requests) => ended,
            ended = self.report_guard() => ended,
            never = self.watch_guard() => match never {},
        }
    }

    /// From the first configuration on.
    async fn watch_guard(&self) -> Infallible {
        self.is_configured.notified().await;
        Guard::watch(&self.guard).await
    }

    async fn answer_all(&self, requests: &OwnedFd) -> io::Result<Infallible> {
        let socket = channel::with_events(requests.as_fd())?;
        loop {
            let Received { content: Numbered { number, content }, descriptors } =
                channel::receive_next(&socket).await?;
            let answer = self.answer(content, descriptors).await;
            let (content, descriptors) = answer.unwrap_or_else(|refusal| (Reply::Refused(refusal), Vec::new()));
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(OwnedFd::as_fd).collect();
            channel::send_next(&socket, &Numbered { number, content }, &descriptors).await?;
        }
    }

    async fn report_guard(&self) -> io::Result<Infallible> {
        let socket = channel::with_events(io::stdout().as_fd())?;
        let mut guard = self.guard.borrow().report();
        loop {
            guard.changed().await.map_err(io::Error::other)?;
            let report = told_briefly(&guard.borrow_and_update());
            channel::send_next(&socket, &Report::Guard(report), &[]).await?;
        }
    }

    async fn answer(&self, request: Request, descriptors: Vec<OwnedFd>) -> Answer {
        let reply = match request {
            Request::Load { expects } => self.load(&expects).await?,
            Request::Configure { device } => self.configure(device).await?,
            Request::Prepare => self.prepare().await?,
            Request::Commit => self.commit().await?,
            Request::Rollback => self.rollback().await,
            Request::Repair => self.repair().await?,
            Request::SetMtu { mtu } => self.set_mtu(mtu).await?,
            Request::LimitSuperpackets(limit) => self.limit_superpackets(limit).await?,
            Request::Open { prefix } => self.open(prefix).await?,
            Request::Grant(grant) => self.grant(grant, &descriptors)?,
            Request::CreateDevice => return self.create_device(),
            Request::Renew => self.renew()?,
        };
        Ok((reply, Vec::new()))
    }

    /// Without keys, which it has no use for. What was prepared of another state of the file is undone.
    async fn load(&self, expects: &str) -> Result<Reply, Refusal> {
        self.rollback().await;
        let config =
            Config::load_without_keys(&self.file).map_err(|error| refuse(RefusalKind::Configuration, error))?;
        let mut plans = self.plans.borrow_mut();
        let plan = PrivilegedPlan::of(&config);
        let plan = match &plans.current {
            Some(current) => plan.applied_to(current),
            None => plan,
        };
        if plan.digest() != expects {
            let text = "the configuration file has changed while it was read: try again";
            return Err(refuse(RefusalKind::Configuration, text));
        }
        plans.loaded = Some(plan);
        Ok(Reply::Done)
    }

    /// The guard comes before the addresses, and after the look whether they are anybody else's, who would be cut off.
    async fn configure(&self, device: Device) -> Result<Reply, Refusal> {
        let mut plan = self.plans.borrow_mut().loaded.take().ok_or_else(nothing_loaded)?;
        let index = if_nametoindex(plan.settings.name.as_str()).unwrap_or_default();
        // A predecessor may have left no capability to set it up again, but as it should be.
        let is_prepared = device.is_prepared || device.is_kept && !may_configure();
        let Device { offload, is_kept, .. } = device;
        plan.settings = InterfaceSettings { index, offload, is_kept, is_prepared, ..plan.settings };
        // A predecessor may have found that the paths carry more: connections that use it go on.
        let found = if is_kept { self.netlink.mtu(&plan.settings).await } else { None };
        let mtu = found.filter(|found| plan.admits_mtu(*found));
        let settings = plan.settings_with(mtu);
        self.netlink.check(&settings).await?;
        self.guard.borrow_mut().start(plan.guard.clone());
        let refused = self.netlink.configure(&settings).await?;
        self.is_configured.notify_one();
        *self.plans.borrow_mut() = Plans { current: Some(plan), refused, mtu, ..Plans::default() };
        let guard = told_briefly(&self.guard.borrow().report().borrow());
        Ok(Reply::Configured(Configured { is_prepared, may_configure: may_configure(), mtu: settings.mtu, guard }))
    }

    async fn set_mtu(&self, mtu: u16) -> Result<Reply, Refusal> {
        let (settings, limit) = {
            let plans = self.plans.borrow();
            let current = plans.current.as_ref().ok_or_else(nothing_loaded)?;
            if !current.admits_mtu(mtu) {
                return Err(not_granted("the configuration does not say so"));
            }
            (current.settings_with(Some(mtu)), plans.superpackets)
        };
        self.netlink.set_mtu(&settings, limit).await?;
        self.plans.borrow_mut().mtu = Some(mtu);
        Ok(Reply::Done)
    }

    async fn prepare(&self) -> Result<Reply, Refusal> {
        let (plan, changes) = {
            let mut plans = self.plans.borrow_mut();
            let Plans { current: Some(current), loaded: Some(plan), .. } = &mut *plans else {
                return Err(nothing_loaded());
            };
            let InterfaceSettings { index, offload, is_kept, is_prepared, .. } = current.settings;
            plan.settings = InterfaceSettings { index, offload, is_kept, is_prepared, ..plan.settings.clone() };
            (plan.clone(), InterfaceChanges::between(&current.settings, &plan.settings))
        };
        self.netlink.check_new(&plan.settings, &changes).await?;
        let prepared = self.guard.borrow_mut().prepare(plan.guard);
        prepared.map_err(|error| refuse(RefusalKind::Device, chain(&error)))?;
        if let Err(Failed { cause, left }) = self.netlink.add(&plan.settings, &changes).await {
            self.roll_guard_back();
            return Err(Refusal { left: told(&left), ..cause.into() });
        }
        self.plans.borrow_mut().prepared = Some(changes);
        Ok(Reply::Done)
    }

    async fn commit(&self) -> Result<Reply, Refusal> {
        let (plan, changes) = {
            let mut plans = self.plans.borrow_mut();
            let Some((plan, changes)) = plans.loaded.take().zip(plans.prepared.take()) else {
                return Err(nothing_loaded());
            };
            plans.current = Some(plan.clone());
            (plan, changes)
        };
        let mut left = told(&self.netlink.remove(&plan.settings, &changes).await);
        match self.netlink.close(&plan.settings).await {
            Ok(refused) => self.plans.borrow_mut().refused = refused,
            Err(error) => left.push(chain(&error)),
        }
        left.extend(self.guard.borrow_mut().finish().err().map(|error| chain(&error)));
        left.truncate(MAX_TOLD);
        Ok(Reply::Left(left))
    }

    async fn rollback(&self) -> Reply {
        let (loaded, prepared) = {
            let mut plans = self.plans.borrow_mut();
            (plans.loaded.take(), plans.prepared.take())
        };
        let Some((plan, changes)) = loaded.zip(prepared) else { return Reply::Left(Vec::new()) };
        let left = self.netlink.take_back(&plan.settings, &changes).await;
        self.roll_guard_back();
        Reply::Left(told(&left))
    }

    /// What stays is refused beside what was before.
    fn roll_guard_back(&self) {
        if let Err(error) = self.guard.borrow_mut().rollback() {
            tracing::warn!(error = chain(&error), "the nftables table refuses what the new configuration has, too");
        }
    }

    async fn repair(&self) -> Result<Reply, Refusal> {
        let (settings, refused) = {
            let plans = self.plans.borrow();
            let current = plans.current.as_ref().ok_or_else(nothing_loaded)?;
            (current.settings_with(plans.mtu), plans.refused.clone())
        };
        let readings = self.netlink.read(&settings, |_| false).await?;
        let drift = Drift::between(&settings, &refused, &readings);
        let repaired = self.netlink.repair(&settings, &drift).await;
        Ok(Reply::Repaired(Repaired { done: repaired.done, failed: told(&repaired.failed) }))
    }

    async fn limit_superpackets(&self, limit: SuperpacketLimit) -> Result<Reply, Refusal> {
        let settings = {
            let plans = self.plans.borrow();
            plans.current.as_ref().ok_or_else(nothing_loaded)?.settings_with(plans.mtu)
        };
        self.netlink.limit_superpackets(&settings, limit).await?;
        self.plans.borrow_mut().superpackets = limit;
        Ok(Reply::Done)
    }

    async fn open(&self, prefix: IpNet) -> Result<Reply, Refusal> {
        let settings = {
            let plans = self.plans.borrow();
            let settings = &plans.current.as_ref().ok_or_else(nothing_loaded)?.settings;
            let open = settings.open.iter().copied().chain([prefix]).collect();
            InterfaceSettings { open, ..settings.clone() }
        };
        let refused = self.netlink.close(&settings).await?;
        self.plans.borrow_mut().refused = refused;
        Ok(Reply::Done)
    }

    fn grant(&self, grant: SocketGrant, descriptors: &[OwnedFd]) -> Result<Reply, Refusal> {
        let [descriptor] = descriptors else { return Err(not_granted("there is no socket, or more than one")) };
        let socket = SockRef::from(descriptor);
        let transport = match (socket.r#type(), socket.protocol()) {
            (Ok(Type::DGRAM), Ok(Some(Protocol::UDP))) => Transport::Udp,
            (Ok(Type::STREAM), Ok(Some(Protocol::TCP))) => Transport::Tcp,
            _ => return Err(not_granted("this is neither a UDP nor a TCP socket")),
        };
        let plans = self.plans.borrow();
        if !plans.current.iter().chain(&plans.loaded).any(|plan| plan.grants(grant, transport)) {
            return Err(not_granted("the configuration does not say so"));
        }
        let done = match grant {
            SocketGrant::Bind(address) => socket.bind(&address.into()),
            SocketGrant::Mark(mark) => socket.set_mark(mark),
            SocketGrant::ReceiveBuffer(len) => setsockopt(descriptor, sockopt::RcvBufForce, &len).map_err(Into::into),
            SocketGrant::SendBuffer(len) => setsockopt(descriptor, sockopt::SndBufForce, &len).map_err(Into::into),
        };
        done.map(|()| Reply::Done)
            .map_err(|error| Refusal { errno: error.raw_os_error(), ..refuse(RefusalKind::Device, error) })
    }

    fn create_device(&self) -> Answer {
        let plans = self.plans.borrow();
        let plan = plans.loaded.as_ref().or(plans.current.as_ref()).ok_or_else(nothing_loaded)?;
        let queues = dataplane::create_device(&plan.settings.name, plan.mode, plan.lanes);
        let refused = |error| match error {
            TunError::NoPermission => refuse(RefusalKind::Permission, error),
            error => refuse(RefusalKind::Device, error),
        };
        Ok((Reply::Done, queues.map_err(refused)?))
    }

    /// Returns only if it can't be.
    fn renew(&self) -> Result<Reply, Refusal> {
        let journal = self.journal.map(|socket| (handover::JOURNAL.to_owned(), socket));
        let error = self.program.take_over(journal.as_slice(), None);
        Err(refuse(RefusalKind::Device, chain(&error)))
    }
}

fn refuse(kind: RefusalKind, text: impl ToString) -> Refusal {
    Refusal { kind, text: text.to_string(), errno: None, left: Vec::new() }
}

fn not_granted(text: &str) -> Refusal {
    refuse(RefusalKind::NotGranted, text)
}

fn nothing_loaded() -> Refusal {
    not_granted("no configuration was read for this")
}

fn told(errors: &[NetlinkError]) -> Vec<String> {
    errors.iter().take(MAX_TOLD).map(|error| chain(error)).collect()
}

fn told_briefly(report: &GuardReport) -> GuardReport {
    let left_out = report.left_out.iter().take(MAX_TOLD).cloned().collect();
    GuardReport { left_out, lacks: report.lacks.clone(), ..*report }
}

/// Lines of one answer, which must be no longer than a message.
const MAX_TOLD: usize = 64;
