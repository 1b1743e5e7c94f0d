//! What a host does with IPv4 fragments: waits for all of one packet (RFC 791 §3.2).

use std::collections::BTreeMap;

use crate::reference::Delivery;
use crate::twin::packet::{field, ip_header_len, is_v4, set_field, sum};

/// Fragments of packets that are not whole yet.
#[derive(Default)]
pub(crate) struct Reassembly(BTreeMap<Name, Fragments>);

/// Of a packet: the host that gets it, its addresses and its identification.
type Name = (usize, Vec<u8>, usize);

/// By offset in units of eight bytes.
type Fragments = BTreeMap<usize, Vec<u8>>;

impl Reassembly {
    /// Takes what a host was given. Returns a packet that is whole: what is no fragment, and what a last fragment completes.
    pub(crate) fn take(&mut self, host: usize, delivery: Delivery) -> Option<Delivery> {
        let bytes = &delivery.bytes;
        if !is_v4(bytes) || field(bytes, 6) & 0x3fff == 0 {
            return Some(delivery);
        }
        let name = (host, bytes[12..20].to_vec(), field(bytes, 4));
        let fragments = self.0.entry(name.clone()).or_default();
        fragments.insert(field(bytes, 6) & 0x1fff, bytes.clone());
        let whole = joined(fragments)?;
        self.0.remove(&name);
        Some(Delivery { bytes: whole, ..delivery })
    }
}

fn joined(fragments: &Fragments) -> Option<Vec<u8>> {
    let first = fragments.get(&0)?;
    let header_len = ip_header_len(first);
    let mut whole = first[..header_len].to_vec();
    for (offset, fragment) in fragments {
        if whole.len() - header_len != offset * 8 {
            return None;
        }
        whole.extend(&fragment[header_len..]);
    }
    let (_, last) = fragments.last_key_value()?;
    if field(last, 6) & 0x2000 != 0 {
        return None;
    }
    let length = whole.len();
    set_field(&mut whole, 2, length);
    set_field(&mut whole, 6, 0);
    set_field(&mut whole, 10, 0);
    let checksum = 0xffff - sum(&whole[..header_len]);
    set_field(&mut whole, 10, checksum);
    Some(whole)
}
