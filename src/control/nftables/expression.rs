//! The words of a rule: what of a packet is looked at, and what becomes of it.

use netlink_packet_netfilter::nftables::{
    Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta, MetaKey, Operator,
    Payload, Register, Verdict, VerdictAttribute,
};
use nix::libc;

/// One step of a rule, which ends it or lets it go on.
pub(super) type Expression = ListAttribute<ExpressionAttribute>;

/// Addresses of one family: their name in `nft`, and where they lie in a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// `NFPROTO_`.
    pub(super) number: u8,
    /// Ends the names of its sets.
    pub(super) suffix: &'static str,
    /// Of its addresses, in `nft`'s numbering of types.
    pub(super) key_type: u32,
    pub(super) key_len: u32,
    source_at: u32,
    destination_at: u32,
}

pub(super) const V4: Family =
    Family { number: 2, suffix: "4", key_type: 7, key_len: 4, source_at: 12, destination_at: 16 };
pub(super) const V6: Family =
    Family { number: 10, suffix: "6", key_type: 8, key_len: 16, source_at: 8, destination_at: 24 };

/// An end of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Source,
    Destination,
}

/// The interface that a packet has come in by, or leaves by.
pub(super) fn interface_is(key: MetaKey, name: &str) -> [Expression; 2] {
    let mut padded = [0; libc::IFNAMSIZ];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    [meta(key), equals(padded.to_vec())]
}

/// The mark of a packet that leaves.
pub(super) fn mark_is(mark: u32) -> [Expression; 2] {
    [meta(MetaKey::Mark), equals(mark.to_ne_bytes().to_vec())]
}

/// An address of a packet is one of a set's.
pub(super) fn address_is_in(family: Family, end: End, set: String) -> [Expression; 4] {
    let offset = match end {
        End::Source => family.source_at,
        End::Destination => family.destination_at,
    };
    let lookup = Expressions::Lookup(vec![Lookup::Set(set), Lookup::SourceRegister(Register::Reg1)]);
    let address = payload(NETWORK_HEADER, offset, family.key_len);
    [meta(MetaKey::Nfproto), equals(vec![family.number]), address, lookup.into()]
}

/// A UDP datagram from or to a port.
pub(super) fn udp_port_is(end: End, port: u16) -> [Expression; 4] {
    let offset = match end {
        End::Source => 0,
        End::Destination => 2,
    };
    let ports = payload(TRANSPORT_HEADER, offset, 2);
    [meta(MetaKey::L4Proto), equals(vec![UDP]), ports, equals(port.to_be_bytes().to_vec())]
}

/// Counts the packets that have come so far in the rule.
pub(super) fn counter() -> Expression {
    Expressions::Other { expression_type: "counter".into(), attributes: Vec::new() }.into()
}

pub(super) fn drop_it() -> Expression {
    verdict(libc::NF_DROP)
}

pub(super) fn accept() -> Expression {
    verdict(libc::NF_ACCEPT)
}

fn verdict(code: i32) -> Expression {
    let code = VerdictAttribute::Code(Verdict::Other(code.cast_unsigned()));
    let data = Immediate::Data(DataAttribute::Verdict(vec![code]));
    Expressions::Immediate(vec![Immediate::DestinationRegister(Register::Verdict), data]).into()
}

fn meta(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)]).into()
}

fn payload(base: u32, offset: u32, len: u32) -> Expression {
    let register = Payload::DestinationRegister(Register::Reg1);
    Expressions::Payload(vec![register, Payload::Base(base), Payload::Offset(offset), Payload::Len(len)]).into()
}

fn equals(value: Vec<u8>) -> Expression {
    let operands =
        vec![Cmp::SourceRegister(Register::Reg1), Cmp::Op(Operator::Equal), Cmp::Data(DataAttribute::Value(value))];
    Expressions::Cmp(operands).into()
}

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const UDP: u8 = 17;
