//! Links that get no new connections: those that an operator named, and all of them before the daemon ends.
//!
//! A link that is draining carries traffic as before. That new connections go elsewhere is the load balancer's work, which
//! reads its state.

use std::collections::BTreeSet;
use std::future::pending;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::api::{ApiError, Drain, DrainReport, ErrorCode, SCHEMA_VERSION};
use super::audit;
use super::netlink::Netlink;
use super::running::{Request, Running};
use super::signals::{Asked, Signals};
use super::systemd::{self, Readiness};
use crate::config::{Config, Diff};
use crate::dataplane::clock;

/// The names of peers whose links are draining by command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drained(BTreeSet<String>);

impl Drained {
    /// Set if the link of the peer with this name is draining.
    pub fn contain(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Follows peers through a reload: a drained one stays so under its new name, one that is gone is forgotten.
    pub fn follow(&mut self, diff: &Diff) {
        let renamed = diff.changed.iter().filter(|peer| peer.old_name != peer.name);
        let drained: Vec<String> =
            renamed.filter(|peer| self.0.remove(&peer.old_name)).map(|peer| peer.name.clone()).collect();
        self.0.retain(|name| !diff.removed.contains(name));
        self.0.extend(drained);
    }

    fn set(&mut self, name: &str, draining: bool) {
        let _ = if draining { self.0.insert(name.to_owned()) } else { self.0.remove(name) };
    }
}

impl Running<'_> {
    /// Has a peer's link called draining, or no longer, until this is asked for again.
    pub(super) fn set_draining(&mut self, name: String, draining: bool) -> Result<DrainReport, ApiError> {
        let peer = self.config.peers.iter().find(|peer| peer.name == name);
        let peer = peer.ok_or_else(|| unknown_peer(&name, &self.config))?;
        audit::drained(&name, draining);
        self.handle.set_draining(peer.public_key, draining);
        self.drained.set(&name, draining);
        Ok(DrainReport { schema_version: SCHEMA_VERSION, drain: Drain { peer: name, draining } })
    }

    /// Has every link called draining, and waits until nothing passes any more, the configured time is over, or somebody
    /// asks a second time.
    pub async fn drain_all(&self, signals: &mut Signals, requests: &mut Receiver<Request>) {
        let timeout = self.config.interface.drain_timeout;
        if timeout.is_zero() {
            return;
        }
        systemd::notify(Readiness::Draining(timeout));
        self.config.peers.iter().for_each(|peer| self.handle.set_draining(peer.public_key, true));
        audit::all_drained(timeout.as_secs());
        let (deadline, silence) = (sleep(timeout), silence(self.dataplane.borrow().interface_index()));
        tokio::pin!(deadline, silence);
        let why = loop {
            tokio::select! {
                () = &mut silence => break "nothing passes any more",
                () = &mut deadline => break "the time is over",
                asked = signals.next() => match asked {
                    Asked::Reload => tracing::warn!("SIGHUP: the daemon is about to end and does not reload"),
                    Asked::Terminate | Asked::Interrupt => break "asked again",
                },
                Some(request) = requests.recv() => request.refuse(),
            }
        };
        tracing::info!(why, "drained");
    }
}

/// Comes when no packet has passed the interface for a while. Pings of the links themselves do not pass it.
async fn silence(index: u32) {
    let Ok(netlink) = Netlink::open() else { return pending().await };
    let (mut last, mut since) = (None, clock::now());
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let packets = netlink.packets(index).await;
        let now = clock::now();
        if packets.is_none() || packets != last {
            (last, since) = (packets, now);
        } else if now.saturating_duration_since(since) >= SILENCE {
            return;
        }
    }
}

fn unknown_peer(name: &str, config: &Config) -> ApiError {
    let names: Vec<&str> = config.peers.iter().map(|peer| peer.name.as_str()).take(MAX_NAMES).collect();
    let more = if config.peers.len() > MAX_NAMES { ", …" } else { "" };
    let message = format!("there is no peer {name:?}: the peers are {}{more}", names.join(", "));
    ApiError::new(ErrorCode::UnknownPeer, message)
}

/// What is between two requests of a busy connection is shorter.
const SILENCE: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A screenful.
const MAX_NAMES: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerDiff;

    #[test]
    fn a_drained_peer_stays_so_under_another_name_and_is_forgotten_when_it_is_removed() {
        let mut drained = Drained::default();
        ["a", "b", "c"].iter().for_each(|name| drained.set(name, true));
        drained.set("c", false);
        let renamed = |old: &str, new: &str| PeerDiff { name: new.into(), old_name: old.into(), keys: vec!["name"] };
        let diff =
            Diff { removed: vec!["b".into()], changed: vec![renamed("a", "d"), renamed("c", "e")], ..Diff::default() };
        drained.follow(&diff);
        assert_eq!(drained, Drained(BTreeSet::from(["d".to_owned()])));
        assert!(drained.contain("d") && !drained.contain("a"));
    }
}
