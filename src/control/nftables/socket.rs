//! Transactions and questions to the kernel's nftables, each over a socket of its own in the network namespace of this
//! thread. They take milliseconds and wait for the answer.

use std::io::{self, ErrorKind};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ExpressionAttribute, Expressions, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage,
    SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::messages::{CHAINS, SETS, Transaction, question};
use super::rules::GuardRules;
use super::{GuardError, PREFIX, table_name};

/// Content of a table, by which a later look tells whether it is still so. Counters are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content(Vec<NfTablesMessage>);

impl Content {
    /// Set if it refuses what `rules` let in by their own interface.
    pub(super) fn concerns(&self, rules: &GuardRules) -> bool {
        let hosts = rules.addresses.iter().copied().map(IpNet::from);
        let ours: Vec<IpNet> = hosts.chain(rules.networks.iter().copied()).collect();
        self.0.iter().any(|message| {
            let mut keys: Vec<(IpAddr, bool)> = elements(message).filter_map(key).collect();
            keys.sort_unstable();
            let refuses = |index: usize, ours: &IpNet| {
                let (first, is_end) = keys[index];
                let after = keys.get(index + 1).filter(|(_, is_end)| *is_end).map(|(after, _)| *after);
                let begins_before = after.is_some_and(|after| first <= ours.network() && ours.network() < after);
                !is_end && (ours.contains(&first) || begins_before)
            };
            (0..keys.len()).any(|index| ours.iter().any(|ours| refuses(index, ours)))
        })
    }
}

fn elements(message: &NfTablesMessage) -> impl Iterator<Item = &ListAttribute<SetElementAttribute>> {
    let attributes = match message {
        NfTablesMessage::NewSetElement(elements) => &elements.attributes[..],
        _ => &[],
    };
    attributes.iter().flat_map(|attribute| match attribute {
        SetElementList::Elements(elements) => &elements[..],
        _ => &[],
    })
}

/// An element's address, and whether that is where a range has ended.
fn key(element: &ListAttribute<SetElementAttribute>) -> Option<(IpAddr, bool)> {
    let ListAttribute::Element(attributes) = element else { return None };
    let is_end = attributes.iter().any(|attribute| match attribute {
        SetElementAttribute::Flags(flags) => flags.contains(SetElementFlags::IntervalEnd),
        _ => false,
    });
    attributes.iter().find_map(|attribute| match attribute {
        SetElementAttribute::Key(DataAttribute::Value(value)) => {
            let v4 = <[u8; 4]>::try_from(&value[..]).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(&value[..]).map(IpAddr::from)).ok().map(|address| (address, is_end))
        }
        _ => None,
    })
}

/// Gives the interface's table this content, at once and as a whole: there is no moment without one or the other.
pub fn apply(rules: &GuardRules) -> Result<(), GuardError> {
    commit(Transaction::setting(rules))
}

/// Removes the interface's table, if there is one.
pub fn remove(interface: &str) -> Result<(), GuardError> {
    commit(Transaction::removing(interface))
}

/// Removes all interfaces' tables, and returns their names.
pub fn remove_all() -> Result<Vec<String>, GuardError> {
    let tables = tables()?;
    if !tables.is_empty() {
        let mut transaction = Transaction::default();
        tables.iter().for_each(|table| transaction.remove(table));
        commit(transaction)?;
    }
    Ok(tables)
}

/// Content of the interface's table; `None` if there is no such table.
pub fn read(interface: &str) -> Result<Option<Content>, GuardError> {
    let table = table_name(interface);
    let mut tries = 0;
    loop {
        tries += 1;
        match read_table(&table) {
            // Others change theirs meanwhile.
            Err(error) if error.kind() == ErrorKind::Interrupted && tries < MAX_READS => {}
            // Not there, or gone while it was read.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(None),
            content => return Ok(Some(content?)),
        }
    }
}

fn read_table(table: &str) -> io::Result<Content> {
    let named = TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] };
    let mut content = ask(NfTablesMessage::GetTable(named), NLM_F_ACK)?;
    read_inside(table, &mut content)?;
    Ok(Content(content))
}

/// The names of all interfaces' tables.
pub(super) fn tables() -> Result<Vec<String>, GuardError> {
    let all = ask(NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() }), NLM_F_DUMP)?;
    let names = all.into_iter().filter_map(|message| match message {
        NfTablesMessage::NewTable(table) => table.attributes.into_iter().find_map(|attribute| match attribute {
            TableAttribute::Name(name) => Some(name),
            _ => None,
        }),
        _ => None,
    });
    Ok(names.filter(|name| name.starts_with(PREFIX)).collect())
}

