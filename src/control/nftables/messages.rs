//! Rules as netlink messages: the whole table in one transaction, which replaces what it held before.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, InetHookNumber, ListAttribute, MetaKey, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage,
    SetFlags, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use nix::libc;

use super::expression::{
    End, Expression, Family, V4, V6, accept, address_is_in, counter, drop_it, interface_is, mark_is, udp_port_is,
};
use super::rules::{GuardRules, Range};
use super::table_name;

pub(super) const PREROUTING: &str = "prerouting";
pub(super) const POSTROUTING: &str = "postrouting";
pub(super) const CHAINS: [&str; 2] = [PREROUTING, POSTROUTING];
pub(super) const SETS: [&str; 4] = ["addresses4", "addresses6", "networks4", "networks6"];
/// Before connections are tracked (`raw`), and after sources were translated.
pub(super) const PRIORITIES: [i32; 2] = [-300, 300];
pub(super) const COMMENT: &str = "of underpass: tunnel addresses from the tunnel only";

/// A transaction: all of its messages are carried out, or none.
pub(super) struct Transaction {
    bytes: Vec<u8>,
    /// Number of the newest message.
    sequence: u32,
}

impl Default for Transaction {
    fn default() -> Self {
        let mut transaction = Self { bytes: Vec::new(), sequence: 0 };
        transaction.push(NetfilterProtoFamily::Unspec, 0, NetfilterMessageInner::None(ControlMessage::BatchBegin));
        transaction
    }
}

impl Transaction {
    /// Gives an interface's table this content.
    pub(super) fn setting(rules: &GuardRules) -> Self {
        let mut transaction = Self::removing(&rules.interface);
        let table = table_name(&rules.interface);
        transaction.create(new_table(&table));
        for family in [V4, V6] {
            transaction.add_sets(&table, family, rules);
        }
        for (name, (hook, priority)) in CHAINS.into_iter().zip(HOOKS.into_iter().zip(PRIORITIES)) {
            transaction.create(new_chain(&table, name, hook, priority));
        }
        for (chain, rule) in prerouting(rules).into_iter().map(|rule| (PREROUTING, rule)) {
            transaction.append(&table, chain, rule);
        }
        for (chain, rule) in postrouting(rules).into_iter().map(|rule| (POSTROUTING, rule)) {
            transaction.append(&table, chain, rule);
        }
        transaction
    }

    /// Removes an interface's table, if there is one.
    pub(super) fn removing(interface: &str) -> Self {
        let mut transaction = Self::default();
        transaction.remove(&table_name(interface));
        transaction
    }

    /// Removes a table, if there is one of that name.
    pub(super) fn remove(&mut self, table: &str) {
        // What is not there can't be removed, and what is there can be made once more.
        self.create(new_table(table));
        let named = TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] };
        self.push(NetfilterProtoFamily::Inet, NLM_F_ACK, NfTablesMessage::DeleteTable(named).into());
    }

    /// All in one piece, and the number of the last message that is answered.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32) {
        let last = self.sequence;
        self.push(NetfilterProtoFamily::Unspec, 0, NetfilterMessageInner::None(ControlMessage::BatchEnd));
        (self.bytes, last)
    }

    fn add_sets(&mut self, table: &str, family: Family, rules: &GuardRules) {
        let addresses = format!("addresses{}", family.suffix);
        let networks = format!("networks{}", family.suffix);
        self.create(new_set(table, &addresses, family, SetFlags::empty()));
        self.create(new_set(table, &networks, family, SetFlags::Interval));
        let (single, ranges) = match family.key_len {
            4 => (octets_v4(rules), rules.ranges_v4()),
            _ => (octets_v6(rules), rules.ranges_v6()),
        };
        self.fill(table, &addresses, single.into_iter().map(|address| element(address, false)).collect());
        self.fill(table, &networks, ranges.into_iter().flat_map(range_elements).collect());
    }

    /// An attribute has 64 KiB at most.
    fn fill(&mut self, table: &str, set: &str, elements: Vec<ListAttribute<SetElementAttribute>>) {
        for elements in elements.chunks(MAX_ELEMENTS) {
            let attributes = vec![
                SetElementList::Table(table.to_owned()),
                SetElementList::Set(set.to_owned()),
                SetElementList::Elements(elements.to_vec()),
            ];
            self.create(NfTablesMessage::NewSetElement(SetElementMessage { attributes }));
        }
    }

    fn append(&mut self, table: &str, chain: &str, expressions: Vec<Expression>) {
        let attributes = vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ];
        let message = NfTablesMessage::NewRule(RuleMessage { attributes });
        self.push(NetfilterProtoFamily::Inet, NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, message.into());
    }

    fn create(&mut self, message: NfTablesMessage) {
        self.push(NetfilterProtoFamily::Inet, NLM_F_CREATE | NLM_F_ACK, message.into());
    }

    fn push(&mut self, family: NetfilterProtoFamily, flags: u16, inner: NetfilterMessageInner) {
        self.sequence += 1;
        let subsystem = if matches!(inner, NetfilterMessageInner::None(_)) { NFTABLES } else { 0 };
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, subsystem), inner);
        self.bytes.extend(serialized(message, flags, self.sequence));
    }
}

