//! The three kinds of key: X25519 private and public keys and the symmetric preshared key.
//!
//! Text form is standard base64 with padding, 44 characters, as WireGuard writes its keys. Secrets are zeroed when
//! dropped and redacted in `Debug`. This module generates no randomness: fresh bytes come in from the caller.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length in bytes of every key.
pub const KEY_LEN: usize = 32;

/// Length in characters of a key's base64 text.
pub const KEY_TEXT_LEN: usize = 44;

/// Why a key's text or bytes were refused. Never carries the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 44 base64 characters.
    #[error("a key is {KEY_TEXT_LEN} characters of base64 (32 bytes), this has {0}")]
    Length(usize),
    /// The right length, but not canonical base64.
    #[error("a key is base64: letters, digits, '+' and '/', ending in one '='")]
    NotBase64,
    /// A point of small order: every exchange with it gives the same, public, secret (RFC 7748 §6.1).
    #[error(
        "this public key is a low-order point, which no key generator makes; a session with it would have no secrecy"
    )]
    LowOrder,
    /// All zero bytes.
    #[error("this key is all zeros")]
    Zero,
}

/// An X25519 public key: who a peer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Accepts any point but the low-order ones.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        // A clamped scalar is a multiple of the cofactor, so exactly the low-order points give zero (RFC 7748 §6.1).
        let shared = Zeroizing::new(x25519_dalek::x25519([1; KEY_LEN], bytes));
        if *shared == [0; KEY_LEN] { Err(KeyError::LowOrder) } else { Ok(Self(bytes)) }
    }

    /// The 32 bytes of the wire.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The first eight characters of the base64 text: enough to tell peers apart in a log line.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*decode(text)?)
    }
}

/// An X25519 private key. Zeroed when dropped, never printed by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_LEN]);

impl PrivateKey {
    /// Clamps `bytes` as RFC 7748 §5 decodes a scalar, so that equal keys are equal bytes.
    pub fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        if bytes == [0; KEY_LEN] {
            return Err(KeyError::Zero);
        }
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        let key = Self(bytes);
        bytes.zeroize();
        Ok(key)
    }

    /// The public key that belongs to it.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }

    /// The secret bytes, for the handshake.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The base64 text, in memory that is zeroed: for `genkey` only.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.0))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*decode(text)?)
    }
}

/// A symmetric key that both sides of a link may share beside their key pairs. Zeroed when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PresharedKey {
    /// Takes any 32 bytes but all zeros, which mean "none" on the wire.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        if bytes == [0; KEY_LEN] { Err(KeyError::Zero) } else { Ok(Self(bytes)) }
    }

    /// The secret bytes, for the handshake.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The base64 text, in memory that is zeroed: for `genpsk` only.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.0))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(redacted)")
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*decode(text)?)
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let text = text.trim();
    if text.len() != KEY_TEXT_LEN {
        return Err(KeyError::Length(text.chars().count()));
    }
    // The decoder asks for room by its own estimate, which is one byte more than a key.
    let mut buffer = Zeroizing::new([0; KEY_LEN + 1]);
    let decoded = BASE64.decode_slice(text, buffer.as_mut_slice()).map_err(|_| KeyError::NotBase64)?;
    let mut key = Zeroizing::new([0; KEY_LEN]);
    if decoded != KEY_LEN {
        return Err(KeyError::NotBase64);
    }
    key.copy_from_slice(&buffer[..KEY_LEN]);
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE_PRIVATE: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
        0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
    ];
    const ALICE_PUBLIC: [u8; 32] = [
        0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d, 0xbf,
        0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
    ];

    #[test]
    fn derives_the_public_key_of_rfc_7748_section_6_1() {
        assert_eq!(PrivateKey::from_bytes(ALICE_PRIVATE).unwrap().public_key().as_bytes(), &ALICE_PUBLIC);
    }

    #[test]
    fn an_unclamped_private_key_is_normalised() {
        let mut unclamped = ALICE_PRIVATE;
        unclamped[0] |= 7;
        unclamped[31] |= 128;
        let clamped = PrivateKey::from_bytes(unclamped).unwrap();
        assert_eq!(clamped.as_bytes()[0] & 7, 0);
        assert_eq!(clamped.public_key().as_bytes(), &ALICE_PUBLIC);
    }

    #[test]
    fn text_goes_there_and_back() {
        let key = PublicKey::from_bytes(ALICE_PUBLIC).unwrap();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(format!(" {key}\n").parse(), Ok(key));
        assert_eq!(key.to_string().len(), KEY_TEXT_LEN);
    }

    #[test]
    fn refuses_what_is_not_a_key() {
        assert_eq!("abc".parse::<PublicKey>(), Err(KeyError::Length(3)));
        assert_eq!("!".repeat(44).parse::<PublicKey>(), Err(KeyError::NotBase64));
        assert_eq!("A".repeat(44).parse::<PublicKey>(), Err(KeyError::NotBase64));
        assert_eq!(PrivateKey::from_bytes([0; 32]).unwrap_err(), KeyError::Zero);
        assert_eq!(PresharedKey::from_bytes([0; 32]).unwrap_err(), KeyError::Zero);
    }

    #[test]
    fn refuses_all_low_order_points() {
        // The list of https://cr.yp.to/ecdh.html#validate, little-endian: 0, 1, two of order 8, p-1, p, p+1.
        let p_minus_1 = {
            let mut p = [0xff; 32];
            p[0] = 0xec;
            p[31] = 0x7f;
            p
        };
        let p = {
            let mut p = p_minus_1;
            p[0] = 0xed;
            p
        };
        let p_plus_1 = {
            let mut p = p_minus_1;
            p[0] = 0xee;
            p
        };
        let one = {
            let mut one = [0; 32];
            one[0] = 1;
            one
        };
        let order_8_a = [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
            0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ];
        let order_8_b = [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
            0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ];
        for point in [[0; 32], one, order_8_a, order_8_b, p_minus_1, p, p_plus_1] {
            assert_eq!(PublicKey::from_bytes(point), Err(KeyError::LowOrder), "{point:02x?}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let private = PrivateKey::from_bytes(ALICE_PRIVATE).unwrap();
        assert_eq!(format!("{private:?}"), "PrivateKey(redacted)");
        assert_eq!(format!("{:?}", PresharedKey::from_bytes([7; 32]).unwrap()), "PresharedKey(redacted)");
    }
}
