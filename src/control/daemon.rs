//! One daemon from start to end: what is started in which order, what is waited for, and the way back.
//!
//! Everything per packet runs in the data plane's threads; this is one task that mostly waits.

use std::cell::RefCell;
use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, channel, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::api::{ApiError, Command, ErrorCode, GuardReport, Response, StatusReport};
use super::audit;
use super::board::Board;
use super::event_queue::event_queue;
use super::followers::Followers;
use super::handover::{self, Received};
use super::health::{HealthError, HealthListeners};
use super::link_log::LinkLog;
use super::metrics::RoundTrips;
use super::mtu::{InterfaceMtu, MtuSockets, MtuState};
use super::netlink::{InterfaceSettings, Netlink, NetlinkError, still_refused};
use super::privileged::{Configured, Device, PrivilegedError, PrivilegedPlan, PrivilegedProcess};
use super::remembered::RememberedPeers;
use super::report::{Identity, PeerNames};
use super::resolver::{Families, Resolver};
use super::restart::{self, Program, RestartRequests, Restarts};
use super::routes::{Found, Plan, RouteSockets, Routes};
use super::running::{Request, Running};
use super::sandbox::{Part, Sandbox, SandboxError};
use super::signals::Signals;
use super::socket::{ControlSocket, SocketError};
use super::systemd::{self, Readiness};
use super::user::{DaemonUser, UserError};
use super::{forwarding, open, translate, watchdog};
use crate::config::{Config, Peer, written};
use crate::dataplane::{Dataplane, DataplaneConfig, DataplaneStatus, Failure, Handle, Privileges, StartError, clock};
use crate::keys::PublicKey;