fn read_inside(table: &str, content: &mut Vec<NfTablesMessage>) -> io::Result<()> {
    let table = || table.to_owned();
    for chain in CHAINS {
        let named = vec![ChainAttribute::Table(table()), ChainAttribute::Name(chain.to_owned())];
        content.extend(ask(NfTablesMessage::GetChain(ChainMessage { attributes: named }), NLM_F_ACK)?);
    }
    let in_table = vec![RuleAttribute::Table(table())];
    let rules = ask(NfTablesMessage::GetRule(RuleMessage { attributes: in_table }), NLM_F_DUMP)?;
    content.extend(rules.into_iter().map(without_counters));
    let in_table = vec![SetAttribute::Table(table())];
    content.extend(ask(NfTablesMessage::GetSet(SetMessage { attributes: in_table }), NLM_F_DUMP)?);
    for set in SETS {
        let named = vec![SetElementList::Table(table()), SetElementList::Set(set.to_owned())];
        let elements = NfTablesMessage::GetSetElement(SetElementMessage { attributes: named });
        content.extend(ask(elements, NLM_F_DUMP)?);
    }
    Ok(())
}

fn without_counters(message: NfTablesMessage) -> NfTablesMessage {
    let NfTablesMessage::NewRule(mut rule) = message else { return message };
    for attribute in &mut rule.attributes {
        let RuleAttribute::Expressions(expressions) = attribute else { continue };
        expressions.retain(|expression| !is_counter(expression));
    }
    NfTablesMessage::NewRule(rule)
}

fn is_counter(expression: &ListAttribute<ExpressionAttribute>) -> bool {
    let ListAttribute::Element(attributes) = expression else { return false };
    attributes.iter().any(|attribute| match attribute {
        ExpressionAttribute::Data(Expressions::Other { expression_type, .. }) => expression_type == "counter",
        _ => false,
    })
}

fn commit(transaction: Transaction) -> Result<(), GuardError> {
    let (bytes, last) = transaction.finish();
    let socket = open()?;
    // The kernel takes a transaction in one piece, or not at all. Without the privilege it will be refused anyway.
    let _ = setsockopt(&socket, sockopt::SndBufForce, &(2 * bytes.len()));
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(bytes.len() + ANSWERS));
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    loop {
        for message in receive(&socket)? {
            let NetlinkPayload::Error(error) = message.payload else { continue };
            match error.code {
                Some(_) => return Err(error.to_io().into()),
                None if message.header.sequence_number == last => return Ok(()),
                None => {}
            }
        }
    }
}

/// Asks, and waits until all answers are there.
fn ask(message: NfTablesMessage, flags: u16) -> io::Result<Vec<NfTablesMessage>> {
    let socket = open()?;
    socket.send_to(&question(message, flags), &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        for message in receive(&socket)? {
            if message.header.flags & NLM_F_DUMP_INTR != 0 {
                return Err(ErrorKind::Interrupted.into());
            }
            match message.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(answer),
                    ..
                }) => {
                    answers.push(answer);
                }
                _ => {}
            }
        }
    }
}

fn open() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    // Its acknowledgements need not repeat what they are for.
    socket.set_cap_ack(true)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    Ok(socket)
}

/// Bytes of one read. More than one message may be in it.
fn receive(socket: &Socket) -> io::Result<Vec<NetlinkMessage<NetfilterMessage>>> {
    let mut buffer = Vec::with_capacity(READ);
    socket.recv(&mut buffer, 0)?;
    messages(&buffer)
}

/// The messages of one read.
pub(super) fn messages(mut bytes: &[u8]) -> io::Result<Vec<NetlinkMessage<NetfilterMessage>>> {
    let malformed = |error| io::Error::new(ErrorKind::InvalidData, error);
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = NetlinkBuffer::new_checked(bytes).map_err(malformed)?.length() as usize;
        messages.push(NetlinkMessage::deserialize(bytes).map_err(malformed)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

/// More than the kernel puts into one read.
const READ: usize = 1 << 17;
/// Room for acknowledgements.
const ANSWERS: usize = 1 << 20;
/// Between two transactions of a host that makes many there is time enough.
const MAX_READS: u32 = 10;
/// In seconds, of a kernel that answers while it is asked.
const PATIENCE: i64 = 5;
