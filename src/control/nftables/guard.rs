//! The table of a daemon that runs: set before its addresses are, followed through reloads, and put back when somebody
//! has flushed or changed it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use tokio::sync::watch;
use tokio::time::sleep;

use super::machine::MachineAddress;
use super::notifications::Notifications;
use super::rules::GuardRules;
use super::socket::{Content, apply, read, remove, tables};
use super::subject::{GuardPlan, GuardSubject, LeftOut};
use super::{GuardError, interface_of, table_name};
use crate::control::api::{GuardReport, GuardState};
use crate::control::audit;
use crate::dataplane::clock;

/// Keeps one interface's table as it should be.
#[derive(Debug)]
pub struct Guard {
    interface: String,
    /// `None` if nothing is to be guarded.
    subject: Option<GuardSubject>,
    /// What will be guarded once a reload has come through; until then both are.
    next: Option<GuardSubject>,
    /// What the table was given, and how it looked then. `None` if it could not be set.
    set: Option<(GuardPlan, Content)>,
    report: watch::Sender<GuardReport>,
    restored: Restored,
}

impl Guard {
    /// Of an interface's table, which is not touched yet.
    pub fn new(interface: &str) -> Self {
        let (report, _) = watch::channel(GuardReport::default());
        Self {
            interface: interface.to_owned(),
            subject: None,
            next: None,
            set: None,
            report,
            restored: Restored::default(),
        }
    }

    /// Sets the table, or removes it if there is nothing to guard. What stands against it is logged and told by the report.
    pub fn start(&mut self, subject: Option<GuardSubject>) {
        (self.subject, self.next) = (subject, None);
        if let Err(error) = self.set() {
            self.give_up(&error);
        }
    }

    /// What there is to tell, now and whenever it changes.
    pub fn report(&self) -> watch::Receiver<GuardReport> {
        self.report.subscribe()
    }

