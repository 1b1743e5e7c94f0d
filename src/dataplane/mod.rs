//! Everything per packet, and everything that touches the operating system for it: the TUN, the UDP sockets, the clock
//! and the threads.
//!
//! ```text
//!            commands ──▶ slow path ── Arc<Router> ──▶ worker 0..n       lanes: tun queue i ⇄ udp sockets i
//!   control     ▲           ▲ ▲ ▲                          │
//!               └── status ─┘ │ └── misses, notices ───────┘ (bounded queue)
//!                             └── udp sockets for handshakes
//! ```
//!
//! It configures no addresses, routes or link state, reads no files and knows no names of peers: that is `control`'s.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::keys::{PrivateKey, PublicKey};
use crate::packet::tunnel::TunnelKind;
use crate::proto::device::{Device, DeviceConfig};
use crate::proto::endpoint::Endpoint;
use crate::proto::event::Event;
use crate::proto::interface_mtu::MtuRange;
use crate::proto::noise::Suite;
use crate::proto::peer::PeerConfig;
use crate::proto::randomness::Entropy;
use crate::proto::router::Router;
use crate::proto::stats::RouteFault;

use self::counters::Counters;
use self::inheritance::{Inheritance, Role};
use self::lane::{Lane, LaneParts};
use self::machine::Machine;
use self::orders::Orders;
use self::processors::Uptime;
use self::sender::Sender;
use self::slow_path::{Command, CommandQueue, Inbox, SlowPath, SlowPathQueue, queues};
use self::sockets::Sockets;
use self::tun::{Offload, Tun};
use self::tunnel_ports::TunnelPorts;
use self::udp::{RECEIVE_BUFFER_LEN, UdpSocket};
use self::worker::Worker;
use self::worker_policy::WorkerPolicy;

mod acknowledgements;
mod batch;
mod busy_poll;
pub mod clock;
mod counters;
mod failure;
mod fair_queue;
mod inbound;
pub mod inheritance;
mod lane;
mod machine;
mod network_errors;
mod orders;
mod privileges;
mod processors;
mod pulse;
mod refusal;
mod routing_loop;
#[cfg(feature = "testing")]
mod samples;
mod segment;
mod sender;
mod slow_path;
mod sockets;
mod standing_queue;
#[cfg(feature = "testing")]
pub mod testing;
mod train;
mod tun;
mod tunnel_ports;
mod udp;
mod unreachable;
mod virtio;
mod wake;
mod worker;
mod worker_policy;

pub use self::failure::Failure;
pub use self::network_errors::{NetworkError, NetworkErrorKind, NetworkErrors};
pub use self::privileges::{Privileges, SocketGrant, create_device, or_granted};
pub use self::processors::is_processor_time_limited;
pub use self::pulse::Pulse;
pub use self::slow_path::{DataplaneStatus, PeerChange};
pub use self::tun::{DeviceMode, TunError};
pub use self::udp::{BindError, MAX_SOCKET_BUFFER_LEN};
pub use self::worker_policy::{WorkerCount, WorkersStatus};

/// What a data plane is made of.
#[derive(Debug, Clone)]
pub struct DataplaneConfig {
    /// The TUN interface to create.
    pub interface_name: String,
    /// How long packets may be that are carried; the interface's MTU, which control sets.
    pub mtu: MtuRange,
    /// Which kind of TUN.
    pub mode: DeviceMode,
    /// Where to listen; not empty.
    pub listen: Vec<SocketAddr>,
    /// IPv6 addresses to listen on are passed over on a host without IPv6, as long as one address is left.
    pub ipv6_optional: bool,
    /// SO_MARK of every datagram sent.
    pub fwmark: Option<u32>,
    /// Lanes, at least one, each with a TUN queue and UDP sockets of its own. A plain TUN has only one.
    pub lanes: u8,
    /// Fast-path threads that serve the lanes.
    pub workers: WorkerCount,
    /// Set if each of them stays on one of the CPUs that the process may use.
    pub pin_workers: bool,
    /// Set if they stay awake for the next packet for a moment on an idle machine.
    pub busy_poll: bool,
    /// The device that we are. The number of send lanes is set to that of the lanes, and the longest packets to those of the interface.
    pub device: DeviceConfig,
    /// Whom we talk to at the start.
    pub peers: Vec<PeerConfig>,
    /// The process that has the capabilities which this one lacks.
    pub privileges: Option<Arc<dyn Privileges>>,
}

