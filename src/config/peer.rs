//! Judges the `[[backend]]` or `[[proxy]]` tables, each alone and all against each other.
//!
//! Owns what must be unique: names, keys and prefixes. Prefixes of different length may overlap: the longest match wins.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::error::Problems;
use super::exposure::exposure;
use super::key_source::KeySource;
use super::raw::{Field, List, OneOrMore, RawPeer};
use super::scope::{Refusal, Scope};
use super::{Endpoint, Peer, SuiteChoice, value};
use crate::keys::PublicKey;
use crate::proto::noise::Suite;
use crate::proto::policy::Exposure;

/// An example for each key, for messages.
pub(super) const EXAMPLES: &[(&str, &str)] = &[
    ("name", "\"app1\""),
    ("public_key", "\"the line that `underpass pubkey` prints on the other machine\""),
    ("next_public_key", "\"the line that `underpass pubkey` prints on the other machine\""),
    ("endpoint", "\"192.0.2.10:51900\""),
    ("addresses", "[\"10.77.0.11\"]"),
    ("allowed_ips", "[\"192.168.7.0/24\"]"),
    ("preshared_key_file", "\"app1.psk\""),
    ("persistent_keepalive", "25"),
    ("suite", "\"auto\""),
    ("expose", "[\"tcp/8080\"]"),
];

/// This machine's end, which peers are judged against.
#[derive(Default)]
pub(super) struct OwnEnd {
    pub(super) public_keys: Vec<PublicKey>,
    /// With their networks.
    pub(super) addresses: Vec<IpNet>,
    /// The daemon's own datagrams can be told from others, to be routed elsewhere.
    pub(super) has_mark: bool,
    pub(super) suite: SuiteChoice,
    pub(super) suites: Vec<Suite>,
    pub(super) expose: Vec<Exposure>,
}

impl OwnEnd {
    /// The reason why no other machine in the tunnel can have `address`, if there is one.
    fn why_no_peer_has(&self, address: IpAddr) -> Option<&'static str> {
        if self.addresses.iter().any(|own| own.addr() == address) {
            return Some("this machine's own tunnel address");
        }
        let is_for_all = |own: &IpNet| {
            let has_some = matches!(own, IpNet::V4(own) if own.prefix_len() < 31);
            has_some && (own.network() == address || own.broadcast() == address)
        };
        self.addresses.iter().any(is_for_all).then_some("an address of the whole tunnel network, of no machine in it")
    }

    /// Why sealed datagrams to `endpoint` would be routed into the tunnel again, and sealed again. A default route is added
    /// to no table that such datagrams consult.
    fn route_into_the_tunnel(&self, endpoint: &Endpoint, allowed_ips: &[IpNet]) -> Option<Refusal> {
        let Endpoint::Address(endpoint) = endpoint else { return None };
        let own = self.addresses.iter().map(IpNet::trunc);
        let mut routed = allowed_ips.iter().copied().filter(|prefix| prefix.prefix_len() > 0).chain(own);
        let prefix = routed.find(|prefix| prefix.contains(&endpoint.ip()))?;
        if self.has_mark {
            return None;
        }
        let what =
            format!("{} lies in {prefix}, which is routed into the tunnel: no datagram would leave", endpoint.ip());
        let remedy = format!(
            "take {prefix} out of the tunnel, or set interface.fwmark and a rule for that mark (\"All traffic\" in \
             docs/operations.md)"
        );
        Some(Refusal::new(what, remedy))
    }
}

/// Judges one peer after the other and remembers what they claimed.
pub(super) struct PeerTables<'a> {
    own: &'a OwnEnd,
    /// Tables seen so far.
    judged: usize,
    names: HashMap<String, Range<usize>>,
    keys: HashMap<PublicKey, Claim>,
    prefixes: HashMap<IpNet, Claim>,
}

/// Who was first to have a key or a prefix, and where.
struct Claim {
    /// Which table, counted over all.
    peer: usize,
    label: String,
    span: Range<usize>,
}

impl<'a> PeerTables<'a> {
    pub(super) fn new(own: &'a OwnEnd) -> Self {
        Self { own, judged: 0, names: HashMap::new(), keys: HashMap::new(), prefixes: HashMap::new() }
    }

    /// The peers of those `[[table]]` tables that were accepted.
    pub(super) fn check_all(
        &mut self,
        table: &str,
        tables: Vec<Spanned<RawPeer>>,
        problems: &mut Problems<'_>,
        keys: &mut KeySource<'_>,
    ) -> Vec<Peer> {
        let mut peers = Vec::with_capacity(tables.len());
        for (index, raw) in tables.into_iter().enumerate() {
            let header = raw.span();
            let raw = raw.into_inner();
            let label = label(table, index, &raw);
            let mut scope = Scope::new(problems, label.clone(), header, EXAMPLES);
            self.judged += 1;
            let mut one = OnePeer { index: self.judged, label, tables: self, scope: &mut scope };
            peers.extend(one.check(raw, keys));
        }
        peers
    }
}

