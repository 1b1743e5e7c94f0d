//! What is worth a line in the log when a link changes, at which level, under the peer's name.
//!
//! Each state is told once, however often the core says it again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::field::display;

use super::audit::{self, Connected};
use super::report::Identity;
use crate::keys::PublicKey;
use crate::proto::event::Event;
use crate::proto::noise::Suite;
use crate::proto::stats::{LinkReason, LinkState};

/// Follows the events of all links.
#[derive(Debug)]
pub struct LinkLog {
    identity: watch::Receiver<Arc<Identity>>,
    links: HashMap<PublicKey, Link>,
}

/// What is known of one link.
#[derive(Debug, Default)]
struct Link {
    endpoint: Option<SocketAddr>,
    suite: Option<Suite>,
    is_silent: bool,
    /// Set while it carries traffic.
    is_connected: bool,
    has_been_up: bool,
}

/// What an event means to the reader of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It carries traffic that carried none.
    Connected(LinkState, Option<LinkReason>),
    /// It carries traffic no longer.
    Disconnected(LinkState, Option<LinkReason>),
    /// Another state of the same kind.
    Link(LinkState, Option<LinkReason>),
    /// A new session: nothing changed for its user.
    Renewed,
    Silent,
    /// Silent as before.
    StillSilent,
    Moved,
}

impl LinkLog {
    /// Nothing was told yet. Peers are called as in the newest `identity`.
    pub fn new(identity: watch::Receiver<Arc<Identity>>) -> Self {
        Self { identity, links: HashMap::new() }
    }

    /// Writes the line, if there is one. `endpoints` are known of peers by their names.
    pub fn log(&mut self, event: &Event, endpoints: &HashMap<&str, SocketAddr>) {
        self.forget_removed();
        if let Event::SessionsRenewed { cause } = event {
            audit::sessions_renewed(*cause);
        }
        let Some((key, change)) = self.change(event) else { return };
        let name = self.identity.borrow().peers.of(&key);
        let link = self.links.entry(key).or_default();
        link.endpoint = endpoints.get(name.as_str()).copied().or(link.endpoint);
        let Link { endpoint, suite, has_been_up, .. } = *link;
        let connected = |state: LinkState, reason: Option<LinkReason>| Connected {
            peer: &name,
            key: &key,
            endpoint,
            suite: suite.map(Suite::as_str),
            state: state.as_str(),
            reason: reason.map(LinkReason::as_str),
        };
        let (peer, endpoint) = (name.as_str(), endpoint.map(display));
        match change {
            Change::Connected(state, reason) => audit::connected(connected(state, reason)),
            Change::Disconnected(state, reason) => {
                let expected = state == LinkState::Idle || reason == Some(LinkReason::Goodbye);
                audit::disconnected(connected(state, reason), expected);
            }
            Change::Link(LinkState::Down, Some(LinkReason::NoHandshake)) if !has_been_up => {
                tracing::debug!(peer, "link down: no handshake was answered yet");
            }
            Change::Link(state, reason) => {
                let (state, reason) = (state.as_str(), reason.map(LinkReason::as_str));
                if matches!(state, "down" | "degraded") && reason != Some("goodbye") {
                    tracing::warn!(peer, endpoint, reason, "link {state}");
                } else {
                    tracing::info!(peer, reason, "link {state}");
                }
            }
            Change::Renewed => tracing::debug!(peer, "session renewed"),
            Change::Silent => tracing::warn!(
                peer,
                "the peer does not answer: is it running, is its UDP port open, do both sides have each other's public key?"
            ),
            Change::StillSilent => tracing::debug!(peer, "the peer still does not answer"),
            Change::Moved => tracing::info!(peer, endpoint, "the peer has a new endpoint"),
        }
    }

    /// A peer that is removed and added again is a new one.
    fn forget_removed(&mut self) {
        if self.identity.has_changed().unwrap_or(false) {
            let identity = self.identity.borrow_and_update();
            self.links.retain(|peer, _| identity.peers.contain(peer));
        }
    }