/// Why a data plane could not be opened or started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no TUN.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A socket could not be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The kernel gave no randomness.
    #[error("the kernel gives no random numbers")]
    NoRandomness,
    /// The kernel gave no thread or wake-up descriptor.
    #[error("could not start a thread: {0}")]
    Thread(io::Error),
}

/// An open TUN with its sockets, and once started the threads that carry packets between them.
pub struct Dataplane {
    config: DataplaneConfig,
    tun: Tun,
    /// One set per lane.
    sockets: Vec<Sockets>,
    /// Set if some of them were another process's.
    is_inherited: bool,
    commands: CommandQueue,
    slow_path_queue: SlowPathQueue,
    /// Taken by `start`.
    inbox: Option<Inbox>,
    /// Taken by `start`, and opened before: a sandbox may come in between.
    machine: Option<Machine>,
    orders: Arc<Orders>,
    network_errors: Arc<NetworkErrors>,
    workers: Vec<JoinHandle<()>>,
    slow_path: Option<JoinHandle<()>>,
}

impl Dataplane {
    /// Creates the TUN, link down, and binds the sockets, but for what was inherited and [chosen](Inheritance::choose) for
    /// this configuration. Nothing is read from any of them before [`start`](Self::start).
    pub fn open(mut config: DataplaneConfig, inheritance: Inheritance) -> Result<Self, StartError> {
        let tun = match inheritance.tun {
            Some(tun) => tun,
            None => Self::create_tun(&config)?,
        };
        let lanes = u8::try_from(tun.queues.len()).expect("no more queues than lanes are counted");
        config.lanes = lanes;
        config.device.send_lanes = lanes;
        let is_inherited = !inheritance.sockets.is_empty();
        let sockets = sockets::bind(&config, inheritance.sockets)?;
        let (slow_path_queue, commands, inbox) = queues().map_err(StartError::Thread)?;
        let policy = WorkerPolicy::new(lanes.into(), config.workers);
        let orders = Orders::new(lanes.into(), policy.workers()).map_err(StartError::Thread)?;
        Ok(Self {
            config,
            tun,
            sockets,
            is_inherited,
            commands,
            slow_path_queue,
            inbox: Some(inbox),
            machine: Some(Machine::observe()),
            orders: Arc::new(orders),
            network_errors: Arc::default(),
            workers: Vec::new(),
            slow_path: None,
        })
    }

    fn create_tun(config: &DataplaneConfig) -> Result<Tun, TunError> {
        let (name, lanes) = (&config.interface_name, config.lanes.max(1));
        match (Tun::create(name, config.mode, lanes), &config.privileges) {
            (Err(TunError::NoPermission), Some(privileges)) => {
                let failed = |source: io::Error| match source.kind() {
                    io::ErrorKind::PermissionDenied => TunError::NoPermission,
                    _ => TunError::Io { name: name.clone(), source },
                };
                let queues = privileges.create_device().map_err(failed)?;
                Tun::adopt(name, config.mode, lanes, queues).map_err(|unfit| failed(io::Error::other(unfit)))
            }
            (created, _) => created,
        }
    }

    /// The TUN's interface index.
    pub fn interface_index(&self) -> u32 {
        self.tun.index
    }

    /// Whether the TUN was made for this daemon beforehand: it may have been set up too, and stays when the daemon ends.
    pub fn is_prepared(&self) -> bool {
        self.tun.is_prepared
    }

