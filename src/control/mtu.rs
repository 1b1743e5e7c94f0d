//! The interface's MTU where it is found from the paths (`interface.mtu = "auto"`).
//!
//! ```text
//!  kernel: routes, devices ──▶ how long datagrams leave for a peer ──▶ data plane: probes, proves
//!  interface ◀── privileged process ◀── the MTU that some path carries ◀──┘
//! ```
//!
//! The core decides which length is proven, and when the interface follows. Nothing here sees a packet.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::api::MtuSource;
use super::board::Board;
use super::netlink::{Netlink, NetlinkError, RouteMonitor};
use super::privileged::{PrivilegedError, PrivilegedProcess};
use super::routes::{Routes, WatchedPeer};
use super::translate;
use crate::config::Mtu;
use crate::dataplane::{Handle, clock};
use crate::keys::PublicKey;
use crate::proto::event::Event;
use crate::proto::interface_mtu::MtuRange;

/// The interface's MTU, shared by who changes it and who tells of it.
#[derive(Debug)]
pub struct InterfaceMtu {
    range: MtuRange,
    /// The MTU that the interface is to take.
    wanted: watch::Sender<u16>,
    /// Told when a peer may be elsewhere, or the interface is to take something else.
    is_news: Notify,
    state: watch::Sender<MtuState>,
}

/// The interface's MTU, as status tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MtuState {
    /// The MTU that the interface takes.
    pub mtu: u16,
    /// Source of it.
    pub source: MtuSource,
    /// Why it does not follow the paths, though it should.
    pub problem: Option<String>,
}

impl InterfaceMtu {
    /// `current` is what the interface takes. It stays so without a privileged process.
    pub fn new(configured: Mtu, current: u16, privileged: &PrivilegedProcess) -> Self {
        let range = MtuRange { current, ..translate::mtu_range(configured) };
        let (range, problem) = match (configured, privileged.started()) {
            (Mtu::Auto, None) => (MtuRange::fixed(current), Some(PrivilegedError::GivenUp.to_string())),
            _ => (range, None),
        };
        let source = if configured == Mtu::Auto { MtuSource::Auto } else { MtuSource::Configured };
        let state = MtuState { mtu: current, source, problem };
        Self { range, wanted: watch::Sender::new(current), is_news: Notify::new(), state: watch::Sender::new(state) }
    }

    /// The range that it may be in.
    pub fn range(&self) -> MtuRange {
        self.range
    }

    /// The MTU, now and later.
    pub fn state(&self) -> watch::Receiver<MtuState> {
        self.state.subscribe()
    }

    /// Takes note of what has happened to links.
    pub fn note(&self, event: &Event) {
        match event {
            Event::MtuChanged { mtu } => drop(self.wanted.send_replace(*mtu)),
            Event::SessionEstablished { .. } | Event::EndpointChanged { .. } => {}
            _ => return,
        }
        self.is_news.notify_one();
    }
}

/// The sockets that it takes to follow paths.
#[derive(Debug)]
pub struct MtuSockets {
    monitor: RouteMonitor,
    netlink: Netlink,
}

impl MtuSockets {
    /// Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { monitor: RouteMonitor::open()?, netlink: Netlink::open()? })
    }

    /// Has `mtu` follow the paths until dropped: `board` knows where peers are, `handle` is told how long datagrams leave for
    /// them, and `privileged` changes the interface, whose settings are in `routes`.
    pub async fn follow(
        self,
        mtu: &InterfaceMtu,
        routes: &Routes,
        handle: Handle,
        board: Board,
        privileged: PrivilegedProcess,
    ) -> Infallible {
        if mtu.range.most == mtu.range.least {
            return pending().await;
        }
        let follower = Follower {
            monitor: self.monitor,
            netlink: self.netlink,
            mtu,
            routes,
            handle,
            board,
            privileged,
            peers: Vec::new(),
            told: HashMap::new(),
        };
        follower.run().await
    }
}

struct Follower<'a> {
    monitor: RouteMonitor,
    netlink: Netlink,
    mtu: &'a InterfaceMtu,
    routes: &'a Routes,
    handle: Handle,
    board: Board,
    privileged: PrivilegedProcess,
    /// Peers that `told` is about.
    peers: Vec<WatchedPeer>,
    /// Address and longest datagram that the data plane was told of each peer.
    told: HashMap<PublicKey, (IpAddr, u16)>,
}

