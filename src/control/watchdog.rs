//! Shows the service manager that the daemon lives: that control runs, and every thread of the data plane answers it.
//!
//! A daemon that hangs falls silent and is killed and started again, with its TUN and sockets ([`handover`](super::handover)).

use std::convert::Infallible;
use std::future::pending;

use tokio::time::sleep;

use super::systemd;
use crate::dataplane::Pulse;

/// Shows life as often as the service manager wants to see it, if it does.
pub async fn watch(pulse: &Pulse) -> Infallible {
    let Some(longest) = systemd::watchdog_interval() else { return pending().await };
    let mut was_felt = true;
    loop {
        pulse.ask();
        sleep(longest / BEATS).await;
        let is_felt = pulse.is_felt();
        if is_felt {
            systemd::show_life();
        } else if was_felt {
            tracing::error!(
                "a thread of the data plane does not answer; if that lasts, the service manager ends this daemon"
            );
        }
        was_felt = is_felt;
    }
}

/// So often within the longest silence: a thread that is late once does not end the daemon.
const BEATS: u32 = 4;
