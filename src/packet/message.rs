//! The four wire messages: initiation, response, cookie reply, transport data. All integers are little-endian.
//!
//! This module knows where the bytes lie, nothing of what they mean: encryption, MACs and limits are `proto`'s.

use std::ops::Range;

/// The version in every handshake message and in the Noise prologue.
pub const PROTOCOL_VERSION: u8 = 1;

/// Length in bytes of an AEAD tag.
pub const TAG_LEN: usize = 16;
/// Length in bytes of mac1 and of mac2.
pub const MAC_LEN: usize = 16;
/// Length in bytes of an X25519 public key.
pub const DH_LEN: usize = 32;
/// Length in bytes of an ML-KEM-768 encapsulation key (FIPS 203 §8).
pub const ENCAPSULATION_KEY_LEN: usize = 1184;
/// Length in bytes of an ML-KEM-768 ciphertext (FIPS 203 §8).
pub const KEM_CIPHERTEXT_LEN: usize = 1088;
/// Length in bytes of a TAI64N timestamp.
pub const TIMESTAMP_LEN: usize = 12;
/// Length in bytes of the sender's parameters in a handshake payload.
pub const PARAMETERS_LEN: usize = 8;

/// Length in bytes of the clear header of an initiation.
pub const INITIATION_HEADER_LEN: usize = 8;
/// Length in bytes of an initiation's payload before encryption.
pub const INITIATION_PAYLOAD_LEN: usize = TIMESTAMP_LEN + PARAMETERS_LEN + ENCAPSULATION_KEY_LEN;
/// Where an initiation's Noise message lies.
pub const INITIATION_NOISE: Range<usize> =
    INITIATION_HEADER_LEN..INITIATION_HEADER_LEN + DH_LEN + DH_LEN + TAG_LEN + INITIATION_PAYLOAD_LEN + TAG_LEN;
/// Length in bytes of an initiation.
pub const INITIATION_LEN: usize = INITIATION_NOISE.end + 2 * MAC_LEN;

/// Length in bytes of the clear header of a response.
pub const RESPONSE_HEADER_LEN: usize = 12;
/// Where a response's ML-KEM ciphertext lies.
pub const RESPONSE_KEM_CIPHERTEXT: Range<usize> = RESPONSE_HEADER_LEN..RESPONSE_HEADER_LEN + KEM_CIPHERTEXT_LEN;
/// Where a response's Noise message lies.
pub const RESPONSE_NOISE: Range<usize> =
    RESPONSE_KEM_CIPHERTEXT.end..RESPONSE_KEM_CIPHERTEXT.end + DH_LEN + PARAMETERS_LEN + TAG_LEN;
/// Length in bytes of a response.
pub const RESPONSE_LEN: usize = RESPONSE_NOISE.end + 2 * MAC_LEN;

/// Length in bytes of a cookie.
pub const COOKIE_LEN: usize = 16;
/// Length in bytes of a cookie reply's nonce.
pub const COOKIE_NONCE_LEN: usize = 24;
/// Length in bytes of a cookie reply.
pub const COOKIE_REPLY_LEN: usize = 8 + COOKIE_NONCE_LEN + COOKIE_LEN + TAG_LEN;

/// Length in bytes of the clear header of transport data.
pub const TRANSPORT_HEADER_LEN: usize = 12;
/// What a transport datagram adds to its plaintext, in bytes.
pub const TRANSPORT_OVERHEAD: usize = TRANSPORT_HEADER_LEN + TAG_LEN;

/// The largest counter of a lane: the wire has 48 bits for it.
pub const MAX_COUNTER: u64 = (1 << 48) - 1;

const KIND_INITIATION: u8 = 1;
const KIND_RESPONSE: u8 = 2;
const KIND_COOKIE_REPLY: u8 = 3;
/// First byte of transport data. The second is the lane.
pub const KIND_TRANSPORT: u8 = 4;

