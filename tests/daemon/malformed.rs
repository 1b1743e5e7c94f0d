//! Every way to get a configuration wrong that we could think of: each is refused with its file, line, key, what is wrong
//! and what would be right, and exit code 3.

use crate::support::{Outcome, Site, a_public_key, answer};

/// A configuration with every kind of value in it, which is valid as it stands.
const VALID: [&str; 28] = [
    "role = \"proxy\"",                                    // 1
    "[interface]",                                         // 2
    "name = \"underpass0\"",                               // 3
    "addresses = [\"10.77.0.1/24\"]",                      // 4
    "listen = 51900",                                      // 5
    "private_key_file = \"private.key\"",                  // 6
    "mtu = 1420",                                          // 7
    "fwmark = 0",                                          // 8
    "device = \"auto\"",                                   // 9
    "workers = 1",                                         // 10
    "suite = \"auto\"",                                    // 11
    "control_socket = \"/run/underpass/underpass0.sock\"", // 12
    "[[backend]]",                                         // 13
    "name = \"app1\"",                                     // 14
    "public_key = \"APP1\"",                               // 15
    "endpoint = \"192.0.2.10:51900\"",                     // 16
    "addresses = [\"10.77.0.11\"]",                        // 17
    "allowed_ips = [\"192.168.7.0/24\"]",                  // 18
    "persistent_keepalive = 25",                           // 19
    "suite = \"auto\"",                                    // 20
    "[[backend]]",                                         // 21
    "name = \"app2\"",                                     // 22
    "public_key = \"APP2\"",                               // 23
    "addresses = [\"10.77.0.12\"]",                        // 24
    "[health]",                                            // 25
    "agent_check = \"127.0.0.1:51901\"",                   // 26
    "http = [\"127.0.0.1:51902\"]",                        // 27
    "degraded_weight = 50",                                // 28
];

/// One line made wrong: its number, what stands there instead, and what the message must contain: the key, what is wrong,
/// and the remedy.
type Row = (usize, &'static str, &'static str, &'static str, &'static str);