impl Follower<'_> {
    async fn run(mut self) -> Infallible {
        loop {
            let began = clock::now();
            self.monitor.clear();
            self.apply().await;
            self.tell_ceilings().await;
            let took = clock::now().saturating_duration_since(began);
            sleep((took * PAUSES_PER_LOOK).clamp(SETTLE, PERIOD)).await;
            tokio::select! {
                changed = self.monitor.changed() => if changed.is_err() {
                    sleep(PERIOD).await;
                },
                () = self.mtu.is_news.notified() => {}
                () = sleep(PERIOD) => {}
            }
        }
    }

    /// Has the interface take what it is to take.
    async fn apply(&self) {
        let wanted = *self.mtu.wanted.borrow();
        let state = self.mtu.state.borrow().clone();
        if wanted == state.mtu {
            return;
        }
        let mut plan = self.routes.hold().await;
        let problem = match self.privileged.set_mtu(wanted).await {
            Ok(()) => {
                plan.settings.mtu = wanted;
                tracing::info!(mtu = wanted, before = state.mtu, "the interface's MTU follows what the paths carry");
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let mtu = if problem.is_none() { wanted } else { state.mtu };
        if let Some(problem) = problem.as_ref().filter(|problem| Some(*problem) != state.problem.as_ref()) {
            tracing::warn!(mtu, wanted, problem, "the interface's MTU can't follow what the paths carry");
        }
        self.mtu.state.send_replace(MtuState { mtu, problem, ..state });
    }

    /// Tells the data plane of each peer how long datagrams leave this machine for it.
    async fn tell_ceilings(&mut self) {
        let Some(report) = self.board.report().await else { return };
        let (fwmark, index) = {
            let plan = self.routes.hold().await;
            if plan.peers != self.peers {
                self.peers.clone_from(&plan.peers);
                self.told.clear();
            }
            (plan.fwmark, plan.settings.index)
        };
        let known = report.peers.iter().filter_map(|peer| Some((peer.name.as_str(), peer.endpoint?.ip())));
        let places: HashMap<&str, IpAddr> = known.collect();
        let distinct: BTreeSet<IpAddr> = places.values().copied().collect();
        let netlink = &self.netlink;
        let ask = |place: IpAddr| async move { (place, netlink.egress_mtu(place, fwmark).await) };
        let answers = futures_util::stream::iter(distinct).map(ask).buffered(MAX_QUESTIONS);
        // What would go into the tunnel itself never arrives.
        let outside = answers.filter_map(|(place, egress)| async move {
            egress.filter(|egress| egress.interface != index).map(|egress| (place, longest_datagram(place, egress.mtu)))
        });
        let lengths: HashMap<IpAddr, u16> = outside.collect().await;
        for peer in &self.peers {
            let Some(place) = places.get(peer.name.as_str()) else { continue };
            let told = (*place, lengths.get(place).copied().unwrap_or(0));
            if self.told.insert(peer.public_key, told) != Some(told) {
                self.handle.set_path_ceiling(peer.public_key, told.0, told.1);
            }
        }
    }
}

/// UDP payload in bytes of a packet to `remote` that is as long as what carries it.
fn longest_datagram(remote: IpAddr, mtu: u32) -> u16 {
    let headers = if remote.is_ipv4() { 20 + 8 } else { 40 + 8 };
    u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX)
}

/// Changes and new sessions come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// Notifications may be missing.
const PERIOD: Duration = Duration::from_secs(10);
/// Pauses after a look, in times of what it took: however often routes change, looks take a tenth of the time at most.
const PAUSES_PER_LOOK: u32 = 9;
/// Of the kernel at a time.
const MAX_QUESTIONS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_leaves_room_for_the_headers_of_its_family() {
        let length = |address: &str, mtu| longest_datagram(address.parse().unwrap(), mtu);
        assert_eq!((length("192.0.2.1", 9000), length("2001:db8::1", 9000)), (8972, 8952));
        assert_eq!(
            (length("127.0.0.1", 65_536), length("192.0.2.1", 20), length("::1", 70_000)),
            (65_508, 0, u16::MAX)
        );
    }
}
