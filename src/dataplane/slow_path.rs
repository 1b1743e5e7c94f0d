//! The thread that owns the device: handshakes, timers, packets without a session, commands. It publishes a new
//! [`Router`] whenever one of them changes what the workers need, and says how many workers there are.
//!
//! Workers reach it through bounded queues, one for each peer, and never wait for it. Commands have a queue of their own.
//! Handshakes it receives itself, one between two of anything else, not counting those that are refused at a glance: a flood of
//! them fills no queue but the kernel's, can delay an operator or a worker's notice but not shut them out, and costs the
//! workers nothing.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender as ChannelSender, TryRecvError, channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::keys::{PrivateKey, PublicKey};
use crate::packet::ip::IpPacket;
use crate::packet::traffic_class::Ecn;
use crate::proto::device::Device;
use crate::proto::endpoint::Endpoint;
use crate::proto::error::DropReason;
use crate::proto::event::Event;
use crate::proto::noise::Suite;
use crate::proto::peer::PeerConfig;
use crate::proto::peer_table::PeerId;
use crate::proto::router::{Notice, Router};
use crate::proto::staged::StagedPacket;
use crate::proto::stats::{DeviceStatus, RouteFault};
use crate::proto::transmit::{Transmit, Way};

use super::clock;
use super::counters::Counters;
use super::failure::Failure;
use super::fair_queue::{Class, FairQueue, Pushed};
use super::lane::has_errors;
use super::machine::Machine;
use super::network_errors::NetworkErrors;
use super::orders::Orders;
use super::processors::{Load, Uptime};
use super::pulse::Beat;
use super::sender::{SendRun as _, Sender, Unsent};
use super::sockets::Sockets;
use super::train::Train;
use super::tun::{TunQueue, is_device_gone};
use super::udp::{Received, UdpSocket};
use super::wake::Wake;
use super::worker_policy::{Usage, WorkerCount, WorkerPolicy, WorkersStatus};

/// Without a timer due, the thread sleeps until something comes, and looks at the clocks so often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Datagrams in a row that are refused at a glance, before anything else has its turn: less work than one handshake.
const MAX_GLANCES: usize = 64;

/// The outcome of one receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reception {
    /// Nothing waits.
    Nothing,
    /// A datagram that was refused at a glance.
    Refused,
    /// A datagram that was worked on.
    Handled,
}

/// Whether what was refused for this reason has cost no more than a hash, and is not answered.
fn is_glance(reason: DropReason) -> bool {
    matches!(reason, DropReason::Malformed | DropReason::InvalidMac1 | DropReason::RateLimited)
}

/// What workers hand over.
#[derive(Debug)]
pub(super) enum Input {
    /// A handshake message that came where a worker receives.
    Datagram { from: Endpoint, ecn: Ecn, bytes: Vec<u8> },
    /// A packet for a peer without a session.
    Packet(PeerId, StagedPacket),
    /// What a packet showed.
    Notice(Notice),
}

/// What control asks for.
pub(super) enum Command {
    ChangePeers(Vec<PeerChange>),
    SetEndpoints(PublicKey, Vec<Endpoint>),
    Connect(PublicKey, Endpoint),
    SetPrivateKey(PrivateKey, Option<PrivateKey>),
    SetAcceptedSuites(Vec<Suite>),
    SetDraining(PublicKey, bool),
    SetRouteFault(PublicKey, Option<RouteFault>),
    SetPathCeiling(PublicKey, IpAddr, u16),
    UseSockets(Sockets),
    SetWorkers(WorkerCount),
    Status(Box<dyn FnOnce(DataplaneStatus) + Send>),
    ShowLife(Arc<Beat>),
    Stop,
}

/// State of a data plane.
#[derive(Debug, Clone)]
pub struct DataplaneStatus {
    /// The device and its peers, with what all threads have dropped.
    pub device: DeviceStatus,
    /// The fast-path threads.
    pub workers: WorkersStatus,
}

/// One change of the peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// Adds a peer, or changes the one with the same public key.
    Upsert(PeerConfig),
    /// Forgets the peer with this key, if there is one, and its sessions.
    Remove(PublicKey),
}

