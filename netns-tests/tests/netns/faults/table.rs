//! Faults that careless operators and broken networks make in an installation, and the cause to be named first for
//! each.

use netns_tests::underpass::{Peer, list, quote};

use super::case::{Case, Side};

/// One way to break an installation.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// The check or cause that has to be named first, and words of what is found.
    pub(super) cause: (&'static str, &'static str),
    /// The command that is asked.
    pub(super) command: Command,
    /// The side that is asked.
    pub(super) side: Side,
    /// The fault, made before the daemons start.
    pub(super) before: fn(&mut Case<'_>),
    /// The fault, made once the link is up. Without, it need not come up.
    pub(super) after: Option<fn(&mut Case<'_>)>,
    /// The state of the asked side's link in which it is asked, or [`HEARD`].
    pub(super) settles: &'static str,
}

/// In place of a state: once the other side has been heard of.
pub(super) const HEARD: &str = "heard";

/// The command that finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Verify,
    Doctor,
}

impl Row {
    const fn new(name: &'static str, cause: (&'static str, &'static str)) -> Row {
        let command = Command::Verify;
        Row { name, cause, command, side: Side::Proxy, before: |_| {}, after: None, settles: "up" }
    }

    /// For what has to do with the link alone.
    const fn doctor(name: &'static str, cause: (&'static str, &'static str)) -> Row {
        Row { command: Command::Doctor, ..Row::new(name, cause) }
    }

