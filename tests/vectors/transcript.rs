//! The transcripts: two handshakes and what follows them, from fixed keys, in each suite.
//!
//! The real implementation writes the messages; the second implementation computes the file, with every intermediate
//! value. To make the files anew after a deliberate change of the protocol: `UNDERPASS_WRITE_VECTORS=1 cargo test --test
//! vectors`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use underpass::keys::{PresharedKey, PrivateKey};
use underpass::packet::frame::{Control, FLAG_CHECKSUM_PARTIAL, FLAG_CONTINUES};
use underpass::packet::message::{Message, TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD};
use underpass::proto::constants::{MAX_LANES, REJECT_AFTER_MESSAGES};
use underpass::proto::cookie::{CookieChecker, CookieJar, MacKeys};
use underpass::proto::handshake::{
    InitiationFields, consume_initiation, consume_response, create_initiation, create_response,
};
use underpass::proto::noise::{Parameters, PendingInitiation, SessionKeys, Suite};
use underpass::proto::randomness::Randomness;
use underpass::proto::session::{Session, SessionParameters};
use underpass::proto::tai64n::Tai64N;
use underpass::proto::traffic::Traffic;

use crate::packets::{INITIATOR_V4, RESPONDER_V4, cut_tcp, tcp, udp, udp_v6, without_checksum};
use crate::python::{bytes, directory, hex, run};

const KIND_PACKET: u8 = 1;
const KIND_CONTROL: u8 = 2;
const KIND_OF_THE_FUTURE: u8 = 77;

/// What is chosen, and what our implementation makes of it.
struct Transcript {
    suite: Suite,
    now: Instant,
    initiator: PrivateKey,
    responder: PrivateKey,
    handshakes: Vec<Value>,
    /// All messages in the order of the file.
    messages: Vec<Vec<u8>>,
}

/// One handshake while it is made.
struct Handshake {
    preshared_key: Option<PresharedKey>,
    initiator_index: u32,
    responder_index: u32,
    initiator_lanes: u8,
    responder_lanes: u8,
    seed: u8,
    initiations: Vec<Value>,
    cookie_replies: Vec<Value>,
    jar: CookieJar,
}

impl Handshake {
    fn new(seed: u8, preshared_key: Option<PresharedKey>) -> Self {
        Self {
            preshared_key,
            initiator_index: 0x0102_0304 + u32::from(seed),
            responder_index: 0xa1a2_a3a4 + u32::from(seed),
            initiator_lanes: 2,
            responder_lanes: MAX_LANES,
            seed,
            initiations: Vec::new(),
            cookie_replies: Vec::new(),
            jar: CookieJar::default(),
        }
    }

    /// Equal seeds draw equal bytes: once for the implementation, once for the record of what was drawn.
    fn randomness(&mut self) -> [Randomness; 2] {
        self.seed += 1;
        [self.seed; 2].map(|seed| Randomness::new([seed; 32]))
    }
}

