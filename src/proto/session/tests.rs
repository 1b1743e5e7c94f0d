use std::time::Duration;

use super::super::tests::start;
use super::*;
use crate::packet::message::{Message, TRANSPORT_OVERHEAD};

/// The initiator's and the responder's end of one session.
pub(in crate::proto) fn pair(now: Instant, suite: Suite, lanes: u8) -> [Session; 2] {
    [true, false].map(|is_initiator| {
        let (send, receive) = if is_initiator { ([1; 32], [2; 32]) } else { ([2; 32], [1; 32]) };
        let parameters = SessionParameters {
            local_index: u32::from(is_initiator),
            remote_index: u32::from(!is_initiator),
            is_initiator,
            suite,
            send_lanes: lanes,
            receive_lanes: lanes,
            lane_paths: false,
            peer_reads_ecn: false,
            peer_mtu: 0,
        };
        Session::new(now, &SessionKeys { send, receive }, &parameters, Arc::new(Traffic::new(now)))
    })
}

pub(super) fn sealed(session: &Session, now: Instant, lane: u8, plaintext: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut datagram = vec![0; TRANSPORT_OVERHEAD + plaintext.len()];
    datagram[TRANSPORT_HEADER_LEN..][..plaintext.len()].copy_from_slice(plaintext);
    session.seal(now, lane, &mut datagram).map(|_| datagram)
}

pub(super) fn open(session: &Session, now: Instant, datagram: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut datagram = datagram.to_vec();
    let Ok(Message::Transport(header)) = Message::parse(&datagram) else { panic!("not transport data") };
    session.open(now, header, &mut datagram).map(|authentic| authentic.plaintext.to_vec())
}

#[test]
fn a_peer_that_does_not_pass_marks_on_gets_datagrams_that_cannot_be_marked() {
    let [session, _] = pair(start(), Suite::Aes256Gcm, 1);
    for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
        let inner = TrafficClass::default().with_dscp(46).with_ecn(ecn);
        assert_eq!(session.traffic_class(Dscp::Copy, inner), inner.with_ecn(Ecn::NotEct));
        assert_eq!(session.traffic_class(Dscp::default(), inner), TrafficClass::default());
    }
}

#[test]
fn opens_what_the_other_side_sealed_once_in_any_order() {
    let now = start();
    for suite in Suite::ALL {
        let [one, two] = pair(now, suite, 2);
        let datagrams: Vec<_> = (0..10u8).map(|i| sealed(&one, now, i % 2, &[i; 20]).unwrap()).collect();
        for (i, datagram) in datagrams.iter().enumerate().rev() {
            assert_eq!(open(&two, now, datagram), Ok(vec![i as u8; 20]));
        }
        for datagram in &datagrams {
            assert_eq!(open(&two, now, datagram), Err(DropReason::Replayed));
        }
        assert_eq!(one.sent_bytes(), 10 * (20 + TRANSPORT_OVERHEAD as u64));
        assert_eq!(two.received_bytes(), one.sent_bytes());
    }
}

#[test]
fn any_changed_bit_is_refused_and_leaves_the_window_as_it_was() {
    let now = start();
    let [one, two] = pair(now, Suite::Aes256Gcm, 2);
    let datagram = sealed(&one, now, 0, b"attack at dawn").unwrap();
    for bit in 8..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        // The index only chose the session, so this test presents a datagram with another index to the same one.
        let expected = match changed[1] {
            0 | 1 => DropReason::InvalidTag,
            _ => DropReason::UnknownLane,
        };
        let refused = open(&two, now, &changed).unwrap_err();
        assert!(refused == expected || refused == DropReason::SessionExpired, "bit {bit}: {refused:?}");
    }
    assert_eq!(open(&two, now, &datagram).unwrap(), b"attack at dawn");
}

