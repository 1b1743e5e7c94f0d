//! One direction's key of a session: ring's AEAD under Noise's nonces, zeroed when dropped.

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::keys::KEY_LEN;
use crate::packet::message::TAG_LEN;

use super::noise::Suite;
use super::wiped::Wiped;

/// The data did not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidTag;

/// An AEAD key.
pub(super) struct AeadKey {
    key: Wiped<LessSafeKey>,
    suite: Suite,
}

impl AeadKey {
    /// Expands `key` for the suite's cipher.
    pub(super) fn new(suite: Suite, key: &[u8; KEY_LEN]) -> Self {
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, key).expect("both algorithms take keys of 32 bytes");
        Self { key: Wiped::new(LessSafeKey::new(key)), suite }
    }

    /// Encrypts `plaintext` in place and returns the tag. The caller uses no nonce twice.
    pub(super) fn seal(&self, nonce: u64, associated: &[u8], plaintext: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .key
            .seal_in_place_separate_tag(self.nonce(nonce), Aad::from(associated), plaintext)
            .expect("a datagram is shorter than the AEAD's limit");
        tag.as_ref().try_into().expect("both AEADs have tags of 16 bytes")
    }

    /// Verifies and decrypts `ciphertext`, whose last 16 bytes are the tag, in place; returns the plaintext.
    pub(super) fn open<'b>(
        &self,
        nonce: u64,
        associated: &[u8],
        ciphertext: &'b mut [u8],
    ) -> Result<&'b mut [u8], InvalidTag> {
        self.key.open_in_place(self.nonce(nonce), Aad::from(associated), ciphertext).map_err(|_| InvalidTag)
    }

    /// Noise's 96-bit nonces: 32 bits of zeros, then the 64-bit number, big-endian for AES-GCM and little-endian for
    /// ChaCha20-Poly1305 (Noise specification §12.3, §12.4).
    fn nonce(&self, nonce: u64) -> Nonce {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&match self.suite {
            Suite::Aes256Gcm => nonce.to_be_bytes(),
            Suite::ChaCha20Poly1305 => nonce.to_le_bytes(),
        });
        Nonce::assume_unique_for_key(bytes)
    }
}
