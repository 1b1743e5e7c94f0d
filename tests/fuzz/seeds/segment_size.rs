//! Where the fuzzer of segment sizes begins, and whether anything is to be changed.

/// Ports and numbers, a header of 24 bytes with SYN, a checksum, and a segment size of 1460.
const SYN: [u8; 24] =
    [0x1f, 0x90, 0xc3, 0x50, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x02, 1, 2, 0xab, 0xcd, 0, 0, 2, 4, 0x05, 0xb4];
const TCP: u8 = 6;

/// For packets of up to `longest` bytes.
fn seed(longest: u16, packet: &[u8]) -> Vec<u8> {
    [&longest.to_be_bytes()[..], &[0], packet].concat()
}

fn v4(message: &[u8]) -> Vec<u8> {
    let length = 20 + message.len() as u8;
    let header = [0x45, 0, 0, length, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 77, 0, 1, 10, 77, 0, 9];
    [&header, message].concat()
}

fn v6(next: u8, message: &[u8]) -> Vec<u8> {
    let header = [0x60, 0, 0, 0, 0, message.len() as u8, next, 64];
    [&header, &[0xfd; 16][..], &[0xfc; 16], message].concat()
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>, bool)> {
    let options = |length| [TCP, length, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut acknowledgement = SYN;
    acknowledgement[13] = 0x10;
    let mut odd = SYN.to_vec();
    odd[12] = 0x70;
    odd.splice(20..20, [3, 3, 7]);
    odd.push(0);
    vec![
        ("syn-v4", seed(1220, &v4(&SYN)), true),
        ("syn-v6", seed(1220, &v6(TCP, &SYN)), true),
        ("an-odd-offset", seed(1220, &v4(&odd)), true),
        ("a-wide-path", seed(1500, &v4(&SYN)), false),
        ("no-syn", seed(1220, &v4(&acknowledgement)), false),
        ("behind-options", seed(1220, &v6(60, &[&options(1)[..], &SYN].concat())), true),
        ("options-beyond-the-end", seed(1220, &v6(60, &[&options(100)[..], &SYN].concat())), false),
        ("authenticated", seed(1220, &v6(51, &[&options(2)[..], &SYN].concat())), true),
        ("first-fragment", seed(1220, &v6(44, &[&[TCP, 0, 0, 1, 0, 0, 0, 9][..], &SYN].concat())), true),
        ("later-fragment", seed(1220, &v6(44, &[&[TCP, 0, 0, 8, 0, 0, 0, 9][..], &SYN].concat())), false),
    ]
}
