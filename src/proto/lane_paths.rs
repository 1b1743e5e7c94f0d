//! The paths of one peer's lanes beside that of lane 0: from a port of the lane's own at the side that initiated the
//! session, to the one port that the other side listens on.
//!
//! ```text
//!   initiator:  a lane's path           ┌───────── pong ─────────┐
//!                                 ┌─────┴─────┐            ┌─────▼────┐
//!                 new session ──▶ │ unproven  │ ◀── lost ──│  proven  │ ──┐ ping, pong
//!                                 └───────────┘  or idle   └────▲─────┘ ──┘
//!                                   probes, ever more rarely    │
//!                                                  the lane takes its path
//!   responder:  where each lane was last heard from, and when; proven by a probe before anything goes there
//! ```
//!
//! Holds state and answers questions about it; what is sent is decided in [`device`](super::device).

use std::time::{Duration, Instant};

use super::constants::{
    LANE_PATH_LIFETIME, LANE_PING_INTERVAL, LANE_PINGS_UNANSWERED, LANE_PROBE_MAX_INTERVAL, ROAM_INTERVAL,
};
use super::endpoint::Endpoint;
use super::session::Session;

/// The lanes' paths of a peer's current session.
#[derive(Debug, Default)]
pub(super) enum LanePaths {
    /// All lanes take that of lane 0.
    #[default]
    Shared,
    /// We initiated the session: ours, from lane 1 on.
    Opened(Vec<OpenedPath>),
    /// The peer did: where each of its lanes comes from, where that is elsewhere than its endpoint.
    Followed(Vec<FollowedLane>),
}

/// What the fast path sees of [`LanePaths`].
#[derive(Debug, Clone, Default)]
pub(super) enum LaneRoutes {
    /// All lanes go to the peer's endpoint, from the port that we listen on.
    #[default]
    Shared,
    /// By lane: whether it leaves from its own port.
    Opened(Box<[bool]>),
    /// By the peer's lane: where that is, if not at the peer's endpoint. Not empty.
    Followed(Box<[Option<Endpoint>]>),
}

/// One lane's path at the side that opens it.
#[derive(Debug)]
pub(super) struct OpenedPath {
    /// The endpoint to which the path was proven: it is of no use to any other.
    proven_to: Option<Endpoint>,
    /// Tokens of the newest pings or probes, oldest first, and where they went.
    unanswered: Vec<(u64, Endpoint)>,
    /// When the newest of them was sent.
    tried_at: Option<Instant>,
    /// When the next probe goes out, while the path is unproven.
    probe_at: Instant,
    probe_interval: Duration,
}

/// One lane at the side that follows it.
#[derive(Debug, Default)]
pub(super) struct FollowedLane {
    /// The path on which the peer has proven that it receives.
    path: Option<FollowedPath>,
    /// The endpoint at which it was seen since, and when it was asked whether it receives there.
    seen: Option<(Endpoint, Option<Instant>)>,
}

/// The news that a datagram of a lane brings about its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing new.
    Known,
    /// The lane has no path of its own any more.
    AtEndpoint,
    /// The lane comes from where the peer has not proven that it receives.
    Elsewhere,
}

#[derive(Debug)]
struct FollowedPath {
    endpoint: Endpoint,
    heard_at: Instant,
}

/// What to send on a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaneAction {
    /// A ping from the lane's own port.
    Ping,
    /// A probe from there.
    Probe,
    /// Anything by the path of lane 0, so that the peer answers there; and a probe.
    Leave,
}

impl LanePaths {
    /// Nothing proven and nothing heard.
    pub(super) fn new(now: Instant, session: &Session) -> Self {
        match (session.has_lane_paths, session.is_initiator) {
            (false, _) => Self::Shared,
            (true, true) => Self::Opened((1..session.initiator_lanes()).map(|_| OpenedPath::new(now)).collect()),
            (true, false) => Self::Followed((0..session.initiator_lanes()).map(|_| FollowedLane::default()).collect()),
        }
    }

    /// Whether what is known holds in `session` too: a rekey by the same side changes no path.
    pub(super) fn fits(&self, session: &Session) -> bool {
        match (self, session.has_lane_paths, session.is_initiator) {
            (Self::Shared, false, _) => true,
            (Self::Opened(paths), true, true) => paths.len() + 1 == session.initiator_lanes(),
            (Self::Followed(paths), true, false) => paths.len() == session.initiator_lanes(),
            _ => false,
        }
    }

