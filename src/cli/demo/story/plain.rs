//! Steps 2 and 3: what a sniffer and a man in the middle can do without underpass.
//!
//! That they succeed is claimed too: with attackers who can't attack, the rest would prove nothing.

use anyhow::Result;

use super::{PAYMENTS, Story};
use crate::cli::demo::attack::{STOLEN, Thief};
use crate::cli::demo::relay::Relay;
use crate::cli::demo::shop::{AMOUNT, CARD, COOKIE};
use crate::cli::demo::sniffer::Recording;

const STOLEN_PAYMENTS: u32 = 6;

impl Story<'_> {
    /// Step 2. Returns the recording of one payment, to be shown beside a tunnelled one.
    pub(super) fn sniff_plain(&mut self) -> Result<Recording> {
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
        // Or more often: on a machine that stands still for a while, TCP sends again.
        let expected = PAYMENTS as usize;
        self.verdict.claim(
            cards >= expected && cookies >= expected,
            "Plain: a sniffer reads all",
            format!("{cards} card numbers in {PAYMENTS} payments"),
        );
        Ok(one)
    }

    /// Step 3.
    pub(super) fn steal_plain(&mut self) -> Result<()> {
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
            "Plain: payments are changed",
            format!("{charged} of {STOLEN_PAYMENTS} charged {STOLEN}, not {AMOUNT}"),
        );
        Ok(())
    }
}
