//! What two configurations of one daemon differ in, by the names that the operator gave: peers, and keys.
//!
//! Owns which keys can change while the daemon runs and which need a restart. It changes nothing: that is `control`'s.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

use super::{Config, Interface, Peer, Workers};

/// What is different in a new configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Peers that were not there before, in the new file's order.
    pub added: Vec<String>,
    /// Peers that are no longer there, in the old file's order.
    pub removed: Vec<String>,
    /// Peers of which something is different, in the new file's order.
    pub changed: Vec<PeerDiff>,
    /// Other keys that can change while the daemon runs, as `interface.fwmark`.
    pub live: Vec<&'static str>,
    /// Other keys that cannot.
    pub needs_restart: Vec<&'static str>,
}

/// What is different in one peer. It is the same peer as before if it has the same name, or else the same public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerDiff {
    /// Its name in the new file.
    pub name: String,
    /// Its name in the old file.
    pub old_name: String,
    /// Its keys that have another value, as `endpoint`.
    pub keys: Vec<&'static str>,
}

/// When a changed key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Live,
    Restart,
    /// At once as far as the lanes reach that there are, else by a restart.
    WithinLanes,
}

type KeyOf<T> = (&'static str, fn(&T, &T) -> bool);

/// Every key above the peers, and whether it has the same value in both. What one value takes from another by default is a
/// difference of both.
const KEYS: &[(Effect, KeyOf<Config>)] = &[
    (Effect::Restart, ("role", |old, new| old.role == new.role)),
    (Effect::Restart, ("interface.name", |old, new| old.interface.name == new.interface.name)),
    (Effect::Live, ("interface.addresses", |old, new| same_set(&old.interface.addresses, &new.interface.addresses))),
    (Effect::Live, ("interface.listen", |old, new| old.interface.listen == new.interface.listen)),
    (Effect::Live, ("interface.private_key_file", |old, new| own_keys(old)[0] == own_keys(new)[0])),
    (Effect::Live, ("interface.previous_private_key_file", |old, new| own_keys(old)[1] == own_keys(new)[1])),
    (Effect::Restart, ("interface.mtu", |old, new| old.interface.mtu == new.interface.mtu)),
    (Effect::Live, ("interface.fwmark", |old, new| old.interface.fwmark == new.interface.fwmark)),
    (Effect::Live, ("interface.dscp", |old, new| old.interface.dscp == new.interface.dscp)),
    (Effect::Restart, ("interface.device", |old, new| old.interface.device == new.interface.device)),
    (Effect::WithinLanes, ("interface.workers", |old, new| old.interface.workers == new.interface.workers)),
    (Effect::Restart, ("interface.pin_workers", |old, new| old.interface.pin_workers == new.interface.pin_workers)),
    (Effect::Restart, ("interface.busy_poll", |old, new| old.interface.busy_poll == new.interface.busy_poll)),
    (Effect::Live, ("interface.suite", |old, new| old.interface.suite == new.interface.suite)),
    (Effect::Live, ("interface.suites", |old, new| old.interface.suites == new.interface.suites)),
    (Effect::Live, ("interface.expose", |old, new| same_set(&old.interface.expose, &new.interface.expose))),
    (Effect::Live, ("interface.refuse", |old, new| old.interface.refuse == new.interface.refuse)),
    (
        Effect::Restart,
        ("interface.control_socket", |old, new| old.interface.control_socket == new.interface.control_socket),
    ),
    (Effect::Live, ("interface.drain_timeout", |old, new| old.interface.drain_timeout == new.interface.drain_timeout)),
    (Effect::Live, ("interface.fail_closed", |old, new| old.interface.fail_closed == new.interface.fail_closed)),
    (Effect::Live, ("interface.open", |old, new| same_set(&old.interface.open, &new.interface.open))),
    (Effect::Restart, ("interface.sandbox", |old, new| old.interface.sandbox == new.interface.sandbox)),
    (
        Effect::Restart,
        ("interface.drop_capabilities", |old, new| old.interface.drop_capabilities == new.interface.drop_capabilities),
    ),
    (Effect::Restart, ("health.agent_check", |old, new| old.health.agent_check == new.health.agent_check)),
    (Effect::Restart, ("health.http", |old, new| old.health.http == new.health.http)),
    (Effect::Restart, ("health.degraded_weight", |old, new| old.health.degraded_weight == new.health.degraded_weight)),
];

/// Every key of a peer.
const PEER_KEYS: &[KeyOf<Peer>] = &[
    ("name", |old, new| old.name == new.name),
    ("public_key", |old, new| old.public_key == new.public_key),
    ("next_public_key", |old, new| old.next_public_key == new.next_public_key),
    ("endpoint", |old, new| old.endpoints == new.endpoints),
    ("addresses", |old, new| same_set(&old.addresses, &new.addresses)),
    ("allowed_ips", |old, new| further_prefixes(old) == further_prefixes(new)),
    ("preshared_key_file", |old, new| old.preshared_key == new.preshared_key),
    ("persistent_keepalive", |old, new| old.persistent_keepalive == new.persistent_keepalive),
    ("suite", |old, new| old.suite == new.suite),
    ("expose", |old, new| same_set(&old.expose, &new.expose)),
];

impl Diff {
    /// From `old`, of a daemon with so many lanes, to `new`.
    pub fn between(old: &Config, new: &Config, lanes: u8) -> Self {
        let keys = |is_live: bool| -> Vec<&'static str> {
            let of_effect = KEYS.iter().filter(|(effect, _)| effect.is_live(new, lanes) == is_live).map(|(_, key)| key);
            of_effect.filter(|(_, is_same)| !is_same(old, new)).map(|(name, _)| *name).collect()
        };
        let mut diff = Self { live: keys(true), needs_restart: keys(false), ..Self::default() };
        diff.compare_peers(&old.peers, &new.peers);
        diff
    }

    /// Set if the two mean the same.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn compare_peers(&mut self, old: &[Peer], new: &[Peer]) {
        let by_name: HashMap<&str, &Peer> = old.iter().map(|peer| (peer.name.as_str(), peer)).collect();
        let by_key: HashMap<_, &Peer> = old.iter().map(|peer| (peer.public_key, peer)).collect();
        let names: BTreeSet<&str> = new.iter().map(|peer| peer.name.as_str()).collect();
        let mut renamed = BTreeSet::new();
        for peer in new {
            // Who kept its name is nobody's former self.
            let by_key = || by_key.get(&peer.public_key).filter(|before| !names.contains(before.name.as_str()));
            let Some(before) = by_name.get(peer.name.as_str()).or_else(by_key) else {
                self.added.push(peer.name.clone());
                continue;
            };
            if before.name != peer.name {
                renamed.insert(before.name.as_str());
            }
            let keys: Vec<_> = PEER_KEYS.iter().filter(|(_, is_same)| !is_same(before, peer)).collect();
            if !keys.is_empty() {
                let keys = keys.into_iter().map(|(name, _)| *name).collect();
                self.changed.push(PeerDiff { name: peer.name.clone(), old_name: before.name.clone(), keys });
            }
        }
        let is_gone = |peer: &&Peer| !names.contains(peer.name.as_str()) && !renamed.contains(peer.name.as_str());
        self.removed = old.iter().filter(is_gone).map(|peer| peer.name.clone()).collect();
    }
}

