//! Watches that what is for peers goes into the tunnel, as long as the daemon runs.
//!
//! ```text
//!  kernel: something has changed, or it is time
//!    └─▶ read ─▶ what is ours is missing ─▶ put back          (addresses, routes, refusals, up, MTU)
//!          └───▶ ask where peers' packets go ─▶ elsewhere ─▶ the link is down or degraded, by reason of its route
//! ```
//!
//! Routes that an operator has made are never removed. Nothing here sees a packet.

mod bucket;
mod judge;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use ipnet::IpNet;
use nix::net::if_::if_indextoname;
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio::time::sleep;

use self::bucket::Bucket;
use self::judge::{Fault, PrefixOwners, Surroundings};
use super::board::Board;
use super::netlink::{
    Drift, InterfaceSettings, Netlink, NetlinkError, Readings, Route, RouteMonitor, SuperpacketLimit,
};
use super::privileged::PrivilegedProcess;
use crate::dataplane::{Handle, clock};
use crate::keys::PublicKey;
use crate::packet::tunnel::TunnelKind;
use crate::proto::stats::RouteFault;

/// The plan of this machine's routes, and what was found of them: shared by who changes them and who watches them.
#[derive(Debug)]
pub struct Routes {
    /// Locked while anybody changes a route.
    plan: Mutex<Plan>,
    /// Told of a new plan.
    is_news: Notify,
    found: watch::Sender<Found>,
}

/// Routes as they are to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The interface.
    pub settings: InterfaceSettings,
    /// Routes that earlier configurations have had refused, beside this one's.
    pub refused: Vec<Route>,
    /// Networks that may be reached around the tunnel, by the configuration.
    pub open: Vec<IpNet>,
    /// Firewall mark of datagrams to peers.
    pub fwmark: Option<u32>,
    /// Whose packets are to go into the tunnel.
    pub peers: Vec<WatchedPeer>,
}

/// A peer, as far as routes matter to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedPeer {
    /// Its key.
    pub public_key: PublicKey,
    /// Its name.
    pub name: String,
    /// Its tunnel addresses.
    pub addresses: Vec<IpAddr>,
    /// Further prefixes that are routed to it, without default routes: what follows these is for the operator's rules to say.
    pub prefixes: Vec<IpNet>,
    /// Addresses at which it is configured to be reached.
    pub endpoints: Vec<IpAddr>,
}

/// Findings of the watch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Of peers whose packets go elsewhere, by which routes.
    pub faults: HashMap<PublicKey, String>,
    /// Times that something of the daemon's own was put back.
    pub repairs: u64,
    /// Settings of the daemon's own that are missing, in the words of `ip`; empty if nothing is.
    pub missing: String,
    /// Networks that are refused though they are no longer configured.
    pub refused: Vec<IpNet>,
}

impl Routes {
    /// `plan` is what was just set up.
    pub fn new(plan: Plan) -> Self {
        let found = Found { refused: networks(&plan.refused), ..Found::default() };
        Self { plan: Mutex::new(plan), is_news: Notify::new(), found: watch::Sender::new(found) }
    }

    /// Keeps the watch from repairs while routes are changed on purpose.
    pub async fn hold(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().await
    }

    /// Has `plan` hold from here on.
    pub fn replace(&self, mut held: MutexGuard<'_, Plan>, plan: Plan) {
        self.found.send_modify(|found| found.refused = networks(&plan.refused));
        *held = plan;
        self.is_news.notify_one();
    }

    /// Findings, now and later.
    pub fn found(&self) -> watch::Receiver<Found> {
        self.found.subscribe()
    }
}

/// Each once, whatever its table.
pub fn networks(routes: &[Route]) -> Vec<IpNet> {
    routes.iter().map(|route| route.destination).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The sockets that it takes to watch.
#[derive(Debug)]
pub struct RouteSockets {
    monitor: RouteMonitor,
    netlink: Netlink,
}

impl RouteSockets {
    /// Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { monitor: RouteMonitor::open()?, netlink: Netlink::open()? })
    }

    /// Watches until dropped. `handle` is told of peers whose packets go elsewhere; `board` knows where peers are;
    /// `privileged` puts back what is missing.
    pub async fn watch(
        self,
        routes: &Routes,
        handle: Handle,
        board: Board,
        privileged: PrivilegedProcess,
    ) -> Infallible {
        let now = clock::now();
        let watch = RouteWatch {
            monitor: self.monitor,
            netlink: self.netlink,
            routes,
            handle,
            board,
            privileged,
            told: HashMap::new(),
            tunnels: Vec::new(),
            plan_is_new: true,
            repairs: Bucket::new(now, REPAIRS_AT_ONCE, REPAIR_INTERVAL),
            lines: Bucket::new(now, LINES_AT_ONCE, LINE_INTERVAL),
        };
        watch.run().await
    }
}

