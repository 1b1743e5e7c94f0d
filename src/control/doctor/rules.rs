//! The most likely causes behind facts: a table of rules, each of which looks for one cause and says what mends it.
//!
//! A rule that is certain of its cause hides the guesses: of a name that does not resolve, nobody need wonder about firewalls.

use serde::Serialize;

use super::facts::{Facts, Leads, RouteFacts};
use crate::control::api::{EndpointSource, LinkState, PeerReport, RefusedReport};

/// Something that is wrong, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// A word for programs.
    pub cause: CauseKind,
    /// Certainty of the cause.
    pub weight: Weight,
    /// The cause in words.
    pub what: String,
    /// The line that mends it.
    pub remedy: String,
}

/// Certainty of a cause, the surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// The cause is seen, and it explains what is wrong.
    Certain,
    /// Signs of the cause are seen, and it would explain what is wrong.
    Likely,
    /// The cause can't be seen from here.
    Possible,
    /// The cause is seen, and the link may be sound all the same.
    Notice,
}

/// The causes, by a word for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// No daemon answers.
    DaemonNotRunning,
    /// The configuration file is refused.
    ConfigRefused,
    /// The daemon does not know the peer, the file does.
    NotReloaded,
    /// An operator drains the link.
    Drained,
    /// The peer's daemon was stopped.
    PeerStopped,
    /// The preshared keys differ.
    PresharedKey,
    /// Traffic goes around the tunnel.
    TunnelRoute,
    /// A name has no address.
    NameNotResolved,
    /// There is no socket of the endpoint's address family.
    AddressFamily,
    /// The way to the endpoint leads into the tunnel.
    EndpointInTunnel,
    /// The endpoint is this machine.
    EndpointIsItself,
    /// There is no way to the endpoint.
    NoRoute,
    /// The peer's clock, or a second machine with its key.
    PeerClock,
    /// A key that is not configured calls.
    UnknownKey,
    /// Somebody calls with another public key for this machine.
    WrongKeyForThisMachine,
    /// Nothing listens at the endpoint's port.
    PortUnreachable,
    /// A firewall rejects datagrams.
    Rejected,
    /// A router knows no way to the endpoint.
    HostUnreachable,
    /// The peer calls and does not take the answer.
    AnswerNotTaken,
    /// The peer has to call and has not.
    NotCalled,
    /// Nothing came back.
    Silence,
    /// The peer has fallen silent.
    FellSilent,
    /// Pings are lost.
    Loss,
    /// The path carries less than the interface's MTU.
    PathMtu,
    /// Nothing was sent.
    NoTraffic,
    /// The file was changed and not reloaded.
    FileChanged,
    /// The link works by another endpoint than those of the configuration.
    EndpointNotConfigured,
    /// Nothing listens at an exposed port.
    NothingListens,
    /// Nothing keeps this machine's clock right.
    OwnClock,
    /// A state that this program does not know.
    Other,
}

/// Everything that the facts give reason for, the most likely first. Empty: nothing is wrong.
pub fn diagnose(facts: &Facts) -> Vec<Cause> {
    let mut causes: Vec<Cause> = RULES.iter().filter_map(|rule| rule(facts)).collect();
    if causes.iter().any(|cause| cause.weight == Weight::Certain) {
        causes.retain(|cause| cause.weight != Weight::Possible);
    }
    // Stable: of equally sure causes, the table's order.
    causes.sort_by_key(|cause| cause.weight);
    causes
}

type Rule = fn(&Facts) -> Option<Cause>;

/// Of two that are equally sure, the one that is seen more directly comes first.
const RULES: &[Rule] = &[
    config_refused,
    daemon_not_running,
    not_reloaded,
    drained,
    tunnel_route,
    preshared_key,
    name_not_resolved,
    address_family,
    endpoint_in_tunnel,
    endpoint_is_itself,
    no_route,
    peer_clock,
    file_changed,
    unknown_key,
    wrong_key_for_this_machine,
    network_error,
    peer_stopped,
    answer_not_taken,
    not_called,
    silence,
    fell_silent,
    loss,
    path_mtu,
    no_traffic,
    endpoint_not_configured,
    nothing_listens,
    other_state,
    own_clock,
];