    /// What the fast path needs to know, with the peer at `endpoint`.
    pub(super) fn routes(&self, endpoint: Option<Endpoint>) -> LaneRoutes {
        match self {
            Self::Shared => LaneRoutes::Shared,
            Self::Opened(paths) => {
                let proven = paths.iter().map(|path| path.proven_to.is_some() && path.proven_to == endpoint);
                LaneRoutes::Opened(std::iter::once(false).chain(proven).collect())
            }
            Self::Followed(paths) => LaneRoutes::Followed(paths.iter().map(FollowedLane::endpoint).collect()),
        }
    }

    /// Whether any lane takes another path than lane 0.
    pub(super) fn is_split(&self) -> bool {
        match self {
            Self::Shared => false,
            Self::Opened(paths) => paths.iter().any(OpenedPath::is_proven),
            Self::Followed(lanes) => lanes.iter().any(|lane| lane.path.is_some()),
        }
    }

    /// The peer answered. Returns the lane whose path that proves, if it was not proven before.
    pub(super) fn on_pong(&mut self, token: u64, endpoint: Endpoint) -> Option<u8> {
        let Self::Opened(paths) = self else { return None };
        let (lane, path) = lanes(paths).find(|(_, path)| path.unanswered.iter().any(|(sent, _)| *sent == token))?;
        let position = path.unanswered.iter().position(|(sent, _)| *sent == token)?;
        let (_, went_to) = path.unanswered.drain(..=position).next_back()?;
        (went_to == endpoint && path.proven_to.replace(endpoint) != Some(endpoint)).then_some(lane)
    }

    /// The newest datagram of the peer's `lane` came from `endpoint`, its others come from `peer`.
    pub(super) fn on_heard(&mut self, now: Instant, lane: u8, endpoint: Endpoint, peer: Option<Endpoint>) -> Heard {
        let Some(followed) = self.followed(lane).filter(|_| lane > 0) else { return Heard::Known };
        if peer == Some(endpoint) {
            let was_split = std::mem::take(followed).path.is_some();
            return if was_split { Heard::AtEndpoint } else { Heard::Known };
        }
        match &mut followed.path {
            Some(path) if path.endpoint == endpoint => {
                path.heard_at = now;
                followed.seen = None;
                Heard::Known
            }
            _ => {
                let asked_at = followed.seen.filter(|(seen, _)| *seen == endpoint).and_then(|(_, asked_at)| asked_at);
                followed.seen = Some((endpoint, asked_at));
                Heard::Elsewhere
            }
        }
    }

    /// Whether the peer's `lane` was seen where it has not proven that it receives, and is to be asked. Then it is.
    pub(super) fn is_to_be_asked(&mut self, now: Instant, lane: u8) -> bool {
        let Some(FollowedLane { seen: Some((_, asked_at)), .. }) = self.followed(lane) else { return false };
        let is_due = asked_at.is_none_or(|at| now >= at + ROAM_INTERVAL);
        if is_due {
            *asked_at = Some(now);
        }
        is_due
    }

    /// The peer receives at `endpoint`: lanes that were seen there have their path there. Returns whether there are any.
    pub(super) fn on_proven(&mut self, now: Instant, endpoint: Endpoint) -> bool {
        let Self::Followed(lanes) = self else { return false };
        let mut any = false;
        for lane in lanes.iter_mut() {
            if lane.seen.take_if(|(seen, _)| *seen == endpoint).is_some() {
                lane.path = Some(FollowedPath { endpoint, heard_at: now });
                any = true;
            }
        }
        any
    }

    /// Whether the path of the peer's `lane` is known to be to `endpoint`.
    pub(super) fn is_at(&mut self, lane: u8, endpoint: Endpoint) -> bool {
        self.followed(lane).is_some_and(|lane| lane.endpoint() == Some(endpoint))
    }

    /// A ping came from `endpoint` on the peer's `lane`.
    pub(super) fn on_ping(&mut self, now: Instant, lane: u8, endpoint: Endpoint) {
        if let Some(FollowedLane { path: Some(path), .. }) = self.followed(lane)
            && path.endpoint == endpoint
        {
            path.heard_at = now;
        }
    }

    /// Forgets paths that have not been heard of for long. Returns whether there were any.
    pub(super) fn forget_silent(&mut self, now: Instant) -> bool {
        let Self::Followed(lanes) = self else { return false };
        let is_silent = |path: &mut FollowedPath| now >= path.heard_at + LANE_PATH_LIFETIME;
        lanes.iter_mut().filter_map(|lane| lane.path.take_if(is_silent)).count() > 0
    }