impl Input {
    fn class(&self) -> Class {
        match self {
            Self::Datagram { .. } => Class::Strangers,
            Self::Packet(peer, _) => Class::Packets(*peer),
            Self::Notice(notice) => Class::Notices(notice.peer),
        }
    }

    /// Whether both say the same: many notices repeat until they are heard.
    fn is_same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Notice(notice), Self::Notice(other)) if notice == other)
    }
}

/// A worker's end of the queue.
#[derive(Debug, Clone)]
pub(super) struct SlowPathQueue {
    inputs: Arc<FairQueue<Input>>,
    wake: Arc<Wake>,
}

impl SlowPathQueue {
    /// Hands over, unless the share of whom it is about is full.
    pub(super) fn offer(&self, input: Input) -> bool {
        let pushed = self.inputs.push(input.class(), input, Input::is_same);
        if pushed == Pushed::First {
            self.wake.ring();
        }
        pushed != Pushed::Refused
    }
}

/// Control's end of the command queue.
#[derive(Debug, Clone)]
pub(super) struct CommandQueue {
    commands: ChannelSender<Command>,
    wake: Arc<Wake>,
}

impl CommandQueue {
    /// Commands to a slow path that has ended are lost.
    pub(super) fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.wake.ring();
        }
    }
}

/// Both queues: the senders, and what the slow path reads.
pub(super) fn queues() -> io::Result<(SlowPathQueue, CommandQueue, Inbox)> {
    let wake = Arc::new(Wake::new()?);
    let inputs = Arc::new(FairQueue::new());
    let (commands, command_receiver) = channel();
    let inbox = Inbox { inputs: inputs.clone(), commands: command_receiver, wake: wake.clone() };
    Ok((SlowPathQueue { inputs, wake: wake.clone() }, CommandQueue { commands, wake }, inbox))
}

/// What the slow path reads.
#[derive(Debug)]
pub(super) struct Inbox {
    inputs: Arc<FairQueue<Input>>,
    commands: Receiver<Command>,
    /// Rung when something was put into either.
    wake: Arc<Wake>,
}

/// The slow path's state.
pub(super) struct SlowPath {
    pub(super) device: Device,
    pub(super) machine: Machine,
    pub(super) inbox: Inbox,
    pub(super) router: Arc<ArcSwap<Router>>,
    /// Over the first worker's sockets.
    pub(super) sender: Sender,
    /// Room for one receive.
    pub(super) receive_buffer: Box<[u8]>,
    pub(super) tun: Arc<TunQueue>,
    /// One per lane.
    pub(super) counters: Vec<Arc<Counters>>,
    /// Errors that the network reports about endpoints.
    pub(super) network_errors: Arc<NetworkErrors>,
    pub(super) policy: WorkerPolicy,
    pub(super) orders: Arc<Orders>,
    /// `None` where the system does not tell of idle processors.
    pub(super) uptime: Option<Uptime>,
    /// Hears of every event but packets.
    pub(super) changed: Box<dyn Fn(Event) + Send>,
}

impl fmt::Debug for SlowPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowPath").finish_non_exhaustive()
    }
}

