//! The demo's plot: seven steps, from a network of its own to the verdict.
//!
//! Each step is one method that does something, prints what to look at and notes the claims it proves.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::attack::{BitFlipper, STOLEN, Thief, knock};
use super::balancer::Balancer;
use super::daemon::{APPS_INSIDE, Daemons, TUNNEL_PORT};
use super::network::{APP_NAMES, APPS, Network, PROXY};
use super::panes::{self, Pane};
use super::relay::{Relay, replay};
use super::screen::{FAINT, GOOD, STRONG, Screen};
use super::shop::{self, AMOUNT, CARD, COOKIE, Charge, Customers, Receipt, Till};
use super::sniffer::{Recording, Sniffer};
use super::verdict::Verdict;
use super::wait::wait_for;
use super::{cleanup, speed};
use crate::dataplane::clock;

/// How many steps `tell` takes.
pub(super) const STEPS: usize = 7;

const PAYMENTS: u32 = 20;
const STOLEN_PAYMENTS: u32 = 6;
const CUSTOMERS: usize = 8;
const PAYMENTS_EACH: u32 = 5;

const PLAIN_PORT: u16 = 8001;
const TUNNEL_BALANCER_PORT: u16 = 8002;

/// Counters follow the datagrams within milliseconds.
const COUNTERS: Duration = Duration::from_secs(3);

/// Who takes part from the beginning.
pub(super) struct Story<'o> {
    screen: Screen<'o>,
    verdict: Verdict,
    network: Network,
    tills: [Till; 2],
    customers: Customers,
    plain: Balancer,
    begun: Instant,
}

/// What joins the cast in step 4.
struct Tunnel {
    daemons: Daemons,
    balancer: Balancer,
    /// Everything on the untrusted network since before the first handshake.
    beginning: Recording,
}

impl<'o> Story<'o> {
    /// Step 1: builds the network and starts the apps and the load balancer.
    pub(super) fn begin(mut screen: Screen<'o>) -> Result<Self> {
        let begun = clock::now();
        screen.title(
            "underpass demo",
            "A load balancer, two apps, and between them a network that nobody should trust.",
        )?;
        screen.step("A small network of our own")?;
        screen.say("Four machines inside this one (network namespaces). They vanish when the demo ends.")?;
        let network = Network::build()?;
        let [app1, app2] = &network.apps;
        let tills = [Till::start(app1, APP_NAMES[0])?, Till::start(app2, APP_NAMES[1])?];
        let plain = Balancer::start(&network.proxy, PLAIN_PORT, at_shop_port(APPS))?;
        draw_network(&mut screen)?;
        let verdict = Verdict::default();
        Ok(Self { screen, verdict, network, tills, customers: Customers::default(), plain, begun })
    }

    /// Steps 2 to 7 and the verdict; returns how many claims did not hold.
    pub(super) fn tell(mut self) -> Result<usize> {
        let plain_payment = self.sniff_plain()?;
        self.steal_plain()?;
        let tunnel = self.start_tunnel()?;
        self.sniff_tunnel(&tunnel, &plain_payment)?;
        self.attack_tunnel(&tunnel)?;
        self.measure(&tunnel)?;
        drop(tunnel);
        self.conclude()
    }

    fn sniff_plain(&mut self) -> Result<Recording> {
        self.screen.step("Without underpass: a sniffer listens")?;
        self.screen.say(&format!(
            "The load balancer has ended TLS. It sends {PAYMENTS} payments on to the apps, in the clear."
        ))?;
        let one = self.record(self.plain.address(), 1)?.0;
        let (recording, receipts) = self.record(self.plain.address(), PAYMENTS)?;
        self.report_service(&receipts)?;
        let cards = recording.occurrences(CARD.as_bytes());
        let cookies = recording.occurrences(COOKIE.as_bytes());
        self.screen.alarm(&format!(
            "The sniffer read the card number {cards} times and the session cookie {cookies} times."
        ))?;
        let expected = PAYMENTS as usize;
        self.verdict.claim(
            cards == expected && cookies == expected,
            "Without it, a sniffer reads all",
            format!("card number {cards} times in {PAYMENTS} payments"),
        );
        Ok(one)
    }

