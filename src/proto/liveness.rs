//! Whether a peer is there, how long a round trip to it takes, and how much is lost on the way: from pings within the
//! session, and from everything else that it sends.
//!
//! ```text
//!              every interval, a ping          unheard since: one every retry interval
//!             ┌──────────────┐  no answer yet  ┌───────────────┐  so many in a row  ┌──────────┐
//!  session ──▶│    alive     │ ──────────────▶ │   doubtful    │ ─────────────────▶ │   dead   │
//!             └──────────────┘ ◀────────────── └───────────────┘                    └──────────┘
//!                    ▲          anything heard                                           │
//!                    └───────────────── a new session, or so many pongs ─────────────────┘
//! ```
//!
//! Counting pings that were really sent, instead of time, keeps a machine that stands still for a moment from taking that
//! for its peer's silence; sending them faster once in doubt keeps random loss from being taken for it.
//!
//! Holds state and answers questions about it; what is sent is decided in [`device`](super::device).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::constants::{
    ALTERNATIVE_AFTER_PINGS, DEGRADED_ABOVE_LOSS, DEGRADED_UNTIL_LOSS, LIVENESS_DEAD_INTERVAL, LIVENESS_MAX_PATIENCE,
    LIVENESS_MIN_PATIENCE, LIVENESS_PINGS_UNANSWERED, LIVENESS_PONGS_TO_REVIVE, LIVENESS_RETRY_INTERVAL,
    PING_LOST_AFTER,
};
use super::endpoint::Endpoint;

/// Pings and probes that may still be answered, at most.
const MAX_IN_FLIGHT: usize = 128;
/// Outcomes of pings that the loss is counted over, at most: the bits of `Outcomes`.
const LOSS_WINDOW: u32 = 100;
/// Fewer say nothing.
const MIN_OUTCOMES: u32 = 20;

/// What is known of one peer's life.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    in_flight: VecDeque<Sent>,
    last_ping_at: Option<Instant>,
    /// Pings sent since the peer was last heard.
    unanswered: u32,
    /// When the first of them was sent.
    doubtful_since: Option<Instant>,
    /// Set once the peer was found dead, with the pongs since.
    dead: Option<u32>,
    is_degraded: bool,
    round_trip: Option<RoundTrip>,
    outcomes: Outcomes,
    pings: u64,
    lost: u64,
}

/// A ping or a probe on its way.
#[derive(Debug, Clone, Copy)]
struct Sent {
    token: u64,
    at: Instant,
    to: Endpoint,
    /// Whether its loss counts: a probe of another endpoint may well be lost.
    counts: bool,
}

/// What [`Liveness::tend`] found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Send a ping; so many have been sent since the peer was last heard.
    Ping {
        /// That number.
        unanswered: u32,
    },
    /// The peer is dead, as of now.
    Died,
}

/// What a pong told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// Where the ping had gone.
    pub(super) endpoint: Endpoint,
    /// How long it took.
    pub(super) round_trip: Duration,
    /// Whether it was a ping to the peer's endpoint, not a probe of another.
    pub(super) is_ping: bool,
}

/// Smoothed, by RFC 6298 §2.
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
}

/// The newest outcomes, one bit each: set if lost.
#[derive(Debug, Default)]
struct Outcomes {
    bits: u128,
    count: u32,
}

impl Liveness {
    /// A session was agreed: the peer is there.
    pub(super) fn on_session(&mut self) {
        self.revive();
    }

    /// Looks at what time has brought. `heard_at` is when the peer was last heard, `interval` that of pings to a peer that
    /// answers.
    pub(super) fn tend(&mut self, now: Instant, heard_at: Option<Instant>, interval: Duration) -> Option<Finding> {
        self.judge_lost(now);
        if self.dead.is_none() && self.doubtful_since.is_some_and(|since| heard_at.is_some_and(|heard| heard >= since))
        {
            self.on_heard();
        }
        let may_still_answer = self.last_ping_at.is_some_and(|last| now < last + self.patience());
        if self.dead.is_none() && self.unanswered >= LIVENESS_PINGS_UNANSWERED && !may_still_answer {
            self.dead = Some(0);
            return Some(Finding::Died);
        }
        (self.next_at(now, interval) <= now).then_some(Finding::Ping { unanswered: self.unanswered })
    }

    /// When to look again.
    pub(super) fn next_at(&self, now: Instant, interval: Duration) -> Instant {
        let Some(last) = self.last_ping_at else { return now };
        let wait = match (self.dead, self.unanswered) {
            (Some(0), _) => LIVENESS_DEAD_INTERVAL,
            (None, 0) => interval,
            (None, 1) | (_, LIVENESS_PINGS_UNANSWERED..) => self.patience(),
            _ => LIVENESS_RETRY_INTERVAL,
        };
        last + wait
    }

