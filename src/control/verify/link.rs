//! The link's state as the daemon tells it, and whether its path carries the interface's longest packets.

use super::{Check, Finding, Outcome, carries_traffic};
use crate::config::Peer;
use crate::control::api::{LinkState, PeerReport};

/// `has_no_way` is set where a finding before says why datagrams do not arrive.
pub(super) fn judge(peer: &Peer, report: Option<&PeerReport>, has_no_way: bool) -> Finding {
    let Some(report) = report else {
        return Finding::failed(Check::Link, "the daemon does not know this peer", "underpass reload");
    };
    let reason = report.reason.as_deref().unwrap_or("no reason given");
    let described = format!("{}: {reason}", report.state.as_str());
    match report.state {
        LinkState::Up => {
            let round_trip = report.rtt_microseconds.map(|time| format!(", round trip {:.1} ms", time as f64 / 1e3));
            Finding::ok(Check::Link, format!("up{}", round_trip.unwrap_or_default()))
        }
        LinkState::Idle => Finding::new(Check::Link, Outcome::Skipped, described),
        LinkState::Draining => Finding::warning(Check::Link, described, "underpass undrain, when it is to serve again"),
        LinkState::Degraded | LinkState::Unknown => Finding::warning(Check::Link, described, remedy_of(reason)),
        LinkState::Down if has_no_way => {
            Finding::failed(Check::Link, described, "datagrams have no way to the peer: see its endpoint above")
        }
        LinkState::Down if reason == "no-handshake" && peer.endpoints.is_empty() => {
            let remedy = "it has no endpoint here, so it has to connect: is its daemon running, with this machine's \
                          address and port as its endpoint?";
            Finding::failed(Check::Link, described, remedy)
        }
        LinkState::Down => Finding::failed(Check::Link, described, remedy_of(reason)),
    }
}

/// Only a link that carries traffic measures its path. `None` where nobody has found out yet.
pub(super) fn judge_path_mtu(report: &PeerReport, interface: u16) -> Option<Finding> {
    let path = report.path_mtu?;
    if !carries_traffic(report) {
        return Some(Finding::new(Check::PathMtu, Outcome::Skipped, "not known while the link carries nothing"));
    }
    if path >= interface {
        return Some(Finding::ok(Check::PathMtu, format!("packets of {interface} bytes pass whole")));
    }
    if report.reason.as_deref() != Some("mtu") {
        let what = format!("packets of {path} bytes pass whole; longer ones are still being tried");
        return Some(Finding::new(Check::PathMtu, Outcome::Skipped, what));
    }
    let what = format!("only packets of up to {path} bytes pass whole, the interface's MTU is {interface}");
    let remedy = format!("set interface.mtu = {path} at both sides, or find the narrow place on the way");
    Some(Finding::warning(Check::PathMtu, what, remedy))
}

/// By the words of `underpass status`.
fn remedy_of(reason: &str) -> &'static str {
    match reason {
        "no-handshake" => {
            "is its daemon running, is its UDP port open on the way, do both sides have each other's public key?"
        }
        "key-refused" => "each side needs the other's public key: compare `underpass pubkey` with the configurations",
        "unanswered" => "the network between, or the machine, has failed: try to reach its endpoint",
        "goodbye" => "its daemon was stopped: start it again",
        "route" => {
            "`underpass status` names the route that takes its traffic around the tunnel: remove it, or the rule"
        }
        "loss" => "the network between loses packets: look at it and at the interfaces' counters",
        "mtu" => "the path carries less than the interface's MTU: see path MTU in docs/operations.md",
        _ => "see docs/operations.md for this reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::verify::tests::{peer, report};

    fn path_mtu(state: LinkState, reason: Option<&str>, path_mtu: u16) -> Outcome {
        let report = PeerReport { path_mtu: Some(path_mtu), ..report(state, reason) };
        judge_path_mtu(&report, 1420).unwrap().outcome
    }

    #[test]
    fn the_path_of_a_link_that_is_down_is_not_called_narrow() {
        assert_eq!(path_mtu(LinkState::Down, Some("unanswered"), 1168), Outcome::Skipped);
        assert_eq!(path_mtu(LinkState::Up, None, 1168), Outcome::Skipped);
        assert_eq!(path_mtu(LinkState::Degraded, Some("mtu"), 1280), Outcome::Warning);
        assert_eq!(path_mtu(LinkState::Up, None, 1420), Outcome::Ok);
    }

    #[test]
    fn a_link_that_is_down_fails_with_what_to_do() {
        let remedy = |more: &str, reason, has_no_way| {
            let finding = judge(&peer(more), Some(&report(LinkState::Down, Some(reason))), has_no_way);
            assert_eq!(finding.outcome, Outcome::Failed);
            finding.remedy.unwrap()
        };
        assert!(remedy("endpoint = \"192.0.2.10\"", "unanswered", false).contains("network between"));
        assert!(remedy("endpoint = \"192.0.2.10\"", "unanswered", true).contains("endpoint above"));
        assert!(remedy("", "no-handshake", false).contains("it has to connect"));
        assert_eq!(judge(&peer(""), None, false).outcome, Outcome::Failed);
    }

    #[test]
    fn a_link_that_is_idle_or_up_is_no_alarm() {
        assert_eq!(judge(&peer(""), Some(&report(LinkState::Up, None)), false).outcome, Outcome::Ok);
        assert_eq!(
            judge(&peer(""), Some(&report(LinkState::Idle, Some("no-traffic"))), false).outcome,
            Outcome::Skipped
        );
    }
}
