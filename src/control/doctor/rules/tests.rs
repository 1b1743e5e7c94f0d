//! A table of facts and what they mean.

use super::*;
use crate::control::api::{ChangedPeer, NetworkErrorReport, Reload};
use crate::control::doctor::facts::{DaemonFacts, FileFacts, NameFacts};

const NOW: u64 = 1_800_000_000;
const THERE: &str = "192.0.2.10:51900";

fn link(state: LinkState, reason: Option<&str>) -> PeerReport {
    let status = crate::control::api::tests::status();
    PeerReport {
        name: "app1".into(),
        public_key: "THEIRS".into(),
        state,
        reason: reason.map(str::to_owned),
        endpoint: Some(THERE.parse().unwrap()),
        handshakes: 0,
        received_bytes: 0,
        sent_bytes: 4_096,
        ..status.peers[0].clone()
    }
}

fn facts(link: PeerReport) -> Facts {
    Facts {
        peer: "app1".into(),
        daemon: DaemonFacts {
            unix_time: NOW,
            uptime_seconds: 100,
            mtu: 1420,
            listen: vec!["0.0.0.0:51900".parse().unwrap()],
            link: Some(link),
            changes: Some(Reload::default()),
            ..DaemonFacts::default()
        },
        file: FileFacts {
            path: Some("/etc/underpass/proxy.toml".into()),
            has_peer: true,
            has_endpoint: true,
            interface: "underpass0".into(),
            ..FileFacts::default()
        },
        own_key: Some("OURS".into()),
        names: vec![],
        routes: vec![RouteFacts { endpoint: THERE.parse().unwrap(), leads: Leads::By("eth0".into()) }],
        clock_synchronised: Some(true),
        unserved_ports: vec![],
        serves_any_port: true,
    }
}

fn silent() -> Facts {
    facts(link(LinkState::Down, Some("no-handshake")))
}

fn healthy() -> Facts {
    facts(PeerReport { handshakes: 3, received_bytes: 9_999, ..link(LinkState::Up, None) })
}

fn refused(reason: &str, peer: Option<&str>, key: Option<&str>, age: u64) -> RefusedReport {
    RefusedReport {
        peer: peer.map(str::to_owned),
        public_key: key.map(str::to_owned),
        from: THERE.parse().unwrap(),
        reason: reason.into(),
        count: 7,
        latest: NOW - age,
    }
}

fn told(what: &str, age: u64) -> NetworkErrorReport {
    NetworkErrorReport {
        endpoint: THERE.parse().unwrap(),
        what: what.into(),
        from: "192.0.2.1".parse().unwrap(),
        count: 3,
        latest: NOW - age,
    }
}

/// The first cause, and whether anything is wrong.
fn first(change: impl FnOnce(&mut Facts), mut facts: Facts) -> Option<CauseKind> {
    change(&mut facts);
    let causes = diagnose(&facts);
    assert!(causes.iter().all(|cause| !cause.what.is_empty() && !cause.remedy.is_empty()), "{causes:?}");
    causes.first().map(|cause| cause.cause)
}

fn set_link(change: impl FnOnce(&mut PeerReport)) -> impl FnOnce(&mut Facts) {
    |facts| change(facts.daemon.link.as_mut().unwrap())
}

#[test]
fn a_healthy_link_has_no_cause() {
    assert_eq!(diagnose(&healthy()), []);
    let idle = facts(PeerReport { handshakes: 3, ..link(LinkState::Idle, Some("no-traffic")) });
    assert!(diagnose(&idle).iter().all(|cause| !cause.is_fault()));
}

#[test]
fn what_may_be_seen_of_a_sound_machine_is_no_fault() {
    let mut facts = healthy();
    facts.clock_synchronised = Some(false);
    facts.daemon.refused =
        vec![refused("unknown_peer", None, Some("STRANGER"), 3), refused("invalid_mac1", None, None, 1)];
    facts.daemon.link.as_mut().unwrap().network_error = Some(told("port unreachable", 1));
    facts.unserved_ports = vec![9100];
    facts.names = vec![NameFacts { host: "old.example".into(), addresses: vec![], problem: None }];
    let causes = diagnose(&facts);
    assert!(causes.iter().all(|cause| !cause.is_fault()), "{causes:?}");
}