fn config_refused(facts: &Facts) -> Option<Cause> {
    let problem = facts.file.problem.as_ref()?;
    let path = facts.file.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let weight = if facts.daemon.problem.is_some() { Weight::Certain } else { Weight::Notice };
    let remedy = format!("underpass check --config {path}");
    Some(Cause::new(CauseKind::ConfigRefused, weight, format!("the configuration is refused: {problem}"), remedy))
}

fn daemon_not_running(facts: &Facts) -> Option<Cause> {
    let problem = facts.daemon.problem.as_ref()?;
    let remedy = "systemctl start underpass@NAME, or underpass run --config FILE; its log says why it ended";
    Some(Cause::certain(CauseKind::DaemonNotRunning, format!("no daemon answers here: {problem}"), remedy))
}

fn not_reloaded(facts: &Facts) -> Option<Cause> {
    let is_missing = facts.daemon.problem.is_none() && facts.daemon.link.is_none() && facts.file.has_peer;
    let what = format!("the daemon does not know {}: the file was changed since it was read", facts.peer);
    is_missing.then(|| Cause::certain(CauseKind::NotReloaded, what, "underpass reload"))
}

fn drained(facts: &Facts) -> Option<Cause> {
    in_state(facts, LinkState::Draining)?;
    let what = "the link is draining by command: it carries traffic and gets no new connections";
    Some(Cause::certain(CauseKind::Drained, what, format!("underpass undrain {}", facts.peer)))
}

/// The daemon watches the routes and says so itself.
fn tunnel_route(facts: &Facts) -> Option<Cause> {
    let link = for_reason(facts, "route")?;
    let route = link.route.as_deref().unwrap_or("the daemon's log names it");
    let what = format!("packets for the peer do not go into the tunnel: {route}");
    let remedy = format!(
        "remove that route or rule; `ip route get ADDRESS`, for an address of {}, has to lead into {}",
        facts.peer, facts.file.interface
    );
    Some(Cause::certain(CauseKind::TunnelRoute, what, remedy))
}

/// The peer took this side's initiation, so that the key pairs are right.
fn preshared_key(facts: &Facts) -> Option<Cause> {
    for_reason(facts, "key-refused")?;
    let here = if facts.file.has_preshared_key { "here there is one" } else { "here there is none" };
    let what = format!("the peer answers, and its answer does not fit: the preshared keys differ ({here})");
    let remedy = "bring the same file to both sides and name it in preshared_key_file, or leave it out at both";
    Some(Cause::certain(CauseKind::PresharedKey, what, remedy))
}

fn name_not_resolved(facts: &Facts) -> Option<Cause> {
    let name = facts.names.iter().find(|name| name.addresses.is_empty())?;
    let problem = name.problem.as_deref().unwrap_or("no address");
    let is_needed = is_broken(facts) && facts.routes.is_empty();
    let weight = if is_needed { Weight::Certain } else { Weight::Notice };
    let what = format!("the endpoint's name {} does not resolve: {problem}", name.host);
    let remedy = format!("getent hosts {}; correct the name, or the servers in /etc/resolv.conf", name.host);
    Some(Cause::new(CauseKind::NameNotResolved, weight, what, remedy))
}

fn address_family(facts: &Facts) -> Option<Cause> {
    let listen = &facts.daemon.listen;
    let is_missing = |route: &RouteFacts| !listen.iter().any(|at| at.is_ipv4() == route.endpoint.is_ipv4());
    let route = facts.routes.iter().find(|_| is_broken(facts) && !listen.is_empty())?;
    if !facts.routes.iter().all(is_missing) {
        return None;
    }
    let family = if route.endpoint.is_ipv4() { "IPv4" } else { "IPv6" };
    let what = format!("the daemon has no {family} socket for the endpoint {}", route.endpoint);
    Some(Cause::certain(CauseKind::AddressFamily, what, format!("add an {family} address to interface.listen")))
}

