//! The bars: what underpass must reach in which test, and whether it did.

pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