#[test]
fn the_state_of_the_link_tells_some_causes_by_itself() {
    let cases = [
        (LinkState::Draining, "drained", CauseKind::Drained),
        (LinkState::Down, "goodbye", CauseKind::PeerStopped),
        (LinkState::Down, "key-refused", CauseKind::PresharedKey),
        (LinkState::Down, "route", CauseKind::TunnelRoute),
        (LinkState::Degraded, "route", CauseKind::TunnelRoute),
        (LinkState::Degraded, "loss", CauseKind::Loss),
        (LinkState::Degraded, "mtu", CauseKind::PathMtu),
        (LinkState::Down, "quantum-weather", CauseKind::Other),
    ];
    for (state, reason, expected) in cases {
        let facts = facts(PeerReport { path_mtu: Some(1168), ..link(state, Some(reason)) });
        assert_eq!(first(|_| (), facts), Some(expected), "{reason}");
    }
}

#[test]
fn silence_is_named_where_nothing_else_is_known_and_says_which_keys_to_compare() {
    let causes = diagnose(&silent());
    assert_eq!(causes[0].cause, CauseKind::Silence);
    assert!(causes[0].remedy.contains("OURS") && causes[0].remedy.contains("THEIRS"), "{causes:?}");
    let fell = set_link(|link| (link.handshakes, link.received_bytes) = (2, 100));
    assert_eq!(first(fell, silent()), Some(CauseKind::FellSilent));
    let unanswered =
        facts(PeerReport { handshakes: 2, received_bytes: 1, ..link(LinkState::Down, Some("unanswered")) });
    assert_eq!(first(|_| (), unanswered), Some(CauseKind::FellSilent));
}

#[test]
fn an_endpoint_that_is_not_configured_is_worth_a_word_while_the_link_works() {
    let roamed = |link: PeerReport| facts(PeerReport { endpoint_source: Some(EndpointSource::Roamed), ..link });
    let causes = diagnose(&roamed(PeerReport { handshakes: 3, ..link(LinkState::Up, None) }));
    assert_eq!((causes.len(), causes[0].cause), (1, CauseKind::EndpointNotConfigured));
    assert!(!causes[0].is_fault() && causes[0].remedy.contains(THERE), "{causes:?}");
    assert_eq!(first(|_| (), roamed(link(LinkState::Down, Some("no-handshake")))), Some(CauseKind::Silence));
}

#[test]
fn what_the_network_says_comes_before_a_guess_while_it_is_fresh() {
    let cases = [
        ("port unreachable", CauseKind::PortUnreachable),
        ("administratively prohibited", CauseKind::Rejected),
        ("host unreachable", CauseKind::HostUnreachable),
        ("network unreachable", CauseKind::HostUnreachable),
    ];
    for (what, expected) in cases {
        let error = |age| set_link(move |link| link.network_error = Some(told(what, age)));
        assert_eq!(first(error(3), silent()), Some(expected));
        assert_eq!(first(error(300), silent()), Some(CauseKind::Silence), "that was long ago");
    }
}

#[test]
fn what_was_refused_here_tells_which_key_is_wrong() {
    let with = |refused: RefusedReport| first(|facts| facts.daemon.refused = vec![refused], silent());
    assert_eq!(with(refused("unknown_peer", None, Some("STRANGER"), 3)), Some(CauseKind::UnknownKey));
    assert_eq!(with(refused("invalid_mac1", None, None, 3)), Some(CauseKind::WrongKeyForThisMachine));
    assert_eq!(with(refused("stale_initiation", Some("app1"), Some("THEIRS"), 3)), Some(CauseKind::PeerClock));
    assert_eq!(with(refused("stale_initiation", Some("app2"), Some("OTHER"), 3)), Some(CauseKind::Silence));
    assert_eq!(with(refused("unknown_peer", None, Some("STRANGER"), 600)), Some(CauseKind::Silence));
}