struct RouteWatch<'a> {
    monitor: RouteMonitor,
    netlink: Netlink,
    routes: &'a Routes,
    handle: Handle,
    board: Board,
    privileged: PrivilegedProcess,
    /// Faults that the data plane was told.
    told: HashMap<PublicKey, RouteFault>,
    /// Tunnels that the data plane was told.
    tunnels: Vec<(u16, TunnelKind)>,
    /// The data plane may not know of peers what it was told.
    plan_is_new: bool,
    repairs: Bucket,
    lines: Bucket,
}

impl RouteWatch<'_> {
    async fn run(mut self) -> Infallible {
        loop {
            let began = clock::now();
            self.monitor.clear();
            self.look_for_tunnels().await;
            let is_whole = self.check().await;
            let took = clock::now().saturating_duration_since(began);
            sleep((took * PAUSES_PER_CHECK).clamp(SETTLE, LONGEST_PAUSE)).await;
            let patience = if is_whole { PERIOD.max(took * CHECKS_PER_PERIOD) } else { REPAIR_INTERVAL };
            tokio::select! {
                changed = self.monitor.changed() => if let Err(error) = changed {
                    tracing::warn!(%error, "changes of routes are not told: they are looked at now and then");
                    sleep(patience).await;
                },
                () = self.routes.is_news.notified() => self.plan_is_new = true,
                () = sleep(patience) => {}
            }
            // Changes come in bursts.
            sleep(SETTLE).await;
        }
    }

    /// Looks for tunnels that the kernel ends: their packets may be handed to it in superpackets.
    async fn look_for_tunnels(&mut self) {
        if !self.handle.wants_tunnels() {
            return;
        }
        let Some(tunnels) = self.netlink.tunnels().await.filter(|tunnels| *tunnels != self.tunnels) else { return };
        self.handle.set_tunnels(&tunnels);
        let limit = if tunnels.is_empty() { SuperpacketLimit::OneSend } else { SuperpacketLimit::Longest };
        if tunnels.is_empty() != self.tunnels.is_empty()
            && let Err(error) = self.privileged.limit_superpackets(limit).await
        {
            let error = &error as &(dyn std::error::Error + 'static);
            tracing::info!(error, "bulk transfers in tunnels of this machine will be slower: see docs/performance.md");
        }
        self.tunnels = tunnels;
    }

    /// Returns whether nothing is left to be put back.
    async fn check(&mut self) -> bool {
        let routes = self.routes;
        let plan = routes.hold().await;
        let owners = PrefixOwners::new(&plan.peers);
        let readings = match self.read(&plan, &owners).await {
            Ok(readings) => readings,
            Err(error) => {
                if self.lines.take(clock::now()) {
                    tracing::warn!(error = &error as &(dyn std::error::Error + 'static), "routes can't be watched");
                }
                return false;
            }
        };
        let faults = self.judge(&plan, &owners, &readings).await;
        self.tell(&plan, faults);
        let missing = Drift::between(&plan.settings, &plan.refused, &readings);
        self.routes.found.send_modify(|found| found.missing = missing.to_string());
        missing.is_empty()
    }

    /// Readings once what is missing was put back, as far as it may be.
    async fn read(&mut self, plan: &Plan, owners: &PrefixOwners) -> Result<Readings, NetlinkError> {
        let is_wanted = |network: &IpNet| owners.owner_of(network).is_some();
        let readings = self.netlink.read(&plan.settings, is_wanted).await?;
        let drift = Drift::between(&plan.settings, &plan.refused, &readings);
        if drift.is_empty() || !self.repairs.take(clock::now()) {
            return Ok(readings);
        }
        let repaired = self.privileged.repair().await;
        self.routes.found.send_modify(|found| found.repairs += repaired.done);
        self.log_repair(&drift, repaired.done, &repaired.failed);
        self.netlink.read(&plan.settings, is_wanted).await
    }

    async fn judge(&self, plan: &Plan, owners: &PrefixOwners, readings: &Readings) -> HashMap<PublicKey, Fault> {
        let endpoints = if readings.others.is_empty() { Vec::new() } else { self.endpoints(plan).await };
        let (own, open) = (&plan.settings.addresses, &plan.open);
        let around = Surroundings { readings, own, endpoints: &endpoints, open };
        let asked = judge::inquiries(&plan.peers, owners, around);
        let netlink = &self.netlink;
        let ask = |inquiry: judge::Inquiry| async move { (inquiry, netlink.way(inquiry.question).await) };
        let answers: Vec<_> = futures_util::stream::iter(asked).map(ask).buffered(MAX_QUESTIONS).collect().await;
        judge::faults(&plan.peers, plan.settings.index, &answers, interface_name)
    }

    /// Addresses to which datagrams to peers go, or may.
    async fn endpoints(&self, plan: &Plan) -> Vec<IpAddr> {
        let report = self.board.report().await;
        let in_use = report.iter().flat_map(|report| &report.peers).filter_map(|peer| peer.endpoint);
        let configured = plan.peers.iter().flat_map(|peer| peer.endpoints.iter().copied());
        in_use.map(|endpoint| endpoint.ip()).chain(configured).collect()
    }

    /// Tells the data plane, the status and the log what is different.
    fn tell(&mut self, plan: &Plan, mut faults: HashMap<PublicKey, Fault>) {
        let before = self.routes.found.borrow().faults.clone();
        let is_new = std::mem::take(&mut self.plan_is_new);
        let mut told = HashMap::new();
        let mut found = HashMap::new();
        for peer in &plan.peers {
            let fault = faults.remove(&peer.public_key);
            let kind = fault.as_ref().map(|fault| fault.kind);
            if is_new || self.told.get(&peer.public_key).copied() != kind {
                self.handle.set_route_fault(peer.public_key, kind);
            }
            self.log_fault(&peer.name, before.get(&peer.public_key), fault.as_ref());
            told.extend(kind.map(|kind| (peer.public_key, kind)));
            found.extend(fault.map(|fault| (peer.public_key, fault.routes)));
        }
        self.told = told;
        self.routes.found.send_modify(|state| state.faults = found);
    }

    fn log_fault(&mut self, peer: &str, before: Option<&String>, fault: Option<&Fault>) {
        let routes = fault.map(|fault| &fault.routes);
        if before == routes || !self.lines.take(clock::now()) {
            return;
        }
        match routes {
            Some(routes) => tracing::warn!(
                peer,
                routes,
                "what is for this peer does not go into the tunnel: remove the route or rule, or set interface.open"
            ),
            None => tracing::info!(peer, "what is for this peer goes into the tunnel again"),
        }
    }

    fn log_repair(&mut self, drift: &Drift, done: u64, failed: &[String]) {
        let missing = drift.to_string();
        if (done == 0 && failed.is_empty()) || !self.lines.take(clock::now()) {
            return;
        }
        if done > 0 {
            tracing::warn!(missing, "somebody has taken away what is this daemon's own: put back");
        }
        for error in failed.iter().take(1) {
            let failed = failed.len();
            tracing::warn!(missing, failed, error, "not put back");
        }
    }
}

fn interface_name(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("number {index}"))
}

/// A burst of changes is over after this.
const SETTLE: Duration = Duration::from_millis(20);
/// Whoever changes routes all the time has the daemon look at them a quarter of the time at most.
const PAUSES_PER_CHECK: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Notifications may be missing.
const PERIOD: Duration = Duration::from_secs(10);
/// A machine with a million routes has better things to do.
const CHECKS_PER_PERIOD: u32 = 100;
/// Enough for a program that sets up the network anew; and a pace that somebody who takes it away again and again can have.
const REPAIRS_AT_ONCE: u32 = 10;
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
/// Lines of the log.
const LINES_AT_ONCE: u32 = 50;
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Of the kernel at a time.
const MAX_QUESTIONS: usize = 64;