impl Transcript {
    fn new(suite: Suite) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
        let now = Instant::now();
        let mut transcript = Self {
            suite,
            now,
            initiator: PrivateKey::from_bytes(std::array::from_fn(|at| at as u8 + 1)).unwrap(),
            responder: PrivateKey::from_bytes(std::array::from_fn(|at| at as u8 + 101)).unwrap(),
            handshakes: Vec::new(),
            messages: Vec::new(),
        };
        transcript.first_contact();
        transcript.under_load_with_a_preshared_key();
        transcript
    }

    fn first_contact(&mut self) {
        let mut handshake = Handshake::new(10, None);
        let pending = self.initiation(&mut handshake);
        let (response, sessions) = self.response(&mut handshake, pending);
        let transport = self.transport(&sessions, handshake.responder_lanes);
        self.finish(handshake, response, transport);
    }

    fn under_load_with_a_preshared_key(&mut self) {
        let mut handshake = Handshake::new(100, Some(PresharedKey::from_bytes([0x5a; 32]).unwrap()));
        self.initiation(&mut handshake);
        self.cookie_reply(&mut handshake, "[2001:db8::17]:51900".parse().unwrap());
        handshake.initiator_index += 1;
        let pending = self.initiation(&mut handshake);
        let (response, sessions) = self.response(&mut handshake, pending);
        let keepalive = self.datagram(&sessions[0], "initiator", 0, 0, &[], 0);
        self.finish(handshake, response, vec![keepalive]);
    }

    fn initiation(&mut self, handshake: &mut Handshake) -> PendingInitiation {
        let time = Duration::new(1_700_000_000 + handshake.initiations.len() as u64, 123_456_789);
        let fields = InitiationFields {
            suite: self.suite,
            sender_index: handshake.initiator_index,
            timestamp: Tai64N::from_unix(time),
            parameters: Parameters { lanes: handshake.initiator_lanes, features: 0, mtu: 0 },
        };
        let [mut randomness, mut record] = handshake.randomness();
        let responder = self.responder.public_key();
        let (pending, mut message) = create_initiation(&fields, &self.initiator, &responder, &mut randomness).unwrap();
        handshake.jar.write_macs(self.now, &MacKeys::new(&responder), &mut message);
        self.messages.push(message);
        handshake.initiations.push(json!({
            "sender_index": handshake.initiator_index,
            "unix_seconds": time.as_secs(),
            "unix_nanoseconds": time.subsec_nanos(),
            "lanes": handshake.initiator_lanes,
            "ephemeral_private_key": hex(&*record.array::<32>()),
            "ml_kem_seed": hex(&*record.array::<64>()),
        }));
        pending
    }

    fn cookie_reply(&mut self, handshake: &mut Handshake, from: SocketAddr) {
        let [mut randomness, mut record] = handshake.randomness();
        let responder = MacKeys::new(&self.responder.public_key());
        let message = self.messages.last().unwrap().clone();
        let index = handshake.initiator_index;
        let mut checker = CookieChecker::default();
        let reply = checker.reply(self.now, from, &responder, index, &message, &mut randomness);
        let Ok(Message::CookieReply(parsed)) = Message::parse(&reply) else { panic!("not a cookie reply") };
        handshake.jar.consume_reply(self.now, &responder, &parsed).unwrap();
        self.messages.push(reply.clone());
        let SocketAddr::V6(address) = from else { panic!("not IPv6") };
        handshake.cookie_replies.push(json!({
            "address": hex(&address.ip().octets()),
            "port": from.port(),
            "secret": hex(&*record.array::<32>()),
            "nonce": hex(&*record.array::<24>()),
        }));
    }

    fn response(&mut self, handshake: &mut Handshake, mut pending: PendingInitiation) -> (Value, [Session; 2]) {
        let [mut randomness, mut record] = handshake.randomness();
        let message = self.messages.last().unwrap().clone();
        let Ok(Message::Initiation(initiation)) = Message::parse(&message) else { panic!("not an initiation") };
        let received = consume_initiation(self.suite, initiation, &self.responder, &mut randomness).unwrap();
        assert_eq!(received.remote, self.initiator.public_key());
        let indices = (handshake.responder_index, handshake.initiator_index);
        let parameters = Parameters { lanes: handshake.responder_lanes, features: 0, mtu: 0 };
        let preshared_key = handshake.preshared_key.as_ref();
        let (responder_keys, mut message) =
            create_response(received, indices, preshared_key, parameters, &mut randomness).unwrap();
        MacKeys::new(&self.initiator.public_key()).write(&mut message, None);
        let Ok(Message::Response(response)) = Message::parse(&message) else { panic!("not a response") };
        let (initiator_keys, _) = consume_response(&mut pending, response, preshared_key).unwrap();
        self.messages.push(message);
        let sessions =
            [self.session(&initiator_keys, handshake, true), self.session(&responder_keys, handshake, false)];
        let given = json!({
            "sender_index": handshake.responder_index,
            "lanes": handshake.responder_lanes,
            "ephemeral_private_key": hex(&*record.array::<32>()),
            "ml_kem_message": hex(&*record.array::<32>()),
        });
        (given, sessions)
    }

    fn session(&self, keys: &SessionKeys, handshake: &Handshake, is_initiator: bool) -> Session {
        let (ours, theirs) = (
            (handshake.initiator_index, handshake.initiator_lanes),
            (handshake.responder_index, handshake.responder_lanes),
        );
        let (local, remote) = if is_initiator { (ours, theirs) } else { (theirs, ours) };
        let parameters = SessionParameters {
            local_index: local.0,
            remote_index: remote.0,
            is_initiator,
            suite: self.suite,
            send_lanes: local.1,
            receive_lanes: remote.1,
            lane_paths: false,
            peer_reads_ecn: false,
            peer_mtu: 0,
        };
        Session::new(self.now, keys, &parameters, Arc::new(Traffic::new(self.now)))
    }

    fn finish(&mut self, handshake: Handshake, response: Value, transport: Vec<Value>) {
        self.handshakes.push(json!({
            "preshared_key": handshake.preshared_key.map(|key| hex(key.as_bytes())).unwrap_or_default(),
            "initiations": handshake.initiations,
            "cookie_replies": handshake.cookie_replies,
            "response": response,
            "transport": transport,
        }));
    }

    fn transport(&mut self, [initiator, responder]: &[Session; 2], last_lane: u8) -> Vec<Value> {
        let (there, back) = ((INITIATOR_V4, RESPONDER_V4), (RESPONDER_V4, INITIATOR_V4));
        let payload: Vec<u8> = (0..250).collect();
        let [one, two, three] = cut_tcp(back.0, back.1, &payload, 100).try_into().unwrap();
        let train = FLAG_CHECKSUM_PARTIAL | FLAG_CONTINUES;
        let packed = [
            packet(0, &udp(there.0, there.1, b"whole")),
            packet(FLAG_CHECKSUM_PARTIAL, &without_checksum(udp(there.0, there.1, b"odd"))),
            frame(KIND_OF_THE_FUTURE, 9, b"unknown frames are passed over"),
            packet(FLAG_CHECKSUM_PARTIAL, &without_checksum(udp_v6(b"six"))),
            control(Control::Unknown(200)),
        ];
        vec![
            self.datagram(initiator, "initiator", 0, 0, &[control(Control::Ping(0x0807_0605_0403_0201))], 0),
            self.datagram(responder, "responder", 0, 0, &[control(Control::Pong(0x0807_0605_0403_0201))], 0),
            self.datagram(initiator, "initiator", 1, 0, &packed, 5),
            self.datagram(initiator, "initiator", 1, 1, &[], 3),
            self.datagram(responder, "responder", 2, 0, &[packet(FLAG_CHECKSUM_PARTIAL, &one), packet(train, &two)], 0),
            self.datagram(responder, "responder", 2, 1, &[packet(train, &three)], 0),
            self.datagram(initiator, "initiator", 0, 1, &[], 0),
            self.far_datagram("responder", last_lane - 1, REJECT_AFTER_MESSAGES - 1, &tcp(back.0, back.1, b"last")),
            self.datagram(responder, "responder", 0, 1, &[control(Control::Goodbye)], 0),
        ]
    }

    fn datagram(
        &mut self,
        session: &Session,
        from: &str,
        lane: u8,
        counter: u64,
        frames: &[Value],
        padding: usize,
    ) -> Value {
        let mut plaintext: Vec<u8> = frames.iter().flat_map(encoded).collect();
        plaintext.resize(plaintext.len() + padding, 0);
        let mut datagram = vec![0; TRANSPORT_OVERHEAD + plaintext.len()];
        datagram[TRANSPORT_HEADER_LEN..][..plaintext.len()].copy_from_slice(&plaintext);
        session.seal(self.now, lane, &mut datagram).unwrap();
        assert_eq!(datagram.len() - TAG_LEN - TRANSPORT_HEADER_LEN, plaintext.len());
        self.messages.push(datagram);
        given_transport(from, lane, counter, frames, padding)
    }

    /// A datagram whose counter nobody waits for; the tests beside `Session` seal and open it.
    fn far_datagram(&mut self, from: &str, lane: u8, counter: u64, bytes: &[u8]) -> Value {
        self.messages.push(Vec::new());
        given_transport(from, lane, counter, &[packet(0, bytes)], 0)
    }

    fn inputs(&self) -> Value {
        json!({
            "suite": self.suite.to_byte(),
            "initiator_private_key": hex(self.initiator.as_bytes()),
            "responder_private_key": hex(self.responder.as_bytes()),
            "handshakes": self.handshakes,
        })
    }
}

