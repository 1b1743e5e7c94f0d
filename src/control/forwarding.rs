//! Whether this machine forwards packets, and what that means for what peers reach.
//!
//! Kernel settings are read and none is changed.

use std::fs;

use crate::config::Config;
use crate::proto::policy::Destination;

/// Of each IP version: 0 is off.
const SETTINGS: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Advice on a configuration that exposes services, and no network, on a machine that forwards packets.
pub fn advice(config: &Config) -> Option<String> {
    let mut exposures = config.peers.iter().flat_map(|peer| &peer.expose).peekable();
    let exposes_anything = exposures.peek().is_some();
    let is_behind = exposures.any(|exposure| matches!(exposure.destination, Destination::Network(_)));
    (exposes_anything && !is_behind && is_on()).then(|| {
        "this machine forwards packets, and peers reach its own tunnel addresses only; if they are to reach a network behind it, \
         name that as in expose = [\"tcp/10.30.0.0/24:8080\"]"
            .to_owned()
    })
}

fn is_on() -> bool {
    SETTINGS.into_iter().any(|setting| fs::read_to_string(setting).is_ok_and(|value| value.trim() != "0"))
}
