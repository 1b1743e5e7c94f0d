//! The demo's drawings: the network, one payment with and without underpass, the bars of the measurements.

use anyhow::{Context as _, Result};

use super::Story;
use crate::cli::demo::network::{APP_NAMES, APPS, PROXY};
use crate::cli::demo::panes::{self, Pane};
use crate::cli::demo::screen::{FAINT, GOOD, Screen};
use crate::cli::demo::shop::{AMOUNT, CARD, COOKIE};
use crate::cli::demo::sniffer::Recording;

impl Story<'_> {
    /// One payment as a stranger has it, from the recordings of one payment each.
    pub(super) fn draw_payments(&mut self, plain: &Recording, tunnelled: &Recording) -> Result<()> {
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

    /// Two measurements of the same thing.
    pub(super) fn draw_bars(&mut self, title: &str, plain: f64, tunnelled: f64, decimals: usize) -> Result<()> {
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

/// What was built.
pub(super) fn draw_network(screen: &mut Screen<'_>) -> Result<()> {
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

/// How many of `room` characters show `share`; something is never shown as nothing.
fn bar_length(share: f64, room: usize) -> usize {
    ((share * room as f64).round() as usize).clamp(1, room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_never_empty_and_never_too_long() {
        assert_eq!(bar_length(0.0001, 50), 1);
        assert_eq!(bar_length(0.5, 50), 25);
        assert_eq!(bar_length(1.0, 50), 50);
    }
}