    /// Guards what `next` does as well, until [`finish`](Self::finish) or [`rollback`](Self::rollback). If that can't be, all
    /// is as before. Where there was no table before, for want of something, that is no failure.
    pub fn prepare(&mut self, next: Option<GuardSubject>) -> Result<(), GuardError> {
        let could_be_set = self.set.is_some() || self.subject.is_none();
        self.next = next;
        match self.set_if_changed() {
            Err(error) if could_be_set => {
                self.next = None;
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Guards no more than `next` did.
    pub fn finish(&mut self) -> Result<(), GuardError> {
        self.subject = self.next.take();
        self.set_again()
    }

    /// Guards what it did before [`prepare`](Self::prepare).
    pub fn rollback(&mut self) -> Result<(), GuardError> {
        self.next = None;
        self.set_again()
    }

    /// Looks after the table for ever: whatever somebody does to it is made good within a second.
    pub async fn watch(guard: &RefCell<Self>) -> Infallible {
        let error = match Self::try_watch(guard).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        tracing::warn!(%error, "nobody will notice if the nftables table is flushed");
        pending().await
    }

    async fn try_watch(guard: &RefCell<Self>) -> io::Result<Infallible> {
        let (changes, addresses) = (Notifications::of_tables()?, Notifications::of_addresses()?);
        let table = table_name(&guard.borrow().interface);
        loop {
            let is_unset = guard.borrow().is_unset();
            tokio::select! {
                changed = changes.of(&table) => changed?,
                changed = addresses.any() => changed?,
                () = sleep(RETRY), if is_unset => {}
            }
            // A transaction of somebody who sets other tables as well is over then.
            sleep(SETTLE).await;
            let program = changes.drain();
            addresses.drain();
            guard.borrow_mut().keep(program.as_deref());
            // Somebody who flushes all the time gets no more of our time than this.
            sleep(PAUSE).await;
        }
    }

    /// Set while the table can't be, which may change.
    fn is_unset(&self) -> bool {
        self.subject.is_some() && self.set.is_none()
    }

    /// Puts the table right if it isn't.
    fn keep(&mut self, program: Option<&str>) {
        let Some(plan) = self.plan() else { return };
        let was_set = self.set.is_some();
        // A table that holds what can't be read is not as it was either.
        let is_whole = self
            .set
            .as_ref()
            .is_some_and(|(_, content)| matches!(read(&self.interface), Ok(Some(found)) if found == *content));
        if is_whole && self.set.as_ref().is_some_and(|(set, _)| *set == plan) {
            return;
        }
        match self.set() {
            Ok(()) if was_set && !is_whole => {
                self.report.send_modify(|report| report.restored += 1);
                self.restored.tell(&self.interface, program, clock::now());
            }
            Ok(()) => tracing::info!(interface = self.interface, "the nftables table is set"),
            Err(error) if was_set => self.give_up(&error),
            Err(_) => {}
        }
    }

    /// What is to be guarded now. `None` if nothing is.
    fn plan(&self) -> Option<GuardPlan> {
        let others = MachineAddress::list_without(&self.interface).unwrap_or_default();
        let plans = self.subject.iter().chain(&self.next).map(|subject| subject.plan(&others));
        plans.reduce(|before, after| GuardPlan { rules: before.rules.and(&after.rules), left_out: after.left_out })
    }

    fn set_again(&mut self) -> Result<(), GuardError> {
        match self.set_if_changed() {
            Err(_) if self.set.is_none() && self.subject.is_some() => Ok(()),
            outcome => outcome,
        }
    }

    /// A daemon that has dropped its capabilities can be reloaded while its table stays as it is.
    fn set_if_changed(&mut self) -> Result<(), GuardError> {
        let wanted = self.plan();
        let is_set = wanted.is_some() && self.set.as_ref().map(|(set, _)| set) == wanted.as_ref();
        if is_set { Ok(()) } else { self.set() }
    }

    fn set(&mut self) -> Result<(), GuardError> {
        let Some(plan) = self.plan() else {
            self.set = None;
            self.report.send_modify(|report| report.state = GuardState::Off);
            return match remove(&self.interface) {
                // There can't be one.
                Err(GuardError::NoPermission | GuardError::Unsupported(_)) => Ok(()),
                outcome => outcome,
            };
        };
        apply(&plan.rules)?;
        if let Err(error) = remove_stale(&plan.rules) {
            tracing::warn!(%error, "tables of interfaces that are no more were not looked for");
        }
        let content = read(&self.interface)?;
        self.tell_of(&plan);
        self.set = content.map(|content| (plan, content));
        Ok(())
    }

    fn tell_of(&self, plan: &GuardPlan) {
        let told = |left: &LeftOut| format!("{}: {}", left.network, left.reason);
        let left_out: Vec<String> = plan.left_out.iter().map(told).collect();
        self.report.send_modify(|report| {
            for left in left_out.iter().filter(|left| !report.left_out.contains(left)) {
                tracing::warn!(left, "not refused as a source on other interfaces");
            }
            *report = GuardReport { state: GuardState::On, lacks: None, left_out, restored: report.restored };
        });
    }

    /// Tells that there is no table.
    fn give_up(&mut self, error: &GuardError) {
        self.set = None;
        let error = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        tracing::warn!(
            error,
            "tunnel addresses are not refused on other interfaces: have root run `underpass close --config FILE`, or `nft -f` \
             what it prints with --print"
        );
        self.report.send_modify(|report| {
            report.state = GuardState::Unavailable;
            report.lacks = Some(error);
        });
    }
}

/// Tables of interfaces that are no more and concern these packets: of a daemon whose interface has got another name. They
/// would refuse what comes by the new one.
fn remove_stale(rules: &GuardRules) -> Result<(), GuardError> {
    for interface in tables()?.iter().filter_map(|table| interface_of(table)) {
        if interface == rules.interface || if_nametoindex(interface.as_str()).is_ok() {
            continue;
        }
        if read(&interface)?.is_some_and(|content| content.concerns(rules)) {
            remove(&interface)?;
            tracing::warn!(interface, "removed the nftables table of an interface that is no more");
        }
    }
    Ok(())
}

/// How often the table was put back, and when that was told last.
#[derive(Debug, Default)]
struct Restored {
    told: Option<Instant>,
    untold: u64,
}

impl Restored {
    fn tell(&mut self, interface: &str, program: Option<&str>, now: Instant) {
        self.untold += 1;
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_INTERVAL) {
            audit::guard_restored(interface, program, self.untold);
            (self.told, self.untold) = (Some(now), 0);
        }
    }
}

/// Somebody who loads a whole configuration does so in one transaction, or in a few at once.
const SETTLE: Duration = Duration::from_millis(50);
/// With [`SETTLE`], the table is put back at most three times a second.
const PAUSE: Duration = Duration::from_millis(250);
/// A module that is loaded later makes itself known by nothing.
const RETRY: Duration = Duration::from_secs(10);
/// Between two lines of the log about the same.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