const REPLACED: &[Row] = &[
    // Syntax and shape.
    (7, "mtu = ", "interface.mtu", "", "strings stand in \"quotes\""),
    (14, "name = app1", "backend.name", "quoted", "strings stand in \"quotes\""),
    (28, "degraded_weight = [50", "health.degraded_weight", "unclosed array", "lists in [brackets]"),
    (8, "mtu = 1400", "interface.mtu", "duplicate key", "every key has one line"),
    (2, "[interface", "", "", "every key has one line"),
    (3, "name = \"under\u{7}pass0\"", "interface.name", "", "strings stand in \"quotes\""),
    // Keys that do not exist.
    (7, "mtuu = 1420", "interface.mtuu", "no key \"mtuu\" in [interface]", "did you mean `mtu`?"),
    (5, "ListenPort = 51900", "interface.ListenPort", "no key", "did you mean `listen`?"),
    (18, "AllowedIPs = [\"192.168.7.0/24\"]", "backend.AllowedIPs", "no key", "did you mean `allowed_ips`?"),
    (19, "keepalive = 25", "backend.keepalive", "no key", "did you mean `persistent_keepalive`?"),
    (7, "colour = 3", "interface.colour", "no key", "the keys here are name, addresses, listen"),
    (8, "private_key = \"x\"", "interface.private_key", "no key", "keys are never in this file"),
    (8, "endpoint = \"192.0.2.1\"", "interface.endpoint", "no key", "`endpoint` belongs in [[backend]]"),
    (18, "mtu = 1400", "backend.mtu", "no key", "`mtu` belongs in [interface]"),
    (18, "role = \"proxy\"", "backend.role", "no key", "at the top of the file"),
    (
        13,
        "[peer]\n[[backend]]",
        "peer",
        "no key \"peer\" at the top",
        "the keys here are role, interface, health, backend, proxy",
    ),
    // Values of the wrong type.
    (
        7,
        "mtu = \"1420\"",
        "interface.mtu",
        "\"1420\" is no MTU",
        "write \"auto\", or a number of bytes from 576 to 65475",
    ),
    (7, "mtu = 1420.5", "interface.mtu", "a decimal point", "write it as `mtu = \"auto\"`"),
    (
        4,
        "addresses = \"10.77.0.1/24\"",
        "interface.addresses",
        "a string, not a list",
        "`addresses = [\"10.77.0.1/24\"]`",
    ),
    (
        17,
        "addresses = [\"10.77.0.11\", 7]",
        "\"app1\".addresses",
        "a number, not a string",
        "`addresses = [\"10.77.0.11\"]`",
    ),
    (5, "listen = true", "interface.listen", "true or false", "write it as `listen = 51900`"),
    (16, "endpoint = 51900", "\"app1\".endpoint", "a number, not a string", "`endpoint = \"192.0.2.10:51900\"`"),
    (1, "role = 1", "role", "a number, not a string", "role = \"proxy\"` beside the load balancer"),
    (19, "persistent_keepalive = 1979-05-27", "\"app1\".persistent_keepalive", "a table or a date", "write it as"),
    // Role and tables.
    (1, "role = \"client\"", "role", "\"client\" is not known", "`role = \"backend\"` beside an app server"),
    (1, "", "role", "missing", "write `role = \"proxy\"`"),
    (13, "[[proxy]]", "proxy", "its peers are [[backend]] tables", "write [[backend]]"),
    (2, "[[interface]]", "interface", "only one interface", "write [interface] with single brackets"),
    // Interface.
    (3, "name = \"a-very-long-name\"", "interface.name", "16 bytes, the kernel takes 15", "1 to 15 letters"),
    (3, "name = \"up/0\"", "interface.name", "cannot name an interface", "1 to 15 letters"),
    (3, "name = \"\"", "interface.name", "cannot name an interface", "1 to 15 letters"),
    (3, "name = \"up\\n0\"", "interface.name", "\"up\\n0\" cannot name", "1 to 15 letters"),
    (3, "name = \"..\"", "interface.name", "cannot name an interface", "such as \"underpass0\""),
    (4, "addresses = []", "interface.addresses", "the list is empty", "this machine's tunnel address"),
    (4, "addresses = [\"10.77.0.1\"]", "interface.addresses", "no prefix length", "write \"10.77.0.1/24\""),
    (4, "addresses = [\"10.77.0.300/24\"]", "interface.addresses", "not an address with a prefix", "\"10.77.0.1/24\""),
    (4, "addresses = [\"10.77.0.1/33\"]", "interface.addresses", "not an address with a prefix", "\"10.77.0.1/24\""),
    (4, "addresses = [\"10.77.0.0/24\"]", "interface.addresses", "the whole network", "\"10.77.0.1/24\""),
    (4, "addresses = [\"127.0.0.1/8\"]", "interface.addresses", "loopback", "an address of your own"),
    (4, "addresses = [\"10.7.0.1/24\", \"10.7.0.1/16\"]", "interface.addresses", "stands here twice", "delete one"),
    (5, "listen = 0", "interface.listen", "0 is too small", "a number from 1 to 65535"),
    (5, "listen = 65536", "interface.listen", "65536 is too large", "a number from 1 to 65535"),
    (5, "listen = []", "interface.listen", "the list is empty", "leave the key out"),
    (5, "listen = [\"0.0.0.0\"]", "interface.listen", "not an IP address with a port", "\"0.0.0.0:51900\""),
    (5, "listen = [\"[::]:0\"]", "interface.listen", "port 0", "\"[::]:51900\""),
    (5, "listen = [\"[::]:1\", \"[::]:1\"]", "interface.listen", "stands here twice", "delete one"),
    (5, "listen = [\"lb1:51900\"]", "interface.listen", "not an IP address with a port", "\"0.0.0.0:51900\""),
    (7, "mtu = 575", "interface.mtu", "575 is too small: IPv4 needs 576", "a number from 576 to 65475"),
    (7, "mtu = 65476", "interface.mtu", "65476 is too large", "a number from 576 to 65475"),
    (8, "fwmark = -1", "interface.fwmark", "-1 is too small", "a number from 0 to 4294967295"),
    (8, "fwmark = 4294967296", "interface.fwmark", "4294967296 is too large", "a number from 0 to 4294967295"),
    (8, "dscp = 64", "interface.dscp", "64 is too large: a DSCP has 6 bits", "a number from 0 to 63"),
    (8, "dscp = \"af44\"", "interface.dscp", "\"af44\" is no DSCP", "\"ef\", \"af41\" or \"cs6\""),
    (8, "dscp = true", "interface.dscp", "not a number, or a word in quotes", "`dscp = \"zero\"`"),
    (9, "device = \"fast\"", "interface.device", "\"fast\" is not known", "\"auto\", \"offload\", \"plain\""),
    (10, "workers = 0", "interface.workers", "0 is too small", "a number from 1 to 64"),
    (10, "workers = 65", "interface.workers", "65 is too large", "a number from 1 to 64"),
    (11, "suite = \"aes\"", "interface.suite", "\"aes\" is not known", "\"aes-256-gcm\", \"chacha20-poly1305\""),
    (12, "control_socket = \"\"", "interface.control_socket", "cannot name a socket", "a short absolute path"),
    (12, "drain_timeout = -1", "interface.drain_timeout", "-1 is too small", "a number from 0 to 86400"),
    (12, "drain_timeout = 86401", "interface.drain_timeout", "86401 is too large", "a number from 0 to 86400"),
    (12, "sandbox = 1", "interface.sandbox", "a number, not true, false or a word in quotes", "`sandbox = true`"),
    (12, "sandbox = \"on\"", "interface.sandbox", "\"on\" is not a kind of sandbox", "\"required\""),
    (
        12,
        "open = [\"10.1.0.1/16\"]",
        "interface.open",
        "has bits set beyond its prefix length",
        "\"10.1.0.0/16\" for the network",
    ),
    (12, "open = true", "interface.open", "true or false, not a list of strings", "`open = [\"10.1.0.0/16\"]`"),
    (12, "fail_closed = 1", "interface.fail_closed", "a number, not true or false", "`fail_closed = true`"),
    (12, "drain_timeout = \"30s\"", "interface.drain_timeout", "a string, not a whole number", "`drain_timeout = 30`"),
    // Peers.
    (14, "name = \"app 1\"", "backend 1.name", "\"app 1\" cannot name a peer", "1 to 63 letters"),
    (22, "name = \"app1\"", "backend \"app1\".name", "taken by the table of line 14", "a name of its own"),
    (15, "public_key = \"short\"", "\"app1\".public_key", "this has 5", "underpass pubkey` prints on the other"),
    (15, "public_key = \"!APP1\"", "\"app1\".public_key", "this has 45", "underpass pubkey"),
    (
        15,
        "public_key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"",
        "\"app1\".public_key",
        "low-order",
        "underpass pubkey",
    ),
    (15, "public_key = \"OWN\"", "\"app1\".public_key", "this machine's own key", "write the other machine's"),
    (
        23,
        "public_key = \"APP1\"",
        "\"app2\".public_key",
        "backend \"app1\" has the same key, line 15",
        "a key of its own",
    ),
    (18, "next_public_key = \"APP1\"", "\"app1\".next_public_key", "same key as public_key", "delete this line"),
    (18, "next_public_key = \"OWN\"", "\"app1\".next_public_key", "this machine's own key", "the other machine's"),
    (
        16,
        "endpoint = \"192.0.2.300:51900\"",
        "\"app1\".endpoint",
        "not an address or a DNS name",
        "\"192.0.2.10:51900\"",
    ),
    (16, "endpoint = \"192.0.2.1:0\"", "\"app1\".endpoint", "port 0", "\"192.0.2.10:51900\""),
    (16, "endpoint = \"192.0.2.1:99999\"", "\"app1\".endpoint", "not an address or name", "\"192.0.2.10:51900\""),
    (16, "endpoint = \"2001:db8::1\"", "\"app1\".endpoint", "the port begins", "write \"[2001:db8::1]:51900\""),
    (16, "endpoint = \"http://app1\"", "\"app1\".endpoint", "not an address or name", "\"app1.example.com:51900\""),
    (16, "endpoint = \"0.0.0.0:51900\"", "\"app1\".endpoint", "the address that means none", "\"192.0.2.10:51900\""),
    (16, "endpoint = \"10.77.0.11:51900\"", "\"app1\".endpoint", "inside the tunnel", "the untrusted network knows"),
    (16, "endpoint = \"192.168.7.5\"", "\"app1\".endpoint", "lies in 192.168.7.0/24", "or set interface.fwmark"),
    (16, "endpoint = \"10.77.0.99\"", "\"app1\".endpoint", "lies in 10.77.0.0/24", "take 10.77.0.0/24 out"),
    (17, "addresses = [\"10.77.0.255\"]", "\"app1\".addresses", "the whole tunnel network", "the other machine's"),
    (18, "allowed_ips = [\"127.0.0.1/32\"]", "\"app1\".allowed_ips", "loopback", "write a network"),
    (18, "allowed_ips = [\"255.255.255.255/32\"]", "\"app1\".allowed_ips", "broadcast", "write a network"),
    (18, "allowed_ips = [\"10.77.0.1/32\"]", "\"app1\".allowed_ips", "own tunnel address", "the other machine's"),
    (11, "suite = \"aes-256-gcm\"\nsuites = [\"chacha20-poly1305\"]", "interface.suite", "not among", "\"auto\""),
    (11, "suites = [\"aes256\"]", "interface.suites", "not known", "\"aes-256-gcm\", \"chacha20-poly1305\""),
    (11, "suites = []", "interface.suites", "the list is empty", "leave the key out"),
    (11, "expose = [\"tcp/fd30::/64:80\"]", "interface.expose", "without brackets", "\"tcp/[fd30::]/64:80\""),
    (11, "expose = [\"tcp/10.30.0.7/24:80\"]", "interface.expose", "bits set beyond", "10.30.0.0/24 for the network"),
    (11, "expose = [\"tpc/80\"]", "interface.expose", "no port of a protocol", "did you mean \"tcp/80\"?"),
    (17, "addresses = [\"10.77.0.11/24\"]", "\"app1\".addresses", "is a network", "write \"10.77.0.11\" here"),
    (17, "addresses = [\"app1\"]", "\"app1\".addresses", "not an IP address", "such as \"10.77.0.11\""),
    (
        17,
        "addresses = [\"10.77.0.1\"]",
        "\"app1\".addresses",
        "own tunnel address",
        "the other machine's tunnel address",
    ),
    (
        17,
        "addresses = [\"::ffff:10.0.0.1\"]",
        "\"app1\".addresses",
        "IPv4 address in IPv6's clothing",
        "an address of your own",
    ),
    (
        24,
        "addresses = [\"10.77.0.11\"]",
        "\"app2\".addresses",
        "\"app1\" has 10.77.0.11/32 too, line 17",
        "one of the two",
    ),
    (24, "addresses = []", "\"app2\".addresses", "no tunnel address", "`addresses = [\"10.77.0.11\"]`"),
    (
        24,
        "allowed_ips = [\"192.168.7.0/24\"]",
        "\"app2\".allowed_ips",
        "\"app1\" has 192.168.7.0/24 too, line 18",
        "a longer prefix inside it",
    ),
    (18, "allowed_ips = [\"192.168.7.1/24\"]", "\"app1\".allowed_ips", "bits set beyond", "write \"192.168.7.0/24\""),
    (18, "allowed_ips = [\"224.0.0.0/4\"]", "\"app1\".allowed_ips", "multicast", "write a network"),
    (18, "allowed_ips = [\"all\"]", "\"app1\".allowed_ips", "\"all\" is not a network", "\"192.168.7.0/24\""),
    (19, "persistent_keepalive = 65536", "\"app1\".persistent_keepalive", "too large", "a number from 0 to 65535"),
    (19, "persistent_keepalive = -1", "\"app1\".persistent_keepalive", "too small", "a number from 0 to 65535"),
    (20, "suite = \"aes-128\"", "\"app1\".suite", "\"aes-128\" is not known", "write one of"),
    // Health.
    (25, "[[health]]", "health", "only one health", "write [health] with single brackets"),
    (26, "agent = \"127.0.0.1:51901\"", "health.agent", "no key \"agent\" in [health]", "did you mean `agent_check`?"),
    (
        26,
        "agent_check = 51901",
        "health.agent_check",
        "a number, not an address",
        "`agent_check = \"127.0.0.1:51901\"`",
    ),
    (26, "agent_check = []", "health.agent_check", "the list is empty", "write agent_check = \"off\""),
    (26, "agent_check = [\"off\"]", "health.agent_check", "not an IP address with a port", "or \"off\" alone"),
    (26, "agent_check = \"localhost:51901\"", "health.agent_check", "not an IP address", "\"127.0.0.1:51901\""),
    (26, "agent_check = \"127.0.0.1:0\"", "health.agent_check", "port 0", "\"[::1]:51901\""),
    (26, "agent_check = \"224.0.0.1:1\"", "health.agent_check", "multicast", "an address of this machine"),
    (26, "agent_check = [\"[::1]:1\", \"[::1]:1\"]", "health.agent_check", "stands here twice", "delete one"),
    (27, "http = [\"127.0.0.1:51901\"]", "health.http", "agent_check has 127.0.0.1:51901 too", "a port of its own"),
    (27, "http = true", "health.http", "true or false, not an address", "`http = \"127.0.0.1:51902\"`"),
    (28, "degraded_weight = 0", "health.degraded_weight", "0 is too small", "a number from 1 to 100"),
    (28, "degraded_weight = 101", "health.degraded_weight", "101 is too large", "a number from 1 to 100"),
];

