//! The invariants that a look at one node can check. Those that need to know what others sent are the ledger's.

use std::sync::Arc;
use std::time::Instant;

use underpass::proto::constants::{MAX_LIMITED_SOURCES, MAX_STAGED_BYTES, MAX_STAGED_PACKETS};
use underpass::proto::error::{DropReason, Miss};
use underpass::proto::router::Router;
use underpass::proto::stats::{Footprint, LinkReason, LinkState, PeerStatus};
use underpass::proto::timers::Timer;

use crate::node::{Node, inner_addresses};
use crate::reference::{Checked, ensure};

/// The current session, the next, and three that only receive.
const MAX_SESSIONS: usize = 5;

/// What an unauthenticated datagram must leave as it is: everything but drop counters and the rate limiter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Untouched {
    peers: Vec<String>,
    footprint: Footprint,
    timeout: Option<(Instant, Timer)>,
    router: *const Router,
}

impl Untouched {
    pub(crate) fn new(now: Instant, node: &mut Node) -> Self {
        Self {
            peers: node.device.status(now).peers.iter().map(|peer| format!("{peer:?}")).collect(),
            footprint: Footprint { limited_sources: 0, ..node.device.footprint() },
            timeout: node.device.poll_timeout(),
            router: Arc::as_ptr(&node.device.router()),
        }
    }
}

/// Checked after everything that happens to a node.
pub(crate) fn node(now: Instant, node: &mut Node) -> Checked {
    memory(node)?;
    lookups(now, node)?;
    forgotten_sessions(node)
}

/// Checked after every timeout that was handled.
pub(crate) fn after_timeout(now: Instant, node: &mut Node) -> Checked {
    let deadline = node.deadline();
    ensure!(deadline.is_none_or(|deadline| deadline > now), "a deadline has not moved on");
    let router = node.device.router();
    let expired = router.sessions().find(|(_, session)| session.is_expired(now));
    ensure!(expired.is_none(), "node {} keeps a session past its end: {expired:?}", node.number());
    Ok(())
}

/// Memory per peer is bounded.
fn memory(node: &Node) -> Checked {
    let peers = node.peers.len();
    let footprint = node.device.footprint();
    let is_bounded = footprint.sessions <= MAX_SESSIONS * peers
        && footprint.session_indices <= (MAX_SESSIONS + 1) * peers
        && footprint.session_indices >= footprint.sessions
        && footprint.staged_packets <= MAX_STAGED_PACKETS * peers
        && footprint.staged_bytes <= MAX_STAGED_BYTES * peers
        && footprint.limited_sources <= 2 * MAX_LIMITED_SOURCES;
    ensure!(is_bounded, "node {} with {peers} peers keeps {footprint:?}", node.number());
    Ok(())
}

/// The router, the device and the model agree on every lookup.
fn lookups(now: Instant, node: &mut Node) -> Checked {
    let router = node.device.router();
    // Workers know of a move, or that a session is confirmed, before the device has heard of it.
    let has_heard = node.workers.is_empty();
    let status = node.device.status(now).peers;
    ensure!(status.len() == node.peers.len(), "node {} has {} peers", node.number(), status.len());
    for (name, known) in &node.peers {
        let status = status.iter().find(|status| status.public_key == known.config.public_key);
        ensure!(status.is_some(), "node {} does not know node {name}", node.number());
    }
    for address in (0..8).flat_map(inner_addresses) {
        let expected = node.allowed.lookup(address);
        let known = expected.map(|peer| &node.peers[&peer]);
        match router.route(now, address) {
            Ok(route) => {
                ensure!(known.is_some_and(|known| known.id == route.peer()), "{address} does not lead to {expected:?}");
                let key = known.map(|known| known.config.public_key);
                let status = status.iter().find(|status| Some(status.public_key) == key).expect("checked before");
                ensure!(!has_heard || carries(status), "there is a route to {address}, and its state is {status:?}");
                let agrees = !has_heard || status.endpoint == Some(route.endpoint());
                ensure!(agrees, "the endpoint of {address} is not that of {status:?}");
            }
            Err(Miss::NoSession(peer)) => {
                ensure!(known.is_some_and(|known| known.id == peer), "{address} does not lead to {expected:?}");
                let key = known.map(|known| known.config.public_key);
                let status = status.iter().find(|status| Some(status.public_key) == key).expect("checked before");
                let is_up = has_heard && carries(status) && status.endpoint.is_some();
                ensure!(!is_up, "there is no route to {address}, and its state is {status:?}");
            }
            Err(Miss::Drop(DropReason::LinkDown)) => {
                let key = known.map(|known| known.config.public_key);
                let status = status.iter().find(|status| Some(status.public_key) == key);
                let is_down = status.is_some_and(|status| status.state == LinkState::Down);
                // Its session may end at this very moment, which the device is about to notice.
                let is_ending = node.deadline().is_some_and(|deadline| deadline <= now);
                ensure!(
                    !has_heard || is_down || is_ending,
                    "{address} is refused as down, and its state is {status:?}"
                );
            }
            Err(Miss::Drop(DropReason::NoPeerForDestination)) => {
                ensure!(expected.is_none(), "{address} leads to nobody, not to {expected:?}");
            }
            Err(other) => ensure!(false, "{address} leads to {other:?}"),
        }
    }
    Ok(())
}

/// Whether packets go out: also to a peer that was found dead and given up, to see whether it is back.
fn carries(status: &PeerStatus) -> bool {
    let is_given_up = status.reason == Some(LinkReason::Unanswered) && !status.awaits_answer;
    matches!(status.state, LinkState::Up | LinkState::Degraded | LinkState::Draining) || is_given_up
}

/// Nothing holds the keys of a session that no snapshot shows.
fn forgotten_sessions(node: &mut Node) -> Checked {
    if !node.workers_are_current() {
        return Ok(());
    }
    let router = node.device.router();
    let is_known = |index: u32| router.sessions().any(|(_, session)| session.local_index == index);
    for (index, session) in std::mem::take(&mut node.sessions) {
        if is_known(index) {
            node.sessions.insert(index, session);
        } else {
            ensure!(session.strong_count() == 0, "node {} still has the keys of session {index:08x}", node.number());
        }
    }
    Ok(())
}