/// How messages name a table: by its name, else by its place.
fn label(table: &str, index: usize, raw: &RawPeer) -> String {
    let name = raw.name.as_ref().and_then(|field| field.value.as_ref().ok());
    match name.and_then(|name| value::peer_name(name).ok()) {
        Some(name) => format!("{table} \"{name}\""),
        None => format!("{table} {}", index + 1),
    }
}

/// One table under judgement.
struct OnePeer<'o, 'a, 'p, 't> {
    /// Which table, counted over all.
    index: usize,
    label: String,
    tables: &'o mut PeerTables<'a>,
    scope: &'o mut Scope<'p, 't>,
}

impl OnePeer<'_, '_, '_, '_> {
    fn check(&mut self, raw: RawPeer, keys: &mut KeySource<'_>) -> Option<Peer> {
        let name = self.check_name(raw.name);
        let public_key = self.scope.get_required("public_key", raw.public_key);
        let public_key = self.check_public_key("public_key", public_key);
        let next_public_key = self.scope.get("next_public_key", raw.next_public_key);
        let next_public_key = self.check_public_key("next_public_key", next_public_key);
        let Prefixes { addresses, allowed_ips } = self.check_addresses(raw.addresses, raw.allowed_ips);
        let endpoints = self.check_endpoints(raw.endpoint, &addresses, &allowed_ips);
        let preshared_key_file = self.scope.get("preshared_key_file", raw.preshared_key_file);
        let suite = self.scope.get("suite", raw.suite);
        let expose = self.check_expose(raw.expose);
        Some(Peer {
            preshared_key_file: keys.path(preshared_key_file.as_ref()),
            preshared_key: keys.preshared(self.scope, "preshared_key_file", preshared_key_file),
            persistent_keepalive: self.check_keepalive(raw.persistent_keepalive),
            suite: self
                .scope
                .check("suite", suite, |text| value::suite(text, &self.tables.own.suites))
                .unwrap_or(self.tables.own.suite),
            name: name?,
            public_key: public_key?,
            next_public_key,
            endpoints,
            addresses,
            allowed_ips,
            expose,
        })
    }

    fn check_name(&mut self, raw: Option<Field<String>>) -> Option<String> {
        let field = self.scope.get_required("name", raw);
        let span = field.as_ref().map(Spanned::span);
        let name = self.scope.check("name", field, |name| value::peer_name(name))?;
        let span = span.expect("a checked name stands somewhere");
        if let Some(first) = self.tables.names.get(&name) {
            let what = format!("the name is taken by the table of line {}", self.scope.problems.line(first));
            self.scope.refuse("name", span, Refusal::new(what, "give each peer a name of its own"));
            return None;
        }
        self.tables.names.insert(name.clone(), span);
        Some(name)
    }

    fn check_public_key(&mut self, key: &str, field: Option<Spanned<String>>) -> Option<PublicKey> {
        let span = field.as_ref().map(Spanned::span);
        let public_key: PublicKey = self.scope.check(key, field, |text| {
            let remedy = "write the line that `underpass pubkey` prints on the other machine";
            text.parse().map_err(|error: crate::keys::KeyError| Refusal::new(error.to_string(), remedy))
        })?;
        let span = span.expect("a checked key stands somewhere");
        if self.tables.own.public_keys.contains(&public_key) {
            let what = "this is this machine's own key";
            let remedy = "write the other machine's: the line that `underpass pubkey` prints there";
            self.scope.refuse(key, span, Refusal::new(what, remedy));
            return None;
        }
        if let Some(first) = self.tables.keys.get(&public_key) {
            let line = self.scope.problems.line(&first.span);
            let refusal = if first.peer == self.index {
                Refusal::new(
                    "this is the same key as public_key",
                    "delete this line, or write the key that the peer will change to",
                )
            } else {
                let remedy = "every machine has a key of its own: make one there with `underpass genkey`";
                Refusal::new(format!("{} has the same key, line {line}", first.label), remedy)
            };
            self.scope.refuse(key, span, refusal);
            return None;
        }
        self.tables.keys.insert(public_key, self.claim(span));
        Some(public_key)
    }