    /// When the first followed path will have been silent for too long.
    pub(super) fn next_silence(&self) -> Option<Instant> {
        let Self::Followed(lanes) = self else { return None };
        lanes.iter().filter_map(|lane| Some(lane.path.as_ref()?.heard_at + LANE_PATH_LIFETIME)).min()
    }

    fn followed(&mut self, lane: u8) -> Option<&mut FollowedLane> {
        let Self::Followed(lanes) = self else { return None };
        lanes.get_mut(usize::from(lane))
    }

    /// Our paths with their lanes.
    pub(super) fn opened(&mut self) -> impl Iterator<Item = (u8, &mut OpenedPath)> {
        lanes(match self {
            Self::Opened(paths) => paths,
            Self::Shared | Self::Followed(_) => &mut [],
        })
    }
}

fn lanes(paths: &mut [OpenedPath]) -> impl Iterator<Item = (u8, &mut OpenedPath)> {
    (1..).zip(paths)
}

impl FollowedLane {
    fn endpoint(&self) -> Option<Endpoint> {
        Some(self.path.as_ref()?.endpoint)
    }
}

impl OpenedPath {
    fn new(now: Instant) -> Self {
        Self {
            proven_to: None,
            unanswered: Vec::new(),
            tried_at: None,
            probe_at: now,
            probe_interval: LANE_PING_INTERVAL,
        }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven_to.is_some()
    }

    /// Looks after the path to `endpoint`; `silence` is how long no data has passed. Returns what to send.
    pub(super) fn tend(&mut self, now: Instant, endpoint: Endpoint, silence: Silence) -> Option<LaneAction> {
        // Threads may tell of one resumption together.
        let is_due = self.tried_at.is_none_or(|tried| now >= tried + LANE_PING_INTERVAL);
        let is_lost = is_due && self.unanswered.len() >= LANE_PINGS_UNANSWERED;
        match self.proven_to {
            Some(proven_to) if proven_to != endpoint || is_lost => {
                *self = Self::new(now);
                self.back_off(now);
                Some(LaneAction::Leave)
            }
            Some(_) if silence == Silence::Long => {
                *self = Self::new(now);
                None
            }
            Some(_) => (is_due && silence == Silence::None).then_some(LaneAction::Ping),
            None if silence == Silence::None && now >= self.probe_at => {
                self.back_off(now);
                Some(LaneAction::Probe)
            }
            None => None,
        }
    }

    /// A ping or a probe with `token` goes to `endpoint`.
    pub(super) fn expect_pong(&mut self, now: Instant, token: u64, endpoint: Endpoint) {
        self.tried_at = Some(now);
        if self.unanswered.len() >= LANE_PINGS_UNANSWERED {
            self.unanswered.remove(0);
        }
        self.unanswered.push((token, endpoint));
    }

    fn back_off(&mut self, now: Instant) {
        self.probe_at = now + self.probe_interval;
        self.probe_interval = (self.probe_interval * 2).min(LANE_PROBE_MAX_INTERVAL);
    }
}

/// How long no data has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// Not long enough to stop pinging.
    None,
    /// Long enough for that.
    Short,
    /// So long that translators may have forgotten the path.
    Long,
}

impl LaneRoutes {
    /// Where the peer's `lane` is, if not at its endpoint.
    pub(super) fn followed(&self, lane: u8) -> Option<Endpoint> {
        match self {
            Self::Followed(endpoints) => endpoints.get(usize::from(lane)).copied().flatten(),
            Self::Shared | Self::Opened(_) => None,
        }
    }