fn endpoint_in_tunnel(facts: &Facts) -> Option<Cause> {
    let route = leading(facts, &Leads::IntoTunnel)?;
    let (endpoint, address, interface) = (route.endpoint, route.endpoint.ip(), &facts.file.interface);
    let what = format!("the way to the endpoint {endpoint} leads into {interface} itself, which can't carry it");
    let remedy = match facts.file.fwmark {
        Some(mark) => format!("ip rule add not fwmark {mark} table {mark}: see \"All traffic\" in docs/operations.md"),
        None => {
            format!("take {address} out of allowed_ips and interface.addresses, or: ip route add {address} via GATEWAY")
        }
    };
    Some(Cause::certain(CauseKind::EndpointInTunnel, what, remedy))
}

fn endpoint_is_itself(facts: &Facts) -> Option<Cause> {
    let route = leading(facts, &Leads::ToItself)?;
    let what = format!("the endpoint {} is an address of this machine", route.endpoint);
    Some(Cause::certain(CauseKind::EndpointIsItself, what, "set endpoint to the other machine's address"))
}

fn no_route(facts: &Facts) -> Option<Cause> {
    let route = leading(facts, &Leads::Nowhere)?;
    let address = route.endpoint.ip();
    let what = match facts.file.fwmark {
        Some(mark) => {
            format!("this machine has no route to the endpoint {} for datagrams with mark {mark}", route.endpoint)
        }
        None => format!("this machine has no route to the endpoint {}", route.endpoint),
    };
    Some(Cause::certain(
        CauseKind::NoRoute,
        what,
        format!("ip route get {address}; add the route, or bring its interface up"),
    ))
}

/// Refused as older than one before: by the clock of the peer, or by a second machine that uses its key.
fn peer_clock(facts: &Facts) -> Option<Cause> {
    let refused = latest_refused(facts, |refused| {
        refused.reason == "stale_initiation" && refused.peer.as_deref() == Some(facts.peer.as_str())
    })?;
    let what = format!(
        "{} calls from {} with an older time than before: its clock was set back, or another machine has the same private key",
        facts.peer, refused.from
    );
    let remedy = "set the clock there right (timedatectl set-ntp true), and let no two machines share a private key";
    is_broken(facts).then(|| Cause::new(CauseKind::PeerClock, Weight::Certain, what, remedy))
}

fn unknown_key(facts: &Facts) -> Option<Cause> {
    let link = facts.daemon.link.as_ref().filter(|_| is_broken(facts))?;
    let endpoint = link.endpoint.map(|endpoint| endpoint.ip());
    let is_unknown = |refused: &RefusedReport| refused.reason == "unknown_peer";
    // One that calls from where the peer is, before any other.
    let from_there = |refused: &RefusedReport| is_unknown(refused) && Some(refused.from.ip()) == endpoint;
    let refused = latest_refused(facts, from_there).or_else(|| latest_refused(facts, is_unknown))?;
    let key = refused.public_key.as_deref().unwrap_or("an unknown key");
    let what = format!(
        "{} calls with the key {key}, which no peer here has; {} is configured with {}",
        refused.from, facts.peer, link.public_key
    );
    let remedy = format!("if `underpass pubkey` prints that key on {}, set public_key = \"{key}\"", facts.peer);
    Some(Cause::new(CauseKind::UnknownKey, Weight::Likely, what, remedy))
}

fn wrong_key_for_this_machine(facts: &Facts) -> Option<Cause> {
    let refused = latest_refused(facts, |refused| refused.reason == "invalid_mac1").filter(|_| is_broken(facts))?;
    let own = facts.own_key.as_deref().unwrap_or("this machine's key");
    let what = format!("{} calls, and means a machine with another public key than this one's", refused.from);
    let remedy = format!("set public_key = \"{own}\" in the configuration of {}", facts.peer);
    Some(Cause::new(CauseKind::WrongKeyForThisMachine, Weight::Likely, what, remedy))
}

