//! The sessions of one peer, and which of them sends.
//!
//! ```text
//!   our initiation answered ──────────────────────▶ current ──┐
//!                                                      ▲       │ replaced
//!   their initiation answered ──▶ next ──(confirmed)───┘       ▼
//!                                                           retired (receive only) ──▶ dropped
//! ```
//!
//! When both sides initiated at once there are two new sessions on each side. Both sides settle on the one that the side
//! with the greater public key initiated, and keep the other to receive what is still under way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::constants::SIMULTANEOUS_INTERVAL;
use super::session::Session;

/// Sessions kept only to receive: a rekey leaves one, simultaneous initiations two.
const MAX_RETIRED: usize = 3;

/// The sessions of one peer.
#[derive(Debug, Default)]
pub(super) struct SessionSlots {
    current: Option<Arc<Session>>,
    next: Option<Arc<Session>>,
    retired: VecDeque<Arc<Session>>,
}

/// Which side's initiation wins when both initiate at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precedence {
    Ours,
    Theirs,
}

impl SessionSlots {
    /// The session to seal with.
    pub(super) fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// The session that waits for the peer's first datagram.
    pub(super) fn next(&self) -> Option<&Arc<Session>> {
        self.next.as_ref()
    }

    /// All that may receive.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.current.iter().chain(&self.next).chain(&self.retired)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The session with this local index.
    pub(super) fn get(&self, local_index: u32) -> Option<&Arc<Session>> {
        self.iter().find(|session| session.local_index == local_index)
    }

    /// Takes a session that we initiated. Returns sessions that are no more.
    pub(super) fn add_initiated(&mut self, session: Arc<Session>, precedence: Precedence) -> Vec<Arc<Session>> {
        let theirs_may_win = |next: &mut Arc<Session>| simultaneous(next, &session) && precedence == Precedence::Theirs;
        if let Some(next) = self.next.take_if(|next| !theirs_may_win(next)) {
            self.retired.push_front(next);
        }
        self.make_current(session)
    }

    /// Takes a session that the peer initiated. Returns sessions that are no more.
    pub(super) fn add_responded(&mut self, session: Arc<Session>) -> Vec<Arc<Session>> {
        // An initiator keeps only its latest initiation, so a waiting session will never be confirmed.
        self.next.replace(session).into_iter().collect()
    }

    /// The peer used `local_index`. If that is the next session, it is next no more: it becomes the current one, or is
    /// retired where ours wins. Returns whether it was the next, and sessions that are no more.
    pub(super) fn confirm(&mut self, local_index: u32, precedence: Precedence) -> (bool, Vec<Arc<Session>>) {
        let Some(next) = self.next.take_if(|next| next.local_index == local_index) else {
            return (false, Vec::new());
        };
        if self.loses_to_current(&next, precedence) {
            self.retired.push_front(next);
            return (true, self.drop_surplus());
        }
        (true, self.make_current(next))
    }

    /// Whether the next session becomes the current one when the peer uses it.
    pub(super) fn next_takes_over(&self, precedence: Precedence) -> bool {
        self.next.as_ref().is_some_and(|next| !self.loses_to_current(next, precedence))
    }

    /// Removes what has expired and returns it.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Arc<Session>> {
        self.take_where(|session| session.is_expired(now))
    }

    /// Removes what is not newer than the session of `local_index`, which the peer has left. Returns it.
    pub(super) fn end_up_to(&mut self, local_index: u32) -> Vec<Arc<Session>> {
        let Some(left_at) = self.get(local_index).map(|session| session.created_at) else { return Vec::new() };
        self.take_where(|session| session.created_at <= left_at)
    }

    /// Removes and returns all.
    pub(super) fn end_all(&mut self) -> Vec<Arc<Session>> {
        self.take_where(|_| true)
    }

    /// When the first session expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.iter().map(|session| session.expires_at()).min()
    }

    fn loses_to_current(&self, next: &Session, precedence: Precedence) -> bool {
        // One that came after ours was agreed did not cross it: the peer knows nothing of ours, it has restarted.
        let crossed = |current: &Session| simultaneous(current, next) && next.created_at <= current.created_at;
        let ours = self.current.as_ref().filter(|current| current.is_initiator);
        precedence == Precedence::Ours && ours.is_some_and(|current| crossed(current))
    }

    fn make_current(&mut self, session: Arc<Session>) -> Vec<Arc<Session>> {
        self.retired.extend(self.current.replace(session));
        self.retired.make_contiguous().sort_by_key(|session| std::cmp::Reverse(session.created_at));
        self.drop_surplus()
    }

    fn drop_surplus(&mut self) -> Vec<Arc<Session>> {
        self.retired.split_off(self.retired.len().min(MAX_RETIRED)).into()
    }

    fn take_where(&mut self, mut ends: impl FnMut(&Session) -> bool) -> Vec<Arc<Session>> {
        let mut ended = Vec::new();
        ended.extend(self.current.take_if(|session| ends(session)));
        ended.extend(self.next.take_if(|session| ends(session)));
        for session in std::mem::take(&mut self.retired) {
            if ends(&session) { ended.push(session) } else { self.retired.push_back(session) }
        }
        ended
    }
}

/// Whether two sessions came from initiations that crossed: of opposite roles, and of nearly one age.
fn simultaneous(one: &Session, other: &Session) -> bool {
    let apart = one.created_at.max(other.created_at) - one.created_at.min(other.created_at);
    one.is_initiator != other.is_initiator && apart < SIMULTANEOUS_INTERVAL
}

#[cfg(test)]
mod tests;
