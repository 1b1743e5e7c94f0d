//! One daemon from start to end: what is started in which order, what is waited for, and the way back.
//!
//! Everything per packet runs in the data plane's threads; this is one task that mostly waits.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::api::{ApiError, Command, ErrorCode, Response, StatusReport};
use super::board::Board;
use super::health::{HealthError, HealthListeners};
use super::link_log::LinkLog;
use super::metrics::RoundTrips;
use super::netlink::{InterfaceSettings, Netlink, NetlinkError};
use super::report::{Identity, PeerNames};
use super::resolver::{Families, Resolver};
use super::running::{Request, Running};
use super::signals::Signals;
use super::socket::{ControlSocket, SocketError};
use super::systemd::{self, Readiness};
use super::translate;
use crate::config::Config;
use crate::dataplane::{Dataplane, Failure, Handle, StartError, clock};
use crate::proto::event::Event;
use crate::proto::stats::{DeviceStatus, LinkState};

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
    /// The data plane ended while it should have run.
    #[error(transparent)]
    Failed(Failure),
}

/// Runs until SIGTERM or SIGINT, then says goodbye to the peers and leaves nothing behind. `file` is where `config` was read,
/// and is read again when that is asked for.
pub fn run(config: Config, file: &Path) -> Result<(), DaemonError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(DaemonError::Runtime)?;
    let outcome = runtime.block_on(run_until_signal(config, file));
    // Not dropped, which would wait for a look-up that hangs.
    runtime.shutdown_background();
    outcome
}

/// In this order, undone in reverse by the end of each one's scope: signals, device and sockets, addresses and routes,
/// control socket, sockets for health checks, threads, look-ups.
async fn run_until_signal(config: Config, file: &Path) -> Result<(), DaemonError> {
    let mut signals = Signals::new().map_err(DaemonError::Runtime)?;
    let started_at = clock::now();
    ControlSocket::check_free(&config.interface.control_socket)?;
    let mut dataplane = Dataplane::open(translate::dataplane_config(&config))?;
    configure_interface(&config, &dataplane).await?;
    let socket = ControlSocket::bind(&config.interface.control_socket)?;
    let health = HealthListeners::bind(&config.health).await?;

    let (failures, failed) = unbounded_channel();
    let (events, changes) = channel(MAX_CHANGES);
    // Nobody listens any more once the end has begun.
    dataplane.start(move |failure| drop(failures.send(failure)), move |event| drop(events.try_send(event)))?;
    let identity = Identity {
        interface: config.interface.name.clone(),
        role: config.role,
        addresses: config.interface.addresses.clone(),
        listen: dataplane.local_addresses(),
        mtu: config.interface.mtu,
        offload: dataplane.offload(),
        started_at,
        peers: PeerNames::new(&config),
    };
    let resolver = RefCell::new(start_resolver(&config, &dataplane));
    log_start(&config, &identity);
    systemd::notify(Readiness::Ready);

    let (identity, newest) = watch::channel(Arc::new(identity));
    let (requests, mut requested) = channel(MAX_REQUESTS);
    let log = LinkLog::new(newest.clone());
    let round_trips = RoundTrips::new(newest.clone());
    let board = start_board(newest, dataplane.handle());
    let answer = Answer { board: board.clone(), requests };
    let answer = move |command| answer.clone().to(command);
    let mut running = Running::new(file.to_owned(), config, identity, &dataplane, &resolver);
    let outcome = tokio::select! {
        () = running.serve(&mut signals, &mut requested) => Ok(()),
        failure = first_failure(failed) => Err(DaemonError::Failed(failure)),
        never = follow_changes(changes, log, &resolver, round_trips.clone()) => match never {},
        never = socket.serve(answer) => match never {},
        never = health.serve(board, round_trips) => match never {},
    };
    systemd::notify(Readiness::Stopping);
    drop(running);
    drop((resolver, socket));
    stop(dataplane).await;
    outcome
}

async fn configure_interface(config: &Config, dataplane: &Dataplane) -> Result<(), DaemonError> {
    let settings = translate::interface_settings(config, dataplane.interface_index(), dataplane.offload());
    let netlink = Netlink::open()?;
    netlink.configure(&settings).await?;
    warn_of(config, &dataplane.local_addresses(), &netlink, &settings).await;
    Ok(())
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

fn start_resolver(config: &Config, dataplane: &Dataplane) -> Resolver {
    let families = Families::of(&dataplane.local_addresses());
    let handle = dataplane.handle();
    Resolver::start(translate::named_peers(config), families, move |peer, endpoints| {
        handle.set_endpoints(peer, endpoints);
    })
}

fn log_start(config: &Config, identity: &Identity) {
    let listen: Vec<String> = identity.listen.iter().map(ToString::to_string).collect();
    tracing::info!(
        interface = identity.interface,
        role = %identity.role,
        listen = listen.join(" "),
        peers = config.peers.len(),
        mtu = identity.mtu,
        offload = identity.offload,
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

async fn follow_changes(
    mut changes: Receiver<Event>,
    mut log: LinkLog,
    resolver: &RefCell<Resolver>,
    mut round_trips: RoundTrips,
) -> Infallible {
    while let Some(event) = changes.recv().await {
        round_trips.count(&event);
        log.log(&event);
        if let Event::LinkChanged { peer, state, .. } = event {
            resolver.borrow().set_down(&peer, state == LinkState::Down);
        }
    }
    pending().await
}

fn start_board(identity: watch::Receiver<Arc<Identity>>, handle: Handle) -> Board {
    Board::start(move || report(Arc::clone(&identity.borrow()), handle.clone()))
}

async fn report(identity: Arc<Identity>, handle: Handle) -> Option<StatusReport> {
    let status = status(&handle).await?;
    Some(identity.report(clock::now(), clock::unix_time(), &status))
}

/// What clients of the control socket are answered with.
#[derive(Debug, Clone)]
struct Answer {
    board: Board,
    requests: Sender<Request>,
}

impl Answer {
    async fn to(self, command: Command) -> Response {
        match command {
            Command::Status => answer_status(self.board).await,
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

async fn status(handle: &Handle) -> Option<DeviceStatus> {
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

/// Changes that wait for the log; past it they are not logged. Every link of a large proxy may come up at once.
const MAX_CHANGES: usize = 4096;
/// As many as clients of the control socket are served at a time; a further one waits for its turn.
const MAX_REQUESTS: usize = 32;
/// The slow path answers between two timers.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Below what service managers and people allow.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