impl SlowPath {
    /// Works until it is told to stop, or nobody can tell it anything any more.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        self.flush()?;
        loop {
            if !self.handle_commands()? {
                return Ok(());
            }
            self.look_at_machine()?;
            self.look_at_workers();
            let has_worked = self.handle_next_input()? | self.receive_handshakes()?;
            let now = clock::now();
            if let Some((_, timer)) = self.device.poll_timeout().filter(|(deadline, _)| *deadline <= now) {
                tracing::trace!(?timer, "timeout");
                self.device.handle_timeout(now);
                self.flush()?;
            }
            if !has_worked {
                self.sleep()?;
            }
        }
    }

    /// Its wall clock may have been set, and it may have been stopped.
    fn look_at_machine(&mut self) -> Result<(), Failure> {
        let now = clock::now();
        self.device.set_unix_time(now, clock::unix_time());
        match self.machine.interruption() {
            Some(cause) => {
                self.device.renew_sessions(now, cause);
                self.flush()
            }
            None => Ok(()),
        }
    }

    /// Has more or fewer workers serve the lanes where that helps. Looked at once a second, in which this thread wakes anyway.
    fn look_at_workers(&mut self) {
        let now = clock::now();
        if !self.policy.wants_look(now) {
            return;
        }
        let usage = self.usage();
        if let Some(workers) = self.policy.look(now, usage) {
            self.orders.spread(workers);
            tracing::info!(workers, reason = self.policy.status().reason, "the number of workers has changed");
        }
    }

    fn usage(&self) -> Option<Usage> {
        let workers = self.orders.loads().map(Load::times).collect::<Option<_>>()?;
        let lanes = self.counters.iter().map(|counters| counters.carried()).collect();
        Some(Usage { workers, lanes, idle: self.uptime.as_ref()?.idle()? })
    }

    fn set_workers(&mut self, count: WorkerCount) {
        self.policy.set(count);
        self.orders.spread(self.policy.workers());
    }

    /// Until something comes, or the next timer is due.
    fn sleep(&self) -> Result<(), Failure> {
        let until = self.device.poll_timeout();
        let sleep = until.map_or(LONGEST_SLEEP, |(deadline, _)| deadline.saturating_duration_since(clock::now()));
        // Rounded up, or the last part of a millisecond would be spent awake.
        let timeout =
            PollTimeout::try_from(sleep.min(LONGEST_SLEEP).as_micros().div_ceil(1000)).expect("a second fits");
        let mut descriptors = vec![PollFd::new(self.inbox.wake.as_fd(), PollFlags::POLLIN)];
        descriptors.extend(
            self.sender.sockets().handshakes.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
        );
        descriptors.extend(self.machine.descriptor().map(|notices| PollFd::new(notices, PollFlags::POLLIN)));
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::Poll(errno.into())),
        }
        for (socket, _) in
            self.sender.sockets().handshakes.iter().zip(&descriptors[1..]).filter(|(_, of)| has_errors(of))
        {
            self.network_errors.take(clock::unix_time(), socket, &self.router.load());
        }
        self.inbox.wake.hear();
        Ok(())
    }

    /// Returns whether there was one.
    fn handle_next_input(&mut self) -> Result<bool, Failure> {
        let Some(input) = self.inbox.inputs.pop() else { return Ok(false) };
        self.handle_input(input);
        self.flush()?;
        Ok(true)
    }

    /// Receives from each socket until something was more than a glance's work. Returns whether there was anything.
    fn receive_handshakes(&mut self) -> Result<bool, Failure> {
        let mut has_received = false;
        for socket in &*self.sender.sockets().handshakes.clone() {
            for _ in 0..MAX_GLANCES {
                let reception = self.receive_handshake(socket);
                has_received |= reception != Reception::Nothing;
                if reception != Reception::Refused {
                    break;
                }
            }
        }
        // What was refused may be told, too.
        if has_received {
            self.flush()?;
        }
        Ok(has_received)
    }

    fn receive_handshake(&mut self, socket: &UdpSocket) -> Reception {
        let Received { endpoint, ecn, length, stride } = match socket.receive(&mut self.receive_buffer) {
            Ok(Some(received)) => received,
            Ok(None) => return Reception::Nothing,
            Err(error) => {
                tracing::debug!(%error, "receive failed");
                return Reception::Nothing;
            }
        };
        let now = clock::now();
        if length == 0 {
            self.device.count_drop(DropReason::Malformed);
        }
        let (worked_on, mut reception) = (self.device.handshakes_worked_on(), Reception::Refused);
        for datagram in self.receive_buffer[..length].chunks_mut(stride) {
            // The device counts what it refuses.
            if !self.device.handle_datagram(now, endpoint, ecn, datagram).is_err_and(is_glance) {
                reception = Reception::Handled;
            }
        }
        let worked_on = self.device.handshakes_worked_on() - worked_on;
        if let Ok(number @ 1..) = u32::try_from(worked_on) {
            self.device.learn_handshake_time(clock::now().saturating_duration_since(now) / number);
        }
        reception
    }

    fn handle_input(&mut self, input: Input) {
        let now = clock::now();
        match input {
            // The device counts what it refuses.
            Input::Datagram { from, ecn, mut bytes } => drop(self.device.handle_datagram(now, from, ecn, &mut bytes)),
            Input::Packet(_, packet) => drop(self.device.handle_packet(now, packet)),
            Input::Notice(notice) => self.device.handle_notice(now, notice),
        }
    }

    /// Returns whether to go on.
    fn handle_commands(&mut self) -> Result<bool, Failure> {
        loop {
            let now = clock::now();
            match self.inbox.commands.try_recv() {
                Ok(Command::ChangePeers(changes)) => self.change_peers(now, changes),
                Ok(Command::SetEndpoints(key, endpoints)) => self.device.set_endpoints(now, &key, endpoints),
                Ok(Command::Connect(key, endpoint)) => self.device.connect(now, &key, endpoint),
                Ok(Command::SetPrivateKey(key, previous)) => self.device.set_private_key(now, key, previous),
                Ok(Command::SetAcceptedSuites(suites)) => self.device.set_accepted_suites(suites),
                Ok(Command::SetDraining(key, draining)) => drop(self.device.set_draining(now, &key, draining)),
                Ok(Command::SetRouteFault(key, fault)) => drop(self.device.set_route_fault(now, &key, fault)),
                Ok(Command::SetPathCeiling(key, remote, length)) => {
                    self.device.set_path_ceiling(now, &key, remote, length);
                }
                Ok(Command::UseSockets(sockets)) => self.sender = Sender::new(sockets),
                Ok(Command::SetWorkers(count)) => self.set_workers(count),
                Ok(Command::Status(reply)) => reply(self.status()),
                Ok(Command::ShowLife(beat)) => beat.answer(),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.device.shutdown(now);
                    self.flush()?;
                    return Ok(false);
                }
                Err(TryRecvError::Empty) => return Ok(true),
            }
            self.flush()?;
        }
    }

    /// Workers see all of it at once: what is done in between is not published.
    fn change_peers(&mut self, now: Instant, changes: Vec<PeerChange>) {
        for change in changes {
            match change {
                PeerChange::Remove(key) => self.device.remove_peer(&key),
                PeerChange::Upsert(peer) => {
                    let key = peer.public_key;
                    if self.device.upsert_peer(now, peer).is_none() {
                        tracing::warn!(peer = %key.short(), "a peer with our own public key is not added");
                    }
                }
            }
        }
    }

    fn status(&self) -> DataplaneStatus {
        let mut device = self.device.status(clock::now());
        for counters in &self.counters {
            counters.add_to(&mut device.drops);
        }
        DataplaneStatus { device, workers: self.policy.status() }
    }

    /// Takes every output of the device.
    fn flush(&mut self) -> Result<(), Failure> {
        // Before anything is sent: the answer to a response may come back before the next line runs.
        if let Some(router) = self.device.poll_router() {
            self.router.store(router);
        }
        let now = clock::now();
        while let Some(transmit) = self.device.poll_transmit() {
            let Transmit { endpoint, port, traffic_class, payload, may_fragment } = transmit;
            let way = Way { endpoint, port, traffic_class };
            let sent = match may_fragment {
                true => self.sender.send_fragmentable(&way, &payload),
                false => self.sender.send(now, &way, &payload, payload.len()),
            };
            if let Err(Unsent(_)) = sent {
                self.device.count_drop(DropReason::SendFailed);
            }
        }
        while let Some(event) = self.device.poll_event() {
            self.on_event(event)?;
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Packet { bytes, checksum_partial, .. } => return self.write_packet(&bytes, checksum_partial),
            change => (self.changed)(change),
        }
        Ok(())
    }

    fn write_packet(&mut self, bytes: &[u8], checksum_partial: bool) -> Result<(), Failure> {
        let packet = IpPacket::parse(bytes).expect("the device checks packets before it hands them out");
        let mut train = Train::new(self.tun.offload());
        train.start(packet, checksum_partial);
        match train.deliver(|parts| self.tun.write(parts)) {
            Err(error) if is_device_gone(&error) => Err(Failure::TunGone(error)),
            Err(_) => {
                self.device.count_drop(DropReason::TunWriteFailed);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
