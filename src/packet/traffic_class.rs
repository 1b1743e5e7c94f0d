//! The traffic class of an IP packet, IPv4's type of service: what it asks of networks (DSCP, RFC 2474), and what they say to
//! it (ECN, RFC 3168).

use super::checksum;

/// DSCP and ECN field together, in the order of IPv4: the ECN field is the lower two bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficClass(u8);

/// What the ECN field says, with its code points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ecn {
    /// The flow does not understand marks.
    #[default]
    NotEct = 0b00,
    /// The flow understands marks, and wants many (RFC 9331).
    Ect1 = 0b01,
    /// The flow understands marks.
    Ect0 = 0b10,
    /// A network marked the packet instead of dropping it: congestion experienced.
    Ce = 0b11,
}

impl TrafficClass {
    /// From the byte of an IPv4 header, or the field of an IPv6 header.
    pub fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// Of an IPv4 or IPv6 packet; anything else has none.
    pub fn of(packet: &[u8]) -> Self {
        match *packet {
            [version, class, ..] if version >> 4 == 4 => Self(class),
            // IPv6 does not align it.
            [high, low, ..] if high >> 4 == 6 => Self(high << 4 | low >> 4),
            _ => Self::default(),
        }
    }

    /// As it stands in an IPv4 header.
    pub fn byte(self) -> u8 {
        self.0
    }

    /// The upper six bits.
    pub fn dscp(self) -> u8 {
        self.0 >> 2
    }

    /// The lower two bits.
    pub fn ecn(self) -> Ecn {
        match self.0 & ECN_MASK {
            0b00 => Ecn::NotEct,
            0b01 => Ecn::Ect1,
            0b10 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    /// With other upper six bits; of `dscp` the lower six count.
    pub fn with_dscp(self, dscp: u8) -> Self {
        Self(dscp << 2 | self.0 & ECN_MASK)
    }

    /// With other lower two bits.
    pub fn with_ecn(self, ecn: Ecn) -> Self {
        Self(self.0 & !ECN_MASK | ecn as u8)
    }
}

impl Ecn {
    /// What a packet with this field says once it has left a datagram that arrived with `outer`; `None` if the mark can only be
    /// passed on as a loss (RFC 6040 §4.2, figure 4).
    pub fn decapsulated(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, _) => Some(Self::NotEct),
            (_, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (inner, _) => Some(inner),
        }
    }

    /// Whether a packet may leave a datagram that arrived with this as other than it went in.
    pub fn changes_packets(self) -> bool {
        matches!(self, Self::Ect1 | Self::Ce)
    }
}

/// Changes the ECN field of an IP packet, or of its header alone. An IPv4 header's checksum stays right, or wrong.
pub fn set_ecn(packet: &mut [u8], ecn: Ecn) {
    let class = TrafficClass::of(packet).with_ecn(ecn).0;
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() > IPV4_CHECKSUM_AT + 1 => {
            let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let before = word(packet, 0);
            packet[1] = class;
            let sum = checksum::updated(word(packet, IPV4_CHECKSUM_AT), before, word(packet, 0));
            packet[IPV4_CHECKSUM_AT..IPV4_CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) if packet.len() > 1 => {
            packet[0] = packet[0] & 0xf0 | class >> 4;
            packet[1] = packet[1] & 0x0f | class << 4;
        }
        _ => {}
    }
}

/// Has an IP packet say what it should after a datagram that arrived with `outer`. One that is to be dropped instead is left
/// as it is, as is what is no IP packet.
pub fn decapsulate(packet: &mut [u8], outer: Ecn) {
    let inner = TrafficClass::of(packet).ecn();
    if let Some(ecn) = inner.decapsulated(outer).filter(|ecn| *ecn != inner) {
        set_ecn(packet, ecn);
    }
}

const ECN_MASK: u8 = 0b11;
const IPV4_CHECKSUM_AT: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    /// A packet of either family with this traffic class, and all other bits of its first bytes set.
    fn packet(v6: bool, class: u8) -> Vec<u8> {
        if v6 {
            return [&[0x60 | class >> 4, class << 4 | 0x0f, 0xff, 0xff, 0, 0, 59, 64][..], &[0xfd; 32]].concat();
        }
        let mut packet = vec![0x45, class, 0, 20, 0xff, 0xff, 0x40, 0, 64, 59, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = checksum::finish(0, &packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    #[test]
    fn packets_leave_the_tunnel_as_rfc_6040_says() {
        // Rows: the packet's field; columns: the datagram's; both in the order Not-ECT, ECT(0), ECT(1), CE.
        const TABLE: [[Option<Ecn>; 4]; 4] = [
            [Some(Ecn::NotEct), Some(Ecn::NotEct), Some(Ecn::NotEct), None],
            [Some(Ecn::Ect0), Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce)],
            [Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ce)],
            [Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce)],
        ];
        for (inner, row) in ALL.into_iter().zip(TABLE) {
            for (outer, expected) in ALL.into_iter().zip(row) {
                assert_eq!(inner.decapsulated(outer), expected, "{inner:?} in {outer:?}");
                let changes = expected != Some(inner);
                assert!(!changes || outer.changes_packets(), "{inner:?} in {outer:?}");
                for v6 in [false, true] {
                    let class = TrafficClass::default().with_dscp(46);
                    let mut bytes = packet(v6, class.with_ecn(inner).byte());
                    decapsulate(&mut bytes, outer);
                    assert_eq!(bytes, packet(v6, class.with_ecn(expected.unwrap_or(inner)).byte()), "{v6}");
                }
            }
        }
    }

    #[test]
    fn the_parts_of_every_class_are_found_in_both_families() {
        for class in 0..=u8::MAX {
            for v6 in [false, true] {
                let read = TrafficClass::of(&packet(v6, class));
                assert_eq!((read.byte(), read.dscp(), read.ecn() as u8), (class, class >> 2, class & 3));
                assert_eq!(TrafficClass::default().with_dscp(read.dscp()).with_ecn(read.ecn()), read);
            }
        }
        for nothing in [&[][..], &[0x45], &[0x55, 0xff]] {
            assert_eq!(TrafficClass::of(nothing), TrafficClass::default());
        }
    }

    proptest! {
        #[test]
        fn the_header_checksum_stays_right_or_wrong(mut header: [u8; 20], wrong: u16, to in 0..4usize) {
            header[0] = 0x45;
            header[10..12].fill(0);
            let sum = checksum::finish(0, &header) ^ wrong;
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let before = checksum::finish(0, &header);
            set_ecn(&mut header, ALL[to]);
            prop_assert_eq!(TrafficClass::of(&header).ecn(), ALL[to]);
            prop_assert_eq!(checksum::finish(0, &header) % 0xffff, before % 0xffff);
            if wrong == 0 {
                let kept = [header[10], header[11]];
                header[10..12].fill(0);
                prop_assert_eq!(kept, checksum::finish(0, &header).to_be_bytes());
            }
        }

        #[test]
        fn nothing_but_the_ecn_field_and_the_checksum_is_changed(bytes in prop::collection::vec(any::<u8>(), 0..60), to in 0..4usize) {
            let mut changed = bytes.clone();
            set_ecn(&mut changed, ALL[to]);
            let is_v4 = bytes.first().is_some_and(|first| first >> 4 == 4);
            for (at, (before, after)) in bytes.iter().zip(&changed).enumerate() {
                let may_change = match at {
                    1 => if is_v4 { 0x03 } else { 0x30 },
                    10 | 11 if is_v4 => 0xff,
                    _ => 0,
                };
                prop_assert_eq!((before ^ after) & !may_change, 0);
            }
        }
    }
}
