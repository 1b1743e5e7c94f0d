//! What the demo claims, whether each claim held, and by which numbers.

use super::screen::{Screen, Unwritable};

/// One claim.
#[derive(Debug)]
struct Claim {
    text: &'static str,
    held: bool,
    evidence: String,
}

/// All claims so far.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    claims: Vec<Claim>,
}

impl Verdict {
    /// Notes a claim with its evidence.
    pub(super) fn claim(&mut self, held: bool, text: &'static str, evidence: impl Into<String>) {
        self.claims.push(Claim { text, held, evidence: evidence.into() });
    }

    /// How many claims did not hold.
    pub(super) fn failures(&self) -> usize {
        self.claims.iter().filter(|claim| !claim.held).count()
    }

    /// How many claims there are.
    pub(super) fn len(&self) -> usize {
        self.claims.len()
    }

    /// Prints claim and evidence in two columns.
    pub(super) fn print(&self, screen: &mut Screen<'_>) -> Result<(), Unwritable> {
        let widest = self.claims.iter().map(|claim| claim.text.chars().count()).max().unwrap_or(0);
        for claim in &self.claims {
            screen.finding(claim.held, claim.text, widest, &claim.evidence)?;
        }
        Ok(())
    }
}