fn given_transport(from: &str, lane: u8, counter: u64, frames: &[Value], padding: usize) -> Value {
    json!({ "from": from, "lane": lane, "counter": counter, "frames": frames, "padding": padding })
}

fn packet(flags: u8, bytes: &[u8]) -> Value {
    frame(KIND_PACKET, flags, bytes)
}

fn control(control: Control) -> Value {
    let mut encoded = Vec::new();
    control.encode(&mut encoded);
    frame(KIND_CONTROL, 0, &encoded[4..])
}

fn frame(kind: u8, flags: u8, body: &[u8]) -> Value {
    json!({ "kind": kind, "flags": flags, "body": hex(body) })
}

fn encoded(frame: &Value) -> Vec<u8> {
    let byte = |name: &str| u8::try_from(frame[name].as_u64().unwrap()).unwrap();
    let body = bytes(&frame["body"]);
    let length = u16::try_from(body.len()).unwrap().to_le_bytes();
    [&[byte("kind"), byte("flags"), length[0], length[1]], body.as_slice()].concat()
}

fn committed(suite: Suite) -> (std::path::PathBuf, String) {
    let path = directory().join(format!("{suite}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    (path, text)
}

/// The messages of a file, in order.
fn messages(transcript: &Value) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for handshake in transcript["handshakes"].as_array().unwrap() {
        let list = |name: &str| handshake[name].as_array().unwrap().iter().map(|record| bytes(&record["message"]));
        let mut replies = list("cookie_replies");
        for initiation in list("initiations") {
            messages.push(initiation);
            messages.extend(replies.next());
        }
        messages.push(bytes(&handshake["response"]["message"]));
        messages.extend(list("transport"));
    }
    messages
}

/// The beginning that `docs/protocol.md` shows: everything in hexadecimal there is in the file, too.
#[test]
fn the_vector_in_the_document_is_the_transcripts() {
    let file = std::fs::read_to_string(directory().join("aes-256-gcm.json")).unwrap();
    let document = std::fs::read_to_string(directory().join("../../docs/protocol.md")).unwrap();
    let (_, vectors) = document.split_once("## 18. Test vectors").unwrap();
    let is_hex = |word: &&str| word.len() >= 24 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let shown: Vec<&str> = vectors.split_whitespace().filter(is_hex).collect();
    assert!(shown.len() > 20, "{shown:?}");
    for value in shown {
        assert!(file.contains(&format!("\"{value}\"")), "{value}");
    }
}

#[test]
fn the_second_implementation_computes_the_transcripts() {
    for suite in Suite::ALL {
        let computed = run("transcript.py", &Transcript::new(suite).inputs());
        let (path, committed) = committed(suite);
        if std::env::var_os("UNDERPASS_WRITE_VECTORS").is_some() {
            std::fs::write(path, &computed).unwrap();
        } else {
            assert!(computed == committed, "{} is not what is computed", path.display());
        }
    }
}

#[test]
fn the_implementation_writes_the_messages_of_the_transcripts() {
    for suite in Suite::ALL {
        let ours = Transcript::new(suite).messages;
        let theirs = messages(&serde_json::from_str(&committed(suite).1).unwrap());
        assert_eq!(ours.len(), theirs.len());
        for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert!(ours.is_empty() || ours == theirs, "{suite}: message {number}");
        }
    }
}