    /// The peer's tunnel addresses, and these with the further ones as prefixes.
    fn check_addresses(&mut self, addresses: Option<Field<List>>, allowed_ips: Option<Field<List>>) -> Prefixes {
        let lists = [&addresses, &allowed_ips];
        if lists.into_iter().flatten().all(|list| list.value.as_ref().is_ok_and(Vec::is_empty)) {
            let what = "the peer has no tunnel address, so nothing could be sent to it";
            let refusal = Refusal::new(what, "write it as `addresses = [\"10.77.0.11\"]`");
            match lists.into_iter().flatten().next() {
                Some(empty) => self.scope.refuse("addresses", empty.span.clone(), refusal),
                None => self.scope.refuse_table("addresses", refusal),
            }
        }
        let addresses = self.scope.get("addresses", addresses);
        let allowed_ips = self.scope.get("allowed_ips", allowed_ips);
        let addresses = self.scope.check_each("addresses", addresses, value::peer_address);
        let further = self.scope.check_each("allowed_ips", allowed_ips, value::allowed_prefix);
        let mut allowed_ips = Vec::with_capacity(addresses.len() + further.len());
        for address in &addresses {
            let prefix = IpNet::from(*address.get_ref());
            allowed_ips.extend(self.claim_prefix("addresses", prefix, address.span()));
        }
        for prefix in &further {
            allowed_ips.extend(self.claim_prefix("allowed_ips", *prefix.get_ref(), prefix.span()));
        }
        let addresses = addresses.into_iter().map(Spanned::into_inner).collect();
        Prefixes { addresses, allowed_ips }
    }

    /// `prefix` if it is this peer's from here on; `None` if it was already, or belongs to another.
    fn claim_prefix(&mut self, key: &str, prefix: IpNet, span: Range<usize>) -> Option<IpNet> {
        let is_one_address = prefix.prefix_len() == prefix.max_prefix_len();
        let nobodys = is_one_address.then(|| self.tables.own.why_no_peer_has(prefix.addr())).flatten();
        if let Some(why) = nobodys {
            let what = format!("{} is {why}", prefix.addr());
            self.scope.refuse(key, span, Refusal::new(what, "write the other machine's tunnel address"));
            return None;
        }
        match self.tables.prefixes.get(&prefix) {
            Some(first) if first.peer == self.index => None,
            Some(first) => {
                let what = format!("{} has {prefix} too, line {}", first.label, self.scope.problems.line(&first.span));
                let remedy = "leave it to one of the two; a longer prefix inside it may go to another peer";
                self.scope.refuse(key, span, Refusal::new(what, remedy));
                None
            }
            None => {
                self.tables.prefixes.insert(prefix, self.claim(span));
                Some(prefix)
            }
        }
    }

    fn check_endpoints(
        &mut self,
        raw: Option<Field<OneOrMore>>,
        addresses: &[IpAddr],
        allowed_ips: &[IpNet],
    ) -> Vec<Endpoint> {
        let Some(list) = self.scope.get("endpoint", raw) else { return Vec::new() };
        let (span, OneOrMore(list)) = (list.span(), list.into_inner());
        if list.is_empty() {
            let remedy = "write the address that the untrusted network knows the peer by, or delete the line";
            self.scope.refuse("endpoint", span, Refusal::new("the list is empty", remedy));
            return Vec::new();
        }
        let mut endpoints = Vec::with_capacity(list.len());
        for endpoint in self.scope.check_each("endpoint", Some(Spanned::new(span, list)), value::endpoint) {
            let (span, endpoint) = (endpoint.span(), endpoint.into_inner());
            if let Endpoint::Address(address) = &endpoint
                && addresses.contains(&address.ip())
            {
                let what = format!(
                    "{} is the peer's address inside the tunnel, which leads into the tunnel again",
                    address.ip()
                );
                let remedy = "write the address that the untrusted network knows the peer by";
                self.scope.refuse("endpoint", span, Refusal::new(what, remedy));
            } else if let Some(refusal) = self.tables.own.route_into_the_tunnel(&endpoint, allowed_ips) {
                self.scope.refuse("endpoint", span, refusal);
            } else if endpoints.contains(&endpoint) {
                let refusal = Refusal::new(format!("{endpoint} stands there twice"), "delete one of them");
                self.scope.refuse("endpoint", span, refusal);
            } else {
                endpoints.push(endpoint);
            }
        }
        endpoints
    }

    fn check_keepalive(&mut self, raw: Option<Field<i64>>) -> Option<Duration> {
        let seconds = self.scope.get("persistent_keepalive", raw);
        let why = "this is in seconds, 0 turns it off";
        let seconds = self.scope.check("persistent_keepalive", seconds, |s| value::number(*s, 0..=u16::MAX, why));
        seconds.filter(|seconds| *seconds != 0).map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// What this peer may reach: its own list, else the interface's.
    fn check_expose(&mut self, raw: Option<Field<List>>) -> Vec<Exposure> {
        if raw.is_none() {
            return self.tables.own.expose.clone();
        }
        let list = self.scope.get("expose", raw);
        self.scope.check_each("expose", list, exposure).into_iter().map(Spanned::into_inner).collect()
    }

    fn claim(&self, span: Range<usize>) -> Claim {
        Claim { peer: self.index, label: self.label.clone(), span }
    }
}

/// What a peer may use.
struct Prefixes {
    addresses: Vec<IpAddr>,
    allowed_ips: Vec<IpNet>,
}