    /// Lanes that there are, which is as many workers as there can be.
    pub fn lanes(&self) -> u8 {
        self.config.lanes
    }

    /// Whether the TUN has offload.
    pub fn offload(&self) -> bool {
        self.tun.queues[0].offload() != Offload::None
    }

    /// Whether the TUN gives and takes superpackets in UDP tunnels.
    pub fn tunnel_offload(&self) -> bool {
        matches!(self.tun.queues[0].offload(), Offload::Tunnels { .. })
    }

    /// Where it listens, with the ports that the kernel chose for port 0.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.sockets[0].listen.iter().map(UdpSocket::local).collect()
    }

    /// Has packets be of these lengths. Before the start only, once control knows what the interface takes.
    pub fn set_mtu(&mut self, mtu: MtuRange) {
        self.config.mtu = mtu;
    }

    /// Starts to carry packets, after control has configured the interface. `failed` is called, from any thread and for
    /// each that ends, when packets can't be carried any more; `changed` for every change of a link. Started once only.
    pub fn start(
        &mut self,
        failed: impl Fn(Failure) + Send + Sync + 'static,
        changed: impl Fn(Event) + Send + 'static,
    ) -> Result<(), StartError> {
        let inbox = self.inbox.take().expect("a data plane is started once");
        if self.is_inherited {
            self.sockets.iter().for_each(Sockets::discard_queued);
        }
        let failed: OnFailure = Arc::new(failed);
        let mut device = self.device()?;
        // Before any worker reads it: a host that is not yet known would be answered as unreachable.
        let router = Arc::new(ArcSwap::from(device.router()));
        let counters: Vec<Arc<Counters>> = self.tun.queues.iter().map(|_| Arc::default()).collect();
        let slow_path = SlowPath {
            device,
            machine: self.machine.take().expect("a data plane is started once"),
            inbox,
            router: router.clone(),
            sender: Sender::new(self.sockets[0].clone()),
            receive_buffer: vec![0; RECEIVE_BUFFER_LEN].into(),
            tun: self.tun.queues[0].clone(),
            counters: counters.clone(),
            network_errors: self.network_errors.clone(),
            policy: WorkerPolicy::new(self.orders.lanes(), self.config.workers),
            orders: self.orders.clone(),
            uptime: Uptime::open(),
            changed: Box::new(changed),
        };
        self.slow_path = Some(spawn("slow-path", &failed, || slow_path.run())?);
        self.make_lanes(&router, counters);
        for number in 0..self.orders.lanes() {
            let (is_pinned, may_busy_poll) = (self.config.pin_workers, self.config.busy_poll);
            let worker = Worker { number, is_pinned, may_busy_poll, orders: self.orders.clone() };
            self.workers.push(spawn(&format!("worker-{number}"), &failed, || worker.run())?);
        }
        Ok(())
    }

    /// Gives each lane to the worker that begins with it.
    fn make_lanes(&self, router: &Arc<ArcSwap<Router>>, counters: Vec<Arc<Counters>>) {
        let ports = self.sockets[0].ports();
        for (lane, ((tun, sockets), counters)) in (0..).zip(self.tun.queues.iter().zip(&self.sockets).zip(counters)) {
            self.orders.give(Lane::new(LaneParts {
                lane,
                mtu: self.config.mtu.most,
                tun: tun.clone(),
                sockets: sockets.clone(),
                ports: ports.clone(),
                router: router.clone(),
                slow_path: self.slow_path_queue.clone(),
                counters,
                network_errors: self.network_errors.clone(),
            }));
        }
    }

    /// Opens what it takes to listen on `listen` and nowhere else, and changes nothing yet. Sockets of addresses that are
    /// listened on already stay as they are, with what is queued in them.
    pub fn bind(
        &self,
        listen: Vec<SocketAddr>,
        ipv6_optional: bool,
        fwmark: Option<u32>,
    ) -> Result<OtherSockets, BindError> {
        let failed = |source| BindError::Io { address: self.local_addresses()[0], source };
        let kept = sockets::duplicated(&self.sockets).map_err(failed)?;
        let config = DataplaneConfig { listen, ipv6_optional, fwmark, ..self.config.clone() };
        sockets::bind(&config, kept).map(OtherSockets)
    }

    /// Goes over to them. No session ends; peers learn from the next packet where we are.
    pub fn use_sockets(&mut self, OtherSockets(sockets): OtherSockets) {
        self.orders.use_sockets(&sockets);
        self.commands.send(Command::UseSockets(sockets[0].clone()));
        self.sockets = sockets;
    }

    /// Has all datagrams marked from here on, or none. Where it fails, some may have the new mark.
    pub fn set_fwmark(&self, mark: Option<u32>) -> io::Result<()> {
        self.sockets.iter().try_for_each(|sockets| sockets.set_mark(mark, self.config.privileges.as_deref()))
    }

    /// What the network says of endpoints, from the start on.
    pub fn network_errors(&self) -> Arc<NetworkErrors> {
        self.network_errors.clone()
    }

    /// Commands to the running data plane. Given before the start, they wait for it.
    pub fn handle(&self) -> Handle {
        let queues = self.tun.queues.iter().filter(|queue| matches!(queue.offload(), Offload::Tunnels { .. }));
        let tunnels = queues.map(|queue| queue.tunnels().clone()).collect();
        Handle { commands: self.commands.clone(), tunnels }
    }

    /// The TUN's queues and the sockets, each with the name that a successor's [`Inheritance`] knows it by.
    pub fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let queues = (0..).zip(&self.tun.queues).map(|(number, queue)| (Role::Tun(number), queue.as_fd()));
        let sockets = (0..).zip(&self.sockets).flat_map(|(lane, sockets)| sockets.descriptors(lane));
        queues.chain(sockets).map(|(role, descriptor)| (role.to_string(), descriptor)).collect()
    }

    /// Has every worker finish what it has in hand and wait: from then on the kernel alone queues packets, for whoever
    /// reads them next. Returns whether all of them have done so, soon.
    pub fn pause(&self) -> bool {
        self.orders.pause();
        let are_paused = self.orders.wait_until_paused();
        self.tun.leave();
        are_paused
    }

    /// Has the workers go on.
    pub fn resume(&self) {
        self.tun.take_back();
        self.orders.resume();
    }

    /// Tells whether the threads live.
    pub fn pulse(&self) -> Pulse {
        Pulse::new(self.orders.clone(), self.commands.clone())
    }

    /// Ends all threads, after every peer with a session was told, and closes the TUN, which removes the interface.
    pub fn stop(mut self) {
        self.end();
    }

    fn device(&self) -> Result<Device, StartError> {
        let now = clock::now();
        let config = DeviceConfig { mtu: Some(self.config.mtu), ..self.config.device.clone() };
        let mut device = Device::new(now, clock::unix_time(), config, kernel_entropy()?);
        for peer in &self.config.peers {
            if device.upsert_peer(now, peer.clone()).is_none() {
                tracing::warn!(peer = %peer.public_key.short(), "a peer with our own public key is not added");
            }
        }
        Ok(device)
    }

    /// Workers first, so that nothing follows a goodbye.
    fn end(&mut self) {
        self.orders.stop();
        for worker in self.workers.drain(..) {
            // A panic was reported when it happened.
            let _ = worker.join();
        }
        self.orders.discard();
        self.commands.send(Command::Stop);
        if let Some(slow_path) = self.slow_path.take() {
            let _ = slow_path.join();
        }
        self.tun.leave();
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataplane").field("config", &self.config).field("tun", &self.tun).finish_non_exhaustive()
    }
}