    fn steal_plain(&mut self) -> Result<()> {
        self.screen.step("Without underpass: a man in the middle meddles")?;
        self.screen.say(&format!(
            "He pulls a cable and sits between. He turns {AMOUNT} into {STOLEN} on the way to the app, and back on the receipt."
        ))?;
        self.close_books();
        let relay = Relay::start(&self.network, Thief::default())?;
        let receipts = self.customers.pay(&self.network.proxy, self.plain.address(), STOLEN_PAYMENTS);
        relay.stop(&self.network)?;
        let receipts = receipts?;
        let charged = self.close_books().iter().filter(|charge| charge.amount == STOLEN).count();
        let fooled = receipts.iter().filter(|receipt| receipt.charge.amount == AMOUNT).count();
        self.screen.alarm(&format!("The apps charged {STOLEN} for {charged} of {STOLEN_PAYMENTS} payments."))?;
        self.screen
            .alarm(&format!("The receipt said {AMOUNT} to {fooled} of {STOLEN_PAYMENTS} customers. Nobody noticed."))?;
        let expected = STOLEN_PAYMENTS as usize;
        self.verdict.claim(
            charged == expected && fooled == expected,
            "Without it, payments are changed",
            format!("{charged} of {STOLEN_PAYMENTS} charged {STOLEN} instead of {AMOUNT}"),
        );
        Ok(())
    }

    fn start_tunnel(&mut self) -> Result<Tunnel> {
        self.screen.step("underpass starts")?;
        self.screen.say(
            "One daemon beside the load balancer, one beside each app. This is the proxy's whole configuration:",
        )?;
        let sniffer = Sniffer::start(&self.network)?;
        let daemons = Daemons::start(&self.network)?;
        for line in daemons.proxy_config.lines() {
            self.screen.line(&format!("  {FAINT}{line}{FAINT:#}"))?;
        }
        let balancer = Balancer::start(&self.network.proxy, TUNNEL_BALANCER_PORT, at_shop_port(APPS_INSIDE))?;
        let start = clock::now();
        self.customers
            .pay(&self.network.proxy, balancer.address(), 2)
            .context("the first payments through the tunnel")?;
        let milliseconds = (clock::now() - start).as_millis();
        let beginning = sniffer.stop()?;
        let suites: Vec<String> = daemons.proxy_status()?.peers.into_iter().map(link).collect();
        self.screen.good(&format!(
            "Both links are up ({}); handshakes and two payments took {milliseconds} ms.",
            suites.join(", ")
        ))?;
        self.screen.say(&format!(
            "The apps are untouched. In the load balancer's list, two addresses change: {} becomes {}, {} becomes {}.",
            APPS[0], APPS_INSIDE[0], APPS[1], APPS_INSIDE[1]
        ))?;
        Ok(Tunnel { daemons, balancer, beginning })
    }

