//! The cryptographic handshake: Noise IKpsk2 through `snow`, with ML-KEM-768 mixed into the psk.
//!
//! With its primitives, the only module that names `snow`. It knows the Noise messages, the ML-KEM ciphertext and the
//! keys that come out; it knows nothing of datagrams' MACs, of peers, or of time.

use std::fmt;

use blake2::Blake2s256;
use blake2::digest::Digest as _;
use ml_kem::array::Array;
use ml_kem::kem::{Decapsulate as _, KeyExport as _};
use ml_kem::{DecapsulationKey, EncapsulationKey, MlKem768};
use ring::digest::SHA256;
use snow::{Builder, HandshakeState};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::keys::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};
use crate::packet::message::{
    DH_LEN, ENCAPSULATION_KEY_LEN, INITIATION_HEADER_LEN, INITIATION_NOISE, INITIATION_PAYLOAD_LEN, KEM_CIPHERTEXT_LEN,
    PARAMETERS_LEN, RESPONSE_HEADER_LEN, RESPONSE_NOISE, TIMESTAMP_LEN,
};

use super::constants::MAX_LANES;
use super::randomness::Randomness;
use super::tai64n::Tai64N;
use super::wiped::Wiped;

use self::primitives::Resolver;

mod primitives;

/// First part of the Noise prologue; the initiation's clear header follows it.
const PROLOGUE_LABEL: &[u8] = b"underpass v1 handshake";
/// Domain of the hash that makes the psk.
const PSK_LABEL: &[u8] = b"underpass v1 psk";
/// Index of the psk token in IKpsk2.
const PSK_POSITION: usize = 2;

const INITIATION_NOISE_LEN: usize = INITIATION_NOISE.end - INITIATION_NOISE.start;
const RESPONSE_NOISE_LEN: usize = RESPONSE_NOISE.end - RESPONSE_NOISE.start;

/// The cipher and hash of a session's Noise name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// `Noise_IKpsk2_25519_AESGCM_SHA256`: fastest where the CPU has AES instructions, and what audits ask for.
    Aes256Gcm,
    /// `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`: fast everywhere.
    ChaCha20Poly1305,
}

impl Suite {
    /// Both suites.
    pub const ALL: [Self; 2] = [Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// The byte of the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// The suite of a byte, if this version knows it.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.to_byte() == byte)
    }

    /// The full Noise protocol name (Noise specification, section 8).
    pub fn noise_name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "Noise_IKpsk2_25519_AESGCM_SHA256",
            Self::ChaCha20Poly1305 => "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        }
    }

    /// The name in configuration and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// The suite's hash over the concatenation of `parts`.
    fn hash(self, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut digest = Zeroizing::new([0; 32]);
        match self {
            Self::Aes256Gcm => {
                let mut context = ring::digest::Context::new(&SHA256);
                parts.iter().for_each(|part| context.update(part));
                digest.copy_from_slice(context.finish().as_ref());
            }
            Self::ChaCha20Poly1305 => {
                let mut context = Blake2s256::new();
                parts.iter().for_each(|part| context.update(part));
                digest.copy_from_slice(&context.finalize());
            }
        }
        digest
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A handshake message did not decrypt, verify, or decode; nothing was advanced by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("handshake failed")]
pub struct HandshakeFailed;

/// [`Parameters::features`]: lanes may have paths of their own.
pub const FEATURE_LANE_PATHS: u8 = 0x01;
/// [`Parameters::features`]: what the ECN field of a datagram says is passed on to the packets in it.
pub const FEATURE_ECN: u8 = 0x02;

/// What each side tells the other inside the handshake: 8 bytes, the last four zero in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// How many lanes the sender of these parameters will send on: 1 to [`MAX_LANES`].
    pub lanes: u8,
    /// Bits of features the sender understands, [`FEATURE_LANE_PATHS`] and [`FEATURE_ECN`]; unknown bits are ignored.
    pub features: u8,
    /// Longest packet in bytes that the sender has a use for; 0 says nothing.
    pub mtu: u16,
}

impl Parameters {
    fn encode(self) -> [u8; PARAMETERS_LEN] {
        let [low, high] = self.mtu.to_le_bytes();
        [self.lanes, self.features, low, high, 0, 0, 0, 0]
    }

    fn decode(bytes: &[u8; PARAMETERS_LEN]) -> Result<Self, HandshakeFailed> {
        match *bytes {
            [0, ..] => Err(HandshakeFailed),
            [lanes, ..] if lanes > MAX_LANES => Err(HandshakeFailed),
            [lanes, features, low, high, ..] => Ok(Self { lanes, features, mtu: u16::from_le_bytes([low, high]) }),
        }
    }
}

