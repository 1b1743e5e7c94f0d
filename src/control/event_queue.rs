//! Events on their way from the data plane to control: in order while there is room, then the newest of each peer and kind.
//!
//! The data plane never waits and memory stays bounded, however fast a peer makes events and however long control is busy.
//! A link's newest state arrives in any case; what gave way to it is counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::{Discriminant, discriminant, take};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::keys::PublicKey;
use crate::proto::event::Event;

/// Events that are kept one by one. Every link of a large proxy may come up at once.
const MAX_WAITING: usize = 4096;

/// An event that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// The newest of its peer and kind.
    pub event: Event,
    /// The number of events of the same peer and kind that came before it and gave way to it.
    pub skipped: u64,
}

/// Both ends of a new queue.
pub fn event_queue() -> (EventSender, EventReceiver) {
    let shared = Arc::<Shared>::default();
    (EventSender(shared.clone()), EventReceiver(shared))
}

/// The data plane's end.
#[derive(Debug, Clone)]
pub struct EventSender(Arc<Shared>);

/// Control's end.
#[derive(Debug)]
pub struct EventReceiver(Arc<Shared>);

impl EventSender {
    /// Puts `event` in, at once.
    pub fn send(&self, event: Event) {
        self.0.waiting().push(event);
        self.0.is_news.notify_one();
    }
}

impl EventReceiver {
    /// Waits for events, and takes all that there are.
    pub async fn receive(&self) -> Vec<Arrived> {
        loop {
            let arrived = take(&mut *self.0.waiting()).events;
            if !arrived.is_empty() {
                return arrived;
            }
            self.0.is_news.notified().await;
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Held for a moment only: the data plane puts events in.
    waiting: Mutex<Waiting>,
    is_news: Notify,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<Arrived>,
    /// Positions of those past [`MAX_WAITING`]: one for each peer and kind.
    newest: HashMap<(Option<PublicKey>, Discriminant<Event>), usize>,
}

impl Waiting {
    fn push(&mut self, event: Event) {
        let (position, key) = (self.events.len(), (event.peer(), discriminant(&event)));
        if position >= MAX_WAITING {
            match self.newest.entry(key) {
                Entry::Occupied(before) => {
                    let arrived = &mut self.events[*before.get()];
                    (arrived.event, arrived.skipped) = (event, arrived.skipped + 1);
                    return;
                }
                Entry::Vacant(vacant) => drop(vacant.insert(position)),
            }
        }
        self.events.push(Arrived { event, skipped: 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PrivateKey;
    use crate::proto::endpoint::Endpoint;
    use crate::proto::stats::{LinkReason, LinkState};

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes([byte; 32]).unwrap().public_key()
    }

    fn moved(peer: u8, port: u16) -> Event {
        let remote = std::net::SocketAddr::from(([192, 0, 2, 1], port));
        Event::EndpointChanged { peer: key(peer), endpoint: Endpoint::new(remote) }
    }

    fn link(peer: u8, state: LinkState, reason: Option<LinkReason>) -> Event {
        Event::LinkChanged { peer: key(peer), state, reason }
    }

    #[tokio::test]
    async fn what_fits_arrives_in_order() {
        let (sender, receiver) = event_queue();
        let events = [moved(1, 1), link(1, LinkState::Up, None), moved(1, 2), moved(2, 3)];
        events.iter().for_each(|event| sender.send(event.clone()));
        let arrived = receiver.receive().await;
        assert_eq!(arrived, events.map(|event| Arrived { event, skipped: 0 }));
    }

    #[tokio::test]
    async fn a_flood_of_one_peer_loses_no_links_newest_state_and_is_counted() {
        let (sender, receiver) = event_queue();
        (0..u16::MAX).for_each(|port| sender.send(moved(1, port)));
        sender.send(link(2, LinkState::Up, None));
        sender.send(link(2, LinkState::Down, Some(LinkReason::Unanswered)));
        sender.send(link(1, LinkState::Up, None));
        let arrived = receiver.receive().await;
        assert_eq!(arrived.len(), MAX_WAITING + 3);
        let skipped = u64::from(u16::MAX) - MAX_WAITING as u64 - 1;
        let down = link(2, LinkState::Down, Some(LinkReason::Unanswered));
        let expected = [
            Arrived { event: moved(1, u16::MAX - 1), skipped },
            Arrived { event: down, skipped: 1 },
            Arrived { event: link(1, LinkState::Up, None), skipped: 0 },
        ];
        assert_eq!(arrived[MAX_WAITING..], expected);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (sender, receiver) = event_queue();
        let waiting = tokio::spawn(async move { receiver.receive().await });
        tokio::task::yield_now().await;
        sender.send(moved(1, 1));
        assert_eq!(waiting.await.unwrap().len(), 1);
    }
}
