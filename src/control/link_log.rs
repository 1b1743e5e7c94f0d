//! What is worth a line in the log when a link changes, at which level, under the peer's name.
//!
//! Each state is told once, however often the core says it again. Lines are limited for each peer and kind, since whoever
//! makes a peer's port change makes it as often as they like; what is withheld is counted and said. The audit trail is not:
//! of a link that changes faster than once a second its lines are joined, each with the number of changes that it stands for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::Level;
use tracing::field::display;

use super::audit::{self, Connected};
use super::event_queue::Arrived;
use super::line_limit::{Line, LineLimits};
use super::report::Identity;
use crate::keys::PublicKey;
use crate::proto::error::DropReason;
use crate::proto::event::Event;
use crate::proto::noise::Suite;
use crate::proto::pace::Pace;
use crate::proto::stats::{LinkReason, LinkState};

/// Follows the events of all links.
#[derive(Debug)]
pub struct LinkLog {
    identity: watch::Receiver<Arc<Identity>>,
    links: HashMap<PublicKey, Link>,
    limits: LineLimits,
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
    /// The pace at which the audit trail tells of it.
    audit_pace: Pace,
    /// The newest change that the audit trail has not told yet, and how many it stands for.
    untold: Option<(Audited, u64)>,
}

/// A change for the audit trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Audited {
    state: LinkState,
    reason: Option<LinkReason>,
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
        Self { identity, links: HashMap::new(), limits: LineLimits::default() }
    }

    /// Writes the line, if there is one. `endpoints` are known of peers by their names.
    pub fn log(&mut self, now: Instant, arrived: &Arrived, endpoints: &HashMap<&str, SocketAddr>) {
        self.forget_removed();
        if let Event::InitiationRefused { peer, from, reason } = &arrived.event {
            return self.log_refusal(now, *peer, *from, *reason, arrived.skipped);
        }
        if let Event::SessionsRenewed { cause } = &arrived.event {
            audit::sessions_renewed(*cause);
        }
        let Some((key, change)) = self.change(&arrived.event, arrived.skipped) else { return };
        let name = self.identity.borrow().peers.of(&key);
        let link = self.links.entry(key).or_default();
        link.endpoint = endpoints.get(name.as_str()).copied().or(link.endpoint);
        if let Change::Connected(state, reason) | Change::Disconnected(state, reason) = change {
            let before = link.untold.map_or(0, |(_, changes)| changes);
            link.untold = Some((Audited { state, reason }, before + arrived.skipped + 1));
            return link.audit(now, &key, &name);
        }
        let Link { endpoint, has_been_up, .. } = *link;
        if change.is_for_debugging(has_been_up) && !tracing::enabled!(Level::DEBUG) {
            return;
        }
        if let Some(withheld) = self.limits.take(now, Some(key), change.line(), arrived.skipped) {
            write_line(change, &name, endpoint, has_been_up, (withheld > 0).then_some(withheld));
        }
    }

    /// A peer's own limit holds for a key that a peer has, one for all others: anyone can make keys.
    fn log_refusal(
        &mut self,
        now: Instant,
        key: Option<PublicKey>,
        from: SocketAddr,
        reason: DropReason,
        skipped: u64,
    ) {
        let known = key.filter(|key| self.identity.borrow().peers.contain(key));
        let Some(withheld) = self.limits.take(now, known, Line::Refused(reason), skipped) else { return };
        let (withheld, reason) = ((withheld > 0).then_some(withheld), reason.as_str());
        let peer = known.map(|key| self.identity.borrow().peers.of(&key));
        let key = key.map(|key| key.short());
        match peer {
            Some(peer) => tracing::warn!(peer, key, %from, reason, withheld, "an initiation is refused"),
            None => tracing::info!(key, %from, reason, withheld, "an initiation is refused"),
        }
    }

    /// Whether anything waits to be written.
    pub fn withholds(&self) -> bool {
        self.limits.withhold() || self.links.values().any(|link| link.untold.is_some())
    }

    /// Writes what was withheld and may be written by now. Called about once a second.
    pub fn settle(&mut self, now: Instant) {
        self.forget_removed();
        let identity = self.identity.borrow();
        for (key, link) in self.links.iter_mut().filter(|(_, link)| link.untold.is_some()) {
            link.audit(now, key, &identity.peers.of(key));
        }
        for (key, line, withheld) in self.limits.take_withheld(now) {
            let (peer, about) = (key.map(|key| identity.peers.of(&key)), line.as_str());
            tracing::info!(peer, about, withheld, "further lines were withheld");
        }
    }

    /// A peer that is removed and added again is a new one.
    fn forget_removed(&mut self) {
        if self.identity.has_changed().unwrap_or(false) {
            let identity = self.identity.borrow_and_update();
            self.links.retain(|peer, _| identity.peers.contain(peer));
            self.limits.retain(|peer| identity.peers.contain(peer));
        }
    }

    fn change(&mut self, event: &Event, skipped: u64) -> Option<(PublicKey, Change)> {
        let peer = match event {
            Event::Packet { .. } | Event::RoundTrip { .. } | Event::SessionEnded { .. } | Event::Goodbye { .. } => {
                return None;
            }
            event => event.peer()?,
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
                let carries = carries(*state);
                // Of those that were skipped, each second one was of the other kind.
                let is_other = carries != std::mem::replace(&mut link.is_connected, carries) || skipped > 0;
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

impl Link {
    /// Has the audit trail tell the newest change, unless it has told too much of this link lately.
    fn audit(&mut self, now: Instant, key: &PublicKey, peer: &str) {
        let Some((Audited { state, reason }, changes)) = self.untold else { return };
        if !self.audit_pace.take(now, AUDIT_INTERVAL, AUDIT_BURST) {
            return;
        }
        self.untold = None;
        let link = Connected {
            peer,
            key,
            endpoint: self.endpoint,
            suite: self.suite.map(Suite::as_str),
            state: state.as_str(),
            reason: reason.map(LinkReason::as_str),
            changes: (changes > 1).then_some(changes),
        };
        if carries(state) {
            audit::connected(link);
        } else {
            let expected = state == LinkState::Idle || reason == Some(LinkReason::Goodbye);
            audit::disconnected(link, expected);
        }
    }
}

impl Change {
    /// Whether it is worth a line at DEBUG only.
    fn is_for_debugging(self, has_been_up: bool) -> bool {
        match self {
            Self::Renewed | Self::StillSilent => true,
            Self::Link(LinkState::Down, Some(LinkReason::NoHandshake)) => !has_been_up,
            _ => false,
        }
    }

    fn line(self) -> Line {
        match self {
            Self::Connected(..) | Self::Disconnected(..) | Self::Link(..) => Line::Link,
            Self::Renewed => Line::Renewed,
            Self::Silent | Self::StillSilent => Line::Silent,
            Self::Moved => Line::Moved,
        }
    }
}

/// Whether a link in this state carries traffic.
fn carries(state: LinkState) -> bool {
    !matches!(state, LinkState::Down | LinkState::Idle)
}

/// Everything but the audit trail.
fn write_line(change: Change, peer: &str, endpoint: Option<SocketAddr>, has_been_up: bool, withheld: Option<u64>) {
    let endpoint = endpoint.map(display);
    match change {
        Change::Connected(..) | Change::Disconnected(..) => {}
        Change::Link(..) if change.is_for_debugging(has_been_up) => {
            tracing::debug!(peer, withheld, "link down: no handshake was answered yet");
        }
        Change::Link(state, reason) => {
            let (state, reason) = (state.as_str(), reason.map(LinkReason::as_str));
            if matches!(state, "down" | "degraded") && reason != Some("goodbye") {
                tracing::warn!(peer, endpoint, reason, withheld, "link {state}");
            } else {
                tracing::info!(peer, reason, withheld, "link {state}");
            }
        }
        Change::Renewed => tracing::debug!(peer, withheld, "session renewed"),
        Change::Silent => {
            tracing::warn!(peer, withheld, "the peer does not answer: `underpass doctor {peer}` finds out why");
        }
        Change::StillSilent => tracing::debug!(peer, withheld, "the peer still does not answer"),
        Change::Moved => tracing::info!(peer, endpoint, withheld, "the peer has a new endpoint"),
    }
}

/// Of one link the audit trail tells so many changes at once, then one line in so long that stands for all of them.
const AUDIT_BURST: u32 = 10;
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

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
        events.iter().filter_map(|event| log.change(event, 0)).map(|(_, change)| change).collect()
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
        let arrived = Arrived { event: silence(), skipped: 0 };
        log.log(crate::dataplane::clock::now(), &arrived, &HashMap::new());
        sender.send_replace(Arc::new(identity(names(&[("app2", key())]))));
        log.forget_removed();
        assert_eq!(log.change(&silence(), 0), Some((key(), Change::StillSilent)), "only its name is another");
        sender.send_replace(Arc::new(identity(PeerNames::default())));
        log.forget_removed();
        assert_eq!(log.change(&silence(), 0), Some((key(), Change::Silent)));
    }

    #[test]
    fn only_a_change_of_endpoint_is_told() {
        let at =
            |remote: &str| Event::EndpointChanged { peer: key(), endpoint: Endpoint::new(remote.parse().unwrap()) };
        let moves = [at("192.0.2.1:51900"), at("192.0.2.1:51900"), at("192.0.2.1:51901"), at("192.0.2.1:51901")];
        assert_eq!(changes(&moves), [Change::Moved]);
    }

    /// The log that `work` writes, a JSON object a line.
    fn logged(work: impl FnOnce()) -> Vec<serde_json::Value> {
        let lines = Arc::<Mutex<Vec<u8>>>::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt().json().flatten_event(true);
        let subscriber = layer.with_writer(move || Lines(writer.clone())).finish();
        tracing::subscriber::with_default(subscriber, work);
        let lines = lines.lock().unwrap();
        String::from_utf8_lossy(&lines).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A minute of a peer whose port changes a thousand times a second, and whose link goes down and up once in it.
    #[test]
    fn a_peer_that_flaps_writes_few_lines_and_the_audit_trail_is_whole() {
        let (_sender, identity) = watch::channel(Arc::new(identity(names(&[("app1", key())]))));
        let (mut log, start) = (LinkLog::new(identity), crate::dataplane::clock::now());
        let lines = logged(|| {
            for millisecond in 0..60_000_u64 {
                let now = start + Duration::from_millis(millisecond);
                let mut tell = |event| log.log(now, &Arrived { event, skipped: 0 }, &HashMap::new());
                let port = 1024 + (millisecond % 60_000) as u16;
                tell(Event::EndpointChanged {
                    peer: key(),
                    endpoint: Endpoint::new(SocketAddr::from(([192, 0, 2, 1], port))),
                });
                match millisecond {
                    10 | 30_500 => tell(Event::LinkChanged { peer: key(), state: LinkState::Up, reason: None }),
                    30_000 => tell(Event::LinkChanged {
                        peer: key(),
                        state: LinkState::Down,
                        reason: Some(LinkReason::Unanswered),
                    }),
                    _ => {}
                }
                if millisecond % 1000 == 999 {
                    log.settle(now);
                }
            }
            log.settle(start + Duration::from_secs(120));
        });
        let of = |field: &str| lines.iter().filter(|line| line.get(field).is_some()).count();
        assert_eq!(of("event"), 3, "{lines:#?}");
        assert!(lines.len() <= 3 + 11, "{lines:#?}");
        let told = lines.iter().filter(|line| line["message"] == "the peer has a new endpoint").count() as u64;
        let withheld: u64 = lines.iter().filter_map(|line| line.get("withheld")?.as_u64()).sum();
        // The first is told when the link is up.
        assert_eq!(told + withheld, 59_999);
    }

    #[test]
    fn a_link_that_goes_up_and_down_fifty_times_a_second_has_joined_audit_lines_that_count_each_change() {
        let (_sender, identity) = watch::channel(Arc::new(identity(names(&[("app1", key())]))));
        let (mut log, start) = (LinkLog::new(identity), crate::dataplane::clock::now());
        let lines = logged(|| {
            for step in 0..500_u64 {
                let now = start + Duration::from_millis(step * 20);
                let state = if step % 2 == 0 { LinkState::Up } else { LinkState::Down };
                let event = Event::LinkChanged { peer: key(), state, reason: None };
                log.log(now, &Arrived { event, skipped: 0 }, &HashMap::new());
            }
            log.settle(start + Duration::from_secs(11));
        });
        let changes: u64 =
            lines.iter().map(|line| line.get("changes").map_or(1, |changes| changes.as_u64().unwrap())).sum();
        assert_eq!(changes, 500);
        assert!((20..=21).contains(&lines.len()), "{}", lines.len());
        assert_eq!(lines.last().unwrap()["event"], "peer-disconnected", "the last state is told");
    }
}
