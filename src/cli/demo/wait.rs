//! Waiting for something that happens elsewhere, with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::dataplane::clock;

const RETRY: Duration = Duration::from_millis(10);

/// Asks `question` until it has an answer; `what` says what was waited for in vain.
pub(super) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = clock::now() + patience;
    loop {
        if let Some(answer) = question()? {
            return Ok(answer);
        }
        if clock::now() >= deadline {
            bail!("waited {} s for {what}", patience.as_secs());
        }
        std::thread::sleep(RETRY);
    }
}
