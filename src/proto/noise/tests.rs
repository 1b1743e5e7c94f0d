use super::*;
use crate::packet::message::{DH_LEN, initiation_header, response_header};
use crate::proto::aead::AeadKey;

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

const PARAMETERS: Parameters = Parameters { lanes: 1, features: 0, mtu: 0 };

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
        let parameters = Parameters { lanes: 3, features: 1, mtu: 9156 };
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

/// The fields of one party in the published vectors.
fn party<'a>(vector: &'a serde_json::Value, role: &str) -> impl Fn(&str) -> Vec<u8> + use<'a> {
    let role = role.to_owned();
    move |field| from_hex(&vector[format!("{role}_{field}")])
}

fn from_hex(text: &serde_json::Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A handshake of the published vectors, through the resolver that handshakes of peers go through.
fn published(vector: &serde_json::Value, role: &str) -> HandshakeState {
    let field = party(vector, role);
    let (prologue, private) = (field("prologue"), field("static"));
    let psk: [u8; 32] = from_hex(&vector[format!("{role}_psks")][0]).try_into().unwrap();
    let resolver = Resolver { ephemeral: Zeroizing::new(field("ephemeral").try_into().unwrap()) };
    let name = vector["protocol_name"].as_str().unwrap().parse().unwrap();
    let builder = Builder::with_resolver(name, Box::new(resolver))
        .local_private_key(&private)
        .and_then(|builder| builder.prologue(&prologue))
        .and_then(|builder| builder.psk(PSK_POSITION as u8, &psk))
        .unwrap();
    if role == "init" {
        let remote = field("remote_static");
        return builder.remote_public_key(&remote).and_then(Builder::build_initiator).unwrap();
    }
    builder.build_responder().unwrap()
}

#[test]
fn a_peer_has_lanes_and_not_too_many() {
    for lanes in 0..=u8::MAX {
        let decoded = Parameters::decode(&[lanes, 1, 2, 3, 0, 0, 0, 0]);
        let expected = (1..=MAX_LANES).contains(&lanes).then_some(Parameters { lanes, features: 1, mtu: 0x0302 });
        assert_eq!(decoded.ok(), expected);
    }
}

#[test]
fn both_names_give_the_published_messages() {
    let file: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors/noise.json")).unwrap();
    for suite in Suite::ALL {
        let vectors = file["vectors"].as_array().unwrap();
        let vector = vectors.iter().find(|vector| vector["protocol_name"] == suite.noise_name()).unwrap();
        let messages: Vec<(Vec<u8>, Vec<u8>)> = vector["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| (from_hex(&message["payload"]), from_hex(&message["ciphertext"])))
            .collect();

        let mut parties = ["init", "resp"].map(|role| published(vector, role));
        for (number, (payload, expected)) in messages[..2].iter().enumerate() {
            let mut buffer = [0; 1000];
            let length = parties[number].write_message(payload, &mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected, "{suite}: message {number}");
            let length = parties[1 - number].read_message(expected, &mut buffer).unwrap();
            assert_eq!(&buffer[..length], payload);
        }
        for party in &mut parties {
            assert_eq!(party.get_handshake_hash(), from_hex(&vector["handshake_hash"]));
        }

        // What follows goes past snow: the split keys, in the cipher of sessions.
        let split = parties.map(|mut party| party.dangerously_get_raw_split());
        assert_eq!(split[0], split[1]);
        let keys = [split[0].0, split[0].1].map(|key| AeadKey::new(suite, &key));
        for (number, (payload, expected)) in messages[2..].iter().enumerate() {
            let (key, nonce) = (&keys[number % 2], number as u64 / 2);
            let mut sealed = payload.clone();
            let tag = key.seal(nonce, &[], &mut sealed);
            sealed.extend(tag);
            assert_eq!(&sealed, expected, "{suite}: transport message {number}");
            assert_eq!(key.open(nonce, &[], &mut sealed).unwrap(), payload);
        }
        assert_eq!(messages.len(), 6);
    }
}
