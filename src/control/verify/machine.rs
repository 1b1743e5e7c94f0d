//! This machine: its daemon, its clock, and whether the daemon runs by the file.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Finding, Outcome};
use crate::config::{Config, Mtu};
use crate::control::api::{MtuSource, StatusReport};
use crate::control::client::ClientError;
use crate::dataplane::clock;

pub(super) fn daemon(config: &Config, status: &Result<StatusReport, ClientError>) -> Finding {
    match status {
        Ok(StatusReport { interface, .. }) => {
            let what = format!("version {}, process {}, {}", interface.version, interface.pid, interface.name);
            Finding::ok(Check::Daemon, what)
        }
        Err(error) => {
            let remedy = format!(
                "start it (systemctl start underpass@NAME), or give the file that it runs by; it should answer at {}",
                config.interface.control_socket.display()
            );
            Finding::failed(Check::Daemon, error.to_string(), remedy)
        }
    }
}

/// A clock that jumps back makes a peer refuse this machine's handshakes, which then look like replays.
pub(super) fn clock() -> Finding {
    match clock::is_synchronized() {
        Some(true) => Finding::ok(Check::Clock, "synchronised"),
        Some(false) => Finding::warning(
            Check::Clock,
            "nothing keeps this machine's clock right",
            "run chrony or systemd-timesyncd: if the clock is set back, peers refuse handshakes until it has caught up",
        ),
        None => Finding::new(Check::Clock, Outcome::Skipped, "the system does not say whether it is synchronised"),
    }
}

/// Of what the daemon tells of itself: what it may reach, and how, it keeps to itself.
pub(super) fn configuration(config: &Config, status: &StatusReport) -> Finding {
    let (file, daemon) = (&config.interface, &status.interface);
    let mut differences = Vec::new();
    let mut differ = |what: &str, is_different: bool| differences.extend(is_different.then(|| what.to_owned()));
    differ("its private key", daemon.public_key != file.private_key.public_key().to_string());
    differ("interface.addresses", set(&daemon.addresses) != set(&file.addresses));
    let is_same_mtu = match (file.mtu, daemon.mtu_source) {
        (Mtu::Auto, source) => source != MtuSource::Configured,
        (Mtu::Bytes(bytes), source) => source != MtuSource::Auto && daemon.mtu == bytes,
    };
    differ("interface.mtu", !is_same_mtu);
    differences.extend(other_peers(config, status));
    if differences.is_empty() {
        return Finding::ok(Check::Configuration, "the daemon has this file's keys, addresses and peers");
    }
    let what = format!("the daemon runs by something else than this file: {}", differences.join(", "));
    let remedy = if is_same_mtu { "underpass reload" } else { "underpass restart" };
    Finding::failed(Check::Configuration, what, remedy)
}

/// Peers that only one of the two has, or with another key or other prefixes.
fn other_peers(config: &Config, status: &StatusReport) -> Vec<String> {
    let wanted: BTreeMap<&str, _> = config
        .peers
        .iter()
        .map(|peer| (peer.name.as_str(), (peer.public_key.to_string(), set(&peer.allowed_ips))))
        .collect();
    let running: BTreeMap<&str, _> = status
        .peers
        .iter()
        .map(|peer| (peer.name.as_str(), (peer.public_key.clone(), set(&peer.allowed_ips))))
        .collect();
    let names: BTreeSet<&str> = wanted.keys().chain(running.keys()).copied().collect();
    names.into_iter().filter(|name| wanted.get(name) != running.get(name)).map(|name| format!("peer {name}")).collect()
}

fn set<T: Ord + Copy>(items: &[T]) -> BTreeSet<T> {
    items.iter().copied().collect()
}
