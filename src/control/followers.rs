//! Everyone who is told what happens to links: the log, the metrics, the resolver, and what is remembered for a restart.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{MissedTickBehavior, interval};

use super::link_log::LinkLog;
use super::metrics::RoundTrips;
use super::remembered::RememberedPeers;
use super::resolver::Resolver;
use crate::proto::event::Event;
use crate::proto::stats::LinkState;

/// Each of them.
#[derive(Debug)]
pub struct Followers<'a> {
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
        let mut writes = interval(WRITE_INTERVAL);
        writes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = events.recv() => self.tell(&event),
                _ = writes.tick(), if self.remembered.borrow().is_changed() => self.remembered.borrow_mut().write(),
                else => pending::<()>().await,
            }
        }
    }

    fn tell(&mut self, event: &Event) {
        self.round_trips.count(event);
        self.log.log(event);
        self.remembered.borrow_mut().note(event);
        if let Event::LinkChanged { peer, state, .. } = event {
            self.resolver.borrow().set_down(peer, *state == LinkState::Down);
        }
    }
}

/// Between two writes of the file of peers' endpoints.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