/// A line taken out: its number, where the message points (the table's header), the key, what, and the remedy.
const REMOVED: &[(usize, usize, &str, &str, &str)] = &[
    (4, 2, "interface.addresses", "missing and has no default", "write it as `addresses = [\"10.77.0.1/24\"]`"),
    (
        6,
        2,
        "interface.private_key_file",
        "missing and has no default",
        "write it as `private_key_file = \"private.key\"`",
    ),
    (14, 13, "backend 1.name", "missing and has no default", "write it as `name = \"app1\"`"),
    (15, 13, "backend \"app1\".public_key", "missing and has no default", "the line that `underpass pubkey` prints"),
    (24, 21, "backend \"app2\".addresses", "no tunnel address", "write it as `addresses = [\"10.77.0.11\"]`"),
];

/// A site, and the keys that stand for APP1, APP2 and OWN in the table.
struct Bench {
    site: Site,
    keys: [(&'static str, String); 3],
}

impl Bench {
    fn new() -> Self {
        let site = Site::new();
        let own = answer(&["pubkey", &site.text("private.key")]);
        Self { site, keys: [("APP1", a_public_key()), ("APP2", a_public_key()), ("OWN", own)] }
    }

    fn check(&self, lines: &[&str]) -> Outcome {
        let mut text = lines.join("\n");
        for (word, key) in &self.keys {
            text = text.replace(word, key);
        }
        self.site.check(text)
    }

    /// `None` if the refusal of `lines` is one problem, at `line`, that names all of `parts`.
    fn complaint(&self, lines: &[&str], line: usize, parts: [&str; 3]) -> Option<String> {
        let outcome = self.check(lines);
        let file = self.site.text("underpass.toml");
        let begins = format!("error: {file} is refused:\n  {file}:{line}:");
        let (problem, help) = outcome.stderr.split_once("\n      help: ").unwrap_or_default();
        let [key, what, remedy] = parts;
        let right = (outcome.code, outcome.stdout.as_str()) == (3, "")
            && problem.starts_with(&begins)
            && problem.contains(key)
            && problem.contains(what)
            && help.contains(remedy)
            && self.keys.iter().all(|(_, key)| !outcome.stderr.contains(key));
        (!right).then(|| format!("expected line {line}, {parts:?}, got {} and\n{}", outcome.code, outcome.stderr))
    }

    fn assert_refused(&self, lines: &[&str], line: usize, parts: [&str; 3]) {
        let complaint = self.complaint(lines, line, parts);
        assert!(complaint.is_none(), "{}", complaint.unwrap_or_default());
    }
}

#[test]
fn the_file_that_the_table_spoils_is_valid() {
    let outcome = Bench::new().check(&VALID);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:#?}");
}

#[test]
fn each_malformed_file_is_refused_with_line_key_and_remedy() {
    assert!(REPLACED.len() + REMOVED.len() >= 40);
    let bench = Bench::new();
    let complaints = REPLACED.iter().filter_map(|(at, text, key, what, remedy)| {
        let mut lines = VALID;
        lines[at - 1] = text;
        bench.complaint(&lines, *at, [key, what, remedy])
    });
    let complaints: Vec<_> = complaints.collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn each_missing_key_is_refused_where_its_table_begins() {
    let bench = Bench::new();
    for (at, line, key, what, remedy) in REMOVED {
        let mut lines = VALID;
        lines[at - 1] = "";
        bench.assert_refused(&lines, *line, [key, what, remedy]);
    }
}

#[test]
fn a_file_without_peers_or_interface_says_which_table_to_add() {
    let bench = Bench::new();
    bench.assert_refused(
        &VALID[..12],
        1,
        ["backend", "there is no [[backend]] to connect to", "add a [[backend]] table"],
    );
    let without_interface: Vec<&str> =
        VALID.iter().enumerate().filter(|(i, _)| !(1..12).contains(i)).map(|(_, l)| *l).collect();
    bench.assert_refused(&without_interface, 1, ["interface", "this table is missing", "write [interface]"]);
    let mut single = VALID[..20].to_vec();
    single[12] = "[backend]";
    bench.assert_refused(
        &single,
        13,
        ["backend", "single brackets is one table", "write [[backend]] with double brackets"],
    );
}

#[test]
fn several_mistakes_are_reported_at_once_in_order() {
    let mut lines = VALID;
    lines[6] = "mtu = 5";
    lines[8] = "device = \"x\"";
    lines[18] = "persistent_keepalive = \"x\"";
    let outcome = Bench::new().check(&lines);
    assert_eq!(outcome.code, 3);
    let order: Vec<_> = ["3 problems", ":7:", ":9:", ":19:"].iter().map(|part| outcome.stderr.find(part)).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{outcome:#?}");
}

#[test]
fn what_is_no_text_or_too_large_is_refused() {
    let site = Site::new();
    let binary = site.check(b"role = \"proxy\"\n\xff\xfe");
    assert_eq!(binary.code, 3);
    assert!(
        binary.stderr.contains("line 2 is not UTF-8") && binary.stderr.contains("help: save the file as UTF-8"),
        "{binary:?}"
    );
    let large = site.check(vec![b'#'; (16 << 20) + 1]);
    assert_eq!(large.code, 3);
    assert!(large.stderr.contains("larger than 16 MiB"), "{large:?}");
    let empty = site.check("");
    assert_eq!(empty.code, 3);
    assert!(empty.stderr.contains(":1:1: role: this key is missing"), "{empty:?}");
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    let site = Site::new();
    let outcome = crate::support::call(&["check", "--config", &site.text("other.toml")]);
    assert_eq!(outcome.code, 3);
    assert!(outcome.stderr.contains("other.toml: it cannot be read: No such file"), "{outcome:?}");
    let directory = crate::support::call(&["check", "--config", &site.text("")]);
    assert_eq!(directory.code, 3);
}

#[test]
fn a_private_key_pasted_into_the_file_is_not_repeated() {
    let site = Site::new();
    let secret = answer(&["genkey"]);
    for line in [
        format!("private_key_file = \"{secret}\""),
        format!("name = \"{secret}\""),
        format!("suite = \"{secret}\""),
        format!("\"{secret}\" = 1"),
        format!("addresses = [\"{secret}\"]"),
        format!("control_socket = {secret}"),
    ] {
        let outcome = site.check(format!("role = \"proxy\"\n[interface]\n{line}\n"));
        assert_eq!(outcome.code, 3);
        assert!(!outcome.stderr.contains(&secret[..20]), "{outcome:#?}");
    }
}