    const fn before(self, before: fn(&mut Case<'_>)) -> Row {
        Row { before, ..self }
    }

    const fn after(self, after: fn(&mut Case<'_>)) -> Row {
        Row { after: Some(after), ..self }
    }

    const fn settles(self, settles: &'static str) -> Row {
        Row { settles, ..self }
    }

    const fn at_backend(self) -> Row {
        Row { side: Side::Backend, ..self }
    }
}

fn endpoint(case: &mut Case<'_>, endpoint: &str) {
    case.proxy.peer = case.proxy.peer.clone().endpoint(endpoint);
}

/// The file is edited, and the daemon knows nothing of it.
fn edit(case: &mut Case<'_>, edit: impl FnOnce(Peer) -> Peer) {
    case.file = Some(case.proxy.interface.clone().peer(edit(case.proxy.peer.clone())));
}

fn listens(case: &mut Case<'_>, app: &[(&str, u16)]) {
    case.app = app.iter().map(|(address, port)| ((*address).to_owned(), *port)).collect();
}

/// The network between carries packets of 1,300 bytes and does not say so.
fn narrow(case: &mut Case<'_>) {
    case.bench.network.ip("link set to-backend mtu 1300");
    case.undo_by(&case.bench.network, "ip link set to-backend mtu 1500");
    case.nft(&case.bench.network, "output", "icmp type destination-unreachable drop");
}

pub(super) const ROWS: &[Row] = &[
    // The daemon and its file.
    Row::new("no daemon runs here", ("daemon", "no daemon is running"))
        .after(|case| case.stop(Side::Proxy))
        .settles(""),
    Row::new("the daemon here was killed", ("daemon", "dead")).after(|case| case.kill(Side::Proxy)).settles(""),
    Row::new("the file of another control socket", ("daemon", "no daemon is running")).after(|case| {
        let other = case.proxy.config().set("control_socket", quote("/run/underpass/other.sock"));
        case.file = Some(other);
    }),
    Row::new("the private key was exchanged, no reload", ("configuration", "its private key"))
        .after(|case| case.file = Some(case.proxy.config().private_key(&case.bench.strangers))),
    Row::new("a peer was added, no reload", ("configuration", "peer another")).after(|case| {
        let another = Peer::new("another", &case.bench.strangers.public, ["10.77.0.12"]);
        case.file = Some(case.proxy.config().peer(another));
    }),
    Row::new("the peer's key was exchanged, no reload", ("configuration", "peer backend")).after(|case| {
        let key = quote(&case.bench.strangers.public);
        edit(case, |peer| peer.set("public_key", key));
    }),
    Row::new("allowed_ips were changed, no reload", ("configuration", "peer backend"))
        .after(|case| edit(case, |peer| peer.allowed_ips(["10.30.0.0/24"]))),
    Row::new("the tunnel's address was changed, no reload", ("configuration", "interface.addresses")).after(|case| {
        let addresses = list(["10.77.0.2/24", "fd77::1/64"]);
        case.file = Some(case.proxy.config().set("addresses", addresses));
    }),
    Row::new("the MTU was changed, no restart", ("configuration", "interface.mtu"))
        .after(|case| case.file = Some(case.proxy.config().set("mtu", "1400"))),
    // The way to the other side.
    Row::new("the endpoint was changed, no reload", ("endpoint", "another configuration than this file"))
        .after(|case| edit(case, |peer| peer.endpoint("10.1.1.77:51900"))),
    Row::new("a wrong endpoint, and the other side connects", ("endpoint", "10.1.1.2:51900 is in use")).before(
        |case| {
            endpoint(case, "10.1.1.77:51900");
            case.backend.peer = case.backend.peer.clone().endpoint("10.1.0.2:51900").persistent_keepalive(1);
        },
    ),
    Row::new("a wrong port, and the other side connects", ("endpoint", "10.1.1.2:51900 is in use")).before(|case| {
        endpoint(case, "10.1.1.2:51999");
        case.backend.peer = case.backend.peer.clone().endpoint("10.1.0.2:51900").persistent_keepalive(1);
    }),
    Row::new("the endpoint is routed into the tunnel", ("endpoint", "a routing loop"))
        .after(|case| case.ip(&case.bench.proxy, "route add 10.1.1.2/32 dev underpass0"))
        .settles("down"),
    Row::new("the default route is missing", ("endpoint", "no route leads"))
        .after(|case| case.ip(&case.bench.proxy, "route del default via 10.1.0.1"))
        .settles("down"),
    Row::new("a route refuses the endpoint", ("endpoint", "a route refuses datagrams"))
        .after(|case| case.ip(&case.bench.proxy, "route add unreachable 10.1.1.2/32"))
        .settles("down"),
    Row::new("the endpoint is an address of this machine", ("endpoint", "this machine itself"))
        .after(|case| case.ip(&case.bench.proxy, "address add 10.1.1.2/32 dev lo"))
        .settles("down"),
    Row::new("a strict reverse-path filter that does not heed marks", ("endpoint", "the reverse-path filter of wan"))
        .before(|case| {
            let proxy = &case.bench.proxy;
            case.ip(proxy, "route add default via 10.1.0.1 table 100");
            case.ip(proxy, "rule add fwmark 7 table 100 priority 100");
            case.sysctl(proxy, "ipv4/conf/wan/rp_filter", "1", "0");
            case.proxy.interface = case.proxy.interface.clone().set("fwmark", "7");
            case.proxy.peer = case.proxy.peer.clone().allowed_ips(["10.1.1.2/32"]);
        })
        .settles("down"),
    Row::new("the endpoint's name does not exist", ("endpoint", "no address is found for nowhere.invalid"))
        .before(|case| endpoint(case, "nowhere.invalid:51900"))
        .settles("down"),
    Row::new("the endpoint is of an IP version that has no route", ("endpoint", "no route leads"))
        .before(|case| {
            case.ip(&case.bench.proxy, "-6 route del default via fd01::1");
            endpoint(case, "[fd02::2]:51900");
        })
        .settles("down"),
    // The link.
    Row::new("the other side was stopped", ("link", "goodbye")).after(|case| case.stop(Side::Backend)).settles("down"),
    Row::new("the other side was killed", ("link", "unanswered"))
        .after(|case| case.kill(Side::Backend))
        .settles("down"),
    Row::new("the other side was never started", ("link", "no-handshake"))
        .before(|case| case.runs.1 = false)
        .settles("down"),
    Row::new("nobody has an endpoint", ("link", "no-handshake"))
        .before(|case| {
            let key = case.bench.backend_keys.public.clone();
            case.proxy.peer = Peer::new("backend", &key, ["10.77.0.11", "fd77::11"]);
        })
        .settles("down"),
    Row::new("the link is drained and forgotten", ("link", "draining"))
        .after(|case| assert_eq!(case.daemon(Side::Proxy).ask(&["drain", "backend"]).code(), 0))
        .settles("draining"),
    Row::new("the network loses 30 % each way", ("link", "loss"))
        .after(|case| case.nft(&case.bench.network, "forward", "numgen random mod 100 < 30 drop"))
        .settles("degraded"),
    Row::new("the network is cut", ("link", "unanswered"))
        .after(|case| case.nft(&case.bench.network, "forward", "drop"))
        .settles("down"),
    Row::new("the network is narrower than the tunnel and silent", ("path_mtu", "only packets of up to"))
        .before(narrow)
        .settles("degraded"),
    // Routes into the tunnel.
    Row::new("a more specific route", ("route", "10.77.0.11 leads to wan"))
        .after(|case| case.ip(&case.bench.proxy, "route add 10.77.0.11/32 via 10.1.0.1"))
        .settles(""),
    Row::new("a more specific route, IPv6", ("route", "fd77::11 leads to wan"))
        .after(|case| case.ip(&case.bench.proxy, "-6 route add fd77::11/128 via fd01::1"))
        .settles(""),
    Row::new("a rule that consults another table", ("route", "10.77.0.11 leads to wan"))
        .after(|case| {
            case.ip(&case.bench.proxy, "route add default via 10.1.0.1 table 100");
            case.ip(&case.bench.proxy, "rule add to 10.77.0.11 lookup 100 priority 100");
        })
        .settles(""),
    Row::new("a rule that prohibits", ("route", "10.77.0.11 is refused"))
        .after(|case| case.ip(&case.bench.proxy, "rule add to 10.77.0.11 prohibit priority 100"))
        .settles(""),
    Row::new("a blackhole route", ("route", "10.77.0.11 is refused"))
        .after(|case| case.ip(&case.bench.proxy, "route add blackhole 10.77.0.11/32"))
        .settles(""),
    Row::new("the peer's address was given to this machine", ("route", "10.77.0.11 is an address of this machine"))
        .after(|case| case.ip(&case.bench.proxy, "address add 10.77.0.11/32 dev lo"))
        .settles(""),
    Row::new("a route of a smaller metric to the network behind", ("route", "fd30::/64 leads to wan"))
        .before(|case| case.proxy.peer = case.proxy.peer.clone().allowed_ips(["10.30.0.0/24", "fd30::/64"]))
        .after(|case| case.ip(&case.bench.proxy, "-6 route add fd30::/64 via fd01::1 metric 1"))
        .settles(""),
    Row::new("answers are routed around the tunnel", ("route", "10.77.0.1 leads to wan"))
        .after(|case| case.ip(&case.bench.backend, "route add 10.77.0.1/32 via 10.1.1.1"))
        .at_backend()
        .settles(""),
    // The app.
    Row::new("the app is not started", ("port", "10.77.0.11:8080")).before(|case| listens(case, &[])),
    Row::new("the app listens on another port", ("port", "10.77.0.11:8080"))
        .before(|case| listens(case, &[("10.77.0.11", 8081), ("fd77::11", 8081)])),
    Row::new("the app listens at its old address", ("port", "10.77.0.11:8080"))
        .before(|case| listens(case, &[("10.1.1.2", 8080)])),
    Row::new("the app listens at 127.0.0.1", ("port", "10.77.0.11:8080"))
        .before(|case| listens(case, &[("127.0.0.1", 8080)])),
    Row::new("the app listens everywhere", ("plaintext", "10.1.1.2:8080 answers in the clear"))
        .before(|case| listens(case, &[("::", 8080)])),
    Row::new(
        "the app listens in the tunnel and at its old address",
        ("plaintext", "10.1.1.2:8080 answers in the clear"),
    )
    .before(|case| listens(case, &[("10.77.0.11", 8080), ("fd77::11", 8080), ("10.1.1.2", 8080)])),
    Row::new("nothing is exposed", ("port", "10.77.0.11:8080"))
        .before(|case| case.backend.interface = case.backend.interface.clone().set("expose", list([]))),
    Row::new("another port is exposed", ("port", "10.77.0.11:8080"))
        .before(|case| case.backend.interface = case.backend.interface.clone().set("expose", list(["tcp/80"]))),
    Row::new("the other side's firewall drops what comes out of the tunnel", ("port", "10.77.0.11:8080"))
        .after(|case| case.nft(&case.bench.backend, "input", "iifname underpass0 tcp dport 8080 drop")),
    Row::new("this side's firewall drops what goes into the tunnel", ("port", "10.77.0.11:8080"))
        .after(|case| case.nft(&case.bench.proxy, "output", "oifname underpass0 tcp dport 8080 drop")),
    Row::new("the other side has another address for this one", ("port", "10.77.0.11:8080")).before(|case| {
        let key = case.bench.proxy_keys.public.clone();
        case.backend.peer = Peer::new("proxy", &key, ["10.77.0.2", "fd77::2"]);
    }),
    Row::new("the gateway does not forward", ("port", "10.30.0.5:8080")).before(|case| {
        case.proxy.peer = case.proxy.peer.clone().allowed_ips(["10.30.0.0/24"]);
        case.sysctl(&case.bench.backend, "ipv4/conf/all/forwarding", "0", "1");
        listens(case, &[("10.30.0.5", 8080)]);
        case.port = "10.30.0.5:8080".to_owned();
    }),
    Row::new("the app behind the gateway is not started", ("port", "10.30.0.5:8080 refuses")).before(|case| {
        case.proxy.peer = case.proxy.peer.clone().allowed_ips(["10.30.0.0/24"]);
        listens(case, &[]);
        case.port = "10.30.0.5:8080".to_owned();
    }),
    // What only shows by what comes in, or by what the network says.
    Row::doctor("drained", ("drained", "drain"))
        .after(|case| assert_eq!(case.daemon(Side::Proxy).ask(&["drain", "backend"]).code(), 0))
        .settles("draining"),
    Row::doctor("the peer's daemon was stopped", ("peer_stopped", "was stopped"))
        .after(|case| case.stop(Side::Backend))
        .settles("down"),
    Row::doctor("the peer's daemon was killed", ("port_unreachable", "nothing listens at 10.1.1.2:51900"))
        .after(|case| case.kill(Side::Backend))
        .settles("down"),
    Row::doctor("a wrong port", ("port_unreachable", "nothing listens at 10.1.1.2:51999"))
        .before(|case| endpoint(case, "10.1.1.2:51999"))
        .settles("down"),
    Row::doctor("a firewall there rejects", ("rejected", "a firewall rejects datagrams to 10.1.1.2:51900"))
        .before(|case| case.nft(&case.bench.backend, "input", "udp dport 51900 reject with icmp admin-prohibited"))
        .settles("down"),
    Row::doctor("a router has no route to the endpoint", ("host_unreachable", "10.9.9.9:51900 can't be reached"))
        .before(|case| endpoint(case, "10.9.9.9:51900"))
        .settles("down"),
    Row::doctor("a firewall there drops", ("silence", "nothing came back from 10.1.1.2:51900"))
        .before(|case| case.nft(&case.bench.backend, "input", "udp dport 51900 drop"))
        .settles("down"),
    Row::doctor("the network was cut", ("fell_silent", "fell silent"))
        .after(|case| case.nft(&case.bench.network, "forward", "drop"))
        .settles("down"),
    Row::doctor("the proxy side has another key for the backend", ("wrong_key_for_this_machine", "another public key"))
        .before(|case| case.proxy.peer = case.proxy.peer.clone().set("public_key", quote(&case.bench.strangers.public)))
        .settles(HEARD)
        .at_backend(),
    Row::doctor("the backend has another key for the proxy side", ("unknown_key", "which no peer here has"))
        .before(|case| {
            case.backend.peer = case.backend.peer.clone().set("public_key", quote(&case.bench.strangers.public));
        })
        .settles(HEARD)
        .at_backend(),
    Row::doctor("the proxy side's private key was exchanged", ("unknown_key", "which no peer here has"))
        .before(|case| case.proxy.interface = case.proxy.interface.clone().private_key(&case.bench.strangers))
        .settles(HEARD)
        .at_backend(),
    Row::doctor("a preshared key at one side only", ("preshared_key", "preshared"))
        .before(|case| case.proxy.peer = case.proxy.peer.clone().preshared_key(&case.bench.strangers.private))
        .settles("down"),
    Row::doctor("preshared keys that differ", ("preshared_key", "preshared"))
        .before(|case| {
            case.proxy.peer = case.proxy.peer.clone().preshared_key(&case.bench.strangers.private);
            case.backend.peer = case.backend.peer.clone().preshared_key(&case.bench.backend_keys.private);
        })
        .settles("down"),
    Row::doctor("answers are dropped on the way back", ("answer_not_taken", "does not take the answer"))
        .before(|case| case.nft(&case.bench.network, "forward", "udp sport 51900 iifname to-backend drop"))
        .settles(HEARD)
        .at_backend(),
    Row::doctor("nobody connects", ("not_called", "has to call"))
        .before(|case| case.runs.0 = false)
        .settles("idle")
        .at_backend(),
    Row::doctor("datagrams are routed into the tunnel", ("endpoint_in_tunnel", "leads into underpass0"))
        .after(|case| case.ip(&case.bench.proxy, "route add 10.1.1.2/32 dev underpass0"))
        .settles("down"),
    Row::doctor("no default route", ("no_route", "no route to the endpoint"))
        .after(|case| case.ip(&case.bench.proxy, "route del default via 10.1.0.1"))
        .settles("down"),
    Row::doctor("an endpoint that is here", ("endpoint_is_itself", "is an address of this machine"))
        .after(|case| case.ip(&case.bench.proxy, "address add 10.1.1.2/32 dev lo"))
        .settles("down"),
    Row::doctor("an endpoint without an address", ("name_not_resolved", "nowhere.invalid"))
        .before(|case| endpoint(case, "nowhere.invalid:51900"))
        .settles("down"),
    Row::doctor("loss", ("loss", "of the pings are lost"))
        .after(|case| case.nft(&case.bench.network, "forward", "numgen random mod 100 < 30 drop"))
        .settles("degraded"),
    Row::doctor("a narrow path", ("path_mtu", "carries packets of")).before(narrow).settles("degraded"),
    Row::doctor("no daemon here", ("daemon_not_running", "")).after(|case| case.stop(Side::Proxy)).settles(""),
    Row::doctor("the app does not listen", ("nothing_listens", "port 8080"))
        .before(|case| {
            case.backend.interface = case.backend.interface.clone().set("expose", list(["tcp/8080"]));
            listens(case, &[]);
        })
        .at_backend(),
];
