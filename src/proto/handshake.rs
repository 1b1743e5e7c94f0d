//! Whole handshake messages: clear headers, Noise messages and ML-KEM ciphertexts in their places. MACs come after.

use crate::keys::{PresharedKey, PrivateKey, PublicKey};
use crate::packet::message::{
    INITIATION_HEADER_LEN, INITIATION_LEN, INITIATION_NOISE, Initiation, RESPONSE_HEADER_LEN, RESPONSE_KEM_CIPHERTEXT,
    RESPONSE_LEN, RESPONSE_NOISE, Response, initiation_header, response_header,
};

use super::noise::{HandshakeFailed, Parameters, PendingInitiation, ReceivedInitiation, SessionKeys, Suite};
use super::randomness::Randomness;
use super::tai64n::Tai64N;

/// What an initiation says in the clear and under encryption.
pub struct InitiationFields {
    /// The suite to use.
    pub suite: Suite,
    /// Our session index.
    pub sender_index: u32,
    /// Newer than in any initiation before.
    pub timestamp: Tai64N,
    /// What we say of ourselves.
    pub parameters: Parameters,
}

/// Writes an initiation, but for its MACs.
pub fn create_initiation(
    fields: &InitiationFields,
    local: &PrivateKey,
    remote: &PublicKey,
    randomness: &mut Randomness,
) -> Result<(PendingInitiation, Vec<u8>), HandshakeFailed> {
    let header = initiation_header(fields.suite.to_byte(), fields.sender_index);
    let (pending, noise) = PendingInitiation::create(
        fields.suite,
        local,
        remote,
        &header,
        fields.timestamp,
        fields.parameters,
        randomness,
    )?;
    let mut message = vec![0; INITIATION_LEN];
    message[..INITIATION_HEADER_LEN].copy_from_slice(&header);
    message[INITIATION_NOISE].copy_from_slice(&noise);
    Ok((pending, message))
}

/// Reads an initiation of a known suite whose MACs were verified.
pub fn consume_initiation(
    suite: Suite,
    initiation: Initiation<'_>,
    local: &PrivateKey,
    randomness: &mut Randomness,
) -> Result<ReceivedInitiation, HandshakeFailed> {
    let header = initiation.bytes.first_chunk().expect("an initiation is longer than its header");
    let noise = initiation.bytes[INITIATION_NOISE].try_into().expect("the range has the Noise message's length");
    ReceivedInitiation::consume(suite, local, header, noise, randomness)
}

/// Writes the response to `received`, but for its MACs. `indices` are ours and the initiator's.
pub fn create_response(
    received: ReceivedInitiation,
    indices: (u32, u32),
    preshared_key: Option<&PresharedKey>,
    parameters: Parameters,
    randomness: &mut Randomness,
) -> Result<(SessionKeys, Vec<u8>), HandshakeFailed> {
    let header = response_header(received.suite().to_byte(), indices.0, indices.1);
    let (keys, ciphertext, noise) = received.create_response(preshared_key, &header, parameters, randomness)?;
    let mut message = vec![0; RESPONSE_LEN];
    message[..RESPONSE_HEADER_LEN].copy_from_slice(&header);
    message[RESPONSE_KEM_CIPHERTEXT].copy_from_slice(&ciphertext);
    message[RESPONSE_NOISE].copy_from_slice(&noise);
    Ok((keys, message))
}

/// Reads the response to `pending`, whose MACs were verified. A failure leaves `pending` as it was.
pub fn consume_response(
    pending: &mut PendingInitiation,
    response: Response<'_>,
    preshared_key: Option<&PresharedKey>,
) -> Result<(SessionKeys, Parameters), HandshakeFailed> {
    let part = |range: std::ops::Range<usize>| &response.bytes[range];
    let header = response.bytes.first_chunk().expect("a response is longer than its header");
    let ciphertext = part(RESPONSE_KEM_CIPHERTEXT).try_into().expect("the range has the ciphertext's length");
    let noise = part(RESPONSE_NOISE).try_into().expect("the range has the Noise message's length");
    pending.consume_response(preshared_key, header, ciphertext, noise)
}
