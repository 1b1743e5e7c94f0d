//! The Internet checksum (RFC 1071) and the pseudo-headers of TCP and UDP (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1).

use std::net::IpAddr;

/// Adds `bytes` to a running one's-complement sum. An odd last byte counts as the high half of a word, so only the last
/// part of a message may have an odd length.
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    // Wide accumulation: 2^32 words of 32 bits fit before 64 bits overflow, a packet has at most 2^14.
    let mut wide = u64::from(sum);
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        wide += u64::from(u32::from_be_bytes(word.try_into().expect("chunks of four")));
    }
    wide += match *words.remainder() {
        [] => 0,
        [a] => u64::from(a) << 8,
        [a, b] => u64::from(u16::from_be_bytes([a, b])),
        [a, b, c] => (u64::from(u16::from_be_bytes([a, b]))) + (u64::from(c) << 8),
        _ => unreachable!("a remainder of four-byte chunks is shorter than four"),
    };
    wide = (wide & 0xffff_ffff) + (wide >> 32);
    wide = (wide & 0xffff_ffff) + (wide >> 32);
    let wide = u32::try_from(wide).expect("two folds leave 32 bits");
    (wide & 0xffff) + (wide >> 16)
}

/// Folds a running sum to 16 bits. What a *partial* checksum field holds is this, not complemented.
pub fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum).expect("two folds leave 16 bits")
}

/// The finished checksum of `bytes` on top of `sum`.
pub fn finish(sum: u32, bytes: &[u8]) -> u16 {
    !fold(add(sum, bytes))
}

/// A finished checksum after one of the words that it covers was changed from `old` to `new` (RFC 1624 §3, equation 3).
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

/// The sum over the pseudo-header of an upper-layer message of `length` bytes. Both addresses are of one family.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u32 {
    let mut sum = u32::from(protocol) + (length >> 16) + (length & 0xffff);
    for address in [source, destination] {
        sum = match address {
            IpAddr::V4(address) => add(sum, &address.octets()),
            IpAddr::V6(address) => add(sum, &address.octets()),
        };
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_example_of_rfc_1071_section_3() {
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn agrees_with_the_obvious_sum_for_every_length() {
        let bytes: Vec<u8> = (0..2000u32).map(|i| (i * 31 % 251) as u8 | 0x80).collect();
        for length in (0..64).chain([1399, 1400, 1999, 2000]) {
            let mut slow = 0u32;
            for pair in bytes[..length].chunks(2) {
                slow += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
                slow = (slow & 0xffff) + (slow >> 16);
            }
            assert_eq!(fold(add(0, &bytes[..length])), fold(slow), "{length}");
        }
    }

    #[test]
    fn a_header_with_its_checksum_sums_to_zero() {
        let mut header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        let checksum = finish(0, &header);
        assert_eq!(checksum, 0xb861);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(finish(0, &header), 0);
    }
}