/// The two keys of a session (Noise specification §5.2, `Split`). Zeroed when dropped.
#[derive(ZeroizeOnDrop)]
pub struct SessionKeys {
    /// Seals what we send.
    pub send: [u8; KEY_LEN],
    /// Opens what we receive.
    pub receive: [u8; KEY_LEN],
}

/// The initiator between its initiation and the response.
pub struct PendingInitiation {
    noise: Wiped<HandshakeState>,
    opening: Opening,
    decapsulation_key: DecapsulationKey<MlKem768>,
}

/// Everything that message 1 is written from. The same again gives the same message and the same state behind it.
struct Opening {
    suite: Suite,
    local: PrivateKey,
    remote: PublicKey,
    header: [u8; INITIATION_HEADER_LEN],
    ephemeral: Zeroizing<[u8; DH_LEN]>,
    payload: [u8; INITIATION_PAYLOAD_LEN],
}

impl Opening {
    fn write(&self) -> Result<(Wiped<HandshakeState>, [u8; INITIATION_NOISE_LEN]), HandshakeFailed> {
        let prologue = prologue(&self.header);
        let mut noise = builder(self.suite, &self.local, &prologue, self.ephemeral.clone())?
            .remote_public_key(self.remote.as_bytes())
            .and_then(Builder::build_initiator)
            .map(Wiped::new)
            .map_err(|_| HandshakeFailed)?;
        let mut message = [0; INITIATION_NOISE_LEN];
        noise.write_message(&self.payload, &mut message).map_err(|_| HandshakeFailed)?;
        Ok((noise, message))
    }
}

impl PendingInitiation {
    /// Writes Noise message 1. `header` is the initiation's clear header, whose bytes the handshake binds.
    ///
    /// Draws 32 bytes for the ephemeral key, then 64 for the ML-KEM seed `d ‖ z` (FIPS 203 §7.1).
    pub fn create(
        suite: Suite,
        local: &PrivateKey,
        remote: &PublicKey,
        header: &[u8; INITIATION_HEADER_LEN],
        timestamp: Tai64N,
        parameters: Parameters,
        randomness: &mut Randomness,
    ) -> Result<(Self, [u8; INITIATION_NOISE_LEN]), HandshakeFailed> {
        let ephemeral = randomness.array();
        let decapsulation_key = DecapsulationKey::<MlKem768>::from_seed(Array(*randomness.array::<64>()));
        let mut payload = [0; INITIATION_PAYLOAD_LEN];
        payload[..TIMESTAMP_LEN].copy_from_slice(timestamp.as_bytes());
        payload[TIMESTAMP_LEN..][..PARAMETERS_LEN].copy_from_slice(&parameters.encode());
        payload[TIMESTAMP_LEN + PARAMETERS_LEN..].copy_from_slice(&decapsulation_key.encapsulation_key().to_bytes());

        let opening = Opening { suite, local: local.clone(), remote: *remote, header: *header, ephemeral, payload };
        let (noise, message) = opening.write()?;
        Ok((Self { noise, opening, decapsulation_key }, message))
    }

    /// The suite that was proposed.
    pub fn suite(&self) -> Suite {
        self.opening.suite
    }

    /// Reads the response: its clear header, ML-KEM ciphertext and Noise message. A failure leaves this as it was, so
    /// that neither a forged response nor one with forbidden parameters ends the handshake.
    pub fn consume_response(
        &mut self,
        preshared_key: Option<&PresharedKey>,
        header: &[u8; RESPONSE_HEADER_LEN],
        kem_ciphertext: &[u8; KEM_CIPHERTEXT_LEN],
        message: &[u8; RESPONSE_NOISE_LEN],
    ) -> Result<(SessionKeys, Parameters), HandshakeFailed> {
        let shared = Zeroizing::new(self.decapsulation_key.decapsulate(&Array(*kem_ciphertext)).into());
        let psk = psk(self.suite(), preshared_key, &shared, header, kem_ciphertext);
        self.noise.set_psk(PSK_POSITION, psk.as_slice()).map_err(|_| HandshakeFailed)?;
        let mut payload = [0; PARAMETERS_LEN];
        self.noise.read_message(message, &mut payload).map_err(|_| HandshakeFailed)?;
        let Ok(parameters) = Parameters::decode(&payload) else {
            // Noise is done with its handshake once a message decrypts: only from the beginning does it come here again.
            (self.noise, _) = self.opening.write()?;
            return Err(HandshakeFailed);
        };
        let (send, receive) = self.noise.dangerously_get_raw_split();
        Ok((SessionKeys { send, receive }, parameters))
    }
}

/// The responder between an initiation that decrypted and its own response.
pub struct ReceivedInitiation {
    noise: Wiped<HandshakeState>,
    suite: Suite,
    /// Not decoded, which costs as much as an X25519 result, before the caller knows the initiator.
    encapsulation_key: Box<[u8; ENCAPSULATION_KEY_LEN]>,
    /// The initiator's static key, which it has proven to hold; whether it is a peer's is for the caller to say.
    pub remote: PublicKey,
    /// When the initiator says it wrote this.
    pub timestamp: Tai64N,
    /// What the initiator says of itself.
    pub parameters: Parameters,
}

