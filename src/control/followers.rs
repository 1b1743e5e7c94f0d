//! Everyone who is told what happens to links: the log, the metrics, the resolver, and what is remembered for a restart.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{MissedTickBehavior, interval};

use super::board::Board;
use super::link_log::LinkLog;
use super::metrics::RoundTrips;
use super::remembered::RememberedPeers;
use super::resolver::Resolver;
use crate::proto::event::Event;
use crate::proto::stats::LinkState;

/// Each of them.
#[derive(Debug)]
pub struct Followers<'a> {
    /// Knows where peers are.
    pub board: Board,
    /// Tells the operator.
    pub log: LinkLog,
    /// Counts the answers to pings.
    pub round_trips: RoundTrips,
    /// Looks up the names of links that are down.
    pub resolver: &'a RefCell<Resolver>,
    /// Keeps endpoints.
    pub remembered: &'a RefCell<RememberedPeers>,
}

impl Followers<'_> {
    /// Tells them of each event, until dropped.
    pub async fn follow(mut self, mut events: Receiver<Event>) -> Infallible {
        let mut batch = Vec::new();
        let mut writes = interval(WRITE_INTERVAL);
        writes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                1.. = events.recv_many(&mut batch, MAX_BATCH) => self.tell_all(&mut batch).await,
                _ = writes.tick(), if self.remembered.borrow().is_changed() => self.remembered.borrow_mut().write(),
                else => pending::<()>().await,
            }
        }
    }

    /// Where a peer is, the log reads from one report for all of `events`: they do not say it of one who is where it was.
    async fn tell_all(&mut self, events: &mut Vec<Event>) {
        let report = if events.iter().any(is_up) { self.board.report().await } else { None };
        let peers = report.iter().flat_map(|report| &report.peers);
        let endpoints = peers.filter_map(|peer| Some((peer.name.as_str(), peer.endpoint?))).collect();
        events.drain(..).for_each(|event| self.tell(&event, &endpoints));
    }

    fn tell(&mut self, event: &Event, endpoints: &HashMap<&str, SocketAddr>) {
        self.round_trips.count(event);
        self.log.log(event, endpoints);
        self.remembered.borrow_mut().note(event);
        if let Event::LinkChanged { peer, state, .. } = event {
            self.resolver.borrow().set_down(peer, *state == LinkState::Down);
        }
    }
}

fn is_up(event: &Event) -> bool {
    matches!(event, Event::LinkChanged { state, .. } if *state != LinkState::Down && *state != LinkState::Idle)
}

/// As many links as may come up together for one report.
const MAX_BATCH: usize = 4096;
/// Between two writes of the file of peers' endpoints.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