    fn sniff_tunnel(&mut self, tunnel: &Tunnel, plain_payment: &Recording) -> Result<()> {
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
            "With it, both apps serve as before",
            format!("{} of {PAYMENTS} payments answered", receipts.len()),
        );
        self.verdict.claim(
            found == 0,
            "A sniffer reads nothing",
            format!("{found} of {} words in {frames} frames", words.len()),
        );
        self.verdict.claim(
            census.others == 0 && census.tunnel > 0,
            "Nothing goes past the tunnel",
            match census.first_other {
                None => format!("{} datagrams, nothing else", census.tunnel),
                Some(other) => format!("{} datagrams, {} others, first: {other}", census.tunnel, census.others),
            },
        );
        Ok(())
    }

    fn attack_tunnel(&mut self, tunnel: &Tunnel) -> Result<()> {
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
            "A stranger gets no answer",
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
            "A changed datagram is refused",
            format!("{} changed, {} refused, {right} of {total} payments right", meddler.flipped, refused.total),
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
        self.verdict.claim(
            held,
            "A repeated datagram is refused",
            format!("{sent} repeated, {} refused, nothing charged twice", refused.total),
        );
        Ok(())
    }

    fn measure(&mut self, tunnel: &Tunnel) -> Result<()> {
        self.screen.step("What it costs")?;
        self.screen.say(
            "Apps, load balancer, customers and three daemons share this machine's cores, so compare, don't quote.",
        )?;
        if cfg!(debug_assertions) {
            self.screen.say("This is a debug build: with --release it is faster.")?;
        }
        self.network.allow_trains()?;
        let plain = speed::bulk(&self.network, APPS[0])?;
        let tunnelled = speed::bulk(&self.network, APPS_INSIDE[0])?;
        self.draw_bars("one TCP stream, Gbit/s", plain / 1e9, tunnelled / 1e9, 2)?;
        let plain = speed::requests(&self.network.proxy, self.plain.address())?;
        let tunnelled_requests = speed::requests(&self.network.proxy, tunnel.balancer.address())?;
        self.draw_bars("HTTP requests per second", plain, tunnelled_requests, 0)?;
        self.verdict.claim(
            tunnelled > 0.0 && tunnelled_requests > 0.0,
            "It carries bulk and load",
            format!("{:.2} Gbit/s, {tunnelled_requests:.0} requests/s", tunnelled / 1e9),
        );
        Ok(())
    }

    fn conclude(mut self) -> Result<usize> {
        let endings = cleanup::sweep();
        let clean = endings.iter().filter(|ending| ending.is_some_and(|status: ExitStatus| status.success())).count();
        self.verdict.claim(
            clean == endings.len() && !endings.is_empty(),
            "The daemons leave nothing behind",
            format!("{clean} of {} ended cleanly; keys and machines are gone", endings.len()),
        );
        let seconds = (clock::now() - self.begun).as_secs_f64();
        self.screen.heading("Verdict")?;
        self.verdict.print(&mut self.screen)?;
        let failures = self.verdict.failures();
        let all = self.verdict.len();
        self.screen.line("")?;
        if failures == 0 {
            self.screen.line(&format!("{GOOD}{STRONG}All {all} claims held{STRONG:#}, in {seconds:.1} s."))?;
            self.screen.say("Next: pair two machines of yours in minutes, see README.md.")?;
        } else {
            self.screen.failed(&format!("{failures} of {all} claims did not hold."))?;
        }
        self.screen.line("")?;
        Ok(failures)
    }

    /// Lets customers pay while the sniffer listens.
    fn record(&self, balancer: SocketAddr, payments: u32) -> Result<(Recording, Vec<Receipt>)> {
        self.close_books();
        let sniffer = Sniffer::start(&self.network)?;
        let receipts = self.customers.pay(&self.network.proxy, balancer, payments);
        Ok((sniffer.stop()?, receipts?))
    }

    /// Everything charged since the last time.
    fn close_books(&self) -> Vec<Charge> {
        self.tills.iter().flat_map(Till::close_books).collect()
    }

    fn report(&mut self, held: bool, text: &str) -> Result<()> {
        if held {
            self.screen.good(text)?;
        } else {
            self.screen.failed(text)?;
        }
        Ok(())
    }

    fn report_service(&mut self, receipts: &[Receipt]) -> Result<()> {
        let served = |name| receipts.iter().filter(|receipt| receipt.app == name).count();
        let [one, two] = APP_NAMES;
        self.screen.good(&format!(
            "{} of {PAYMENTS} payments answered: {} by {one}, {} by {two}.",
            receipts.len(),
            served(one),
            served(two)
        ))?;
        Ok(())
    }

    fn draw_payments(&mut self, plain: &Recording, tunnelled: &Recording) -> Result<()> {
        let secrets = [CARD, COOKIE, AMOUNT];
        let (layout, payload) = plain
            .payloads()
            .find(|(_, payload)| payload.windows(CARD.len()).any(|window| window == CARD.as_bytes()))
            .context("the sniffer did not hear the payment")?;
        let arrow = self.screen.glyphs().arrow;
        let without = Pane {
            title: "without underpass",
            caption: format!("TCP {} {arrow} {}", layout.source.ip(), layout.destination),
            payload,
            secrets: &secrets,
        };
        // The only datagram to the app that is long enough to carry the payment.
        let (layout, payload) = tunnelled
            .payloads()
            .filter(|(layout, _)| APPS.contains(layout.destination.ip()))
            .max_by_key(|(_, payload)| payload.len())
            .context("the sniffer did not hear the tunnel")?;
        let with = Pane {
            title: "with underpass",
            caption: format!("UDP {} {arrow} {}", layout.source.ip(), layout.destination),
            payload,
            secrets: &secrets,
        };
        for line in panes::draw(&without, &with, self.screen.width() - 1, self.screen.glyphs()) {
            self.screen.wide_line(&format!(" {line}"))?;
        }
        Ok(())
    }

    fn draw_bars(&mut self, title: &str, plain: f64, tunnelled: f64, decimals: usize) -> Result<()> {
        const LABELS: usize = 24;
        self.screen.line(title)?;
        let room = self.screen.width() - LABELS;
        let most = plain.max(tunnelled);
        for (label, value, style) in [("plain", plain, FAINT), ("underpass", tunnelled, GOOD)] {
            let bar = self.screen.glyphs().bar.repeat(bar_length(value / most, room));
            self.screen.line(&format!("  {label:<9}  {style}{bar}{style:#} {value:.decimals$}"))?;
        }
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

/// How many receipts match exactly one charge in the books, of the right amount. None, if there are other charges.
fn charged_once_and_right(receipts: &[Receipt], mut books: Vec<Charge>) -> usize {
    books.sort();
    let mut charges: Vec<Charge> = receipts.iter().map(|receipt| receipt.charge.clone()).collect();
    charges.sort();
    if books == charges { receipts.iter().filter(|receipt| is_right(receipt)).count() } else { 0 }
}

fn is_right(receipt: &Receipt) -> bool {
    receipt.charge.amount == AMOUNT
}

fn link(peer: super::daemon::Peer) -> String {
    let name = peer.name.unwrap_or_else(|| "unnamed".into());
    match peer.suite {
        Some(suite) => format!("{name} {suite}"),
        None => name,
    }
}

fn at_shop_port(addresses: [Ipv4Addr; 2]) -> [SocketAddr; 2] {
    addresses.map(|address| SocketAddr::from((address, shop::PORT)))
}

/// How many of `room` characters show `share`; something is never shown as nothing.
fn bar_length(share: f64, room: usize) -> usize {
    ((share * room as f64).round() as usize).clamp(1, room)
}

fn draw_network(screen: &mut Screen<'_>) -> Result<()> {
    let [horizontal, vertical, _, branch, _, _, _, _, corner, ..] = screen.glyphs().frame;
    let [short, long] = [3, 15].map(|length| horizontal.repeat(length));
    let [app1, app2] = [0, 1].map(|index| format!("{short} {} {}", APP_NAMES[index], APPS[index]));
    screen.line("")?;
    screen.line(&format!("  {:18} {:29} {}", "load balancer", "the untrusted network", "apps"))?;
    screen.line(&format!("  {:13} {long}{branch}{long}{branch}{app1}", PROXY.to_string()))?;
    screen.line(&format!("  {:13} {:15}{vertical}{:15}{corner}{app2}", "", "", ""))?;
    screen.line(&format!("  {:11} {}", "", "a sniffer, then a man in the middle"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(order: u32, amount: &str) -> Charge {
        Charge { order, amount: amount.into() }
    }

    fn receipt(order: u32) -> Receipt {
        Receipt { app: "app1".into(), charge: charge(order, AMOUNT) }
    }

    #[test]
    fn a_payment_charged_twice_is_noticed() {
        let receipts = [receipt(1), receipt(2)];
        assert_eq!(charged_once_and_right(&receipts, vec![charge(2, AMOUNT), charge(1, AMOUNT)]), 2);
        assert_eq!(charged_once_and_right(&receipts, vec![charge(1, AMOUNT); 2]), 0);
        assert_eq!(charged_once_and_right(&receipts[..1], vec![charge(1, AMOUNT); 2]), 0);
    }

    #[test]
    fn a_changed_amount_is_noticed() {
        assert_eq!(charged_once_and_right(&[receipt(1)], vec![charge(1, STOLEN)]), 0);
    }

    #[test]
    fn a_bar_is_never_empty_and_never_too_long() {
        assert_eq!(bar_length(0.0001, 50), 1);
        assert_eq!(bar_length(0.5, 50), 25);
        assert_eq!(bar_length(1.0, 50), 50);
    }
}
