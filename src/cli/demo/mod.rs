//! `underpass demo`: shows in seconds, on one machine and without preparation, what underpass is for.
//!
//! Builds a small network of namespaces, puts a load balancer and two apps in it, and shows a sniffer and a man in the
//! middle at work, first without and then with underpass. The daemons are the real ones: this program, started anew.
//! Everything else here (apps, load balancer, sniffer, attacker) is the demo's own and is used nowhere else.
//!
//! ```text
//! story ── screen, panes, verdict        what is told and shown
//!   ├── shop, balancer ── http           the app, its customers, the load balancer
//!   ├── sniffer, relay, attack ── tap, frame     the stranger on the wire
//!   ├── daemon ── cleanup                the real daemons, and their end
//!   └── network ── namespace             the world
//! ```

mod attack;
mod balancer;
mod cleanup;
mod daemon;
mod frame;
mod http;
mod namespace;
mod network;
mod panes;
mod relay;
mod screen;
mod shop;
mod sniffer;
mod speed;
mod story;
mod tap;
mod verdict;
mod wait;

use std::io::{self, Write};

use nix::errno::Errno;

use self::cleanup::Broom;
use self::daemon::DaemonEnded;
use self::screen::{Screen, Unwritable};
use self::story::{STEPS, Story};
use super::{Exit, Failure};

/// Why the demo did not end well. What went wrong beneath is in the text and is no `source`: a connection that broke
/// inside the demo must not pass for a reader of its output who has gone.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("the demo builds a small network of its own, which only root may do: sudo underpass demo")]
    NotRoot,
    #[error("the system forbids building a network (a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN for it): {0:#}")]
    Forbidden(anyhow::Error),
    #[error("{0} of the demo's claims did not hold")]
    ClaimsFailed(usize),
    #[error("the demo could not go on: {0:#}")]
    Other(anyhow::Error),
}

/// Tells the story to `out`.
pub fn run(out: &mut dyn Write) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(Exit::Permission, DemoError::NotRoot));
    }
    let failures = perform(out).map_err(|error| {
        cleanup::yield_to_interruption();
        classify(error)
    })?;
    if failures == 0 { Ok(()) } else { Err(Failure::new(Exit::Other, DemoError::ClaimsFailed(failures))) }
}

fn perform(out: &mut dyn Write) -> anyhow::Result<usize> {
    let _broom = Broom::ready()?;
    Story::begin(Screen::new(out, STEPS))?.tell()
}

fn classify(error: anyhow::Error) -> Failure {
    let error = match error.downcast::<Unwritable>() {
        Ok(Unwritable(error)) => return error.into(),
        Err(error) => error,
    };
    let exit = if let Some(ended) = error.downcast_ref::<DaemonEnded>() {
        Exit::ALL.into_iter().find(|exit| Some(*exit as i32) == ended.code).unwrap_or(Exit::Other)
    } else if error.chain().any(is_forbidden) {
        return Failure::new(Exit::Permission, DemoError::Forbidden(error));
    } else {
        Exit::Other
    };
    Failure::new(exit, DemoError::Other(error))
}

fn is_forbidden(cause: &(dyn std::error::Error + 'static)) -> bool {
    let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
    let netlink = match cause.downcast_ref() {
        Some(rtnetlink::Error::NetlinkError(message)) => Some(message.to_io().kind()),
        _ => None,
    };
    [io, netlink].contains(&Some(io::ErrorKind::PermissionDenied)) || cause.downcast_ref() == Some(&Errno::EPERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_is_not_a_closed_output() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(classify(Unwritable(broken()).into()).is_closed_pipe());
        assert!(!classify(broken().into()).is_closed_pipe());
    }

    #[test]
    fn missing_rights_have_their_exit_code() {
        assert_eq!(classify(Errno::EPERM.into()).exit, Exit::Permission);
        assert_eq!(classify(Errno::EINVAL.into()).exit, Exit::Other);
    }
}