// No amplification, and a 1400-byte path carries an initiation over IPv6 (40 + 8 bytes).
const _: () = assert!(INITIATION_LEN >= RESPONSE_LEN && INITIATION_LEN + 48 <= 1400);

/// A datagram sorted by kind, with its length checked against that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Handshake message 1.
    Initiation(Initiation<'a>),
    /// Handshake message 2.
    Response(Response<'a>),
    /// The answer to a handshake message while under load.
    CookieReply(CookieReply<'a>),
    /// Sealed frames.
    Transport(TransportHeader),
}

/// The datagram is of no known kind or version, or not as long as its kind demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message")]
pub struct MalformedMessage;

impl<'a> Message<'a> {
    /// Sorts a datagram. Nothing in it is authenticated yet.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MalformedMessage> {
        let [kind, version_or_lane, ..] = *datagram else { return Err(MalformedMessage) };
        if kind == KIND_TRANSPORT {
            return TransportHeader::parse(datagram).map(Self::Transport);
        }
        if version_or_lane != PROTOCOL_VERSION {
            return Err(MalformedMessage);
        }
        match kind {
            KIND_INITIATION => {
                datagram.try_into().map(|bytes| Self::Initiation(Initiation { bytes })).map_err(|_| MalformedMessage)
            }
            KIND_RESPONSE => {
                datagram.try_into().map(|bytes| Self::Response(Response { bytes })).map_err(|_| MalformedMessage)
            }
            KIND_COOKIE_REPLY => {
                datagram.try_into().map(|bytes| Self::CookieReply(CookieReply { bytes })).map_err(|_| MalformedMessage)
            }
            _ => Err(MalformedMessage),
        }
    }
}

/// `kind | version | suite | 0 | sender index (4) | Noise message 1 | mac1 | mac2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initiation<'a> {
    /// The whole message.
    pub bytes: &'a [u8; INITIATION_LEN],
}

impl Initiation<'_> {
    /// The suite byte.
    pub fn suite(&self) -> u8 {
        self.bytes[2]
    }

    /// The session index that the initiator chose.
    pub fn sender_index(&self) -> u32 {
        u32_at(self.bytes, 4)
    }
}

/// The clear header of an initiation.
pub fn initiation_header(suite: u8, sender_index: u32) -> [u8; INITIATION_HEADER_LEN] {
    let [a, b, c, d] = sender_index.to_le_bytes();
    [KIND_INITIATION, PROTOCOL_VERSION, suite, 0, a, b, c, d]
}

/// `kind | version | suite | 0 | sender index (4) | receiver index (4) | ML-KEM ciphertext | Noise message 2 | mac1 | mac2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The whole message.
    pub bytes: &'a [u8; RESPONSE_LEN],
}

impl Response<'_> {
    /// The suite byte.
    pub fn suite(&self) -> u8 {
        self.bytes[2]
    }

    /// The session index that the responder chose.
    pub fn sender_index(&self) -> u32 {
        u32_at(self.bytes, 4)
    }

    /// The session index that the initiator chose.
    pub fn receiver_index(&self) -> u32 {
        u32_at(self.bytes, 8)
    }
}

/// The clear header of a response.
pub fn response_header(suite: u8, sender_index: u32, receiver_index: u32) -> [u8; RESPONSE_HEADER_LEN] {
    let mut header = [KIND_RESPONSE, PROTOCOL_VERSION, suite, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&sender_index.to_le_bytes());
    header[8..12].copy_from_slice(&receiver_index.to_le_bytes());
    header
}

/// `kind | version | 0 | 0 | receiver index (4) | nonce (24) | sealed cookie (32)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieReply<'a> {
    /// The whole message.
    pub bytes: &'a [u8; COOKIE_REPLY_LEN],
}