#[test]
fn lanes_do_not_share_nonces_nor_windows() {
    let now = start();
    let [one, two] = pair(now, Suite::Aes256Gcm, 2);
    let [a, b] = [0, 1].map(|lane| sealed(&one, now, lane, &[0; 32]).unwrap());
    assert_eq!(a[6..12], b[6..12], "both are counter 0");
    assert_ne!(a[12..], b[12..]);
    assert!(open(&two, now, &a).is_ok() && open(&two, now, &b).is_ok());
    assert_eq!(sealed(&one, now, 2, &[]), Err(DropReason::UnknownLane));
}

#[test]
fn a_session_ends_by_time() {
    let now = start();
    let [one, two] = pair(now, Suite::Aes256Gcm, 1);
    let datagram = sealed(&one, now, 0, &[]).unwrap();
    let end = now + REJECT_AFTER_TIME;
    assert_eq!(open(&two, end, &datagram), Err(DropReason::SessionExpired));
    assert_eq!(sealed(&one, end, 0, &[]), Err(DropReason::SessionExpired));
    assert!(open(&two, end - Duration::from_nanos(1), &datagram).is_ok());
}

#[test]
fn a_session_asks_for_its_successor_and_ends_by_count_all_lanes_together() {
    let now = start();
    let [one, _] = pair(now, Suite::Aes256Gcm, 4);
    let seal = |lane| one.seal(now, lane, &mut [0; TRANSPORT_OVERHEAD]);
    one.send_lanes[3].next_counter.store(REKEY_AFTER_MESSAGES / 4 - 1, Ordering::Relaxed);
    assert_eq!([seal(3), seal(3), seal(3)], [Ok(false), Ok(true), Ok(false)]);
    for number in 1..3 {
        let again = now + REKEY_REQUEST_INTERVAL * number;
        let seal = |at| one.seal(at, 3, &mut [0; TRANSPORT_OVERHEAD]);
        assert_eq!([seal(again - Duration::from_secs(1)), seal(again)], [Ok(false), Ok(true)]);
    }
    one.send_lanes[2].next_counter.store(REJECT_AFTER_MESSAGES / 4 - 1, Ordering::Relaxed);
    assert_eq!(
        [seal(2), seal(2), seal(2)],
        [Ok(false), Err(DropReason::SessionExpired), Err(DropReason::SessionExpired)]
    );
    assert_eq!(seal(0), Ok(false));
}

#[test]
fn a_session_asks_for_its_successor_and_ends_by_bytes_all_lanes_together() {
    let now = start();
    let [one, _] = pair(now, Suite::Aes256Gcm, 4);
    let seal = |lane| one.seal(now, lane, &mut [0; TRANSPORT_OVERHEAD]);
    one.send_lanes[3].sent_bytes.store(REKEY_AFTER_BYTES / 4 - 1, Ordering::Relaxed);
    assert_eq!([seal(3), seal(3)], [Ok(false), Ok(true)]);
    one.send_lanes[2].sent_bytes.store(REJECT_AFTER_BYTES / 4 - 1, Ordering::Relaxed);
    one.rekey_requested.store(1, Ordering::Relaxed);
    assert_eq!([seal(2), seal(2)], [Ok(false), Err(DropReason::SessionExpired)]);
    assert_eq!(seal(0), Ok(false));
}

#[test]
fn only_the_initiator_rekeys_by_time() {
    let now = start();
    let [one, two] = pair(now, Suite::Aes256Gcm, 1);
    let later = now + (REKEY_AFTER_TIME - REKEY_JITTER);
    assert_eq!(one.seal(later - Duration::from_secs(1), 0, &mut [0; TRANSPORT_OVERHEAD]), Ok(false));
    assert_eq!(one.seal(later, 0, &mut [0; TRANSPORT_OVERHEAD]), Ok(true));
    assert_eq!(two.seal(later, 0, &mut [0; TRANSPORT_OVERHEAD]), Ok(false));
}

