//! Steps 5 and 6: the same sniffer and the same man in the middle, with underpass.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::books::{charged_once_and_right, is_right};
use super::{PAYMENTS, Story, Tunnel};
use crate::cli::demo::attack::{BitFlipper, knock};
use crate::cli::demo::daemon::{Daemons, TUNNEL_PORT};
use crate::cli::demo::network::APP_NAMES;
use crate::cli::demo::relay::{Relay, replay};
use crate::cli::demo::shop::{CARD, COOKIE};
use crate::cli::demo::sniffer::Recording;
use crate::cli::demo::wait::wait_for;

const CUSTOMERS: usize = 8;
const PAYMENTS_EACH: u32 = 5;

/// Counters follow the datagrams within milliseconds.
const COUNTERS: Duration = Duration::from_secs(3);

impl Story<'_> {
    /// Step 5.
    pub(super) fn sniff_tunnel(&mut self, tunnel: &Tunnel, plain_payment: &Recording) -> Result<()> {
        self.screen.step("With underpass: the same sniffer listens again")?;
        let one = self.record(tunnel.balancer.address(), 1)?.0;
        let (recording, receipts) = self.record(tunnel.balancer.address(), PAYMENTS)?;
        self.report_service(&receipts)?;
        self.screen.say("One payment, as a stranger on the wire has it. Look for the card number:")?;
        self.draw_payments(plain_payment, &one)?;

        let frames = recording.frames.len();
        let words = [CARD, COOKIE, "POST /pay", "shop.example", "HTTP/1.1", "charged="];
        let found: usize = words.iter().map(|word| recording.occurrences(word.as_bytes())).sum();
        self.report(
            found == 0,
            &format!("The sniffer looked for {} words in {frames} frames and found {found}.", words.len()),
        )?;
        let census = recording.census(TUNNEL_PORT);
        self.report(
            census.others == 0 && census.tunnel > 0,
            &format!(
                "On the wire: {} datagrams of underpass, {} address look-ups, {} others.",
                census.tunnel, census.lookups, census.others
            ),
        )?;
        let served = APP_NAMES.map(|name| receipts.iter().filter(|receipt| receipt.app == name).count());
        self.verdict.claim(
            served[0] == served[1] && receipts.len() == PAYMENTS as usize && receipts.iter().all(is_right),
            "Tunnel: both apps serve as before",
            format!("{} of {PAYMENTS} payments answered", receipts.len()),
        );
        self.verdict.claim(
            found == 0,
            "Tunnel: a sniffer reads nothing",
            format!("{found} of {} words in {frames} frames", words.len()),
        );
        self.verdict.claim(
            census.others == 0 && census.tunnel > 0,
            "Tunnel: nothing goes past it",
            match census.first_other {
                None => format!("{} datagrams, nothing else", census.tunnel),
                Some(other) => format!("{} datagrams, {} others, first: {other}", census.tunnel, census.others),
            },
        );
        Ok(())
    }

    /// Step 6.
    pub(super) fn attack_tunnel(&mut self, tunnel: &Tunnel) -> Result<()> {
        self.screen.step("With underpass: the same man in the middle")?;
        self.tamper(tunnel)?;
        self.replay(tunnel)?;
        let knocking = knock(&self.network, &tunnel.beginning)?;
        self.report(
            knocking.answers == 0,
            &format!(
                "A stranger sends {} datagrams of noise and old handshakes: {} answers.",
                knocking.sent, knocking.answers
            ),
        )?;
        self.verdict.claim(
            knocking.answers == 0 && knocking.sent > 0,
            "Tunnel: strangers get no answer",
            format!("{} datagrams sent, {} answers", knocking.sent, knocking.answers),
        );
        Ok(())
    }

    fn tamper(&mut self, tunnel: &Tunnel) -> Result<()> {
        let total = CUSTOMERS * PAYMENTS_EACH as usize;
        self.screen.say(&format!(
            "He finds no amount to change, so he flips bits, blindly, while {CUSTOMERS} customers make {total} payments."
        ))?;
        self.close_books();
        let before = tunnel.daemons.drops()?;
        let armed = Arc::new(AtomicBool::new(false));
        let relay = Relay::start(&self.network, BitFlipper::new(Arc::clone(&armed)))?;
        let queue = self.customers.queue_up(&self.network.proxy, tunnel.balancer.address(), CUSTOMERS)?;
        armed.store(true, Ordering::Relaxed);
        let receipts = self.customers.pay_at_once(queue, PAYMENTS_EACH - 1);
        let meddler = relay.stop(&self.network)?;
        let receipts = receipts?;
        let refused = refused(&tunnel.daemons, &before, meddler.flipped)?;
        let right = charged_once_and_right(&receipts, self.close_books());
        let held =
            meddler.flipped > 0 && refused.total >= meddler.flipped && meddler.thief.changed == 0 && right == total;
        self.report(
            held,
            &format!(
                "{} datagrams changed, {} refused ({}). {right} of {total} payments right: TCP sent again what was lost.",
                meddler.flipped, refused.total, refused.reasons
            ),
        )?;
        self.verdict.claim(
            held,
            "Tunnel: changes are refused",
            format!("{} changed, {} refused", meddler.flipped, refused.total),
        );
        Ok(())
    }

    fn replay(&mut self, tunnel: &Tunnel) -> Result<()> {
        let (recording, receipts) = self.record(tunnel.balancer.address(), PAYMENTS)?;
        self.screen.say(&format!(
            "He has recorded {PAYMENTS} more payments and the first handshakes, and sends all of it again."
        ))?;
        let before = tunnel.daemons.drops()?;
        let heard = [&tunnel.beginning, &recording];
        let frames = heard.into_iter().flat_map(|recording| recording.tunnel_frames(TUNNEL_PORT));
        let sent = replay(&self.network, frames)?;
        let refused = refused(&tunnel.daemons, &before, sent)?;
        let right = charged_once_and_right(&receipts, self.close_books());
        let held = sent > 0 && refused.total >= sent && right == PAYMENTS as usize;
        self.report(
            held,
            &format!(
                "{sent} datagrams repeated, {} refused ({}). {right} of {PAYMENTS} payments charged exactly once.",
                refused.total, refused.reasons
            ),
        )?;
        self.verdict.claim(held, "Tunnel: repeats are refused", format!("{sent} repeated, {} refused", refused.total));
        Ok(())
    }
}

/// What the daemons refused since an earlier count.
struct Refused {
    total: usize,
    reasons: String,
}

/// Waits until at least `expected` refusals were counted, or until it is clear that they won't be.
fn refused(daemons: &Daemons, before: &BTreeMap<String, u64>, expected: usize) -> Result<Refused> {
    let mut counted = BTreeMap::new();
    let enough = wait_for("the counters", COUNTERS, || {
        counted = daemons.drops()?;
        for (reason, count) in &mut counted {
            *count -= before.get(reason).copied().unwrap_or(0);
        }
        Ok((counted.values().sum::<u64>() >= expected as u64).then_some(()))
    });
    // Too few are for the verdict to judge.
    drop(enough);
    counted.retain(|_, count| *count > 0);
    let reasons: Vec<String> = counted.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    Ok(Refused { total: usize::try_from(counted.values().sum::<u64>())?, reasons: reasons.join(", ") })
}
