//! What is worth a line in the log when a link changes, at which level, under the peer's name.
//!
//! Each state is told once at INFO or WARN, however often the core says it again.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::report::PeerNames;
use crate::keys::PublicKey;
use crate::proto::event::Event;
use crate::proto::noise::Suite;

/// Follows the events of all links.
#[derive(Debug)]
pub struct LinkLog {
    names: PeerNames,
    told: HashMap<PublicKey, Told>,
    /// Where each peer was last.
    endpoints: HashMap<PublicKey, SocketAddr>,
}

/// What the log said last of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Up,
    Idle,
    Down,
    Silent,
}

/// What an event means to the reader of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Up(Suite),
    /// New keys for a link that was up: nothing changed for its user.
    Renewed,
    Idle,
    Down,
    Silent,
    /// Silent as before.
    StillSilent,
    Moved,
}

impl LinkLog {
    /// Nothing was told yet.
    pub fn new(names: PeerNames) -> Self {
        Self { names, told: HashMap::new(), endpoints: HashMap::new() }
    }

    /// Writes the line, if there is one.
    pub fn log(&mut self, event: &Event) {
        let Some((peer, change)) = self.change(event) else { return };
        let endpoint = self.endpoints.get(&peer).map(tracing::field::display);
        let peer = self.names.of(&peer);
        match change {
            Change::Up(suite) => tracing::info!(peer, endpoint, suite = suite.as_str(), "link up"),
            Change::Renewed => tracing::debug!(peer, "session renewed"),
            Change::Idle => tracing::info!(peer, "link idle: the session ended and nothing asked for another"),
            Change::Down => tracing::info!(peer, "link down: the peer said goodbye"),
            Change::Silent => tracing::warn!(
                peer,
                "the peer does not answer: is it running, is its UDP port open, do both sides have each other's public key?"
            ),
            Change::StillSilent => tracing::debug!(peer, "the peer still does not answer"),
            Change::Moved => tracing::info!(peer, endpoint, "the peer has a new endpoint"),
        }
    }

    fn change(&mut self, event: &Event) -> Option<(PublicKey, Change)> {
        let (peer, told, change, again) = match event {
            Event::Packet { .. } => return None,
            Event::EndpointChanged { peer, endpoint } => {
                // The first is told when the link is up; the same one again has another local address.
                let before = self.endpoints.insert(*peer, endpoint.remote)?;
                return (before != endpoint.remote).then_some((*peer, Change::Moved));
            }
            Event::SessionEstablished { peer, suite, .. } => {
                (peer, Told::Up, Change::Up(*suite), Some(Change::Renewed))
            }
            Event::SessionEnded { peer } => (peer, Told::Idle, Change::Idle, None),
            Event::Goodbye { peer } => (peer, Told::Down, Change::Down, None),
            Event::HandshakeGivenUp { peer } => (peer, Told::Silent, Change::Silent, Some(Change::StillSilent)),
        };
        let before = self.told.insert(*peer, told);
        let change = if before == Some(told) { again? } else { change };
        Some((*peer, change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PrivateKey;
    use crate::proto::endpoint::Endpoint;

    fn key() -> PublicKey {
        PrivateKey::from_bytes([1; 32]).unwrap().public_key()
    }

    fn changes(events: &[Event]) -> Vec<Change> {
        let mut log = LinkLog::new(PeerNames::default());
        events.iter().filter_map(|event| log.change(event)).map(|(_, change)| change).collect()
    }

    fn established() -> Event {
        Event::SessionEstablished { peer: key(), initiator: true, suite: Suite::Aes256Gcm }
    }

    #[test]
    fn a_link_comes_up_once_however_often_its_keys_change() {
        let up = Change::Up(Suite::Aes256Gcm);
        assert_eq!(changes(&[established(), established()]), [up, Change::Renewed]);
        let goodbye = Event::Goodbye { peer: key() };
        assert_eq!(changes(&[established(), goodbye, established()]), [up, Change::Down, up]);
    }

    #[test]
    fn silence_is_a_warning_once() {
        let silence = || Event::HandshakeGivenUp { peer: key() };
        assert_eq!(changes(&[silence(), silence()]), [Change::Silent, Change::StillSilent]);
        let again = changes(&[silence(), established(), silence()]);
        assert_eq!(again, [Change::Silent, Change::Up(Suite::Aes256Gcm), Change::Silent]);
    }

    #[test]
    fn only_a_change_of_endpoint_is_told() {
        let at =
            |remote: &str| Event::EndpointChanged { peer: key(), endpoint: Endpoint::new(remote.parse().unwrap()) };
        let moves = [at("192.0.2.1:51900"), at("192.0.2.1:51900"), at("192.0.2.1:51901"), at("192.0.2.1:51901")];
        assert_eq!(changes(&moves), [Change::Moved]);
    }
}