/// A request by itself, outside of a transaction.
pub(super) fn question(message: NfTablesMessage, flags: u16) -> Vec<u8> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    serialized(NetfilterMessage::new(header, message), flags, 1)
}

fn serialized(message: NetfilterMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

fn new_table(name: &str) -> NfTablesMessage {
    let mut comment = vec![TABLE_COMMENT, COMMENT.len() as u8 + 1];
    comment.extend(COMMENT.bytes());
    comment.push(0);
    let attributes = vec![TableAttribute::Name(name.to_owned()), TableAttribute::UserData(comment)];
    NfTablesMessage::NewTable(TableMessage { attributes })
}

fn new_chain(table: &str, name: &str, hook: InetHookNumber, priority: i32) -> NfTablesMessage {
    let attributes = vec![
        ChainAttribute::Table(table.to_owned()),
        ChainAttribute::Name(name.to_owned()),
        ChainAttribute::Policy(libc::NF_ACCEPT.cast_unsigned()),
        ChainAttribute::Type("filter".to_owned()),
        ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(priority.cast_unsigned())]),
    ];
    NfTablesMessage::NewChain(ChainMessage { attributes })
}

fn new_set(table: &str, name: &str, family: Family, flags: SetFlags) -> NfTablesMessage {
    let id = SETS.iter().position(|set| *set == name).unwrap_or_default() as u32 + 1;
    let attributes = vec![
        SetAttribute::Table(table.to_owned()),
        SetAttribute::Name(name.to_owned()),
        SetAttribute::Flags(flags),
        SetAttribute::KeyType(family.key_type),
        SetAttribute::KeyLen(family.key_len),
        SetAttribute::Id(id),
    ];
    NfTablesMessage::NewSet(SetMessage { attributes })
}

fn octets_v4(rules: &GuardRules) -> Vec<Vec<u8>> {
    let v4 = rules.addresses.iter().filter_map(|address| match address {
        std::net::IpAddr::V4(address) => Some(address.octets().to_vec()),
        std::net::IpAddr::V6(_) => None,
    });
    v4.collect()
}

fn octets_v6(rules: &GuardRules) -> Vec<Vec<u8>> {
    let v6 = rules.addresses.iter().filter_map(|address| match address {
        std::net::IpAddr::V6(address) => Some(address.octets().to_vec()),
        std::net::IpAddr::V4(_) => None,
    });
    v6.collect()
}

fn range_elements(range: Range) -> impl Iterator<Item = ListAttribute<SetElementAttribute>> {
    std::iter::once(element(range.first, false)).chain(range.after.map(|after| element(after, true)))
}

fn element(key: Vec<u8>, is_end: bool) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(key))];
    if is_end {
        attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
    }
    ListAttribute::Element(attributes)
}

fn prerouting(rules: &GuardRules) -> Vec<Vec<Expression>> {
    let mut chain = pass_by(MetaKey::Iifname, &rules.interface);
    chain.extend(refuse(End::Destination, "addresses"));
    chain.extend(refuse(End::Source, "addresses"));
    chain.extend(pass_ports(End::Destination, &rules.ports));
    chain.extend(refuse(End::Source, "networks"));
    chain
}

fn postrouting(rules: &GuardRules) -> Vec<Vec<Expression>> {
    let mut chain = pass_by(MetaKey::Oifname, &rules.interface);
    chain.extend(refuse(End::Source, "addresses"));
    chain.extend(rules.fwmark.map(|mark| mark_is(mark).into_iter().chain([accept()]).collect()));
    chain.extend(pass_ports(End::Source, &rules.ports));
    chain.extend(refuse(End::Destination, "networks"));
    chain
}

fn pass_by(key: MetaKey, interface: &str) -> Vec<Vec<Expression>> {
    let pass = |name| interface_is(key, name).into_iter().chain([accept()]).collect();
    ["lo", interface].map(pass).to_vec()
}

fn pass_ports(end: End, ports: &[u16]) -> impl Iterator<Item = Vec<Expression>> {
    ports.iter().map(move |port| udp_port_is(end, *port).into_iter().chain([accept()]).collect())
}

fn refuse(end: End, sets: &str) -> [Vec<Expression>; 2] {
    let set = |family: Family| format!("{sets}{}", family.suffix);
    [V4, V6].map(|family| address_is_in(family, end, set(family)).into_iter().chain([counter(), drop_it()]).collect())
}

const HOOKS: [InetHookNumber; 2] = [InetHookNumber::PreRouting, InetHookNumber::PostRouting];
#[expect(clippy::cast_possible_truncation, reason = "it is 10")]
const NFTABLES: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
/// `NFTNL_UDATA_TABLE_COMMENT`, as `nft` shows it.
const TABLE_COMMENT: u8 = 0;
/// The largest, the end of a range of IPv6, has 44 bytes.
const MAX_ELEMENTS: usize = 1000;