/// Commands to a data plane. They are carried out in order, soon, and are lost once it has stopped.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: CommandQueue,
    /// Of each TUN queue that takes superpackets in tunnels.
    tunnels: Arc<[Arc<TunnelPorts>]>,
}

impl Handle {
    /// Changes peers, in this order. No packet is carried in between: a prefix that goes from one to another is always
    /// somebody's.
    pub fn change_peers(&self, changes: Vec<PeerChange>) {
        self.commands.send(Command::ChangePeers(changes));
    }

    /// Tells where a peer is, in the order of preference.
    pub fn set_endpoints(&self, key: PublicKey, addresses: Vec<SocketAddr>) {
        self.commands.send(Command::SetEndpoints(key, addresses.into_iter().map(Endpoint::new).collect()));
    }

    /// Calls a peer at once that was at `address` before a restart.
    pub fn connect(&self, key: PublicKey, address: SocketAddr) {
        self.commands.send(Command::Connect(key, Endpoint::new(address)));
    }

    /// Changes who we are; `previous` stays accepted.
    pub fn set_private_key(&self, key: PrivateKey, previous: Option<PrivateKey>) {
        self.commands.send(Command::SetPrivateKey(key, previous));
    }

    /// Changes which suites peers may propose. Given before the start, it holds for the first initiation.
    pub fn set_accepted_suites(&self, suites: Vec<Suite>) {
        self.commands.send(Command::SetAcceptedSuites(suites));
    }

