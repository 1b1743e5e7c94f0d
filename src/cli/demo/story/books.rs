//! Compares what customers have in hand with what the apps' books say.

use crate::cli::demo::shop::{AMOUNT, Charge, Receipt};

/// How many receipts match exactly one charge in the books, of the right amount. None, if there are other charges.
pub(super) fn charged_once_and_right(receipts: &[Receipt], mut books: Vec<Charge>) -> usize {
    books.sort();
    let mut charges: Vec<Charge> = receipts.iter().map(|receipt| receipt.charge.clone()).collect();
    charges.sort();
    if books == charges { receipts.iter().filter(|receipt| is_right(receipt)).count() } else { 0 }
}

/// The customer was charged what he meant to pay.
pub(super) fn is_right(receipt: &Receipt) -> bool {
    receipt.charge.amount == AMOUNT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::attack::STOLEN;

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
}