impl Effect {
    fn is_live(self, new: &Config, lanes: u8) -> bool {
        match self {
            Self::Live => true,
            Self::Restart => false,
            Self::WithinLanes => new.interface.workers.fit(lanes),
        }
    }
}

impl Workers {
    /// Whether there can be so many where there are so many lanes.
    fn fit(self, lanes: u8) -> bool {
        match self {
            Self::Auto => true,
            Self::Number(number) => number.get() <= lanes,
        }
    }
}

impl Config {
    /// The configuration in force in a daemon with so many lanes that was started with `running` and has been given this one:
    /// keys that need a restart are as before.
    pub fn applied_to(self, running: &Self, lanes: u8) -> Self {
        let started = running.interface.clone();
        let workers = self.interface.workers;
        let interface = Interface {
            name: started.name,
            mtu: started.mtu,
            device: started.device,
            workers: if workers.fit(lanes) { workers } else { started.workers },
            pin_workers: started.pin_workers,
            busy_poll: started.busy_poll,
            control_socket: started.control_socket,
            sandbox: started.sandbox,
            drop_capabilities: started.drop_capabilities,
            ..self.interface
        };
        Self { role: running.role, interface, health: running.health.clone(), ..self }
    }
}

/// The private keys of this machine, the present and the one before, by their secret bytes.
fn own_keys(config: &Config) -> [Option<&[u8; 32]>; 2] {
    let interface = &config.interface;
    [Some(interface.private_key.as_bytes()), interface.previous_private_key.as_ref().map(|key| key.as_bytes())]
}

/// Those that are not only the peer's addresses.
fn further_prefixes(peer: &Peer) -> BTreeSet<IpNet> {
    let addresses: BTreeSet<IpNet> = peer.addresses.iter().copied().map(IpNet::from).collect();
    peer.allowed_ips.iter().copied().filter(|prefix| !addresses.contains(prefix)).collect()
}

/// Their order means nothing.
fn same_set<T: Ord>(old: &[T], new: &[T]) -> bool {
    old.iter().collect::<BTreeSet<_>>() == new.iter().collect::<BTreeSet<_>>()
}

#[cfg(test)]
mod tests {
    use super::super::parse::tests::{minimal, parse};
    use super::super::raw::{RawHealth, RawInterface, RawPeer, keys_of};
    use super::*;
    use crate::keys::PrivateKey;