    /// A ping with `token` goes to the peer's endpoint.
    pub(super) fn on_ping_sent(&mut self, now: Instant, token: u64, to: Endpoint) {
        self.note(Sent { token, at: now, to, counts: true });
        self.last_ping_at = Some(now);
        self.unanswered = self.unanswered.saturating_add(1);
        self.doubtful_since.get_or_insert(now);
        self.pings += 1;
    }

    /// A probe with `token` goes elsewhere.
    pub(super) fn on_probe_sent(&mut self, now: Instant, token: u64, to: Endpoint) {
        self.note(Sent { token, at: now, to, counts: false });
    }

    /// A pong came. `None` if it answers nothing of ours that is still waited for.
    pub(super) fn on_pong(&mut self, now: Instant, token: u64) -> Option<Answered> {
        let position = self.in_flight.iter().position(|sent| sent.token == token)?;
        let sent = self.in_flight.remove(position)?;
        let round_trip = now.saturating_duration_since(sent.at);
        if sent.counts {
            self.outcomes.add(false);
            self.round_trip = Some(RoundTrip::updated(self.round_trip, round_trip));
            self.dead = self.dead.map(|pongs| pongs + 1);
            match self.dead {
                Some(LIVENESS_PONGS_TO_REVIVE..) => self.revive(),
                Some(_) => self.unanswered = 0,
                None => self.on_heard(),
            }
        }
        Some(Answered { endpoint: sent.to, round_trip, is_ping: sent.counts })
    }

    /// The endpoint is another from here on, and was heard from there.
    pub(super) fn on_moved(&mut self) {
        self.in_flight.iter_mut().for_each(|sent| sent.counts = false);
        self.revive();
    }

    /// Whether several pings in a row have found no answer yet.
    pub(super) fn is_doubtful(&self) -> bool {
        self.unanswered >= ALTERNATIVE_AFTER_PINGS
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    /// Whether so much is lost that it should be said; with hysteresis.
    pub(super) fn is_degraded(&self) -> bool {
        self.is_degraded
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.map(|round_trip| round_trip.smoothed)
    }

    pub(super) fn round_trip_variation(&self) -> Option<Duration> {
        self.round_trip.map(|round_trip| round_trip.variation)
    }

    /// Share of the newest pings that were lost.
    pub(super) fn loss(&self) -> f64 {
        self.outcomes.loss()
    }

    /// Pings sent, and those of them that were lost.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.pings, self.lost)
    }

    fn note(&mut self, sent: Sent) {
        if self.in_flight.len() == MAX_IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back(sent);
    }

    fn judge_lost(&mut self, now: Instant) {
        while let Some(sent) = self.in_flight.pop_front_if(|sent| now >= sent.at + PING_LOST_AFTER) {
            if sent.counts {
                self.outcomes.add(true);
                self.lost += 1;
            }
        }
        let loss = self.outcomes.loss();
        self.is_degraded = if self.is_degraded {
            loss > DEGRADED_UNTIL_LOSS
        } else {
            self.outcomes.count >= MIN_OUTCOMES && loss >= DEGRADED_ABOVE_LOSS
        };
    }

    fn on_heard(&mut self) {
        self.unanswered = 0;
        self.doubtful_since = None;
    }

    /// What was lost meanwhile says nothing of the link that there is from here on.
    fn revive(&mut self) {
        if self.dead.take().is_some() {
            self.in_flight.clear();
            self.outcomes = Outcomes::default();
            self.is_degraded = false;
        }
        self.on_heard();
    }

    /// How long an answer may take before it is missed: the retransmission timeout of RFC 6298 §2, within bounds.
    pub(super) fn patience(&self) -> Duration {
        let Some(RoundTrip { smoothed, variation }) = self.round_trip else { return LIVENESS_MAX_PATIENCE };
        (smoothed + variation * 4).clamp(LIVENESS_MIN_PATIENCE, LIVENESS_MAX_PATIENCE)
    }
}

impl RoundTrip {
    fn updated(before: Option<Self>, measured: Duration) -> Self {
        match before {
            None => Self { smoothed: measured, variation: measured / 2 },
            Some(Self { smoothed, variation }) => Self {
                variation: (variation * 3 + smoothed.abs_diff(measured)) / 4,
                smoothed: (smoothed * 7 + measured) / 8,
            },
        }
    }
}

impl Outcomes {
    fn add(&mut self, is_lost: bool) {
        self.bits = (self.bits << 1) | u128::from(is_lost);
        self.count = (self.count + 1).min(LOSS_WINDOW);
    }

    fn loss(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let lost = (self.bits & ((1 << self.count) - 1)).count_ones();
        f64::from(lost) / f64::from(self.count)
    }
}

#[cfg(test)]
mod tests;
