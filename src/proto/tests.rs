//! What the tests beside the core's code share.

use std::time::Instant;

/// The origin of virtual time.
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
pub(super) fn start() -> Instant {
    Instant::now()
}
