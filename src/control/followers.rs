//! Everyone who is told what happens to links: the log, the metrics, the resolver, and what is remembered for a restart.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::board::Board;
use super::event_queue::{Arrived, EventReceiver};
use super::link_log::LinkLog;
use super::metrics::RoundTrips;
use super::mtu::InterfaceMtu;
use super::remembered::RememberedPeers;
use super::resolver::Resolver;
use crate::dataplane::clock;
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
    /// Follows what paths carry.
    pub mtu: &'a InterfaceMtu,
}

impl Followers<'_> {
    /// Tells them of each event, until dropped.
    pub async fn follow(mut self, events: EventReceiver) -> Infallible {
        let (mut writes, mut settles) = (interval(WRITE_INTERVAL), interval(SETTLE_INTERVAL));
        writes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        settles.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                arrived = events.receive() => self.tell_all(arrived).await,
                _ = writes.tick(), if self.remembered.borrow().is_changed() => self.remembered.borrow_mut().write(),
                _ = settles.tick(), if self.log.withholds() => self.log.settle(clock::now()),
            }
        }
    }

    /// Tells all that `arrived`. The log reads from one report where peers are: events do not say it of one who is
    /// where it was.
    async fn tell_all(&mut self, arrived: Vec<Arrived>) {
        let report = if arrived.iter().any(|arrived| is_up(&arrived.event)) { self.board.report().await } else { None };
        let peers = report.iter().flat_map(|report| &report.peers);
        let endpoints = peers.filter_map(|peer| Some((peer.name.as_str(), peer.endpoint?))).collect();
        let now = clock::now();
        arrived.iter().for_each(|arrived| self.tell(now, arrived, &endpoints));
    }

    fn tell(&mut self, now: Instant, arrived: &Arrived, endpoints: &HashMap<&str, SocketAddr>) {
        let event = &arrived.event;
        self.round_trips.count(event);
        self.log.log(now, arrived, endpoints);
        self.remembered.borrow_mut().note(event);
        self.mtu.note(event);
        if let Event::LinkChanged { peer, state, .. } = event {
            self.resolver.borrow().set_down(peer, *state == LinkState::Down);
        }
    }
}

fn is_up(event: &Event) -> bool {
    matches!(event, Event::LinkChanged { state, .. } if *state != LinkState::Down && *state != LinkState::Idle)
}

/// Between two writes of the file of peers' endpoints.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at lines that were withheld.
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);