/// Errors by ICMP prove nothing, and mostly are so.
fn network_error(facts: &Facts) -> Option<Cause> {
    let error = facts.daemon.link.as_ref()?.network_error.as_ref().filter(|_| is_broken(facts))?;
    let age = facts.daemon.unix_time.saturating_sub(error.latest);
    if age > FRESH_SECONDS {
        return None;
    }
    let endpoint = error.endpoint;
    let said = format!("the network says: {} from {}, {age} s ago", error.what, error.from);
    let (kind, what, remedy) = match error.what.as_str() {
        "port unreachable" => (
            CauseKind::PortUnreachable,
            format!("nothing listens at {endpoint}, or a firewall rejects: {said}"),
            format!("start the daemon there, and compare its interface.listen with port {}", endpoint.port()),
        ),
        "administratively prohibited" | "host prohibited" | "network prohibited" => (
            CauseKind::Rejected,
            format!("a firewall rejects datagrams to {endpoint}: {said}"),
            format!("let UDP port {} in, in the firewall of {}", endpoint.port(), error.from),
        ),
        _ => (
            CauseKind::HostUnreachable,
            format!("{endpoint} can't be reached: {said}"),
            format!("ping {}; is the machine on, and does {} know the way to it?", endpoint.ip(), error.from),
        ),
    };
    Some(Cause::new(kind, Weight::Likely, what, remedy))
}

fn peer_stopped(facts: &Facts) -> Option<Cause> {
    for_reason(facts, "goodbye")?;
    let what = "the peer's daemon was stopped, and said so";
    Some(Cause::certain(CauseKind::PeerStopped, what, "start it there: systemctl start underpass@NAME"))
}

fn answer_not_taken(facts: &Facts) -> Option<Cause> {
    let link = facts.daemon.link.as_ref().filter(|_| is_broken(facts))?;
    if link.received_bytes == 0 || link.handshakes > 0 || link.reason.as_deref() == Some("key-refused") {
        return None;
    }
    let here = if facts.file.has_preshared_key { "here there is one" } else { "here there is none" };
    let what =
        format!("the peer calls and does not take the answer: the preshared keys differ ({here}), or answers are lost");
    let remedy =
        format!("compare preshared_key_file at both sides; `underpass doctor` on {} sees which it is", facts.peer);
    Some(Cause::new(CauseKind::AnswerNotTaken, Weight::Likely, what, remedy))
}

/// A side without an endpoint can only wait.
fn not_called(facts: &Facts) -> Option<Cause> {
    let link = facts.daemon.link.as_ref().filter(|_| is_broken(facts))?;
    let waits = facts.file.has_peer && !facts.file.has_endpoint && link.handshakes == 0 && link.received_bytes == 0;
    let what = "this side has no endpoint configured and has not been called since the daemon started: the other side has to call";
    let remedy = format!(
        "set endpoint for this machine in the configuration of {}, start the daemon there, and let its datagrams in{}",
        facts.peer,
        own_ports(facts)
    );
    waits.then(|| Cause::new(CauseKind::NotCalled, Weight::Possible, what, remedy))
}

fn silence(facts: &Facts) -> Option<Cause> {
    let link = facts.daemon.link.as_ref().filter(|_| is_broken(facts))?;
    let endpoint = link.endpoint?;
    if link.received_bytes > 0 || link.sent_bytes == 0 {
        return None;
    }
    let own = facts.own_key.as_deref().unwrap_or("unknown");
    let what = format!(
        "nothing came back from {endpoint}, {} bytes were sent: datagrams are lost on the way, no daemon runs there, or the \
         keys are not each other's",
        link.sent_bytes
    );
    let remedy = format!(
        "run `underpass doctor` on {}: it sees whether anything arrives. There, this machine's public_key has to be {own}, and \
         `underpass pubkey` has to print {}",
        facts.peer, link.public_key
    );
    Some(Cause::new(CauseKind::Silence, Weight::Possible, what, remedy))
}