    fn public_key(number: u8) -> String {
        PrivateKey::from_bytes([number; 32]).unwrap().public_key().to_string()
    }

    /// A peer's table: its name, the number of its key, and further lines.
    fn peer(name: &str, number: u8, more: &str) -> String {
        let key = public_key(number);
        format!("[[backend]]\nname = \"{name}\"\npublic_key = \"{key}\"\naddresses = [\"10.77.0.{number}\"]\n{more}\n")
    }

    fn config(interface: &str, peers: &[String]) -> Config {
        let top = "role = \"proxy\"\n[interface]\naddresses = [\"10.77.0.1/24\"]\nprivate_key_file = \"1.key\"\n";
        parse(&format!("{top}{interface}\n{}", peers.concat())).unwrap()
    }

    fn peers_diff(old: &[String], new: &[String]) -> Diff {
        Diff::between(&config("", old), &config("", new), 1)
    }

    fn changed(name: &str, old_name: &str, keys: &[&'static str]) -> PeerDiff {
        PeerDiff { name: name.into(), old_name: old_name.into(), keys: keys.to_vec() }
    }

    #[test]
    fn a_configuration_does_not_differ_from_itself_nor_from_its_tables_in_another_order() {
        let minimal = || parse(&minimal()).unwrap();
        assert!(Diff::between(&minimal(), &minimal(), 1).is_empty());
        let [a, b] = [peer("a", 11, ""), peer("b", 12, "allowed_ips = [\"10.1.0.0/16\", \"10.2.0.0/16\"]")];
        let swapped = b.replace("\"10.1.0.0/16\", \"10.2.0.0/16\"", "\"10.2.0.0/16\", \"10.1.0.0/16\"");
        assert!(peers_diff(&[a.clone(), b], &[swapped, a]).is_empty());
    }

    #[test]
    fn peers_come_go_and_change() {
        let old = [peer("a", 11, ""), peer("b", 12, ""), peer("c", 13, "")];
        let new = [
            peer("d", 14, ""),
            peer("c", 13, "endpoint = \"192.0.2.1\"\npersistent_keepalive = 25"),
            peer("a", 11, ""),
        ];
        let expected = Diff {
            added: vec!["d".into()],
            removed: vec!["b".into()],
            changed: vec![changed("c", "c", &["endpoint", "persistent_keepalive"])],
            ..Diff::default()
        };
        assert_eq!(peers_diff(&old, &new), expected);
    }

    #[test]
    fn every_key_of_a_peer_is_named_when_it_changes() {
        let old = peer("a", 11, "");
        let key = public_key(99);
        for (more, name) in [
            (format!("next_public_key = \"{key}\""), "next_public_key"),
            ("endpoint = \"192.0.2.1\"".to_owned(), "endpoint"),
            ("allowed_ips = [\"10.1.0.0/16\"]".to_owned(), "allowed_ips"),
            ("preshared_key_file = \"9.key\"".to_owned(), "preshared_key_file"),
            ("persistent_keepalive = 25".to_owned(), "persistent_keepalive"),
            ("suite = \"aes-256-gcm\"".to_owned(), "suite"),
            ("expose = [\"tcp/9100\"]".to_owned(), "expose"),
        ] {
            let diff = peers_diff(std::slice::from_ref(&old), &[peer("a", 11, &more)]);
            assert_eq!(diff.changed, [changed("a", "a", &[name])]);
        }
        let moved = old.replace("10.77.0.11", "10.77.0.111");
        assert_eq!(peers_diff(std::slice::from_ref(&old), &[moved]).changed, [changed("a", "a", &["addresses"])]);
        let rekeyed = old.replace(&public_key(11), &key);
        assert_eq!(peers_diff(&[old], &[rekeyed]).changed, [changed("a", "a", &["public_key"])]);
    }

    #[test]
    fn a_peer_with_the_same_key_was_renamed_unless_its_name_is_somebody_else_s_now() {
        let diff = peers_diff(&[peer("a", 11, "")], &[peer("b", 11, "")]);
        assert_eq!(diff, Diff { changed: vec![changed("b", "a", &["name"])], ..Diff::default() });
        let diff = peers_diff(&[peer("a", 11, "")], &[peer("b", 11, ""), peer("a", 12, "")]);
        let rekeyed = changed("a", "a", &["public_key", "addresses"]);
        assert_eq!(diff, Diff { added: vec!["b".into()], changed: vec![rekeyed], ..Diff::default() });
    }

    #[test]
    fn every_key_is_live_or_needs_a_restart() {
        for (table, keys) in [("interface.", keys_of::<RawInterface>()), ("health.", keys_of::<RawHealth>())] {
            let mut named: Vec<_> = KEYS.iter().filter_map(|(_, (name, _))| name.strip_prefix(table)).collect();
            let mut keys = keys.to_vec();
            named.sort_unstable();
            keys.sort_unstable();
            assert_eq!(named, keys);
        }
        let named: Vec<_> = PEER_KEYS.iter().map(|(name, _)| *name).collect();
        assert_eq!(named, keys_of::<RawPeer>());
    }

    #[test]
    fn every_key_above_the_peers_is_named_when_it_changes() {
        let peers = [peer("a", 11, "suite = \"aes-256-gcm\"\nexpose = []")];
        let old = config("", &peers);
        for (line, live, needs_restart) in [
            ("name = \"up1\"", &[][..], &["interface.name", "interface.control_socket"][..]),
            ("listen = 7000", &["interface.listen"], &[]),
            ("previous_private_key_file = \"3.key\"", &["interface.previous_private_key_file"], &[]),
            ("mtu = 1400", &[], &["interface.mtu"]),
            ("fwmark = 7", &["interface.fwmark"], &[]),
            ("dscp = \"ef\"", &["interface.dscp"], &[]),
            ("device = \"plain\"", &[], &["interface.device"]),
            ("workers = 1", &["interface.workers"], &[]),
            ("workers = 2", &[], &["interface.workers"]),
            ("pin_workers = true", &[], &["interface.pin_workers"]),
            ("busy_poll = false", &[], &["interface.busy_poll"]),
            ("drop_capabilities = true", &[], &["interface.drop_capabilities"]),
            ("suite = \"chacha20-poly1305\"", &["interface.suite"], &[]),
            ("suites = [\"aes-256-gcm\"]", &["interface.suites"], &[]),
            ("expose = [\"tcp/9100\"]", &["interface.expose"], &[]),
            ("refuse = \"reset\"", &["interface.refuse"], &[]),
            ("control_socket = \"/x.sock\"", &[], &["interface.control_socket"]),
            ("drain_timeout = 5", &["interface.drain_timeout"], &[]),
            ("open = [\"10.1.0.0/16\"]", &["interface.open"], &[]),
            ("[health]\nagent_check = \"off\"", &[], &["health.agent_check"]),
            ("[health]\nhttp = \"off\"", &[], &["health.http"]),
            ("[health]\ndegraded_weight = 50", &[], &["health.degraded_weight"]),
        ] {
            let new = config(line, &peers);
            let expected = Diff { live: live.to_vec(), needs_restart: needs_restart.to_vec(), ..Diff::default() };
            assert_eq!(Diff::between(&old, &new, 1), expected, "{line}");
            // What needs a restart is asked for again by the next reload, and nothing else.
            let applied = new.clone().applied_to(&old, 1);
            let again = Diff { live: vec![], ..expected };
            assert_eq!(Diff::between(&applied, &new, 1), again, "{line}");
            assert_eq!(Diff::between(&old, &applied, 1).needs_restart, [""; 0], "{line}");
        }
    }

    #[test]
    fn workers_change_at_once_as_far_as_there_are_lanes() {
        let workers = |value: &str| config(&format!("workers = {value}"), &[peer("a", 11, "")]);
        for (old, new, lanes, is_live) in [
            ("2", "1", 2, true),
            ("1", "2", 2, true),
            ("1", "\"auto\"", 1, true),
            ("\"auto\"", "2", 2, true),
            ("\"auto\"", "2", 1, false),
            ("2", "3", 2, false),
        ] {
            let (old, new) = (workers(old), workers(new));
            let diff = Diff::between(&old, &new, lanes);
            let (named, other) =
                if is_live { (diff.live, diff.needs_restart) } else { (diff.needs_restart, diff.live) };
            assert_eq!((named, other), (vec!["interface.workers"], vec![]), "{old:?} → {new:?}");
            let expected = if is_live { new.interface.workers } else { old.interface.workers };
            assert_eq!(new.applied_to(&old, lanes).interface.workers, expected);
        }
    }

    #[test]
    fn keys_addresses_and_role_are_named_when_they_change() {
        let text = minimal();
        let old = parse(&text).unwrap();
        let diff = |from: &str, to: &str| Diff::between(&old, &parse(&text.replace(from, to)).unwrap(), 1);
        assert_eq!(diff("1.key", "5.key").live, ["interface.private_key_file"]);
        assert_eq!(diff("10.77.0.1/24", "10.77.0.2/24").live, ["interface.addresses"]);
        let other_role = text.replace("\"proxy\"", "\"backend\"").replace("[[backend]]", "expose = []\n[[proxy]]");
        let other_role = parse(&other_role).unwrap();
        let needs_restart = Diff::between(&old, &other_role, 1).needs_restart;
        assert_eq!(needs_restart, ["role", "health.agent_check", "health.http"]);
        assert_eq!(other_role.applied_to(&old, 1).role, old.role);
    }
}