    fn change(&mut self, event: &Event) -> Option<(PublicKey, Change)> {
        let peer = match event {
            Event::Packet { .. }
            | Event::RoundTrip { .. }
            | Event::InitiationRefused { .. }
            | Event::SessionEnded { .. }
            | Event::SessionsRenewed { .. }
            | Event::Goodbye { .. } => return None,
            Event::LinkChanged { peer, .. }
            | Event::SessionEstablished { peer, .. }
            | Event::HandshakeUnanswered { peer }
            | Event::HandshakeGivenUp { peer }
            | Event::EndpointChanged { peer, .. } => *peer,
        };
        let link = self.links.entry(peer).or_default();
        let change = match event {
            Event::EndpointChanged { endpoint, .. } => {
                // The first is told when the link is up; the same one again has another local address.
                let before = link.endpoint.replace(endpoint.remote)?;
                return (before != endpoint.remote).then_some((peer, Change::Moved));
            }
            Event::SessionEstablished { suite, .. } => {
                link.is_silent = false;
                link.suite = Some(*suite);
                Change::Renewed
            }
            Event::LinkChanged { state, reason, .. } => {
                let carries = !matches!(state, LinkState::Down | LinkState::Idle);
                let is_other = carries != std::mem::replace(&mut link.is_connected, carries);
                link.has_been_up |= carries;
                match (is_other, carries) {
                    (true, true) => Change::Connected(*state, *reason),
                    (true, false) => Change::Disconnected(*state, *reason),
                    (false, _) => Change::Link(*state, *reason),
                }
            }
            _ if std::mem::replace(&mut link.is_silent, true) => Change::StillSilent,
            _ => Change::Silent,
        };
        Some((peer, change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::PeerNames;
    use crate::control::report::tests::{identity, names};
    use crate::keys::PrivateKey;
    use crate::proto::endpoint::Endpoint;

    fn key() -> PublicKey {
        PrivateKey::from_bytes([1; 32]).unwrap().public_key()
    }

    fn changes(events: &[Event]) -> Vec<Change> {
        let (_sender, identity) = watch::channel(Arc::new(identity(PeerNames::default())));
        let mut log = LinkLog::new(identity);
        events.iter().filter_map(|event| log.change(event)).map(|(_, change)| change).collect()
    }

    fn established() -> Event {
        Event::SessionEstablished { peer: key(), initiator: true, suite: Suite::Aes256Gcm }
    }

    #[test]
    fn a_link_comes_up_once_however_often_its_keys_change() {
        let link = |state, reason| Event::LinkChanged { peer: key(), state, reason };
        let up = || link(LinkState::Up, None);
        let is_up = Change::Connected(LinkState::Up, None);
        assert_eq!(changes(&[established(), up(), established()]), [Change::Renewed, is_up, Change::Renewed]);
        let goodbye = Some(LinkReason::Goodbye);
        let down = || link(LinkState::Down, goodbye);
        assert_eq!(changes(&[up(), down(), up()]), [is_up, Change::Disconnected(LinkState::Down, goodbye), is_up]);
    }

    #[test]
    fn a_link_that_is_only_called_otherwise_stays_connected() {
        let link = |state| Event::LinkChanged { peer: key(), state, reason: None };
        let states = [LinkState::Idle, LinkState::Draining, LinkState::Up, LinkState::Degraded, LinkState::Idle];
        let expected = [
            Change::Link(LinkState::Idle, None),
            Change::Connected(LinkState::Draining, None),
            Change::Link(LinkState::Up, None),
            Change::Link(LinkState::Degraded, None),
            Change::Disconnected(LinkState::Idle, None),
        ];
        assert_eq!(changes(&states.map(link)), expected);
    }

    #[test]
    fn silence_is_a_warning_once() {
        let silence = || Event::HandshakeGivenUp { peer: key() };
        assert_eq!(
            changes(&[Event::HandshakeUnanswered { peer: key() }, silence()]),
            [Change::Silent, Change::StillSilent]
        );
        let again = changes(&[silence(), established(), silence()]);
        assert_eq!(again, [Change::Silent, Change::Renewed, Change::Silent]);
    }

    #[test]
    fn a_peer_that_is_removed_and_comes_again_is_a_new_one() {
        let silence = || Event::HandshakeGivenUp { peer: key() };
        let (sender, receiver) = watch::channel(Arc::new(identity(names(&[("app1", key())]))));
        let mut log = LinkLog::new(receiver);
        log.log(&silence(), &HashMap::new());
        sender.send_replace(Arc::new(identity(names(&[("app2", key())]))));
        log.forget_removed();
        assert_eq!(log.change(&silence()), Some((key(), Change::StillSilent)), "only its name is another");
        sender.send_replace(Arc::new(identity(PeerNames::default())));
        log.forget_removed();
        assert_eq!(log.change(&silence()), Some((key(), Change::Silent)));
    }

    #[test]
    fn only_a_change_of_endpoint_is_told() {
        let at =
            |remote: &str| Event::EndpointChanged { peer: key(), endpoint: Endpoint::new(remote.parse().unwrap()) };
        let moves = [at("192.0.2.1:51900"), at("192.0.2.1:51900"), at("192.0.2.1:51901"), at("192.0.2.1:51901")];
        assert_eq!(changes(&moves), [Change::Moved]);
    }
}