fn fell_silent(facts: &Facts) -> Option<Cause> {
    let link = facts.daemon.link.as_ref().filter(|_| is_broken(facts))?;
    if link.handshakes == 0 || !matches!(link.reason.as_deref(), Some("unanswered" | "no-handshake")) {
        return None;
    }
    let at = link.endpoint.map_or_else(|| "the peer".to_owned(), |endpoint| endpoint.to_string());
    let what = format!(
        "the link was up, and then {at} fell silent: the machine, its daemon or the network between has failed"
    );
    let remedy = format!("try to reach {at}; on {}: systemctl status underpass@NAME", facts.peer);
    Some(Cause::new(CauseKind::FellSilent, Weight::Possible, what, remedy))
}

fn loss(facts: &Facts) -> Option<Cause> {
    let link = for_reason(facts, "loss")?;
    let what = format!("{:.0} % of the pings are lost on the way", link.loss * 100.0);
    let remedy = "look at the network between: ip -s link at both sides, cables, a policer, a full queue";
    Some(Cause::certain(CauseKind::Loss, what, remedy))
}

fn path_mtu(facts: &Facts) -> Option<Cause> {
    let link = for_reason(facts, "mtu")?;
    let (path, mtu) = (link.path_mtu?, facts.daemon.mtu);
    let what = format!("the path carries packets of {path} bytes, the interface's MTU is {mtu}");
    let remedy = format!("set interface.mtu = {path} at both sides, or widen the path");
    Some(Cause::certain(CauseKind::PathMtu, what, remedy))
}

fn no_traffic(facts: &Facts) -> Option<Cause> {
    let link = in_state(facts, LinkState::Idle)?;
    let what = "the link is idle: nothing asked for it lately";
    // At a side that is called, that is its rest.
    let weight = if link.endpoint.is_some() || link.handshakes > 0 { Weight::Notice } else { Weight::Possible };
    Some(Cause::new(
        CauseKind::NoTraffic,
        weight,
        what,
        "ping the peer's tunnel address; persistent_keepalive keeps it up",
    ))
}

fn file_changed(facts: &Facts) -> Option<Cause> {
    let changes = facts.daemon.changes.as_ref()?;
    let of_peer = changes.changed.iter().find(|changed| changed.name == facts.peer);
    let weight = if is_broken(facts) && of_peer.is_some() { Weight::Likely } else { Weight::Notice };
    let mut keys: Vec<String> = of_peer.iter().flat_map(|changed| &changed.keys).cloned().collect();
    keys.extend(changes.keys.iter().chain(&changes.needs_restart).cloned());
    let others = !changes.added.is_empty() || !changes.removed.is_empty() || !changes.changed.is_empty();
    if keys.is_empty() && !others {
        return None;
    }
    let shown = if keys.is_empty() { "other peers".to_owned() } else { keys.join(", ") };
    let what = format!("the configuration file was changed and the daemon runs by the old one: {shown}");
    let remedy = if changes.needs_restart.is_empty() { "underpass reload" } else { "underpass restart" };
    Some(Cause::new(CauseKind::FileChanged, weight, what, remedy))
}

/// The other side's connecting hides a wrong endpoint until the next boot.
fn endpoint_not_configured(facts: &Facts) -> Option<Cause> {
    let link = facts.daemon.link.as_ref().filter(|link| link.endpoint_source == Some(EndpointSource::Roamed))?;
    let endpoint = link.endpoint.filter(|_| !is_broken(facts))?;
    let what = format!("{endpoint} is in use, where the peer has connected from, and no configured endpoint");
    let remedy =
        format!("set endpoint = \"{endpoint}\" if the configured one is wrong: after the next boot it is what counts");
    Some(Cause::new(CauseKind::EndpointNotConfigured, Weight::Notice, what, remedy))
}

