use super::*;
use crate::packet::message::{initiation_header, response_header};

struct Parties {
    initiator: PrivateKey,
    responder: PrivateKey,
    randomness: Randomness,
}

fn parties() -> Parties {
    Parties {
        initiator: PrivateKey::from_bytes([1; 32]).unwrap(),
        responder: PrivateKey::from_bytes([2; 32]).unwrap(),
        randomness: Randomness::new([3; 32]),
    }
}

const PARAMETERS: Parameters = Parameters { lanes: 1, features: 0 };

impl Parties {
    fn initiate(
        &mut self,
        suite: Suite,
    ) -> (PendingInitiation, [u8; INITIATION_HEADER_LEN], [u8; INITIATION_NOISE_LEN]) {
        let header = initiation_header(suite.to_byte(), 7);
        let (pending, message) = PendingInitiation::create(
            suite,
            &self.initiator,
            &self.responder.public_key(),
            &header,
            Tai64N::from_unix(std::time::Duration::from_secs(5)),
            PARAMETERS,
            &mut self.randomness,
        )
        .unwrap();
        (pending, header, message)
    }

    fn receive(
        &mut self,
        suite: Suite,
        header: &[u8; INITIATION_HEADER_LEN],
        message: &[u8; INITIATION_NOISE_LEN],
    ) -> Result<ReceivedInitiation, HandshakeFailed> {
        ReceivedInitiation::consume(suite, &self.responder, header, message, &mut self.randomness)
    }
}

#[test]
fn both_sides_agree_on_keys_in_both_suites() {
    for suite in Suite::ALL {
        let mut parties = parties();
        let (mut pending, header, message) = parties.initiate(suite);
        let received = parties.receive(suite, &header, &message).unwrap();
        assert_eq!(received.remote, parties.initiator.public_key());
        assert_eq!(received.timestamp, Tai64N::from_unix(std::time::Duration::from_secs(5)));
        let header = response_header(suite.to_byte(), 8, 7);
        let parameters = Parameters { lanes: 3, features: 1 };
        let (responder_keys, ciphertext, message) =
            received.create_response(None, &header, parameters, &mut parties.randomness).unwrap();
        let (initiator_keys, received_parameters) =
            pending.consume_response(None, &header, &ciphertext, &message).unwrap();
        assert_eq!(received_parameters, parameters);
        assert_eq!(initiator_keys.send, responder_keys.receive);
        assert_eq!(initiator_keys.receive, responder_keys.send);
        assert_ne!(initiator_keys.send, initiator_keys.receive);
    }
}

#[test]
fn any_changed_bit_of_either_message_fails_and_leaves_the_initiator_waiting() {
    let suite = Suite::Aes256Gcm;
    let mut parties = parties();
    let (mut pending, header, message) = parties.initiate(suite);
    for byte in (0..INITIATION_HEADER_LEN).chain(8..INITIATION_HEADER_LEN + INITIATION_NOISE_LEN) {
        let (mut header, mut message) = (header, message);
        match byte.checked_sub(INITIATION_HEADER_LEN) {
            None => header[byte] ^= 1,
            Some(byte) => message[byte] ^= 1,
        }
        if byte % 37 == 0 || byte < 50 {
            assert!(parties.receive(suite, &header, &message).is_err(), "initiation byte {byte}");
        }
    }

    let received = parties.receive(suite, &header, &message).unwrap();
    let header = response_header(suite.to_byte(), 8, 7);
    let (_, ciphertext, message) =
        received.create_response(None, &header, PARAMETERS, &mut parties.randomness).unwrap();
    for byte in 0..header.len() {
        let mut header = header;
        header[byte] ^= 1;
        assert!(pending.consume_response(None, &header, &ciphertext, &message).is_err(), "header byte {byte}");
    }
    for byte in (0..ciphertext.len()).step_by(61) {
        let mut ciphertext = ciphertext;
        ciphertext[byte] ^= 1;
        assert!(pending.consume_response(None, &header, &ciphertext, &message).is_err(), "ciphertext byte {byte}");
    }
    for byte in 0..message.len() {
        let mut message = message;
        message[byte] ^= 0x10;
        assert!(pending.consume_response(None, &header, &ciphertext, &message).is_err(), "message byte {byte}");
    }
    assert!(pending.consume_response(None, &header, &ciphertext, &message).is_ok());
}

#[test]
fn a_preshared_key_must_be_the_same_on_both_sides() {
    let key = |byte| Some(PresharedKey::from_bytes([byte; 32]).unwrap());
    for (initiator, responder, agree) in
        [(key(1), key(1), true), (key(1), key(2), false), (key(1), None, false), (None, key(1), false)]
    {
        let suite = Suite::ChaCha20Poly1305;
        let mut parties = parties();
        let (mut pending, header, message) = parties.initiate(suite);
        let received = parties.receive(suite, &header, &message).unwrap();
        let header = response_header(suite.to_byte(), 8, 7);
        let (_, ciphertext, message) =
            received.create_response(responder.as_ref(), &header, PARAMETERS, &mut parties.randomness).unwrap();
        assert_eq!(pending.consume_response(initiator.as_ref(), &header, &ciphertext, &message).is_ok(), agree);
    }
}

#[test]
fn an_initiation_for_another_responder_fails() {
    let mut parties = parties();
    let (_, header, message) = parties.initiate(Suite::Aes256Gcm);
    parties.responder = PrivateKey::from_bytes([9; 32]).unwrap();
    assert!(parties.receive(Suite::Aes256Gcm, &header, &message).is_err());
}

#[test]
fn an_initiation_of_one_suite_is_not_one_of_the_other() {
    let mut parties = parties();
    let (_, header, message) = parties.initiate(Suite::Aes256Gcm);
    assert!(parties.receive(Suite::ChaCha20Poly1305, &header, &message).is_err());
}

#[test]
fn a_low_order_ephemeral_fails() {
    let mut parties = parties();
    let (_, header, mut message) = parties.initiate(Suite::Aes256Gcm);
    message[..DH_LEN].fill(0);
    assert!(parties.receive(Suite::Aes256Gcm, &header, &message).is_err());
}
