//! The demo's plot: seven steps, from a network of its own to the verdict.
//!
//! Each step is one method that does something, prints what to look at and notes the claims it proves. Here are the
//! steps that set the scene; `plain` and `tunnelled` hold the attacks.

mod books;
mod pictures;
mod plain;
mod tunnelled;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitStatus;
use std::time::Instant;

use anyhow::{Context as _, Result};

use self::pictures::draw_network;
use super::balancer::Balancer;
use super::daemon::{APPS_INSIDE, Daemons};
use super::network::{APP_NAMES, APPS, Network};
use super::screen::{FAINT, GOOD, STRONG, Screen};
use super::shop::{self, Charge, Customers, Receipt, Till};
use super::sniffer::{Recording, Sniffer};
use super::verdict::Verdict;
use super::{cleanup, speed};
use crate::dataplane::clock;

/// How many steps `tell` takes.
pub(super) const STEPS: usize = 7;

const PAYMENTS: u32 = 20;

const PLAIN_PORT: u16 = 8001;
const TUNNEL_BALANCER_PORT: u16 = 8002;

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
            "Tunnel: it carries bulk and load",
            format!("{:.2} Gbit/s, {tunnelled_requests:.0} requests/s", tunnelled / 1e9),
        );
        Ok(())
    }

    fn conclude(mut self) -> Result<usize> {
        let cleanup::Swept { endings, removed } = cleanup::sweep();
        let clean = endings.iter().filter(|ending| ending.is_some_and(|status: ExitStatus| status.success())).count();
        self.verdict.claim(
            clean == endings.len() && clean > 0 && removed,
            "End: nothing is left behind",
            format!(
                "{clean} of {} daemons ended well, keys {}",
                endings.len(),
                if removed { "removed" } else { "REMAIN" }
            ),
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