/// Why a daemon did not start, or ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The system gave no event queue or signal handler.
    #[error("could not start the control runtime")]
    Runtime(#[source] io::Error),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The addresses for health checks.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// The TUN device or the UDP sockets.
    #[error(transparent)]
    Dataplane(#[from] StartError),
    /// Addresses, MTU, routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The privileged process.
    #[error(transparent)]
    Privileged(#[from] PrivilegedError),
    /// The user that it is to become.
    #[error(transparent)]
    User(#[from] UserError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The data plane ended while it should have run.
    #[error(transparent)]
    Failed(Failure),
}

/// How a daemon was started.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// Where the configuration was read, and is read again when that is asked for.
    pub file: &'a Path,
    /// Set if it may stay root.
    pub allow_root: bool,
    /// Descriptors that an earlier process has left.
    pub received: Received,
    /// The socket that log entries leave by, if they go to the journal.
    pub journal: Option<BorrowedFd<'static>>,
    /// How the log looks, in the words of the command line.
    pub log_arguments: Vec<OsString>,
}

/// Runs until SIGTERM or SIGINT, then says goodbye to the peers and leaves nothing behind.
pub fn run(config: Config, invocation: Invocation<'_>) -> Result<(), DaemonError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(DaemonError::Runtime)?;
    let outcome = runtime.block_on(run_until_signal(config, invocation));
    // Not dropped, which would wait for a look-up that hangs.
    runtime.shutdown_background();
    outcome
}

/// In this order, undone in reverse by the end of each one's scope: privileged process, signals, device and sockets, addresses and routes,
/// what watches them, control socket, sockets for health checks, threads, look-ups. The sandbox is for good.
async fn run_until_signal(config: Config, invocation: Invocation<'_>) -> Result<(), DaemonError> {
    let Invocation { file, allow_root, mut received, journal, log_arguments: mut options } = invocation;
    options.extend(allow_root.then(|| "--allow-root".into()));
    let user = DaemonUser::wanted(allow_root)?;
    systemd::connect(received.take(handover::MANAGER));
    let listener = received.take(handover::LISTENER);
    let mut signals = Signals::new().map_err(DaemonError::Runtime)?;
    let inherited = [received.take(handover::PRIVILEGED), received.take(handover::REPORTS)];
    let (privileged, reports) = PrivilegedProcess::start(file, &options, inherited)?;
    privileged.load_at_start(&PrivilegedPlan::of(&config))?;
    let program = Program::of_this_process(file);
    let (mut restarts, restart_requests) =
        Restarts::new(program, journal, privileged.clone()).map_err(DaemonError::Runtime)?;
    restart::admit_signals().map_err(DaemonError::Runtime)?;
    let started_at = clock::now();
    if listener.is_none() {
        ControlSocket::check_free(&config.interface.control_socket)?;
    }
    let privileges: Option<Arc<dyn Privileges>> = Some(Arc::new(privileged.clone()));
    let dataplane_config = DataplaneConfig { privileges, ..translate::dataplane_config(&config) };
    let (inheritance, kept) = handover::choose(&dataplane_config, received.dataplane);
    let is_kept = inheritance.has_interface();
    let mut dataplane = Dataplane::open(dataplane_config, inheritance)?;
    handover::leave(&dataplane.descriptors(), kept);
    let plan = configure_interface(&config, &dataplane, is_kept, &privileged).await?;
    let mtu = InterfaceMtu::new(config.interface.mtu, plan.settings.mtu, &privileged);
    dataplane.set_mtu(mtu.range());
    let routes = Routes::new(plan);
    let (route_sockets, mtu_sockets) = (RouteSockets::open()?, MtuSockets::open()?);
    let socket = open_control_socket(&config, listener, user.as_ref())?;
    let health = HealthListeners::bind(&config.health, Some(&privileged))?;
    dataplane.handle().set_accepted_suites(config.interface.suites.clone());

    // While this is the only thread.
    let others_lack = privileged.started().map(|started| started.lacks).unwrap_or_default();
    let sandbox = Sandbox::enter(Part::Daemon, &config, file, restarts.program(), user.as_ref(), &others_lack)?;
    let remembered = RefCell::new(remember_peers(&config, &dataplane.handle()));
    restarts.enter(&sandbox);
    let (failures, failed) = unbounded_channel();
    let (events, changed) = event_queue();
    // Nobody listens any more once the end has begun.
    dataplane.start(move |failure| drop(failures.send(failure)), move |event| events.send(event))?;
    let identity = Identity {
        interface: config.interface.name.clone(),
        role: config.role,
        addresses: config.interface.addresses.clone(),
        listen: dataplane.local_addresses(),
        offload: dataplane.offload(),
        tunnel_offload: dataplane.tunnel_offload(),
        file: file.to_owned(),
        started_at,
        private_key_written: written(&config.interface.private_key_file),
        sandbox,
        privileged: privileged.started(),
        peers: PeerNames::new(&config),
        network_errors: dataplane.network_errors(),
    };
    let resolver = RefCell::new(start_resolver(&config, &dataplane));
    log_start(&config, &identity, &mtu.state().borrow(), is_kept);
    systemd::notify(Readiness::Ready);

    let (identity, newest) = watch::channel(Arc::new(identity));
    let (requests, mut requested) = channel(MAX_REQUESTS);
    let log = LinkLog::new(newest.clone());
    let round_trips = RoundTrips::new(newest.clone());
    let handle = dataplane.handle();
    let board = start_board(newest, (privileged.guard(), routes.found(), mtu.state()), handle.clone());
    let followers = Followers {
        board: board.clone(),
        log,
        round_trips: round_trips.clone(),
        resolver: &resolver,
        remembered: &remembered,
        mtu: &mtu,
    };
    let answer = Answer { board: board.clone(), requests, restarts: restart_requests };
    let answer = move |command| answer.clone().to(command);
    let pulse = dataplane.pulse();
    let dataplane = RefCell::new(dataplane);
    let mut running =
        Running::new(file.to_owned(), config, identity, (&dataplane, &resolver), (privileged.clone(), &routes));
    let work = async {
        let may_drain = tokio::select! {
            may_drain = running.serve(&mut signals, &mut requested) => may_drain,
            never = restarts.serve(&dataplane, &socket, &reports, &remembered) => match never {},
        };
        if may_drain {
            running.drain_all(&mut signals, &mut requested).await;
        }
    };
    let outcome = tokio::select! {
        () = work => Ok(()),
        failure = first_failure(failed) => Err(DaemonError::Failed(failure)),
        never = followers.follow(changed) => match never {},
        never = socket.serve(answer) => match never {},
        never = health.serve(board.clone(), round_trips) => match never {},
        never = route_sockets.watch(&routes, handle.clone(), board.clone(), privileged.clone()) => match never {},
        never = mtu_sockets.follow(&mtu, &routes, handle, board, privileged.clone()) => match never {},
        never = privileged.follow(&reports) => match never {},
        never = watchdog::watch(&pulse) => match never {},
    };
    systemd::notify(Readiness::Stopping);
    remembered.borrow_mut().write();
    drop((resolver, socket));
    stop(dataplane.into_inner()).await;
    outcome
}

/// The one that the daemon whose place this one has taken has left open, or a new one.
fn open_control_socket(
    config: &Config,
    listener: Option<OwnedFd>,
    user: Option<&DaemonUser>,
) -> Result<ControlSocket, DaemonError> {
    let path = &config.interface.control_socket;
    if let Some(listener) = listener {
        return Ok(ControlSocket::adopt(listener, handover::control_socket_before(), path)?);
    }
    handover::remove_stale_socket(path);
    let Some(user) = user else { return Ok(ControlSocket::bind(path)?) };
    user.own_directory(path);
    let bound = user.act(|| ControlSocket::bind(path))?;
    bound.map_err(|error| match error {
        SocketError::NoPermission { path } => SocketError::NotForUser { path, user: user.name().to_owned() }.into(),
        error => error.into(),
    })
}

/// Has the data plane call everyone who was connected before a restart, as soon as it starts.
fn remember_peers(config: &Config, handle: &Handle) -> RememberedPeers {
    let is_known = |key: &PublicKey| config.peers.iter().any(|peer| peer.public_key == *key);
    let remembered = RememberedPeers::load(&config.interface.control_socket, is_known);
    for (key, endpoint) in remembered.endpoints() {
        if let Some(peer) = config.peers.iter().find(|peer| peer.public_key == key) {
            tell_remembered(peer, endpoint);
        }
        handle.connect(key, endpoint);
    }
    remembered
}

/// What works now and will not after the next boot, or did before. Of a name nobody knows yet which addresses it has.
fn tell_remembered(peer: &Peer, endpoint: SocketAddr) {
    let (name, is_named) = (&peer.name, peer.endpoints.len() > translate::addresses(peer).count());
    if peer.endpoints.is_empty() {
        tracing::info!(peer = name, %endpoint, "no endpoint is configured: the one before the restart is used until the next boot");
    } else if !is_named && translate::addresses(peer).all(|configured| configured != endpoint) {
        let configured: Vec<String> = peer.endpoints.iter().map(ToString::to_string).collect();
        let configured = configured.join(" ");
        tracing::warn!(
            peer = name, %endpoint, configured,
            "before the restart the peer was at another endpoint than those that the configuration has"
        );
    }
}

/// Has the privileged process set up the interface, and end where it is of no use from here on.
async fn configure_interface(
    config: &Config,
    dataplane: &Dataplane,
    is_kept: bool,
    privileged: &PrivilegedProcess,
) -> Result<Plan, DaemonError> {
    let settings = translate::interface_settings(config, dataplane.interface_index(), dataplane.offload());
    let device = Device { offload: dataplane.offload(), is_kept, is_prepared: dataplane.is_prepared() };
    let Configured { is_prepared, may_configure, mtu, .. } = privileged.configure_at_start(device)?;
    if config.interface.drop_capabilities || !may_configure {
        privileged.give_up();
    }
    let settings = InterfaceSettings { is_kept, is_prepared, mtu, ..settings };
    let refused = still_refused(&settings).await?;
    warn_of(config, &dataplane.local_addresses(), &Netlink::open()?, &settings).await;
    open::warn_of_refused(&refused);
    Ok(translate::route_watch_plan(config, settings, refused))
}

/// Says in the log what of a configuration will not work as it stands.
pub(super) async fn warn_of(config: &Config, listen: &[SocketAddr], netlink: &Netlink, settings: &InterfaceSettings) {
    let families = Families::of(listen);
    for peer in &config.peers {
        for endpoint in translate::addresses(peer).filter(|endpoint| !families.contain(endpoint)) {
            tracing::warn!(peer = peer.name, %endpoint, "no socket of this address family: see interface.listen");
        }
    }
    for prefix in &translate::route_plan(config).left_out {
        tracing::warn!(
            %prefix,
            "no default route was added: set interface.fwmark and add rules, see \"All traffic\" in docs/operations.md"
        );
    }
    if let Some(advice) = forwarding::advice(config) {
        tracing::info!("{advice}");
    }
    warn_of_loops(config, netlink, settings).await;
}

/// Datagrams to a peer that follow the tunnel's own routes never arrive; they are dropped and counted, which few see.
async fn warn_of_loops(config: &Config, netlink: &Netlink, settings: &InterfaceSettings) {
    let addresses = settings.addresses.iter().map(IpNet::trunc);
    let tunnelled: Vec<IpNet> = addresses.chain(settings.routes.iter().map(|route| route.destination)).collect();
    for peer in &config.peers {
        for endpoint in translate::addresses(peer) {
            let inside = tunnelled.iter().any(|prefix| prefix.contains(&endpoint.ip()));
            if inside && netlink.egress(endpoint.ip(), config.interface.fwmark).await == Some(settings.index) {
                tracing::warn!(
                    peer = peer.name,
                    %endpoint,
                    "the route to this endpoint leads into the tunnel itself: take it out of allowed_ips, or route it elsewhere"
                );
            }
        }
    }
}

pub(super) fn start_resolver(config: &Config, dataplane: &Dataplane) -> Resolver {
    let families = Families::of(&dataplane.local_addresses());
    let handle = dataplane.handle();
    Resolver::start(translate::named_peers(config), families, move |peer, endpoints| {
        handle.set_endpoints(peer, endpoints);
    })
}

fn log_start(config: &Config, identity: &Identity, mtu: &MtuState, is_kept: bool) {
    let listen: Vec<String> = identity.listen.iter().map(ToString::to_string).collect();
    tracing::info!(
        target: audit::TARGET,
        event = "started",
        interface = identity.interface,
        role = %identity.role,
        key = config.interface.private_key.public_key().short(),
        listen = listen.join(" "),
        peers = config.peers.len(),
        mtu = mtu.mtu,
        offload = identity.offload,
        tunnel_offload = identity.tunnel_offload,
        kept = is_kept,
        sandbox = identity.sandbox.is_on(),
        version = env!("CARGO_PKG_VERSION"),
        "started"
    );
}

async fn first_failure(mut failures: UnboundedReceiver<Failure>) -> Failure {
    match failures.recv().await {
        Some(failure) => failure,
        None => pending().await,
    }
}

/// Facts about this machine, beside the data plane.
type Machine = (watch::Receiver<GuardReport>, watch::Receiver<Found>, watch::Receiver<MtuState>);

fn start_board(identity: watch::Receiver<Arc<Identity>>, machine: Machine, handle: Handle) -> Board {
    Board::start(move || report(Arc::clone(&identity.borrow()), machine.clone(), handle.clone()))
}

async fn report(identity: Arc<Identity>, (guard, found, mtu): Machine, handle: Handle) -> Option<StatusReport> {
    let status = status(&handle).await?;
    let (guard, found, mtu) = (guard.borrow(), found.borrow(), mtu.borrow());
    Some(identity.report(clock::now(), clock::unix_time(), &status, (&guard, &found, &mtu)))
}

/// What clients of the control socket are answered with.
#[derive(Debug, Clone)]
struct Answer {
    board: Board,
    requests: Sender<Request>,
    restarts: RestartRequests,
}

impl Answer {
    async fn to(self, command: Command) -> Response {
        match command {
            Command::Status => answer_status(self.board).await,
            Command::Restart => self.restarts.request().await.into(),
            command => Request::make(command, self.requests).await,
        }
    }
}

async fn answer_status(board: Board) -> Response {
    match board.report().await {
        Some(report) => Response::Status(Box::new(StatusReport::clone(&report))),
        None => ApiError::new(ErrorCode::Internal, "the data plane does not answer").into(),
    }
}

async fn status(handle: &Handle) -> Option<DataplaneStatus> {
    let (reply, status) = oneshot::channel();
    handle.status(move |status| {
        // Nobody waits any more: a client that left.
        let _ = reply.send(status);
    });
    timeout(STATUS_TIMEOUT, status).await.ok()?.ok()
}

/// Stopping joins threads: not on the runtime's own, and not for ever.
async fn stop(dataplane: Dataplane) {
    let stopped = tokio::task::spawn_blocking(move || dataplane.stop());
    if timeout(STOP_TIMEOUT, stopped).await.is_err() {
        tracing::error!("the data plane did not stop in time; the kernel removes the device with this process");
    }
}

/// As many as clients of the control socket are served at a time; a further one waits for its turn.
const MAX_REQUESTS: usize = 32;
/// The slow path answers between two timers.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Below what service managers and people allow.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