impl CookieReply<'_> {
    /// The sender index of the handshake message that this answers.
    pub fn receiver_index(&self) -> u32 {
        u32_at(self.bytes, 4)
    }

    /// The nonce of the sealed cookie.
    pub fn nonce(&self) -> &[u8; COOKIE_NONCE_LEN] {
        self.bytes[8..].first_chunk().expect("a cookie reply is longer than its nonce")
    }

    /// The cookie and its tag.
    pub fn sealed_cookie(&self) -> &[u8; COOKIE_LEN + TAG_LEN] {
        self.bytes.last_chunk().expect("a cookie reply is longer than its cookie")
    }

    /// Builds a cookie reply.
    pub fn encode(
        receiver_index: u32,
        nonce: &[u8; COOKIE_NONCE_LEN],
        sealed_cookie: &[u8; COOKIE_LEN + TAG_LEN],
    ) -> [u8; COOKIE_REPLY_LEN] {
        let mut bytes = [0; COOKIE_REPLY_LEN];
        bytes[..2].copy_from_slice(&[KIND_COOKIE_REPLY, PROTOCOL_VERSION]);
        bytes[4..8].copy_from_slice(&receiver_index.to_le_bytes());
        bytes[8..8 + COOKIE_NONCE_LEN].copy_from_slice(nonce);
        bytes[8 + COOKIE_NONCE_LEN..].copy_from_slice(sealed_cookie);
        bytes
    }
}

/// `kind | lane | receiver index (4) | counter (6)`: the clear header of transport data, and its associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportHeader {
    /// The sending worker's lane.
    pub lane: u8,
    /// The session index that the receiver chose.
    pub receiver_index: u32,
    /// The lane's counter, at most [`MAX_COUNTER`].
    pub counter: u64,
}

impl TransportHeader {
    fn parse(datagram: &[u8]) -> Result<Self, MalformedMessage> {
        if datagram.len() < TRANSPORT_OVERHEAD {
            return Err(MalformedMessage);
        }
        let mut counter = [0; 8];
        counter[..6].copy_from_slice(&datagram[6..12]);
        Ok(Self { lane: datagram[1], receiver_index: u32_at(datagram, 2), counter: u64::from_le_bytes(counter) })
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; TRANSPORT_HEADER_LEN] {
        debug_assert!(self.counter <= MAX_COUNTER);
        let mut bytes = [KIND_TRANSPORT, self.lane, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..6].copy_from_slice(&self.receiver_index.to_le_bytes());
        bytes[6..12].copy_from_slice(&self.counter.to_le_bytes()[..6]);
        bytes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_recognised_at_its_length_only() {
        for (kind, length) in [(1, INITIATION_LEN), (2, RESPONSE_LEN), (3, COOKIE_REPLY_LEN)] {
            let mut datagram = vec![0; 1500];
            datagram[..2].copy_from_slice(&[kind, PROTOCOL_VERSION]);
            for tried in 0..datagram.len() {
                assert_eq!(Message::parse(&datagram[..tried]).is_ok(), tried == length, "kind {kind}, {tried} bytes");
            }
        }
        for length in 0..100 {
            let mut datagram = vec![0; length];
            if let Some(kind) = datagram.first_mut() {
                *kind = KIND_TRANSPORT;
            }
            assert_eq!(Message::parse(&datagram).is_ok(), length >= TRANSPORT_OVERHEAD);
        }
    }

    #[test]
    fn other_kinds_and_other_versions_are_refused() {
        for kind in [0, 5, 255] {
            assert!(Message::parse(&[kind; 64]).is_err());
        }
        let mut datagram = [0; INITIATION_LEN];
        datagram[..2].copy_from_slice(&[1, PROTOCOL_VERSION + 1]);
        assert!(Message::parse(&datagram).is_err());
    }

    #[test]
    fn a_transport_header_goes_there_and_back() {
        let header = TransportHeader { lane: 3, receiver_index: 0x0102_0304, counter: MAX_COUNTER - 1 };
        let mut datagram = header.encode().to_vec();
        datagram.resize(TRANSPORT_OVERHEAD, 0);
        assert_eq!(Message::parse(&datagram), Ok(Message::Transport(header)));
    }
}