#[test]
fn a_counter_beyond_the_limit_is_refused() {
    let now = start();
    let [one, two] = pair(now, Suite::Aes256Gcm, 1);
    let mut datagram = vec![0; TRANSPORT_OVERHEAD];
    one.seal_with_counter(0, REJECT_AFTER_MESSAGES, &mut datagram);
    assert_eq!(open(&two, now, &datagram), Err(DropReason::SessionExpired));
}

#[test]
fn two_threads_sealing_on_one_lane_use_no_counter_twice() {
    let now = start();
    let [one, two] = pair(now, Suite::Aes256Gcm, 1);
    let datagrams: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..1000).map(|_| sealed(&one, now, 0, &[1]).unwrap()).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // Each datagram is presented by two threads at once; each is accepted exactly once.
    let accepted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| datagrams.iter().filter(|datagram| open(&two, now, datagram).is_ok()).count()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(accepted, 4000);
}

/// What `tests/vectors` holds of one suite.
fn transcript(suite: Suite) -> serde_json::Value {
    serde_json::from_str(match suite {
        Suite::Aes256Gcm => include_str!("../../../tests/vectors/aes-256-gcm.json"),
        Suite::ChaCha20Poly1305 => include_str!("../../../tests/vectors/chacha20-poly1305.json"),
    })
    .unwrap()
}

fn from_hex(text: &serde_json::Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The session that a handshake of a transcript made for one of its sides.
fn session_of(now: Instant, suite: Suite, handshake: &serde_json::Value, is_initiator: bool) -> Session {
    let key = |direction: &str| from_hex(&handshake[format!("{direction}_key")]).try_into().unwrap();
    let (there, back) = (key("initiator_to_responder"), key("responder_to_initiator"));
    let initiation = &handshake["initiations"].as_array().unwrap().last().unwrap()["given"];
    let response = &handshake["response"]["given"];
    let (local, remote) = if is_initiator { (initiation, response) } else { (response, initiation) };
    let (send, receive) = if is_initiator { (there, back) } else { (back, there) };
    let index = |side: &serde_json::Value| side["sender_index"].as_u64().unwrap() as u32;
    let lanes = |side: &serde_json::Value| side["lanes"].as_u64().unwrap() as u8;
    let parameters = SessionParameters {
        local_index: index(local),
        remote_index: index(remote),
        is_initiator,
        suite,
        send_lanes: lanes(local),
        receive_lanes: lanes(remote),
        lane_paths: false,
        peer_reads_ecn: false,
        peer_mtu: 0,
    };
    Session::new(now, &SessionKeys { send, receive }, &parameters, Arc::new(Traffic::new(now)))
}

#[test]
fn seals_and_opens_the_datagrams_of_the_transcripts() {
    let now = start();
    let mut datagrams = 0;
    for suite in Suite::ALL {
        for handshake in transcript(suite)["handshakes"].as_array().unwrap() {
            let [initiator, responder] =
                [true, false].map(|is_initiator| session_of(now, suite, handshake, is_initiator));
            for record in handshake["transport"].as_array().unwrap() {
                let (plaintext, expected) = (from_hex(&record["plaintext"]), from_hex(&record["message"]));
                let by_initiator = record["given"]["from"] == "initiator";
                let (from, to) = if by_initiator { (&initiator, &responder) } else { (&responder, &initiator) };
                let number = |field: &str| record["given"][field].as_u64().unwrap();
                let mut datagram = vec![0; TRANSPORT_OVERHEAD + plaintext.len()];
                datagram[TRANSPORT_HEADER_LEN..][..plaintext.len()].copy_from_slice(&plaintext);
                from.seal_with_counter(number("lane") as u8, number("counter"), &mut datagram);
                assert_eq!(datagram, expected);
                assert_eq!(open(to, now, &expected), Ok(plaintext));
                datagrams += 1;
            }
        }
    }
    assert_eq!(datagrams, 20);
}