fn nothing_listens(facts: &Facts) -> Option<Cause> {
    let ports: Vec<String> = facts.unserved_ports.iter().map(ToString::to_string).collect();
    if ports.is_empty() {
        return None;
    }
    let weight = if facts.serves_any_port || is_broken(facts) { Weight::Notice } else { Weight::Likely };
    let what = format!("{} may reach TCP port {}, where nothing listens", facts.peer, ports.join(", "));
    let remedy = "start the app, or have it listen on this machine's tunnel address";
    Some(Cause::new(CauseKind::NothingListens, weight, what, remedy))
}

fn other_state(facts: &Facts) -> Option<Cause> {
    const KNOWN: &[&str] =
        &["loss", "mtu", "drained", "no-handshake", "key-refused", "unanswered", "goodbye", "no-traffic", "route"];
    let link = facts.daemon.link.as_ref().filter(|link| link.state != LinkState::Up)?;
    let reason = link.reason.as_deref().filter(|reason| !KNOWN.contains(reason))?;
    let what = format!("the link is {}: {reason}", link.state.as_str());
    Some(Cause::new(
        CauseKind::Other,
        Weight::Likely,
        what,
        "the daemon's log says more; docs/operations.md has the reasons",
    ))
}

/// Seen only by the side that refuses; this side sees silence.
fn own_clock(facts: &Facts) -> Option<Cause> {
    let is_wrong = facts.clock_synchronised == Some(false);
    let what = "nothing keeps this machine's clock right: set back, peers refuse its handshakes until it has caught up";
    let remedy = "run chrony or systemd-timesyncd";
    is_wrong.then(|| Cause::new(CauseKind::OwnClock, Weight::Notice, what, remedy))
}

impl Cause {
    fn new(cause: CauseKind, weight: Weight, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause, weight, what: what.into(), remedy: remedy.into() }
    }

    fn certain(cause: CauseKind, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(cause, Weight::Certain, what, remedy)
    }

    /// Whether something is wrong, not only worth a word.
    pub fn is_fault(&self) -> bool {
        self.weight != Weight::Notice
    }
}

/// Whether the link carries nothing, though it should.
fn is_broken(facts: &Facts) -> bool {
    let Some(link) = &facts.daemon.link else { return true };
    match link.state {
        LinkState::Down => true,
        // At rest; or never called, which only the other side can change.
        LinkState::Idle => link.handshakes == 0,
        _ => false,
    }
}

fn in_state(facts: &Facts, state: LinkState) -> Option<&PeerReport> {
    facts.daemon.link.as_ref().filter(|link| link.state == state)
}

fn for_reason<'f>(facts: &'f Facts, reason: &str) -> Option<&'f PeerReport> {
    facts.daemon.link.as_ref().filter(|link| link.reason.as_deref() == Some(reason))
}

/// The first endpoint that leads there, if none of them leads out of the machine.
fn leading<'f>(facts: &'f Facts, leads: &Leads) -> Option<&'f RouteFacts> {
    let leads_out = facts.routes.iter().any(|route| matches!(route.leads, Leads::By(_)));
    facts.routes.iter().find(|route| route.leads == *leads).filter(|_| is_broken(facts) && !leads_out)
}

/// The newest of the refused initiations of this kind, if it is not long ago.
fn latest_refused(facts: &Facts, is_meant: impl Fn(&RefusedReport) -> bool) -> Option<&RefusedReport> {
    let is_fresh = |refused: &&RefusedReport| refused.latest + REFUSED_SECONDS >= facts.daemon.unix_time;
    facts
        .daemon
        .refused
        .iter()
        .filter(|refused| is_meant(refused))
        .filter(is_fresh)
        .max_by_key(|refused| refused.latest)
}

fn own_ports(facts: &Facts) -> String {
    let ports: Vec<String> = facts.daemon.listen.iter().map(|at| at.port().to_string()).collect();
    ports.first().map_or_else(String::new, |port| format!(" (UDP port {port})"))
}

/// An error that the network told is worth a word for so long: a peer that is sought is sent something every second.
const FRESH_SECONDS: u64 = 60;
/// Callers that are not watched initiate at least so often.
const REFUSED_SECONDS: u64 = 120;

#[cfg(test)]
mod tests;