impl ReceivedInitiation {
    /// Reads Noise message 1. Draws 32 bytes for the ephemeral key of the response.
    pub fn consume(
        suite: Suite,
        local: &PrivateKey,
        header: &[u8; INITIATION_HEADER_LEN],
        message: &[u8; INITIATION_NOISE_LEN],
        randomness: &mut Randomness,
    ) -> Result<Self, HandshakeFailed> {
        let prologue = prologue(header);
        let mut noise = builder(suite, local, &prologue, randomness.array())?
            .build_responder()
            .map(Wiped::new)
            .map_err(|_| HandshakeFailed)?;
        let mut payload = [0; INITIATION_PAYLOAD_LEN];
        noise.read_message(message, &mut payload).map_err(|_| HandshakeFailed)?;

        let remote = noise.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(HandshakeFailed)?;
        let (timestamp, rest) = payload.split_first_chunk().expect("the payload starts with a timestamp");
        let (parameters, key) = rest.split_first_chunk().expect("parameters follow the timestamp");
        let key: [u8; ENCAPSULATION_KEY_LEN] = key.try_into().expect("the encapsulation key fills the payload");
        Ok(Self {
            suite,
            encapsulation_key: Box::new(key),
            remote: PublicKey::from_bytes(remote).map_err(|_| HandshakeFailed)?,
            timestamp: Tai64N::from_bytes(*timestamp),
            parameters: Parameters::decode(parameters)?,
            noise,
        })
    }

    /// The suite that was proposed.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Checks the encapsulation key and writes the ML-KEM ciphertext and Noise message 2. `header` is the response's clear
    /// header, which the psk binds. Draws 32 bytes for the encapsulation.
    pub fn create_response(
        mut self,
        preshared_key: Option<&PresharedKey>,
        header: &[u8; RESPONSE_HEADER_LEN],
        parameters: Parameters,
        randomness: &mut Randomness,
    ) -> Result<(SessionKeys, [u8; KEM_CIPHERTEXT_LEN], [u8; RESPONSE_NOISE_LEN]), HandshakeFailed> {
        // Checks the modulus (FIPS 203 §7.2).
        let encapsulation_key =
            EncapsulationKey::<MlKem768>::new(&Array(*self.encapsulation_key)).map_err(|_| HandshakeFailed)?;
        let (ciphertext, shared) = encapsulation_key.encapsulate_deterministic(&Array(*randomness.array()));
        let (ciphertext, shared): ([u8; KEM_CIPHERTEXT_LEN], _) = (ciphertext.into(), Zeroizing::new(shared.into()));
        let psk = psk(self.suite, preshared_key, &shared, header, &ciphertext);
        self.noise.set_psk(PSK_POSITION, psk.as_slice()).map_err(|_| HandshakeFailed)?;
        let mut message = [0; RESPONSE_NOISE_LEN];
        self.noise.write_message(&parameters.encode(), &mut message).map_err(|_| HandshakeFailed)?;
        let (receive, send) = self.noise.dangerously_get_raw_split();
        Ok((SessionKeys { send, receive }, ciphertext, message))
    }
}

fn prologue(header: &[u8; INITIATION_HEADER_LEN]) -> Vec<u8> {
    [PROLOGUE_LABEL, header].concat()
}

/// `HASH(label ‖ preshared key or zeros ‖ ML-KEM shared secret ‖ HASH(response header ‖ ML-KEM ciphertext))`.
fn psk(
    suite: Suite,
    preshared_key: Option<&PresharedKey>,
    shared_secret: &[u8; 32],
    header: &[u8; RESPONSE_HEADER_LEN],
    ciphertext: &[u8; KEM_CIPHERTEXT_LEN],
) -> Zeroizing<[u8; 32]> {
    let transcript = suite.hash(&[header, ciphertext]);
    let preshared_key = preshared_key.map_or(&[0; KEY_LEN], PresharedKey::as_bytes);
    suite.hash(&[PSK_LABEL, preshared_key, shared_secret, transcript.as_slice()])
}

fn builder<'a>(
    suite: Suite,
    local: &'a PrivateKey,
    prologue: &'a [u8],
    ephemeral: Zeroizing<[u8; DH_LEN]>,
) -> Result<Builder<'a>, HandshakeFailed> {
    let params = suite.noise_name().parse().expect("both suites are Noise names that snow knows");
    Builder::with_resolver(params, Box::new(Resolver { ephemeral }))
        .local_private_key(local.as_bytes())
        .and_then(|builder| builder.prologue(prologue))
        .map_err(|_| HandshakeFailed)
}

#[cfg(test)]
mod tests;