    /// The same, where our own lanes have no paths of their own.
    pub(super) fn without_opened(&self) -> &Self {
        match self {
            Self::Opened(_) => &Self::Shared,
            routes => routes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise::Suite;
    use super::super::session::tests::pair;
    use super::super::tests::start;
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Kind {
        lane_paths: bool,
        is_initiator: bool,
        lanes: u8,
    }

    fn session(now: Instant, kind: Kind) -> Session {
        let [initiated, responded] = pair(now, Suite::Aes256Gcm, kind.lanes);
        let mut session = if kind.is_initiator { initiated } else { responded };
        session.has_lane_paths = kind.lane_paths;
        session
    }

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(([192, 0, 2, 1], port).into())
    }

    fn followed(now: Instant) -> LanePaths {
        LanePaths::new(now, &session(now, Kind { lane_paths: true, is_initiator: false, lanes: 3 }))
    }

    #[test]
    fn paths_hold_in_sessions_by_the_same_initiator_with_as_many_lanes() {
        let now = start();
        let kinds: Vec<Kind> = [false, true]
            .into_iter()
            .flat_map(|lane_paths| [false, true].map(|is_initiator| (lane_paths, is_initiator)))
            .flat_map(|(lane_paths, is_initiator)| [2, 3].map(|lanes| Kind { lane_paths, is_initiator, lanes }))
            .collect();
        for one in &kinds {
            for other in &kinds {
                let fits = one == other || !one.lane_paths && !other.lane_paths;
                let paths = LanePaths::new(now, &session(now, *one));
                assert_eq!(paths.fits(&session(now, *other)), fits, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_path_is_pinged_once_in_an_interval_however_many_threads_tell_that_data_passes() {
        let (now, token) = (start(), 7);
        let mut paths = LanePaths::new(now, &session(now, Kind { lane_paths: true, is_initiator: true, lanes: 2 }));
        let tend = |paths: &mut LanePaths, now| {
            let (_, path) = paths.opened().next().unwrap();
            let action = path.tend(now, endpoint(1), Silence::None)?;
            path.expect_pong(now, token, endpoint(1));
            Some(action)
        };
        assert_eq!(tend(&mut paths, now), Some(LaneAction::Probe));
        assert_eq!(paths.on_pong(token, endpoint(1)), Some(1));
        let due = now + LANE_PING_INTERVAL;
        assert_eq!(tend(&mut paths, due - Duration::from_millis(1)), None);
        assert_eq!([due, due].map(|now| tend(&mut paths, now)), [Some(LaneAction::Ping), None]);
    }

    #[test]
    fn lane_0_is_where_the_peer_is() {
        let now = start();
        let mut paths = followed(now);
        let hear = |paths: &mut LanePaths, lane, from| paths.on_heard(now, lane, endpoint(from), Some(endpoint(1)));
        assert_eq!(hear(&mut paths, 0, 2), Heard::Known);
        assert_eq!(hear(&mut paths, 1, 2), Heard::Elsewhere);
        assert!(paths.on_proven(now, endpoint(2)) && paths.is_split());
        assert_eq!(hear(&mut paths, 1, 2), Heard::Known);
        assert_eq!(hear(&mut paths, 1, 1), Heard::AtEndpoint);
        assert_eq!(hear(&mut paths, 1, 1), Heard::Known);
        assert!(!paths.is_split());
    }

    #[test]
    fn a_lane_keeps_its_path_until_another_is_proven_for_which_it_is_asked_now_and_then() {
        let now = start();
        let mut paths = followed(now);
        let hear = |paths: &mut LanePaths, now, from| paths.on_heard(now, 1, endpoint(from), Some(endpoint(1)));
        assert!(!paths.is_to_be_asked(now, 1), "it was not seen anywhere");
        hear(&mut paths, now, 2);
        paths.on_proven(now, endpoint(2));
        assert_eq!(hear(&mut paths, now, 3), Heard::Elsewhere);
        assert_eq!([now, now].map(|now| paths.is_to_be_asked(now, 1)), [true, false]);
        let due = now + ROAM_INTERVAL;
        assert_eq!(hear(&mut paths, due, 3), Heard::Elsewhere);
        assert!(paths.is_to_be_asked(due, 1));
        assert!(paths.is_at(1, endpoint(2)) && !paths.is_at(1, endpoint(3)));
        assert!(!paths.on_proven(due, endpoint(4)), "nobody was seen there");
        assert!(paths.on_proven(due, endpoint(3)) && paths.is_at(1, endpoint(3)));
    }

    #[test]
    fn a_silent_path_is_forgotten_once() {
        let now = start();
        let [first, second] = [now, now + Duration::from_secs(1)].map(|heard_at| heard_at + LANE_PATH_LIFETIME);
        let mut paths = followed(now);
        for (at, lane, port) in [(now, 1, 2), (now + Duration::from_secs(1), 2, 3)] {
            paths.on_heard(at, lane, endpoint(port), Some(endpoint(1)));
            paths.on_proven(at, endpoint(port));
        }
        assert!(!paths.forget_silent(first - Duration::from_millis(1)));
        assert_eq!(paths.next_silence(), Some(first));
        assert!(paths.forget_silent(first));
        assert!(!paths.forget_silent(first));
        assert_eq!(paths.next_silence(), Some(second));
        assert!(paths.is_split() && paths.forget_silent(second) && !paths.is_split());
    }
    #[test]
    fn what_is_stale_leaves_the_paths_that_the_peer_opened() {
        let followed = LaneRoutes::Followed([None, Some(endpoint(2))].into());
        assert_eq!(followed.without_opened().followed(1), Some(endpoint(2)));
        let opened = LaneRoutes::Opened([false, true].into());
        assert!(matches!(opened.without_opened(), LaneRoutes::Shared));
    }
}