    /// Has a peer's link called draining, or no longer.
    pub fn set_draining(&self, key: PublicKey, draining: bool) {
        self.commands.send(Command::SetDraining(key, draining));
    }

    /// Tells how much of what is for a peer this machine's routes keep from the tunnel interface.
    pub fn set_route_fault(&self, key: PublicKey, fault: Option<RouteFault>) {
        self.commands.send(Command::SetRouteFault(key, fault));
    }

    /// Tells of the longest datagrams that this machine sends to an address where a peer is, in bytes of UDP payload.
    pub fn set_path_ceiling(&self, key: PublicKey, remote: IpAddr, length: u16) {
        self.commands.send(Command::SetPathCeiling(key, remote, length));
    }

    /// Has so many workers serve the lanes, as far as there are lanes for them. No packet is lost or overtakes another.
    pub fn set_workers(&self, count: WorkerCount) {
        self.commands.send(Command::SetWorkers(count));
    }

    /// Whether it is of any use to tell of tunnels.
    pub fn wants_tunnels(&self) -> bool {
        !self.tunnels.is_empty()
    }

    /// Tells on which UDP ports this machine's kernel ends tunnels, and which. Done at once.
    pub fn set_tunnels(&self, tunnels: &[(u16, TunnelKind)]) {
        self.tunnels.iter().for_each(|ports| ports.set(tunnels.iter().copied()));
    }

    /// Asks for the state of the device and its peers, of the workers, and everything that was dropped. `reply` is called on a
    /// thread of the data plane, which waits for it meanwhile; it is dropped uncalled if the data plane has stopped.
    pub fn status(&self, reply: impl FnOnce(DataplaneStatus) + Send + 'static) {
        self.commands.send(Command::Status(Box::new(reply)));
    }
}

/// Sockets that a data plane may go over to.
#[derive(Debug)]
pub struct OtherSockets(Vec<Sockets>);

type OnFailure = Arc<dyn Fn(Failure) + Send + Sync>;

/// The kernel's random numbers, after a first try.
fn kernel_entropy() -> Result<Entropy, StartError> {
    let random = SystemRandom::new();
    random.fill(&mut [0; 32]).map_err(|_| StartError::NoRandomness)?;
    Ok(Entropy::new(move || {
        let mut fresh = [0; 32];
        random.fill(&mut fresh).expect("getrandom(2) never fails for so few bytes once it has given any");
        fresh
    }))
}

fn spawn(
    name: &str,
    failed: &OnFailure,
    run: impl FnOnce() -> Result<(), Failure> + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let (failed, thread_name) = (failed.clone(), name.to_owned());
    let body = move || match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => failed(failure),
        Err(_) => failed(Failure::Panicked(thread_name)),
    };
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StartError::Thread)
}

#[cfg(test)]
mod tests;