#[test]
fn a_side_that_waits_to_be_called_says_what_the_other_has_to_do() {
    let mut waiting = facts(PeerReport { endpoint: None, sent_bytes: 0, ..link(LinkState::Idle, Some("no-traffic")) });
    waiting.file.has_endpoint = false;
    waiting.routes.clear();
    assert_eq!(first(|_| (), waiting.clone()), Some(CauseKind::NotCalled));
    let mut called = waiting;
    called.daemon.link.as_mut().unwrap().received_bytes = 2_000;
    called.file.has_preshared_key = true;
    assert_eq!(first(|_| (), called), Some(CauseKind::AnswerNotTaken));
}

#[test]
fn names_and_routes_come_before_everything_that_needs_them() {
    let name = NameFacts { host: "app1.example".into(), addresses: vec![], problem: Some("no such name".into()) };
    let unresolved = |facts: &mut Facts| {
        facts.names = vec![name];
        facts.routes.clear();
        let link = facts.daemon.link.as_mut().unwrap();
        (link.endpoint, link.sent_bytes) = (None, 0);
    };
    assert_eq!(first(unresolved, silent()), Some(CauseKind::NameNotResolved));
    for (leads, expected) in [
        (Leads::Nowhere, CauseKind::NoRoute),
        (Leads::IntoTunnel, CauseKind::EndpointInTunnel),
        (Leads::ToItself, CauseKind::EndpointIsItself),
    ] {
        let route = |facts: &mut Facts| facts.routes[0].leads = leads.clone();
        assert_eq!(first(route, silent()), Some(expected));
        let two = |facts: &mut Facts| {
            let way = RouteFacts { endpoint: "192.0.2.11:51900".parse().unwrap(), leads: leads.clone() };
            facts.routes.push(way);
        };
        assert_eq!(first(two, silent()), Some(CauseKind::Silence), "another endpoint has a way");
    }
    let v6 = |facts: &mut Facts| facts.routes[0].endpoint = "[2001:db8::1]:51900".parse().unwrap();
    assert_eq!(first(v6, silent()), Some(CauseKind::AddressFamily));
    let marked = |facts: &mut Facts| (facts.file.fwmark, facts.routes[0].leads) = (Some(7), Leads::Nowhere);
    let mut facts = silent();
    marked(&mut facts);
    assert!(diagnose(&facts)[0].what.contains("mark 7"));
}

#[test]
fn without_a_daemon_the_file_may_say_why() {
    let gone = |facts: &mut Facts| {
        facts.daemon = DaemonFacts { problem: Some("no daemon is running".into()), ..DaemonFacts::default() };
    };
    assert_eq!(first(gone, silent()), Some(CauseKind::DaemonNotRunning));
    let refused = |facts: &mut Facts| {
        gone(facts);
        facts.file.problem = Some("interface.mtu: too small".into());
    };
    assert_eq!(first(refused, silent()), Some(CauseKind::ConfigRefused));
    assert_eq!(first(|facts| facts.daemon.link = None, silent()), Some(CauseKind::NotReloaded));
}

#[test]
fn a_file_that_was_changed_and_not_reloaded_is_said() {
    let changed = ChangedPeer { name: "app1".into(), keys: vec!["endpoint".into()] };
    let changes = Reload { changed: vec![changed], ..Reload::default() };
    let with = |facts: &mut Facts| facts.daemon.changes = Some(changes.clone());
    assert_eq!(first(with, silent()), Some(CauseKind::FileChanged));
    let mut up = healthy();
    with(&mut up);
    assert!(diagnose(&up).iter().all(|cause| !cause.is_fault()));
}

#[test]
fn an_app_that_is_not_there_is_a_fault_where_no_exposed_port_is_served() {
    let mut facts = healthy();
    (facts.unserved_ports, facts.serves_any_port) = (vec![8080], false);
    assert_eq!(diagnose(&facts)[0].cause, CauseKind::NothingListens);
    assert!(diagnose(&facts)[0].is_fault());
}

#[test]
fn certain_causes_leave_no_room_for_guesses() {
    let mut facts = silent();
    facts.routes[0].leads = Leads::Nowhere;
    assert!(diagnose(&facts).iter().all(|cause| cause.weight != Weight::Possible));
}
