//! The audit trail: who connected, who may connect, and what somebody had the daemon do.
//!
//! Each of its lines has the target [`TARGET`] and a field `event`, whose words are for programs and do not change. Of a key
//! it tells the beginning of the public one. `docs/operations.md` has the list.

use std::fmt::Display;
use std::net::SocketAddr;

use tracing::field::display;

use super::api::{Command, Reload};
use crate::keys::PublicKey;
use crate::proto::event::Interruption;

/// What to filter by.
pub const TARGET: &str = "underpass::audit";

/// Who is at the other end of a link, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connected<'a> {
    /// Its name.
    pub(super) peer: &'a str,
    /// Its key.
    pub(super) key: &'a PublicKey,
    /// Where datagrams go.
    pub(super) endpoint: Option<SocketAddr>,
    /// The session's cipher.
    pub(super) suite: Option<&'static str>,
    /// What the link has come to be.
    pub(super) state: &'static str,
    /// Why, if it is not simply up.
    pub(super) reason: Option<&'static str>,
    /// The number of changes that the line stands for, if several came within a second.
    pub(super) changes: Option<u64>,
}

/// A link carries traffic that carried none.
pub(super) fn connected(link: Connected<'_>) {
    let Connected { peer, key, endpoint, suite, state, reason, changes } = link;
    let endpoint = endpoint.map(display);
    tracing::info!(
        target: TARGET, event = "peer-connected", peer, key = key.short(), endpoint, suite, reason, changes, "link {state}"
    );
}

/// A link carries traffic no longer. `expected` if nobody need look.
pub(super) fn disconnected(link: Connected<'_>, expected: bool) {
    let Connected { peer, key, endpoint, state, reason, changes, .. } = link;
    let (key, endpoint) = (key.short(), endpoint.map(display));
    if expected {
        tracing::info!(target: TARGET, event = "peer-disconnected", peer, key, endpoint, reason, changes, "link {state}");
    } else {
        tracing::warn!(target: TARGET, event = "peer-disconnected", peer, key, endpoint, reason, changes, "link {state}");
    }
}

/// All sessions are made anew.
pub(super) fn sessions_renewed(cause: Interruption) {
    match cause {
        Interruption::Suspended(time) => tracing::info!(
            target: TARGET,
            event = "sessions-renewed",
            cause = "suspended",
            seconds = time.as_secs(),
            "this machine was suspended: all sessions are made anew"
        ),
        Interruption::Copied => tracing::warn!(
            target: TARGET,
            event = "sessions-renewed",
            cause = "copied",
            "this virtual machine was copied or set back: all sessions are made anew; who has the copy has its private key"
        ),
    }
}

/// A client of the control socket wants something to be done. The system tells who it is.
pub(super) fn asked(command: &Command, user: u32, process: Option<i32>) {
    let (command, peer) = match command {
        Command::Status | Command::Compare => return,
        Command::Reload => ("reload", None),
        Command::Restart => ("restart", None),
        Command::Drain { peer } => ("drain", Some(peer)),
        Command::Undrain { peer } => ("undrain", Some(peer)),
        Command::Open { .. } => ("open", None),
    };
    tracing::info!(target: TARGET, event = "command", command, peer, user, process, "asked on the control socket");
}

/// A link is draining by command, or no longer.
pub(super) fn drained(peer: &str, draining: bool) {
    let event = if draining { "peer-drained" } else { "peer-undrained" };
    tracing::info!(target: TARGET, event, peer, "{}", if draining { "draining" } else { "no longer draining" });
}

/// Tells that networks which earlier configurations had refused may pass in the clear.
pub(super) fn opened(networks: &str) {
    tracing::info!(target: TARGET, event = "networks-opened", networks, "no longer refused");
}

/// All links are draining, since the daemon is about to end.
pub(super) fn all_drained(seconds: u64) {
    tracing::info!(target: TARGET, event = "all-drained", seconds, "all links are draining; SIGTERM ends it at once");
}

/// Another configuration is in effect. `key_of` gives a peer's key, as it was before if it is no more.
pub(super) fn reloaded(reload: &Reload, key_of: impl Fn(&str) -> Option<PublicKey>) {
    let key = |peer: &str| key_of(peer).map(|key| key.short());
    for peer in &reload.added {
        tracing::info!(target: TARGET, event = "peer-added", peer, key = key(peer), "peer added");
    }
    for peer in &reload.removed {
        tracing::info!(target: TARGET, event = "peer-removed", peer, key = key(peer), "peer removed");
    }
    for peer in &reload.changed {
        let (key, keys) = (key(&peer.name), peer.keys.join(" "));
        tracing::info!(target: TARGET, event = "peer-changed", peer = peer.name, key, changed = keys, "peer changed");
    }
    let (config, keys) = (reload.config.display(), reload.keys.join(" "));
    tracing::info!(target: TARGET, event = "reloaded", %config, changed = keys, "configuration reloaded");
}

/// This machine has another key, or another one beside it that was its key before.
pub(super) fn own_keys_changed(key: &PublicKey) {
    tracing::info!(target: TARGET, event = "own-keys-changed", key = key.short(), "this machine's keys are changed");
}

/// A configuration is not accepted. What is wrong with it stands before, a line for each problem.
pub(super) fn reload_refused(problems: usize) {
    tracing::warn!(
        target: TARGET, event = "reload-refused", problems, "the configuration is refused, nothing was changed"
    );
}

/// A configuration could not be put into effect.
pub(super) fn reload_failed(error: &dyn Display) {
    tracing::warn!(target: TARGET, event = "reload-failed", %error, "the configuration could not be applied");
}

/// The interface's nftables table was changed or flushed by somebody, so many times since this was told last, and is back.
pub(super) fn guard_restored(interface: &str, program: Option<&str>, times: u64) {
    tracing::warn!(
        target: TARGET, event = "guard-restored", interface, program, times, "the nftables table was changed and is put back"
    );
}

/// The program on disk is about to take this one's place.
pub(super) fn restarting() {
    tracing::info!(target: TARGET, event = "restarting", "restarting in place");
}

/// It does not.
pub(super) fn restart_refused(error: &dyn Display) {
    tracing::error!(target: TARGET, event = "restart-refused", %error, "no restart, this daemon goes on");
}

/// The end has begun, as a signal wants it.
pub(super) fn stopping(signal: &'static str) {
    tracing::info!(target: TARGET, event = "stopping", signal, "stopping");
}
